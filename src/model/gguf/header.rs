//! The header of a GGUF file: metadata, and where each tensor lies.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use candle_core::quantized::GgmlDType;

use super::GgufError;
use super::reader::Reader;
use super::value::Value;

/// Tensors start at multiples of this where the file does not say otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit of dimensions.
const MAX_DIMS: u32 = 4;
/// Far above the largest published model (about 2,000 tensors), far below what would hurt.
const MAX_ENTRIES: usize = 100_000;

/// One tensor's place in the file.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The type it is stored in.
    pub dtype: GgmlDType,
    /// Dimensions, outermost first (rows, columns): the reverse of the file's order.
    pub dims: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// A checked GGUF header.
#[derive(Debug, Clone)]
pub struct Header {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors in the file's order.
    pub tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Header {
    /// Parses and checks the header at the start of a whole file.
    ///
    /// # Errors
    /// [`GgufError::Header`] with the byte offset and what is wrong there.
    pub fn parse(file: &[u8]) -> Result<Self, GgufError> {
        let mut reader = Reader::new(file);
        let magic = reader.u32()?;
        if magic != u32::from_le_bytes(*b"GGUF") {
            return reader.fail("the file does not start with `GGUF`: it is no GGUF model");
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return reader.fail(format!("version {version} of the format; 2 and 3 (little-endian) are read"));
        }
        // A tensor takes at least 8 + 1 + 4 + 8 + 4 + 8 bytes, a metadata pair 8 + 1 + 4 + 1.
        let tensor_count = reader.count("tensors", 33)?;
        let metadata_count = reader.count("metadata pairs", 14)?;
        if tensor_count > MAX_ENTRIES || metadata_count > MAX_ENTRIES {
            return reader.fail(format!("{tensor_count} tensors and {metadata_count} metadata pairs"));
        }

        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = reader.name("metadata key")?;
            let value = reader.value()?;
            if metadata.insert(key.clone(), value).is_some() {
                return reader.fail(format!("the metadata key `{key}` stands there twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Uint(n)) if n.is_power_of_two() && (8..=1 << 20).contains(n) => *n,
            Some(other) => {
                return reader.fail(format!(
                    "general.alignment is {}; it must be a power of two from 8 to 1048576",
                    other.summary()
                ));
            }
        };

        let mut raw = Vec::with_capacity(tensor_count);
        for _ in 0..tensor_count {
            raw.push(RawTensor::read(&mut reader, alignment)?);
        }
        let data_start = (reader.position() as u64).next_multiple_of(alignment);
        let mut by_name = HashMap::with_capacity(tensor_count);
        let mut tensors = Vec::with_capacity(tensor_count);
        for tensor in raw {
            let info = tensor.place(data_start, file.len(), &reader)?;
            if by_name.insert(info.name.clone(), tensors.len()).is_some() {
                return reader.fail(format!("the tensor `{}` stands there twice", info.name));
            }
            tensors.push(info);
        }
        Ok(Self { version, metadata, tensors, by_name })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

/// A tensor entry before its offset has been held against the file.
struct RawTensor {
    name: String,
    dtype: GgmlDType,
    dims: Vec<usize>,
    bytes: u64,
    offset: u64,
}

impl RawTensor {
    fn read(reader: &mut Reader<'_>, alignment: u64) -> Result<Self, GgufError> {
        let name = reader.name("tensor name")?;
        let n_dims = reader.u32()?;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            return reader.fail(format!("tensor `{name}` has {n_dims} dimensions; 1 to {MAX_DIMS} are read"));
        }
        let mut dims = Vec::with_capacity(MAX_DIMS as usize);
        let mut elements: u64 = 1;
        for _ in 0..n_dims {
            let dim = reader.u64()?;
            match elements.checked_mul(dim) {
                Some(product) if dim > 0 => elements = product,
                _ => return reader.fail(format!("tensor `{name}` has an impossible dimension of {dim}")),
            }
            dims.push(dim as usize);
        }
        let type_id = reader.u32()?;
        let Some(dtype) = type_of(type_id) else {
            return reader.fail(format!(
                "tensor `{name}` is of type {type_id}, which is not read; requantise the model to one of \
                 F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K"
            ));
        };
        let block = dtype.block_size() as u64;
        if !(dims[0] as u64).is_multiple_of(block) {
            return reader.fail(format!("tensor `{name}`: rows of {} are no multiple of {block}", dims[0]));
        }
        let Some(bytes) = (elements / block).checked_mul(dtype.type_size() as u64) else {
            return reader.fail(format!("tensor `{name}` is impossibly large"));
        };
        let offset = reader.u64()?;
        if !offset.is_multiple_of(alignment) {
            return reader.fail(format!("tensor `{name}` lies at {offset}, no multiple of {alignment}"));
        }
        dims.reverse();
        Ok(Self { name, dtype, dims, bytes, offset })
    }

    fn place(self, data_start: u64, file_len: usize, reader: &Reader<'_>) -> Result<TensorInfo, GgufError> {
        let start = data_start.checked_add(self.offset);
        let end = start.and_then(|start| start.checked_add(self.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_len as u64 => Ok(TensorInfo {
                name: self.name,
                dtype: self.dtype,
                dims: self.dims,
                range: start as usize..end as usize,
            }),
            _ => reader.fail(format!(
                "tensor `{}` ends past the end of the file ({file_len} bytes): the download is incomplete",
                self.name
            )),
        }
    }
}

/// The tensor types that candle computes with, by their number in the format.
fn type_of(id: u32) -> Option<GgmlDType> {
    Some(match id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small sound file: two metadata pairs and one F32 tensor of 2 × 8.
    pub(super) fn sample() -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(b"GGUF");
        file.extend(3u32.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        let name = |file: &mut Vec<u8>, s: &str| {
            file.extend((s.len() as u64).to_le_bytes());
            file.extend(s.as_bytes());
        };
        name(&mut file, "general.architecture");
        file.extend(8u32.to_le_bytes());
        name(&mut file, "llama");
        name(&mut file, "some.array");
        file.extend(9u32.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        file.extend(3u64.to_le_bytes());
        for v in [-1i32, 0, 7] {
            file.extend(v.to_le_bytes());
        }
        name(&mut file, "w");
        file.extend(2u32.to_le_bytes());
        file.extend(8u64.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.resize(file.len().next_multiple_of(32), 0);
        for i in 0..16 {
            file.extend((i as f32).to_le_bytes());
        }
        file
    }

    #[test]
    fn reads_a_sound_file() {
        let header = Header::parse(&sample()).unwrap();
        assert_eq!(header.str("general.architecture").unwrap(), "llama");
        assert_eq!(header.get("some.array"), Some(&Value::Ints(vec![-1, 0, 7])));
        let tensor = header.tensor("w").unwrap();
        assert_eq!(tensor.dims, [2, 8]);
        assert_eq!(tensor.range.len(), 64);
    }

    #[test]
    fn every_truncation_is_refused() {
        let file = sample();
        for length in 0..file.len() {
            assert!(Header::parse(&file[..length]).is_err(), "{length} bytes were taken");
        }
    }

    #[test]
    fn hostile_counts_and_sizes_are_refused() {
        let file = sample();
        // Tensor count, metadata count, and every 8-byte window set to a huge number: none may panic,
        // and the two counts must be refused.
        for at in [8, 16] {
            for huge in [u64::MAX, 1 << 60, 1 << 32] {
                let mut bad = file.clone();
                bad[at..at + 8].copy_from_slice(&huge.to_le_bytes());
                assert!(Header::parse(&bad).is_err());
            }
        }
        for at in 0..file.len() - 8 {
            let mut bad = file.clone();
            bad[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
            let _ = Header::parse(&bad);
        }
    }

    #[test]
    fn an_alignment_of_zero_is_refused() {
        let mut file = Vec::new();
        file.extend(b"GGUF");
        file.extend(3u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(17u64.to_le_bytes());
        file.extend(b"general.alignment");
        file.extend(4u32.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        let error = Header::parse(&file).unwrap_err().to_string();
        assert!(error.contains("general.alignment is 0"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Header::parse(&bytes);
        }

        #[test]
        fn a_changed_byte_never_panics_nor_reaches_outside(at in 0usize..300, byte: u8) {
            let mut file = sample();
            let at = at % file.len();
            file[at] = byte;
            if let Ok(header) = Header::parse(&file) {
                for tensor in &header.tensors {
                    prop_assert!(tensor.range.end <= file.len());
                }
            }
        }
    }
}
