//! A writer of small GGUF files, so that a test can put known weights through the loader.

use std::path::Path;

use candle_core::Tensor;
use shishin::model::gguf::Value;

/// Offsets of tensors are multiples of this.
const ALIGNMENT: usize = 32;

/// Writes metadata and F32 tensors as GGUF version 3.
pub(crate) fn write(path: &Path, metadata: &[(String, Value)], tensors: &[(String, Tensor)]) {
    let mut file = Vec::new();
    file.extend(b"GGUF");
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut file, key);
        put(&mut file, value);
    }
    let mut offset = 0;
    for (name, tensor) in tensors {
        string(&mut file, name);
        file.extend((tensor.rank() as u32).to_le_bytes());
        for dim in tensor.dims().iter().rev() {
            file.extend((*dim as u64).to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset += (tensor.elem_count() * 4).next_multiple_of(ALIGNMENT);
    }
    for (_, tensor) in tensors {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        for number in tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
            file.extend(number.to_le_bytes());
        }
    }
    std::fs::write(path, file).unwrap();
}

fn string(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// A value behind its type. The widths are the ones that llama.cpp's converter uses for most keys; a
/// reader widens them anyway.
fn put(file: &mut Vec<u8>, value: &Value) {
    let array = |file: &mut Vec<u8>, kind: u32, length: usize| {
        file.extend(9u32.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend((length as u64).to_le_bytes());
    };
    match value {
        Value::Uint(v) => {
            file.extend(10u32.to_le_bytes());
            file.extend(v.to_le_bytes());
        }
        Value::Int(v) => {
            file.extend(11u32.to_le_bytes());
            file.extend(v.to_le_bytes());
        }
        Value::Float(v) => {
            file.extend(12u32.to_le_bytes());
            file.extend(v.to_le_bytes());
        }
        Value::Bool(v) => {
            file.extend(7u32.to_le_bytes());
            file.push(u8::from(*v));
        }
        Value::Str(v) => {
            file.extend(8u32.to_le_bytes());
            string(file, v);
        }
        Value::Ints(v) => {
            array(file, 5, v.len());
            for v in v {
                file.extend(i32::try_from(*v).unwrap().to_le_bytes());
            }
        }
        Value::Floats(v) => {
            array(file, 6, v.len());
            for v in v {
                file.extend(v.to_le_bytes());
            }
        }
        Value::Strs(v) => {
            array(file, 8, v.len());
            for v in v {
                string(file, v);
            }
        }
    }
}

/// Moves the rows of a query or key matrix as llama.cpp's converter does for the llama architecture:
/// row (head, half, pair) goes to (head, pair, half).
pub(crate) fn permute(matrix: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = matrix.dims2().unwrap();
    matrix
        .reshape((heads, 2, rows / heads / 2, columns))
        .and_then(|t| t.transpose(1, 2))
        .and_then(|t| t.contiguous())
        .and_then(|t| t.reshape((rows, columns)))
        .unwrap()
}

/// Undoes [`permute`].
pub(crate) fn unpermute(matrix: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = matrix.dims2().unwrap();
    matrix
        .reshape((heads, rows / heads / 2, 2, columns))
        .and_then(|t| t.transpose(1, 2))
        .and_then(|t| t.contiguous())
        .and_then(|t| t.reshape((rows, columns)))
        .unwrap()
}
