//! What a decoder-only model is made of, read from GGUF metadata or from a Hugging Face `config.json`.
//!
//! One [`ModelConfig`] drives every decoder; nothing else in the crate asks which architecture it runs.

use std::path::Path;

use serde_json::Value as Json;

use super::gguf::{GgufError, Header};

/// The families whose shape [`ModelConfig`] can describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, SmolLM2 and whatever else calls itself `llama`.
    Llama,
    /// Qwen2 and Qwen2.5: biases on query, key and value.
    Qwen2,
    /// Qwen3: per-head norms of query and key.
    Qwen3,
    /// Gemma 3 (text): norms on both sides of a block, sliding windows, GELU.
    Gemma3,
}

impl Architecture {
    /// All of them, for messages.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3];

    /// The name in GGUF metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name {
            "gemma3_text" => Some(Self::Gemma3),
            _ => Self::ALL.into_iter().find(|a| a.as_str() == name),
        }
    }
}

/// The gate's non-linearity in the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// How rotary frequencies are stretched for contexts longer than those of pretraining.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by one factor.
    Linear(f64),
    /// Every frequency divided by a factor of its own, `head_dim / 2` of them (Llama 3).
    PerFrequency(Vec<f32>),
}

/// Rotary embedding of one kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Stretching.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Radians per position, for each of the `head_dim / 2` pairs of elements.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let base = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                match &self.scaling {
                    RopeScaling::None => base,
                    RopeScaling::Linear(factor) => base / factor,
                    RopeScaling::PerFrequency(divisors) => {
                        base / f64::from(divisors.get(i).copied().unwrap_or(1.0))
                    }
                }
            })
            .collect()
    }
}

/// Layers that see only the last `window` positions.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingWindow {
    /// How many positions a query sees, itself included.
    pub window: usize,
    /// Every `pattern`-th layer is global, the others slide.
    pub pattern: usize,
    /// The rotary embedding of the sliding layers.
    pub rope: Rope,
}

/// Shape and constants of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Rows of the embedding, at least the number of tokens.
    pub vocab: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f64,
    /// Added to norm weights when they are loaded (Gemma checkpoints store w − 1; GGUF files store w).
    pub norm_offset: f64,
    /// Rotary embedding of the global layers.
    pub rope: Rope,
    /// Sliding layers, if there are any.
    pub sliding: Option<SlidingWindow>,
    /// Query, key and value have biases.
    pub qkv_bias: bool,
    /// Queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Attention and feed-forward outputs are normalised before they join the residual stream.
    pub post_norms: bool,
    /// The feed-forward gate.
    pub activation: Activation,
    /// Factor on embeddings (Gemma: √hidden).
    pub embedding_scale: f64,
    /// Factor on attention scores.
    pub attention_scale: f64,
    /// The rows of query and key are stored as interleaved pairs (llama-architecture GGUF).
    pub interleaved_qk: bool,
}

/// Why a model's configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The architecture is not one of ours.
    #[error("architecture `{0}` is not supported; shishin runs llama, qwen2, qwen3 and gemma3")]
    Architecture(String),
    /// A metadata key is missing or wrong.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// `config.json` cannot be read.
    #[error("cannot read {path}: {reason}")]
    Json {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The numbers do not fit together.
    #[error("impossible model configuration: {0}")]
    Impossible(String),
}

impl ModelConfig {
    /// The rotary embedding and window of a layer.
    pub fn layer_attention(&self, layer: usize) -> (&Rope, Option<usize>) {
        match &self.sliding {
            Some(s) if !(layer + 1).is_multiple_of(s.pattern) => (&s.rope, Some(s.window)),
            _ => (&self.rope, None),
        }
    }

    /// Bytes of key-value cache per position at 32 bits a number.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.layers * self.kv_heads * self.head_dim * 2 * size_of::<f32>()
    }

    /// Sets the divisors of the rotary frequencies that a file brings (`rope_freqs.weight`).
    ///
    /// # Errors
    /// When there is not one positive number for each frequency.
    pub(super) fn set_rope_factors(&mut self, factors: Vec<f32>) -> Result<(), ConfigError> {
        if factors.len() != self.head_dim / 2 || !factors.iter().all(|f| f.is_finite() && *f > 0.0) {
            return Err(ConfigError::Impossible(format!(
                "rope_freqs.weight must be {} positive numbers",
                self.head_dim / 2
            )));
        }
        self.rope.scaling = RopeScaling::PerFrequency(factors);
        Ok(())
    }

    /// Reads the configuration of a GGUF file.
    ///
    /// # Errors
    /// When the architecture is unknown, a key is missing, or the numbers do not fit together.
    pub fn from_gguf(header: &Header) -> Result<Self, ConfigError> {
        let name = header.str("general.architecture")?;
        let architecture =
            Architecture::parse(name).ok_or_else(|| ConfigError::Architecture(name.to_owned()))?;
        let key = |suffix: &str| format!("{name}.{suffix}");
        let heads = header.usize(&key("attention.head_count"))?;
        let hidden = header.usize(&key("embedding_length"))?;
        let head_dim = match header.usize_opt(&key("attention.key_length"))? {
            Some(dim) => dim,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let vocab = header
            .tensor("token_embd.weight")
            .and_then(|t| t.dims.first().copied())
            .ok_or_else(|| GgufError::MissingTensor("token_embd.weight".into()))?;
        let scaling = match header.str_opt(&key("rope.scaling.type"))? {
            None | Some("none") => match header.float_opt(&key("rope.scaling.factor"))? {
                Some(factor) if factor != 1.0 => RopeScaling::Linear(factor),
                _ => RopeScaling::None,
            },
            Some("linear") => RopeScaling::Linear(header.float(&key("rope.scaling.factor"))?),
            Some(other) => {
                return Err(ConfigError::Impossible(format!("rope scaling `{other}` is not supported")));
            }
        };
        let mut config = Self {
            hidden,
            layers: header.usize(&key("block_count"))?,
            heads,
            kv_heads: header.usize_opt(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            ffn: header.usize(&key("feed_forward_length"))?,
            vocab,
            context: header.usize(&key("context_length"))?,
            norm_eps: header.float(&key("attention.layer_norm_rms_epsilon"))?,
            rope: Rope {
                theta: header.float_opt(&key("rope.freq_base"))?.unwrap_or(default_theta(architecture)),
                scaling,
            },
            interleaved_qk: architecture == Architecture::Llama,
            ..Self::family(architecture, hidden, head_dim)
        };
        if architecture == Architecture::Gemma3
            && let Some(window) = header.usize_opt(&key("attention.sliding_window"))?
        {
            config.sliding = Some(gemma_window(
                window,
                header.usize_opt(&key("attention.sliding_window_pattern"))?,
                header.float_opt(&key("rope.local_freq_base"))?,
            ));
        }
        if architecture == Architecture::Gemma3 && config.layers == GEMMA_27B_LAYERS {
            // The one size whose scores are not scaled by the head's width; the metadata does not say so.
            config.attention_scale = 1.0 / (hidden as f64 / heads as f64).sqrt();
        }
        // GGUF files of Gemma hold the norm weights with the one already added.
        config.norm_offset = 0.0;
        config.checked()
    }

    /// Reads the configuration from a Hugging Face folder's `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, the architecture is unknown, or the numbers do not fit together.
    pub fn from_hf(path: &Path) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError::Json { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let json: Json = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
        let name = json["model_type"].as_str().ok_or_else(|| fail("no string `model_type`".into()))?;
        let architecture =
            Architecture::parse(name).ok_or_else(|| ConfigError::Architecture(name.to_owned()))?;
        let need = |key: &str| {
            json[key]
                .as_u64()
                .and_then(|v| usize::try_from(v).ok())
                .ok_or_else(|| fail(format!("no count `{key}`")))
        };
        let (hidden, heads) = (need("hidden_size")?, need("num_attention_heads")?);
        let head_dim = match json["head_dim"].as_u64() {
            Some(dim) => dim as usize,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let rope = hf_rope(&json, "full_attention", head_dim, default_theta(architecture))?;
        let mut config = Self {
            hidden,
            layers: need("num_hidden_layers")?,
            heads,
            kv_heads: json["num_key_value_heads"].as_u64().map_or(heads, |v| v as usize),
            head_dim,
            ffn: need("intermediate_size")?,
            vocab: need("vocab_size")?,
            context: need("max_position_embeddings")?,
            norm_eps: json["rms_norm_eps"].as_f64().ok_or_else(|| fail("no number `rms_norm_eps`".into()))?,
            rope,
            interleaved_qk: false,
            ..Self::family(architecture, hidden, head_dim)
        };
        for key in ["attention_bias", "mlp_bias"] {
            if architecture != Architecture::Qwen2 && json[key].as_bool() == Some(true) {
                return Err(ConfigError::Impossible(format!("`{key}: true` is not supported for {name}")));
            }
        }
        if json["use_sliding_window"].as_bool() == Some(true) {
            return Err(ConfigError::Impossible(format!("`use_sliding_window: true` for {name}")));
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if !json[key].is_null() {
                return Err(ConfigError::Impossible(format!("`{key}` is not supported for {name}")));
            }
        }
        let expected = match config.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        };
        if let Some(found) = json["hidden_activation"].as_str().or(json["hidden_act"].as_str())
            && found != expected
        {
            return Err(ConfigError::Impossible(format!(
                "the activation `{found}`; {name} has `{expected}`"
            )));
        }
        if architecture == Architecture::Gemma3 {
            if let Some(scalar) = json["query_pre_attn_scalar"].as_f64() {
                config.attention_scale = 1.0 / scalar.sqrt();
            }
            if let Some(window) = json["sliding_window"].as_u64() {
                let pattern =
                    json["sliding_window_pattern"].as_u64().or(json["_sliding_window_pattern"].as_u64());
                // Newer files keep the two ropes together, older ones name the local base alone.
                let local = &json["rope_parameters"]["sliding_attention"];
                if !hf_rope_scaling(local, head_dim, 1.0).is_ok_and(|s| s == RopeScaling::None) {
                    return Err(ConfigError::Impossible("scaled rope in sliding layers".into()));
                }
                let theta = local["rope_theta"].as_f64().or(json["rope_local_base_freq"].as_f64());
                config.sliding = Some(gemma_window(window as usize, pattern.map(|v| v as usize), theta));
            }
        }
        let config = config.checked()?;
        // Where a file lists its layers one by one, the list must be what the pattern says.
        for (layer, kind) in json["layer_types"].as_array().into_iter().flatten().enumerate() {
            let slides = layer < config.layers && config.layer_attention(layer).1.is_some();
            if kind.as_str() != Some(if slides { "sliding_attention" } else { "full_attention" }) {
                return Err(ConfigError::Impossible(format!("layer_types has {kind} for layer {layer}")));
            }
        }
        Ok(config)
    }

    /// What the family alone decides; the sizes are filled in by the caller.
    fn family(architecture: Architecture, hidden: usize, head_dim: usize) -> Self {
        let gemma = architecture == Architecture::Gemma3;
        Self {
            architecture,
            hidden,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim,
            ffn: 0,
            vocab: 0,
            context: 0,
            norm_eps: 0.0,
            norm_offset: if gemma { 1.0 } else { 0.0 },
            rope: Rope { theta: 0.0, scaling: RopeScaling::None },
            sliding: None,
            qkv_bias: architecture == Architecture::Qwen2,
            qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
            post_norms: gemma,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            interleaved_qk: false,
        }
    }

    /// Holds the numbers against each other, so that no later shape arithmetic can overflow or divide
    /// by zero.
    fn checked(self) -> Result<Self, ConfigError> {
        let impossible = |what: String| Err(ConfigError::Impossible(what));
        for (name, value, limit) in [
            ("hidden size", self.hidden, 1 << 17),
            ("layers", self.layers, 1 << 10),
            ("heads", self.heads, 1 << 12),
            ("key-value heads", self.kv_heads, 1 << 12),
            ("head size", self.head_dim, 1 << 12),
            ("feed-forward size", self.ffn, 1 << 20),
            ("vocabulary", self.vocab, 1 << 22),
            ("context", self.context, 1 << 26),
        ] {
            if value == 0 || value > limit {
                return impossible(format!("{name} of {value}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return impossible(format!("{} heads over {} key-value heads", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return impossible(format!("an odd head size of {}", self.head_dim));
        }
        if self.norm_eps <= 0.0 || self.norm_eps > 0.1 || self.rope.theta <= 1.0 {
            return impossible(format!("epsilon {} or rope base {}", self.norm_eps, self.rope.theta));
        }
        match &self.sliding {
            Some(s) if s.window == 0 || s.pattern == 0 => impossible("an empty sliding window".into()),
            _ => Ok(self),
        }
    }
}

/// Layers of the largest Gemma 3.
const GEMMA_27B_LAYERS: usize = 62;

fn default_theta(architecture: Architecture) -> f64 {
    if architecture == Architecture::Gemma3 { 1_000_000.0 } else { 10_000.0 }
}

/// Gemma 3: five sliding layers, then a global one; sliding layers keep the short rope base.
fn gemma_window(window: usize, pattern: Option<usize>, theta: Option<f64>) -> SlidingWindow {
    SlidingWindow {
        window,
        pattern: pattern.unwrap_or(6),
        rope: Rope { theta: theta.unwrap_or(10_000.0), scaling: RopeScaling::None },
    }
}

/// The rotary embedding of a kind of layer. `transformers` 5 writes `rope_parameters`, by kind of layer where
/// there are two; older versions write `rope_theta` and `rope_scaling`.
fn hf_rope(json: &Json, layers: &str, head_dim: usize, theta: f64) -> Result<Rope, ConfigError> {
    let parameters = match &json["rope_parameters"] {
        Json::Object(kinds) => Some(kinds.get(layers).unwrap_or(&json["rope_parameters"])),
        _ => None,
    };
    let theta = parameters.unwrap_or(json)["rope_theta"].as_f64().unwrap_or(theta);
    let scaling = hf_rope_scaling(parameters.unwrap_or(&json["rope_scaling"]), head_dim, theta)?;
    Ok(Rope { theta, scaling })
}

fn hf_rope_scaling(json: &Json, head_dim: usize, theta: f64) -> Result<RopeScaling, ConfigError> {
    if json.is_null() {
        return Ok(RopeScaling::None);
    }
    let kind = json["rope_type"].as_str().or(json["type"].as_str()).unwrap_or("default");
    let number = |key: &str| {
        json[key].as_f64().ok_or_else(|| ConfigError::Impossible(format!("rope_scaling has no `{key}`")))
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear(number("factor")?)),
        "llama3" => Ok(RopeScaling::PerFrequency(llama3_factors(
            head_dim,
            theta,
            number("factor")?,
            number("low_freq_factor")?,
            number("high_freq_factor")?,
            number("original_max_position_embeddings")?,
        ))),
        other => Err(ConfigError::Impossible(format!("rope scaling `{other}` is not supported"))),
    }
}

/// Llama 3's divisors: long wavelengths are stretched by `factor`, short ones left, and those between
/// blended linearly in original-context / wavelength.
fn llama3_factors(
    head_dim: usize,
    theta: f64,
    factor: f64,
    low: f64,
    high: f64,
    original_context: f64,
) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            let turns = original_context / wavelength;
            let divisor = if turns >= high {
                1.0
            } else if turns <= low {
                factor
            } else {
                let share = (turns - low) / (high - low);
                1.0 / ((1.0 - share) / factor + share)
            };
            divisor as f32
        })
        .collect()
}
