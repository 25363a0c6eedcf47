//! Held-out examples, answered by several systems and judged by criteria.
//!
//! An example is a line of a chat dataset. What the assistant says last is the reference; what stands before it is the prompt, the same
//! tokens for every system, so that a late adapter shares what the base has read.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;

use super::criteria::{Criteria, Said};
use super::in_prompt::PromptSigns;
use super::rates::{Difference, Rate};
use crate::dataset::general::DAY;
use crate::dataset::read;
use crate::engine::{
    Completion, EngineEvent, EngineFailure, EngineHandle, GenerateRequest, Sampling, SubmitError,
};
use crate::files::lines;
use crate::language::Language;
use crate::model::BaseModel;
use crate::model::decoder::DecodeError;
use crate::model::embed::EmbedError;
use crate::model::fast::{FastDecoder, PackedAdapter};
use crate::model::template::{Role, TemplateError, Turn, encode_segments};
use crate::model::tokenizer::TokenizerError;
use crate::prompt::{InPrompt, Wording, WordingError};
use crate::quote::{self, QuoteChoice, QuoteGuide, Signed};
use crate::retrieve::Meaning;

/// Decides the resamples of every difference.
pub(super) const SEED: u64 = 1;

/// An example to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// What it is called: its id, or file:line.
    pub id: String,
    /// Its language.
    pub language: Language,
    /// The turns before the answer.
    pub turns: Vec<Turn>,
    /// What a good answer says.
    pub reference: String,
    /// Passages in the prompt.
    pub passages: usize,
    /// The numbers of the passages that answer; `None` where the data does not say.
    pub oracle: Option<Vec<usize>>,
    /// The question alone, without what the server says around it; `None` where the data does not say.
    pub question: Option<String>,
    /// What is asked for; empty where the data does not say.
    pub facts: Vec<String>,
    /// What the reference says, in a manner that is not wanted.
    pub rejected: Option<String>,
}

/// Why examples could not be read or answered.
#[derive(Debug, thiserror::Error)]
pub enum AnswersError {
    /// A file cannot be read.
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
    /// The prompt cannot be made.
    #[error("{id}: {source}")]
    Template {
        /// The example.
        id: String,
        /// Why.
        source: TemplateError,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A prompt file failed.
    #[error(transparent)]
    Wording(#[from] WordingError),
    /// The engine did not take it.
    #[error("{id}: {source}")]
    Submit {
        /// The example.
        id: String,
        /// Why.
        source: SubmitError,
    },
    /// The engine failed on it.
    #[error("{id}: {source}")]
    Engine {
        /// The example.
        id: String,
        /// Why.
        source: EngineFailure,
    },
    /// The model did not run, or it was asked to stop.
    #[error("{id}: {source}")]
    Decode {
        /// The example.
        id: String,
        /// Why.
        source: DecodeError,
    },
    /// A sentence that may be quoted has no vector.
    #[error("{id}: {source}")]
    Nearness {
        /// The example.
        id: String,
        /// Why.
        source: EmbedError,
    },
    /// It was asked to stop.
    #[error("stopped")]
    Stopped,
}

/// What `shishin dataset ground` says of a row.
#[derive(Debug, Default, Deserialize)]
struct Notes {
    id: Option<String>,
    language: Option<Language>,
    meta: Option<Meta>,
}

#[derive(Debug, Deserialize)]
struct Meta {
    oracle: Option<Vec<usize>>,
    question: Option<String>,
    #[serde(default)]
    facts: Vec<String>,
    rejected: Option<String>,
}

/// Reads the examples of files, of each the first `limit` where there is one.
///
/// # Errors
/// When a file cannot be read or one of these lines has a fault.
pub fn read(files: &[PathBuf], limit: Option<usize>, wording: &Wording) -> Result<Vec<Held>, AnswersError> {
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|source| AnswersError::Read { path: path.clone(), source })?;
        for (number, line) in lines(&text).take(limit.unwrap_or(usize::MAX)) {
            all.push(held(path, number, line, wording)?);
        }
    }
    Ok(all)
}

fn held(path: &Path, line: usize, text: &str, wording: &Wording) -> Result<Held, AnswersError> {
    let place = format!("{}:{line}", path.display());
    let fault = |problem: String| AnswersError::Line { place: place.clone(), problem };
    let (example, faults) = read::parse(text);
    let example = example.ok_or_else(|| fault(read::reason(&faults).to_owned()))?;
    if !example.tools.is_empty() {
        let problem =
            "it declares tools, which have no place in the prompt, so that it cannot be asked again";
        return Err(fault(problem.into()));
    }
    // A line that was read has a form that this has too, or none of its keys.
    let notes: Notes = serde_json::from_str(text).unwrap_or_default();
    let mut turns = Vec::new();
    for message in &example.messages {
        let role = match message.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" if !message.calls => Role::Assistant,
            other => return Err(fault(format!("turns of `{other}` with tools cannot be asked again"))),
        };
        turns.push(Turn { role, content: message.content.clone() });
    }
    let reference = match turns.pop() {
        Some(turn) if turn.role == Role::Assistant => turn.content,
        _ => return Err(fault("the last turn is not the assistant's".into())),
    };
    let asked = turns.iter().rev().find(|turn| turn.role == Role::User).map_or("", |turn| &turn.content);
    let language = notes.language.unwrap_or_else(|| Language::detect(asked));
    if turns.first().is_none_or(|turn| turn.role != Role::System) {
        turns.insert(0, Turn { role: Role::System, content: wording.plain(language, DAY)? });
    }
    let passages = turns[0].content.matches("<passage number=").count();
    let (oracle, question, facts, rejected) = match notes.meta {
        Some(meta) => (Some(meta.oracle.unwrap_or_default()), meta.question, meta.facts, meta.rejected),
        None => (None, None, Vec::new(), None),
    };
    let id = notes.id.unwrap_or(place);
    Ok(Held { id, language, turns, reference, passages, oracle, question, facts, rejected })
}

/// One that answers.
#[derive(Debug, Clone)]
pub struct System {
    /// What reports call it.
    pub name: String,
    /// Its adapter; `None` for the base.
    pub adapter: Option<Arc<PackedAdapter>>,
}

/// What a first quote must be likelier by; see [`QuoteChoice::bar`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bar {
    /// The logarithm of the factor.
    pub bar: f32,
    /// Whether it is the adapter's own, instead of the settings'.
    pub own: bool,
}

impl System {
    /// What counts in its choice of quotes in answer to a question in this language.
    fn choice(&self, quotes: QuoteChoice, language: Language) -> QuoteChoice {
        quotes.with_bar(self.adapter.as_ref().and_then(|own| own.bar(language)))
    }

    /// The bars of its first quotes, by the languages of the examples that have passages; none for the base.
    pub fn bars(&self, held: &[Held], quotes: QuoteChoice) -> BTreeMap<Language, Bar> {
        let Some(adapter) = &self.adapter else { return BTreeMap::new() };
        let quotable = held.iter().filter(|one| one.passages > 0);
        let bar =
            |language| Bar { bar: self.choice(quotes, language).bar, own: adapter.bar(language).is_some() };
        quotable.map(|one| (one.language, bar(one.language))).collect()
    }
}

/// What one system said to one example.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The example.
    pub id: String,
    /// The system.
    pub system: String,
    /// What it said.
    pub answer: String,
    /// For each criterion, whether it holds; `None` where it does not apply.
    pub checks: Vec<Option<bool>>,
    /// Counts and times.
    pub completion: Completion,
}

/// How answers are generated: greedily, and loops are ended as the server ends them.
#[derive(Clone, Copy)]
pub struct Generation<'m> {
    /// Tokens of an answer at the most.
    pub max_tokens: usize,
    /// See [`Sampling::no_repeat_ngram_size`].
    pub no_repeat_ngram_size: usize,
    /// Answers that are generated together.
    pub at_once: usize,
    /// What counts in an adapter's choice of quotes.
    pub quotes: QuoteChoice,
    /// Tells how near sentences are to a question; without it only what they say counts.
    pub meaning: Option<&'m Meaning>,
}

/// Has every system answer every example, greedily; answers are in the order of the examples, and for each in that of the systems.
///
/// # Errors
/// When a prompt cannot be made, the engine refuses or fails, or `progress`, which is told how many are done, says to stop.
pub fn answer(
    model: &BaseModel<FastDecoder>,
    engine: &EngineHandle,
    (held, systems): (&[Held], &[System]),
    criteria: &Criteria,
    generation: &Generation<'_>,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<Answer>, AnswersError> {
    let mut running: VecDeque<(&Held, &System, Receiver<EngineEvent>)> = VecDeque::new();
    let mut answers = Vec::new();
    let template = model.template.as_ref();
    let mut signs = PromptSigns::new(generation.meaning);
    let mut pairs = held.iter().flat_map(|one| systems.iter().map(move |system| (one, system)));
    loop {
        while running.len() < generation.at_once.max(1) {
            let Some((one, system)) = pairs.next() else { break };
            let bad = |source| AnswersError::Template { id: one.id.clone(), source };
            let template = template.ok_or(TemplateError::Missing).map_err(bad)?;
            let segments = template.segments(&one.turns).map_err(bad)?;
            let request = GenerateRequest {
                quotes: guide(one, system, generation.quotes, &mut signs)?,
                prompt: encode_segments(&model.tokenizer, &segments)?,
                adapter: system.adapter.clone(),
                cache_salt: None,
                sampling: Sampling {
                    no_repeat_ngram_size: generation.no_repeat_ngram_size,
                    ..Sampling::GREEDY
                },
                max_tokens: generation.max_tokens,
                stop: Vec::new(),
            };
            let submitted = engine.submit(request);
            let events = submitted.map_err(|source| AnswersError::Submit { id: one.id.clone(), source })?;
            running.push_back((one, system, events));
        }
        let Some((one, system, events)) = running.pop_front() else { return Ok(answers) };
        let (text, completion) =
            wait(events).map_err(|source| AnswersError::Engine { id: one.id.clone(), source })?;
        let given = one.turns.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n");
        // As the server tells quotes and answer apart.
        let texts = |quotes: bool| passages(one, quotes).into_iter().map(|passage| passage.text);
        let (_, reference) = quote::split(&one.reference, texts(true));
        let (_, text) = quote::split(&text, texts(system.adapter.is_some()));
        let said = Said {
            language: one.language,
            given: &given,
            reference: &reference,
            passages: one.passages,
            oracle: one.oracle.as_deref(),
            facts: &one.facts,
            answer: &text,
        };
        let checks = criteria.criterion.iter().map(|criterion| criterion.check.holds(&said)).collect();
        answers.push(Answer {
            id: one.id.clone(),
            system: system.name.clone(),
            answer: text,
            checks,
            completion,
        });
        if !progress(answers.len()) {
            return Err(AnswersError::Stopped);
        }
    }
}

/// The passages that an example's answer may quote, if quotes are looked for: those in its instructions.
pub(super) fn passages(one: &Held, quotes: bool) -> Vec<InPrompt<'_>> {
    let Some(turn) = one.turns.first().filter(|_| quotes && one.passages > 0) else { return Vec::new() };
    InPrompt::of(&turn.content).collect()
}

/// What a system may quote, as the server keeps it to that. Of data that does not say what the question alone is, nothing is preferred.
fn guide(
    one: &Held,
    system: &System,
    quotes: QuoteChoice,
    signs: &mut PromptSigns<'_>,
) -> Result<QuoteGuide, AnswersError> {
    let passages = passages(one, system.adapter.is_some());
    let choice = system.choice(quotes, one.language);
    let Some(question) = one.question.as_ref().filter(|_| !passages.is_empty()) else {
        let possible = quote::possible(passages.iter().map(|passage| passage.text));
        return Ok(QuoteGuide::choosing(Signed::plain(possible), choice));
    };
    let failed = |source| AnswersError::Nearness { id: one.id.clone(), source };
    Ok(QuoteGuide::choosing(signs.of(&passages, question).map_err(failed)?, choice))
}

fn wait(mut events: Receiver<EngineEvent>) -> Result<(String, Completion), EngineFailure> {
    let mut text = String::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            EngineEvent::Text(more) => text.push_str(&more),
            EngineEvent::Done(completion) => return Ok((text, completion)),
            EngineEvent::Failed(failure) => return Err(failure),
        }
    }
    Err(EngineFailure::ShuttingDown)
}

/// How often a criterion held of a system's answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// The system.
    pub system: String,
    /// The criterion.
    pub criterion: String,
    /// In which language; `None` for all.
    pub language: Option<Language>,
    /// How often.
    pub rate: Rate,
    /// Against the first system, on the same examples; `None` for itself.
    pub against_first: Option<Difference>,
    /// What is promised: the goal for all together or the language's own, or what the base's misses allow, whichever is more.
    pub goal: Option<f64>,
}

/// `None` for all together, and each language where there are several.
pub(super) fn languages(held: &[Held]) -> Vec<Option<Language>> {
    let used = Language::ALL.into_iter().filter(|l| held.iter().any(|one| one.language == *l));
    let used: Vec<_> = used.map(Some).collect();
    if used.len() > 1 { [vec![None], used].concat() } else { vec![None] }
}

/// The figures of all systems, criteria and languages for which there are answers.
#[must_use]
pub fn figures(held: &[Held], systems: &[System], criteria: &Criteria, answers: &[Answer]) -> Vec<Figure> {
    let mut figures = Vec::new();
    let languages = languages(held);
    for (at, criterion) in criteria.criterion.iter().enumerate() {
        for language in &languages {
            let outcomes = |of: usize| -> Vec<bool> {
                let rows = held.iter().zip(answers.chunks_exact(systems.len().max(1)));
                rows.filter(|(one, _)| language.is_none_or(|l| one.language == l))
                    .filter_map(|(_, answers)| answers[of].checks[at])
                    .collect()
            };
            let first = outcomes(0);
            let base = Rate::of(&first).rate;
            for (of, system) in systems.iter().enumerate() {
                let own = outcomes(of);
                if own.is_empty() {
                    continue;
                }
                figures.push(Figure {
                    system: system.name.clone(),
                    criterion: criterion.name.clone(),
                    language: *language,
                    rate: Rate::of(&own),
                    against_first: if of == 0 { None } else { Difference::between(&first, &own, SEED) },
                    goal: criterion.promised(*language, base),
                });
            }
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_fault_and_tools_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, wording) = (dir.path().join("a.jsonl"), Wording::built_in().unwrap());
        let line = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
        std::fs::write(&path, format!("\u{feff}{line}\n")).unwrap();
        assert_eq!(read(std::slice::from_ref(&path), None, &wording).unwrap()[0].reference, "a");
        let tools = line.replace("]}", r#"],"tools":[{"type":"function","function":{"name":"f"}}]}"#);
        std::fs::write(&path, format!("{line}\n{tools}\n")).unwrap();
        let error = read(&[path], None, &wording).unwrap_err().to_string();
        assert!(error.contains("a.jsonl:2") && error.contains("declares tools"), "{error}");
    }
}
