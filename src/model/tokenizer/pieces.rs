//! What tokens spell, and putting their bytes together into whole characters.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{Kind, Style};

/// GPT-2's alphabet: every byte has one printable character. Printable Latin-1 stands for itself, the
/// others follow from U+0100 on.
static BYTE_OF_CHAR: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            if printable(byte) {
                return (char::from(byte), byte);
            }
            let stand_in = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
            next += 1;
            (stand_in, byte)
        })
        .collect()
});

/// The bytes that a vocabulary entry stands for.
pub(super) fn bytes_of(text: &str, kind: Kind, style: Style) -> Vec<u8> {
    if kind != Kind::Text {
        return match style {
            Style::SentencePiece { .. } if kind == Kind::Verbatim => text.replace('▁', " ").into_bytes(),
            _ => text.as_bytes().to_vec(),
        };
    }
    match style {
        Style::ByteLevel => {
            let mut bytes = Vec::with_capacity(text.len());
            for c in text.chars() {
                match BYTE_OF_CHAR.get(&c) {
                    Some(byte) => bytes.push(*byte),
                    None => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
            bytes
        }
        Style::SentencePiece { .. } => match byte_piece(text) {
            Some(byte) => vec![byte],
            None => text.replace('▁', " ").into_bytes(),
        },
    }
}

/// `<0x0A>` → 10.
pub(super) fn byte_piece(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Joins token bytes into text, holding back the start of a character until its rest has come.
#[derive(Debug, Default)]
pub struct TextStream {
    held: Vec<u8>,
}

impl TextStream {
    /// Takes a token's bytes and returns the whole characters that are now complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(all) => {
                    text.push_str(all);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let good = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[..good]));
                    match error.error_len() {
                        // The end of the buffer may still become a character.
                        None => {
                            self.held.drain(..good);
                            return text;
                        }
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.held.drain(..good + bad);
                        }
                    }
                }
            }
        }
    }

    /// What is left at the end: U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_alphabet_is_complete() {
        let mut bytes: Vec<u8> = BYTE_OF_CHAR.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(BYTE_OF_CHAR[&'Ġ'], b' ');
        assert_eq!(BYTE_OF_CHAR[&'Ċ'], b'\n');
    }

    proptest! {
        #[test]
        fn a_stream_cut_anywhere_gives_the_same_text(text in "\\PC{0,40}", cuts in proptest::collection::vec(1usize..5, 0..80)) {
            let mut stream = TextStream::default();
            let mut out = String::new();
            let (mut rest, mut cuts) = (text.as_bytes(), cuts.into_iter());
            while !rest.is_empty() {
                let n = cuts.next().unwrap_or(1).min(rest.len());
                out.push_str(&stream.push(&rest[..n]));
                rest = &rest[n..];
            }
            out.push_str(&stream.finish());
            prop_assert_eq!(out, text);
        }

        #[test]
        fn any_bytes_end_as_the_lossy_text(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut stream = TextStream::default();
            let mut out: String = bytes.iter().map(|b| stream.push(&[*b])).collect();
            out.push_str(&stream.finish());
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
