//! The order of the first passages: what answers before what is about it, and room for another guideline.
//!
//! Between the ranking of a search and its passages ([`Snapshot::search`](super::Snapshot::search)). ARCHITECTURE.md has what was measured.

use super::{Passage, weight};
use crate::language::Language;

/// What a passage of another guideline must score, against the best one, to be shown in any case: by words, by vectors or by a reranker.
const NEARLY_AS_GOOD: f32 = 0.7;
/// And how much less than the passage whose place it takes, where passages stand by what they support.
const NEARLY_SUPPORTS: f32 = 0.005;
/// Of the ranking by both, so many of the first are put in the order in which they support an answer, and so much does their score count
/// in it: the score finds what is about the question, the support tells what answers it.
pub(super) const WEIGHED: usize = 20;
const SCORE_IN_SUPPORT: f32 = 0.025;
/// What the nearest sentence of a passage counts beside the passage as a whole, in that order. The gate looks at whole passages: the nearest
/// sentences of questions that nothing answers are as near.
const SENTENCE_IN_ORDER: f32 = 1.0;
/// How much farther the embedder sets what is in another language than the question, whether it answers or not.
const OTHER_LANGUAGE: f32 = 0.03;

/// Puts the first passages in the order in which they support an answer to a question in a language; `nearest` gives the cosine of the
/// nearest sentence of a chunk, where there are any. Gives coverage and similarity of the one that supports best as a whole.
pub(super) fn by_support(
    hits: &mut [Passage],
    language: Language,
    nearest: Option<&dyn Fn(usize) -> Option<f32>>,
) -> Option<(f32, Option<f32>)> {
    let weighed = hits.len().min(WEIGHED);
    if let Some(nearest) = nearest {
        for passage in &mut hits[..weighed] {
            passage.sentence_similarity = nearest(passage.row);
        }
    }
    for passage in &mut *hits {
        let farther = if passage.language == language { 0.0 } else { OTHER_LANGUAGE };
        let weight = weight(passage.coverage, passage.similarity) + farther;
        passage.score = weight + SCORE_IN_SUPPORT * passage.score;
        if nearest.is_some() {
            // What has no sentence of its own is as near as it is as a whole.
            let sentence = passage.sentence_similarity.or(passage.similarity).unwrap_or_default();
            passage.score += SENTENCE_IN_ORDER * (sentence + farther);
        }
    }
    sort(&mut hits[..weighed]);
    // The others stay behind, so that few are the first of many.
    for at in weighed.max(1)..hits.len() {
        hits[at].score = hits[at].score.min(hits[at - 1].score);
    }
    best_supported(&hits[..weighed])
}

/// Gives the last place to the best passage of another guideline, where all places would go to one and the other is nearly as good: two
/// guidelines that hold at once may disagree, and then a reader must see both.
pub(super) fn show_both(hits: &mut [Passage], limit: usize, by_support: bool) {
    let [first, .., last] = &hits[..limit.min(hits.len())] else { return };
    let (best, lowest) = (first.score, last.score);
    let guideline = first.guideline.clone();
    if limit < 2 || hits[..limit.min(hits.len())].iter().any(|hit| hit.guideline != guideline) {
        return;
    }
    let bar = if by_support { lowest - NEARLY_SUPPORTS } else { NEARLY_AS_GOOD * best };
    let other = hits.iter().position(|hit| hit.guideline != guideline);
    if let Some(other) = other.filter(|at| hits[*at].score >= bar) {
        hits.swap(limit - 1, other);
        // Scores stay in order for whoever cuts by them.
        hits[limit - 1].score = hits[limit - 1].score.min(lowest);
    }
}

/// Coverage and similarity of the passage that supports an answer best.
pub(super) fn best_supported(passages: &[Passage]) -> Option<(f32, Option<f32>)> {
    let of = passages.iter().map(|passage| (passage.coverage, passage.similarity));
    of.max_by(|a, b| weight(a.0, a.1).total_cmp(&weight(b.0, b.1)))
}

/// Best first. Ties go to the chunk id, so that the same question always gets the same order.
pub(super) fn sort(hits: &mut [Passage]) {
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.chunk_id.cmp(&b.chunk_id)));
}
