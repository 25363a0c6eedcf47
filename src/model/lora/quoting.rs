//! From where on an adapter begins to quote: a figure of each adapter and language, which `shishin evaluate quoting` finds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::AdapterError;
use crate::language::Language;

/// The file in an adapter's folder.
pub const QUOTING: &str = "quoting.json";

/// How much likelier than all else an adapter must find it to begin with a quote, by language, in powers of e; where it does not, it says what
/// else it would. Languages without one go by the settings.
pub type QuoteBars = BTreeMap<Language, f32>;

/// What the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quoting {
    /// The fingerprint of the adapter that this was found of: of another one it would be wrong.
    pub adapter: String,
    /// By language.
    pub bars: QuoteBars,
}

impl Quoting {
    /// The bars in the folder of an adapter with this fingerprint; none where it has no such file.
    ///
    /// # Errors
    /// When the file is there and cannot be read, says something else, or is of another adapter.
    pub fn read(folder: &Path, adapter: &str) -> Result<QuoteBars, AdapterError> {
        let path = folder.join(QUOTING);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(QuoteBars::new()),
            read => read.map_err(|error| error.to_string()),
        };
        let read =
            text.and_then(|text| serde_json::from_str::<Self>(&text).map_err(|error| error.to_string()));
        let problem = match read {
            Ok(read) if read.adapter != adapter => "it was found of another adapter".to_owned(),
            Ok(read) if !read.bars.values().all(|bar| bar.is_finite()) => "a bar is not finite".to_owned(),
            Ok(read) => return Ok(read.bars),
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
        let quoting =
            Quoting { adapter: "a".into(), bars: [(Language::En, 0.85), (Language::Ja, -0.5)].into() };
        write(&serde_json::to_string(&quoting).unwrap());
        assert_eq!(Quoting::read(dir.path(), "a").unwrap(), quoting.bars);
        let refused = |adapter: &str| Quoting::read(dir.path(), adapter).unwrap_err().to_string();
        assert!(refused("b").contains("another adapter"), "{}", refused("b"));
        for bad in [
            r#"{"adapter": "a", "bars": {"fr": 1}}"#,
            r#"{"adapter": "a", "bar": 1}"#,
            r#"{"adapter": "a", "bars": {"en": 1e99}}"#,
            "{",
        ] {
            write(bad);
            let error = refused("a");
            assert!(error.contains("quoting.json") && error.contains("evaluate quoting"), "{error}");
        }
    }
}
