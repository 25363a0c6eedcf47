//! Names of a model's tensors in its two formats.
//!
//! The decoder asks for [`TensorName`]s; where the bytes come from is the business of
//! [`weights`](super::weights).

use std::fmt;

use super::config::{Architecture, ModelConfig};

/// The seven linear maps of a block: what a LoRA adapter can attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
    /// Attention output.
    O,
    /// Feed-forward gate.
    Gate,
    /// Feed-forward up.
    Up,
    /// Feed-forward down.
    Down,
}

impl Projection {
    /// All of them, in the order in which a block runs them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module's name in Hugging Face checkpoints and PEFT adapters, such as `q_proj`.
    pub fn hf_module(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The block of a layer that holds it in Hugging Face checkpoints.
    pub fn hf_block(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }

    /// Its name in GGUF files, such as `attn_q`.
    pub fn gguf(self) -> &'static str {
        match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::O => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }

    /// Rows and columns of its weight: (outputs, inputs).
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Self::Q => (q, config.hidden),
            Self::K | Self::V => (kv, config.hidden),
            Self::O => (config.hidden, q),
            Self::Gate | Self::Up => (config.ffn, config.hidden),
            Self::Down => (config.hidden, config.ffn),
        }
    }

    /// The number of heads whose rows llama-architecture GGUF files interleave, for query and key.
    pub fn interleaved_heads(self, config: &ModelConfig) -> Option<usize> {
        match self {
            Self::Q if config.interleaved_qk => Some(config.heads),
            Self::K if config.interleaved_qk => Some(config.kv_heads),
            _ => None,
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hf_module())
    }
}

/// The norms of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Norm {
    /// Before attention.
    Attention,
    /// Of each query head.
    Query,
    /// Of each key head.
    Key,
    /// After attention, before the residual sum.
    PostAttention,
    /// Before the feed-forward block.
    Ffn,
    /// After the feed-forward block, before the residual sum.
    PostFfn,
}

/// A tensor of the model, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorName {
    /// Token embeddings.
    Embedding,
    /// The norm before the head.
    OutputNorm,
    /// The head; absent when tied to the embeddings.
    Head,
    /// A projection's weight in a layer.
    Weight(usize, Projection),
    /// A projection's bias in a layer.
    Bias(usize, Projection),
    /// A norm's weight in a layer.
    Norm(usize, Norm),
}

impl TensorName {
    /// Its name in a GGUF file.
    pub fn gguf(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".into(),
            Self::OutputNorm => "output_norm.weight".into(),
            Self::Head => "output.weight".into(),
            Self::Weight(layer, p) => format!("blk.{layer}.{}.weight", p.gguf()),
            Self::Bias(layer, p) => format!("blk.{layer}.{}.bias", p.gguf()),
            Self::Norm(layer, norm) => {
                let name = match norm {
                    Norm::Attention => "attn_norm",
                    Norm::Query => "attn_q_norm",
                    Norm::Key => "attn_k_norm",
                    Norm::PostAttention => "post_attention_norm",
                    Norm::Ffn => "ffn_norm",
                    Norm::PostFfn => "post_ffw_norm",
                };
                format!("blk.{layer}.{name}.weight")
            }
        }
    }

    /// Its name in a Hugging Face checkpoint.
    pub fn hf(self, architecture: Architecture) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::OutputNorm => "model.norm.weight".into(),
            Self::Head => "lm_head.weight".into(),
            Self::Weight(layer, p) => {
                format!("model.layers.{layer}.{}.{}.weight", p.hf_block(), p.hf_module())
            }
            Self::Bias(layer, p) => format!("model.layers.{layer}.{}.{}.bias", p.hf_block(), p.hf_module()),
            Self::Norm(layer, norm) => {
                // Llama calls the norm before the feed-forward block "post attention"; Gemma 3 has one
                // on each side and uses that name for the one that really follows attention.
                let name = match norm {
                    Norm::Attention => "input_layernorm",
                    Norm::Query => "self_attn.q_norm",
                    Norm::Key => "self_attn.k_norm",
                    Norm::PostAttention => "post_attention_layernorm",
                    Norm::Ffn if architecture == Architecture::Gemma3 => "pre_feedforward_layernorm",
                    Norm::Ffn => "post_attention_layernorm",
                    Norm::PostFfn => "post_feedforward_layernorm",
                };
                format!("model.layers.{layer}.{name}.weight")
            }
        }
    }
}
