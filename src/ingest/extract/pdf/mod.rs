//! The text layer of a PDF as Markdown.
//!
//! A PDF holds glyphs and where they stand, not text. `hayro-interpret` runs each page and says which character a glyph is; lines,
//! paragraphs and headings are what positions and sizes make likely. Columns and tables come in the order in which the page draws
//! them, which is the order of reading in all but a few programs.

mod layout;
mod page;

use std::io::{self, Read as _};
use std::time::Instant;

use hayro_interpret::hayro_syntax::{DecryptionError, LoadPdfError, Pdf};
use hayro_interpret::kurbo::Rect;
use hayro_interpret::{Context, InterpreterCache, InterpreterSettings, TransformExt as _, interpret_page};

use super::{Extracted, Fault, MAX_TEXT_BYTES};
use page::PageText;

/// No document has more pages than this.
const MAX_PAGES: usize = 5_000;
/// No stream unpacks to more than this, and all together to no more than [`MAX_UNPACKED_BYTES`].
const MAX_STREAM_BYTES: u64 = 128 << 20;
const MAX_UNPACKED_BYTES: u64 = 1 << 30;

/// Reads a document's text, page by page.
pub(super) fn extract(bytes: Vec<u8>) -> Result<Extracted, Fault> {
    refuse_bombs(&bytes)?;
    let pdf = Pdf::new(bytes).map_err(|error| {
        Fault::new(match error {
            LoadPdfError::Decryption(DecryptionError::PasswordProtected) => {
                "protected by a password; save it without one"
            }
            LoadPdfError::Decryption(_) => {
                "encrypted in a way that cannot be read; save it without encryption"
            }
            LoadPdfError::Invalid => "no PDF, or a damaged one; save it again with the program that made it",
        })
    })?;
    let pages = pdf.pages();
    if pages.is_empty() {
        return Err(Fault::new("has no pages; save it again with the program that made it"));
    }
    if pages.len() > MAX_PAGES {
        return Err(Fault::new(format!("has more than {MAX_PAGES} pages; split it")));
    }
    let cache = InterpreterCache::new();
    let started = Instant::now();
    let mut read = Vec::new();
    let mut characters = 0;
    for page in pages.iter() {
        let (width, height) = page.render_dimensions();
        let mut device =
            PageText::new(f64::from(width), f64::from(height), started, MAX_TEXT_BYTES - characters);
        let transform = page.initial_transform(true).to_kurbo();
        let bounds = Rect::new(0.0, 0.0, device.width, device.height);
        let mut context = Context::new(transform, bounds, &cache, pdf.xref(), InterpreterSettings::default());
        interpret_page(page, &mut context, &mut device);
        characters += device.bytes;
        read.push(device.finish());
    }
    layout::write(&mut read)
}

/// Refuses streams that unpack to more than any guideline holds: the parser unpacks them whole.
fn refuse_bombs(bytes: &[u8]) -> Result<(), Fault> {
    if bytes.windows(10).any(|w| w == b"/LZWDecode") {
        return Err(Fault::new(
            "packed as PDFs were before 1996 (LZW); save it again with a program of today",
        ));
    }
    let mut total = 0;
    for at in memchr::memmem::find_iter(bytes, b"stream") {
        let data = &bytes[at + b"stream".len()..];
        let data = data.strip_prefix(b"\r").unwrap_or(data);
        let data = data.strip_prefix(b"\n").unwrap_or(data);
        // The first byte of every zlib stream.
        if data.first().is_none_or(|b| b & 0x0f != 8) {
            continue;
        }
        let mut unpacked = Counter::default();
        // A damaged stream counts as far as it goes.
        let _ = io::copy(&mut flate2::read::ZlibDecoder::new(data).take(MAX_STREAM_BYTES + 1), &mut unpacked);
        // Once packed is plenty; packed twice is how little becomes too much.
        let again = unpacked.start.first().is_some_and(|b| b & 0x0f == 8) && {
            let mut twice = Counter::default();
            let _ = io::copy(&mut flate2::read::ZlibDecoder::new(&unpacked.start[..]), &mut twice);
            twice.bytes > 64 * unpacked.start.len() as u64
        };
        total += unpacked.bytes;
        if again || unpacked.bytes > MAX_STREAM_BYTES || total > MAX_UNPACKED_BYTES {
            let mib = MAX_STREAM_BYTES >> 20;
            return Err(Fault::new(format!(
                "holds a stream that unpacks to more than {mib} MiB; save it without pictures"
            )));
        }
    }
    Ok(())
}

/// Counts what is written, and keeps its start.
#[derive(Default)]
struct Counter {
    bytes: u64,
    start: Vec<u8>,
}

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (64 << 10) - self.start.len().min(64 << 10);
        self.start.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A PDF of pages with the given content streams. The font `F` is Helvetica; `J` shows code 1 as 血 and 2 as 圧.
    pub(crate) fn pdf(pages: &[&str]) -> Vec<u8> {
        let cmap = "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def \
            1 begincodespacerange <0000> <FFFF> endcodespacerange 2 beginbfchar <0001> <8840> <0002> <5727> endbfchar \
            endcmap end end";
        let kids: Vec<_> = (0..pages.len()).map(|n| format!("{} 0 R", 8 + 2 * n)).collect();
        let mut objects = vec![
            "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
            format!("<< /Type /Pages /Kids [{}] /Count {} >>", kids.join(" "), pages.len()),
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
            "<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /DescendantFonts [5 0 R] /ToUnicode 6 0 R >>".to_owned(),
            "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /DW 1000 /FontDescriptor 7 0 R >>".to_owned(),
            stream(cmap),
            "<< /Type /FontDescriptor /FontName /X /Flags 4 /FontBBox [0 0 1000 1000] /ItalicAngle 0 /Ascent 800 /Descent -200 /CapHeight 700 /StemV 80 >>".to_owned(),
        ];
        for (n, content) in pages.iter().enumerate() {
            objects.push(format!(
                "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 600] /Contents {} 0 R /Resources << /Font << /F 3 0 R /J 4 0 R >> >> >>",
                9 + 2 * n
            ));
            objects.push(stream(content));
        }
        let mut out = String::from("%PDF-1.7\n");
        let mut offsets = Vec::new();
        for (n, object) in objects.iter().enumerate() {
            offsets.push(out.len());
            out.push_str(&format!("{} 0 obj\n{object}\nendobj\n", n + 1));
        }
        let xref = out.len();
        out.push_str(&format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1));
        offsets.iter().for_each(|at| out.push_str(&format!("{at:010} 00000 n \n")));
        out.push_str(&format!(
            "trailer << /Size {} /Root 1 0 R >>\nstartxref\n{xref}\n%%EOF\n",
            objects.len() + 1
        ));
        out.into_bytes()
    }

    fn stream(content: &str) -> String {
        format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len())
    }

    fn line(size: u32, x: u32, y: u32, text: &str) -> String {
        format!("BT /F {size} Tf {x} {y} Td ({text}) Tj ET\n")
    }

    #[test]
    fn lines_become_paragraphs_headings_and_items() {
        let page = [
            line(18, 50, 550, "Hypertension"),
            line(10, 50, 500, "The target is a blood pressure below"),
            line(10, 50, 488, "130/80 mmHg in most adults."),
            line(10, 50, 440, "Another paragraph."),
            "BT /F 10 Tf 50 400 Td (\\225 first item) Tj 0 -12 Td (\\225 second) Tj ET\n".to_owned(),
            "BT /F 10 Tf 50 340 Td (10) Tj 6 Ts /F 6 Tf (9) Tj 0 Ts /F 10 Tf (/L) Tj ET\n".to_owned(),
            "BT /F 10 Tf 50 300 Td (Drug) Tj 100 0 Td (Dose) Tj -100 -14 Td (ramipril) Tj 100 0 Td (2.5 mg) Tj ET\n".to_owned(),
        ];
        let read = extract(pdf(&[&page.concat()])).unwrap();
        let want = "# Hypertension\n\nThe target is a blood pressure below 130/80 mmHg in most adults.\n\nAnother paragraph.\n\n\
            - first item\n- second item";
        assert!(read.text.starts_with(&want[..want.len() - 5]), "{}", read.text);
        assert!(read.text.contains("10^9/L"), "{}", read.text);
        assert!(
            read.text.ends_with("|  |  |\n| --- | --- |\n| Drug | Dose |\n| ramipril | 2.5 mg |"),
            "{}",
            read.text
        );
        assert_eq!((read.hidden.len(), read.pages.as_slice(), read.warnings.len()), (0, &[0][..], 0));
    }

    #[test]
    fn japanese_lines_are_joined_without_a_space_and_pages_have_their_places() {
        let two = "BT /J 10 Tf 50 500 Td <00010002> Tj 0 -12 Td <00020001> Tj ET\n";
        let read = extract(pdf(&[two, two])).unwrap();
        assert_eq!(read.text, "血圧圧血\n\n血圧圧血");
        assert_eq!(read.pages, [0, 14]);
    }

    #[test]
    fn what_is_not_seen_is_marked() {
        let seen = line(10, 50, 500, "seen text stands here");
        for hidden in [
            "BT /F 10 Tf 1 g 50 450 Td (secret) Tj 0 g ET",
            "BT /F 10 Tf 3 Tr 50 450 Td (secret) Tj 0 Tr ET",
            "BT /F 0.5 Tf 50 450 Td (secret) Tj ET",
            "BT /F 10 Tf 900 450 Td (secret) Tj ET",
        ] {
            let read = extract(pdf(&[&format!("{seen}{hidden}")])).unwrap();
            let marked: String = read.hidden.iter().map(|r| &read.text[r.clone()]).collect();
            assert_eq!(marked, "secret", "{hidden}: {read:?}");
        }
        let on_ground = "0 0 1 rg 40 440 200 30 re f BT /F 10 Tf 1 g 50 450 Td (title) Tj ET";
        assert!(extract(pdf(&[&format!("{seen}{on_ground}")])).unwrap().hidden.is_empty());
        let scan = extract(pdf(&["BT /F 10 Tf 3 Tr 50 450 Td (recognised) Tj ET"])).unwrap();
        assert_eq!((scan.hidden.len(), scan.warnings.len()), (0, 1), "{scan:?}");
    }

    #[test]
    fn running_heads_are_left_out() {
        let pages: Vec<String> = (1..=5)
            .map(|n| {
                format!(
                    "{}{}{}",
                    line(8, 50, 580, "Society guideline"),
                    line(10, 50, 500, &format!("Text {n} of it.")),
                    line(8, 50, 20, &format!("Page {n}"))
                )
            })
            .collect();
        let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
        let read = extract(pdf(&pages)).unwrap();
        assert!(!read.text.contains("Society") && !read.text.contains("Page"), "{}", read.text);
        assert!(read.text.contains("Text 3 of it."));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        assert!(extract(b"%PDF-1.7\nnothing".to_vec()).unwrap_err().message.contains("PDF"));
        assert!(extract(pdf(&["0 0 10 10 re f"])).unwrap_err().message.contains("OCR"));
        let mut zeros = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        io::copy(&mut io::repeat(b' ').take(200 << 20), &mut zeros).unwrap();
        let mut bomb = b"%PDF-1.7\n1 0 obj << /Filter /FlateDecode >>\nstream\n".to_vec();
        bomb.extend(zeros.finish().unwrap());
        assert!(extract(bomb).unwrap_err().message.contains("128 MiB"));
        let whole = pdf(&[&line(10, 50, 500, "text")]);
        for cut in (0..whole.len()).step_by(97) {
            let _ = super::super::extract(super::super::Format::Pdf, whole[..cut].to_vec());
        }
    }
}
