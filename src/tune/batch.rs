//! What runs at once: sequences behind one another, what is learnt of them, and what the base has read before.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::attention::Sequence;
use crate::model::weights::WeightForm;

/// Something to learn: the token that follows a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The row that predicts it.
    pub row: usize,
    /// The token.
    pub token: u32,
    /// What its loss is multiplied by.
    pub weight: f32,
}

/// Sequences that run together, one behind the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Their tokens.
    pub tokens: Vec<u32>,
    /// The rows of each.
    pub spans: Vec<Range<usize>>,
    /// What is learnt.
    pub targets: Vec<Target>,
    /// What the base alone has read before each; `None` for nothing. Shorter than the sequences means nothing for the rest.
    pub prefixes: Vec<Option<Arc<Prefix>>>,
}

/// Keys and values of tokens that the base alone has read: what a late adapter finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Prefix {
    /// How many tokens.
    tokens: usize,
    /// Keys, turned by their positions, and values of each layer, of shape (tokens, key heads × head size).
    layers: Vec<[Numbers; 2]>,
}

/// A layer's keys or values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Numbers {
    /// In half precision.
    Half(Vec<f16>),
    /// As they were computed: beside weights in 32 bits, which are a yardstick, rounding these would be most of the error.
    Full(Vec<f32>),
}

impl Numbers {
    fn new(numbers: &[f32], form: WeightForm) -> Self {
        match form {
            WeightForm::Stored => {
                let mut to = vec![f16::ZERO; numbers.len()];
                to.convert_from_f32_slice(numbers);
                Self::Half(to)
            }
            WeightForm::F32 => Self::Full(numbers.to_vec()),
        }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Half(numbers) => numbers.len(),
            Self::Full(numbers) => numbers.len(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Half(numbers) => size_of_val(&numbers[..]),
            Self::Full(numbers) => size_of_val(&numbers[..]),
        }
    }

    fn append_to(&self, to: &mut Vec<f32>) {
        match self {
            Self::Half(numbers) => {
                let start = to.len();
                to.resize(start + numbers.len(), 0.0);
                numbers.convert_to_f32_slice(&mut to[start..]);
            }
            Self::Full(numbers) => to.extend_from_slice(numbers),
        }
    }
}

impl Prefix {
    /// Keeps keys and values of each layer, in half precision unless the weights are in 32 bits.
    pub(super) fn new<'n>(
        tokens: usize,
        layers: impl Iterator<Item = [&'n [f32]; 2]>,
        form: WeightForm,
    ) -> Self {
        Self { tokens, layers: layers.map(|pair| pair.map(|own| Numbers::new(own, form))).collect() }
    }

    /// Of keys and values of each layer.
    pub(super) fn of(tokens: usize, layers: Vec<[Numbers; 2]>) -> Self {
        Self { tokens, layers }
    }

    /// Keys and values of each layer.
    pub(super) fn layers(&self) -> &[[Numbers; 2]] {
        &self.layers
    }

    /// Whether it is kept as beside weights of this form.
    pub(super) fn is_of(&self, form: WeightForm) -> bool {
        self.layers.iter().flatten().all(|own| matches!(own, Numbers::Full(_)) == (form == WeightForm::F32))
    }

    /// How many tokens it stands for.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(Numbers::bytes).sum()
    }
}

impl Batch {
    /// The sequences, with their places among the keys.
    pub(super) fn sequences(&self) -> Vec<Sequence> {
        let mut start = 0;
        let mut sequences = Vec::with_capacity(self.spans.len());
        for (at, rows) in self.spans.iter().enumerate() {
            let prefix = self.prefixes.get(at).and_then(Option::as_ref).map_or(0, |prefix| prefix.tokens);
            let end = start + prefix + rows.len();
            sequences.push(Sequence { rows: rows.clone(), keys: start..end });
            start = end;
        }
        sequences
    }

    /// A layer's keys (0) or values (1): of each sequence's prefix, and behind it its own.
    pub(super) fn joined(&self, layer: usize, which: usize, own: Vec<f32>) -> Vec<f32> {
        if self.prefixes.iter().all(Option::is_none) {
            return own;
        }
        let width = own.len() / self.tokens.len().max(1);
        let mut joined = Vec::new();
        for (at, rows) in self.spans.iter().enumerate() {
            if let Some(Some(prefix)) = self.prefixes.get(at) {
                prefix.layers[layer][which].append_to(&mut joined);
            }
            joined.extend_from_slice(&own[rows.start * width..rows.end * width]);
        }
        joined
    }
}
