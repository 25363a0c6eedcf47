//! The vectors of what may be quoted of a generation's chunks: of each sentence, list item and row, below the headings of its chunk.
//!
//! ```text
//! "SHISHSEN"  u32 version  u32 0  u64 chunks       little-endian
//! chunks × u64   vectors up to the end of each chunk
//! the vectors, as in `vectors.bin`
//! ```
//! The file is mapped, not read: a search looks at those of the few chunks that it compares, and a build at those that it takes along. A
//! generation without it is searched by chunks alone, and what may be quoted is embedded when it is asked for.

use std::path::Path;

use half::f16;
use tantivy::directory::error::OpenReadError;
use tantivy::directory::{Directory as _, MmapDirectory, OwnedBytes};

use super::vectors::{self, VectorKey, Vectors};
use super::{StoreError, search_error};

/// The file's name in a generation.
pub const SENTENCES: &str = "sentences.bin";
const MAGIC: &[u8; 8] = b"SHISHSEN";
const VERSION: u32 = 1;
const HEADER: usize = 24;

/// The file's bytes: `ends` says how many of the vectors there are up to the end of each chunk.
#[must_use]
pub fn to_bytes(ends: &[u64], vectors: &Vectors) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 8 * ends.len() + vectors.bytes());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(ends.len() as u64).to_le_bytes());
    ends.iter().for_each(|end| bytes.extend_from_slice(&end.to_le_bytes()));
    vectors.append_to(&mut bytes);
    bytes
}

/// The open file of a generation.
pub struct Sentences {
    ends: Vec<u64>,
    dimensions: usize,
    keys: OwnedBytes,
    numbers: OwnedBytes,
}

impl Sentences {
    /// Opens the file of the generation in `dir`; `None` when it has none.
    ///
    /// # Errors
    /// When it cannot be read, or is not what [`to_bytes`] writes.
    pub fn open(dir: &Path) -> Result<Option<Self>, StoreError> {
        let folder = MmapDirectory::open(dir).map_err(search_error("open", dir))?;
        let file = match folder.open_read(Path::new(SENTENCES)) {
            Ok(file) => file,
            Err(OpenReadError::FileDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(search_error("open", &dir.join(SENTENCES))(e)),
        };
        let bytes = file.read_bytes().map_err(search_error("read", &dir.join(SENTENCES)))?;
        let damaged = |why: String| StoreError::Damaged { path: dir.join(SENTENCES), why };
        Self::read(&bytes).map(Some).map_err(damaged)
    }

    fn read(bytes: &OwnedBytes) -> Result<Self, String> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err("it is shorter than its header".to_owned());
        };
        if header[..8] != *MAGIC {
            return Err("it does not begin like a file of sentences".to_owned());
        }
        let version = vectors::number(&header[8..12]);
        if version != u64::from(VERSION) {
            return Err(format!("it is of version {version}, this program reads {VERSION}"));
        }
        let chunks = vectors::number(&header[16..]);
        let table = usize::try_from(chunks).ok().and_then(|chunks| chunks.checked_mul(8));
        let Some((table, rest)) = table.and_then(|table| rest.split_at_checked(table)) else {
            return Err(format!("it claims {chunks} chunks, and ends before them"));
        };
        let ends: Vec<u64> = table.as_chunks::<8>().0.iter().map(|end| u64::from_le_bytes(*end)).collect();
        if !ends.is_sorted() {
            return Err("its chunks end in no order".to_owned());
        }
        let Some((header, _)) = rest.split_first_chunk() else {
            return Err("it holds no vectors".to_owned());
        };
        let (dimensions, rows) = vectors::read_header(header)?;
        let begin = bytes.len() - rest.len() + vectors::HEADER;
        let keys = rows * vectors::KEY;
        if bytes.len() != begin + keys + rows * 2 * dimensions {
            return Err(format!("{rows} rows of {dimensions} dimensions do not make {} bytes", bytes.len()));
        }
        if ends.last().copied().unwrap_or(0) != rows as u64 {
            return Err(format!("its chunks do not share its {rows} rows among them"));
        }
        let (keys, numbers) = bytes.slice(begin..bytes.len()).split(keys);
        Ok(Self { ends, dimensions, keys, numbers })
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

    /// The keys of all vectors, in their order.
    pub fn keys(&self) -> impl Iterator<Item = VectorKey> {
        self.keys.as_chunks::<{ vectors::KEY }>().0.iter().map(|key| VectorKey(*key))
    }

    /// A vector by its place among all.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> Vec<f16> {
        let numbers = &self.numbers[row * 2 * self.dimensions..(row + 1) * 2 * self.dimensions];
        numbers.as_chunks::<2>().0.iter().map(|number| f16::from_le_bytes(*number)).collect()
    }

    /// The vectors of a chunk's sentences, each with the key of what was embedded; none of a chunk that it does not know.
    pub fn of_chunk(&self, chunk: usize) -> impl Iterator<Item = (VectorKey, Vec<f32>)> {
        let end = self.ends.get(chunk).copied().unwrap_or(0);
        let start = chunk.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let (keys, _) = self.keys.as_chunks::<{ vectors::KEY }>();
        (start as usize..end as usize)
            .map(|row| (VectorKey(keys[row]), self.row(row).iter().map(|number| number.to_f32()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let of = |chunk| sentences.of_chunk(chunk).collect::<Vec<_>>();
        assert_eq!(of(0), [(VectorKey::of("a"), vec![1.0, 0.5])]);
        assert_eq!(of(1), []);
        let third = [(VectorKey::of("b"), vec![0.25, -1.0]), (VectorKey::of("c"), vec![0.0, 2.0])];
        assert_eq!(of(2), third);
        assert_eq!(of(3), []);
        assert_eq!(sentences.keys().collect::<Vec<_>>(), ["a", "b", "c"].map(VectorKey::of));
        assert_eq!(sentences.row(1), [0.25, -1.0].map(f16::from_f32));
        fs::remove_file(dir.path().join(SENTENCES)).unwrap();
        assert!(Sentences::open(dir.path()).unwrap().is_none());
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = some();
        bytes[8] = 2;
        let error = open(&bytes).1.err().unwrap().to_string();
        assert!(error.contains("version 2") && error.contains(SENTENCES), "{error}");
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
                let all: usize = (0..3).map(|chunk| sentences.of_chunk(chunk).count()).sum();
                prop_assert_eq!((sentences.chunks(), sentences.dimensions(), all), (3, 2, 3));
            }
        }
    }
}
