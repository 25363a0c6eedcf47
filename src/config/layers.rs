//! The layers of settings, laid over each other, each value with the place it came from.

use std::collections::HashMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::ConfigError;

/// The one section whose keys are free names.
const FREE_SECTION: &str = "adapters";

/// Variables that begin like settings and are none of ours to judge would be a typo otherwise.
const PREFIX: &str = "SHISHIN_";

/// The settings so far.
pub(super) struct Layers {
    table: Table,
    origins: HashMap<String, String>,
}

impl Layers {
    /// Starts with the built-in values, which define what keys there are and of which type.
    pub(super) fn built_in(text: &str) -> Result<Self, ConfigError> {
        let table = parse(text, "the built-in settings")?;
        Ok(Self { table, origins: HashMap::new() })
    }

    /// Lays a file over.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        for (section, value) in parse(&text, &origin)? {
            let Some(known) = self.table.get(&section) else {
                return Err(self.unknown(&origin, &section));
            };
            let (Value::Table(entries), Value::Table(_)) = (value, known) else {
                return Err(ConfigError::Value {
                    origin,
                    key: section.clone(),
                    problem: format!("must be a section: write [{section}] on a line of its own"),
                });
            };
            for (key, value) in entries {
                self.set(&section, &key, value, &origin)?;
            }
        }
        Ok(())
    }

    /// Lays over the variables that begin with `SHISHIN_`.
    pub(super) fn add_environment(&mut self, variables: &[(String, String)]) -> Result<(), ConfigError> {
        for (name, text) in variables {
            let Some(wanted) = name.strip_prefix(PREFIX) else { continue };
            let origin = format!("environment variable {name}");
            let key = self.keys().into_iter().find(|key| key.replace('.', "_").to_uppercase() == wanted);
            match key {
                Some(key) => self.add_text(&key, text, &origin)?,
                None => {
                    let key = wanted.to_lowercase().replacen('_', ".", 1);
                    return Err(self.unknown(&origin, &key));
                }
            }
        }
        Ok(())
    }

    /// Sets a key from text, read as the type of its built-in value.
    pub(super) fn add_text(&mut self, key: &str, text: &str, origin: &str) -> Result<(), ConfigError> {
        let (section, name) = key.split_once('.').unwrap_or((key, ""));
        let known = self.table.get(section).and_then(|s| s.get(name));
        let problem = |kind: &str| ConfigError::Value {
            origin: origin.to_owned(),
            key: key.to_owned(),
            problem: format!("is `{text}`; it must be {kind}"),
        };
        let value = match known {
            Some(Value::Integer(_)) => {
                Value::Integer(text.trim().parse().map_err(|_| problem("a whole number"))?)
            }
            Some(Value::Float(_)) => Value::Float(text.trim().parse().map_err(|_| problem("a number"))?),
            Some(Value::Boolean(_)) => {
                Value::Boolean(text.trim().parse().map_err(|_| problem("true or false"))?)
            }
            _ => Value::String(text.to_owned()),
        };
        self.set(section, name, value, origin)
    }

    fn set(&mut self, section: &str, key: &str, value: Value, origin: &str) -> Result<(), ConfigError> {
        let path = format!("{section}.{key}");
        let Some(Value::Table(entries)) = self.table.get_mut(section) else {
            return Err(self.unknown(origin, &path));
        };
        let value = match (entries.get(key), value) {
            // `temperature = 1` means 1.0.
            (Some(Value::Float(_)), Value::Integer(whole)) => Value::Float(whole as f64),
            (None, _) if section != FREE_SECTION => return Err(self.unknown(origin, &path)),
            (Some(known), value) if !known.same_type(&value) => {
                return Err(ConfigError::Value {
                    origin: origin.to_owned(),
                    key: path,
                    problem: format!("is of the type {}; it must be {}", value.type_str(), known.type_str()),
                });
            }
            (_, value) => value,
        };
        entries.insert(key.to_owned(), value);
        self.origins.insert(path, origin.to_owned());
        Ok(())
    }

    /// All layers as one value.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        serde_path_to_error::deserialize(Value::Table(self.table.clone())).map_err(|error| {
            let key = error.path().to_string();
            let reason = error.into_inner().to_string();
            self.refuse(&key, reason.trim().replace('\n', " "))
        })
    }

    /// A complaint about a key, with the place that set it.
    pub(super) fn refuse(&self, key: &str, problem: String) -> ConfigError {
        let origin = self.origins.get(key).cloned().unwrap_or_else(|| "the built-in settings".to_owned());
        ConfigError::Value { origin, key: key.to_owned(), problem }
    }

    /// Whether nobody has set a key.
    pub(super) fn is_built_in(&self, key: &str) -> bool {
        !self.origins.contains_key(key)
    }

    fn keys(&self) -> Vec<String> {
        let sections = self.table.iter().filter_map(|(name, value)| Some((name, value.as_table()?)));
        sections.flat_map(|(name, table)| table.keys().map(move |key| format!("{name}.{key}"))).collect()
    }

    fn unknown(&self, origin: &str, key: &str) -> ConfigError {
        let sections = self.table.keys().filter(|_| !key.contains('.')).cloned();
        let candidates = self.keys().into_iter().chain(sections);
        let nearest = candidates.min_by_key(|candidate| strsim::levenshtein(candidate, key));
        let hint = match nearest.filter(|n| strsim::levenshtein(n, key) <= key.chars().count() / 3 + 1) {
            Some(nearest) => format!("; did you mean `{nearest}`?"),
            None => String::new(),
        };
        ConfigError::UnknownKey { origin: origin.to_owned(), key: key.to_owned(), hint }
    }
}

fn parse(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
        origin: origin.to_owned(),
        reason: e.to_string().trim().to_owned(),
    })
}
