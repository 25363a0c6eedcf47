//! The vectors of what may be quoted of a generation's chunks: of each sentence, list item and row, below the headings of its chunk.
//!
//! ```text
//! "SHISHSEN"  u32 version  u32 0  u64 chunks       little-endian
//! chunks × u64   vectors up to the end of each chunk
//! the vectors, as in `vectors.bin`
//! ```
//! A chunk has some eight, so they are not kept in memory: a search reads those of the few chunks that it compares. A generation without
//! the file is searched by chunks alone, and what may be quoted is embedded when it is asked for.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::f16;

use super::vectors::{self, VectorKey, Vectors};
use super::{StoreError, io_error};

/// The file's name in a generation.
pub const SENTENCES: &str = "sentences.bin";
const MAGIC: &[u8; 8] = b"SHISHSEN";
const VERSION: u32 = 1;
const HEADER: usize = 24;

/// The file's bytes: `ends` says how many of the vectors there are up to the end of each chunk.
#[must_use]
pub fn to_bytes(ends: &[u64], vectors: &Vectors) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 8 * ends.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(ends.len() as u64).to_le_bytes());
    ends.iter().for_each(|end| bytes.extend_from_slice(&end.to_le_bytes()));
    bytes.extend(vectors.to_bytes());
    bytes
}

/// Reads all vectors of the generation in `dir`, for a build that takes them along; `None` when it has none.
///
/// # Errors
/// When the file cannot be read, or is not what [`to_bytes`] writes.
pub fn read_vectors(dir: &Path) -> Result<Option<Vectors>, StoreError> {
    let path = dir.join(SENTENCES);
    let damaged = |why: String| StoreError::Damaged { path: path.clone(), why };
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("read", &path)(e)),
    };
    let mut rest = &bytes[..];
    ends(&mut rest, bytes.len() as u64).map_err(|e| damaged(e.to_string()))?;
    Vectors::from_bytes(rest).map(Some).map_err(damaged)
}

/// Reads where each chunk ends, from a file of `bytes` bytes.
fn ends(from: &mut impl Read, bytes: u64) -> io::Result<Vec<u64>> {
    let broken = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut header = [0; HEADER];
    from.read_exact(&mut header).map_err(|_| broken("it is shorter than its header".to_owned()))?;
    let number = |at: usize, len: usize| {
        header[at..at + len].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if header[..8] != *MAGIC {
        return Err(broken("it does not begin like a file of sentences".to_owned()));
    }
    if number(8, 4) != u64::from(VERSION) {
        return Err(broken(format!("it is of version {}, this program reads {VERSION}", number(8, 4))));
    }
    let chunks = number(16, 8);
    if chunks > bytes / 8 {
        return Err(broken(format!("it claims {chunks} chunks")));
    }
    let mut table = vec![0; 8 * chunks as usize];
    from.read_exact(&mut table).map_err(|_| broken("it ends within its table".to_owned()))?;
    let (table, _) = table.as_chunks::<8>();
    let ends: Vec<u64> = table.iter().map(|end| u64::from_le_bytes(*end)).collect();
    if !ends.is_sorted() {
        return Err(broken("its chunks end in no order".to_owned()));
    }
    Ok(ends)
}

/// The open file of a generation.
#[derive(Debug)]
pub struct Sentences {
    path: PathBuf,
    file: Mutex<File>,
    ends: Vec<u64>,
    dimensions: usize,
    rows: u64,
    /// Where the keys begin.
    keys: u64,
}

impl Sentences {
    /// Opens the file of the generation in `dir`; `None` when it has none.
    ///
    /// # Errors
    /// When it cannot be read, or is not what [`to_bytes`] writes.
    pub fn open(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(SENTENCES);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("open", &path)(e)),
        };
        let damaged = |why: String| StoreError::Damaged { path: path.clone(), why };
        let bytes = file.metadata().map_err(io_error("read", &path))?.len();
        let ends = ends(&mut file, bytes).map_err(|e| damaged(e.to_string()))?;
        let mut header = [0; vectors::HEADER];
        file.read_exact(&mut header).map_err(|_| damaged("it holds no vectors".to_owned()))?;
        let (dimensions, rows) = vectors::read_header(&header).map_err(&damaged)?;
        let keys = (HEADER + 8 * ends.len() + vectors::HEADER) as u64;
        let (row, rows) = ((vectors::KEY + 2 * dimensions) as u64, rows as u64);
        if ends.last().copied().unwrap_or(0) != rows || bytes != keys + rows * row {
            return Err(damaged(format!("{rows} rows of {dimensions} dimensions do not make {bytes} bytes")));
        }
        Ok(Some(Self { file: Mutex::new(file), ends, dimensions, rows, keys, path }))
    }

    /// Chunks that it knows.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.ends.len()
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The vectors of a chunk's sentences, each with the key of what was embedded; none of a chunk that it does not know.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_chunk(&self, chunk: usize) -> Result<Vec<(VectorKey, Vec<f32>)>, StoreError> {
        let Some(&end) = self.ends.get(chunk) else { return Ok(Vec::new()) };
        let start = chunk.checked_sub(1).map_or(0, |before| self.ends[before]);
        let count = (end - start) as usize;
        let row = 2 * self.dimensions;
        let numbers = self.keys + self.rows * vectors::KEY as u64;
        let keys = self.read(self.keys + start * vectors::KEY as u64, count * vectors::KEY)?;
        let numbers = self.read(numbers + start * row as u64, count * row)?;
        let (keys, _) = keys.as_chunks::<{ vectors::KEY }>();
        let vector = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<2>().0.iter().map(|number| f16::from_le_bytes(*number).to_f32()).collect()
        };
        Ok(keys.iter().map(|key| VectorKey(*key)).zip(numbers.chunks_exact(row).map(vector)).collect())
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; length];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(io_error("read", &self.path))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> Vec<u8> {
        let mut vectors = Vectors::new(2);
        for (text, vector) in [("a", [1.0, 0.5]), ("b", [0.25, -1.0]), ("c", [0.0, 2.0])] {
            vectors.push(VectorKey::of(text), &vector);
        }
        // The second chunk has none.
        to_bytes(&[1, 1, 3], &vectors)
    }

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<Option<Sentences>, StoreError>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SENTENCES), bytes).unwrap();
        let opened = Sentences::open(dir.path());
        (dir, opened)
    }

    #[test]
    fn a_chunk_has_its_own() {
        let (dir, opened) = open(&some());
        let sentences = opened.unwrap().unwrap();
        assert_eq!((sentences.chunks(), sentences.dimensions()), (3, 2));
        assert_eq!(sentences.of_chunk(0).unwrap(), [(VectorKey::of("a"), vec![1.0, 0.5])]);
        assert_eq!(sentences.of_chunk(1).unwrap(), []);
        let third = [(VectorKey::of("b"), vec![0.25, -1.0]), (VectorKey::of("c"), vec![0.0, 2.0])];
        assert_eq!(sentences.of_chunk(2).unwrap(), third);
        assert_eq!(sentences.of_chunk(3).unwrap(), []);
        assert_eq!(read_vectors(dir.path()).unwrap().unwrap().rows(), 3);
        fs::remove_file(dir.path().join(SENTENCES)).unwrap();
        assert!(
            Sentences::open(dir.path()).unwrap().is_none() && read_vectors(dir.path()).unwrap().is_none()
        );
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = some();
        bytes[8] = 2;
        let (dir, opened) = open(&bytes);
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains(SENTENCES), "{error}");
        assert!(read_vectors(dir.path()).unwrap_err().to_string().contains("version 2"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_files_are_refused_or_read_whole(cut in 0usize..140, at in 0usize..140, with in any::<u8>()) {
            let mut bytes = some();
            if cut < bytes.len() {
                prop_assert!(open(&bytes[..cut]).1.is_err());
            }
            let at = at % bytes.len();
            bytes[at] = with;
            if let Ok(Some(sentences)) = open(&bytes).1 {
                let all: usize = (0..3).map(|chunk| sentences.of_chunk(chunk).unwrap().len()).sum();
                prop_assert_eq!((sentences.chunks(), sentences.dimensions(), all), (3, 2, 3));
            }
        }
    }
}
