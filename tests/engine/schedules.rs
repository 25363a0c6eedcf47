//! Random schedules: whoever else is answered, whatever is cached, guessed, evicted and cancelled, each answer is
//! the one that the request gets alone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use shishin::engine::{EngineSettings, FinishReason, GenerateRequest, Sampling};
use shishin::model::config::Architecture;
use shishin::model::fast::PackedAdapter;
use shishin::quote::{Quote, QuoteGuide};

use crate::asking::{self, Asked, Fast, GREEDY, ask, cache_bytes, start};
use crate::common::tiny;

const LONGEST_PROMPT: usize = 200;
const LONGEST_ANSWER: usize = 40;
const CONTEXT: usize = LONGEST_PROMPT + LONGEST_ANSWER;
const PAGES: usize = CONTEXT / 16;
const _: () = assert!(CONTEXT <= tiny::CONTEXT, "what the models can hold");
/// Requests that the schedules of a round are made of.
const POOL: usize = 48;
const SCHEDULES_OF_A_ROUND: u64 = 40;

/// What the schedules had in them.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Where we are, for the message of a failure.
    place: String,
    pub(crate) schedules: usize,
    pub(crate) requests: usize,
    pub(crate) finished: usize,
    pub(crate) cancelled: usize,
    /// Those of them that had shown text already.
    pub(crate) cancelled_halfway: usize,
    pub(crate) stopped: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) drafted_tokens: usize,
    pub(crate) accepted_tokens: usize,
}

/// A model and what can be asked of it, kept from round to round.
struct Subject {
    model: Arc<Fast>,
    adapters: [Arc<PackedAdapter>; 2],
}

impl Subject {
    fn new(architecture: Architecture, threads: usize) -> Self {
        let model = asking::tiny_model(architecture, threads);
        let adapters = [(4, 1), (20, 2)].map(|(rank, seed)| asking::packed(&model, rank, seed));
        Self { model, adapters }
    }
}

/// A request that can be made again and again, and its answer.
#[derive(Debug, Clone)]
struct Question {
    prompt: Vec<u32>,
    adapter: Option<usize>,
    salt: Option<&'static str>,
    sampling: Sampling,
    max_tokens: usize,
    stop: Vec<String>,
    /// The answer begins within a quote.
    quotes: bool,
    answer: Answer,
}

/// What quotes may say: units that begin alike and differ, so that guesses are right for a while.
const PASSAGE: &str = "abababababab.\n\nababababab and so on.\n\nabc abc abc abc.";

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Answer {
    text: String,
    finish_reason: Option<FinishReason>,
    tokens: usize,
}

impl Question {
    fn random(random: &mut ChaCha8Rng, trunks: &[Vec<u32>]) -> Self {
        let trunk = trunks.choose(random).unwrap();
        // Often at the edge of a block, where sharing is most delicate.
        let length = match random.random_bool(0.3) {
            true => (16 * random.random_range(0..=LONGEST_PROMPT / 16) + random.random_range(0..=2))
                .saturating_sub(1),
            false => random.random_range(1..=LONGEST_PROMPT),
        };
        let length = length.clamp(1, LONGEST_PROMPT);
        let own = if random.random_bool(0.3) { 0 } else { random.random_range(0..=length / 2) };
        let mut prompt = trunk[..length - own].to_vec();
        prompt.extend((0..own).map(|_| random.random_range(0..256)));
        let sampling = match random.random_bool(0.5) {
            true => Sampling { repetition_penalty: *[1.0, 1.0, 1.2].choose(random).unwrap(), ..GREEDY },
            false => Sampling {
                temperature: random.random_range(0.2..1.5),
                top_p: *[1.0, 0.9, 0.5].choose(random).unwrap(),
                top_k: *[0, 0, 3, 40].choose(random).unwrap(),
                repetition_penalty: *[1.0, 1.0, 1.1].choose(random).unwrap(),
                no_repeat_ngram_size: *[0, 0, 2, 12].choose(random).unwrap(),
                seed: random.random(),
            },
        };
        Self {
            prompt,
            adapter: *[None, None, None, Some(0), Some(1)].choose(random).unwrap(),
            salt: *[None, None, None, None, Some("a"), Some("b")].choose(random).unwrap(),
            sampling,
            max_tokens: random.random_range(1..=LONGEST_ANSWER),
            stop: Vec::new(),
            quotes: random.random_bool(0.3),
            answer: Answer::default(),
        }
    }

    fn request(&self, subject: &Subject) -> GenerateRequest {
        let possible = shishin::quote::possible([PASSAGE].into_iter().filter(|_| self.quotes));
        let preferred = |(quote, n): (Quote, u8)| (quote.text, f32::from(n % 3));
        let mut quotes = QuoteGuide::preferring(possible.into_iter().zip(0..).map(preferred));
        quotes.push(b"> ");
        GenerateRequest {
            prompt: self.prompt.clone(),
            adapter: self.adapter.map(|at| Arc::clone(&subject.adapters[at])),
            cache_salt: self.salt.map(str::to_owned),
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            quotes,
        }
    }
}

/// Requests that begin alike in groups, with the answers that an engine gives that does one thing at a time.
fn pool(subject: &Subject, random: &mut ChaCha8Rng) -> Vec<Question> {
    // Of few different tokens, so that the same runs come again and are guessed.
    let trunks: Vec<Vec<u32>> = [2, 4, 256, 256]
        .map(|alphabet| (0..LONGEST_PROMPT).map(|_| random.random_range(0..alphabet)).collect())
        .into();
    let mut pool: Vec<Question> = (0..POOL).map(|_| Question::random(random, &trunks)).collect();
    // The first one needs every position that there is.
    pool[0] =
        Question { prompt: trunks[0].clone(), max_tokens: LONGEST_ANSWER, salt: None, ..pool[0].clone() };

    let settings = EngineSettings {
        concurrent: 1,
        prefill_chunk: CONTEXT,
        context: CONTEXT,
        cache_bytes: cache_bytes(&subject.model, PAGES),
        prefix_cache: false,
        draft_tokens: 0,
        ..EngineSettings::default()
    };
    let (engine, handle) = start(&subject.model, settings);
    for question in &mut pool {
        let alone = |question: &Question| {
            let (text, done) = ask(&handle, question.request(subject));
            assert_eq!((done.cached_tokens, done.drafted_tokens), (0, 0));
            Answer { text, finish_reason: Some(done.finish_reason), tokens: done.completion_tokens }
        };
        question.answer = alone(question);
        let characters: Vec<char> = question.answer.text.chars().collect();
        if random.random_bool(0.25) && !characters.is_empty() {
            let from = random.random_range(0..characters.len());
            let to = characters.len().min(from + random.random_range(1..=3));
            question.stop = vec!["never".to_owned(), characters[from..to].iter().collect()];
            let cut = alone(question);
            assert!(
                question.answer.text.starts_with(&cut.text) && cut.text.len() < question.answer.text.len()
            );
            assert_eq!(cut.finish_reason, Some(FinishReason::Stop));
            question.answer = cut;
        }
    }
    drop(handle);
    engine.join();
    pool
}

fn random_settings(model: &Fast, random: &mut ChaCha8Rng) -> EngineSettings {
    EngineSettings {
        queue: 64,
        queue_tokens: 64 * LONGEST_PROMPT,
        concurrent: random.random_range(1..=8),
        prefill_chunk: random.random_range(1..=64),
        context: CONTEXT,
        cache_bytes: cache_bytes(model, PAGES + random.random_range(0..=4usize).pow(2) * 3),
        prefix_cache: random.random_bool(0.75),
        draft_tokens: random.random_range(0..=7),
    }
}

/// One schedule. At the end a request runs that needs the whole of the smallest cache, so no block is lost.
fn schedule(subject: &Subject, pool: &[Question], random: &mut ChaCha8Rng, seen: &mut Seen) {
    let settings = random_settings(&subject.model, random);
    let (engine, handle) = start(&subject.model, settings.clone());
    // Few different ones, so that what one leaves in the cache is of use to others.
    let kinds = random.random_range(2..=10);
    let kinds: Vec<&Question> = pool.choose_multiple(random, kinds).collect();
    let mut to_come: Vec<&Question> =
        (0..random.random_range(1..=20)).map(|_| *kinds.choose(random).unwrap()).collect();
    // The question, what has come, and after how many texts its client leaves.
    let mut running: Vec<(&Question, Asked, Option<usize>)> = Vec::new();
    while !(to_come.is_empty() && running.is_empty()) {
        if running.is_empty() || (!to_come.is_empty() && random.random_bool(0.6)) {
            let question = to_come.pop().unwrap();
            let asked = Asked::new(handle.submit(question.request(subject)).unwrap());
            let leaves = random.random_bool(0.3).then(|| random.random_range(0..=question.answer.tokens));
            running.push((question, asked, leaves));
            seen.requests += 1;
            continue;
        }
        let at = random.random_range(0..running.len());
        let (question, asked, leaves) = &mut running[at];
        if leaves.is_some_and(|texts| asked.texts >= texts) {
            let (text, place) = (&asked.text, &seen.place);
            assert!(
                question.answer.text.starts_with(text),
                "{place}: {text:?} begins {question:?} with {settings:?}"
            );
            seen.cancelled += 1;
            seen.cancelled_halfway += usize::from(asked.texts > 0);
            running.swap_remove(at);
        } else if !asked.step() {
            let (question, asked, _) = running.swap_remove(at);
            check(question, asked, &settings, seen);
        }
    }
    seen.requests += 1;
    let whole = Asked::new(handle.submit(pool[0].request(subject)).unwrap());
    check(&pool[0], whole, &settings, seen);
    seen.schedules += 1;
    drop(handle);
    engine.join();
}

fn check(question: &Question, asked: Asked, settings: &EngineSettings, seen: &mut Seen) {
    let (text, done) = asked.finish();
    let done = done.unwrap();
    let answer = Answer { text, finish_reason: Some(done.finish_reason), tokens: done.completion_tokens };
    assert_eq!(answer, question.answer, "{}: {question:?} with {settings:?}", seen.place);
    assert_eq!(done.prompt_tokens, question.prompt.len());
    assert!(done.cached_tokens < done.prompt_tokens, "the last token is always run");
    assert!(settings.prefix_cache || done.cached_tokens == 0);
    assert!(settings.draft_tokens > 0 || done.drafted_tokens == 0);
    assert!(done.accepted_tokens <= done.drafted_tokens && done.accepted_tokens < done.completion_tokens);
    seen.finished += 1;
    seen.stopped += usize::from(done.finish_reason == FinishReason::Stop);
    seen.prompt_tokens += done.prompt_tokens;
    seen.cached_tokens += done.cached_tokens;
    seen.completion_tokens += done.completion_tokens;
    seen.drafted_tokens += done.drafted_tokens;
    seen.accepted_tokens += done.accepted_tokens;
}

/// Runs the schedules of these rounds, [`SCHEDULES_OF_A_ROUND`] each; the same number is the same round. The
/// models of odd rounds run on two threads.
fn rounds(numbers: Range<u64>) -> Seen {
    let mut seen = Seen::default();
    let mut subjects = HashMap::new();
    for number in numbers {
        let kind = number as usize % (2 * Architecture::ALL.len());
        let (architecture, threads) = (Architecture::ALL[kind / 2], 1 + kind % 2);
        let subject = subjects.entry(kind).or_insert_with(|| Subject::new(architecture, threads));
        let mut random = ChaCha8Rng::seed_from_u64(number);
        let pool = pool(subject, &mut random);
        for n in 0..SCHEDULES_OF_A_ROUND {
            seen.place = format!("schedule {n} of round {number}, {architecture:?} on {threads} threads");
            schedule(subject, &pool, &mut random, &mut seen);
        }
    }
    seen
}

/// As many schedules as asked for, or a few more.
pub(crate) fn run(schedules: u64) -> Seen {
    rounds(0..schedules.div_ceil(SCHEDULES_OF_A_ROUND))
}

#[test]
fn every_schedule_gives_the_answers_that_requests_get_alone() {
    let seen = run(320);
    println!("{seen:?}");
    // That the schedules have what they are about.
    assert!(seen.finished > 1_000 && seen.cancelled_halfway > 50 && seen.cancelled > seen.cancelled_halfway);
    assert!(seen.cached_tokens > seen.prompt_tokens / 6, "{seen:?}");
    assert!(seen.drafted_tokens > seen.accepted_tokens && seen.accepted_tokens > 100, "{seen:?}");
    assert!(seen.stopped > 50, "{seen:?}");
}
