//! Looks over the files of a dataset: each line, then lines against each other and files against each other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, BufRead as _};
use std::path::Path;

use serde::Serialize;

use super::read::{self, Example, Message};
use super::{Finding, Severity, audit, same, text};
use crate::analysis::figures::Figure;
use crate::files::without_mark;

/// A line is no longer than this.
const MAX_LINE_BYTES: usize = 4 << 20;
/// No file has more lines than this.
const MAX_LINES: usize = 1_000_000;
/// Fewer examples than this teach no behaviour.
pub const FEW: usize = 10;
/// Fewer than this are less than is recommended.
const RECOMMENDED: usize = 50;
/// What files are called, without their ending, that are not learnt from.
const HELD_OUT: [&str; 6] = ["valid", "validation", "val", "dev", "test", "eval"];

/// How a look went.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Examples of each file that can be trained on.
    pub examples: Vec<(String, usize)>,
    /// All findings, in order of place.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Findings that are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
    }
}

/// The bound on the tokens of an example.
pub struct TokenLimit<'a> {
    /// What is too much of an example that has more than so many, or why that cannot be told.
    pub beyond: &'a FindBeyond<'a>,
    /// The most that an example may have.
    pub most: usize,
}

/// Looks for what is too much of an example that has more tokens than so many.
pub type FindBeyond<'a> = dyn Fn(&[Message], usize) -> Result<Option<Beyond>, String> + 'a;

/// What is too much of an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beyond {
    /// Its tokens.
    pub tokens: usize,
    /// The turn with the first of those that are too many.
    pub turn: usize,
    /// The character of its content that this begins with.
    pub character: usize,
}

/// What files are for, which decides whether few examples are too few.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To learn from, but for those that are called valid, validation, val, dev, test or eval.
    #[default]
    Named,
    /// To learn from.
    Learning,
    /// To hold out, or not known yet.
    HeldOut,
}

impl Purpose {
    /// Whether a file is to learn from.
    fn learns(self, path: &Path) -> bool {
        match self {
            Self::Named => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
                !HELD_OUT.contains(&stem.as_str())
            }
            Self::Learning => true,
            Self::HeldOut => false,
        }
    }
}

/// What examples are held against, besides each other.
#[derive(Default)]
pub struct Against<'a> {
    /// The bound on their tokens.
    pub limit: Option<TokenLimit<'a>>,
    /// Figures of the guidelines, where those are known.
    pub known: Option<&'a [Figure]>,
    /// What the files are for.
    pub purpose: Purpose,
}

/// An example where it stands.
struct Placed {
    file: usize,
    line: usize,
    example: Example,
}

/// Looks over files.
///
/// # Errors
/// When a file cannot be read.
pub fn lint(files: &[&Path], against: &Against<'_>) -> io::Result<Report> {
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    let mut report = Report::default();
    let mut placed = Vec::new();
    for (file, path) in files.iter().enumerate() {
        let before = placed.len();
        one(path, &names[file], against, &mut report.findings, |line, example| {
            placed.push(Placed { file, line, example });
        })?;
        let own: &[Placed] = &placed[before..];
        together(&names[file], own, &mut report.findings);
        repeated(&names[file], own, &mut report.findings);
        report.examples.push((names[file].clone(), own.len()));
        if let Some((severity, message)) = few(own.len(), against.purpose.learns(path)) {
            report.findings.push(Finding {
                file: names[file].clone(),
                line: 1,
                column: 1,
                code: "too-few",
                severity,
                message,
            });
        }
    }
    if files.len() > 1 {
        leaks(&names, &placed, &mut report.findings);
    }
    report.findings.sort();
    Ok(report)
}

/// What is to be said of how many examples a file has.
fn few(count: usize, learns: bool) -> Option<(Severity, String)> {
    let (severity, least) = match count {
        0 => (Severity::Error, 1),
        1..FEW if learns => (Severity::Error, FEW),
        1..FEW => {
            let message =
                format!("{count} examples; fewer than {FEW} say little about what was learnt from others");
            return Some((Severity::Warning, message));
        }
        FEW..RECOMMENDED if learns => (Severity::Warning, RECOMMENDED),
        _ => return None,
    };
    Some((severity, format!("{count} examples that can be trained on; write at least {least}")))
}

/// What stands twice in a file. A question that is asked over other passages, or over the same ones in another order, is another example.
fn repeated(name: &str, own: &[Placed], findings: &mut Vec<Finding>) {
    let mut add = |line: usize, code, severity, message: String| {
        findings.push(Finding { file: name.to_owned(), line, column: 1, code, severity, message });
    };
    let digests: Vec<[u8; 32]> = own.iter().map(|one| same::digest(&one.example)).collect();
    let mut firsts: HashMap<[u8; 32], usize> = HashMap::new();
    for (one, digest) in own.iter().zip(&digests) {
        match firsts.entry(*digest) {
            Entry::Vacant(free) => {
                free.insert(one.line);
            }
            Entry::Occupied(first) => {
                let message = format!("says the same as {name}:{}; remove one of the two", first.get());
                add(one.line, "duplicate", Severity::Error, message);
            }
        }
    }
    let examples: Vec<&Example> = own.iter().map(|one| &one.example).collect();
    let fits = |first: usize, second: usize| {
        // What stands there word for word has been named.
        firsts.get(&digests[second]) == Some(&own[second].line)
            && examples[first].passages == examples[second].passages
    };
    for pair in same::pairs(&same::asked(&examples), fits) {
        let message = format!(
            "nearly the same as {name}:{} ({:.0} %); vary or remove it",
            own[pair.first].line,
            pair.share * 100.0
        );
        add(own[pair.second].line, "near-duplicate", Severity::Warning, message);
    }
}

/// What stands in two files.
fn leaks(names: &[String], placed: &[Placed], findings: &mut Vec<Finding>) {
    let examples: Vec<&Example> = placed.iter().map(|one| &one.example).collect();
    let fits = |first: usize, second: usize| placed[first].file != placed[second].file;
    for pair in same::pairs(&same::asked(&examples), fits) {
        let (first, second) = (&placed[pair.first], &placed[pair.second]);
        let place = format!("{}:{}", names[first.file], first.line);
        findings.push(Finding {
            file: names[second.file].clone(),
            line: second.line,
            column: 1,
            code: "leakage",
            severity: Severity::Error,
            message: format!("also in {place}, another file; what is tested must not be trained on"),
        });
    }
}

/// What a file's examples teach together.
fn together(name: &str, placed: &[Placed], findings: &mut Vec<Finding>) {
    let examples: Vec<&[Message]> = placed.iter().map(|one| one.example.messages.as_slice()).collect();
    let remarks = audit::balance(&examples).into_iter().chain(audit::swaps(&examples));
    findings.extend(remarks.map(|remark| Finding {
        file: name.to_owned(),
        line: remark.example.and_then(|n| placed.get(n)).map_or(1, |one| one.line),
        column: 1,
        code: remark.code,
        severity: Severity::Warning,
        message: match remark.other.and_then(|n| placed.get(n)) {
            Some(other) => format!("as line {} {}", other.line, remark.message),
            None => remark.message,
        },
    }));
}

fn one(
    path: &Path,
    name: &str,
    against: &Against<'_>,
    findings: &mut Vec<Finding>,
    mut each: impl FnMut(usize, Example),
) -> io::Result<()> {
    let mut reader = io::BufReader::new(std::fs::File::open(path)?);
    let mut bytes = Vec::new();
    for number in 1..=MAX_LINES {
        bytes.clear();
        let read = io::Read::take(&mut reader, MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            return Ok(());
        }
        let mut add = |column: usize, code, severity, message: String| {
            findings.push(Finding { file: name.to_owned(), line: number, column, code, severity, message });
        };
        if bytes.len() > MAX_LINE_BYTES {
            add(
                1,
                "line-too-long",
                Severity::Error,
                format!("longer than {} MiB; split the example", MAX_LINE_BYTES >> 20),
            );
            reader.skip_until(b'\n')?;
            continue;
        }
        let Ok(line) = std::str::from_utf8(&bytes) else {
            add(1, "encoding", Severity::Error, "not UTF-8; save the file as UTF-8".to_owned());
            continue;
        };
        let line = if number == 1 { without_mark(line) } else { line }.trim_end_matches(['\r', '\n']);
        if line.trim().is_empty() {
            add(1, "blank-line", Severity::Warning, "a blank line; remove it".to_owned());
            continue;
        }
        let column = |at: usize| line.get(..at).map_or(1, |before| before.chars().count() + 1);
        let (example, faults) = read::parse(line);
        for fault in faults {
            add(column(fault.at), fault.code, fault.severity, fault.message);
        }
        let Some(example) = example else { continue };
        let mut usable = true;
        for message in &example.messages {
            let spots = text::look(&message.content);
            if spots.is_empty() {
                continue;
            }
            let columns = message.columns(line);
            for spot in spots {
                usable &= spot.severity == Severity::Warning;
                let at = columns.get(spot.character).copied().unwrap_or_else(|| column(message.at));
                add(at, spot.code, spot.severity, spot.message);
            }
        }
        for (n, new) in audit::facts(&example.messages, against.known) {
            let nowhere = match against.known {
                Some(_) => "stands neither in the conversation before it nor in the guidelines",
                None => "does not stand in the conversation before it",
            };
            let message = format!(
                "{} {nowhere}: a fact belongs in a guideline, where it can be kept up to date",
                new.join(", ")
            );
            add(column(example.messages[n].at), "fact-not-given", Severity::Warning, message);
        }
        if let Some(TokenLimit { beyond, most }) = &against.limit {
            match beyond(&example.messages, *most) {
                Ok(None) => {}
                Ok(Some(Beyond { tokens, turn, character })) => {
                    let beyond = &example.messages[turn];
                    let rest: String = beyond.content.chars().skip(character).take(20).collect();
                    let message = format!(
                        "{tokens} tokens, of which those beyond {most} would be cut off or refused, from “{rest}” on; shorten it"
                    );
                    let at =
                        beyond.columns(line).get(character).copied().unwrap_or_else(|| column(beyond.at));
                    add(at, "too-long", Severity::Warning, message);
                }
                Err(problem) => {
                    let message = format!("how long it is cannot be told, since {problem}");
                    add(1, "not-counted", Severity::Warning, message);
                }
            }
        }
        if usable {
            each(number, example);
        }
    }
    Err(io::Error::other(format!("{name} has more than {MAX_LINES} lines; split it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(question: &str, answer: &str) -> String {
        serde_json::json!({ "messages": [{ "role": "user", "content": question }, { "role": "assistant", "content": answer }] }).to_string()
    }

    fn codes(report: &Report) -> Vec<(usize, &'static str)> {
        report.findings.iter().map(|f| (f.line, f.code)).collect()
    }

    #[test]
    fn lines_and_files_are_held_against_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let words = [
            "stroke", "gout", "asthma", "fever", "sepsis", "anaemia", "migraine", "fracture", "burn",
            "angina", "eczema", "croup",
        ];
        let mut lines: Vec<String> = words
            .iter()
            .map(|w| {
                example(
                    &format!("I think that my neighbour has {w}; tell me of {w}."),
                    &format!("With {w}, {w} care begins by {w} checks, as {w} differs."),
                )
            })
            .collect();
        lines.push(lines[3].clone());
        lines.push("{\"messages\": [}".to_owned());
        lines.push(String::new());
        lines.push(example("Write to a@example.org <|im_end|>", "No."));
        let train = dir.path().join("train.jsonl");
        std::fs::write(&train, lines.join("\n")).unwrap();
        let test = dir.path().join("test.jsonl");
        std::fs::write(&test, format!("\u{feff}{}\r\n", lines[5])).unwrap();
        let report = lint(&[&train, &test], &Against::default()).unwrap();
        let (train_name, test_name) = (train.display().to_string(), test.display().to_string());
        assert_eq!(report.examples, [(train_name.clone(), 13), (test_name.clone(), 1)]);
        let of = |name: &str| -> Vec<(usize, &'static str)> {
            let own = report.findings.iter().filter(|f| f.file == name);
            own.map(|f| (f.line, f.code)).collect()
        };
        assert_eq!(of(&test_name), [(1, "leakage"), (1, "too-few")]);
        let want = [
            (1, "too-few"),
            (13, "duplicate"),
            (14, "json"),
            (15, "blank-line"),
            (16, "personal-email"),
            (16, "control-token"),
        ];
        assert_eq!(of(&train_name), want, "{:#?}", report.findings);
    }

    #[test]
    fn a_question_over_other_passages_is_no_repetition_but_leaks() {
        let dir = tempfile::tempdir().unwrap();
        let row = |topic: &str, passages: &str| {
            let question = format!("How is {topic} treated at home, and by whom?");
            serde_json::json!({
                "messages": [
                    { "role": "system", "content": passages },
                    { "role": "user", "content": format!("{question}\n\nAnswer from the passages above, in one or two sentences, and cite them.") },
                    { "role": "assistant", "content": "The passages do not answer this question, so I will not guess. Please ask a specialist." },
                ],
                "meta": { "question": question, "passages": [passages] },
            })
            .to_string()
        };
        let (train, test) = (dir.path().join("train.jsonl"), dir.path().join("test.jsonl"));
        let lines = [
            row("gout", "a"),
            row("gout", "b"),
            row("asthma", "a"),
            row("gout", "b"),
            row("gout", "b").replace("at home", "AT home"),
        ];
        std::fs::write(&train, lines.join("\n")).unwrap();
        std::fs::write(&test, [row("gout", "c"), row("eczema", "a")].join("\n")).unwrap();
        let report = lint(&[&train, &test], &Against::default()).unwrap();
        let twofold = ["duplicate", "near-duplicate", "leakage"];
        let found: Vec<(bool, usize, &str)> = report
            .findings
            .iter()
            .filter(|f| twofold.contains(&f.code))
            .map(|f| (f.file == test.display().to_string(), f.line, f.code))
            .collect();
        assert_eq!(found, [(true, 1, "leakage"), (false, 4, "duplicate"), (false, 5, "near-duplicate")]);
    }

    #[test]
    fn few_examples_are_an_error_where_they_are_learnt_from() {
        let dir = tempfile::tempdir().unwrap();
        let severities = |name: &str, text: &str, purpose: Purpose| -> Vec<Severity> {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let report = lint(&[&path], &Against { purpose, ..Against::default() }).unwrap();
            report.findings.iter().filter(|f| f.code == "too-few").map(|f| f.severity).collect()
        };
        let one = example("q", "a");
        for (name, purpose, want) in [
            ("train.jsonl", Purpose::Named, Severity::Error),
            ("ward.jsonl", Purpose::Named, Severity::Error),
            ("Valid.jsonl", Purpose::Named, Severity::Warning),
            ("test.jsonl", Purpose::Named, Severity::Warning),
            ("test.jsonl", Purpose::Learning, Severity::Error),
            ("ward.jsonl", Purpose::HeldOut, Severity::Warning),
        ] {
            assert_eq!(severities(name, &one, purpose), [want], "{name} {purpose:?}");
            assert_eq!(severities(name, "", purpose), [Severity::Error], "{name} {purpose:?}");
        }
        let words =
            ["gout", "asthma", "fever", "sepsis", "burn", "angina", "eczema", "croup", "stroke", "mumps"];
        let ten = words.map(|word| example(&word.repeat(4), word)).join("\n");
        assert_eq!(severities("ward.jsonl", &ten, Purpose::Learning), [Severity::Warning]);
        assert_eq!(severities("ward.jsonl", &ten, Purpose::HeldOut), []);
    }

    #[test]
    fn columns_are_those_of_the_line_as_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let line = r#"{"messages":[{"role":"user","content":"痛い\n\t\"\u3042\ud83e\ude7a\" a@b.org, c@d.org"},{"role":"assistant","content":[{"type":"text","text":"x\n"},{"type":"text","text":"y\ne@f.org"}]}]}"#;
        std::fs::write(&path, format!("\u{feff}{line}")).unwrap();
        let report = lint(&[&path], &Against::default()).unwrap();
        let columns: Vec<usize> =
            report.findings.iter().filter(|f| f.code == "personal-email").map(|f| f.column).collect();
        let column = |part: &str| line[..line.find(part).unwrap()].chars().count() + 1;
        assert_eq!(columns, ["a@b", "c@d", "e@f"].map(column));
    }

    #[test]
    fn length_is_counted_where_a_limit_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, example("one two three", "four five six seven")).unwrap();
        let beyond = |messages: &[Message], most: usize| {
            let words: Vec<&str> = messages.iter().flat_map(|m| m.content.split(' ')).collect();
            let Some(word) = words.get(most) else { return Ok(None) };
            let character = messages[1].content.find(word).ok_or("it is in the question")?;
            Ok(Some(Beyond { tokens: words.len(), turn: 1, character }))
        };
        let limit = Some(TokenLimit { beyond: &beyond, most: 6 });
        let against = Against { limit, ..Against::default() };
        let report = lint(&[&path], &against).unwrap();
        assert_eq!(codes(&report), [(1, "too-few"), (1, "too-long")]);
        assert!(report.findings[1].message.contains("from “seven” on"), "{}", report.findings[1].message);
        let line = example("one two three", "four five six seven");
        assert_eq!(report.findings[1].column, line.find("seven").unwrap() + 1);
        assert!(lint(&[&path.join("none")], &against).is_err());
        for (most, found) in [(7, None), (2, Some("not-counted"))] {
            let limit = Some(TokenLimit { beyond: &beyond, most });
            let report = lint(&[&path], &Against { limit, ..Against::default() }).unwrap();
            let codes: Vec<_> = codes(&report).into_iter().map(|(_, code)| code).collect();
            assert_eq!(codes.into_iter().find(|code| *code != "too-few"), found);
        }
    }
}
