//! Front matter: the metadata of one edition, checked, with every finding at its line.
//!
//! Second step of the operator path. The YAML block between two `---` lines is read with the types the keys
//! want, so that an edition written `2025.10` stays text. Returns the value *and* all findings; the value is
//! there only when nothing found is an error.

use std::collections::BTreeMap;
use std::fmt;

use jiff::civil::Date;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::Finding;
use crate::language::Language;

const TEXT_KEYS: [&str; 10] = [
    "id",
    "title",
    "edition",
    "issuer",
    "jurisdiction",
    "language",
    "effective_from",
    "effective_to",
    "source",
    "licence",
];
const LIST_KEYS: [&str; 2] = ["supersedes", "tags"];
const OPTIONAL: [&str; 1] = ["effective_to"];
/// The block may not be longer than this.
const MAX_BYTES: usize = 64 << 10;
const MAX_VALUE_CHARS: usize = 500;

/// One edition of a guideline, by its two names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EditionKey {
    /// The guideline.
    pub guideline: String,
    /// Its edition.
    pub edition: String,
}

impl fmt::Display for EditionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.guideline, self.edition)
    }
}

/// The checked metadata of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontMatter {
    /// Guideline and edition.
    pub key: EditionKey,
    /// The title as readers know it.
    pub title: String,
    /// Who issued it.
    pub issuer: String,
    /// Where it holds.
    pub jurisdiction: String,
    /// The language of the text.
    pub language: Language,
    /// The first day on which it holds.
    pub effective_from: Date,
    /// The last day on which it holds, if it names one.
    pub effective_to: Option<Date>,
    /// Editions that it replaces.
    pub supersedes: Vec<EditionKey>,
    /// Where the text came from.
    pub source: String,
    /// The licence of the text.
    pub licence: String,
    /// Free subject words.
    pub tags: Vec<String>,
    /// The line of each key, counted from 1, for findings that need other files too.
    pub lines: BTreeMap<&'static str, usize>,
}

impl FrontMatter {
    /// The line of a key, or the first one.
    #[must_use]
    pub fn line(&self, key: &str) -> usize {
        self.lines.get(key).copied().unwrap_or(1)
    }
}

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
    let Some(block) = Block::find(text) else {
        let mend = "no front matter; start the file with `---`, the keys id, title, edition, … and `---`";
        let findings = vec![Finding::error(file, 1, mend)];
        return Head { front: None, present: text_opens_block(text), body: 0, findings };
    };
    let mut check = Check { file, first_line: block.first_line, findings: Vec::new() };
    let yaml = &text[block.from..block.to];
    let front = if yaml.len() > MAX_BYTES {
        check.error(1, format!("the front matter is longer than {MAX_BYTES} bytes; keep the text below it"));
        None
    } else {
        check.yaml(yaml)
    };
    let failed = check.findings.iter().any(Finding::is_error);
    Head { front: front.filter(|_| !failed), present: true, body: block.body, findings: check.findings }
}

fn text_opens_block(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').lines().next().is_some_and(|l| l.trim_end() == "---")
}

/// Where the YAML stands in the file.
struct Block {
    from: usize,
    to: usize,
    body: usize,
    /// Line of the first YAML line, less one.
    first_line: usize,
}

impl Block {
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
                    return Some(Self { from, to: at, body: at + line.len(), first_line: 1 });
                }
                Some(_) => {}
            }
            at += line.len();
        }
        None
    }
}

struct Check<'a> {
    file: &'a str,
    first_line: usize,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn error(&mut self, yaml_line: usize, message: String) {
        self.findings.push(Finding::error(self.file, self.first_line + yaml_line, message));
    }

    fn yaml(&mut self, yaml: &str) -> Option<FrontMatter> {
        let options = serde_saphyr::options! { with_snippet: false };
        let raw: Raw = match serde_saphyr::from_str_with_options(yaml, options) {
            Ok(raw) => raw,
            Err(error) => {
                let line = error.location().map_or(1, |l| l.line() as usize);
                self.error(line, format!("the front matter is not valid YAML: {error}"));
                return None;
            }
        };
        self.unknown_keys(&raw);
        let mut lines = BTreeMap::new();
        let mut texts = BTreeMap::new();
        for key in TEXT_KEYS {
            match raw.texts.get(key) {
                Some(found) => {
                    let line = found.referenced.line() as usize;
                    lines.insert(key, self.first_line + line);
                    if let Some(value) = self.text(key, found) {
                        texts.insert(key, (value, line));
                    }
                }
                None if OPTIONAL.contains(&key) => {}
                None => self.error(0, format!("`{key}` is missing; add it to the front matter")),
            }
        }
        for (key, list) in &raw.lists {
            lines.insert(*key, self.first_line + list.line);
        }
        let language = self.parsed(&texts, "language", |v| v.parse::<Language>().map_err(|e| e.to_string()));
        let from = self.parsed(&texts, "effective_from", date);
        let to = self.parsed(&texts, "effective_to", date);
        let id = self.parsed(&texts, "id", name);
        let edition = self.parsed(&texts, "edition", name);
        if let (Some(from), Some(to)) = (from, to)
            && to < from
        {
            let line = texts.get("effective_to").map_or(1, |t| t.1);
            self.error(line, format!("`effective_to` {to} is before `effective_from` {from}"));
        }
        let supersedes = self.supersedes(&raw, id.as_deref().unwrap_or_default());
        let tags = raw.lists.get("tags").map(|l| l.items.clone()).unwrap_or_default();
        let mut take = |key: &str| texts.remove(key).map(|t| t.0);
        Some(FrontMatter {
            key: EditionKey { guideline: id?, edition: edition? },
            title: take("title")?,
            issuer: take("issuer")?,
            jurisdiction: take("jurisdiction")?,
            language: language?,
            effective_from: from?,
            effective_to: to,
            supersedes,
            source: take("source")?,
            licence: take("licence")?,
            tags,
            lines,
        })
    }

    fn unknown_keys(&mut self, raw: &Raw) {
        for (key, line) in &raw.unknown {
            let known = TEXT_KEYS.iter().chain(&LIST_KEYS).find(|k| nearly(k, key));
            // A misspelt key silently loses what it says ("supersede" would leave the old edition current), so it
            // is an error; a key of another tool is not.
            match known {
                Some(known) => self.error(*line, format!("unknown key `{key}`; did you mean `{known}`?")),
                None => self.findings.push(Finding::warning(
                    self.file,
                    self.first_line + line,
                    format!("unknown key `{key}` is ignored"),
                )),
            }
        }
    }

    fn text(&mut self, key: &str, found: &Spanned<Option<String>>) -> Option<String> {
        let value = found.value.as_deref().map(str::trim).filter(|v| !v.is_empty());
        let line = found.referenced.line() as usize;
        match value {
            Some(v) if v.chars().count() > MAX_VALUE_CHARS => {
                self.error(line, format!("`{key}` is longer than {MAX_VALUE_CHARS} characters"));
                None
            }
            Some(v) => Some(v.to_owned()),
            None if OPTIONAL.contains(&key) => None,
            None => {
                self.error(line, format!("`{key}` is empty; give it a value"));
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        texts: &BTreeMap<&str, (String, usize)>,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (value, line) = texts.get(key)?;
        parse(value).map_err(|why| self.error(*line, format!("`{key}`: {why}"))).ok()
    }

    /// `EDITION` names one of the same guideline, `ID@EDITION` one of any.
    fn supersedes(&mut self, raw: &Raw, id: &str) -> Vec<EditionKey> {
        let Some(list) = raw.lists.get("supersedes") else { return Vec::new() };
        let mut keys = Vec::new();
        for item in &list.items {
            let (guideline, edition) = item.split_once('@').unwrap_or((id, item));
            match name(edition).and_then(|e| Ok((name(guideline)?, e))) {
                Ok((guideline, edition)) => keys.push(EditionKey { guideline, edition }),
                Err(_) if id.is_empty() => {}
                Err(why) => self.error(list.line, format!("`supersedes`: `{item}`: {why}")),
            }
        }
        keys
    }
}

fn date(value: &str) -> Result<Date, String> {
    let shaped = value.len() == 10 && value.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let parsed = if shaped { value.parse().ok() } else { None };
    parsed.ok_or_else(|| format!("`{value}` is no date; write it as YYYY-MM-DD, such as 2025-04-01"))
}

fn name(value: &str) -> Result<String, String> {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !value.is_empty() && value.chars().count() <= 80 && value.chars().all(good) {
        Ok(value.to_owned())
    } else {
        Err(format!("`{value}` is no name; use up to 80 letters, digits, `-`, `_` and `.`"))
    }
}

/// Whether two keys differ by at most two edits, or by case and dashes only.
fn nearly(known: &str, key: &str) -> bool {
    let key: String = key.chars().take(40).flat_map(char::to_lowercase).collect::<String>().replace('-', "_");
    let key: Vec<char> = key.chars().collect();
    let mut row: Vec<usize> = (0..=key.len()).collect();
    for (i, a) in known.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in key.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    // Two edits turn a short key into any other, so they count only in longer ones.
    row[key.len()] <= if known.len() > 5 { 2 } else { 0 }
}

/// The block as written: values with their lines, unchecked.
#[derive(Default)]
struct Raw {
    texts: BTreeMap<&'static str, Spanned<Option<String>>>,
    lists: BTreeMap<&'static str, List>,
    unknown: Vec<(String, usize)>,
}

#[derive(Default)]
struct List {
    items: Vec<String>,
    line: usize,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys with values, such as `id: htn-adults`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let line = key.referenced.line() as usize;
                    if let Some(known) = TEXT_KEYS.into_iter().find(|k| *k == key.value) {
                        raw.texts.insert(known, map.next_value()?);
                    } else if let Some(known) = LIST_KEYS.into_iter().find(|k| *k == key.value) {
                        let items = map.next_value::<Items>()?.0;
                        raw.lists.insert(known, List { items, line });
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        raw.unknown.push((key.value.chars().take(80).collect(), line));
                    }
                }
                Ok(raw)
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
