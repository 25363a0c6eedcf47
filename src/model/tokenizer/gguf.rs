//! A tokenizer from the metadata of a GGUF file.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::{Kind, Parts, Style, Tokenizer, TokenizerError, pieces};
use crate::model::gguf::Header;

/// Token types of the format.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// When the metadata lacks a part, contradicts itself, or names a pre-tokenizer that is unknown.
    pub fn from_gguf(header: &Header) -> Result<Self, TokenizerError> {
        let unusable = |e: &dyn std::fmt::Display| TokenizerError::Unusable(e.to_string());
        let model = header.str("tokenizer.ggml.model").map_err(|e| unusable(&e))?;
        let tokens = header.strs("tokenizer.ggml.tokens").map_err(|e| unusable(&e))?;
        let types = header.ints_opt("tokenizer.ggml.token_type").map_err(|e| unusable(&e))?;
        if types.is_some_and(|t| t.len() != tokens.len()) {
            return Err(TokenizerError::Unusable("token_type and tokens differ in length".into()));
        }
        let mut vocabulary: Vec<(String, Kind)> = tokens
            .iter()
            .enumerate()
            .map(|(id, text)| (text.clone(), kind_of(text, types.map_or(1, |t| t[id]))))
            .collect();
        let id = |key: &str| -> Result<Option<u32>, TokenizerError> {
            let id = header.usize_opt(&format!("tokenizer.ggml.{key}_token_id")).map_err(|e| unusable(&e))?;
            match id {
                Some(id) if id >= tokens.len() => {
                    Err(TokenizerError::Unusable(format!("{key}_token_id is {id}, past the vocabulary")))
                }
                other => Ok(other.map(|id| id as u32)),
            }
        };
        let (bos, eos, eot) = (id("bos")?, id("eos")?, id("eot")?);
        let ends: Vec<u32> = [eos, eot].into_iter().flatten().collect();
        for special in [bos, eos, eot].into_iter().flatten() {
            vocabulary[special as usize].1 = Kind::Control;
        }
        let flag = |key: &str| header.bool_opt(&format!("tokenizer.ggml.{key}")).map_err(|e| unusable(&e));
        let (inner, style, bos_by_default) = match model {
            "gpt2" => {
                let pre = header.str_opt("tokenizer.ggml.pre").map_err(|e| unusable(&e))?;
                (byte_level(header, &vocabulary, pre.unwrap_or("default"))?, Style::ByteLevel, false)
            }
            "llama" => {
                let prefix_space = flag("add_space_prefix")?.unwrap_or(true);
                (sentence_piece(header, &vocabulary)?, Style::SentencePiece { prefix_space }, true)
            }
            other => {
                return Err(TokenizerError::Unusable(format!(
                    "tokenizer.ggml.model `{other}`; `gpt2` (byte-level BPE) and `llama` (SentencePiece) are read"
                )));
            }
        };
        let add_bos = flag("add_bos_token")?.unwrap_or(bos_by_default);
        Self::new(Parts { inner, style, vocabulary, bos, eos, add_bos, ends })
    }
}

/// What a vocabulary entry is. "User-defined" covers both harmless strings (runs of spaces, HTML tags)
/// and what chat and tool formats are made of; anything that looks like the latter is control.
fn kind_of(text: &str, token_type: i64) -> Kind {
    match token_type {
        CONTROL | UNUSED => Kind::Control,
        USER_DEFINED if is_markup(text) => Kind::Control,
        USER_DEFINED => Kind::Verbatim,
        _ => Kind::Text,
    }
}

/// Tags of running text that Gemma's vocabulary holds as units.
const HTML_TAGS: [&str; 27] = [
    "table",
    "caption",
    "thead",
    "tbody",
    "tfoot",
    "tr",
    "th",
    "td",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "blockquote",
    "strong",
    "em",
    "b",
    "i",
    "u",
    "s",
    "sub",
    "sup",
    "code",
    "ul",
    "ol",
    "li",
];

/// Whether a user-defined token is written as markup is: in angle or square brackets, and no HTML tag.
pub(super) fn is_markup(text: &str) -> bool {
    // `</s>` closes a strike-through in Gemma and ends the text in most other models.
    if text == "</s>" || (text.starts_with('[') && text.ends_with(']')) {
        return true;
    }
    let Some(inner) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) else { return false };
    !HTML_TAGS.contains(&inner.strip_prefix('/').unwrap_or(inner))
}

fn byte_level(
    header: &Header,
    vocabulary: &[(String, Kind)],
    pre: &str,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let merges = header
        .strs("tokenizer.ggml.merges")
        .map_err(|e| TokenizerError::Unusable(e.to_string()))?
        .iter()
        .map(|merge| {
            // A piece may itself hold no space, so the first one past the start separates the two.
            let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            at.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()))
                .ok_or_else(|| TokenizerError::Unusable(format!("the merge `{merge}` is no pair")))
        })
        .collect::<Result<Merges, _>>()?;
    let rules = PreTokenizer::named(pre)?;
    let mut tokenizer = bpe(vocabulary, merges, rules.ignore_merges, false)?;
    if rules.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(|e| TokenizerError::Unusable(e.to_string()))?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(rules.steps)));
    Ok(tokenizer)
}

fn sentence_piece(
    header: &Header,
    vocabulary: &[(String, Kind)],
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let scores = header
        .floats_opt("tokenizer.ggml.scores")
        .map_err(|e| TokenizerError::Unusable(e.to_string()))?
        .filter(|s| s.len() == vocabulary.len())
        .ok_or_else(|| TokenizerError::Unusable("tokenizer.ggml.scores is missing or too short".into()))?;
    bpe(vocabulary, merges_of_scores(vocabulary, scores), false, true)
}

/// SentencePiece joins, again and again, the neighbouring pieces whose union has the best score. The
/// same order comes out of BPE when every way to split a piece in two is a merge, ranked by the
/// piece's score.
fn merges_of_scores(vocabulary: &[(String, Kind)], scores: &[f32]) -> Merges {
    let ids: std::collections::HashMap<&str, usize> = vocabulary
        .iter()
        .enumerate()
        .filter(|(_, (text, kind))| *kind == Kind::Text && pieces::byte_piece(text).is_none())
        .map(|(id, (text, _))| (text.as_str(), id))
        .collect();
    let mut ranked: Vec<(f32, usize, usize)> = Vec::new();
    for (&text, &id) in &ids {
        for (cut, _) in text.char_indices().skip(1) {
            if let (Some(&left), Some(&right)) = (ids.get(&text[..cut]), ids.get(&text[cut..])) {
                ranked.push((scores[id], left, right));
            }
        }
    }
    ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    ranked
        .into_iter()
        .map(|(_, left, right)| (vocabulary[left].0.clone(), vocabulary[right].0.clone()))
        .collect()
}

/// The BPE model over the text pieces; every merge is checked, because the library trusts them.
fn bpe(
    vocabulary: &[(String, Kind)],
    merges: Merges,
    ignore_merges: bool,
    byte_fallback: bool,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let vocab: Vocab = vocabulary
        .iter()
        .enumerate()
        .filter(|(_, (text, kind))| *kind == Kind::Text && !text.is_empty())
        .map(|(id, (text, _))| (text.clone(), id as u32))
        .collect();
    // A union that is no text piece would let a merge spell a control token.
    let merges = merges
        .into_iter()
        .filter(|(a, b)| {
            vocab.contains_key(a) && vocab.contains_key(b) && vocab.contains_key(&format!("{a}{b}"))
        })
        .collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(ignore_merges)
        .byte_fallback(byte_fallback)
        .build()
        .map_err(|e| TokenizerError::Unusable(e.to_string()))?;
    Ok(tokenizers::Tokenizer::new(model))
}

/// How text is cut before pieces are merged.
struct PreTokenizer {
    steps: Vec<PreTokenizerWrapper>,
    nfc: bool,
    ignore_merges: bool,
}

impl PreTokenizer {
    /// The rules behind a name in `tokenizer.ggml.pre`; they are those of the models' own
    /// `tokenizer.json` files.
    fn named(name: &str) -> Result<Self, TokenizerError> {
        let by_regex = |pattern: &str| -> Result<Vec<PreTokenizerWrapper>, TokenizerError> {
            let split =
                Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
                    .map_err(|e| TokenizerError::Unusable(e.to_string()))?;
            Ok(vec![split.into(), ByteLevel::new(false, false, false).into()])
        };
        let (steps, nfc, ignore_merges) = match name {
            "smollm" => {
                (vec![Digits::new(true).into(), ByteLevel::new(false, false, true).into()], false, false)
            }
            "gpt-2" | "default" => (vec![ByteLevel::new(false, false, true).into()], false, false),
            "qwen2" => (by_regex(&word_pattern(r"\p{N}"))?, true, false),
            "llama-bpe" | "llama3" | "llama-v3" => (by_regex(&word_pattern(r"\p{N}{1,3}"))?, false, true),
            other => {
                return Err(TokenizerError::Unusable(format!(
                    "the pre-tokenizer `{other}`; smollm, qwen2, llama-bpe and gpt-2 are known"
                )));
            }
        };
        Ok(Self { steps, nfc, ignore_merges })
    }
}

/// The word pattern that the tokenizers of Qwen2 and Llama 3 share; they differ in how digits group.
fn word_pattern(digits: &str) -> String {
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_told_from_html() {
        for text in [
            "<|im_start|>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<unused12>",
            "<tool_call>",
            "</tool_call>",
            "[multimodal]",
            "<bos>",
            "<think>",
            "<0x>",
        ] {
            assert!(is_markup(text), "{text}");
        }
        for text in ["<table>", "</table>", "<h1>", "</h6>", "\n\n", "▁▁▁▁", "<", ">"] {
            assert!(!is_markup(text), "{text}");
        }
    }
}
