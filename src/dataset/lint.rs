//! Looks over the files of a dataset: each line, then lines against each other and files against each other.

use std::io::{self, BufRead as _};
use std::path::Path;

use serde::Serialize;

use super::read::{self, Example, Message};
use super::similar::{self, Pair};
use super::{Finding, Severity, audit, text};
use crate::analysis::figures::Figure;

/// A line is no longer than this.
const MAX_LINE_BYTES: usize = 4 << 20;
/// No file has more lines than this.
const MAX_LINES: usize = 1_000_000;
/// Fewer examples than this teach no behaviour.
pub const FEW: usize = 10;
/// Fewer than this are less than is recommended.
const RECOMMENDED: usize = 50;

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

/// Counts the tokens of an example, and the bound on them.
pub struct TokenLimit<'a> {
    /// Counts the tokens of a text.
    pub count: &'a dyn Fn(&str) -> usize,
    /// The most that an example may have.
    pub most: usize,
}

/// What examples are held against, besides each other.
#[derive(Default)]
pub struct Against<'a> {
    /// The bound on their tokens.
    pub limit: Option<TokenLimit<'a>>,
    /// Figures of the guidelines, where those are known.
    pub known: Option<&'a [Figure]>,
}

/// An example where it stands.
struct Placed {
    file: usize,
    line: usize,
    text: String,
    messages: Vec<Message>,
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
            let (text, messages) = (spoken(&example), example.messages);
            placed.push(Placed { file, line, text, messages });
        })?;
        together(&names[file], &placed[before..], &mut report.findings);
        let count = placed.len() - before;
        report.examples.push((names[file].clone(), count));
        let (severity, least) =
            if count < FEW { (Severity::Error, FEW) } else { (Severity::Warning, RECOMMENDED) };
        if count < least {
            let message = format!("{count} examples that can be trained on; write at least {least}");
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
    let texts: Vec<&str> = placed.iter().map(|placed| placed.text.as_str()).collect();
    for Pair { first, second, share } in similar::pairs(&texts) {
        let (first, second) = (&placed[first], &placed[second]);
        let place = format!("{}:{}", names[first.file], first.line);
        let (code, severity, message) = match (first.file == second.file, share >= 1.0) {
            (false, _) => (
                "leakage",
                Severity::Error,
                format!("also in {place}, another file; what is tested must not be trained on"),
            ),
            (true, true) => {
                ("duplicate", Severity::Error, format!("says the same as {place}; remove one of the two"))
            }
            (true, false) => (
                "near-duplicate",
                Severity::Warning,
                format!("nearly the same as {place} ({:.0} %); vary or remove it", share * 100.0),
            ),
        };
        report.findings.push(Finding {
            file: names[second.file].clone(),
            line: second.line,
            column: 1,
            code,
            severity,
            message,
        });
    }
    report.findings.sort();
    Ok(report)
}

/// What a file's examples teach together.
fn together(name: &str, placed: &[Placed], findings: &mut Vec<Finding>) {
    let examples: Vec<&[Message]> = placed.iter().map(|one| one.messages.as_slice()).collect();
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

fn spoken(example: &Example) -> String {
    let turns = example.messages.iter().filter(|m| m.role != "system" && m.role != "developer");
    turns.map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
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
        let line = if number == 1 { line.trim_start_matches('\u{feff}') } else { line }
            .trim_end_matches(['\r', '\n']);
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
            for spot in text::look(&message.content) {
                usable &= spot.severity == Severity::Warning;
                // Past the quotation mark; escapes before it make it a little more.
                add(column(message.at) + 1 + spot.character, spot.code, spot.severity, spot.message);
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
        if let Some((tokens, at, rest)) =
            against.limit.as_ref().and_then(|limit| cut(&example.messages, limit))
        {
            let most = against.limit.as_ref().map_or(0, |limit| limit.most);
            let message = format!(
                "{tokens} tokens, of which those beyond {most} would be cut off, from “{rest}” on; shorten it"
            );
            add(column(at.0) + 1 + at.1, "too-long", Severity::Warning, message);
        }
        if usable {
            each(number, example);
        }
    }
    Err(io::Error::other(format!("{name} has more than {MAX_LINES} lines; split it")))
}

/// How many tokens an example has that has too many, where in its line the first one too many stands (the content's byte and the character
/// within), and what it begins with.
fn cut(messages: &[Message], limit: &TokenLimit<'_>) -> Option<(usize, (usize, usize), String)> {
    let mut before = 0;
    let mut place = None;
    for message in messages {
        let own = (limit.count)(&message.content);
        if place.is_none() && before + own > limit.most {
            let room = limit.most - before;
            let ends: Vec<usize> = message.content.char_indices().map(|(at, _)| at).collect();
            // Longer beginnings have more tokens, but for a token here and there.
            let fits = ends.partition_point(|end| (limit.count)(&message.content[..*end]) <= room);
            let at = fits.saturating_sub(1);
            let rest: String = message.content.chars().skip(at).take(20).collect();
            place = Some(((message.at, at), rest));
        }
        before += own;
    }
    place.map(|(at, rest)| (before, at, rest))
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
    fn length_is_counted_where_a_limit_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, example("one two three", "four five six seven")).unwrap();
        let count = |text: &str| text.split_whitespace().count();
        let against = Against { limit: Some(TokenLimit { count: &count, most: 6 }), known: None };
        let report = lint(&[&path], &against).unwrap();
        assert_eq!(codes(&report), [(1, "too-few"), (1, "too-long")]);
        assert!(report.findings[1].message.contains("from “seven” on"), "{}", report.findings[1].message);
        let line = example("one two three", "four five six seven");
        assert_eq!(report.findings[1].column, line.find("seven").unwrap() + 1);
        assert!(lint(&[&path.join("none")], &against).is_err());
    }
}
