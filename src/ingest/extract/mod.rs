//! From a file's bytes to text: each format becomes Markdown that reads like the original.
//!
//! Third step of the operator path. Headings, lists and tables are kept, because chunks are cut along them; what a reader of the
//! original would not see (hidden elements, white on white, type of no size) is kept too, but marked, so that it is never
//! served unread. Guideline files come from everywhere: each is read within bounds of size, depth and time, by parsers that may fail
//! without harm to the others.

mod docx;
mod html;
mod markdown;
mod pdf;
mod plain;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Serialize;

/// No document's text is longer than this, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 << 20;
/// No document takes longer than this.
const MAX_TIME: Duration = Duration::from_secs(60);
/// Parsers recurse; a thread of their own leaves them room for it.
const STACK_BYTES: usize = 64 << 20;

/// A format that guidelines are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Markdown, `.md` or `.markdown`.
    Markdown,
    /// Plain text, `.txt`.
    Text,
    /// HTML, `.html`, `.htm` or `.xhtml`.
    Html,
    /// PDF with a text layer, `.pdf`.
    Pdf,
    /// Word, `.docx`.
    Docx,
    /// A document on each line, `.jsonl` or `.ndjson`.
    JsonLines,
}

impl Format {
    /// The format of a file by its name; none where it is no guideline.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "md" | "markdown" => Self::Markdown,
            "txt" | "text" => Self::Text,
            "html" | "htm" | "xhtml" => Self::Html,
            "pdf" => Self::Pdf,
            "docx" => Self::Docx,
            "jsonl" | "ndjson" => Self::JsonLines,
            _ => return None,
        })
    }

    /// Whether metadata may stand at the start of the file itself.
    #[must_use]
    pub fn has_front_matter(self) -> bool {
        matches!(self, Self::Markdown | Self::Text)
    }

    /// The largest file, in bytes.
    #[must_use]
    pub fn max_bytes(self) -> u64 {
        match self {
            Self::Markdown | Self::Text | Self::Html => 16 << 20,
            // Pictures and fonts are most of it.
            Self::Pdf | Self::Docx => 64 << 20,
            // Read line by line.
            Self::JsonLines => 4 << 30,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Markdown => "Markdown",
            Self::Text => "text",
            Self::Html => "HTML",
            Self::Pdf => "PDF",
            Self::Docx => "DOCX",
            Self::JsonLines => "JSON Lines",
        })
    }
}

/// The text of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Markdown.
    pub text: String,
    /// Parts of it that a reader of the original does not see, in order.
    pub hidden: Vec<Range<usize>>,
    /// Where each page starts, for formats that have pages.
    pub pages: Vec<usize>,
    /// What an author should look at; the text is usable all the same.
    pub warnings: Vec<String>,
}

/// Why a document has no text: what is wrong, at which line if the file has lines, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1.
    pub line: usize,
    /// The message.
    pub message: String,
}

impl Fault {
    fn new(message: impl Into<String>) -> Self {
        Self { line: 1, message: message.into() }
    }
}

/// Reads a document's text. JSON Lines hold many documents and are not one; their lines are Markdown.
///
/// # Errors
/// When the bytes are no document of the format, or exceed a bound.
pub fn extract(format: Format, bytes: Vec<u8>) -> Result<Extracted, Fault> {
    let extracted = match format {
        // Nothing in these can panic, overflow the stack or take long.
        Format::Markdown | Format::Text | Format::JsonLines => plain::extract(bytes),
        Format::Html => contained(move || html::extract(&plain::decode_html(&bytes)?)),
        Format::Docx => contained(move || docx::extract(&bytes)),
        Format::Pdf => contained(move || pdf::extract(bytes)),
    }?;
    if extracted.text.len() > MAX_TEXT_BYTES {
        return Err(too_long());
    }
    Ok(extracted)
}

fn too_long() -> Fault {
    Fault::new(format!("its text is longer than {} MiB; split it into several files", MAX_TEXT_BYTES >> 20))
}

/// Runs a parser where a panic, deep recursion and an endless loop do no harm to the build.
fn contained<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let (send, receive) = mpsc::channel();
    let worker = thread::Builder::new().name("extract".to_owned()).stack_size(STACK_BYTES);
    let spawned = worker.spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = send.send(read());
    });
    let handle = spawned.map_err(|error| Fault::new(format!("cannot be read: {error}")))?;
    match receive.recv_timeout(MAX_TIME) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Fault::new(format!(
            "could not be read within {} seconds; save it again with another program",
            MAX_TIME.as_secs()
        ))),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(match handle.join() {
            Err(panic) if panic.is::<Fault>() => match panic.downcast::<Fault>() {
                Ok(fault) => *fault,
                Err(_) => damaged(),
            },
            _ => damaged(),
        }),
    }
}

fn damaged() -> Fault {
    Fault::new("it is damaged so that it cannot be read; save it again with the program that made it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_go_by_the_name() {
        assert_eq!(Format::of(Path::new("a/b.MD")), Some(Format::Markdown));
        assert_eq!(Format::of(Path::new("x.tar.pdf")), Some(Format::Pdf));
        assert_eq!(Format::of(Path::new("x")), None);
        assert_eq!(Format::of(Path::new("x.md.bak")), None);
    }

    #[test]
    fn a_parser_that_panics_or_gives_up_harms_nobody() {
        let panicked = contained::<()>(|| std::panic::resume_unwind(Box::new("deliberate")));
        assert_eq!(panicked, Err(damaged()));
        let gave_up = contained::<()>(|| std::panic::resume_unwind(Box::new(Fault::new("too much"))));
        assert_eq!(gave_up, Err(Fault::new("too much")));
    }
}
