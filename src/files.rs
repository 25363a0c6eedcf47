//! Files that people write: TOML and JSON Lines, with errors that name the place.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no valid TOML, or has a key too many or too few.
    #[error("{}: {source}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A line is no such JSON.
    #[error("{place}: {problem}")]
    Line {
        /// The file and the line.
        place: String,
        /// What is wrong.
        problem: String,
    },
}

/// The text of a file.
///
/// # Errors
/// When it cannot be read, or is not UTF-8.
pub fn text(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

/// A text without the byte order mark that some editors put in front.
#[must_use]
pub fn without_mark(text: &str) -> &str {
    text.trim_start_matches('\u{feff}')
}

/// The lines of a text that are not blank, numbered from 1; a byte order mark is no part of the first.
pub fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(without_mark(text).lines()).filter(|(_, line)| !line.trim().is_empty())
}

/// What the TOML of a file says.
///
/// # Errors
/// When it is no TOML, or something else than is wanted.
pub fn toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|source| FileError::Toml { path: path.to_owned(), source: Box::new(source) })
}

/// The lines of a file, blank ones left out, each with its place.
///
/// # Errors
/// When one is no JSON, or something else than is wanted.
pub fn json_lines<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Vec<(String, T)>, FileError> {
    let read = |(number, line): (usize, &str)| {
        let place = format!("{}:{number}", path.display());
        match serde_json::from_str(line) {
            Ok(one) => Ok((place, one)),
            Err(error) => Err(FileError::Line { place, problem: error.to_string() }),
        }
    };
    lines(text).map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_line() {
        let found: Vec<(usize, &str)> = lines("\u{feff}{}\r\n\n \n[\u{feff}]").collect();
        assert_eq!(found, [(1, "{}"), (4, "[\u{feff}]")]);
        let read = json_lines::<Vec<u8>>(Path::new("a"), "\u{feff}[1]\n\n[2]\n").unwrap();
        assert_eq!(read, [("a:1".to_owned(), vec![1]), ("a:3".to_owned(), vec![2])]);
    }
}
