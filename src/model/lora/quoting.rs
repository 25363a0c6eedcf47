//! From where on an adapter quotes: figures of each adapter and language, which `shishin evaluate quoting` finds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::AdapterError;
use crate::language::Language;

/// The file in an adapter's folder.
pub const QUOTING: &str = "quoting.json";

/// From where on an adapter quotes, by language, in powers of e. Languages without a figure go by the settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuoteBars {
    /// How much likelier than all else it must find it to begin with a quote; where it does not, it says what else it would.
    pub first: BTreeMap<Language, f32>,
    /// The same for each quote after the first, against going on to the answer.
    pub further: BTreeMap<Language, f32>,
}

impl QuoteBars {
    /// Those of a language: of the first quote, and of further ones.
    #[must_use]
    pub fn of(&self, language: Language) -> (Option<f32>, Option<f32>) {
        (self.first.get(&language).copied(), self.further.get(&language).copied())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.further.is_empty()
    }
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quoting {
    /// The fingerprint of the adapter that this was found of: of another one it would be wrong.
    pub adapter: String,
    /// Those of the first quote; see [`QuoteBars::first`].
    pub bars: BTreeMap<Language, f32>,
    /// Those of further quotes, where such were found.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub further: BTreeMap<Language, f32>,
}

impl Quoting {
    /// What is written of these bars.
    #[must_use]
    pub fn of(adapter: String, bars: QuoteBars) -> Self {
        Self { adapter, bars: bars.first, further: bars.further }
    }

    /// The bars in the folder of an adapter with this fingerprint; none where it has no such file.
    ///
    /// # Errors
    /// When the file is there and cannot be read, says something else, or is of another adapter.
    pub fn read(folder: &Path, adapter: &str) -> Result<QuoteBars, AdapterError> {
        let path = folder.join(QUOTING);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(QuoteBars::default()),
            read => read.map_err(|error| error.to_string()),
        };
        let read =
            text.and_then(|text| serde_json::from_str::<Self>(&text).map_err(|error| error.to_string()));
        let problem = match read {
            Ok(read) if read.adapter != adapter => "it was found of another adapter".to_owned(),
            Ok(read) if !read.bars.values().chain(read.further.values()).all(|bar| bar.is_finite()) => {
                "a bar is not finite".to_owned()
            }
            Ok(read) => return Ok(QuoteBars { first: read.bars, further: read.further }),
            Err(problem) => problem,
        };
        let mend = "remove it, and let `shishin evaluate quoting --write` find it again";
        Err(AdapterError::Read { path, reason: format!("{problem}; {mend}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_the_bars_of_its_adapter_or_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Quoting::read(dir.path(), "a").unwrap().is_empty());
        let write = |text: &str| std::fs::write(dir.path().join(QUOTING), text).unwrap();
        let first = [(Language::En, 0.85), (Language::Ja, -0.5)].into();
        for further in [BTreeMap::new(), [(Language::Ja, 1.5)].into()] {
            let bars = QuoteBars { first: BTreeMap::clone(&first), further };
            write(&serde_json::to_string(&Quoting::of("a".into(), bars.clone())).unwrap());
            assert_eq!(Quoting::read(dir.path(), "a").unwrap(), bars);
        }
        let refused = |adapter: &str| Quoting::read(dir.path(), adapter).unwrap_err().to_string();
        assert!(refused("b").contains("another adapter"), "{}", refused("b"));
        for bad in [
            r#"{"adapter": "a", "bars": {"fr": 1}}"#,
            r#"{"adapter": "a", "bar": 1}"#,
            r#"{"adapter": "a", "bars": {"en": 1e99}}"#,
            r#"{"adapter": "a", "bars": {"en": 1}, "further": {"ja": 1e99}}"#,
            "{",
        ] {
            write(bad);
            let error = refused("a");
            assert!(error.contains("quoting.json") && error.contains("evaluate quoting"), "{error}");
        }
    }
}
