//! A BERT encoder on the kernels (Devlin et al. 2019): embeddings, blocks of attention over the whole text and a feed-forward layer,
//! each with a residual connection and LayerNorm behind it, and the mean over all tokens.

use super::adapter::{AdapterShape, EncoderMap, PackedEncoderAdapter};
use crate::kernels::{
    Activations, Affine, Attention, CacheShape, Cpu, Delta, Heads, KvCache, Matrix, Output, Part, Span,
};

/// A linear map with a bias.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Vec<f32>,
}

impl Linear {
    /// The map, with what adapters add to it.
    pub(crate) fn part<'a>(&'a self, deltas: &'a [Delta<'a>]) -> Part<'a> {
        Part { weight: &self.weight, bias: Some(&self.bias), deltas }
    }
}

/// A LayerNorm.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl Norm {
    pub(crate) fn affine(&self, eps: f32) -> Affine<'_> {
        Affine { weight: &self.weight, bias: &self.bias, eps }
    }
}

/// A block.
#[derive(Debug)]
pub(crate) struct Block {
    /// Of queries, keys and values.
    pub(crate) attention: [Linear; 3],
    pub(crate) attention_out: Linear,
    pub(crate) attention_norm: Norm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) ffn_norm: Norm,
}

/// The vector of a text from those of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The mean of all.
    Mean,
    /// The first one.
    First,
}

/// The shape of an encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab: usize,
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    /// The row of the first token's position: RoBERTa leaves some free.
    pub(crate) first_position: usize,
    pub(crate) eps: f32,
    pub(crate) pooling: Pooling,
}

impl Shape {
    /// Says what is impossible about it.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { hidden, layers, heads, ffn, vocab, positions, first_position, .. } = *self;
        let bounds = [
            ("hidden size", hidden, 1 << 14),
            ("number of layers", layers, 1 << 10),
            ("number of heads", heads, 1 << 10),
            ("feed-forward size", ffn, 1 << 16),
            ("vocabulary", vocab, 1 << 22),
            ("number of positions", positions, 1 << 16),
        ];
        for (what, value, most) in bounds {
            if value == 0 || value > most {
                return Err(format!("a {what} of {value}"));
            }
        }
        if !hidden.is_multiple_of(heads) || !(hidden / heads).is_multiple_of(2) {
            return Err(format!("{heads} heads do not share {hidden} numbers evenly"));
        }
        if !hidden.is_multiple_of(32) || !ffn.is_multiple_of(32) {
            return Err(format!("sizes of {hidden} and {ffn} that are no multiples of 32"));
        }
        if first_position >= positions || !self.eps.is_finite() {
            return Err("positions or an epsilon that make no sense".to_owned());
        }
        Ok(())
    }
}

/// An encoder.
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) shape: Shape,
    pub(crate) words: Matrix,
    /// Of shape (positions, hidden), what every token has in common added.
    pub(crate) positions: Vec<f32>,
    pub(crate) norm: Norm,
    pub(crate) blocks: Vec<Block>,
}

/// Buffers that are kept from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    x: Activations,
    heads: [Vec<f32>; 3],
    attended: Activations,
    projected: Vec<f32>,
    middle: Activations,
    /// Cosines and sines of no rotation.
    still: (Vec<f32>, Vec<f32>),
    cache: Option<KvCache>,
}

impl Encoder {
    /// Numbers of a vector.
    pub(super) fn dimensions(&self) -> usize {
        self.shape.hidden
    }

    /// The sizes of an adapter of this rank.
    pub(crate) fn adapter_shape(&self, rank: usize) -> AdapterShape {
        let Shape { layers, hidden, ffn, .. } = self.shape;
        AdapterShape { layers, hidden, ffn, rank }
    }

    /// A linear map.
    pub(crate) fn linear(&self, layer: usize, map: EncoderMap) -> &Linear {
        let block = &self.blocks[layer];
        match map {
            EncoderMap::Query => &block.attention[0],
            EncoderMap::Key => &block.attention[1],
            EncoderMap::Value => &block.attention[2],
            EncoderMap::AttentionOut => &block.attention_out,
            EncoderMap::Up => &block.up,
            EncoderMap::Down => &block.down,
        }
    }

    /// Adds the vectors of some texts, given as token ids, to `vectors`.
    pub(super) fn embed(
        &self,
        cpu: &Cpu,
        texts: &[Vec<u32>],
        work: &mut Workspace,
        vectors: &mut Vec<Vec<f32>>,
    ) {
        let hidden = self.shape.hidden;
        let mut rows = self.states(cpu, texts, None, work);
        for text in texts {
            let (own, others) = rows.split_at(text.len() * hidden);
            vectors.push(pool(own, hidden, self.shape.pooling));
            rows = others;
        }
    }

    /// What the last block gives for each token of some texts, of shape (tokens, hidden), with an adapter if there is one.
    pub(crate) fn states<'w>(
        &self,
        cpu: &Cpu,
        texts: &[Vec<u32>],
        adapter: Option<&PackedEncoderAdapter>,
        work: &'w mut Workspace,
    ) -> &'w [f32] {
        let rows: usize = texts.iter().map(Vec::len).sum();
        if rows == 0 {
            return &[];
        }
        let Shape { hidden, heads, .. } = self.shape;
        let pages = self.make_room(texts, work);
        let mut spans = Vec::with_capacity(texts.len());
        let mut row = 0;
        for (text, pages) in texts.iter().zip(&pages) {
            spans.push(Span { rows: row..row + text.len(), position: 0, pages });
            row += text.len();
        }
        self.start(cpu, texts, rows, work);
        let dim = hidden / heads;
        let (cos, sin) = &work.still;
        let prepared = Heads {
            norms: None,
            eps: 0.0,
            rotation: (&cos[..rows * (dim / 2)], &sin[..rows * (dim / 2)]),
            scale: 1.0 / (dim as f32).sqrt(),
        };
        let Some(cache) = &mut work.cache else { return &[] };
        for (layer, block) in self.blocks.iter().enumerate() {
            let deltas: [Option<Delta<'_>>; EncoderMap::ALL.len()] =
                EncoderMap::ALL.map(|map| Some(adapter?.delta(layer, map, rows)));
            let part = |map: EncoderMap| self.linear(layer, map).part(deltas[map as usize].as_slice());
            let [q, k, v] = work.heads.each_mut().map(|head| {
                head.resize(rows * hidden, 0.0);
                &mut head[..]
            });
            let parts = [EncoderMap::Query, EncoderMap::Key, EncoderMap::Value].map(part);
            cpu.linear(&work.x, &parts, &mut [rows_of(q, hidden), rows_of(k, hidden), rows_of(v, hidden)]);
            cpu.prepare_heads(0, [&mut *q, k, v], prepared, &spans, cache);
            let attention = Attention { layer: 0, heads, window: usize::MAX, whole: true };
            cpu.attention(attention, q, &spans, cache, &mut work.attended);
            cpu.quantise(&mut work.attended);
            work.projected.resize(rows * hidden, 0.0);
            cpu.linear(
                &work.attended,
                &[part(EncoderMap::AttentionOut)],
                &mut [rows_of(&mut work.projected, hidden)],
            );
            cpu.add_layer_norm(&mut work.x, &work.projected, block.attention_norm.affine(self.shape.eps));
            let ffn = self.shape.ffn;
            work.middle.resize(rows, ffn);
            let middle = rows_of(work.middle.floats_mut(), ffn);
            cpu.linear(&work.x, &[part(EncoderMap::Up)], &mut [middle]);
            cpu.gelu(&mut work.middle);
            cpu.linear(&work.middle, &[part(EncoderMap::Down)], &mut [rows_of(&mut work.projected, hidden)]);
            cpu.add_layer_norm(&mut work.x, &work.projected, block.ffn_norm.affine(self.shape.eps));
        }
        work.x.floats()
    }

    /// Words and positions of some texts before the first norm, of shape (tokens, hidden).
    pub(crate) fn inputs(&self, cpu: &Cpu, texts: &[Vec<u32>], to: &mut Vec<f32>) {
        let Shape { hidden, first_position, .. } = self.shape;
        let ids: Vec<u32> = texts.iter().flatten().copied().collect();
        to.resize(ids.len() * hidden, 0.0);
        cpu.embed(&self.words, &ids, 1.0, to);
        let positions = texts.iter().flat_map(|text| {
            self.positions[first_position * hidden..(first_position + text.len()) * hidden].iter()
        });
        to.iter_mut().zip(positions).for_each(|(number, position)| *number += position);
    }

    /// Pages for keys and values of each text, and a cache that holds them.
    fn make_room(&self, texts: &[Vec<u32>], work: &mut Workspace) -> Vec<Vec<u32>> {
        let Shape { hidden, heads, .. } = self.shape;
        let mut next = 0u32;
        let mut take = |text: &Vec<u32>| {
            let count = text.len().div_ceil(KvCache::PAGE) as u32;
            next += count;
            (next - count..next).collect()
        };
        let pages: Vec<Vec<u32>> = texts.iter().map(&mut take).collect();
        let shape = CacheShape { layers: 1, kv_heads: heads, head_dim: hidden / heads };
        let fits = |cache: &KvCache| cache.shape() == shape && cache.pages() >= next as usize;
        if !work.cache.as_ref().is_some_and(fits) {
            work.cache = Some(KvCache::new(shape, next as usize));
        }
        pages
    }

    /// What the first block reads: words and positions, normalised.
    fn start(&self, cpu: &Cpu, texts: &[Vec<u32>], rows: usize, work: &mut Workspace) {
        let Shape { hidden, heads, eps, .. } = self.shape;
        self.inputs(cpu, texts, &mut work.projected);
        work.x.resize(rows, hidden);
        work.x.floats_mut().fill(0.0);
        cpu.add_layer_norm(&mut work.x, &work.projected, self.norm.affine(eps));
        let angles = rows * (hidden / heads / 2);
        if work.still.0.len() < angles {
            work.still = (vec![1.0; angles], vec![0.0; angles]);
        }
    }
}

/// Where rows go that lie one behind the other.
fn rows_of(to: &mut [f32], stride: usize) -> Output<'_> {
    Output { to, stride, add: false }
}

/// The vector of a text, of unit length.
fn pool(rows: &[f32], hidden: usize, pooling: Pooling) -> Vec<f32> {
    let mut sums = vec![0f64; hidden];
    let counted = match pooling {
        Pooling::Mean => rows,
        Pooling::First => &rows[..hidden],
    };
    for row in counted.chunks_exact(hidden) {
        sums.iter_mut().zip(row).for_each(|(sum, number)| *sum += f64::from(*number));
    }
    let length = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
    // A vector of zeros has no direction; it stays what it is.
    let factor = if length > 0.0 { 1.0 / length } else { 1.0 };
    sums.into_iter().map(|sum| (sum * factor) as f32).collect()
}
