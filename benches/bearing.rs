//! Fits what [`Bearing`] counts to the quotes of examples that `shishin dataset ground --quotes` has written: a log-linear model of which
//! sentence of a prompt answers, beside the cosine of question and sentence. Prints how often it finds one that is quoted in examples over
//! guidelines that it was not fitted to, and the weights that all examples give; `WEIGHTS` in `src/quote/bearing.rs` are those.
//!
//! ```sh
//! cargo bench --bench bearing -- target/datasets/clinic/{en,ja,leaflets-en,leaflets-ja}/train.jsonl
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark reports by printing, or by panicking"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use shishin::kernels::{Cpu, Variant};
use shishin::model::embed;
use shishin::prompt::InPrompt;
use shishin::quote::{Bearing, Candidate, FEATURES, NEARNESS, WEIGHTS};
use shishin::retrieve::Meaning;
use shishin::retrieve::sentences::candidates;
use shishin::store::vectors::embedded_text;

const EMBEDDER: &str = "multilingual-e5-small";
/// Parts that guidelines are dealt to; each is left out of a fit once.
const PARTS: usize = 5;
/// Steps of a fit; how far the last one went is printed.
const STEPS: usize = 3000;

/// A sentence of a prompt.
struct Sentence {
    cosine: f32,
    features: [f32; FEATURES],
    quoted: bool,
}

/// An example with quotes.
struct Example {
    /// The file that it is from.
    file: usize,
    part: usize,
    sentences: Vec<Sentence>,
}

impl Example {
    fn scores(&self, weights: &[f32; FEATURES]) -> Vec<f32> {
        let of = |s: &Sentence| {
            NEARNESS * s.cosine + s.features.iter().zip(weights).map(|(f, w)| f * w).sum::<f32>()
        };
        self.sentences.iter().map(of).collect()
    }

    /// Whether the sentence that is preferred is quoted.
    fn found(&self, weights: &[f32; FEATURES]) -> bool {
        let scores = self.scores(weights);
        let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        best.is_some_and(|best| self.sentences[best].quoted)
    }
}

/// What may be quoted of a passage, with its vectors, below its title and headings.
type Passage = (String, Vec<(String, Vec<f32>)>);

/// Reads an example; `None` where nothing is quoted.
fn read(line: &str, file: usize, meaning: &Meaning, known: &mut HashMap<String, Passage>) -> Option<Example> {
    let row: Value = serde_json::from_str(line).expect("JSON Lines, as `shishin dataset ground` writes them");
    let turns = row["messages"].as_array()?;
    let quotes: Vec<&str> =
        turns.last()?["content"].as_str()?.lines().filter_map(|l| l.strip_prefix("> ")).collect();
    let question = row["meta"]["question"].as_str()?;
    let shown: Vec<InPrompt<'_>> = InPrompt::of(turns.first()?["content"].as_str()?).collect();
    let key = |one: &InPrompt<'_>| embedded_text(one.title, one.section, one.text);
    for one in &shown {
        known.entry(key(one)).or_insert_with(|| {
            let sentences = meaning.sentences(one.title, one.section, one.text, HashMap::new()).unwrap();
            (embedded_text(one.title, one.section, ""), sentences)
        });
    }
    let passages = shown.iter().map(|one| &known[&key(one)]);
    let quotable = passages.map(|(headings, sentences)| (&headings[..], &sentences[..]));
    let vector = meaning.of_question(question).unwrap();
    let all = candidates(Some(&vector), quotable);
    let said: Vec<Candidate<'_>> = all.iter().map(|(.., candidate)| *candidate).collect();
    let right = said.iter().find(|candidate| quotes.contains(&candidate.text))?;
    let title = right.headings.split(['>', '\n']).next().unwrap_or_default();
    let part = title.bytes().fold(0, |hash, byte| (hash * 7 + usize::from(byte)) % PARTS);
    let sentences = all.iter().zip(Bearing::of(question).features(&said));
    let sentences = sentences.map(|((_, cosine, candidate), features)| Sentence {
        cosine: *cosine,
        features,
        quoted: quotes.contains(&candidate.text),
    });
    Some(Example { file, part, sentences: sentences.collect() })
}

/// The weights that make what is quoted likeliest (a local best, where examples quote several sentences), and the largest change of the last
/// step. A step divides the gradient by the features' variances, and by how many features there are, since steps in all of them add up.
fn fit(examples: &[&Example]) -> ([f32; FEATURES], f32) {
    let (mut weights, mut change) = ([0.0; FEATURES], 0.0);
    for _ in 0..STEPS {
        let (mut gradient, mut curvature) = ([0.0; FEATURES], [1e-6; FEATURES]);
        for example in examples {
            let scores = example.scores(&weights);
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let likely: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
            let all: f32 = likely.iter().sum();
            let right: f32 =
                likely.iter().zip(&example.sentences).filter(|(_, s)| s.quoted).map(|(p, _)| p).sum();
            for k in 0..FEATURES {
                let (mut mean, mut of_right, mut square) = (0.0, 0.0, 0.0);
                for (p, sentence) in likely.iter().zip(&example.sentences) {
                    let feature = sentence.features[k];
                    mean += p / all * feature;
                    square += p / all * feature * feature;
                    if sentence.quoted {
                        of_right += p / right.max(f32::MIN_POSITIVE) * feature;
                    }
                }
                gradient[k] += of_right - mean;
                curvature[k] += square - mean * mean;
            }
        }
        change = 0.0;
        for k in 0..FEATURES {
            let step = gradient[k] / curvature[k] / FEATURES as f32;
            weights[k] += step;
            change = step.abs().max(change);
        }
    }
    (weights, change)
}

fn share<'e>(examples: impl Iterator<Item = &'e Example>, found: impl Fn(&Example) -> bool) -> String {
    let found: Vec<bool> = examples.map(found).collect();
    format!("{:.3}", found.iter().filter(|found| **found).count() as f32 / found.len().max(1) as f32)
}

fn main() {
    let files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).map(PathBuf::from).collect();
    if files.is_empty() {
        println!("skipped: name files that `shishin dataset ground --quotes` has written, behind `--`");
        return;
    }
    let path = common::model(EMBEDDER);
    let cpu = Arc::new(Cpu::new(Variant::best(), 2).unwrap());
    let embedder = Arc::from(embed::load(EMBEDDER, &path, Arc::clone(&cpu)).unwrap());
    let meaning = Meaning { embedder, path, cpu };
    let mut known = HashMap::new();
    let mut examples = Vec::new();
    for (file, path) in files.iter().enumerate() {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        examples.extend(text.lines().filter_map(|line| read(line, file, &meaning, &mut known)));
    }
    let sentences: usize = examples.iter().map(|example| example.sentences.len()).sum();
    println!("{} examples with quotes, {sentences} sentences", examples.len());

    let without = |part: usize| examples.iter().filter(|e| e.part != part).collect::<Vec<_>>();
    let parts: Vec<_> = (0..PARTS).map(|part| fit(&without(part)).0).collect();
    let title = |file: &usize| files[*file].display().to_string();
    println!("found by: the cosine, WEIGHTS, weights fitted to other guidelines");
    for file in (0..files.len()).map(Some).chain([None]) {
        let of = || examples.iter().filter(|e| file.is_none_or(|file| file == e.file));
        println!(
            "{}  {}  {}  {}",
            share(of(), |e| e.found(&[0.0; FEATURES])),
            share(of(), |e| e.found(&WEIGHTS)),
            share(of(), |e| e.found(&parts[e.part])),
            file.as_ref().map_or("all".to_owned(), title)
        );
    }
    let (weights, change) = fit(&examples.iter().collect::<Vec<_>>());
    println!("fitted to all: {weights:.2?}; the last step went {change:.1e}");
}
