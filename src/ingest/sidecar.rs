//! Sidecars: metadata in a file of its own, `NAME.meta.toml` beside `NAME`, for formats that have no place for it.

use toml::de::{DeTable, DeValue};

use super::Finding;
use super::metadata::{self, FrontMatter, List, Text, Written};

/// What a sidecar's name adds to that of its file.
pub const SUFFIX: &str = ".meta.toml";
/// No sidecar is larger than this.
pub const MAX_BYTES: u64 = 64 << 10;

/// Reads the sidecar `file`.
#[must_use]
pub fn parse(file: &str, text: &str) -> (Option<FrontMatter>, Vec<Finding>) {
    match read(text) {
        Ok(written) => metadata::check(file, &written),
        Err((line, message)) => (None, vec![Finding::error(file, line, message)]),
    }
}

fn read(text: &str) -> Result<Written, (usize, String)> {
    let line_at = |at: usize| 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(span.start));
        (line, format!("not valid TOML: {}", error.message()))
    })?;
    let mut written = Written { line: 1, ..Written::default() };
    for (key, value) in table.get_ref() {
        let line = line_at(key.span().start);
        let key = key.get_ref();
        if let Some(key) = Written::text_key(key) {
            let value = scalar(value.get_ref()).ok_or_else(|| (line, format!("`{key}` must be text")))?;
            written.texts.insert(key, Text { value: Some(value), line });
        } else if let Some(key) = Written::list_key(key) {
            let items = match value.get_ref() {
                DeValue::Array(items) => items.iter().map(|item| scalar(item.get_ref())).collect(),
                one => scalar(one).map(|item| vec![item]),
            };
            let items: Vec<String> =
                items.ok_or_else(|| (line, format!("`{key}` must be text or a list of texts")))?;
            let items = items
                .into_iter()
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect();
            written.lists.insert(key, List { items, line });
        } else {
            written.unknown(key, line);
        }
    }
    Ok(written)
}

/// Text, or a number or date as it is written: an edition `2025.10` stays one.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Datetime(date) => Some(date.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "id = \"htn\"\ntitle = \"高血圧\"\nedition = 2025.10\nissuer = \"Society\"\njurisdiction = \"JP\"\n\
        language = \"ja\"\neffective_from = 2025-04-01\nsupersedes = [\"2019\", \"old@1\"]\nsource = \"S\"\nlicence = \"CC0\"\n";

    #[test]
    fn reads_a_complete_sidecar() {
        let (front, findings) = parse("a.pdf.meta.toml", GOOD);
        assert_eq!(findings, []);
        let front = front.unwrap();
        assert_eq!(front.key.to_string(), "htn@2025.10");
        assert_eq!(front.effective_from.to_string(), "2025-04-01");
        assert_eq!((front.supersedes.len(), front.line("supersedes")), (2, 8));
    }

    #[test]
    fn faults_have_their_lines() {
        let faults = |text: &str| parse("a.meta.toml", text).1;
        let found = faults(&GOOD.replace("language = \"ja\"", "langage = \"ja\""));
        assert!(
            found.iter().any(|f| f.line == 6 && f.message.contains("did you mean `language`")),
            "{found:?}"
        );
        assert!(
            found.iter().any(|f| f.line == 1 && f.message.contains("`language` is missing")),
            "{found:?}"
        );
        assert_eq!(faults("id = \"a\"\nid = \"b\"\n")[0].line, 2);
        assert!(faults("id = {}\n")[0].message.contains("`id` must be text"));
        assert!(faults("tags = [[]]\n")[0].message.contains("`tags`"));
    }

    proptest! {
        #[test]
        fn never_panics(text in "([a-z]{1,9} = [\"'\\[\\]{}0-9a-z:-]{0,12}\n|\\PC{0,20}){0,8}") {
            let (front, findings) = parse("a.meta.toml", &text);
            prop_assert!(front.is_some() || !findings.is_empty());
        }
    }
}
