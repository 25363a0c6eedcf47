//! Front matter: metadata as a block of YAML between two `---` lines at the start of a file.
//!
//! The block is read with the types the keys want, so that an edition written `2025.10` stays text.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::Finding;
use super::metadata::{self, FrontMatter, List, Text, Written};

/// The block may not be longer than this.
const MAX_BYTES: usize = 64 << 10;

/// What a file's head holds.
#[derive(Debug)]
pub struct Head {
    /// The metadata, unless a finding is an error.
    pub front: Option<FrontMatter>,
    /// Whether there is a front matter block at all.
    pub present: bool,
    /// Where the text after the block starts, in bytes.
    pub body: usize,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// Reads the front matter of a file.
#[must_use]
pub fn parse(file: &str, text: &str) -> Head {
    let Some(block) = Lines::find(text) else {
        let mend = "no front matter; start the file with `---`, the keys id, title, edition, … and `---`";
        let findings = vec![Finding::error(file, 1, mend)];
        return Head { front: None, present: text_opens_block(text), body: 0, findings };
    };
    let yaml = &text[block.from..block.to];
    // One line, `---`, stands before the block.
    let read = if yaml.len() > MAX_BYTES {
        Err((2, format!("the front matter is longer than {MAX_BYTES} bytes; keep the text below it")))
    } else {
        read(yaml, 1)
    };
    let (front, findings) = match read {
        Ok(written) => metadata::check(file, &written),
        Err((line, message)) => (None, vec![Finding::error(file, line, message)]),
    };
    Head { front, present: true, body: block.body, findings }
}

fn text_opens_block(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').lines().next().is_some_and(|l| l.trim_end() == "---")
}

/// Where the YAML stands in the file.
struct Lines {
    from: usize,
    to: usize,
    body: usize,
}

impl Lines {
    fn find(text: &str) -> Option<Self> {
        if !text_opens_block(text) {
            return None;
        }
        let mut at = 0;
        let mut from = None;
        for line in text.split_inclusive('\n') {
            let bare = line.trim_end();
            match from {
                None => from = Some(at + line.len()),
                Some(from) if bare == "---" || bare == "..." => {
                    return Some(Self { from, to: at, body: at + line.len() });
                }
                Some(_) => {}
            }
            at += line.len();
        }
        None
    }
}

/// Reads the block's YAML; `lines_before` it stand in the file.
fn read(yaml: &str, lines_before: usize) -> Result<Written, (usize, String)> {
    let options = serde_saphyr::options! { with_snippet: false };
    let mut written = serde_saphyr::from_str_with_options::<Block>(yaml, options)
        .map_err(|error| {
            let line = error.location().map_or(1, |l| l.line() as usize);
            (lines_before + line, format!("the front matter is not valid YAML: {error}"))
        })?
        .0;
    let texts = written.texts.values_mut().map(|text| &mut text.line);
    let lists = written.lists.values_mut().map(|list| &mut list.line);
    for line in texts.chain(lists).chain(written.unknown.iter_mut().map(|(_, line)| line)) {
        *line += lines_before;
    }
    written.line = lines_before;
    Ok(written)
}

/// The block as written, its lines counted within it.
struct Block(Written);

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Block;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys with values, such as `id: htn-adults`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Block, A::Error> {
                let mut raw = Written::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let line = key.referenced.line() as usize;
                    if let Some(known) = Written::text_key(&key.value) {
                        let found: Spanned<Option<String>> = map.next_value()?;
                        let line = found.referenced.line() as usize;
                        raw.texts.insert(known, Text { value: found.value, line });
                    } else if let Some(known) = Written::list_key(&key.value) {
                        let items = map.next_value::<Items>()?.0;
                        raw.lists.insert(known, List { items, line });
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        raw.unknown(&key.value, line);
                    }
                }
                Ok(Block(raw))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// One value or a list of them.
struct Items(Vec<String>);

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Items;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of values")
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<Items, E> {
                Ok(Items(Some(v.trim()).filter(|v| !v.is_empty()).map(str::to_owned).into_iter().collect()))
            }

            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Items, E> {
                Ok(Items(vec![v.to_string()]))
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Items, E> {
                Ok(Items(vec![v.to_string()]))
            }

            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Items, E> {
                Err(E::custom(format!(
                    "write the edition in quotes, so that it is not read as the number {v}"
                )))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Items, E> {
                Ok(Items(Vec::new()))
            }

            fn visit_none<E: de::Error>(self) -> Result<Items, E> {
                Ok(Items(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element::<String>()? {
                    if !item.trim().is_empty() {
                        items.push(item.trim().to_owned());
                    }
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "---\nid: htn\ntitle: Hypertension\nedition: 2025.10\nissuer: Society\njurisdiction: JP\n\
        language: en\neffective_from: 2025-04-01\nsupersedes: 2019\nsource: Guideline 2025\nlicence: CC0\n\
        tags: [blood pressure, stroke]\n---\nBody.\n";

    fn messages(text: &str) -> Vec<(usize, String)> {
        parse("a.md", text).findings.into_iter().map(|f| (f.line, f.message)).collect()
    }

    #[test]
    fn reads_a_complete_block() {
        let head = parse("a.md", GOOD);
        assert_eq!(head.findings, []);
        assert_eq!(&GOOD[head.body..], "Body.\n");
        let front = head.front.unwrap();
        assert_eq!(front.key.to_string(), "htn@2025.10");
        assert_eq!(front.supersedes[0].to_string(), "htn@2019");
        assert_eq!(front.tags, ["blood pressure", "stroke"]);
        assert_eq!(front.line("effective_from"), 8);
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark_are_fine() {
        let text = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
        let head = parse("a.md", &text);
        assert_eq!(head.findings, []);
        assert_eq!(&text[head.body..], "Body.\r\n");
        assert_eq!(head.front.unwrap().line("title"), 3);
    }

    #[test]
    fn every_fault_is_found_at_its_line() {
        let text = "---\nid: a b\nedition: 2025\nissuer:\njurisdiction: JP\nlanguage: fr\n\
            effective_from: 2025-02-30\neffective_to: soon\nsupersede: 2019\ncolour: red\nsource: S\nlicence: L\n---\nB\n";
        let found = messages(text);
        for (line, part) in [
            (2, "`id`"),
            (1, "`title` is missing"),
            (4, "`issuer` is empty"),
            (6, "unknown language `fr`"),
            (7, "`effective_from`"),
            (8, "`effective_to`"),
            (9, "did you mean `supersedes`"),
            (10, "unknown key `colour` is ignored"),
        ] {
            assert!(found.iter().any(|(l, m)| *l == line && m.contains(part)), "{line} {part}: {found:#?}");
        }
        assert_eq!(found.len(), 8);
    }

    #[test]
    fn an_end_before_the_start_is_found() {
        let text = GOOD.replace("supersedes: 2019", "effective_to: 2025-03-31");
        assert!(messages(&text)[0].1.contains("before `effective_from`"));
    }

    #[test]
    fn bad_yaml_and_duplicate_keys_have_a_line() {
        assert_eq!(messages("---\nid: a\nid: b\n---\nB\n")[0].0, 3);
        assert!(messages("---\nid: [a\n---\nB\n")[0].1.contains("not valid YAML"));
        assert!(messages("no block")[0].1.contains("no front matter"));
        assert!(messages("---\nid: a\n")[0].1.contains("no front matter"));
    }

    #[test]
    fn supersedes_takes_lists_and_other_guidelines() {
        let text = GOOD.replace("supersedes: 2019", "supersedes: [\"2014\", old-htn@2009]");
        let front = parse("a.md", &text).front.unwrap();
        assert_eq!(
            front.supersedes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["htn@2014", "old-htn@2009"]
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_the_body_starts_on_a_boundary(text in "(---\n)?[ -~\n:\\[\\]{}&*!あ]{0,120}(\n---\n)?\\PC{0,20}") {
            let head = parse("a.md", &text);
            prop_assert!(text.get(head.body..).is_some());
            prop_assert!(head.front.is_some() || !head.findings.is_empty());
        }
    }
}
