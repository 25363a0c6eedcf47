//! What a question asks for: its search terms, weighed by how rare they are and what they are made of.
//!
//! First step of a search. Terms are cut exactly as they were at index time. Questions of any length are taken,
//! but only so much of them is looked at and only so many terms are searched, the rarest ones.

use std::collections::HashSet;

use tantivy::{Searcher, Term as IndexTerm};

use crate::analysis::fields::{is_english_word, stem_all};
use crate::analysis::is_stop_word;
use crate::analysis::scan::{Script, Term, terms};
use crate::analysis::synonyms::{Member, Synonyms};
use crate::analysis::words::japanese_words;
use crate::language::is_han;
use crate::store::schema::Fields;

/// How much of a question is looked at: its end, where what is asked for usually stands.
const MAX_CHARS: usize = 2_000;
/// How many different terms are searched.
const MAX_TERMS: usize = 64;

/// What a framing term counts in coverage, against one of the subject.
const FRAME: f32 = 0.2;
const FRAMES: &[&str] = &[
    "advice",
    "adult",
    "adults",
    "age",
    "aged",
    "best",
    "current",
    "currently",
    "guidance",
    "guideline",
    "guidelines",
    "latest",
    "man",
    "men",
    "new",
    "now",
    "old",
    "patient",
    "patients",
    "people",
    "person",
    "recommend",
    "recommendation",
    "recommendations",
    "recommended",
    "today",
    "woman",
    "women",
    "year",
    "years",
    "患者",
    "推奨",
    "場合",
    "必要",
    "方法",
    "最新",
    "現在",
    "何歳",
    "歳",
    "人",
    "何",
    "方",
    "年",
    "代",
    "時",
    "目安",
];

/// A term of the question.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The term where it stands in the question.
    pub term: Term,
    /// Its stem, for an English word that is no stop word.
    pub stem: Option<String>,
    /// How rare it is: ln(1 + (N - n + ½) / (n + ½)), as in BM25, for n chunks of N that hold it.
    pub idf: f32,
    /// Whether the index holds it at all.
    pub known: bool,
    /// Whether it says something about the subject.
    pub content: bool,
    /// How much it counts in coverage: its rarity, less for what frames a question; 0 for what is no content.
    pub weight: f32,
    /// What means the same as that which it is a part of: a passage that holds one of these whole holds it.
    pub alternatives: Vec<Member>,
}

/// The terms of a question.
#[derive(Debug, Clone, Default)]
pub struct QueryTerms {
    /// Each term once, in order of position.
    pub asked: Vec<Asked>,
    /// Japanese words, each once.
    pub words: Vec<String>,
    /// What means the same as parts of the question, each once.
    pub alternatives: Vec<Member>,
    /// The rarity of a term that no chunk holds.
    pub rarest: f32,
}

impl QueryTerms {
    /// The share of the question's content, from 0 to 1, that occurs in the index at all; 1 for a question
    /// without content of its own ("And then?").
    #[must_use]
    pub fn familiarity(&self) -> f32 {
        let total: f32 = self.asked.iter().map(|asked| asked.weight).sum();
        let known: f32 = self.asked.iter().filter(|asked| asked.known).map(|asked| asked.weight).sum();
        if total > 0.0 { known / total } else { 1.0 }
    }

    /// Cuts a question into terms and weighs them by the index at hand.
    pub fn of(
        text: &str,
        searcher: &Searcher,
        fields: &Fields,
        synonyms: &Synonyms,
    ) -> tantivy::Result<Self> {
        let start = text.char_indices().nth_back(MAX_CHARS - 1).map_or(0, |(at, _)| at);
        let mut seen = HashSet::new();
        let mut found = terms(&text[start..]);
        let content = content_marks(&found);
        let mut marks = content.into_iter();
        let mut kept = Vec::new();
        for term in found.drain(..) {
            let content = marks.next().unwrap_or(false);
            if seen.insert(term.text.clone()) {
                kept.push((term, content));
            }
        }
        let stems = stem_all(kept.iter().filter(|(t, _)| is_english_word(t)).map(|(t, _)| t.text.as_str()));
        let mut stems = stems.into_iter();
        let total = searcher.num_docs() as f32;
        let rarity = |holding: f32| (1.0 + (total - holding + 0.5).max(0.0) / (holding + 0.5)).ln();
        let mut asked = Vec::with_capacity(kept.len());
        for (term, content) in kept {
            let stem = if is_english_word(&term) { stems.next() } else { None };
            let holding = match &stem {
                Some(stem) => {
                    searcher.doc_freq(&IndexTerm::from_field_text(fields.words.text_english, stem))?
                }
                None => searcher.doc_freq(&IndexTerm::from_field_text(fields.words.text, &term.text))?,
            } as f32;
            let idf = rarity(holding);
            let share = if !content {
                0.0
            } else if frames(&term) {
                FRAME
            } else {
                1.0
            };
            let known = holding > 0.0;
            asked.push(Asked {
                term,
                stem,
                idf,
                known,
                content,
                weight: idf * share,
                alternatives: Vec::new(),
            });
        }
        if asked.len() > MAX_TERMS {
            asked.sort_by(|a, b| b.content.cmp(&a.content).then(b.idf.total_cmp(&a.idf)));
            asked.truncate(MAX_TERMS);
            asked.sort_by_key(|a| (a.term.position, a.term.width));
        }
        let mut alternatives: Vec<Member> = Vec::new();
        for meant in synonyms.find(&text[start..]) {
            let inside =
                |asked: &&mut Asked| asked.term.from >= meant.span.start && asked.term.to <= meant.span.end;
            for asked in asked.iter_mut().filter(inside) {
                if !asked.known {
                    asked.known = holds_any(searcher, fields, &meant.others)?;
                }
                asked.alternatives.extend(meant.others.iter().cloned());
            }
            for other in meant.others {
                if !alternatives.contains(&other) && alternatives.len() < MAX_TERMS {
                    alternatives.push(other);
                }
            }
        }
        let mut seen = HashSet::new();
        let words = japanese_words(&text[start..]).into_iter().map(|word| word.text);
        let words = words.filter(|word| seen.insert(word.clone())).take(MAX_TERMS).collect();
        Ok(Self { asked, words, alternatives, rarest: rarity(0.0) })
    }
}

/// Whether any passage holds all terms of one of the members.
fn holds_any(searcher: &Searcher, fields: &Fields, members: &[Member]) -> tantivy::Result<bool> {
    let held = |field, text: &String| Ok(searcher.doc_freq(&IndexTerm::from_field_text(field, text))? > 0);
    for member in members {
        let stems = member.stems.iter().map(|stem| held(fields.words.text_english, stem));
        let pairs = member.pairs.iter().map(|pair| held(fields.words.text, pair));
        let all: tantivy::Result<Vec<bool>> = stems.chain(pairs).collect();
        if all?.into_iter().all(|held| held) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which terms carry the subject: words that are no stop words, numbers, and CJK pairs without hiragana (a kanji
/// that stands between kana counts by itself). A question all in hiragana is taken as it is.
fn content_marks(terms: &[Term]) -> Vec<bool> {
    let solid = |t: &Term| t.text.chars().all(|c| !is_hiragana(c));
    let paired: HashSet<usize> = terms
        .iter()
        .filter(|t| t.script == Script::CjkTwo && solid(t))
        .flat_map(|t| [t.position, t.position + 1])
        .collect();
    let mark = |t: &Term| match t.script {
        Script::Word => !is_stop_word(&t.text),
        Script::Number => true,
        Script::NumberPart => false,
        Script::CjkTwo => solid(t),
        Script::CjkOne => t.text.chars().all(is_han) && !paired.contains(&t.position),
    };
    let marks: Vec<bool> = terms.iter().map(mark).collect();
    if marks.contains(&true) {
        return marks;
    }
    terms.iter().map(|t| t.script == Script::CjkTwo).collect()
}

/// Whether a content term describes the asker or the asking rather than the subject: an age, a patient, a request
/// for advice. A passage that answers need not hold it.
fn frames(term: &Term) -> bool {
    matches!(term.script, Script::Number) || FRAMES.contains(&term.text.as_str())
}

/// Hiragana alone.
#[must_use]
pub const fn is_hiragana(c: char) -> bool {
    matches!(c, '\u{3041}'..='\u{309F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> Vec<String> {
        let found = terms(text);
        let marks = content_marks(&found);
        found.into_iter().zip(marks).filter(|(_, m)| *m).map(|(t, _)| t.text).collect()
    }

    #[test]
    fn content_terms_carry_the_subject() {
        assert_eq!(content("What is the blood pressure target?"), ["blood", "pressure", "target"]);
        assert_eq!(content("高血圧の降圧目標は？"), ["高血", "血圧", "降圧", "圧目", "目標"]);
        assert_eq!(content("癌の薬は"), ["癌", "薬"]);
        assert_eq!(content("めまい"), ["めま", "まい"]);
        assert_eq!(content("130/80 mmHg"), ["130/80", "mmhg"]);
    }
}
