//! Metadata values of a GGUF header, widened to the few types that readers ask for.

use super::GgufError;

/// A metadata value. Integers are widened to 64 bits and floats to `f64`; the format's eight integer
/// widths make no difference to a reader.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An unsigned integer.
    Uint(u64),
    /// A signed integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string; bytes that are not UTF-8 were replaced.
    Str(String),
    /// An array of integers or booleans.
    Ints(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of strings.
    Strs(Vec<String>),
}

impl Value {
    /// A short form for people: arrays by their length.
    pub fn summary(&self) -> String {
        match self {
            Self::Uint(v) => v.to_string(),
            Self::Int(v) => v.to_string(),
            Self::Float(v) => v.to_string(),
            Self::Bool(v) => v.to_string(),
            Self::Str(v) => {
                let mut short: String = v.chars().take(80).collect();
                if short.len() < v.len() {
                    short.push('…');
                }
                format!("{short:?}")
            }
            Self::Ints(v) => format!("[{} integers]", v.len()),
            Self::Floats(v) => format!("[{} floats]", v.len()),
            Self::Strs(v) => format!("[{} strings]", v.len()),
        }
    }
}

impl super::Header {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn need<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, GgufError> {
        let value = self.get(key).ok_or_else(|| GgufError::MissingKey(key.to_owned()))?;
        read(value).ok_or_else(|| GgufError::WrongValue { key: key.to_owned(), expected })
    }

    fn maybe<T>(result: Result<T, GgufError>) -> Result<Option<T>, GgufError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(GgufError::MissingKey(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// A count or size.
    ///
    /// # Errors
    /// When the key is absent or not a non-negative integer.
    pub fn usize(&self, key: &str) -> Result<usize, GgufError> {
        self.need(key, "a non-negative integer", |v| match v {
            Value::Uint(v) => usize::try_from(*v).ok(),
            Value::Int(v) => usize::try_from(*v).ok(),
            _ => None,
        })
    }

    /// A count or size that may be absent.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn usize_opt(&self, key: &str) -> Result<Option<usize>, GgufError> {
        Self::maybe(self.usize(key))
    }

    /// A finite float.
    ///
    /// # Errors
    /// When the key is absent or not a finite float.
    pub fn float(&self, key: &str) -> Result<f64, GgufError> {
        self.need(key, "a finite float", |v| match v {
            Value::Float(v) if v.is_finite() => Some(*v),
            _ => None,
        })
    }

    /// A finite float that may be absent.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn float_opt(&self, key: &str) -> Result<Option<f64>, GgufError> {
        Self::maybe(self.float(key))
    }

    /// A string.
    ///
    /// # Errors
    /// When the key is absent or not a string.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.need(key, "a string", |v| match v {
            Value::Str(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// A string that may be absent.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn str_opt(&self, key: &str) -> Result<Option<&str>, GgufError> {
        Self::maybe(self.str(key))
    }

    /// A boolean that may be absent.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn bool_opt(&self, key: &str) -> Result<Option<bool>, GgufError> {
        Self::maybe(self.need(key, "a boolean", |v| match v {
            Value::Bool(v) => Some(*v),
            _ => None,
        }))
    }

    /// An array of strings.
    ///
    /// # Errors
    /// When the key is absent or not an array of strings.
    pub fn strs(&self, key: &str) -> Result<&[String], GgufError> {
        self.need(key, "an array of strings", |v| match v {
            Value::Strs(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of floats that may be absent.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn floats_opt(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        Self::maybe(self.need(key, "an array of floats", |v| match v {
            Value::Floats(v) => Some(v.as_slice()),
            _ => None,
        }))
    }

    /// An array of integers that may be absent.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn ints_opt(&self, key: &str) -> Result<Option<&[i64]>, GgufError> {
        Self::maybe(self.need(key, "an array of integers", |v| match v {
            Value::Ints(v) => Some(v.as_slice()),
            _ => None,
        }))
    }
}
