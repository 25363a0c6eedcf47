//! How likely a system finds what a good answer says: the bits per byte of the reference, and whether it finds it likelier than an answer
//! that says the same in a manner that is not wanted. Needs no answer of the model's own, and so tells sooner than rates do which way an
//! adapter goes.

use serde::Serialize;

use super::answers::{Held, System};
use super::distributions::predictions;
use super::rates::{Difference, Rate};
use crate::model::BaseModel;
use crate::model::decoder::DecodeError;
use crate::model::fast::FastDecoder;
use crate::model::template::{TemplateError, encode_segments};
use crate::model::tokenizer::TokenizerError;

/// Decides the resamples of every difference.
const SEED: u64 = 1;

/// Why an answer could not be weighed.
#[derive(Debug, thiserror::Error)]
pub enum LikelihoodError {
    /// The prompt cannot be made.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model did not run, or it was asked to stop.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// What one system makes of one example.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Weighed {
    /// Bits that the reference takes.
    pub bits: f64,
    /// Its bytes.
    pub bytes: usize,
    /// Whether it finds the reference likelier, byte for byte, than the example's rejected answer, where there is one.
    pub prefers: Option<bool>,
}

/// Weighs the references of all examples by all systems: in the order of the examples, and for each in that of the systems.
///
/// # Errors
/// When a prompt cannot be made, or `stop` says so.
pub fn weigh(
    model: &BaseModel<FastDecoder>,
    held: &[Held],
    systems: &[System],
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Weighed>, LikelihoodError> {
    let template = model.template.as_ref().ok_or(TemplateError::Missing)?;
    let mut all = Vec::new();
    for one in held {
        let prompt = encode_segments(&model.tokenizer, &template.segments(&one.turns)?)?;
        for system in systems {
            let adapter = system.adapter.as_ref().and_then(|a| Some((a.as_ref(), a.begins(&prompt)?)));
            let bits = |text: &str| -> Result<f64, LikelihoodError> {
                let own = model.tokenizer.encode_content(text)?;
                let tokens = [prompt.as_slice(), &own].concat();
                let predicted = predictions(model, &tokens, own.len(), adapter, stop)?;
                let nats: f64 = predicted.iter().zip(&own).map(|(p, token)| -p[*token as usize]).sum();
                Ok(nats / std::f64::consts::LN_2)
            };
            let (reference, bytes) = (bits(&one.reference)?, one.reference.len());
            let share = |bits: f64, bytes: usize| bits / bytes.max(1) as f64;
            let rejected =
                one.rejected.as_ref().map(|text| Ok::<_, LikelihoodError>(share(bits(text)?, text.len())));
            let prefers = rejected.transpose()?.map(|rejected| share(reference, bytes) < rejected);
            all.push(Weighed { bits: reference, bytes, prefers });
        }
    }
    Ok(all)
}

/// What a system makes of all examples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Likelihood {
    /// The system.
    pub system: String,
    /// Bits per byte of the references.
    pub bits_per_byte: f64,
    /// How often it prefers the reference, of the examples with a rejected answer.
    pub prefers: Rate,
    /// Against the first system; `None` for itself, and where no example has a rejected answer.
    pub against_first: Option<Difference>,
}

/// Sums up.
#[must_use]
pub fn figures(systems: &[System], weighed: &[Weighed]) -> Vec<Likelihood> {
    let of = |at: usize| weighed.iter().skip(at).step_by(systems.len().max(1));
    let prefers = |at: usize| -> Vec<bool> { of(at).filter_map(|one| one.prefers).collect() };
    let one = |(at, system): (usize, &System)| {
        let (bits, bytes) = of(at).fold((0.0, 0), |(bits, bytes), one| (bits + one.bits, bytes + one.bytes));
        let own = prefers(at);
        Likelihood {
            system: system.name.clone(),
            bits_per_byte: bits / bytes.max(1) as f64,
            prefers: Rate::of(&own),
            against_first: if at == 0 { None } else { Difference::between(&prefers(0), &own, SEED) },
        }
    };
    systems.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_count_by_their_bytes_and_systems_stay_apart() {
        let systems = ["base", "a"].map(|name| System { name: name.into(), adapter: None });
        let one = |bits, bytes, prefers| Weighed { bits, bytes, prefers };
        let weighed =
            [one(8.0, 4, Some(false)), one(4.0, 4, Some(true)), one(24.0, 12, None), one(4.0, 12, None)];
        let found = figures(&systems, &weighed);
        assert_eq!((found[0].bits_per_byte, found[1].bits_per_byte), (2.0, 0.5));
        assert_eq!((found[0].prefers.held, found[1].prefers.held, found[1].prefers.of), (0, 1, 1));
        assert_eq!(found[1].against_first.unwrap().difference, 1.0);
        assert!(found[0].against_first.is_none());
    }
}
