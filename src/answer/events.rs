//! What an answer streams: passages, text, citations, and at the end what produced it.

use jiff::civil::Date;
use serde::Serialize;

use super::Mode;
use crate::cite::Citation;
use crate::engine::{Completion, EngineFailure, FinishReason, Sampling};
use crate::model::weights::WeightForm;
use crate::quote::{Quote, QuoteChoice};
use crate::retrieve::{NotInEffect, Passage};

/// One event of an answer.
#[derive(Debug)]
pub enum AnswerEvent {
    /// The passages in the prompt; first, and in the modes that retrieve only.
    Retrieval(Retrieved),
    /// What a passage says and the answer stands on; before its text.
    Quote(Quote),
    /// More text.
    Token(String),
    /// A citation that the text so far has completed.
    Citation(Citation),
    /// The end of a good answer.
    Done(Done),
    /// The end of a failed one.
    Failed(EngineFailure),
}

/// The passages that an answer's prompt holds.
#[derive(Debug, Serialize)]
pub struct Retrieved {
    /// The passages as they stand in the prompt; empty when nothing relevant was found.
    pub passages: Vec<Passage>,
    /// Editions that match the question better than those, and are not in effect on the day.
    pub not_in_effect: Vec<NotInEffect>,
    /// The index generation that was searched.
    pub generation: Option<String>,
}

/// The last event: why the answer ended, what it cost, and what produced it.
#[derive(Debug, Serialize)]
pub struct Done {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// What produced it.
    pub provenance: Box<Provenance>,
}

/// Tokens of an answer.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// In the prompt.
    pub prompt_tokens: usize,
    /// How many of them needed no reading, because an earlier prompt began alike.
    pub cached_tokens: usize,
    /// In the answer.
    pub completion_tokens: usize,
    /// Guessed ahead while the answer was written, and how many of those were right.
    pub drafted_tokens: usize,
    /// See `drafted_tokens`.
    pub accepted_tokens: usize,
    /// Older turns that did not fit into the prompt.
    pub dropped_turns: usize,
}

/// Times of an answer, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Timings {
    /// Waiting for the engine.
    pub queue_ms: f64,
    /// Reading the prompt.
    pub prefill_ms: f64,
    /// Writing the answer.
    pub decode_ms: f64,
}

/// A name, and the hash of what really stands behind it.
#[derive(Debug, Clone, Serialize)]
pub struct Fingerprint {
    /// What it is called.
    pub name: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What produced an answer. The same provenance and input give the same answer again: neither instruction set,
/// threads nor what else is being answered changes a sum. Only another system's sine and cosine could.
#[derive(Debug, Clone, Serialize)]
pub struct Provenance {
    /// What was drawn on.
    pub mode: Mode,
    /// The base model.
    pub base: Fingerprint,
    /// The form its weights are kept in.
    pub weights: WeightForm,
    /// The adapter.
    pub adapter: Option<Fingerprint>,
    /// The index generation.
    pub generation: Option<String>,
    /// The day whose editions were looked at.
    pub as_of: Date,
    /// SHA-256 over the prompt's token ids (32-bit little-endian); none when the model was not asked.
    pub prompt_sha256: Option<String>,
    /// How tokens were drawn.
    pub sampling: Sampling,
    /// What counted in the choice of quotes.
    pub quotes: QuoteChoice,
    /// SHA-256 of the reader that counted in it; none where none did.
    pub reader: Option<String>,
    /// The bound on the answer's length.
    pub max_tokens: usize,
    /// shishin's version.
    pub version: &'static str,
}

impl Done {
    pub(super) fn new(completion: &Completion, dropped_turns: usize, provenance: Box<Provenance>) -> Self {
        Self {
            finish_reason: completion.finish_reason,
            usage: Usage {
                prompt_tokens: completion.prompt_tokens,
                cached_tokens: completion.cached_tokens,
                completion_tokens: completion.completion_tokens,
                drafted_tokens: completion.drafted_tokens,
                accepted_tokens: completion.accepted_tokens,
                dropped_turns,
            },
            timings: Timings {
                queue_ms: completion.queue_ms,
                prefill_ms: completion.prefill_ms,
                decode_ms: completion.decode_ms,
            },
            provenance,
        }
    }
}
