//! `shishin tune` on a tiny model, whose runs take a second: killed at any moment, begun anew, and asked again when they are done.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use shishin::model::config::Architecture;
use shishin::tune::card::put_evaluation;
use shishin::tune::examples::Source;

use super::common::tiny::Tiny;
use super::program::{hash, recipe, shishin, text};
use super::runs::{lines, record};

const TRAINING: &str = "epochs = 16\nbatch = 3\nrow_tokens = 64\nlearning_rate = 2e-2\nevaluate_every = 8\npatience = 0\nthreads = 2";

/// How often the run is killed.
const KILLS: usize = 16;

/// A folder with a base, its data, and runs of these names.
fn workplace(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Tiny::new(Architecture::Llama).write(&folder.path().join("base"));
    let words = ["ward", "nurse", "pulse", "the fever", "bed", "rest", "tea"];
    std::fs::write(folder.path().join("train.jsonl"), lines(&words)).unwrap();
    std::fs::write(folder.path().join("valid.jsonl"), lines(&["the bed", "nurses"])).unwrap();
    for name in names {
        std::fs::write(folder.path().join(format!("{name}.toml")), recipe("base", name, "prompt", TRAINING))
            .unwrap();
    }
    folder
}

/// Starts a run; what it says on either stream comes line by line.
fn start(folder: &Path, run: &str) -> (Child, Receiver<String>) {
    let mut command = shishin(folder, &["tune", "--run", run]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    listen(child.stdout.take().unwrap(), sender.clone());
    listen(child.stderr.take().unwrap(), sender);
    (child, lines)
}

fn listen(stream: impl Read + Send + 'static, sender: Sender<String>) {
    std::thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
    });
}

/// In the self-test, in the look before the first step, and anywhere after: in a step, in a look, or while something is written.
#[test]
fn a_run_that_is_killed_at_any_moment_ends_the_same() {
    let place = workplace(&["whole", "killed"]);
    let folder = place.path();
    let whole = shishin(folder, &["tune", "--run", "whole.toml"]).output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole));
    let mut random = ChaCha8Rng::seed_from_u64(16);
    let (mut kills, mut said) = (0, Vec::new());
    while kills < KILLS {
        // What is said just before, and how long it may be until the end, in microseconds.
        let (mark, within) = match kills {
            0..=3 => ("valid:", 4_000),
            4..=7 => ("self-test", 2_000),
            _ => ("step ", 12_000),
        };
        let moment = Duration::from_micros(random.random_range(0..within));
        let (mut child, lines) = start(folder, "killed.toml");
        let reached = lines.iter().any(|line| {
            // Once there is a checkpoint nothing is tested.
            let reached = line.starts_with(mark) || line.starts_with("resuming");
            said.push(line);
            reached
        });
        if !reached {
            assert!(child.wait().unwrap().success(), "{said:#?}");
            break;
        }
        std::thread::park_timeout(moment);
        // It may have ended.
        let _ = child.kill();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 8, "it ended too soon for this test: {said:#?}");
    let finished = shishin(folder, &["tune", "--run", "killed.toml"]).output().unwrap();
    assert!(finished.status.success(), "{}", text(&finished));
    assert_eq!(hash(&finished), hash(&whole));
    let bytes = |name: &str| std::fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap();
    assert_eq!(bytes("killed"), bytes("whole"));
    assert_eq!(record(&folder.join("killed/run")), record(&folder.join("whole/run")));
}

#[test]
fn what_is_done_is_not_lost_when_a_run_is_asked_for_again() {
    let place = workplace(&["ward"]);
    let folder = place.path();
    let train = folder.join("train.jsonl");
    let before = std::fs::read(&train).unwrap();
    // The data goes away in the middle of the run: the card still says what was learnt from.
    let (mut child, lines) = start(folder, "ward.toml");
    assert!(lines.iter().any(|line| line.starts_with("step ")));
    std::fs::rename(&train, folder.join("moved.jsonl")).unwrap();
    let said: Vec<String> = lines.iter().collect();
    assert!(child.wait().unwrap().success(), "{said:#?}");
    let card = || std::fs::read_to_string(folder.join("ward/README.md")).unwrap();
    let source = Source::of(&train, &before);
    let row = format!("| train.jsonl | learn | {} | `{}` |", source.lines, source.sha256);
    assert!(card().contains(&row), "{row}: {}", card());
    std::fs::rename(folder.join("moved.jsonl"), &train).unwrap();

    // Another format of the same adapter: what was found out about it still stands.
    put_evaluation(&folder.join("ward"), "ward/test.jsonl", "| found |").unwrap();
    let again = shishin(folder, &["tune", "--run", "ward.toml", "--gguf"]).output().unwrap();
    assert!(again.status.success(), "{}", text(&again));
    assert!(folder.join("ward/adapter.gguf").is_file() && card().contains("| found |"), "{}", card());

    // Who wants to begin anew waits for whoever is at work there, and takes nothing away.
    let lock = std::fs::File::create(folder.join("ward/run/run.lock")).unwrap();
    lock.lock().unwrap();
    let restart = || shishin(folder, &["tune", "--run", "ward.toml", "--restart"]).output().unwrap();
    let refused = restart();
    assert!(
        !refused.status.success() && text(&refused).contains("another run is at work"),
        "{}",
        text(&refused)
    );
    let checkpoint = folder.join("ward/run/checkpoint.safetensors");
    assert!(checkpoint.is_file(), "it was the other run's");
    drop(lock);
    std::fs::write(&checkpoint, "damaged").unwrap();
    let anew = restart();
    assert!(anew.status.success() && hash(&anew) == hash(&again), "{}", text(&anew));
}
