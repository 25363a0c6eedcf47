//! Under which names keys and values are known: requests may share those that the same model computed, with the same adapter, of
//! the same tokens.
//!
//! An adapter that begins late leaves the beginning of a prompt to the base, and shares that with it. So its requests go by the base's
//! name, and their tokens carry, from where it begins, a mark of its own.

use super::GenerateRequest;
use super::blocks::Identity;
use crate::model::BaseModel;
use crate::model::fast::FastDecoder;

/// Bits of a token; those above are for marks.
const TOKEN_BITS: u32 = 20;

/// How a request's keys and values are known.
#[derive(Debug)]
pub(super) struct Known {
    /// Whose they are.
    pub(super) identity: Identity,
    /// Its tokens, marked.
    pub(super) tokens: Vec<u32>,
    /// The position from which its adapter acts; `None`: nowhere.
    pub(super) begins: Option<usize>,
    mark: u32,
}

impl Known {
    /// Takes a token that was drawn.
    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token | self.mark);
    }
}

/// The marks that are given out.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Fingerprints of late adapters; the n-th has the mark n + 1.
    late: Vec<String>,
}

impl Names {
    /// How a request is known.
    pub(super) fn known(&mut self, model: &BaseModel<FastDecoder>, request: &GenerateRequest) -> Known {
        let begins = request.adapter.as_ref().and_then(|adapter| adapter.begins(&request.prompt));
        let adapter = request.adapter.as_ref().filter(|_| begins.is_some());
        let late = adapter.filter(|adapter| adapter.is_late() && model.config.vocab <= 1 << TOKEN_BITS);
        let mark = late.and_then(|adapter| self.mark(adapter.fingerprint()));
        let named = adapter.filter(|_| mark.is_none()).map_or("", |adapter| adapter.fingerprint());
        let salt = request.cache_salt.as_deref().unwrap_or("");
        let parts = [model.fingerprint.as_bytes(), named.as_bytes(), salt.as_bytes()];
        let mark = mark.unwrap_or_default();
        let from = begins.unwrap_or(request.prompt.len());
        let tokens = request.prompt.iter().enumerate();
        let tokens = tokens.map(|(at, token)| if at < from { *token } else { token | mark }).collect();
        Known { identity: Identity(crate::model::digest(parts)), tokens, begins, mark }
    }

    /// The mark of a late adapter; `None` when all are given out, and it then shares nothing with the base.
    fn mark(&mut self, fingerprint: &str) -> Option<u32> {
        let at = match self.late.iter().position(|known| known == fingerprint) {
            Some(at) => at,
            None => {
                self.late.push(fingerprint.to_owned());
                self.late.len() - 1
            }
        };
        let number = u32::try_from(at + 1).ok().filter(|number| number >> (u32::BITS - TOKEN_BITS) == 0)?;
        Some(number << TOKEN_BITS)
    }
}
