//! Makes paragraphs, headings, lists and tables of the lines of all pages, by what their sizes and places make likely.

use std::collections::{HashMap, HashSet};

use super::super::markdown::{Block, MarkdownWriter};
use super::super::{Extracted, Fault, MAX_TEXT_BYTES, too_long};
use super::page::{CELL, Line, Look, Page, rounded};
use crate::analysis::scan::is_cjk;

/// Makes paragraphs and headings of the lines of all pages.
pub(super) fn write(pages: &mut [Page]) -> Result<Extracted, Fault> {
    let glyphs: usize = pages.iter().map(|page| page.glyphs).sum();
    let unread: usize = pages.iter().map(|page| page.unread).sum();
    if glyphs == 0 {
        return Err(Fault::new("has no text layer (a scan?); run text recognition (OCR) over it"));
    }
    if unread * 2 > glyphs {
        return Err(Fault::new(
            "its fonts do not say which characters they show; save it again, as PDF/A if the program can",
        ));
    }
    let mut warnings = Vec::new();
    if unread > 0 {
        warnings.push(format!("{unread} of {glyphs} characters cannot be read and stand as \u{fffd}"));
    }
    let scans = list_pages(pages, |page| {
        let undrawn = page.lines.iter().flat_map(|l| &l.pieces).filter(|p| p.look == Look::Undrawn).count();
        undrawn > 0 && page.lines.iter().flat_map(|l| &l.pieces).all(|p| p.look != Look::Seen)
    });
    if let Some(scans) = &scans {
        warnings.push(format!("{scans}: the text is recognised, not drawn; compare it with the picture"));
    }
    if let Some(empty) = list_pages(pages, |page| page.lines.is_empty() && page.has_picture) {
        warnings.push(format!("{empty}: a picture without text; what it says cannot be found"));
    }
    drop_running_heads(pages);
    let body = body_size(pages);
    let levels = heading_sizes(pages, body);
    let mut written = Extracted { warnings, ..Extracted::default() };
    for page in pages.iter() {
        // A page's blocks are its own, so that each page has a place in the text where it starts.
        if !written.text.is_empty() {
            written.text.push_str("\n\n");
        }
        let at = written.text.len();
        written.pages.push(at);
        let own = page_markdown(page, body, &levels)?;
        written.text.push_str(&own.text);
        written.hidden.extend(own.hidden.iter().map(|range| at + range.start..at + range.end));
        if written.text.len() > MAX_TEXT_BYTES {
            return Err(too_long());
        }
    }
    Ok(written)
}

/// The numbers of the pages that are of a kind, as a reader would say them.
fn list_pages(pages: &[Page], is: impl Fn(&Page) -> bool) -> Option<String> {
    let found: Vec<_> = pages.iter().enumerate().filter(|(_, page)| is(page)).map(|(n, _)| n + 1).collect();
    match found[..] {
        [] => None,
        [one] => Some(format!("page {one}")),
        [first, .., last] => Some(format!("{} pages from {first} to {last}", found.len())),
    }
}

/// Drops lines at the top and foot that most pages repeat, but for their numbers.
fn drop_running_heads(pages: &mut [Page]) {
    if pages.len() < 4 {
        return;
    }
    let key = |line: &Line| -> String {
        line.text().chars().filter(|c| !c.is_numeric() && !c.is_whitespace()).collect()
    };
    let edge = |page: &Page| (page.lines.len() / 3).min(2);
    let mut seen: HashMap<String, usize> = HashMap::new();
    for page in pages.iter() {
        let edges = page.lines.iter().take(edge(page)).chain(page.lines.iter().rev().take(edge(page)));
        let own: HashSet<_> = edges.map(key).collect();
        own.into_iter().for_each(|key| *seen.entry(key).or_default() += 1);
    }
    let often = pages.len() / 2;
    for page in pages.iter_mut() {
        let (total, edge) = (page.lines.len(), edge(page));
        let mut n = 0;
        page.lines.retain(|line| {
            n += 1;
            let at_edge = n <= edge || n + edge > total;
            !(at_edge && seen.get(&key(line)).is_some_and(|count| *count > often))
        });
    }
}

/// The size in which most of the text is set.
fn body_size(pages: &[Page]) -> i64 {
    let mut by_size: HashMap<i64, usize> = HashMap::new();
    for line in pages.iter().flat_map(|page| &page.lines) {
        *by_size.entry(rounded(line.size)).or_default() += line.chars();
    }
    by_size.into_iter().max_by_key(|(size, chars)| (*chars, *size)).map_or(0, |(size, _)| size)
}

fn is_heading(line: &Line, body: i64) -> bool {
    let text = line.text();
    let text = text.trim();
    rounded(line.size) * 20 >= body * 23
        && !line.vertical
        && !line.is_row()
        && text.chars().count() <= 120
        && text.chars().any(char::is_alphabetic)
        && !text.ends_with(['.', '。', ',', '、'])
        && line.pieces.iter().all(|piece| piece.look == Look::Seen)
}

/// The sizes of headings, largest first; each is a level.
fn heading_sizes(pages: &[Page], body: i64) -> Vec<i64> {
    let lines = pages.iter().flat_map(|page| &page.lines).filter(|line| is_heading(line, body));
    let mut sizes: Vec<_> = lines.map(|line| rounded(line.size)).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.dedup();
    sizes
}

fn page_markdown(page: &Page, body: i64, levels: &[i64]) -> Result<Extracted, Fault> {
    let mut writer = MarkdownWriter::default();
    let drawn = page.lines.iter().flat_map(|line| &line.pieces).any(|piece| piece.look == Look::Seen);
    let hides = |look: Look| look == Look::Hidden || (look == Look::Undrawn && drawn);
    let mut before: Option<(&Line, Option<usize>)> = None;
    let mut in_table = false;
    for (n, line) in page.lines.iter().enumerate() {
        let joins = |other: Option<&Line>| other.is_some_and(|other| near_rows(line, other));
        let above = n.checked_sub(1).and_then(|n| page.lines.get(n));
        if joins(page.lines.get(n + 1)) || (in_table && joins(above)) {
            if !std::mem::replace(&mut in_table, true) {
                writer.end();
                writer.start_table();
            }
            write_row(&mut writer, line, hides)?;
            before = None;
            continue;
        }
        if std::mem::take(&mut in_table) {
            writer.end_table()?;
        }
        let text = line.text();
        let level =
            is_heading(line, body).then(|| levels.iter().position(|s| *s == rounded(line.size))).flatten();
        let goes_on = before.is_some_and(|(last, last_level)| {
            let step = line.across - last.across;
            level == last_level
                && line.vertical == last.vertical
                && rounded(last.size) == rounded(line.size)
                && step > 0.0
                && step < if level.is_some() { 1.5 } else { 1.9 } * line.size
        });
        let item = bullet(&text);
        if !goes_on || item.is_some() {
            writer.start(match (level, &item) {
                (Some(level), _) => Block::Heading(level as u8 + 1),
                (None, Some(_)) => Block::Item(0, None),
                (None, None) => Block::Paragraph,
            });
        } else {
            join(&mut writer, before.map(|(last, _)| last), &text)?;
        }
        let mut skip = item.unwrap_or(0);
        for piece in &line.pieces {
            let cut = skip.min(piece.text.len());
            skip -= cut;
            let text = piece.text.get(cut..).unwrap_or(&piece.text).replace(CELL, " ");
            writer.text(&text, hides(piece.look))?;
        }
        before = Some((line, level));
    }
    writer.finish()
}

/// Whether two lines are rows of one table.
fn near_rows(one: &Line, other: &Line) -> bool {
    let step = (one.across - other.across).abs();
    one.is_row() && other.is_row() && one.vertical == other.vertical && step < 3.0 * one.size.max(other.size)
}

fn write_row(writer: &mut MarkdownWriter, line: &Line, hides: impl Fn(Look) -> bool) -> Result<(), Fault> {
    writer.start_row();
    writer.start_cell(1, 1);
    for piece in &line.pieces {
        for (n, text) in piece.text.split(CELL).enumerate() {
            if n > 0 {
                writer.end_cell();
                writer.start_cell(1, 1);
            }
            writer.text(text, hides(piece.look))?;
        }
    }
    writer.end_cell();
    Ok(())
}

/// Joins two lines of a paragraph: with a space, but for Japanese, which has none.
fn join(writer: &mut MarkdownWriter, last: Option<&Line>, next: &str) -> Result<(), Fault> {
    let end = last.and_then(|line| line.pieces.last()).and_then(|piece| piece.text.trim_end().chars().last());
    let start = next.trim_start().chars().next();
    let wide = |c: Option<char>| c.is_some_and(|c| is_cjk(c) || "、。，．（）「」・".contains(c));
    if wide(end) && wide(start) { Ok(()) } else { writer.text(" ", false) }
}

/// The length of the mark with which a line starts, if it is an item of a list.
fn bullet(text: &str) -> Option<usize> {
    let start = text.len() - text.trim_start().len();
    let mut chars = text[start..].chars();
    let mark = chars.next().filter(|c| "•‣▪●◦■□▶❖\u{f0b7}".contains(*c) || matches!(c, '–' | '・'))?;
    let rest = chars.as_str();
    // A dash within a line that was cut is no mark.
    if matches!(mark, '–') && !rest.starts_with(' ') { None } else { Some(start + mark.len_utf8()) }
}
