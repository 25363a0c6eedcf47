//! Coverage: the share of a question's content that a passage contains, rare terms counting more.
//!
//! Third step of a search, and the ground on which the request path abstains. BM25 scores cannot serve for that:
//! they grow with the question's length and differ between indexes. A term that no guideline contains weighs the
//! most and is never covered, so a short question about something else scores low however many everyday words match. A
//! message of many words need not be covered as a whole (`ENOUGH`).

use std::collections::HashSet;

use super::terms::{Asked, QueryTerms};
use crate::analysis::fields::{is_english_word, stem_all};
use crate::analysis::scan::terms;
use crate::analysis::synonyms::Member;

/// Content that is enough: as much as so many terms that no chunk holds. A patient's message tells far more than the
/// passage that answers it, so that the share of all would punish whoever tells much.
const ENOUGH: f32 = 4.0;

/// How much of the question's content the passage holds, from 0 to 1; 0 when the question has none. Of a question with
/// more than `ENOUGH`, only so much is asked for.
#[must_use]
pub fn share(asked: &QueryTerms, title: &str, section: &str, text: &str) -> f32 {
    let held = held(asked, [title, section, text]);
    let (mut all, mut covered) = (0.0f32, 0.0f32);
    for (asked, held) in asked.asked.iter().zip(held) {
        all += asked.weight;
        if held {
            covered += asked.weight;
        }
    }
    let wanted = all.min(ENOUGH * asked.rarest);
    if wanted > 0.0 { (covered / wanted).min(1.0) } else { 0.0 }
}

/// The terms of the question's content that the passage lacks.
#[must_use]
pub fn missing(asked: &QueryTerms, title: &str, section: &str, text: &str) -> Vec<String> {
    let held = held(asked, [title, section, text]);
    let lacking = asked.asked.iter().zip(held).filter(|(asked, held)| asked.weight > 0.0 && !held);
    lacking.map(|(asked, _)| asked.term.text.clone()).collect()
}

/// Whether the passage holds each term.
fn held(asked: &QueryTerms, passage: [&str; 3]) -> Vec<bool> {
    let found: Vec<_> = passage.into_iter().flat_map(terms).collect();
    let stems: HashSet<String> =
        stem_all(found.iter().filter(|t| is_english_word(t)).map(|t| t.text.as_str())).into_iter().collect();
    let plain: HashSet<&str> = found.iter().map(|t| t.text.as_str()).collect();
    let means = |member: &Member| {
        member.stems.iter().all(|stem| stems.contains(stem))
            && member.pairs.iter().all(|pair| plain.contains(pair.as_str()))
    };
    let holds = |asked: &Asked| {
        let itself = match &asked.stem {
            Some(stem) => stems.contains(stem),
            None => plain.contains(asked.term.text.as_str()),
        };
        itself || asked.alternatives.iter().any(means)
    };
    asked.asked.iter().map(holds).collect()
}
