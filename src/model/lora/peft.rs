//! PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Unknown configuration keys are ignored, as PEFT itself does with files of a newer version; every key
//! that would change the arithmetic and is not implemented is refused by name.

use std::fmt;
use std::path::Path;

use candle_core::Device;
use regex::Regex;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value as Json;

use super::{Adapter, AdapterError, AdapterFormat, Binder, Half, Quoting};
use crate::model::config::ModelConfig;
use crate::model::fingerprint;
use crate::model::mapped::MappedFile;
use crate::model::tensors::Projection;
use crate::model::weights::tensor_of_view;

/// The keys of `adapter_config.json` that decide what is added where.
#[derive(Debug, Deserialize)]
struct PeftConfig {
    #[serde(default = "eight")]
    r: usize,
    #[serde(default = "eight_f64")]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: Option<bool>,
    #[serde(default)]
    rank_pattern: Option<Patterns>,
    #[serde(default)]
    alpha_pattern: Option<Patterns>,
    #[serde(default)]
    target_modules: Option<OneOrMany>,
    #[serde(default)]
    exclude_modules: Option<OneOrMany>,
    #[serde(default)]
    layers_to_transform: Option<Layers>,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    alora_invocation_tokens: Option<Vec<u32>>,
}

fn eight() -> usize {
    8
}

fn eight_f64() -> f64 {
    8.0
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Layers {
    One(usize),
    Many(Vec<usize>),
}

/// Values by pattern, in the file's order: the first pattern that matches a module wins, and a map would
/// have sorted them.
#[derive(Debug)]
struct Patterns(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Patterns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("numbers by module pattern")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patterns, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    patterns.push(entry);
                }
                Ok(Patterns(patterns))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// Features that change the arithmetic and are not implemented: the key, and how to call it.
const UNSUPPORTED: [(&str, &str); 10] = [
    ("use_dora", "DoRA (use_dora)"),
    ("use_qalora", "QALoRA (use_qalora)"),
    ("use_bdlora", "BD-LoRA (use_bdlora)"),
    ("lora_bias", "biases on lora_B (lora_bias)"),
    ("fan_in_fan_out", "transposed weights (fan_in_fan_out)"),
    ("layer_replication", "replicated layers (layer_replication)"),
    ("modules_to_save", "fully trained modules (modules_to_save)"),
    ("trainable_token_indices", "trained token embeddings (trainable_token_indices)"),
    ("target_parameters", "adapted parameters (target_parameters)"),
    ("arrow_config", "Arrow routing (arrow_config)"),
];

pub(super) fn load(folder: &Path, config: &ModelConfig, device: &Device) -> Result<Adapter, AdapterError> {
    let config_path = folder.join("adapter_config.json");
    let weights_path = folder.join("adapter_model.safetensors");
    let read = |path: &Path, reason: String| AdapterError::Read { path: path.into(), reason };
    let config_bytes = std::fs::read(&config_path).map_err(|e| read(&config_path, e.to_string()))?;
    let peft = parse_config(folder, &config_path, &config_bytes)?;
    if !weights_path.exists() && folder.join("adapter_model.bin").exists() {
        return Err(read(
            &folder.join("adapter_model.bin"),
            "a pickle can run code when it is read; save the adapter with safe_serialization=True".into(),
        ));
    }
    let weights = MappedFile::open(&weights_path).map_err(|e| read(&weights_path, e.to_string()))?;
    let tensors = SafeTensors::deserialize(&weights).map_err(|e| read(&weights_path, e.to_string()))?;

    let targets = Targets::new(&peft).map_err(|reason| read(&config_path, reason))?;
    let mut binder = Binder::new(folder, config);
    let mut names = tensors.names();
    names.sort_unstable();
    for name in names {
        let Some((layer, projection, half)) = place_of(name) else {
            binder.misfit(format!("{name} belongs to nothing that shishin adapts"));
            continue;
        };
        if !targets.hit(layer, projection) {
            binder.misfit(format!("{name} is not among the target_modules of adapter_config.json"));
            continue;
        }
        let view = tensors.tensor(name).map_err(|e| read(&weights_path, e.to_string()))?;
        let tensor = tensor_of_view(&view, device).map_err(|e| read(&weights_path, e.to_string()))?;
        binder.put(name, layer, projection, half, tensor);
    }
    if peft.target_modules.is_some() {
        for layer in 0..config.layers {
            for projection in Projection::ALL {
                if targets.hit(layer, projection) && !binder.halves.contains_key(&(layer, projection)) {
                    binder.misfit(format!("layer {layer} {projection} is a target and has no tensors"));
                }
            }
        }
    }
    let rslora = peft.use_rslora.unwrap_or(false);
    let pairs = binder.finish(|layer, projection, rank| {
        let path = module_path(layer, projection);
        let expected = pattern(peft.rank_pattern.as_ref(), &path)?.unwrap_or(peft.r as f64);
        if expected != rank as f64 {
            return Err(format!("the tensors have rank {rank}, adapter_config.json says {expected}"));
        }
        let alpha = pattern(peft.alpha_pattern.as_ref(), &path)?.unwrap_or(peft.lora_alpha);
        Ok(alpha / if rslora { (rank as f64).sqrt() } else { rank as f64 })
    })?;
    let fingerprint = fingerprint([config_bytes.as_slice(), &weights]);
    Ok(Adapter {
        format: AdapterFormat::Peft,
        bars: Quoting::read(folder, &fingerprint)?,
        fingerprint,
        invocation: peft.alora_invocation_tokens.filter(|tokens| !tokens.is_empty()),
        pairs,
    })
}

fn parse_config(folder: &Path, path: &Path, bytes: &[u8]) -> Result<PeftConfig, AdapterError> {
    let read = |reason: String| AdapterError::Read { path: path.into(), reason };
    let unsupported = |what: String| AdapterError::Unsupported { path: folder.into(), what };
    let json: Json = serde_json::from_slice(bytes).map_err(|e| read(e.to_string()))?;
    // The kind comes first: another kind's configuration may lack every other key.
    match json["peft_type"].as_str() {
        Some("LORA") => {}
        Some(other) => return Err(unsupported(format!("the PEFT type {other}"))),
        None => return Err(read("no string `peft_type`".into())),
    }
    for (key, name) in UNSUPPORTED {
        let on = match &json[key] {
            Json::Null | Json::Bool(false) => false,
            Json::Array(list) => !list.is_empty(),
            Json::Object(map) => !map.is_empty(),
            _ => true,
        };
        if on {
            return Err(unsupported(name.to_owned()));
        }
    }
    // These start from a base with the adapter's first state taken out of it; on the base as published they
    // compute something else.
    if let Some(init) = json["init_lora_weights"].as_str()
        && ["pissa", "olora", "corda", "loftq"].iter().any(|kind| init.starts_with(kind))
    {
        return Err(unsupported(format!("a changed base (init_lora_weights = {init})")));
    }
    let config: PeftConfig = serde_json::from_slice(bytes).map_err(|e| read(e.to_string()))?;
    if let Some(bias) = config.bias.as_deref().filter(|b| *b != "none") {
        return Err(unsupported(format!("trained biases (bias = {bias})")));
    }
    if config.r == 0 || !config.lora_alpha.is_finite() {
        return Err(read(format!("r = {} and lora_alpha = {}", config.r, config.lora_alpha)));
    }
    Ok(config)
}

/// The path that PEFT's patterns are held against.
fn module_path(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}.{}", projection.hf_block(), projection.hf_module())
}

/// The value of the first pattern that matches a module: a key matches the end of the path, from a dot
/// or its start on, and may be a regular expression.
fn pattern(patterns: Option<&Patterns>, path: &str) -> Result<Option<f64>, String> {
    for (key, value) in patterns.into_iter().flat_map(|patterns| &patterns.0) {
        let regex = Regex::new(&format!(r"^(.*\.)?({key})$"))
            .map_err(|e| format!("the pattern `{key}` is no regular expression: {e}"))?;
        if regex.is_match(path) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Which projections the configuration names.
struct Targets {
    include: Option<Rule>,
    exclude: Option<Rule>,
    layers: Option<Vec<usize>>,
}

enum Rule {
    All,
    Matching(Regex),
    Names(Vec<String>),
}

impl Rule {
    fn new(names: &OneOrMany) -> Result<Self, String> {
        Ok(match names {
            OneOrMany::One(all) if all == "all-linear" => Self::All,
            OneOrMany::One(expression) => Self::Matching(
                Regex::new(&format!("^(?:{expression})$"))
                    .map_err(|e| format!("`{expression}` is no regular expression: {e}"))?,
            ),
            OneOrMany::Many(names) => Self::Names(names.clone()),
        })
    }

    fn hit(&self, path: &str) -> bool {
        match self {
            Self::All => true,
            Self::Matching(regex) => regex.is_match(path),
            Self::Names(names) => names
                .iter()
                .any(|n| path == n || path.strip_suffix(n.as_str()).is_some_and(|rest| rest.ends_with('.'))),
        }
    }
}

impl Targets {
    fn new(peft: &PeftConfig) -> Result<Self, String> {
        let rule = |names: &Option<OneOrMany>| names.as_ref().map(Rule::new).transpose();
        Ok(Self {
            include: rule(&peft.target_modules)?,
            exclude: rule(&peft.exclude_modules)?.filter(|r| !matches!(r, Rule::Names(n) if n.is_empty())),
            layers: match &peft.layers_to_transform {
                None => None,
                Some(Layers::One(layer)) => Some(vec![*layer]),
                Some(Layers::Many(layers)) => Some(layers.clone()).filter(|l| !l.is_empty()),
            },
        })
    }

    fn hit(&self, layer: usize, projection: Projection) -> bool {
        let path = module_path(layer, projection);
        self.include.as_ref().is_none_or(|rule| rule.hit(&path))
            && !self.exclude.as_ref().is_some_and(|rule| rule.hit(&path))
            && self.layers.as_ref().is_none_or(|layers| layers.contains(&layer))
    }
}

/// `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight` → (3, Q, A). Some writers leave the
/// adapter's name, `default`, in the path.
fn place_of(name: &str) -> Option<(usize, Projection, Half)> {
    let rest = name.strip_prefix("base_model.model.model.layers.")?;
    let mut parts = rest.split('.');
    let layer = parts.next()?.parse().ok()?;
    let (block, module) = (parts.next()?, parts.next()?);
    let projection =
        Projection::ALL.into_iter().find(|p| p.hf_module() == module && p.hf_block() == block)?;
    let half = match parts.next()? {
        "lora_A" => Half::A,
        "lora_B" => Half::B,
        _ => return None,
    };
    match (parts.next()?, parts.next(), parts.next()) {
        ("weight", None, None) | ("default", Some("weight"), None) => Some((layer, projection, half)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_names_are_read_strictly() {
        let q = |rest: &str| place_of(&format!("base_model.model.model.layers.{rest}"));
        assert_eq!(q("3.self_attn.q_proj.lora_A.weight"), Some((3, Projection::Q, Half::A)));
        assert_eq!(q("0.mlp.down_proj.lora_B.default.weight"), Some((0, Projection::Down, Half::B)));
        assert_eq!(q("0.mlp.q_proj.lora_B.weight"), None);
        assert_eq!(q("0.self_attn.q_proj.lora_magnitude_vector"), None);
        assert_eq!(place_of("base_model.model.lm_head.lora_A.weight"), None);
    }

    #[test]
    fn targets_follow_lists_expressions_and_layers() {
        let targets = |json: &str| Targets::new(&serde_json::from_str::<PeftConfig>(json).unwrap()).unwrap();
        let list = targets(r#"{"peft_type":"LORA","target_modules":["q_proj","mlp.up_proj"]}"#);
        assert!(list.hit(0, Projection::Q) && list.hit(9, Projection::Up));
        assert!(!list.hit(0, Projection::V) && !list.hit(0, Projection::Gate));
        let regex = targets(
            r#"{"peft_type":"LORA","target_modules":".*\\.[02]\\..*\\.(q|v)_proj","exclude_modules":["v_proj"]}"#,
        );
        assert!(regex.hit(2, Projection::Q));
        assert!(!regex.hit(1, Projection::Q) && !regex.hit(2, Projection::V));
        let all =
            targets(r#"{"peft_type":"LORA","target_modules":"all-linear","layers_to_transform":[1,3]}"#);
        assert!(all.hit(3, Projection::Down) && !all.hit(2, Projection::Down));
    }

    #[test]
    fn patterns_match_the_end_of_a_path() {
        let map = serde_json::from_str(r#"{"layers.1.self_attn.q_proj": 4, "v_proj": 2}"#).unwrap();
        let at = |layer, p| pattern(Some(&map), &module_path(layer, p)).unwrap();
        assert_eq!(at(1, Projection::Q), Some(4.0));
        assert_eq!(at(11, Projection::Q), None);
        assert_eq!(at(7, Projection::V), Some(2.0));
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        let refused = |json: &str| {
            parse_config(Path::new("a"), Path::new("a/adapter_config.json"), json.as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert!(refused(r#"{"peft_type":"IA3"}"#).contains("IA3"));
        assert!(refused(r#"{"peft_type":"LOKR"}"#).contains("LOKR"));
        assert!(refused(r#"{"peft_type":"LORA","use_dora":true}"#).contains("DoRA"));
        assert!(refused(r#"{"peft_type":"LORA","bias":"all"}"#).contains("bias = all"));
        assert!(refused(r#"{"peft_type":"LORA","modules_to_save":["lm_head"]}"#).contains("modules_to_save"));
        assert!(refused(r#"{"peft_type":"LORA","init_lora_weights":"pissa_niter_16"}"#).contains("pissa"));
        assert!(refused("{}").contains("peft_type"));
    }
}
