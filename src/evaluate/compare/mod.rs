//! The same questions, answered by the base, with passages, with an adapter, and with both: what does each contribute?
//!
//! [`suite`] reads the questions, [`ask`] has all arms answer them through the server's own path ([`crate::answer`], one search for all),
//! [`log`] keeps what was answered, [`judge`] says what an answer is worth, [`figures`] counts, [`gate`] holds the counts against what is
//! promised, and [`report`] writes them down.

pub mod figures;
pub mod gate;
pub mod judge;
pub mod log;
pub mod report;
pub mod suite;

use std::collections::VecDeque;
use std::time::Instant;

use tokio_stream::StreamExt as _;

use self::log::{Answered, Log, LogError, Reply};
use self::suite::{Suite, SuiteQuestion};
use crate::answer::{AnswerError, AnswerEvent, AnswerStream, Answerer, Done, Mode, Question, Way};
use crate::engine::{EngineFailure, FinishReason};
use crate::model::template::{Role, Turn};

/// One that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arm {
    /// What reports call it.
    pub name: String,
    /// What it draws on.
    pub mode: Mode,
    /// Its adapter: the name, and SHA-256.
    pub adapter: Option<(String, String)>,
    /// Whether it is told by the suite's instructions and examples how to answer.
    pub prompted: bool,
    /// SHA-256 of the settings that its answers stand on.
    pub settings: String,
}

impl Arm {
    /// What decides its answers, apart from what all arms share.
    #[must_use]
    pub fn key(&self) -> String {
        let prompted = if self.prompted { "+prompt" } else { "" };
        let adapter = self.adapter.as_ref().map_or(String::new(), |(_, sha256)| format!("+{sha256}"));
        format!("{}{prompted}{adapter} {}", self.mode, self.settings)
    }

    fn way(&self, suite: &Suite, question: &SuiteQuestion) -> Way {
        Way {
            mode: self.mode,
            adapter: self.adapter.as_ref().map(|(name, _)| name.clone()),
            before: if self.prompted { suite.prompted(question.language).to_vec() } else { Vec::new() },
        }
    }
}

/// Why a suite could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A question was refused.
    #[error("{id}: {source}")]
    Answer {
        /// The question.
        id: String,
        /// Why.
        source: AnswerError,
    },
    /// The engine failed on one.
    #[error("{id}: {source}")]
    Engine {
        /// The question.
        id: String,
        /// Why.
        source: EngineFailure,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It was asked to stop.
    #[error("stopped; what was answered is kept, and the same command goes on from there")]
    Stopped,
}

/// The question as the server is asked it.
fn question(suite: &Suite, one: &SuiteQuestion) -> Question {
    Question {
        messages: vec![Turn { role: Role::User, content: one.question.clone() }],
        as_of: one.as_of,
        max_tokens: Some(suite.max_tokens),
        temperature: Some(0.0),
        repetition_penalty: Some(1.0),
        ..Question::default()
    }
}

/// Has every arm answer every question that the log does not know its answer to, greedily. `progress` hears how many answers there are,
/// of how many, and says whether to go on.
///
/// # Errors
/// When a question is refused, the engine or the disk fails, or `progress` says to stop.
pub async fn ask(
    answerer: &Answerer,
    suite: &Suite,
    arms: &[Arm],
    log: &mut Log,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<(), CompareError> {
    let missing = |log: &Log, one: &SuiteQuestion| -> Vec<Arm> {
        let known = |key: &str| log.of(&one.id).is_some_and(|a| a.replies.iter().any(|r| r.key == key));
        arms.iter().filter(|arm| !known(&arm.key())).cloned().collect()
    };
    let all = suite.questions.len() * arms.len();
    let mut done = all - suite.questions.iter().map(|one| missing(log, one).len()).sum::<usize>();
    let at_once = (answerer.engine().settings().concurrent / arms.len().max(1)).max(1);
    let todo: Vec<(&SuiteQuestion, Vec<Arm>)> = suite
        .questions
        .iter()
        .map(|one| (one, missing(log, one)))
        .filter(|(_, arms)| !arms.is_empty())
        .collect();
    let mut todo = todo.into_iter();
    let mut running: VecDeque<(&SuiteQuestion, Vec<Arm>, Vec<AnswerStream>)> = VecDeque::new();
    loop {
        if !progress(done, all) {
            return Err(CompareError::Stopped);
        }
        while running.len() < at_once {
            let Some((one, arms)) = todo.next() else { break };
            let ways: Vec<Way> = arms.iter().map(|arm| arm.way(suite, one)).collect();
            let streams = answerer.compare(&question(suite, one), &ways);
            let streams = streams.map_err(|source| CompareError::Answer { id: one.id.clone(), source })?;
            running.push_back((one, arms, streams));
        }
        let Some((one, arms, streams)) = running.pop_front() else { return Ok(()) };
        let mut answered = Answered { id: one.id.clone(), ..Answered::default() };
        for (arm, stream) in arms.iter().zip(streams) {
            let reply = whole(arm, stream, &mut answered).await;
            let reply = reply.map_err(|source| CompareError::Engine { id: one.id.clone(), source })?;
            answered.replies.push(reply);
        }
        done += answered.replies.len();
        log.add(answered)?;
    }
}

/// Waits for all of an answer.
async fn whole(arm: &Arm, mut stream: AnswerStream, answered: &mut Answered) -> Result<Reply, EngineFailure> {
    let (mut pieces, mut quotes, mut grounded, mut noted) = (Vec::new(), Vec::new(), false, false);
    while let Some(event) = stream.next().await {
        match event {
            AnswerEvent::Retrieval(retrieved) => {
                grounded = true;
                noted = !retrieved.not_in_effect.is_empty();
                // One search for all; who found it too far from an answer has none.
                if !retrieved.passages.is_empty() {
                    answered.passages = retrieved.passages.into_iter().map(Into::into).collect();
                }
            }
            AnswerEvent::Token(text) => pieces.push(text),
            AnswerEvent::Quote(quote) => quotes.push(quote),
            AnswerEvent::Citation(_) => {}
            AnswerEvent::Failed(failure) => return Err(failure),
            AnswerEvent::Done(done) => {
                // What the server says of other editions comes last, in a piece of its own. It is the same whoever answers, and not theirs.
                let by_model = done.finish_reason != FinishReason::Abstained;
                let note = if noted && by_model { pieces.pop() } else { None };
                return Ok(Reply {
                    key: arm.key(),
                    quotes,
                    answer: pieces.concat(),
                    note: note.map(|note| note.trim().to_owned()),
                    grounded,
                    finish: done.finish_reason.as_str().to_owned(),
                    prompt_sha256: done.provenance.prompt_sha256,
                    prompt_tokens: done.usage.prompt_tokens,
                    answer_tokens: done.usage.completion_tokens,
                });
            }
        }
    }
    Err(EngineFailure::Internal)
}

/// Asks one arm alone: when the first piece of its answer came, if any did, and how it ended.
async fn alone(
    answerer: &Answerer,
    asked: &Question,
    way: Way,
    one: &SuiteQuestion,
) -> Result<(Option<Instant>, Done), CompareError> {
    let failed = |source| CompareError::Engine { id: one.id.clone(), source };
    let streams = answerer.compare(asked, &[way]);
    let mut streams = streams.map_err(|source| CompareError::Answer { id: one.id.clone(), source })?;
    let mut stream = streams.pop().ok_or_else(|| failed(EngineFailure::Internal))?;
    let mut first = None;
    while let Some(event) = stream.next().await {
        match event {
            AnswerEvent::Quote(_) | AnswerEvent::Token(_) => _ = first.get_or_insert_with(Instant::now),
            AnswerEvent::Failed(source) => return Err(failed(source)),
            AnswerEvent::Done(done) => return Ok((first, done)),
            AnswerEvent::Retrieval(_) | AnswerEvent::Citation(_) => {}
        }
    }
    Err(failed(EngineFailure::Internal))
}

/// How long one question takes one arm, alone and with nothing kept of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Latency {
    /// From the question to the first piece of the answer, in milliseconds: the search, the prompt, and reading it.
    pub first_ms: f64,
    /// To the end of the answer.
    pub total_ms: f64,
}

/// Asks questions one arm at a time, and keeps the time. The answers are those of [`ask`] and are dropped.
///
/// # Errors
/// When a question is refused or the engine fails, or `progress` says to stop.
pub async fn time(
    answerer: &Answerer,
    suite: &Suite,
    arm: &Arm,
    questions: &[&SuiteQuestion],
    progress: &mut dyn FnMut() -> bool,
) -> Result<Vec<Latency>, CompareError> {
    let mut all = Vec::new();
    for (n, one) in questions.iter().enumerate() {
        if !progress() {
            return Err(CompareError::Stopped);
        }
        // A salt of its own: nothing of the prompt has been read before.
        let asked = Question { cache_salt: Some(format!("time {} {n}", arm.name)), ..question(suite, one) };
        let begun = Instant::now();
        let (first, _) = alone(answerer, &asked, arm.way(suite, one), one).await?;
        let total_ms = begun.elapsed().as_secs_f64() * 1e3;
        let first_ms = first.map_or(total_ms, |at| (at - begun).as_secs_f64() * 1e3);
        all.push(Latency { first_ms, total_ms });
    }
    Ok(all)
}

/// How many tokens of its prompt each arm finds in the cache, because arms before it have read them, when all are asked one after another:
/// the mean over questions.
///
/// # Errors
/// When a question is refused or the engine fails, or `progress` says to stop.
pub async fn cached(
    answerer: &Answerer,
    suite: &Suite,
    arms: &[Arm],
    questions: &[&SuiteQuestion],
    progress: &mut dyn FnMut() -> bool,
) -> Result<Vec<f64>, CompareError> {
    let mut tokens = vec![0; arms.len()];
    for (n, one) in questions.iter().enumerate() {
        // What is read is kept under the question's salt, so that only the arms of this pass can have read it.
        let salt = Some(format!("cached {n}"));
        let asked = Question { cache_salt: salt, max_tokens: Some(1), ..question(suite, one) };
        for (arm, tokens) in arms.iter().zip(&mut tokens) {
            if !progress() {
                return Err(CompareError::Stopped);
            }
            let (_, done) = alone(answerer, &asked, arm.way(suite, one), one).await?;
            *tokens += done.usage.cached_tokens;
        }
    }
    Ok(tokens.into_iter().map(|tokens| tokens as f64 / questions.len().max(1) as f64).collect())
}
