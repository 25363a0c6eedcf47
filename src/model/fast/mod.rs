//! The fast decoder: the same configuration as the reference decoder, on our own kernels.
//!
//! Weights are packed once at load, in the bytes of the file; a pass runs any number of sequences
//! together, each with its own adapter or none, over a paged key-value cache. Which pages a sequence has
//! is the caller's business. A token's logits do not depend on the others of its pass, bit for bit, so
//! batching, chunking and cached prefixes leave answers as they are.

mod adapter;
mod block;

use std::ops::Range;

use smallvec::SmallVec;

use super::config::{Activation, ModelConfig, Rope};
use super::decoder::DecodeError;
use super::tensors::{Projection, TensorName};
use super::weights::{WeightError, WeightReader};
use crate::kernels::{
    Activations, Attention, CacheShape, Cpu, Delta, Gate, Heads, KvCache, Matrix, Output, Pages, Part, Span,
};

pub use adapter::PackedAdapter;
use block::Block;

/// A model's weights packed for this processor, and the threads to run them.
#[derive(Debug)]
pub struct FastDecoder {
    config: ModelConfig,
    cpu: Cpu,
    embedding: Matrix,
    blocks: Vec<Block>,
    output_norm: Vec<f32>,
    head: Matrix,
    /// Radians per position of the global layers' and the sliding layers' rotary embedding.
    frequencies: (Vec<f64>, Option<Vec<f64>>),
    /// Inputs must be quantised: some weight is.
    quantised: bool,
}

/// One sequence's part of a pass: the continuation of what its pages hold.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// Position of the first of them.
    pub position: usize,
    /// Pages for all positions up to the last token's; those before `position` are filled.
    pub pages: &'a [u32],
    /// The adapter to add.
    pub adapter: Option<&'a PackedAdapter>,
    /// How many of the tokens run before it begins.
    pub before: usize,
    /// For how many of the last tokens logits are wanted.
    pub logits: usize,
}

/// Buffers of a pass, kept from one to the next.
#[derive(Debug, Default)]
pub struct Workspace {
    residual: Vec<f32>,
    normed: Activations,
    heads: [Vec<f32>; 3],
    attended: Activations,
    projected: Vec<f32>,
    gated: Activations,
    global: Angles,
    sliding: Angles,
    picked: Vec<f32>,
    split: Activations,
    logits: Vec<f32>,
}

impl Workspace {
    /// The logits of the last pass, of shape (positions, vocab).
    pub fn logits_mut(&mut self) -> &mut [f32] {
        &mut self.logits
    }
}

/// Cosines and sines, of shape (rows, head_dim / 2).
#[derive(Debug, Default)]
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn fill(&mut self, frequencies: &[f64], pieces: &[Piece<'_>]) {
        self.cos.clear();
        self.sin.clear();
        for piece in pieces {
            for position in piece.position..piece.position + piece.tokens.len() {
                for frequency in frequencies {
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    self.cos.push(cos as f32);
                    self.sin.push(sin as f32);
                }
            }
        }
    }
}

/// Makes a buffer exactly `len` long without giving its memory back.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    &mut buffer[..]
}

/// As many as a pass usually has sequences, without an allocation.
type Few<T> = SmallVec<[T; 16]>;

/// What is the same for every layer of a pass.
struct Pass<'a> {
    spans: &'a [Span<'a>],
    /// Runs of rows with the same adapter.
    adapters: &'a [(Range<usize>, &'a PackedAdapter)],
}

impl FastDecoder {
    /// Packs all weights; refuses a file that lacks one, or holds one that would not be used.
    pub(super) fn load(
        config: &ModelConfig,
        reader: WeightReader<'_>,
        cpu: Cpu,
    ) -> Result<Self, WeightError> {
        let mut pages = Pages::with_capacity(reader.packed_bytes());
        let vocab = (config.vocab, config.hidden);
        let embedding = reader.packed(TensorName::Embedding, vocab, &mut pages)?;
        let head = if reader.has(TensorName::Head) {
            reader.packed(TensorName::Head, vocab, &mut pages)?
        } else {
            embedding.clone()
        };
        let blocks = (0..config.layers)
            .map(|layer| Block::load(config, &reader, layer, &mut pages))
            .collect::<Result<Vec<_>, _>>()?;
        let output_norm = floats(&reader.norm(TensorName::OutputNorm)?)?;
        reader.finish()?;
        let quantised = blocks.iter().any(Block::is_quantised) || block::is_quantised(&head);
        let frequencies = |rope: &Rope| rope.frequencies(config.head_dim);
        let sliding = config.sliding.as_ref().map(|s| frequencies(&s.rope));
        let frequencies = (frequencies(&config.rope), sliding);
        Ok(Self { config: config.clone(), cpu, embedding, blocks, output_norm, head, frequencies, quantised })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The instruction set and threads it runs on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Whether some weight is quantised, and so the inputs of every product.
    pub fn takes_quantised_inputs(&self) -> bool {
        self.quantised
    }

    /// Bytes of all packed weight matrices.
    pub fn weight_bytes(&self) -> usize {
        let head = if self.head.is_same_memory(&self.embedding) { 0 } else { self.head.bytes() };
        self.embedding.bytes() + head + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }

    /// Bytes of weights that one decoded token reads: all but the embedding table.
    pub fn step_bytes(&self) -> usize {
        self.head.bytes() + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }

    /// Multiply-adds of one token's linear maps without the head, and of the head.
    pub fn multiply_adds(&self) -> (usize, usize) {
        (self.blocks.iter().map(Block::multiply_adds).sum(), self.head.rows() * self.head.columns())
    }

    /// The shape of this model's key-value cache.
    pub fn cache_shape(&self) -> CacheShape {
        let ModelConfig { layers, kv_heads, head_dim, .. } = self.config;
        CacheShape { layers, kv_heads, head_dim }
    }

    /// Runs the pieces together and returns the logits that they asked for, in order, of shape
    /// (positions, vocab).
    ///
    /// `cancelled` is asked before every layer; what the pass wrote into the pages is then incomplete.
    ///
    /// # Errors
    /// When a piece is empty, a token or position is out of range, or the caller cancels.
    ///
    /// # Panics
    /// When a piece has too few pages, or pages of another cache.
    pub fn forward<'w>(
        &self,
        pieces: &[Piece<'_>],
        cache: &mut KvCache,
        workspace: &'w mut Workspace,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<&'w [f32], DecodeError> {
        self.check(pieces)?;
        let mut spans: Few<Span<'_>> = Few::new();
        let mut adapters: Few<(Range<usize>, &PackedAdapter)> = Few::new();
        let mut rows = 0;
        for piece in pieces {
            let own = rows..rows + piece.tokens.len();
            rows = own.end;
            spans.push(Span { rows: own.clone(), position: piece.position, pages: piece.pages });
            let own = own.start.saturating_add(piece.before).min(own.end)..own.end;
            if let Some(adapter) = piece.adapter.filter(|_| !own.is_empty()) {
                match adapters.last_mut() {
                    Some((run, last)) if run.end == own.start && std::ptr::eq(*last, adapter) => {
                        run.end = own.end;
                    }
                    _ => adapters.push((own, adapter)),
                }
            }
        }
        let pass = Pass { spans: &spans, adapters: &adapters };
        workspace.global.fill(&self.frequencies.0, pieces);
        if let Some(frequencies) = &self.frequencies.1 {
            workspace.sliding.fill(frequencies, pieces);
        }

        let hidden = self.config.hidden;
        let x = sized(&mut workspace.residual, rows * hidden);
        let scale = self.config.embedding_scale as f32;
        for (piece, span) in pieces.iter().zip(&spans) {
            let own = &mut x[span.rows.start * hidden..span.rows.end * hidden];
            self.cpu.embed(&self.embedding, piece.tokens, scale, own);
        }
        for layer in 0..self.blocks.len() {
            if cancelled() {
                return Err(DecodeError::Cancelled);
            }
            self.layer(layer, &pass, cache, workspace);
        }
        Ok(self.logits(pieces, &spans, workspace))
    }

    fn check(&self, pieces: &[Piece<'_>]) -> Result<(), DecodeError> {
        if pieces.is_empty() || pieces.iter().any(|piece| piece.tokens.is_empty()) {
            return Err(DecodeError::Empty);
        }
        let (vocab, context) = (self.config.vocab, self.config.context);
        for piece in pieces {
            let asked = piece.position + piece.tokens.len();
            if asked > context {
                return Err(DecodeError::Context { asked, context });
            }
            if let Some(&token) = piece.tokens.iter().find(|&&t| t as usize >= vocab) {
                return Err(DecodeError::Token { token, vocab });
            }
        }
        Ok(())
    }

    fn layer(&self, layer: usize, pass: &Pass<'_>, cache: &mut KvCache, w: &mut Workspace) {
        let (config, cpu, block) = (&self.config, &self.cpu, &self.blocks[layer]);
        let eps = config.norm_eps as f32;
        let rows = w.residual.len() / config.hidden;
        let deltas = |p: Projection| -> Few<Delta<'_>> {
            pass.adapters.iter().filter_map(|(rows, adapter)| adapter.delta(layer, p, rows.clone())).collect()
        };

        let [dq, dk, dv] = [Projection::Q, Projection::K, Projection::V].map(deltas);
        [&dq, &dk, &dv].into_iter().for_each(|d| cpu.expect(d));
        cpu.normalise(&w.residual, &block.attention_norm, eps, self.quantised, &mut w.normed);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let [q, k, v] = &mut w.heads;
        let (q, k, v) = (sized(q, rows * q_width), sized(k, rows * kv_width), sized(v, rows * kv_width));
        cpu.linear(
            &w.normed,
            &[block.part(Projection::Q, &dq), block.part(Projection::K, &dk), block.part(Projection::V, &dv)],
            &mut [
                Output { to: &mut *q, stride: q_width, add: false },
                Output { to: &mut *k, stride: kv_width, add: false },
                Output { to: &mut *v, stride: kv_width, add: false },
            ],
        );
        let window = config.layer_attention(layer).1;
        let angles = if window.is_some() { &w.sliding } else { &w.global };
        let heads = Heads {
            norms: block.qk_norm.as_ref().map(|(q, k)| (q.as_slice(), k.as_slice())),
            eps,
            rotation: (&angles.cos, &angles.sin),
            scale: config.attention_scale as f32,
        };
        let d = deltas(Projection::O);
        cpu.expect(&d);
        cpu.prepare_heads(layer, [&mut *q, k, v], heads, pass.spans, cache);
        let window = window.unwrap_or(usize::MAX);
        let attention = Attention { layer, heads: config.heads, window, whole: false };
        cpu.attention(attention, q, pass.spans, cache, &mut w.attended);
        if self.quantised {
            cpu.quantise(&mut w.attended);
        }
        let part = block.part(Projection::O, &d);
        self.add_residual(&w.attended, part, &block.post_attention_norm, &mut w.projected, &mut w.residual);

        let [dg, du, d] = [Projection::Gate, Projection::Up, Projection::Down].map(deltas);
        [&dg, &du, &d].into_iter().for_each(|d| cpu.expect(d));
        cpu.normalise(&w.residual, &block.ffn_norm, eps, self.quantised, &mut w.normed);
        let activation = match config.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::Gelu,
        };
        let parts = [&block.part(Projection::Gate, &dg), &block.part(Projection::Up, &du)];
        cpu.gated(
            &w.normed,
            parts,
            activation,
            self.quantised && config.ffn.is_multiple_of(32),
            &mut w.gated,
        );
        let part = block.part(Projection::Down, &d);
        self.add_residual(&w.gated, part, &block.post_ffn_norm, &mut w.projected, &mut w.residual);
    }

    /// residual += norm(part · x), the norm where there is one.
    fn add_residual(
        &self,
        x: &Activations,
        part: Part<'_>,
        norm: &Option<Vec<f32>>,
        projected: &mut Vec<f32>,
        residual: &mut [f32],
    ) {
        let stride = self.config.hidden;
        let Some(norm) = norm else {
            return self.cpu.linear(x, &[part], &mut [Output { to: residual, stride, add: true }]);
        };
        let y = sized(projected, residual.len());
        self.cpu.linear(x, &[part], &mut [Output { to: &mut *y, stride, add: false }]);
        self.cpu.normalise_in_place(y, norm, self.config.norm_eps as f32);
        residual.iter_mut().zip(y).for_each(|(r, y)| *r += *y);
    }

    fn logits<'w>(&self, pieces: &[Piece<'_>], spans: &[Span<'_>], w: &'w mut Workspace) -> &'w [f32] {
        let (hidden, vocab) = (self.config.hidden, self.config.vocab);
        w.picked.clear();
        for (piece, span) in pieces.iter().zip(spans) {
            let first = span.rows.end - piece.logits.min(piece.tokens.len());
            w.picked.extend_from_slice(&w.residual[first * hidden..span.rows.end * hidden]);
        }
        let rows = w.picked.len() / hidden;
        let eps = self.config.norm_eps as f32;
        let part = Part { weight: &self.head, bias: None, deltas: &[] };
        if rows == 0 || !block::is_quantised(&self.head) {
            let to = sized(&mut w.logits, rows * vocab);
            if rows > 0 {
                self.cpu.normalise(&w.picked, &self.output_norm, eps, false, &mut w.normed);
                self.cpu.linear(&w.normed, &[part], &mut [Output { to, stride: vocab, add: false }]);
            }
            return &mut w.logits;
        }
        // The last product's rounding goes straight into the probabilities: of all places, 16-bit inputs cost least
        // here and count most.
        self.cpu.normalise(&w.picked, &self.output_norm, eps, false, &mut w.normed);
        self.cpu.split(&w.normed, &mut w.split);
        let to = sized(&mut w.logits, 2 * rows * vocab);
        self.cpu.linear(&w.split, &[part], &mut [Output { to: &mut *to, stride: vocab, add: false }]);
        let (high, low) = to.split_at_mut(rows * vocab);
        high.iter_mut().zip(low).for_each(|(high, low)| *high += *low);
        w.logits.truncate(rows * vocab);
        &mut w.logits
    }
}

/// A tensor's numbers.
pub(super) fn floats(tensor: &candle_core::Tensor) -> Result<Vec<f32>, WeightError> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
}
