//! An adapter packed for the kernels.

use std::ops::Range;

use super::super::fingerprint;
use super::super::lora::{Adapter, AdapterFormat, LoraPair, QuoteBars, last_of};
use super::super::lowrank::LowRank;
use super::super::tensors::Projection;
use super::{FastDecoder, floats};
use crate::kernels::{Delta, Pages};
use crate::language::Language;
use crate::model::weights::WeightError;

/// A LoRA adapter ready to be added to a pass.
///
/// On a quantised base its matrices are 8-bit codes with a scale for every 32 (or 16) columns, because its inputs
/// are so too, and the bytes that a token reads are what an adapter costs. On any other base they are half
/// precision where that loses nothing that counts, else 32-bit floats.
#[derive(Debug)]
pub struct PackedAdapter {
    fingerprint: String,
    format: AdapterFormat,
    invocation: Option<Vec<u32>>,
    bars: QuoteBars,
    /// By layer and [`Projection`].
    pairs: Vec<[Option<LowRank>; Projection::ALL.len()]>,
}

impl PackedAdapter {
    /// Packs an adapter that was bound to a model of the decoder's configuration.
    ///
    /// # Errors
    /// When a matrix cannot be read.
    pub fn pack(adapter: &Adapter, decoder: &FastDecoder) -> Result<Self, WeightError> {
        let (config, quantised) = (decoder.config(), decoder.takes_quantised_inputs());
        let mut pages = Pages::default();
        let mut pairs: Vec<[Option<LowRank>; Projection::ALL.len()]> = Vec::new();
        pairs.resize_with(config.layers, Default::default);
        for (layer, projection, pair) in adapter.pairs() {
            pairs[layer][projection as usize] = Some(pack(pair, quantised, &mut pages)?);
        }
        // What it does is not known by what it has learnt alone.
        let fingerprint = match serde_json::to_vec(adapter.bars()) {
            Ok(bars) if !adapter.bars().is_empty() => {
                fingerprint([adapter.fingerprint().as_bytes(), b"quoting", &bars])
            }
            _ => adapter.fingerprint().to_owned(),
        };
        Ok(Self {
            fingerprint,
            format: adapter.format(),
            invocation: adapter.invocation().map(<[u32]>::to_vec),
            bars: adapter.bars().clone(),
            pairs,
        })
    }

    /// An adapter of random numbers on all linear maps of a model, to time with. Its fingerprint says so.
    ///
    /// # Errors
    /// When the model has no size.
    pub fn synthetic(decoder: &FastDecoder, rank: usize, seed: u64) -> Result<Self, WeightError> {
        use rand::{Rng as _, SeedableRng as _};
        let (config, quantised) = (decoder.config(), decoder.takes_quantised_inputs());
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut pages = Pages::default();
        let mut numbers =
            |count: usize| (0..count).map(|_| random.random_range(-0.01..0.01)).collect::<Vec<f32>>();
        let mut pairs = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            let mut layer: [Option<LowRank>; Projection::ALL.len()] = Default::default();
            for p in Projection::ALL {
                let (outputs, inputs) = p.shape(config);
                let (a, b) = (numbers(rank * inputs), numbers(outputs * rank));
                let (a, b) = (((rank, inputs), a.as_slice()), ((outputs, rank), b.as_slice()));
                layer[p as usize] =
                    Some(LowRank::of(a, b, 2.0, quantised, &mut pages).ok_or_else(no_matrix)?);
            }
            pairs.push(layer);
        }
        let fingerprint = format!("synthetic-{rank}-{seed}");
        Ok(Self {
            fingerprint,
            format: AdapterFormat::Peft,
            invocation: None,
            bars: QuoteBars::default(),
            pairs,
        })
    }

    /// SHA-256 over configuration and weights, as [`Adapter::fingerprint`]; also over its bars, if it has any.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The format it came in.
    pub fn format(&self) -> AdapterFormat {
        self.format
    }

    /// From where on it begins to quote, by language.
    pub fn bars(&self) -> &QuoteBars {
        &self.bars
    }

    /// From where on it begins to quote in answer to a question in this language, if that has been found for it.
    pub fn bar(&self, language: Language) -> Option<f32> {
        self.bars.get(&language).copied()
    }

    /// Where in a prompt it begins to act: at its invocation tokens if it has such, as [`Adapter::invocation`] says, else at the start.
    /// `None`: nowhere.
    pub fn begins(&self, prompt: &[u32]) -> Option<usize> {
        match &self.invocation {
            None => Some(0),
            Some(tokens) => last_of(prompt, tokens),
        }
    }

    /// Whether it waits for its invocation tokens.
    pub fn is_late(&self) -> bool {
        self.invocation.is_some()
    }

    /// Bytes of all its matrices.
    pub fn bytes(&self) -> usize {
        self.pairs.iter().flatten().flatten().map(LowRank::bytes).sum()
    }

    /// What it adds to a projection's results for some rows.
    pub(super) fn delta(&self, layer: usize, p: Projection, rows: Range<usize>) -> Option<Delta<'_>> {
        Some(self.pairs.get(layer)?[p as usize].as_ref()?.delta(rows))
    }
}

fn pack(pair: &LoraPair, quantised: bool, pages: &mut Pages) -> Result<LowRank, WeightError> {
    let (a, b) = (floats(&pair.a)?, floats(&pair.b)?);
    let packed =
        LowRank::of((pair.a.dims2()?, &a), (pair.b.dims2()?, &b), pair.scale as f32, quantised, pages);
    packed.ok_or_else(no_matrix)
}

fn no_matrix() -> WeightError {
    WeightError::Candle(candle_core::Error::Msg("an empty adapter matrix".into()))
}
