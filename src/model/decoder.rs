//! The reference decoder: one implementation on candle tensors for every supported architecture.
//!
//! It is the yardstick that faster decoders are held to, and the graph that training differentiates.
//! Nothing here asks for the architecture: [`ModelConfig`] says what a block is made of.

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::config::{Activation, ModelConfig};
use super::kv::KvCache;
use super::linear::Linear;
use super::lora::Adapter;
use super::ops::{Rotation, causal_mask, rms_norm, softmax};
use super::tensors::{Norm, Projection, TensorName};
use super::weights::{Weight, WeightError, WeightReader, projection_weight};

/// Why a forward pass did not finish.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The caller no longer wants the result.
    #[error("cancelled")]
    Cancelled,
    /// Nothing to run: a pass needs at least one token.
    #[error("no token to run")]
    Empty,
    /// A token id that the model does not have.
    #[error("token {token} is outside of the vocabulary of {vocab}")]
    Token {
        /// The id.
        token: u32,
        /// How many there are.
        vocab: usize,
    },
    /// More positions than the model was made for.
    #[error("{asked} positions are more than the model's context of {context}")]
    Context {
        /// Positions asked for.
        asked: usize,
        /// Positions the model has.
        context: usize,
    },
    /// From candle.
    #[error("tensor arithmetic: {0}")]
    Candle(#[from] candle_core::Error),
}

/// Which positions' logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// The last position's: shape (1, vocab).
    Last,
    /// Every position's: shape (positions, vocab).
    All,
}

#[derive(Debug)]
struct Block {
    attention_norm: Tensor,
    qk_norm: Option<(Tensor, Tensor)>,
    post_attention_norm: Option<Tensor>,
    ffn_norm: Tensor,
    post_ffn_norm: Option<Tensor>,
    linears: [Linear; Projection::ALL.len()],
}

/// A model's weights on candle, ready to decode.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    embedding: Weight,
    blocks: Vec<Block>,
    output_norm: Tensor,
    head: Linear,
}

/// What is the same for every layer of one forward pass.
struct Pass<'a> {
    config: &'a ModelConfig,
    start: usize,
    count: usize,
    adapter: Option<&'a Adapter>,
    /// Rotation and mask of global layers, and of sliding ones.
    global: (Rotation, Option<Tensor>),
    sliding: Option<(Rotation, Option<Tensor>)>,
}

impl Decoder {
    /// Reads all weights; refuses a file that lacks one, or holds one that would not be used.
    pub(super) fn load(
        config: &ModelConfig,
        reader: WeightReader<'_>,
        device: &Device,
    ) -> Result<Self, WeightError> {
        let vocab_shape = (config.vocab, config.hidden);
        let embedding = reader.matrix(TensorName::Embedding, vocab_shape)?;
        let head = if reader.has(TensorName::Head) {
            reader.matrix(TensorName::Head, vocab_shape)?
        } else {
            embedding.clone()
        };
        let blocks =
            (0..config.layers).map(|layer| Block::load(config, &reader, layer)).collect::<Result<_, _>>()?;
        let output_norm = reader.norm(TensorName::OutputNorm)?;
        reader.finish()?;
        Ok(Self {
            config: config.clone(),
            device: device.clone(),
            embedding,
            blocks,
            output_norm,
            head: Linear::new(head, None),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An empty key-value cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.config.layers)
    }

    /// Runs `tokens`, the continuation of what `cache` holds, and returns logits as 32-bit floats.
    ///
    /// `cancelled` is asked before every layer, so that a long prompt can be dropped halfway; the cache
    /// must then be thrown away.
    ///
    /// # Errors
    /// When a token or position is out of range, the caller cancels, or candle fails.
    pub fn forward(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        adapter: Option<&Adapter>,
        logits: Logits,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Tensor, DecodeError> {
        let (start, count) = (cache.len(), tokens.len());
        if count == 0 {
            return Err(DecodeError::Empty);
        }
        if start + count > self.config.context {
            return Err(DecodeError::Context { asked: start + count, context: self.config.context });
        }
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= self.config.vocab) {
            return Err(DecodeError::Token { token, vocab: self.config.vocab });
        }
        let pass = self.pass(start, count, adapter)?;
        let mut x = (self.embed(tokens)? * self.config.embedding_scale)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            if cancelled() {
                return Err(DecodeError::Cancelled);
            }
            x = block.forward(layer, &x, cache, &pass)?;
        }
        cache.advance(count);
        if logits == Logits::Last {
            x = x.narrow(0, count - 1, 1)?;
        }
        let x = rms_norm(&x, &self.output_norm, self.config.norm_eps)?;
        Ok(self.head.forward(&x, None)?)
    }

    fn pass<'a>(
        &'a self,
        start: usize,
        count: usize,
        adapter: Option<&'a Adapter>,
    ) -> Result<Pass<'a>, DecodeError> {
        let config = &self.config;
        let parts = |rope, window| -> Result<_, candle_core::Error> {
            Ok((
                Rotation::new(rope, config.head_dim, start, count, &self.device)?,
                causal_mask(start, count, window, &self.device)?,
            ))
        };
        let sliding = match &config.sliding {
            Some(s) => Some(parts(&s.rope, Some(s.window))?),
            None => None,
        };
        Ok(Pass { config, start, count, adapter, global: parts(&config.rope, None)?, sliding })
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor, candle_core::Error> {
        let ids = Tensor::new(tokens, &self.device)?;
        match &self.embedding {
            Weight::Quantised(q) => embed_quantised(q, &ids),
            Weight::Dense(w) => w.index_select(&ids, 0),
        }
    }
}

fn embed_quantised(table: &QTensor, ids: &Tensor) -> Result<Tensor, candle_core::Error> {
    table.embedding(ids)?.to_dtype(DType::F32)
}

impl Block {
    fn load(config: &ModelConfig, reader: &WeightReader<'_>, layer: usize) -> Result<Self, WeightError> {
        let norm = |norm| reader.norm(TensorName::Norm(layer, norm));
        let linear = |p: Projection| -> Result<Linear, WeightError> {
            let has_bias = config.qkv_bias && matches!(p, Projection::Q | Projection::K | Projection::V);
            let bias = match has_bias {
                true => Some(reader.vector(TensorName::Bias(layer, p), p.shape(config).0)?),
                false => None,
            };
            Ok(Linear::new(projection_weight(reader, layer, p)?, bias))
        };
        let qk_norm = match config.qk_norm {
            true => Some((norm(Norm::Query)?, norm(Norm::Key)?)),
            false => None,
        };
        let (post_attention_norm, post_ffn_norm) = match config.post_norms {
            true => (Some(norm(Norm::PostAttention)?), Some(norm(Norm::PostFfn)?)),
            false => (None, None),
        };
        let [q, k, v, o, gate, up, down] = Projection::ALL;
        Ok(Self {
            attention_norm: norm(Norm::Attention)?,
            qk_norm,
            post_attention_norm,
            ffn_norm: norm(Norm::Ffn)?,
            post_ffn_norm,
            linears: [
                linear(q)?,
                linear(k)?,
                linear(v)?,
                linear(o)?,
                linear(gate)?,
                linear(up)?,
                linear(down)?,
            ],
        })
    }

    /// One block over x of shape (positions, hidden).
    fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        cache: &mut KvCache,
        pass: &Pass<'_>,
    ) -> Result<Tensor, candle_core::Error> {
        let eps = pass.config.norm_eps;
        let post = |y: Tensor, norm: &Option<Tensor>| match norm {
            Some(w) => rms_norm(&y, w, eps),
            None => Ok(y),
        };
        let y = self.attention(layer, &rms_norm(x, &self.attention_norm, eps)?, cache, pass)?;
        let x = (x + post(y, &self.post_attention_norm)?)?;
        let y = self.feed_forward(layer, &rms_norm(&x, &self.ffn_norm, eps)?, pass)?;
        x + post(y, &self.post_ffn_norm)?
    }

    fn linear(
        &self,
        p: Projection,
        layer: usize,
        x: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor, candle_core::Error> {
        self.linears[p as usize].forward(x, pass.adapter.and_then(|a| a.pair(layer, p)))
    }

    fn attention(
        &self,
        layer: usize,
        x: &Tensor,
        cache: &mut KvCache,
        pass: &Pass<'_>,
    ) -> Result<Tensor, candle_core::Error> {
        let config = pass.config;
        let (n, head_dim) = (pass.count, config.head_dim);
        let window = config.layer_attention(layer).1;
        let (rotation, mask) = match (&pass.sliding, window) {
            (Some(sliding), Some(_)) => sliding,
            _ => &pass.global,
        };
        // (positions, heads · head_dim) → (heads, positions, head_dim)
        let heads_first = |y: Tensor, heads: usize| y.reshape((n, heads, head_dim))?.transpose(0, 1);
        let mut q = heads_first(self.linear(Projection::Q, layer, x, pass)?, config.heads)?;
        let mut k = heads_first(self.linear(Projection::K, layer, x, pass)?, config.kv_heads)?;
        let v = heads_first(self.linear(Projection::V, layer, x, pass)?, config.kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = rms_norm(&q.contiguous()?, q_norm, config.norm_eps)?;
            k = rms_norm(&k.contiguous()?, k_norm, config.norm_eps)?;
        }
        let (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);
        let (k, v) = cache.append(layer, pass.start, &k, &v)?;

        // Query heads that share a key-value head become rows of one product.
        let group_rows = config.heads / config.kv_heads * n;
        let q = q.contiguous()?.reshape((config.kv_heads, group_rows, head_dim))?;
        let scores = (q.matmul(&k.t()?)? * config.attention_scale)?;
        let keys = pass.start + n;
        let weights = match mask {
            Some(mask) => softmax(&scores.reshape((config.heads, n, keys))?.broadcast_add(mask)?)?
                .reshape((config.kv_heads, group_rows, keys))?,
            None => softmax(&scores)?,
        };
        let y = weights
            .matmul(&v)?
            .reshape((config.heads, n, head_dim))?
            .transpose(0, 1)?
            .reshape((n, config.heads * head_dim))?;
        self.linear(Projection::O, layer, &y, pass)
    }

    fn feed_forward(&self, layer: usize, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor, candle_core::Error> {
        let gate = self.linear(Projection::Gate, layer, x, pass)?;
        let up = self.linear(Projection::Up, layer, x, pass)?;
        let gate = match pass.config.activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        self.linear(Projection::Down, layer, &(gate * up)?, pass)
    }
}
