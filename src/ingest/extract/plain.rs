//! Text files: bytes to characters.

use encoding_rs::{EUC_JP, Encoding, SHIFT_JIS, UTF_8, UTF_16BE, UTF_16LE};

use super::{Extracted, Fault};

/// Reads text that is UTF-8, or says by its byte order mark that it is UTF-16. Without a mark other encodings are not guessed: a wrong
/// guess makes another text of it, and nobody would notice.
pub(super) fn extract(bytes: Vec<u8>) -> Result<Extracted, Fault> {
    let marked = Encoding::for_bom(&bytes).map(|(encoding, _)| encoding);
    if let Some(encoding) = marked.filter(|e| [UTF_16LE, UTF_16BE].contains(e)) {
        let text = decode(encoding, &bytes)?;
        let warnings = vec![format!("is {}; save it as UTF-8, which every tool reads", encoding.name())];
        return Ok(Extracted { text, warnings, ..Extracted::default() });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Extracted { text, ..Extracted::default() }),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + good.iter().filter(|&&b| b == b'\n').count();
            let likely = [SHIFT_JIS, EUC_JP]
                .into_iter()
                .find(|e| e.decode_without_bom_handling_and_without_replacement(error.as_bytes()).is_some());
            let guess = likely.map_or_else(String::new, |e| format!(", it may be {}", e.name()));
            Err(Fault { line, message: format!("not UTF-8{guess}; save the file as UTF-8") })
        }
    }
}

fn decode(encoding: &'static Encoding, bytes: &[u8]) -> Result<String, Fault> {
    let (text, _, damaged) = encoding.decode(bytes);
    if damaged {
        return Err(Fault::new(format!("says that it is {}, and is not; save it as UTF-8", encoding.name())));
    }
    Ok(text.into_owned())
}

/// How far into a page its encoding may be declared, as browsers look.
const DECLARED_WITHIN: usize = 1024;

/// The characters of an HTML page, by its byte order mark, or by what it declares, or as UTF-8.
pub(super) fn decode_html(bytes: &[u8]) -> Result<String, Fault> {
    let marked = Encoding::for_bom(bytes).map(|(encoding, _)| encoding);
    decode(marked.or_else(|| declared(bytes)).unwrap_or(UTF_8), bytes)
}

/// `<meta charset=…>` and `<?xml encoding=…?>`.
fn declared(bytes: &[u8]) -> Option<&'static Encoding> {
    let start = bytes[..bytes.len().min(DECLARED_WITHIN)].to_ascii_lowercase();
    let after = |name: &[u8]| {
        let at = start.windows(name.len()).position(|w| w == name)? + name.len();
        let value = start.get(at..)?;
        let value = value.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
        let value = value.strip_prefix(b"\"").or_else(|| value.strip_prefix(b"'")).unwrap_or(value);
        let end = value.iter().position(|b| !(b.is_ascii_alphanumeric() || b"-_:".contains(b)));
        Encoding::for_label(&value[..end.unwrap_or(value.len())])
    };
    after(b"charset").or_else(|| after(b"encoding"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_declarations_are_followed_and_nothing_is_guessed() {
        let utf16 = [&[0xff, 0xfe][..], &[0x42, 0x30, b'\n', 0]].concat();
        let read = extract(utf16).unwrap();
        assert_eq!((read.text.as_str(), read.warnings.len()), ("あ\n", 1));
        let (shift_jis, ..) = SHIFT_JIS.encode("血圧\n降圧目標");
        let fault = extract([b"ok\n", &shift_jis[..]].concat()).unwrap_err();
        assert_eq!(fault.line, 2);
        assert!(fault.message.contains("Shift_JIS"), "{}", fault.message);
        let page = [&b"<meta charset=\"Shift_JIS\"><p>"[..], &shift_jis[..]].concat();
        assert!(decode_html(&page).unwrap().ends_with("血圧\n降圧目標"));
        assert!(decode_html(b"<p>\xff").unwrap_err().message.contains("UTF-8"));
        let page = b"<meta http-equiv=\"Content-Type\" content=\"text/html; charset=euc-jp\">\xa4\xa2";
        assert!(decode_html(page).unwrap().ends_with('あ'));
    }
}
