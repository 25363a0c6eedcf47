//! GGUF, the file format of llama.cpp: first step of loading a base model, and of a GGUF-LoRA.
//!
//! The header is parsed by [`Header::parse`], which trusts nothing: every count, length, dimension and
//! offset is held against the bytes that are really there before anything is allocated. Format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod header;
mod reader;
mod value;

use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml};
use candle_core::{Device, Tensor};

use crate::model::mapped::MappedFile;

pub use header::{Header, TensorInfo};
pub use value::Value;

/// Why a GGUF file was refused.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The header breaks the format.
    #[error("broken GGUF header at byte {at}: {what}")]
    Header {
        /// Byte offset into the file.
        at: usize,
        /// What is wrong.
        what: String,
    },
    /// A metadata key is absent.
    #[error("the GGUF metadata has no key `{0}`")]
    MissingKey(String),
    /// A metadata key holds another type or an impossible value.
    #[error("the GGUF metadata key `{key}` should be {expected}")]
    WrongValue {
        /// The key.
        key: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A tensor is absent.
    #[error("the GGUF file has no tensor `{0}`")]
    MissingTensor(String),
    /// A tensor could not be turned into one of candle's.
    #[error("tensor `{name}` cannot be read: {source}")]
    Tensor {
        /// Its name.
        name: String,
        /// candle's reason.
        source: candle_core::Error,
    },
}

/// An open GGUF file: checked header and mapped bytes.
#[derive(Debug)]
pub struct Gguf {
    header: Header,
    file: MappedFile,
}

impl Gguf {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// When the file cannot be mapped or its header is not sound.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file =
            MappedFile::open(path).map_err(|source| GgufError::Open { path: path.to_owned(), source })?;
        Ok(Self { header: Header::parse(&file)?, file })
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All bytes of the file, for its fingerprint.
    pub fn bytes(&self) -> &[u8] {
        &self.file
    }

    /// The raw bytes of a tensor; the header has been held against the file's length.
    fn raw(&self, info: &TensorInfo) -> &[u8] {
        &self.file[info.range.clone()]
    }

    /// A tensor's place and its bytes as they lie in the file.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn stored(&self, name: &str) -> Result<(&TensorInfo, &[u8]), GgufError> {
        let info = self.info(name)?;
        Ok((info, self.raw(info)))
    }

    /// Reads a tensor in the type it is stored in.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn quantised(&self, name: &str, device: &Device) -> Result<QTensor, GgufError> {
        let info = self.info(name)?;
        self.tensor_of(name, info, self.raw(info), device)
    }

    /// Reads a matrix of `heads` × 2 × (rows / heads / 2) rows, moving row `(h, j, s)` to `(h, s, j)`.
    ///
    /// llama-architecture files store the query and key rows of each head as interleaved pairs, the
    /// order that llama.cpp's rotary embedding wants. Rows are whole blocks, so moving them back into
    /// the order of the original checkpoint is exact for every quantised type, and the decoder needs
    /// only one form of rotary embedding.
    ///
    /// # Errors
    /// When there is none of that name, or its rows do not divide into heads of pairs.
    pub fn quantised_unpermuted(
        &self,
        name: &str,
        heads: usize,
        device: &Device,
    ) -> Result<QTensor, GgufError> {
        let info = self.info(name)?;
        let rows = info.dims.first().copied().unwrap_or(0);
        let raw = self.raw(info);
        let Some(order) = unpermuted_rows(rows, heads).filter(|_| raw.len().is_multiple_of(rows)) else {
            return Err(GgufError::WrongValue {
                key: name.to_owned(),
                expected: "a matrix whose rows divide into pairs of each head",
            });
        };
        let row_bytes = raw.len() / rows;
        let mut moved = Vec::with_capacity(raw.len());
        for from in order {
            moved.extend_from_slice(&raw[from * row_bytes..(from + 1) * row_bytes]);
        }
        self.tensor_of(name, info, &moved, device)
    }

    /// Reads a tensor as 32-bit floats.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn dense(&self, name: &str, device: &Device) -> Result<Tensor, GgufError> {
        self.quantised(name, device)?
            .dequantize(device)
            .map_err(|source| GgufError::Tensor { name: name.to_owned(), source })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.header.tensor(name).ok_or_else(|| GgufError::MissingTensor(name.to_owned()))
    }

    fn tensor_of(
        &self,
        name: &str,
        info: &TensorInfo,
        raw: &[u8],
        device: &Device,
    ) -> Result<QTensor, GgufError> {
        qtensor_from_ggml(info.dtype, raw, info.dims.clone(), device)
            .map_err(|source| GgufError::Tensor { name: name.to_owned(), source })
    }
}

/// For each row of the checkpoint's order, the row of the llama.cpp order that holds it; `None` when the
/// rows do not divide into pairs of each head.
pub fn unpermuted_rows(rows: usize, heads: usize) -> Option<impl Iterator<Item = usize>> {
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) {
        return None;
    }
    let head = rows / heads;
    let half = head / 2;
    Some((0..rows).map(move |row| {
        let (h, within) = (row / head, row % head);
        let (s, j) = (within / half, within % half);
        h * head + 2 * j + s
    }))
}

/// The name of a tensor type, as the format's documents write it.
pub fn type_name(dtype: GgmlDType) -> String {
    format!("{dtype:?}").to_uppercase().replace("KS", "K")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermuting_inverts_the_published_permutation() {
        // The converter writes HF row (h, s, j) at position (h, j, s).
        let (heads, half) = (3, 4);
        let rows = heads * half * 2;
        let mut gguf = vec![0; rows];
        for h in 0..heads {
            for s in 0..2 {
                for j in 0..half {
                    gguf[h * 2 * half + 2 * j + s] = h * 2 * half + s * half + j;
                }
            }
        }
        let back: Vec<usize> = unpermuted_rows(rows, heads).unwrap().map(|r| gguf[r]).collect();
        assert_eq!(back, (0..rows).collect::<Vec<_>>());
        assert!(unpermuted_rows(9, 3).is_none());
        assert!(unpermuted_rows(8, 0).is_none());
    }
}
