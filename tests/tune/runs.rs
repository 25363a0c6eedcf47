//! Whole runs on a tiny model: an adapter that learns, that others can load, and that comes out the same when the run was ended
//! in between.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::Value as Json;
use shishin::dataset::lint::Beyond;
use shishin::dataset::read::parse;
use shishin::kernels::{Cpu, Variant};
use shishin::model::BaseModel;
use shishin::model::config::Architecture;
use shishin::model::frozen::FrozenModel;
use shishin::model::lora::Adapter;
use shishin::model::tensors::Projection;
use shishin::model::weights::WeightForm;
use shishin::prompt::Wording;
use shishin::tune::checkpoint::Checkpoint;
use shishin::tune::examples::{Example, ExampleMaker, fingerprint, pack};
use shishin::tune::graph::Graph;
use shishin::tune::output::{write_gguf, write_peft};
use shishin::tune::parameters::{LoraShape, Parameters};
use shishin::tune::run::{Outcome, Run, RunError, Step, Summary, Watch, best};
use shishin::tune::settings::{Begins, TrainingSettings};

use super::common::tiny;
use super::frozen;

/// Stops after so many looks, and remembers the losses and what was said.
pub(super) struct Watcher {
    looks: Cell<usize>,
    pub(super) losses: Vec<f64>,
    pub(super) notes: Vec<String>,
}

impl Watcher {
    pub(super) fn new(looks: usize) -> Self {
        Self { looks: Cell::new(looks), losses: Vec::new(), notes: Vec::new() }
    }
}

impl Watch for Watcher {
    fn note(&mut self, line: &str) {
        self.notes.push(line.to_owned());
    }

    fn step(&mut self, step: &Step) {
        self.losses.push(step.loss);
    }

    fn stop(&self) -> bool {
        let left = self.looks.get();
        self.looks.set(left.saturating_sub(1));
        left == 0
    }
}

/// A model, and conversations in which the assistant repeats the last word.
pub(super) struct Workplace {
    folder: tempfile::TempDir,
    model: BaseModel<FrozenModel>,
    pub(super) train: Vec<Example>,
    pub(super) valid: Vec<Example>,
    /// What must not become less likely, and by how much it may.
    pub(super) budget: Option<(Vec<Example>, f64)>,
}

pub(super) fn lines(words: &[&str]) -> String {
    let line = |word: &&str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"say {word}"}},{{"role":"assistant","content":"{word}"}}]}}"#
        )
    };
    words.iter().map(|w| line(w) + "\n").collect()
}

impl Workplace {
    pub(super) fn new(architecture: Architecture) -> Self {
        Self::with(architecture, false)
    }

    pub(super) fn with(architecture: Architecture, late: bool) -> Self {
        Self::of(&tiny::Tiny::new(architecture), late)
    }

    pub(super) fn of(base: &tiny::Tiny, late: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        base.write(&folder.path().join("base"));
        let model = frozen(&folder.path().join("base"), WeightForm::Stored);
        let template = model.template.as_ref().unwrap();
        let asks = || model.tokenizer.encode_template(&template.generation_prompt().unwrap()).unwrap();
        let invocation = late.then(asks);
        let tokenizer = &model.tokenizer;
        let maker =
            ExampleMaker { tokenizer, template, wording: None, max_tokens: 200, invocation, choices: false };
        let read = |name: &str, words: &[&str]| {
            let path = folder.path().join(name);
            std::fs::write(&path, lines(words)).unwrap();
            maker.read(&[path]).unwrap()
        };
        let train = read("train.jsonl", &["ward", "nurse", "pulse", "the fever", "bed", "rest", "tea"]);
        let valid = read("valid.jsonl", &["the bed", "nurses"]);
        Self { model, train, valid, budget: None, folder }
    }

    pub(super) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn parameters(&self) -> Parameters {
        let targets = shishin::model::tensors::Projection::ALL.to_vec();
        Parameters::new(&self.model.config, LoraShape { rank: 4, alpha: 8.0, rslora: false, targets }, 3)
    }

    pub(super) fn spine<'a>(&'a self, folder: &'a Path, settings: &'a TrainingSettings) -> Run<'a> {
        Run {
            settings,
            dropout: 0.1,
            model: &self.model,
            train: &self.train,
            valid: &self.valid,
            budget: self.budget.as_ref().map(|(texts, budget)| (texts.as_slice(), *budget)),
            folder,
            identity: format!("{settings:?} {}", fingerprint(&self.train)),
        }
    }

    pub(super) fn run(
        &self,
        folder: &Path,
        settings: &TrainingSettings,
        watch: &mut Watcher,
    ) -> Result<Outcome, RunError> {
        self.spine(folder, settings).train(self.parameters(), watch)
    }
}

pub(super) fn settings() -> TrainingSettings {
    TrainingSettings {
        epochs: 6,
        batch: 3,
        row_tokens: 64,
        learning_rate: 2e-2,
        checkpoint_every: 2,
        kl: 0.01,
        patience: 0,
        ..TrainingSettings::default()
    }
}

pub(super) fn done(outcome: Outcome) -> Summary {
    match outcome {
        Outcome::Done(summary) => summary,
        Outcome::Stopped(step) => panic!("stopped at {step}"),
    }
}

/// A run's record, without what a clock says.
pub(super) fn record(folder: &Path) -> Vec<Json> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let one = |line: &str| {
        let mut line: Json = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds");
        line
    };
    text.lines().map(one).collect()
}

#[test]
fn a_run_learns_and_ends_the_same_however_often_it_was_stopped() {
    for late in [false, true] {
        learns_and_ends_the_same(&Workplace::with(Architecture::Llama, late));
    }
}

fn learns_and_ends_the_same(place: &Workplace) {
    let settings = settings();
    let mut watcher = Watcher::new(usize::MAX);
    let whole = done(place.run(&place.folder("whole"), &settings, &mut watcher).unwrap());
    let (first, best) = whole.valid.unwrap();
    assert!(best < 0.7 * first, "{first} → {best}");
    assert!(watcher.losses[17] < 0.5 * watcher.losses[0], "{:?}", watcher.losses);

    for looks in [1, 9, 13] {
        let folder = place.folder(&format!("stopped after {looks}"));
        let mut stops = 0;
        let summary = loop {
            match place.run(&folder, &settings, &mut Watcher::new(looks)).unwrap() {
                Outcome::Done(summary) => break summary,
                Outcome::Stopped(_) => stops += 1,
            }
            // One look is too little for the self-test: nothing would ever move.
            if stops > 40 {
                break done(place.run(&folder, &settings, &mut Watcher::new(usize::MAX)).unwrap());
            }
        };
        assert!(stops > 0);
        assert_eq!(summary.hash, whole.hash);
        assert_eq!(record(&folder), record(&place.folder("whole")));
    }
}

#[test]
fn a_run_ends_where_it_forgets_more_than_it_may() {
    let mut place = Workplace::new(Architecture::Qwen2);
    let settings = TrainingSettings { evaluate_every: 3, ..settings() };
    let run = |place: &Workplace, name: &str| {
        place.run(&place.folder(name), &settings, &mut Watcher::new(usize::MAX))
    };
    let record = |place: &Workplace, name: &str| -> Vec<Step> {
        let text = std::fs::read_to_string(place.folder(name).join("metrics.jsonl")).unwrap();
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // What is learnt elsewhere makes the text of other words less likely.
    let other = place.valid.clone();
    place.budget = Some((other.clone(), 1e9));
    let free = done(run(&place, "free").unwrap());
    let looks: Vec<f64> = record(&place, "free").iter().filter_map(|step| step.forgotten).collect();
    assert_eq!((free.steps, looks.len()), (18, 6));
    // The validation examples are the text here: their losses say what must be found.
    let (base, _) = free.valid.unwrap();
    for step in record(&place, "free").iter().filter(|step| step.forgotten.is_some()) {
        let expected = step.valid.unwrap() / base - 1.0;
        assert!((step.forgotten.unwrap() - expected).abs() < 1e-9, "{step:?} {base}");
    }
    // A budget that the first look keeps and a later one does not: the run ends there, with the best of before.
    let mut worse = place.train.clone();
    for example in &mut worse {
        // An answer that becomes the less likely the more is learnt.
        for (token, _) in example.tokens.iter_mut().zip(&example.learnt).filter(|(_, learnt)| **learnt) {
            *token = 5;
        }
    }
    place.budget = Some((worse, 1e9));
    done(run(&place, "measured").unwrap());
    let looks: Vec<f64> = record(&place, "measured").iter().filter_map(|step| step.forgotten).collect();
    assert!(looks[0] < looks[5], "it must forget for this test: {looks:?}");
    let bound = f64::midpoint(looks[0], looks[1..].iter().copied().fold(f64::MIN, f64::max));
    let over = looks.iter().position(|look| *look > bound).unwrap();
    place.budget.as_mut().unwrap().1 = bound;
    let ended = done(run(&place, "ended").unwrap());
    assert_eq!(ended.steps, 3 * (over + 1), "{looks:?} {bound}");
    assert!(ended.chosen < ended.steps && ended.chosen.is_multiple_of(3));
    // The record says so too, for who asks the server which step it serves.
    let steps = record(&place, "ended");
    assert_eq!(best(&steps), Some(ended.chosen));
    let over: Vec<usize> = steps.iter().filter(|step| step.over_budget).map(|step| step.step).collect();
    assert_eq!(over, [ended.steps]);
    // Asked again, it stays ended; and where not even the first look keeps the budget, nothing comes out.
    assert_eq!(done(run(&place, "ended").unwrap()).hash, ended.hash);
    place.budget.as_mut().unwrap().1 = looks.iter().copied().fold(f64::MAX, f64::min) - 0.1;
    for _ in 0..2 {
        let refused = run(&place, "refused").unwrap_err();
        assert!(matches!(refused, RunError::Budget { .. }), "{refused}");
    }
}

#[test]
fn other_settings_do_not_go_on_with_a_run() {
    let place = Workplace::new(Architecture::Qwen2);
    let folder = place.folder("run");
    let stopped = place.run(&folder, &settings(), &mut Watcher::new(12)).unwrap();
    assert!(matches!(stopped, Outcome::Stopped(step) if step > 0), "{stopped:?}");
    let other = TrainingSettings { learning_rate: 1e-3, ..settings() };
    let refused = place.run(&folder, &other, &mut Watcher::new(5)).unwrap_err();
    assert!(matches!(refused, RunError::Another(_)), "{refused}");

    let path = folder.join("checkpoint.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let refused = place.run(&folder, &settings(), &mut Watcher::new(5)).unwrap_err().to_string();
        assert!(refused.contains("is damaged"), "{cut}: {refused}");
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(Checkpoint::read(&path, 3).is_err(), "an adapter of another size");
}

#[test]
fn adapters_load_from_both_formats_with_the_numbers_that_were_trained() {
    for architecture in Architecture::ALL {
        let place = Workplace::new(architecture);
        let summary =
            done(place.run(&place.folder("run"), &settings(), &mut Watcher::new(usize::MAX)).unwrap());
        let mut parameters = place.parameters();
        parameters.numbers = summary.numbers;
        let folder = place.folder("adapter");
        let invocation = Some([7, 300].as_slice()).filter(|_| architecture != Architecture::Qwen3);
        write_peft(&folder, "tiny", &parameters, 0.1, invocation).unwrap();
        write_gguf(&folder.join("adapter.gguf"), &place.model.config, &parameters, invocation).unwrap();
        for path in [folder.clone(), folder.join("adapter.gguf")] {
            let adapter = Adapter::load(&path, &place.model.config, &Device::Cpu).unwrap();
            assert_eq!(adapter.invocation(), invocation);
            let pairs: Vec<_> = adapter.pairs().collect();
            assert_eq!(pairs.len(), parameters.slots().len());
            for (layer, projection, pair) in pairs {
                let slot = parameters.slot(layer, projection).unwrap();
                assert!((pair.scale - 2.0).abs() < 1e-6);
                for (matrix, range) in [(&pair.a, &slot.a), (&pair.b, &slot.b)] {
                    let found: Vec<f32> = matrix.flatten_all().unwrap().to_vec1().unwrap();
                    let expected = &parameters.numbers[range.clone()];
                    let same =
                        found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 1e-3 * e.abs() + 1e-6);
                    assert!(found.len() == expected.len() && same, "{architecture:?} {layer} {projection}");
                }
            }
        }
    }
}

/// Training goes on from an adapter of the same shape, whatever its scale is rounded to, and changes nothing where the shape is another.
#[test]
fn parameters_start_from_an_adapter_of_their_shape() {
    let place = Workplace::new(Architecture::Llama);
    let config = &place.model.config;
    let shape = |alpha: f64, targets: &[Projection]| LoraShape {
        rank: 3,
        alpha,
        rslora: true,
        targets: targets.to_vec(),
    };
    let mut first = Parameters::new(config, shape(128.0, &Projection::ALL), 5);
    first.numbers.iter_mut().enumerate().for_each(|(n, number)| *number = (n % 64) as f32 / 64.0);
    let folder = place.folder("start");
    write_peft(&folder, "tiny", &first, 0.0, None).unwrap();
    let adapter = Adapter::load(&folder, config, &Device::Cpu).unwrap();
    let mut second = Parameters::new(config, shape(128.0, &Projection::ALL), 6);
    second.start_from(&adapter).unwrap();
    assert_eq!(second.numbers, first.numbers);
    for (other, part) in [
        (shape(64.0, &Projection::ALL), "asks for rank 3 at scale 36.95"),
        (shape(128.0, &[Projection::Q, Projection::V]), "no such map"),
    ] {
        let mut other = Parameters::new(config, other, 6);
        let before = other.numbers.clone();
        let refused = other.start_from(&adapter).unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
        assert_eq!(other.numbers, before);
    }
    let few = Parameters::new(config, shape(128.0, &[Projection::Q]), 5);
    write_peft(&folder, "tiny", &few, 0.0, None).unwrap();
    let adapter = Adapter::load(&folder, config, &Device::Cpu).unwrap();
    let refused = second.start_from(&adapter).unwrap_err().to_string();
    assert!(refused.contains("layer 0 k_proj: not adapted"), "{refused}");
}

/// Keeping what the base has read changes no bit, nor does having too little room for it.
#[test]
fn how_much_of_the_prefixes_is_kept_changes_nothing() {
    let place = Workplace::with(Architecture::Gemma3, true);
    let run = |name: &str, prefix_megabytes: usize| {
        let settings = TrainingSettings { prefix_megabytes, ..settings() };
        done(place.run(&place.folder(name), &settings, &mut Watcher::new(usize::MAX)).unwrap())
    };
    assert_eq!(run("kept", 3000).hash, run("read again", 0).hash);
}

/// A run may end before the data does; its rate falls to the end all the same, and the last look is at the last step.
#[test]
fn a_run_of_so_many_steps_ends_there() {
    let place = Workplace::new(Architecture::Llama);
    let settings = TrainingSettings { steps: 3, epochs: 9, ..settings() };
    let mut watcher = Watcher::new(usize::MAX);
    let summary = done(place.run(&place.folder("few"), &settings, &mut watcher).unwrap());
    assert_eq!((summary.steps, watcher.losses.len()), (3, 3));
    assert!(summary.valid.is_some());
    let long = TrainingSettings { steps: 1000, epochs: 1, ..settings };
    let mut watcher = Watcher::new(usize::MAX);
    let whole = done(place.run(&place.folder("whole"), &long, &mut watcher).unwrap());
    assert!(whole.steps < 1000 && whole.steps == watcher.losses.len());
}

/// Nor does keeping it on disk, also where some of the files were damaged meanwhile.
#[test]
fn prefixes_on_disk_change_nothing() {
    let place = Workplace::with(Architecture::Gemma3, true);
    let folder = place.folder("prefixes");
    let run = |name: &str, prefix_folder: &Path| {
        let settings =
            TrainingSettings { prefix_megabytes: 0, prefix_folder: prefix_folder.to_owned(), ..settings() };
        done(place.run(&place.folder(name), &settings, &mut Watcher::new(usize::MAX)).unwrap()).hash
    };
    let files = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let expected = run("without", Path::new(""));
    assert_eq!(run("first", &folder), expected);
    let kept = files();
    assert!(kept.len() > 2, "{kept:?}");
    let whole = std::fs::read(&kept[0]).unwrap();
    std::fs::write(&kept[0], &whole[..whole.len() / 2]).unwrap();
    std::fs::write(&kept[1], "").unwrap();
    assert_eq!(run("second", &folder), expected);
    assert_eq!((files().len(), std::fs::read(&kept[0]).unwrap()), (kept.len(), whole), "mended");
    let place_of_a_file = &kept[0];
    let settings = TrainingSettings { prefix_folder: place_of_a_file.clone(), ..settings() };
    let error = place.run(&place.folder("third"), &settings, &mut Watcher::new(usize::MAX)).unwrap_err();
    assert!(error.to_string().starts_with("training.prefix_folder: cannot use"), "{error}");
}

/// A dialogue is learnt turn by turn: each where the base has read the others.
#[test]
fn a_late_example_is_made_of_each_turn_that_is_learnt() {
    let place = Workplace::with(Architecture::Qwen2, true);
    let template = place.model.template.as_ref().unwrap();
    let tokens = |begins: Begins| {
        let marks = begins.marks(template).unwrap().unwrap();
        place.model.tokenizer.encode_template(&marks).unwrap()
    };
    assert_eq!(Begins::Prompt.marks(template).unwrap(), None);
    let (asks, answers) = (tokens(Begins::Question), tokens(Begins::Answer));
    assert_ne!(asks, answers);
    let path = place.folder.path().join("dialogue.jsonl");
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let messages = [
        turn("user", "say bed"),
        turn("assistant", "bed"),
        turn("user", "say tea"),
        turn("assistant", "tea"),
    ];
    std::fs::write(&path, serde_json::json!({"messages": messages}).to_string()).unwrap();
    let maker = |invocation: Option<Vec<u32>>| ExampleMaker {
        tokenizer: &place.model.tokenizer,
        template,
        wording: None,
        max_tokens: 200,
        invocation,
        choices: false,
    };
    let whole = maker(None).read(std::slice::from_ref(&path)).unwrap().remove(0);
    // Some editors put a mark in front of a file, which is nothing to learn.
    let marked = place.folder.path().join("marked.jsonl");
    let line = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&marked, format!("\u{feff}{line}\n")).unwrap();
    assert_eq!(maker(None).read(&[marked]).unwrap()[0].tokens, whole.tokens);
    // Tools would be left out without a word.
    let tooled = place.folder.path().join("tooled.jsonl");
    let tool = serde_json::json!([{"type": "function", "function": {"name": "dose"}}]);
    let with = serde_json::json!({"messages": messages, "tools": tool});
    std::fs::write(&tooled, format!("{line}\n{with}\n")).unwrap();
    let error = maker(None).read(&[tooled]).unwrap_err().to_string();
    assert!(error.contains("tooled.jsonl:2: it declares tools"), "{error}");
    for invocation in [&asks, &answers] {
        let turns = maker(Some(invocation.clone())).read(std::slice::from_ref(&path)).unwrap();
        assert_eq!(turns.len(), 2);
        assert_eq!(turns[1].tokens, whole.tokens);
        assert!(whole.tokens.starts_with(&turns[0].tokens) && turns[0].tokens.len() < turns[1].tokens.len());
        for turn in &turns {
            assert!(turn.active().starts_with(invocation));
            // It is the turn's own question, and what is learnt is all that follows the marks of the answer.
            let heads = turn.active().windows(asks.len()).filter(|window| *window == asks).count();
            assert_eq!(heads, usize::from(*invocation == asks));
            let learnt = turn.learnt.iter().filter(|learnt| **learnt).count();
            let start = turn.tokens.len() - learnt;
            assert!(turn.learnt[start..].iter().all(|learnt| *learnt));
            assert!(turn.tokens[..start].ends_with(&answers));
        }
    }
}

/// What chooses a quote can weigh more, and the self-test before a run holds then too.
#[test]
fn tokens_that_choose_a_quote_weigh_more() {
    let mut place = Workplace::new(Architecture::Qwen2);
    let template = place.model.template.as_ref().unwrap();
    let row = |answer: &str, passages: &[&str]| {
        let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        let system = turn("system", "Give 5 mg. Give water. Wait.");
        let messages = [system, turn("user", "how much"), turn("assistant", answer)];
        serde_json::json!({"messages": messages, "meta": {"passages": passages}}).to_string() + "\n"
    };
    let path = place.folder.path().join("quotes.jsonl");
    let quoted = "> Give 5 mg.\n> Wait.\nFive.";
    let rows = [row(quoted, &["a"]), row("Nothing.", &["a"]), row(quoted, &[])];
    std::fs::write(&path, rows.concat()).unwrap();
    let asks = place.model.tokenizer.encode_template(&template.generation_prompt().unwrap()).unwrap();
    for invocation in [None, Some(asks)] {
        let tokenizer = &place.model.tokenizer;
        let maker =
            ExampleMaker { tokenizer, template, wording: None, max_tokens: 400, invocation, choices: true };
        let examples = maker.read(std::slice::from_ref(&path)).unwrap();
        let chosen = |example: &Example| -> String {
            let ids: Vec<u32> = example.choices.iter().map(|at| example.tokens[*at]).collect();
            tokenizer.decode(&ids)
        };
        assert_eq!(chosen(&examples[0]), "> Give 5> WF");
        assert!(!chosen(&examples[1]).is_empty() && "Nothing".starts_with(&chosen(&examples[1])));
        assert_eq!(chosen(&examples[2]), "");
        let all: Vec<&Example> = examples.iter().collect();
        for (batch, members) in pack(&all, 1, 0.5, 6.0) {
            let example = all[members[0]];
            let weighs = |weight: f32| batch.targets.iter().filter(|t| t.weight == weight).count();
            assert_eq!(weighs(3.0), example.choices.len());
            assert_eq!(weighs(0.5), batch.targets.len() - example.choices.len());
        }
        let maker = ExampleMaker { choices: false, ..maker };
        assert!(maker.read(std::slice::from_ref(&path)).unwrap().iter().all(|e| e.choices.is_empty()));
        place.train = examples;
    }
    place.valid.clear();
    let hash = |quote_weight: f32| {
        let settings = TrainingSettings { quote_weight, epochs: 1, kl: 0.0, row_tokens: 400, ..settings() };
        let folder = place.folder(&format!("weight {quote_weight}"));
        done(place.run(&folder, &settings, &mut Watcher::new(usize::MAX)).unwrap()).hash
    };
    assert_ne!(hash(1.0), hash(20.0));
}

/// What is too long is told with the place at which it is, the tokens of the template counted.
#[test]
fn too_long_is_what_cannot_be_read() {
    let place = Workplace::new(Architecture::Llama);
    let template = place.model.template.as_ref().unwrap();
    let wording = Wording::built_in().unwrap();
    // Turns that are not learnt come last, and the template takes white space away.
    let said = [
        ("user", "痛みは how bad?"),
        ("assistant", "\n\n Not bad at all 🩺\n"),
        ("user", ""),
        ("assistant", "Well."),
    ];
    let mut messages = said.map(|(role, content)| serde_json::json!({"role": role, "content": content}));
    messages[3]["weight"] = 0.into();
    messages[2]["tool_calls"] =
        serde_json::json!([{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let line = serde_json::json!({ "messages": messages }).to_string();
    let path = place.folder.path().join("long.jsonl");
    std::fs::write(&path, &line).unwrap();
    let (example, _) = parse(&line);
    let messages = example.unwrap().messages;
    for wording in [None, Some(&wording)] {
        let maker = |max_tokens| ExampleMaker {
            tokenizer: &place.model.tokenizer,
            template,
            wording,
            max_tokens,
            invocation: None,
            choices: false,
        };
        let all = maker(10_000).read(std::slice::from_ref(&path)).unwrap()[0].tokens.len();
        assert_eq!(maker(all).beyond(&messages).unwrap(), None);
        let mut last = (1, usize::MAX);
        for most in (0..all).rev() {
            assert!(maker(most).read(std::slice::from_ref(&path)).is_err());
            let Beyond { tokens, turn, character } = maker(most).beyond(&messages).unwrap().unwrap();
            assert_eq!(tokens, all);
            let first = messages[turn].content.chars().nth(character);
            assert!(first.is_some() && (turn, character) <= last);
            last = (turn, character);
        }
        assert_eq!(last, (0, 0));
        // The mark of the end and any part of the last character are that character.
        for most in [all - 1, all - 2] {
            let end = maker(most).beyond(&messages).unwrap().unwrap();
            let rest: String = said[1].1.chars().skip(end.character).collect();
            assert_eq!((end.turn, rest.as_str()), (1, "🩺\n"));
        }
    }
}

/// What is written down of the first step is what each of its examples alone would lose.
#[test]
fn losses_are_written_down_by_example() {
    let place = Workplace::new(Architecture::Qwen2);
    let settings = TrainingSettings { batch: place.train.len(), row_tokens: 80, ..settings() };
    let folder = place.folder("dump");
    let parameters = place.parameters();
    let (run, mut graph) = (place.spine(&folder, &settings), Graph::new(&place.model.decoder));
    let apart = run.first_losses(&parameters, &|| false).unwrap();
    assert!(matches!(run.first_losses(&parameters, &|| true), Err(RunError::Stopped)));
    let mut written = Vec::new();
    run.dump(apart, &mut written).unwrap();
    let first: Json = serde_json::from_slice(written.split(|b| *b == b'\n').next().unwrap()).unwrap();
    let members = run.members(1);
    assert!(members.len() > 2);
    for (example, dumped) in members.iter().zip(first["examples"].as_array().unwrap()) {
        let (batch, _) = pack(&[example], 80, 1.0, 1.0).remove(0);
        let alone = graph.losses(&batch, Some(&parameters)).nll;
        assert_eq!(
            (dumped["place"].as_str().unwrap(), alone.len()),
            (&*example.place, dumped["losses"].as_array().unwrap().len())
        );
        for (own, loss) in alone.iter().zip(dumped["losses"].as_array().unwrap()) {
            assert!((f64::from(*own) - loss.as_f64().unwrap()).abs() < 1e-3);
        }
    }
}

/// Packed sequences do not see each other: losses are those of each alone.
#[test]
fn packing_changes_no_loss() {
    for architecture in [Architecture::Qwen3, Architecture::Gemma3] {
        let place = Workplace::new(architecture);
        let mut graph = Graph::new(&place.model.decoder);
        let parameters = place.parameters();
        let all: Vec<&Example> = place.train.iter().collect();
        let mut packed = vec![Vec::new(); all.len()];
        for (batch, members) in pack(&all, 80, 1.0, 1.0) {
            let mut losses = graph.losses(&batch, Some(&parameters)).nll.into_iter();
            for member in members {
                let count = all[member].learnt.iter().filter(|learnt| **learnt).count();
                packed[member] = losses.by_ref().take(count).collect();
            }
        }
        for (example, packed) in all.iter().zip(packed) {
            let (batch, _) = pack(&[example], 1, 1.0, 1.0).remove(0);
            let alone = graph.losses(&batch, Some(&parameters)).nll;
            assert_eq!(alone.len(), packed.len());
            assert!(alone.iter().zip(&packed).all(|(a, b)| (a - b).abs() < 1e-4), "{alone:?} {packed:?}");
        }
    }
}

/// Results do not hang on the number of threads, nor on the instruction set's width beyond rounding.
#[test]
fn threads_change_no_bit() {
    let place = Workplace::new(Architecture::Qwen2);
    let all: Vec<&Example> = place.train.iter().collect();
    let (batch, _) = pack(&all, 400, 0.1, 1.0).remove(0);
    let parameters = place.parameters();
    let slopes = |threads: usize| {
        let cpu = Cpu::new(Variant::best(), threads).unwrap();
        let path = place.folder.path().join("base");
        let model = BaseModel::load_frozen(&path, WeightForm::Stored, None, cpu).unwrap();
        let mut slopes = vec![0f32; parameters.numbers.len()];
        Graph::new(&model.decoder).gradients(&batch, &parameters, Default::default(), &mut slopes);
        slopes
    };
    let one = slopes(1);
    assert!(one.iter().any(|s| *s != 0.0));
    for threads in [2, 3] {
        assert_eq!(slopes(threads), one);
    }
}
