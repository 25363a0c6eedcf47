//! Passages that an operator has looked at and lets through, although they looked suspect.
//!
//! They are kept beside the guidelines, in `approved.toml`, so that they go where the guidelines go. A passage is known by its
//! words: when those change, it is looked at again.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Finding;
use crate::store::manifest::hex;

/// The file, in the guideline folder.
pub const APPROVED: &str = "approved.toml";

const HEADER: &str = "# Passages that were held back and may be served, because somebody has read them.\n\
    # Written by `shishin index approve`; a passage whose words change is held back again.\n\n";

/// Names a passage by its heading path and words.
#[must_use]
pub fn passage_hash(section: &str, text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(section);
    hash.update([0]);
    hash.update(text);
    hex(&hash.finalize()).get(..16).unwrap_or_default().to_owned()
}

/// A passage that was let through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approved {
    /// Where it stood.
    pub place: String,
    /// When.
    pub on: String,
}

/// Passages that were let through, by their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approvals {
    #[serde(default)]
    passage: BTreeMap<String, Approved>,
}

impl Approvals {
    /// Reads those of a guideline folder. Where they cannot be read, nothing is approved.
    pub fn read(guidelines: &Path, findings: &mut dyn FnMut(Finding)) -> Self {
        match Self::try_read(guidelines) {
            Ok(approvals) => approvals,
            Err(why) => {
                findings(Finding::error(
                    APPROVED,
                    1,
                    format!("{why}; nothing in it is approved until it is mended"),
                ));
                Self::default()
            }
        }
    }

    /// As [`read`](Self::read).
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn try_read(guidelines: &Path) -> Result<Self, String> {
        match std::fs::read_to_string(guidelines.join(APPROVED)) {
            Ok(text) => toml::from_str(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether a passage was let through.
    #[must_use]
    pub fn contains(&self, hash: &str) -> bool {
        self.passage.contains_key(hash)
    }

    /// Lets a passage through.
    pub fn add(&mut self, hash: &str, place: &str, on: Date) {
        self.passage.insert(hash.to_owned(), Approved { place: place.to_owned(), on: on.to_string() });
    }

    /// Writes them to a guideline folder, all or nothing.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, guidelines: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let mut file = tempfile::NamedTempFile::new_in(guidelines)?;
        file.write_all(HEADER.as_bytes())?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(guidelines.join(APPROVED)).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_approves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        let mut approvals = Approvals::read(dir.path(), &mut |f| found.push(f));
        let hash = passage_hash("A > B", "text");
        assert_ne!(hash, passage_hash("A > Btext", ""));
        approvals.add(&hash, "a.md:3", "2026-11-26".parse().unwrap());
        approvals.write(dir.path()).unwrap();
        let again = Approvals::read(dir.path(), &mut |f| found.push(f));
        assert_eq!(again, approvals);
        assert!(again.contains(&hash) && found.is_empty());
        std::fs::write(dir.path().join(APPROVED), "passage = 1").unwrap();
        assert!(!Approvals::read(dir.path(), &mut |f| found.push(f)).contains(&hash));
        assert_eq!(found.len(), 1);
    }
}
