//! A cursor over the header's bytes that cannot read past their end nor allocate more than is there.

use super::GgufError;
use super::value::Value;

/// The longest metadata key or tensor name that is taken; the format allows 65,535 bytes for keys.
const MAX_NAME: usize = 65_535;

/// Reads little-endian values from a byte slice, remembering where it stands.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn fail<T>(&self, what: impl Into<String>) -> Result<T, GgufError> {
        Err(GgufError::Header { at: self.at, what: what.into() })
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], GgufError> {
        if n > self.remaining() {
            return self.fail(format!("{n} bytes are announced and {} are left", self.remaining()));
        }
        let slice = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `min_bytes` each, so that no count can promise more than
    /// the rest of the file could hold.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, GgufError> {
        let count = self.u64()?;
        match usize::try_from(count).ok().filter(|n| *n <= self.remaining() / min_bytes.max(1)) {
            Some(count) => Ok(count),
            None => self.fail(format!("{count} {what} cannot fit into the {} bytes left", self.remaining())),
        }
    }

    pub(super) fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let length = self.count("bytes of a name", 1)?;
        if length == 0 || length > MAX_NAME {
            return self.fail(format!("a {what} of {length} bytes"));
        }
        match std::str::from_utf8(self.take(length)?) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => self.fail(format!("a {what} that is not UTF-8")),
        }
    }

    fn string(&mut self) -> Result<String, GgufError> {
        let length = self.count("bytes of a string", 1)?;
        // Some vocabularies hold pieces that are not UTF-8 by themselves.
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    pub(super) fn value(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        if kind == 9 { self.array_value() } else { self.scalar(kind) }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Uint(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Uint(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Uint(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return self.fail(format!("a boolean of value {other}")),
            },
            8 => Value::Str(self.string()?),
            10 => Value::Uint(self.u64()?),
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return self.fail(format!("a metadata value of unknown type {other}")),
        })
    }

    fn array_value(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let min_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10 | 11 | 12 => 8,
            9 => return self.fail("an array of arrays, which no model file needs"),
            other => return self.fail(format!("an array of unknown type {other}")),
        };
        let count = self.count("array elements", min_bytes)?;
        match kind {
            8 => (0..count).map(|_| self.string()).collect::<Result<_, _>>().map(Value::Strs),
            6 | 12 => {
                let mut floats = Vec::with_capacity(count);
                for _ in 0..count {
                    if let Value::Float(v) = self.scalar(kind)? {
                        floats.push(v as f32);
                    }
                }
                Ok(Value::Floats(floats))
            }
            _ => {
                let mut ints = Vec::with_capacity(count);
                for _ in 0..count {
                    ints.push(match self.scalar(kind)? {
                        Value::Uint(v) => i64::try_from(v).unwrap_or(i64::MAX),
                        Value::Int(v) => v,
                        Value::Bool(v) => v.into(),
                        _ => return self.fail("an array of mixed types"),
                    });
                }
                Ok(Value::Ints(ints))
            }
        }
    }
}
