//! Text to token ids and back.
//!
//! Text comes in two kinds, and only one of them may become control tokens:
//! [`Tokenizer::encode_template`] for what we wrote ourselves (the chat template), and
//! [`Tokenizer::encode_content`] for what others wrote (questions, passages, dataset text), of which no
//! control token can come whatever it contains. The `tokenizers` crate splits the text and merges the
//! pieces; control tokens are kept out of its vocabulary and handled here.

mod gguf;
mod hf;
mod pieces;

use aho_corasick::{AhoCorasick, MatchKind};

pub use pieces::TextStream;

/// Why a tokenizer could not be built or did not encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The metadata or `tokenizer.json` describe something that is not supported or not sound.
    #[error("the model's tokenizer cannot be used: {0}")]
    Unusable(String),
    /// Encoding failed.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A piece of text.
    Text,
    /// Text that is never split, such as an HTML tag or a run of spaces; harmless in content.
    Verbatim,
    /// A control token: it steers the model and is never text.
    Control,
}

/// One vocabulary entry: what it is, and the bytes that it stands for in text.
#[derive(Debug, Clone)]
struct Piece {
    kind: Kind,
    bytes: Box<[u8]>,
}

/// Tokens that are matched as whole strings, longest first.
#[derive(Debug)]
struct Literals {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Literals {
    fn new(tokens: Vec<(&str, u32)>) -> Result<Self, TokenizerError> {
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(text, _)| text))
            .map_err(|e| TokenizerError::Unusable(e.to_string()))?;
        Ok(Self { automaton, ids: tokens.into_iter().map(|(_, id)| id).collect() })
    }
}

/// A model's vocabulary and the rules that split text into it.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    style: Style,
    pieces: Vec<Piece>,
    /// Control and verbatim tokens: what template text is split at.
    template_literals: Literals,
    /// Verbatim tokens: what content is split at.
    content_literals: Literals,
    /// Control tokens, to look for in content that came out wrong.
    control_literals: Literals,
    bos: Option<u32>,
    add_bos: bool,
    ends: Vec<u32>,
    eos: Option<u32>,
}

/// How pieces spell text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// GPT-2's alphabet of one printable character per byte.
    ByteLevel,
    /// SentencePiece: `▁` for a space, `<0x0A>` for bytes that no piece covers.
    SentencePiece {
        /// A space is put before text that starts a message.
        prefix_space: bool,
    },
}

/// What a format's reader hands to [`Tokenizer::new`].
struct Parts {
    inner: tokenizers::Tokenizer,
    style: Style,
    /// By id: spelling and kind.
    vocabulary: Vec<(String, Kind)>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    /// Ids that end a turn, besides those known by their spelling.
    ends: Vec<u32>,
}

/// Spellings that end a model's turn, whatever the metadata says of them.
const END_SPELLINGS: [&str; 10] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

impl Tokenizer {
    fn new(parts: Parts) -> Result<Self, TokenizerError> {
        let Parts { inner, style, vocabulary, bos, eos, add_bos, mut ends } = parts;
        let literal = |wanted: &[Kind]| {
            Literals::new(
                vocabulary
                    .iter()
                    .enumerate()
                    .filter(|(_, (text, kind))| wanted.contains(kind) && !text.is_empty())
                    .map(|(id, (text, _))| (text.as_str(), id as u32))
                    .collect(),
            )
        };
        let template_literals = literal(&[Kind::Control, Kind::Verbatim])?;
        let content_literals = literal(&[Kind::Verbatim])?;
        let control_literals = literal(&[Kind::Control])?;
        for (id, (text, kind)) in vocabulary.iter().enumerate() {
            if *kind == Kind::Control && END_SPELLINGS.contains(&text.as_str()) {
                ends.push(id as u32);
            }
        }
        ends.sort_unstable();
        ends.dedup();
        if ends.is_empty() {
            return Err(TokenizerError::Unusable("it has no token that ends a turn".into()));
        }
        let pieces = vocabulary
            .into_iter()
            .map(|(text, kind)| Piece { kind, bytes: pieces::bytes_of(&text, kind, style).into() })
            .collect();
        Ok(Self {
            inner,
            style,
            pieces,
            template_literals,
            content_literals,
            control_literals,
            bos,
            add_bos,
            ends,
            eos,
        })
    }

    /// Number of token ids.
    pub fn vocabulary_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id that starts a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the model wants [`bos`](Self::bos) before a prompt.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a token ends the model's turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// Whether a token steers the model instead of being text.
    pub fn is_control(&self, id: u32) -> bool {
        self.pieces.get(id as usize).is_some_and(|p| p.kind == Kind::Control)
    }

    /// The spelling of the start token, for chat templates.
    pub fn bos_text(&self) -> String {
        self.control_text(self.bos)
    }

    /// The spelling of the end token, for chat templates.
    pub fn eos_text(&self) -> String {
        self.control_text(self.eos)
    }

    fn control_text(&self, id: Option<u32>) -> String {
        let piece = id.and_then(|id| self.pieces.get(id as usize));
        piece.map(|p| String::from_utf8_lossy(&p.bytes).into_owned()).unwrap_or_default()
    }

    /// Encodes text of our own, in which the spelling of a control token means the token.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn encode_template(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_around(text, &self.template_literals, &mut ids)?;
        Ok(ids)
    }

    /// Encodes text of others, in which nothing can become a control token.
    ///
    /// # Errors
    /// When the text cannot be tokenised.
    pub fn encode_content(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_around(text, &self.content_literals, &mut ids)?;
        if !ids.iter().any(|&id| self.is_control(id)) {
            return Ok(ids);
        }
        // A vocabulary whose merges spell out a control token: break every look-alike after its first
        // character, so that no piece can span one.
        ids.clear();
        let mut rest = 0;
        for found in self.control_literals.automaton.find_iter(text) {
            let first = text[found.start()..].chars().next().map_or(0, char::len_utf8);
            let cut = found.start() + first;
            self.encode_around(&text[rest..cut], &self.content_literals, &mut ids)?;
            rest = cut;
        }
        self.encode_around(&text[rest..], &self.content_literals, &mut ids)?;
        match ids.iter().find(|&&id| self.is_control(id)) {
            None => Ok(ids),
            Some(id) => Err(TokenizerError::Encode(format!("content came out as the control token {id}"))),
        }
    }

    fn encode_around(
        &self,
        text: &str,
        literals: &Literals,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut rest = 0;
        let mut after_control = true;
        for found in literals.automaton.find_iter(text) {
            self.encode_plain(&text[rest..found.start()], after_control, ids)?;
            let id = literals.ids[found.pattern().as_usize()];
            after_control = self.is_control(id);
            ids.push(id);
            rest = found.end();
        }
        self.encode_plain(&text[rest..], after_control, ids)
    }

    fn encode_plain(
        &self,
        text: &str,
        starts_message: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = match self.style {
            Style::ByteLevel => self.inner.encode_fast(text, false),
            Style::SentencePiece { prefix_space } => {
                let mut spelled = text.replace(' ', "▁");
                if prefix_space && starts_message {
                    spelled.insert(0, '▁');
                }
                self.inner.encode_fast(spelled, false)
            }
        }
        .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The bytes of a token's text; control tokens have none.
    pub fn text_bytes(&self, id: u32) -> &[u8] {
        match self.pieces.get(id as usize) {
            Some(piece) if piece.kind != Kind::Control => &piece.bytes,
            _ => &[],
        }
    }

    /// A token as a person would write it, control tokens included.
    pub fn display(&self, id: u32) -> String {
        self.pieces
            .get(id as usize)
            .map(|p| String::from_utf8_lossy(&p.bytes).into_owned())
            .unwrap_or_default()
    }

    /// The text of a run of tokens; bytes that form no character become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.text_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
