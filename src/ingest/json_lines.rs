//! JSON Lines: a document on each line, its metadata and its `text` as keys of one object.

use std::io::{self, BufRead};

use serde_json::{Map, Value};

use super::Finding;
use super::extract::MAX_TEXT_BYTES;
use super::metadata::{self, FrontMatter, List, Text, Written};

/// The key that holds the text.
const TEXT: &str = "text";
/// What collections of texts call a document's id.
const ID_ALIAS: &str = "_id";

/// A line that holds a document.
#[derive(Debug)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// Its metadata.
    pub front: FrontMatter,
    /// Its text: Markdown.
    pub text: String,
}

/// Reads documents one line at a time; what is wrong with a line is a finding and leaves that line out.
///
/// # Errors
/// When reading fails, or `each` does.
pub fn read<E: From<io::Error>>(
    file: &str,
    mut from: impl BufRead,
    findings: &mut dyn FnMut(Finding),
    each: &mut dyn FnMut(Line) -> Result<(), E>,
) -> Result<(), E> {
    let mut bytes = Vec::new();
    for number in 1.. {
        let ended = match next_line(&mut from, &mut bytes)? {
            Read::End => return Ok(()),
            Read::Line => parse(file, number, &bytes),
            Read::TooLong => {
                let mib = MAX_TEXT_BYTES >> 20;
                Err(vec![Finding::error(
                    file,
                    number,
                    format!("the line is longer than {mib} MiB; split the document"),
                )])
            }
        };
        match ended {
            Ok(Some((line, warnings))) => {
                warnings.into_iter().for_each(&mut *findings);
                each(line)?;
            }
            Ok(None) => {}
            Err(faults) => faults.into_iter().for_each(&mut *findings),
        }
    }
    Ok(())
}

enum Read {
    Line,
    TooLong,
    End,
}

/// Reads a line into `bytes`, and of one that is too long only the end.
fn next_line(from: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<Read> {
    bytes.clear();
    let mut too_long = false;
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Ok(match (too_long, bytes.is_empty()) {
                (true, _) => Read::TooLong,
                (false, true) => Read::End,
                (false, false) => Read::Line,
            });
        }
        let end = memchr::memchr(b'\n', buffer);
        let taken = end.unwrap_or(buffer.len());
        too_long |= bytes.len() + taken > MAX_TEXT_BYTES;
        if !too_long {
            bytes.extend_from_slice(&buffer[..taken]);
        }
        let used = end.map_or(taken, |end| end + 1);
        from.consume(used);
        if end.is_some() {
            // An empty line is a line; that it ended is kept apart from the end of the file.
            if bytes.is_empty() && !too_long {
                bytes.push(b' ');
            }
            return Ok(if too_long { Read::TooLong } else { Read::Line });
        }
    }
}

type Parsed = Option<(Line, Vec<Finding>)>;

fn parse(file: &str, number: usize, bytes: &[u8]) -> Result<Parsed, Vec<Finding>> {
    let fault = |message: String| vec![Finding::error(file, number, message)];
    let bytes = if number == 1 { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) } else { bytes };
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    let line =
        std::str::from_utf8(bytes).map_err(|_| fault("not UTF-8; save the file as UTF-8".to_owned()))?;
    let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        fault(format!(
            "column {}: no JSON object: {}; write one document a line",
            error.column(),
            reason(&error)
        ))
    })?;
    let text = match object.remove(TEXT) {
        Some(Value::String(text)) if !text.trim().is_empty() => text,
        Some(Value::String(_)) => return Err(fault(format!("`{TEXT}` is empty; add the text"))),
        Some(_) => return Err(fault(format!("`{TEXT}` must be a string"))),
        None => return Err(fault(format!("`{TEXT}` is missing; add the document's text"))),
    };
    if !object.contains_key("id")
        && let Some(id) = object.remove(ID_ALIAS)
    {
        object.insert("id".to_owned(), id);
    }
    let written = written(object, number).map_err(fault)?;
    let (front, findings) = metadata::check(file, &written);
    match front {
        Some(front) => Ok(Some((Line { number, front, text }, findings))),
        None => Err(findings),
    }
}

/// What is wrong, without the place: the caller says it its own way.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn written(object: Map<String, Value>, line: usize) -> Result<Written, String> {
    let mut written = Written { line, ..Written::default() };
    for (key, value) in object {
        if let Some(key) = Written::text_key(&key) {
            let value = scalar(key, value)?;
            written.texts.insert(key, Text { value, line });
        } else if let Some(key) = Written::list_key(&key) {
            let items = match value {
                Value::Array(items) => items,
                one => vec![one],
            };
            let items: Result<Vec<_>, _> = items.into_iter().map(|item| scalar(key, item)).collect();
            let items = items?.into_iter().flatten().map(|item| item.trim().to_owned());
            written.lists.insert(key, List { items: items.filter(|item| !item.is_empty()).collect(), line });
        } else {
            written.unknown(&key, line);
        }
    }
    Ok(written)
}

fn scalar(key: &str, value: Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) if number.is_u64() => Ok(Some(number.to_string())),
        Value::Number(number) => Err(format!("`{key}`: write {number} in quotes, so that it stays as it is")),
        _ => Err(format!("`{key}` must be text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"_id":"gout","title":"Gout","edition":2024,"issuer":"I","jurisdiction":"INT","language":"en","effective_from":"2024-01-01","source":"S","licence":"CC0-1.0","tags":["joints"],"text":"Colchicine."}"#;

    fn all(bytes: &[u8]) -> (Vec<Line>, Vec<Finding>) {
        let (mut lines, mut findings) = (Vec::new(), Vec::new());
        let done: Result<(), io::Error> = read("a.jsonl", bytes, &mut |f| findings.push(f), &mut |line| {
            lines.push(line);
            Ok(())
        });
        done.unwrap();
        (lines, findings)
    }

    #[test]
    fn each_line_is_a_document_or_a_finding() {
        let text = format!(
            "\u{feff}{GOOD}\r\n\n{{\"id\":}}\n{}\n{}",
            GOOD.replace("\"Colchicine.\"", "7"),
            GOOD.replace("gout", "b")
        );
        let (lines, findings) = all(text.as_bytes());
        assert_eq!(
            lines.iter().map(|l| (l.number, l.front.key.to_string())).collect::<Vec<_>>(),
            [(1, "gout@2024".to_owned()), (5, "b@2024".to_owned())]
        );
        assert_eq!(findings.iter().map(|f| f.line).collect::<Vec<_>>(), [3, 4]);
        assert!(findings[0].message.starts_with("column 7"), "{findings:?}");
    }

    #[test]
    fn long_lines_and_other_bytes_harm_no_other_line() {
        let mut bytes = vec![b'x'; MAX_TEXT_BYTES + 10];
        bytes.push(b'\n');
        bytes.extend_from_slice(GOOD.as_bytes());
        bytes.extend_from_slice(b"\n\xff\n");
        let (lines, findings) = all(&bytes);
        assert_eq!(lines.len(), 1);
        assert_eq!(findings.iter().map(|f| f.line).collect::<Vec<_>>(), [1, 3]);
    }
}
