//! Passages that are held back: what a generation does not serve until an operator has looked at it.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::{StoreError, io_error};

/// File in a generation that lists them.
pub const HELD_BACK: &str = "held-back.json";

/// A passage that is held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBack {
    /// Names it by its words.
    pub hash: String,
    /// The file, relative to the guideline folder.
    pub file: String,
    /// The line of what is suspect, from 1.
    pub line: usize,
    /// The chunk that it would be.
    pub chunk_id: String,
    /// The heading path.
    pub section: String,
    /// What is suspect.
    pub why: String,
    /// The text.
    pub text: String,
}

/// Writes the list into a generation.
///
/// # Errors
/// When it cannot be written.
pub fn write(disk: &dyn Disk, dir: &Path, held_back: &[HeldBack]) -> Result<(), StoreError> {
    let path = dir.join(HELD_BACK);
    let json =
        serde_json::to_vec_pretty(held_back).map_err(io::Error::from).map_err(io_error("write", &path))?;
    disk.write(&path, &json).map_err(io_error("write", &path))
}

/// Reads the list of a generation.
///
/// # Errors
/// When it cannot be read.
pub fn read(dir: &Path) -> Result<Vec<HeldBack>, StoreError> {
    let path = dir.join(HELD_BACK);
    let bytes = fs::read(&path).map_err(io_error("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|e| StoreError::Damaged { path, why: e.to_string() })
}
