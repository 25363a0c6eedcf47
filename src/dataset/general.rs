//! General text, by which one sees what a model forgets: paragraphs of a file, each put where an assistant's answer stands, after a
//! request that says nothing about it, so that an adapter that begins with the answer acts on all of it.

use std::path::{Path, PathBuf};

use crate::files::without_mark;
use crate::language::Language;
use crate::model::template::{Role, Turn};
use crate::prompt::{Wording, WordingError};
use jiff::civil::Date;

/// The day that instructions name; nothing that is learnt or weighed repeats it.
pub const DAY: Date = Date::constant(2026, 1, 1);

/// A paragraph of general text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Its language.
    pub language: Language,
    /// What it says.
    pub text: String,
}

/// Why texts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing in it.
    #[error("{} holds no text; write paragraphs with a blank line between them", .0.display())]
    Empty(PathBuf),
}

/// The paragraphs of a file: what stands between blank lines.
///
/// # Errors
/// When it cannot be read, or holds nothing.
pub fn read(path: &Path) -> Result<Vec<Text>, TextError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| TextError::Read { path: path.to_owned(), source })?;
    let mut texts = Vec::new();
    for paragraph in
        without_mark(&text).replace("\r\n", "\n").split("\n\n").map(str::trim).filter(|p| !p.is_empty())
    {
        texts.push(Text { language: Language::detect(paragraph), text: paragraph.to_owned() });
    }
    if texts.is_empty() { Err(TextError::Empty(path.to_owned())) } else { Ok(texts) }
}

impl Text {
    /// What is said before the text.
    ///
    /// # Errors
    /// When the operator's instructions are no template.
    pub fn before(&self, wording: &Wording) -> Result<[Turn; 2], WordingError> {
        let request = match self.language {
            Language::En => "Write a paragraph about anything you like.",
            Language::Ja => "好きなことについて一段落書いてください。",
        };
        Ok([
            Turn { role: Role::System, content: wording.plain(self.language, DAY)? },
            Turn { role: Role::User, content: request.to_owned() },
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_read_and_an_empty_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "One line.\nIts second.\n\n\r\n\r\n二つ目の段落です。\n").unwrap();
        let texts = read(&path).unwrap();
        let found: Vec<(Language, &str)> = texts.iter().map(|t| (t.language, t.text.as_str())).collect();
        assert_eq!(found, [(Language::En, "One line.\nIts second."), (Language::Ja, "二つ目の段落です。")]);
        std::fs::write(&path, "\n \n").unwrap();
        assert!(matches!(read(&path), Err(TextError::Empty(_))));
        assert!(matches!(read(dir.path()), Err(TextError::Read { .. })));
    }
}
