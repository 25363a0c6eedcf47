//! Cuts a guideline into chunks: pieces small enough to retrieve and large enough to make sense.
//!
//! Fourth step of the operator path. A chunk lies within one section and keeps the path of its headings. Lists,
//! tables and code stay whole unless they alone exceed the limit; what must be split is split at the best place
//! there is: between blocks, then list items and table rows, then sentences, then words. Every chunk is a byte
//! span of the source file: `file[span]` is its text, and together the spans cover all that is not a heading.

use crate::analysis::sentences::sentence_ends;
use std::ops::Range;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::analysis::scan::is_cjk;

/// A heading longer than this is cut in the heading path.
const MAX_HEADING_CHARS: usize = 160;

/// How large chunks may be.
#[derive(Clone, Copy)]
pub struct Sizes<'a> {
    /// The most tokens in a chunk.
    pub limit: usize,
    /// How many tokens a chunk repeats of the one before it, where a section had to be split.
    pub overlap: usize,
    /// Counts the tokens of a text.
    pub count: &'a dyn Fn(&str) -> usize,
}

/// A retrievable piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The headings above it, outermost first, joined by ` > `.
    pub section: String,
    /// Where its text stands in the file, in bytes.
    pub span: Range<usize>,
}

/// Estimates tokens without a tokenizer: one per CJK character, four thirds per word, more for long ones.
#[must_use]
pub fn estimate_tokens(text: &str) -> usize {
    let mut tenths = 0usize;
    let mut word = 0usize;
    for c in text.chars().chain([' ']) {
        if c.is_whitespace() || is_cjk(c) {
            tenths += if word > 0 { 13.max(word * 13 / 5) } else { 0 };
            word = 0;
        }
        if is_cjk(c) {
            tenths += 10;
        } else if !c.is_whitespace() {
            word += 1;
        }
    }
    tenths.div_ceil(10)
}

/// Cuts the text of `source` from byte `body` on. `title` is left out of heading paths that start with it.
#[must_use]
pub fn chunks(source: &str, body: usize, title: &str, sizes: Sizes<'_>) -> Vec<Chunk> {
    let mut out = Vec::new();
    for section in sections(source, body, title) {
        let mut cut = Cut { source, sizes, section: &section, spans: Vec::new() };
        cut.pack(section.span.clone(), Level::Block);
        let spans = cut.spans;
        for (i, span) in spans.iter().enumerate() {
            let from = if i == 0 { span.start } else { cut_overlap(source, &spans[i - 1], span, sizes) };
            out.push(Chunk { section: section.path.clone(), span: from..span.end });
        }
    }
    out
}

/// A stretch of text under one heading path, with the places where it may be cut.
struct Section {
    path: String,
    span: Range<usize>,
    /// Starts of top-level blocks.
    blocks: Vec<usize>,
    /// Starts of list items and table rows inside them.
    items: Vec<usize>,
}

fn sections(source: &str, body: usize, title: &str) -> Vec<Section> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_TASKLISTS;
    let mut path: Vec<(HeadingLevel, String)> = Vec::new();
    let open = |path: &[(HeadingLevel, String)], from: usize| Section {
        path: join(path, title),
        span: from..from,
        blocks: Vec::new(),
        items: Vec::new(),
    };
    let mut out = Vec::new();
    let mut now = open(&path, body);
    let mut depth = 0usize;
    let mut heading: Option<(HeadingLevel, String)> = None;
    for (event, range) in Parser::new_ext(&source[body..], options).into_offset_iter() {
        let (from, to) = (body + range.start, body + range.end);
        match event {
            Event::Start(Tag::Heading { level, .. }) if depth == 0 => {
                now.span.end = from;
                heading = Some((level, String::new()));
                depth += 1;
            }
            Event::End(TagEnd::Heading(_)) if depth == 1 => {
                depth = 0;
                if let Some((level, text)) = heading.take() {
                    path.retain(|(above, _)| *above < level);
                    path.push((level, text.split_whitespace().collect::<Vec<_>>().join(" ")));
                }
                out.push(std::mem::replace(&mut now, open(&path, to)));
            }
            Event::Start(tag) => {
                match tag {
                    _ if depth == 0 => now.blocks.push(from),
                    Tag::Item | Tag::TableRow | Tag::TableHead => now.items.push(from),
                    _ => {}
                }
                depth += 1;
            }
            Event::End(_) => depth = depth.saturating_sub(1),
            Event::Text(text) | Event::Code(text) => {
                if let Some((_, words)) = &mut heading {
                    let room = MAX_HEADING_CHARS.saturating_sub(words.chars().count());
                    words.extend(text.chars().take(room));
                }
            }
            Event::SoftBreak | Event::HardBreak => {
                if let Some((_, words)) = &mut heading {
                    words.push(' ');
                }
            }
            _ if depth == 0 => now.blocks.push(from),
            _ => {}
        }
    }
    now.span.end = source.len();
    out.push(now);
    out
}

fn join(path: &[(HeadingLevel, String)], title: &str) -> String {
    let names: Vec<&str> = path.iter().map(|(_, name)| name.as_str()).filter(|n| !n.is_empty()).collect();
    match names.split_first() {
        Some((first, rest)) if first.eq_ignore_ascii_case(title.trim()) => rest.join(" > "),
        _ => names.join(" > "),
    }
}

/// Where text may be cut, best place first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Block,
    Item,
    Sentence,
    Word,
}

impl Level {
    fn finer(self) -> Option<Self> {
        match self {
            Self::Block => Some(Self::Item),
            Self::Item => Some(Self::Sentence),
            Self::Sentence => Some(Self::Word),
            Self::Word => None,
        }
    }
}

struct Cut<'a> {
    source: &'a str,
    sizes: Sizes<'a>,
    section: &'a Section,
    spans: Vec<Range<usize>>,
}

impl Cut<'_> {
    /// Cuts a range at one level and fills chunks greedily; a piece that is too large goes one level finer.
    fn pack(&mut self, range: Range<usize>, level: Level) {
        let mut open: Option<(Range<usize>, usize)> = None;
        for piece in self.pieces(&range, level) {
            let size = (self.sizes.count)(&self.source[piece.clone()]);
            open = match open {
                Some((span, used)) if used + size <= self.sizes.limit => {
                    Some((span.start..piece.end, used + size))
                }
                before => {
                    self.spans.extend(before.map(|b| b.0));
                    match level.finer() {
                        Some(finer) if size > self.sizes.limit => {
                            self.pack(piece, finer);
                            None
                        }
                        _ => Some((piece, size)),
                    }
                }
            };
        }
        self.spans.extend(open.map(|o| o.0));
    }

    /// The range cut at the level's places, each piece trimmed, blank ones dropped.
    fn pieces(&self, range: &Range<usize>, level: Level) -> Vec<Range<usize>> {
        let text = &self.source[range.clone()];
        let starts: Vec<usize> = match level {
            Level::Block => within(&self.section.blocks, range),
            Level::Item => within(&self.section.items, range),
            Level::Sentence => sentence_ends(text).map(|at| range.start + at).collect(),
            Level::Word => word_cuts(text, self.sizes.limit).into_iter().map(|at| range.start + at).collect(),
        };
        let mut from = range.start;
        let mut out = Vec::new();
        for to in starts.into_iter().chain([range.end]) {
            out.extend(trim(self.source, from..to));
            from = to;
        }
        out
    }
}

fn within(starts: &[usize], range: &Range<usize>) -> Vec<usize> {
    starts.iter().copied().filter(|s| *s > range.start && *s < range.end).collect()
}

/// Trims white space, line by line at the front: an indented list or code block keeps its indent, so that it
/// still reads as what it is.
fn trim(source: &str, range: Range<usize>) -> Option<Range<usize>> {
    let text = &source[range.clone()];
    let end = range.start + text.trim_end().len();
    let lead = text.len() - text.trim_start().len();
    let at_line_start = source[..range.start].ends_with('\n') || range.start == 0;
    let from = match text[..lead].rfind('\n') {
        Some(n) => range.start + n + 1,
        None if at_line_start => range.start,
        None => range.start + lead,
    };
    (from < end).then_some(from..end)
}

/// Cuts before words, and inside runs that have no spaces, so finely that pieces can be packed to the limit; never within a number or
/// between a number and its unit.
fn word_cuts(text: &str, limit: usize) -> Vec<usize> {
    /// A run of figures and units that is longer than this is none.
    const LONGEST_DOSE: usize = 48;
    let every = limit.clamp(1, 64);
    let mut out = Vec::new();
    let mut run = 0;
    let mut before = ' ';
    let mut last_seen = ' ';
    for (at, c) in text.char_indices() {
        let starts_word = before.is_whitespace() && !c.is_whitespace();
        let belongs = match starts_word {
            true => is_relation(last_seen) || (is_figure(last_seen) && c.is_alphabetic()),
            false => is_relation(before) || is_figure(before) || (is_dose(before) && is_dose(c)),
        };
        let wanted = starts_word || run >= every;
        if at > 0 && wanted && (!belongs || run >= every + LONGEST_DOSE) {
            out.push(at);
            run = 0;
        }
        run += 1;
        before = c;
        if !c.is_whitespace() {
            last_seen = c;
        }
    }
    out
}

fn is_figure(c: char) -> bool {
    c.is_numeric() || matches!(c, '%' | '％')
}

/// What stands before a figure and belongs to it.
fn is_relation(c: char) -> bool {
    matches!(c, '<' | '>' | '≤' | '≥' | '≦' | '≧' | '=' | '±' | '~' | '〜' | '×' | '/' | '／')
}

/// What numbers, ranges and units are made of.
fn is_dose(c: char) -> bool {
    c.is_ascii_alphanumeric() || c.is_numeric() || is_relation(c) || ".,:%+-–−．，％℃°µμ㎎㎖㎏".contains(c)
}

/// Moves the start of a chunk back over whole sentences of the one before it, as far as both bounds allow.
fn cut_overlap(source: &str, before: &Range<usize>, span: &Range<usize>, sizes: Sizes<'_>) -> usize {
    let room = sizes.limit.saturating_sub((sizes.count)(&source[span.clone()])).min(sizes.overlap);
    if room == 0 {
        return span.start;
    }
    let text = &source[before.clone()];
    // The sentences of interest are short; looking at all of a large chunk's would be wasted.
    let starts: Vec<usize> = sentence_ends(text).collect();
    let mut best = span.start;
    for at in starts.into_iter().rev() {
        let Some(sentence) = trim(source, before.start + at..before.end) else { continue };
        if (sizes.count)(&source[sentence.start..span.start]) > room {
            break;
        }
        best = sentence.start;
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(source: &str, limit: usize, overlap: usize) -> Vec<(String, String)> {
        let sizes = Sizes { limit, overlap, count: &estimate_tokens };
        let found = chunks(source, 0, "Title", sizes);
        found.into_iter().map(|c| (c.section, source[c.span].to_owned())).collect()
    }

    #[test]
    fn keeps_the_heading_path_and_leaves_headings_out() {
        let source = "# Title\nIntro.\n\n## Treatment\n\n### Blood *pressure* target\nBelow 130/80.\n\n## Follow-up\nYearly.\n";
        let found = cut(source, 100, 0);
        let want = [
            ("", "Intro."),
            ("Treatment > Blood pressure target", "Below 130/80."),
            ("Follow-up", "Yearly."),
        ];
        assert_eq!(found, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn tables_and_lists_stay_whole_until_they_exceed_the_limit() {
        let table = "| a | b |\n| --- | --- |\n| one | two |\n| three | four |";
        let source = format!("Some words before the table stand here.\n\n{table}\n");
        assert_eq!(cut(&source, 32, 0)[1].1, table);
        let list = "- first item here\n- second item here\n- third item here";
        assert_eq!(cut(list, 100, 0).len(), 1);
        let split = cut(list, 11, 0);
        assert!(split.len() > 1 && split.iter().all(|(_, t)| t.starts_with("- ")), "{split:?}");
    }

    #[test]
    fn splits_at_sentences_in_both_languages() {
        let found = cut("降圧目標は百三十とする。家庭血圧を測る。「高い。」と言う。終わり", 13, 0);
        assert!(found.len() > 1);
        assert!(found[..found.len() - 1].iter().all(|(_, t)| t.ends_with(['。', '」'])), "{found:?}");
        let found = cut("Give 2.5 mg, e.g. daily. Then measure. Then stop it.", 8, 0);
        assert_eq!(found[0].1, "Give 2.5 mg, e.g. daily.");
    }

    #[test]
    fn overlap_repeats_whole_sentences_where_a_section_was_split() {
        let source = "One two three four. Five six seven. Eight nine ten eleven twelve.";
        let found = cut(source, 13, 5);
        assert_eq!(found[1].1, "Five six seven. Eight nine ten eleven twelve.");
        assert!(cut("A b c.\n\n# New\nD e f.", 13, 5)[1].1.starts_with('D'));
    }

    #[test]
    fn numbers_and_doses_are_never_split() {
        for dose in ["130/80mmHg", "0.5〜1.0mg/kg/日", "1,000 mg", "2.5 mL", "≥ 140/90 mmHg"] {
            for lead in 0..90 {
                let text = format!("{}{dose}未満{}", "降".repeat(lead), "圧".repeat(90));
                let pieces: Vec<&str> = word_cuts(&text, 64)
                    .into_iter()
                    .scan(0, |from, to| {
                        let piece = &text[*from..to];
                        *from = to;
                        Some(piece)
                    })
                    .collect();
                let cut_at = |piece: &&str| {
                    piece.chars().last().is_some_and(|c| is_figure(c) || c.is_whitespace() || is_relation(c))
                };
                // A piece may end with the dose, whose last character is a letter or a Japanese one.
                assert!(!pieces.iter().any(cut_at), "{dose} behind {lead}: {pieces:?}");
            }
        }
    }

    #[test]
    fn estimates_by_script() {
        assert_eq!(estimate_tokens(""), 0);
        assert_eq!(estimate_tokens("降圧目標"), 4);
        assert_eq!(estimate_tokens("blood pressure target"), 5);
    }

    proptest! {
        #[test]
        fn spans_are_ordered_bounded_and_lose_nothing(
            source in "(#{1,3} \\PC{0,10}\n|[-*] [a-z。 ]{0,30}\n|\\| a \\| b \\|\n|> x\n|[a-zあ漢。. ]{0,60}\n|\n|```\n|\\[a\\]: b\n|\r\n|  \t){0,30}",
            limit in 4usize..40,
            overlap in 0usize..6,
        ) {
            let sizes = Sizes { limit, overlap, count: &estimate_tokens };
            let found = chunks(&source, 0, "", sizes);
            let mut covered = vec![false; source.len()];
            let mut last = 0;
            for chunk in &found {
                let text = source.get(chunk.span.clone());
                prop_assert!(text.is_some_and(|t| !t.trim().is_empty()));
                prop_assert!(chunk.span.end > last, "ends grow");
                last = chunk.span.end;
                prop_assert!(estimate_tokens(&source[chunk.span.clone()]) <= limit.max((64 + 48) * 13 / 50 + 2) + 2);
                covered[chunk.span.clone()].fill(true);
            }
            for (event, range) in Parser::new_ext(&source, Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_TASKLISTS).into_offset_iter() {
                if matches!(event, Event::Start(Tag::Heading { .. })) {
                    covered[range].fill(true);
                }
            }
            for (at, c) in source.char_indices() {
                prop_assert!(covered[at] || c.is_whitespace(), "lost {c:?} at {at} of {source:?}");
            }
        }
    }
}
