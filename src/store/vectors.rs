//! The vectors of a generation: one file beside the index, with a row for each chunk.
//!
//! ```text
//! "SHISHVEC"  u32 version  u32 dimensions  u64 rows       little-endian
//! rows × 16 bytes   key: the beginning of the sha256 of what was embedded
//! rows × dimensions × f16
//! ```
//! A row's number is the chunk's number in its generation ([`Fields::row`](super::schema::Fields)). The keys are what an
//! incremental build goes by: a chunk whose text was embedded before, by the same embedder, takes its row along. Half precision
//! loses less than the 8-bit form that is searched, and leaves the choice of that form to the reader.

use std::fs;
use std::io;
use std::path::Path;

use half::f16;
use sha2::{Digest as _, Sha256};

use super::{StoreError, io_error};

/// The file's name in a generation.
pub const VECTORS: &str = "vectors.bin";
const MAGIC: &[u8; 8] = b"SHISHVEC";
const VERSION: u32 = 1;
pub(super) const HEADER: usize = 24;
pub(super) const KEY: usize = 16;
/// No embedder has more dimensions, and no generation more sentences; what claims to is damaged, and must not overflow.
const MAX_DIMENSIONS: usize = 8_192;
const MAX_ROWS: usize = 1 << 36;

/// What is embedded for a chunk, or a sentence of one: the headings say what the text is about.
#[must_use]
pub fn embedded_text(title: &str, section: &str, text: &str) -> String {
    if section.is_empty() { format!("{title}\n{text}") } else { format!("{title} > {section}\n{text}") }
}

/// Names what was embedded: equal texts have equal keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VectorKey(pub(super) [u8; KEY]);

impl VectorKey {
    /// The key of a text, as it is given to the embedder.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut key = [0; KEY];
        key.copy_from_slice(&Sha256::digest(text)[..KEY]);
        Self(key)
    }
}

/// A little-endian number.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The dimensions and rows that a file of vectors claims.
pub(super) fn read_header(header: &[u8; HEADER]) -> Result<(usize, usize), String> {
    if header[..8] != *MAGIC {
        return Err("it does not begin like a file of vectors".to_owned());
    }
    let version = number(&header[8..12]);
    if version != u64::from(VERSION) {
        return Err(format!("it is of version {version}, this program reads {VERSION}"));
    }
    let (dimensions, rows) = (number(&header[12..16]) as usize, number(&header[16..]) as usize);
    if dimensions == 0 || dimensions > MAX_DIMENSIONS || rows > MAX_ROWS {
        return Err(format!("it claims {rows} rows of {dimensions} dimensions"));
    }
    Ok((dimensions, rows))
}

/// Vectors in the order of what they stand for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vectors {
    dimensions: usize,
    keys: Vec<VectorKey>,
    numbers: Vec<f16>,
}

impl Vectors {
    /// None yet, of so many dimensions.
    #[must_use]
    pub fn new(dimensions: usize) -> Self {
        Self { dimensions, ..Self::default() }
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// How many there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.keys.len()
    }

    /// Adds a vector.
    ///
    /// # Panics
    /// When it has another number of dimensions.
    pub fn push(&mut self, key: VectorKey, vector: &[f32]) {
        assert_eq!(vector.len(), self.dimensions, "a vector of these dimensions");
        self.keys.push(key);
        self.numbers.extend(vector.iter().map(|v| f16::from_f32(*v)));
    }

    /// Adds a row as it is.
    ///
    /// # Panics
    /// When it has another number of dimensions.
    pub fn push_row(&mut self, key: VectorKey, row: &[f16]) {
        assert_eq!(row.len(), self.dimensions, "a vector of these dimensions");
        self.keys.push(key);
        self.numbers.extend_from_slice(row);
    }

    /// A row.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f16] {
        &self.numbers[row * self.dimensions..(row + 1) * self.dimensions]
    }

    /// The keys, in the order of the rows.
    pub fn keys(&self) -> impl Iterator<Item = VectorKey> {
        self.keys.iter().copied()
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes());
        self.append_to(&mut bytes);
        bytes
    }

    /// How many bytes the file has.
    pub(super) fn bytes(&self) -> usize {
        HEADER + self.rows() * (KEY + 2 * self.dimensions)
    }

    /// Adds the file's bytes to others.
    pub(super) fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.dimensions as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.rows() as u64).to_le_bytes());
        self.keys.iter().for_each(|key| bytes.extend_from_slice(&key.0));
        self.numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, or says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let Some((header, rest)) = bytes.split_first_chunk() else {
            return Err("it is shorter than its header".to_owned());
        };
        let (dimensions, rows) = read_header(header)?;
        if rest.len() != rows * (KEY + 2 * dimensions) {
            return Err(format!("{rows} rows of {dimensions} dimensions do not make {} bytes", bytes.len()));
        }
        let (keys, numbers) = rest.split_at(rows * KEY);
        let (keys, _) = keys.as_chunks::<KEY>();
        let (numbers, _) = numbers.as_chunks::<2>();
        Ok(Self {
            dimensions,
            keys: keys.iter().map(|key| VectorKey(*key)).collect(),
            numbers: numbers.iter().map(|number| f16::from_le_bytes(*number)).collect(),
        })
    }

    /// Reads the vectors of the generation in `dir`; `None` when it has none.
    ///
    /// # Errors
    /// When the file cannot be read, or is not what [`to_bytes`](Self::to_bytes) writes.
    pub fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(VECTORS);
        match fs::read(&path) {
            Ok(bytes) => Self::from_bytes(&bytes).map(Some).map_err(|why| StoreError::Damaged { path, why }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> Vectors {
        let mut vectors = Vectors::new(3);
        vectors.push(VectorKey::of("a"), &[1.0, 0.5, -0.25]);
        vectors.push(VectorKey::of("b"), &[0.0, 2.0, 4.0]);
        vectors
    }

    #[test]
    fn rows_come_back_and_are_found_by_their_text() {
        let read = Vectors::from_bytes(&some().to_bytes()).unwrap();
        assert_eq!(read, some());
        let row = read.keys().position(|key| key == VectorKey::of("b")).unwrap();
        let mut next = Vectors::new(3);
        next.push_row(VectorKey::of("b"), read.row(row));
        assert_eq!(next.row(0), [0.0, 2.0, 4.0].map(f16::from_f32));
        assert_eq!(next.keys().collect::<Vec<_>>(), [VectorKey::of("b")]);
    }

    #[test]
    fn version_1_stays_readable() {
        let mut bytes = b"SHISHVEC\x01\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        bytes.extend([7; KEY]);
        bytes.extend(f16::from_f32(0.5).to_le_bytes());
        let read = Vectors::from_bytes(&bytes).unwrap();
        assert_eq!((read.rows(), read.row(0)), (1, &[f16::from_f32(0.5)][..]));
        bytes[8] = 2;
        assert!(Vectors::from_bytes(&bytes).unwrap_err().contains("version 2"));
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused_or_read_whole(cut in 0usize..80, at in 0usize..80, with in any::<u8>()) {
            let mut bytes = some().to_bytes();
            prop_assert!(cut >= bytes.len() || Vectors::from_bytes(&bytes[..cut]).is_err());
            let at = at % bytes.len();
            bytes[at] = with;
            if let Ok(read) = Vectors::from_bytes(&bytes) {
                prop_assert_eq!((read.rows(), read.dimensions()), (2, 3));
            }
        }
    }
}
