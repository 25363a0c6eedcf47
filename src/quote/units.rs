//! What of a passage may be quoted.

use std::ops::Range;

use super::{Quote, flat};
use crate::analysis::sentences::sentence_ends;

/// Length of a quote at the least: less says nothing. What is not ASCII counts two, since a kanji or kana says as much as two letters.
const SHORTEST: usize = 9;
/// Characters at the most: more is no quote, and an answer must have room beside it.
const LONGEST: usize = 400;

/// The sentences, list items and rows of tables of a passage, each without the white space around it. Headings, those of a table's columns
/// among them, and what is too short or too long are left out.
pub(super) fn units(passage: &str) -> Vec<Range<usize>> {
    let mut units = Vec::new();
    for block in blocks(passage) {
        let text = &passage[block.clone()];
        let row = text.starts_with('|');
        let ends = sentence_ends(text).filter(|_| !row).chain([text.len()]);
        let mut start = 0;
        for end in ends {
            let part = &text[start..end];
            let from = block.start + start + part.len() - part.trim_start().len();
            let unit = from..from + part.trim().len();
            start = end;
            let text = &passage[unit.clone()];
            let length: usize = text.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum();
            let says = text.chars().any(char::is_alphanumeric) && length >= SHORTEST;
            if says && text.chars().count() <= LONGEST {
                units.push(unit);
            }
        }
    }
    units
}

/// What may be quoted of passages: their units, white space made one, each once and with the first passage that says it.
pub fn possible<'p>(passages: impl IntoIterator<Item = &'p str>) -> Vec<Quote> {
    let mut all: Vec<Quote> = Vec::new();
    for (passage, n) in passages.into_iter().zip(1..) {
        for unit in units(passage) {
            let text = flat(&passage[unit]);
            if all.iter().all(|other| other.text != text) {
                all.push(Quote { n, text });
            }
        }
    }
    all
}

/// The units of a passage, white space made one, that a part of it lies in.
pub fn units_around(passage: &str, part: &str) -> Vec<String> {
    let Some(from) = passage.find(part) else { return Vec::new() };
    let within = |unit: &Range<usize>| unit.start < from + part.len() && from < unit.end;
    units(passage).into_iter().filter(within).map(|unit| flat(&passage[unit])).collect()
}

/// The paragraphs, list items and rows of a text, without marks of lists.
fn blocks(text: &str) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut goes_on = false;
    // Rows of the table that is open, and whether the second is the line under a head.
    let (mut rows, mut ruled) = (0, false);
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        let start = end + line.len() - line.trim_start().len();
        end += line.len();
        let line = line.trim();
        let item = ["- ", "* ", "・"].iter().find(|mark| line.starts_with(**mark));
        if line.is_empty() || is_heading(line) {
            goes_on = false;
        } else if let Some(mark) = item {
            blocks.push(start + mark.len()..start + line.len());
            goes_on = true;
        } else if line.starts_with('|') {
            rows += 1;
            // The head of a table, two rows above its first, says which columns it has, and answers nothing.
            if rows == 3 && ruled {
                blocks.truncate(blocks.len().saturating_sub(2));
            }
            ruled = rows == 2 && is_rule(line);
            blocks.push(start..start + line.len());
            goes_on = false;
            continue;
        } else if let Some(block) = blocks.last_mut().filter(|_| goes_on && !is_numbered(line)) {
            block.end = start + line.len();
        } else {
            blocks.push(start..start + line.len());
            goes_on = true;
        }
        rows = 0;
    }
    blocks
}

fn is_heading(line: &str) -> bool {
    let rest = line.trim_start_matches('#');
    (1..=6).contains(&(line.len() - rest.len())) && rest.starts_with(' ')
}

/// Whether a row of a table is the line under its head.
fn is_rule(row: &str) -> bool {
    row.contains('-') && row.chars().all(|c| matches!(c, '|' | '-' | ':' | ' ' | '\t'))
}

/// Whether a line is an item of a numbered list.
fn is_numbered(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < line.len() && (rest.starts_with(". ") || rest.starts_with(") "))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PASSAGE, UNITS};
    use super::*;

    fn said(passage: &str) -> Vec<String> {
        units(passage).into_iter().map(|unit| flat(&passage[unit])).collect()
    }

    #[test]
    fn what_may_be_quoted_is_whole() {
        assert_eq!(said(PASSAGE), UNITS);
        assert!(said("").is_empty() && said("# Only\n\n---\n").is_empty());
        assert_eq!(said("次の児で測る。\n\n- 在胎36週未満\n- 安静\n"), ["次の児で測る。", "在胎36週未満"]);
        // A line that looks like a mark is still part of its sentence.
        let compared = "Give it unless the eGFR is\n<30 mL/min or\n#3 holds.";
        assert_eq!(said(compared), [compared.replace('\n', " ")]);
        let table = "| 9 mm | scope |\n\n| mm | then |\n|:--|--:|\n| 2 mm | wait |\n|---|---|\n| - | rest |";
        assert_eq!(said(table), ["| 9 mm | scope |", "| 2 mm | wait |", "| - | rest |"]);
        for below in ["\n\n| --- | --- |\n| a | b |", "\n| --- | --- |\n"] {
            assert_eq!(said(&format!("| ACE | ramipril |{below}"))[0], "| ACE | ramipril |", "{below}");
        }
        assert_eq!(said(&"a".repeat(LONGEST)).len(), 1);
        assert!(said(&"a".repeat(LONGEST + 1)).is_empty());
        assert_eq!(
            possible([PASSAGE, PASSAGE, "Another one."]).last(),
            Some(&Quote { n: 3, text: "Another one.".to_owned() })
        );
    }

    #[test]
    fn a_part_lies_in_whole_units() {
        assert_eq!(units_around(PASSAGE, "5 mg. Repeat"), UNITS[..2]);
        assert_eq!(units_around(PASSAGE, "Scope. T"), [UNITS[6]]);
        for none in ["50 mg", "what to do"] {
            assert!(units_around(PASSAGE, none).is_empty(), "{none}");
        }
    }
}
