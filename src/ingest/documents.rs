//! Reads every guideline once: metadata checked, text extracted and put aside.
//!
//! Editions can only be resolved when the metadata of all are known, so texts have to wait. They wait in a file without a name
//! ([`Spool`]): memory holds one document at a time, and what was read cannot change before it is indexed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::extract::{self, Extracted, Format};
use super::metadata::FrontMatter;
use super::read::{self, SourceFile};
use super::{Finding, Findings, IngestError, front_matter, json_lines, sidecar};
use crate::store::io_error;
use crate::store::manifest::hex;

/// No folder holds more documents than this.
const MAX_DOCUMENTS: usize = 1_000_000;

/// A document: what it says of itself, and where its text waits.
#[derive(Debug)]
pub(crate) struct Document {
    /// Its file, relative to the guideline folder; with the line in a file of many.
    pub(crate) file: String,
    /// The file that its metadata stand in.
    pub(crate) metadata_file: String,
    /// Its metadata.
    pub(crate) front: FrontMatter,
    text: Spooled,
    /// Where the text begins, after any metadata.
    pub(crate) body: usize,
    /// What the original does not show.
    pub(crate) hidden: Vec<Range<usize>>,
    /// Where its pages start.
    pub(crate) pages: Vec<usize>,
    /// Of all that was read for it.
    pub(crate) sha256: String,
}

/// All documents of a folder.
pub(crate) struct Documents {
    pub(crate) all: Vec<Document>,
    /// Files of each format.
    pub(crate) files: BTreeMap<Format, usize>,
    spool: Spool,
}

impl Documents {
    /// Reads the files of `source`; texts wait in `beside`.
    pub(crate) fn read(
        source: &Path,
        beside: &Path,
        findings: &mut Findings,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, IngestError> {
        let (files, found) = read::list(source)?;
        findings.extend(found);
        let spool = Spool::new(beside).map_err(io_error("write", beside))?;
        let mut documents = Self { all: Vec::new(), files: BTreeMap::new(), spool };
        let total = files.len();
        for (done, file) in files.iter().enumerate() {
            progress(done, total);
            if file.format == Format::JsonLines {
                documents.lines(file, source, findings)?;
            } else if let Some((document, text)) = one(file, findings) {
                documents.add(document, &text, source)?;
            } else {
                continue;
            }
            *documents.files.entry(file.format).or_default() += 1;
        }
        progress(total, total);
        Ok(documents)
    }

    /// The text of a document.
    pub(crate) fn text(&mut self, number: usize) -> io::Result<String> {
        match self.all.get(number) {
            Some(document) => self.spool.read(document.text),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn add(&mut self, mut document: Document, text: &str, source: &Path) -> Result<(), IngestError> {
        if self.all.len() == MAX_DOCUMENTS {
            return Err(IngestError::TooMuch {
                path: source.to_owned(),
                limit: MAX_DOCUMENTS,
                what: "documents",
            });
        }
        document.text = self.spool.add(text).map_err(io_error("write", source))?;
        self.all.push(document);
        Ok(())
    }

    fn lines(
        &mut self,
        file: &SourceFile,
        source: &Path,
        findings: &mut Findings,
    ) -> Result<(), IngestError> {
        let reader = match read::open(file) {
            Ok(reader) => reader,
            Err(finding) => {
                findings.push(finding);
                return Ok(());
            }
        };
        if file.has_sidecar {
            let message = "is not read: each line of a JSON Lines file has its own metadata";
            findings.push(Finding::warning(&file.sidecar_name(), 1, message));
        }
        let read = json_lines::read(&file.name, reader, &mut |f| findings.push(f), &mut |line| {
            let mut hash = Sha256::new();
            hash.update(format!("{:?}\0", line.front));
            hash.update(&line.text);
            let document = Document {
                file: format!("{}:{}", file.name, line.number),
                metadata_file: file.name.clone(),
                front: line.front,
                text: Spooled::default(),
                body: 0,
                hidden: Vec::new(),
                pages: Vec::new(),
                sha256: hex(&hash.finalize()),
            };
            self.add(document, &line.text, source).map_err(LineError::Build)
        });
        match read {
            Ok(()) => Ok(()),
            Err(LineError::Build(error)) => Err(error),
            Err(LineError::Read(error)) => {
                findings.push(Finding::error(&file.name, 1, format!("cannot be read: {error}")));
                Ok(())
            }
        }
    }
}

enum LineError {
    Read(io::Error),
    Build(IngestError),
}

impl From<io::Error> for LineError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// The document of a file that holds one, and its text; or findings.
fn one(file: &SourceFile, findings: &mut Findings) -> Option<(Document, String)> {
    let bytes = read::read(file).map_err(|finding| findings.push(finding)).ok()?;
    let mut hash = Sha256::new();
    hash.update(&bytes);
    let beside = if file.has_sidecar {
        let text = read::read_sidecar(file).map_err(|finding| findings.push(finding)).ok()?;
        hash.update([0]);
        hash.update(&text);
        Some(text)
    } else {
        None
    };
    let is_readme = file.path.file_stem().is_some_and(|s| s.eq_ignore_ascii_case("readme"));
    if beside.is_none() && is_readme && !file.format.has_front_matter() {
        return None;
    }
    let extracted = extract::extract(file.format, bytes).map_err(|fault| {
        // A README in another encoding is nobody's guideline.
        if !(is_readme && beside.is_none()) {
            findings.push(Finding::error(&file.name, fault.line, fault.message));
        }
    });
    let Extracted { text, hidden, pages, warnings } = extracted.ok()?;
    let (front, body, metadata_file) = metadata(file, beside.as_deref(), &text, is_readme, findings)?;
    for warning in warnings {
        findings.push(Finding::warning(&file.name, 1, warning));
    }
    if text[body..].trim().is_empty() {
        let line = text[..body].lines().count().max(1);
        let message = match file.format.has_front_matter() && beside.is_none() {
            true => "nothing stands below the front matter; add the text",
            false => "holds no text; add it",
        };
        findings.push(Finding::error(&file.name, line, message));
        return None;
    }
    let document = Document {
        file: file.name.clone(),
        metadata_file,
        front,
        text: Spooled::default(),
        body,
        hidden,
        pages,
        sha256: hex(&hash.finalize()),
    };
    Some((document, text))
}

/// A document's metadata, where its text begins, and the file they stand in.
fn metadata(
    file: &SourceFile,
    beside: Option<&str>,
    text: &str,
    is_readme: bool,
    findings: &mut Findings,
) -> Option<(FrontMatter, usize, String)> {
    let sidecar_name = file.sidecar_name();
    let head = file.format.has_front_matter().then(|| front_matter::parse(&file.name, text));
    match (beside, head) {
        (Some(_), Some(head)) if head.present => {
            let message = format!("has front matter, and `{sidecar_name}` beside it; keep one of the two");
            findings.push(Finding::error(&file.name, 1, message));
            None
        }
        (Some(beside), _) => {
            let (front, found) = sidecar::parse(&sidecar_name, beside);
            findings.extend(found);
            Some((front?, 0, sidecar_name))
        }
        (None, Some(head)) if is_readme && !head.present => None,
        (None, Some(head)) => {
            findings.extend(head.findings);
            Some((head.front?, head.body, file.name.clone()))
        }
        (None, None) => {
            let message =
                format!("no metadata; put `{sidecar_name}` beside it, with the keys id, title, edition, …");
            findings.push(Finding::error(&file.name, 1, message));
            None
        }
    }
}

/// Where a text waits.
#[derive(Debug, Clone, Copy, Default)]
struct Spooled {
    at: u64,
    bytes: usize,
}

/// Texts that wait. The file has no name, so nothing is left of it however the process ends.
struct Spool {
    file: File,
    end: u64,
}

impl Spool {
    fn new(beside: &Path) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile_in(beside)?, end: 0 })
    }

    fn add(&mut self, text: &str) -> io::Result<Spooled> {
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(text.as_bytes())?;
        let spooled = Spooled { at: self.end, bytes: text.len() };
        self.end += text.len() as u64;
        Ok(spooled)
    }

    fn read(&mut self, spooled: Spooled) -> io::Result<String> {
        self.file.seek(SeekFrom::Start(spooled.at))?;
        let mut bytes = vec![0; spooled.bytes];
        self.file.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(io::Error::other)
    }
}
