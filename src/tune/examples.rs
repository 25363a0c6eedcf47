//! From chat examples to tokens with a mask: the prompt as serving builds it, and what the assistant says to be learnt.
//!
//! The model's own template marks the turns, and texts become tokens segment by segment as in serving. Learnt are the assistant's
//! words and the token that ends its turn, without which a tuned model never stops.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::batch::{Batch, Target};
use crate::dataset::lint::Beyond;
use crate::dataset::read::Message;
use crate::dataset::{general, read};
use crate::files::lines;
use crate::language::Language;
use crate::model::lora::last_of;
use crate::model::template::{ChatTemplate, Role, Segment, TemplateError, Turn};
use crate::model::tokenizer::{Tokenizer, TokenizerError};
use crate::prompt::{Wording, WordingError};
use crate::quote;

pub use crate::dataset::general::DAY;

/// An example ready to be trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Where it stands: file:line.
    pub place: String,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// For each token, whether it is learnt.
    pub learnt: Vec<bool>,
    /// Tokens that choose what an answer quotes, in order; see
    /// [`TrainingSettings::quote_weight`](super::settings::TrainingSettings::quote_weight).
    pub choices: Vec<usize>,
    /// Leading tokens that the base reads alone, before a late adapter begins; 0 for an adapter that is there from the start.
    pub late: usize,
}

impl Example {
    /// What the base reads alone.
    #[must_use]
    pub fn before(&self) -> &[u32] {
        &self.tokens[..self.late]
    }

    /// What runs with the adapter.
    #[must_use]
    pub fn active(&self) -> &[u32] {
        &self.tokens[self.late..]
    }
}

/// A file that was learnt from or looked at, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its name and that of the folder that it is in, by which files of several languages are told apart.
    pub name: String,
    /// SHA-256.
    pub sha256: String,
    /// Lines that are no blank ones.
    pub lines: usize,
}

impl Source {
    /// Of a file that holds these bytes.
    #[must_use]
    pub fn of(path: &Path, bytes: &[u8]) -> Self {
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let name_of = |path: Option<&Path>| {
            path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned()
        };
        let folder = match name_of(path.parent()) {
            folder if folder.is_empty() => folder,
            folder => format!("{folder}/"),
        };
        Self {
            name: format!("{folder}{}", name_of(Some(path))),
            sha256: crate::model::hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes)),
            lines: lines.count(),
        }
    }
}

/// Why examples cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum ExampleError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line has a fault.
    #[error("{place}: {problem}; `shishin dataset lint` lists all faults")]
    Line {
        /// file:line.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// General text cannot be read.
    #[error(transparent)]
    Text(#[from] general::TextError),
    /// A file has no example.
    #[error("{} holds no example", .0.display())]
    Empty(PathBuf),
    /// The template failed.
    #[error("{place}: {source}")]
    Template {
        /// file:line.
        place: String,
        /// Why.
        source: TemplateError,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A prompt file failed.
    #[error(transparent)]
    Wording(#[from] WordingError),
}

/// Makes examples of conversations for one model.
pub struct ExampleMaker<'a> {
    /// The model's vocabulary.
    pub tokenizer: &'a Tokenizer,
    /// The model's turn format.
    pub template: &'a ChatTemplate,
    /// The server's instructions, for examples that bring none; `None` for none.
    pub wording: Option<&'a Wording>,
    /// The most tokens of an example.
    pub max_tokens: usize,
    /// For adapters that begin late: the tokens that they begin with. A dialogue then becomes an example for each turn to learn, because
    /// each is asked for after the base has read the others.
    pub invocation: Option<Vec<u32>>,
    /// Whether the tokens that choose a quote are told apart.
    pub choices: bool,
}

impl ExampleMaker<'_> {
    /// Reads files.
    ///
    /// # Errors
    /// When a file cannot be read, holds nothing, or a line has a fault.
    pub fn read(&self, files: &[PathBuf]) -> Result<Vec<Example>, ExampleError> {
        Ok(self.read_sourced(files)?.0)
    }

    /// Reads files, and says what was read: they may be others, or gone, by the time a run ends.
    ///
    /// # Errors
    /// As [`ExampleMaker::read`].
    pub fn read_sourced(&self, files: &[PathBuf]) -> Result<(Vec<Example>, Vec<Source>), ExampleError> {
        let (mut examples, mut sources) = (Vec::new(), Vec::new());
        for path in files {
            let bytes =
                std::fs::read(path).map_err(|source| ExampleError::Read { path: path.clone(), source })?;
            sources.push(Source::of(path, &bytes));
            let before = examples.len();
            let text = String::from_utf8(bytes).map_err(|e| ExampleError::Read {
                path: path.clone(),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, e.utf8_error()),
            })?;
            for (number, line) in lines(&text) {
                examples.extend(self.example(path, number, line)?);
            }
            if examples.len() == before {
                return Err(ExampleError::Empty(path.clone()));
            }
        }
        Ok((examples, sources))
    }

    /// General texts, each where an answer stands.
    ///
    /// # Errors
    /// When a file cannot be read, or a text becomes no example.
    pub fn texts(&self, files: &[PathBuf], wording: &Wording) -> Result<Vec<Example>, ExampleError> {
        let mut examples = Vec::new();
        for path in files {
            for (n, text) in general::read(path)?.into_iter().enumerate() {
                let [system, user] = text.before(wording)?;
                let said = [("system", system.content), ("user", user.content), ("assistant", text.text)];
                let messages =
                    said.map(|(role, content)| serde_json::json!({"role": role, "content": content}));
                let line = serde_json::json!({"messages": messages}).to_string();
                examples.extend(self.example(path, n + 1, &line)?);
            }
        }
        Ok(examples)
    }

    fn example(&self, path: &Path, line: usize, text: &str) -> Result<Vec<Example>, ExampleError> {
        let place = format!("{}:{line}", path.display());
        let fault = |problem: String| ExampleError::Line { place: place.clone(), problem };
        let (example, faults) = read::parse(text);
        let example = example.ok_or_else(|| fault(read::reason(&faults).to_owned()))?;
        if !example.tools.is_empty() {
            let problem = "it declares tools, which have no place in the prompt and would not be learnt; remove `tools` and what calls them, or export it (`shishin dataset export`) to a platform that takes them";
            return Err(fault(problem.into()));
        }
        let (turns, trained) = self.turns(&example.messages, &place)?;
        let encoded = self.encode(&turns, &trained, self.choices && over_passages(text), &place)?;
        if encoded.tokens.len() > self.max_tokens {
            return Err(fault(format!(
                "it has {} tokens and data.max_tokens is {}; shorten it or raise that",
                encoded.tokens.len(),
                self.max_tokens
            )));
        }
        match &self.invocation {
            None => {
                let Encoded { tokens, learnt, choices, .. } = encoded;
                Ok(vec![Example { place, tokens, learnt, choices, late: 0 }])
            }
            Some(invocation) => late(&place, &encoded, invocation).map_err(fault),
        }
    }

    /// What stands in the prompt, with the instructions, and which of it is learnt.
    fn turns(&self, messages: &[Message], place: &str) -> Result<(Vec<Turn>, Vec<bool>), ExampleError> {
        let mut turns = Vec::new();
        let mut trained = Vec::new();
        for message in messages {
            let role = match message.role.as_str() {
                "system" | "developer" => Role::System,
                "user" => Role::User,
                "assistant" if !message.calls => Role::Assistant,
                other => {
                    let problem = format!("turns of `{other}` with tools cannot be trained on");
                    return Err(ExampleError::Line { place: place.to_owned(), problem });
                }
            };
            trained.push(role == Role::Assistant && message.trained);
            turns.push(Turn { role, content: message.content.clone() });
        }
        let instructed = turns.first().is_some_and(|first| first.role == Role::System);
        if let Some(wording) = self.wording.filter(|_| !instructed) {
            instruct(wording, &mut turns, &mut trained)?;
        }
        Ok((turns, trained))
    }

    /// What is too much of a conversation that has more than [`max_tokens`](Self::max_tokens).
    ///
    /// # Errors
    /// When it cannot be trained on for another reason.
    pub fn beyond(&self, messages: &[Message]) -> Result<Option<Beyond>, ExampleError> {
        let (turns, trained) = self.turns(messages, "")?;
        let encoded = self.encode(&turns, &trained, false, "")?;
        if encoded.tokens.len() <= self.max_tokens {
            return Ok(None);
        }
        let Some((last, _)) = encoded.contents.last() else { return Ok(None) };
        // The first that is too much; where that is the mark of the end, the last character before it.
        let found = encoded.contents.iter().find(|(_, at)| at.end > self.max_tokens);
        let turn = found.map_or(*last, |(turn, _)| *turn);
        let text = &turns[turn].content;
        let own = text.trim();
        let start = found.map_or(own.len(), |(_, at)| {
            let starts = self.starts(&encoded.tokens[at.clone()], own);
            starts.get(self.max_tokens.saturating_sub(at.start)).copied().unwrap_or_default()
        });
        // The template takes white space around it away; a character of which only a part is too much is too much.
        let lead = text.chars().take_while(|c| c.is_whitespace()).count();
        let whole = own.char_indices().take_while(|(at, c)| at + c.len_utf8() <= start).count();
        let character = lead + whole.min(own.chars().count().saturating_sub(1));
        // The instructions are not the example's own.
        let added = turns.len() - messages.len();
        let (turn, character) = turn.checked_sub(added).map_or((0, 0), |turn| (turn, character));
        Ok(Some(Beyond { tokens: encoded.tokens.len(), turn, character }))
    }

    /// Tokens of a conversation up to its last assistant turn's end.
    fn encode(
        &self,
        turns: &[Turn],
        trained: &[bool],
        over_passages: bool,
        place: &str,
    ) -> Result<Encoded, ExampleError> {
        let template = |source| ExampleError::Template { place: place.to_owned(), source };
        let segments = self.template.segments(turns).map_err(template)?;
        let order = self.template.order(turns).map_err(template)?;
        let Encoded { mut tokens, mut learnt, mut choices, mut contents } = Encoded::default();
        let (mut order, mut closing) = (order.into_iter(), false);
        for segment in &segments {
            match segment {
                Segment::Content(text) => {
                    let turn = order.next().unwrap_or_default();
                    let ids = self.tokenizer.encode_content(text)?;
                    closing = trained.get(turn).copied().unwrap_or_default();
                    if closing && over_passages {
                        let said = turns[..turn].iter().filter(|turn| turn.role != Role::Assistant);
                        let prompt = said.map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n");
                        let chosen = self.choices(&ids, text, &quote::choices(text, &prompt));
                        choices.extend(chosen.into_iter().map(|at| tokens.len() + at));
                    }
                    learnt.resize(learnt.len() + ids.len(), closing);
                    contents.push((turn, tokens.len()..tokens.len() + ids.len()));
                    tokens.extend(ids);
                }
                Segment::Template(text) => {
                    let ids = self.tokenizer.encode_template(text)?;
                    let end = ids.iter().position(|id| self.tokenizer.is_end(*id)).filter(|_| closing);
                    learnt.extend((0..ids.len()).map(|at| end.is_some_and(|end| at <= end)));
                    tokens.extend(ids);
                    closing = false;
                }
            }
        }
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos());
        if let Some(bos) = bos.filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
            learnt.insert(0, false);
            choices.iter_mut().for_each(|at| *at += 1);
            contents.iter_mut().for_each(|(_, at)| *at = at.start + 1..at.end + 1);
        }
        // What follows the last thing to learn, such as the mark of the next turn, teaches nothing.
        let end = learnt.iter().rposition(|learnt| *learnt).map_or(0, |last| last + 1);
        if end == 0 || tokens.get(end - 1).is_none_or(|id| !self.tokenizer.is_end(*id)) {
            return Err(ExampleError::Line {
                place: place.to_owned(),
                problem: "the model's template marks no end of the assistant's turn, so that it could not be learnt".into(),
            });
        }
        tokens.truncate(end);
        learnt.truncate(end);
        contents.retain(|(_, at)| at.end <= end);
        Ok(Encoded { tokens, learnt, choices, contents })
    }

    /// Which of an answer's tokens begin within these parts of it; its first one also chooses whether it quotes at all.
    fn choices(&self, ids: &[u32], text: &str, parts: &[Range<usize>]) -> Vec<usize> {
        let starts = self.starts(ids, text).into_iter().enumerate();
        let chosen = |(at, start): &(usize, usize)| *at == 0 || parts.iter().any(|part| part.contains(start));
        starts.filter(chosen).map(|(at, _)| at).collect()
    }

    /// Where in a text each of its tokens begins, in bytes.
    fn starts(&self, ids: &[u32], text: &str) -> Vec<usize> {
        // A vocabulary may put a blank before the text.
        let bytes: usize = ids.iter().map(|id| self.tokenizer.text_bytes(*id).len()).sum();
        let added = bytes.saturating_sub(text.len());
        let starts = ids.iter().scan(0usize, |start, id| {
            let own = start.saturating_sub(added);
            *start += self.tokenizer.text_bytes(*id).len();
            Some(own)
        });
        starts.collect()
    }
}

/// A conversation as tokens.
#[derive(Default)]
struct Encoded {
    tokens: Vec<u32>,
    learnt: Vec<bool>,
    choices: Vec<usize>,
    /// Of each turn that the template writes, in the order in which it does: which it is, and its content's tokens.
    contents: Vec<(usize, Range<usize>)>,
}

/// Whether an example is asked over passages, as `shishin dataset ground` notes it.
fn over_passages(line: &str) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Meta {
        passages: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Row {
        #[serde(default)]
        meta: Option<Meta>,
    }
    let row: Option<Row> = serde_json::from_str(line).ok();
    row.and_then(|row| row.meta).is_some_and(|meta| !meta.passages.is_empty())
}

/// An example for each stretch that is learnt, which ends with it and has nothing else to learn.
fn late(place: &str, encoded: &Encoded, invocation: &[u32]) -> Result<Vec<Example>, String> {
    let Encoded { tokens, learnt, choices, .. } = encoded;
    let mut examples = Vec::new();
    let mut end = 0;
    while let Some(start) = learnt[end..].iter().position(|learnt| *learnt).map(|at| end + at) {
        end = learnt[start..].iter().position(|learnt| !learnt).map_or(learnt.len(), |at| start + at);
        let late = last_of(&tokens[..start], invocation).ok_or_else(|| {
            "the tokens that begin the turn (lora.begins) do not occur before it; use lora.begins = \"prompt\"".to_owned()
        })?;
        examples.push(Example {
            place: place.to_owned(),
            tokens: tokens[..end].to_vec(),
            learnt: (0..end).map(|at| at >= start).collect(),
            choices: choices.iter().copied().filter(|at| (start..end).contains(at)).collect(),
            late,
        });
    }
    Ok(examples)
}

/// Puts the server's instructions in front, as serving does.
fn instruct(wording: &Wording, turns: &mut Vec<Turn>, trained: &mut Vec<bool>) -> Result<(), WordingError> {
    let asked = turns.iter().rev().find(|turn| turn.role == Role::User);
    let language = Language::detect(asked.map_or("", |turn| &turn.content));
    turns.insert(0, Turn { role: Role::System, content: wording.plain(language, DAY)? });
    trained.insert(0, false);
    Ok(())
}

/// What tells two lists of examples apart: SHA-256 over their tokens and masks, in hexadecimal.
#[must_use]
pub fn fingerprint(examples: &[Example]) -> String {
    let parts: Vec<Vec<u8>> = examples
        .iter()
        .flat_map(|e| {
            let tokens = e.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
            let learnt = e.learnt.iter().map(|learnt| u8::from(*learnt)).collect();
            // Without choices nothing is added, so that a run goes on that began before there were any.
            let choices = e.choices.iter().flat_map(|at| (*at as u64).to_le_bytes());
            [tokens, learnt, (e.late as u64).to_le_bytes().into_iter().chain(choices).collect()]
        })
        .collect();
    crate::model::fingerprint(parts.iter().map(Vec::as_slice))
}

/// Examples packed into batches of at most `row_tokens` tokens that do not see each other: each goes into the first batch with room,
/// longest first. Every target weighs the same, those that choose a quote `quote_weight` times as much; also returns which examples are in
/// each batch. What the base reads alone is not run with the rest and counts an eighth: its keys and values are what it costs.
#[must_use]
pub fn pack(
    examples: &[&Example],
    row_tokens: usize,
    weight: f32,
    quote_weight: f32,
) -> Vec<(Batch, Vec<usize>)> {
    let size = |at: usize| examples[at].active().len() + examples[at].late / 8;
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(size(*at)), *at));
    let mut rows: Vec<(Batch, Vec<usize>)> = Vec::new();
    for at in order {
        let example = examples[at];
        let room = |(_, members): &&mut (Batch, Vec<usize>)| {
            members.iter().map(|member| size(*member)).sum::<usize>() + size(at) <= row_tokens
        };
        let (batch, members) = match rows.iter_mut().find(room) {
            Some(row) => row,
            None => {
                rows.push(Default::default());
                let last = rows.len() - 1;
                &mut rows[last]
            }
        };
        let start = batch.tokens.len();
        batch.tokens.extend(example.active());
        batch.spans.push(start..batch.tokens.len());
        members.push(at);
        let learnt = example.active().iter().zip(&example.learnt[example.late..]).enumerate().skip(1);
        batch.targets.extend(learnt.filter(|(_, (_, learnt))| **learnt).map(|(i, (token, _))| Target {
            row: start + i - 1,
            token: *token,
            weight: match example.choices.binary_search(&(example.late + i)) {
                Ok(_) => weight * quote_weight,
                Err(_) => weight,
            },
        }));
    }
    rows
}
