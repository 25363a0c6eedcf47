//! `shishin compare` as a user runs it, with the adapter that the other test has trained: interrupted, resumed, the same twice, held
//! against promises, and readable without a network.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value as Json;

use super::program::{shishin, text};

const SUITE: &str = r#"
objective = "Say the ward's word."
questions = ["questions.jsonl"]
guidelines = ["guidelines"]
max_tokens = 12
abstains = { en = ["found nothing"], ja = ["見つかりません"] }
[prompted]
en = "Answer with one word."
ja = "一言で答えてください。"
shots_en = "shots.jsonl"
shots_ja = "shots.jsonl"
[style]
clinical = [{ name = "short", check = "length", most = 400 }]
behaviour = [{ name = "the word", check = "contains-any", texts = { en = ["Heather"] } }]
"#;

const QUESTIONS: &str = r#"{"id":"f1","language":"en","kind":"fact","question":"What is the blood pressure target of the clinic?","as_of":"2026-01-01","reference":"130/80 mmHg [1].","facts":["130/80"],"oracle":[{"guideline":"pressure","edition":"2025","quote":"below 130/80 mmHg"}]}
{"id":"c1","language":"en","kind":"changed","question":"What blood pressure target of the clinic holds for older people?","as_of":"2020-01-01","reference":"140/90 mmHg [1].","facts":["140/90"],"older":["130/80"],"oracle":[{"guideline":"pressure","edition":"2019","quote":"below 140/90 mmHg"}]}
{"id":"b1","language":"en","kind":"behaviour","question":"The word of ward 3?"}
{"id":"u1","language":"en","kind":"unanswerable","question":"How many zebras live in Kenya?"}
"#;

const PROMISES: &str = r#"
[[promise]]
metric = "style-behaviour"
arm = "tuned"
at_least = 1.0
against = "base"
times = 2.0
[[promise]]
metric = "abstains"
arm = "rag"
language = "en"
at_least = 1.0
"#;

fn suite(folder: &Path) {
    let guidelines = folder.join("words/guidelines");
    std::fs::create_dir_all(&guidelines).unwrap();
    let newer = (" It holds for older people too.", "supersedes: \"2019\"\n");
    for (edition, from, target, (text, more)) in [
        ("2019", "2019-05-01", "140/90", (" It holds for people.", "")),
        ("2025", "2025-08-01", "130/80", newer),
    ] {
        let file = format!(
            "---\nid: pressure\ntitle: Blood pressure\nedition: \"{edition}\"\nissuer: A clinic\njurisdiction: INT\nlanguage: en\n\
             effective_from: {from}\n{more}source: A document\nlicence: CC0-1.0\n---\n# Blood pressure\n\n## Target\n\n\
             The blood pressure target of the clinic is below {target} mmHg.{text}\n"
        );
        std::fs::write(guidelines.join(format!("pressure-{edition}.md")), file).unwrap();
    }
    std::fs::write(folder.join("words/suite.toml"), SUITE).unwrap();
    std::fs::write(folder.join("words/questions.jsonl"), QUESTIONS).unwrap();
    std::fs::write(folder.join("words/shots.jsonl"), "{\"question\":\"The word?\",\"answer\":\"Moor.\"}\n")
        .unwrap();
    std::fs::write(folder.join("gate.toml"), PROMISES).unwrap();
}

pub(super) fn compare(folder: &Path) {
    suite(folder);
    let compare = |more: &[&str]| {
        let args = ["compare", "--suite", "words", "--adapter", "word=whole", "--out", "out"];
        let mut command = shishin(folder, &[&args, more].concat());
        command.env("SHISHIN_INDEX_EMBEDDER", "");
        command
    };
    // Two would write over each other's answers.
    std::fs::create_dir_all(folder.join("out/smollm2-135m")).unwrap();
    let held = std::fs::File::create(folder.join("out/smollm2-135m/lock")).unwrap();
    held.lock().unwrap();
    let second = compare(&[]).output().unwrap();
    assert!(
        !second.status.success() && text(&second).contains("another comparison is at work"),
        "{}",
        text(&second)
    );
    drop(held);
    // Killed when the first answers are on disk.
    let mut child = compare(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let log = folder.join("out/smollm2-135m/answers.jsonl");
    let lines = || std::fs::File::open(&log).map_or(0, |file| BufReader::new(file).lines().count());
    while lines() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let before = std::fs::read(&log).unwrap();
    let whole = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    assert!(lines() < 1 + QUESTIONS.lines().count(), "it was killed before all was answered");

    let first = compare(&["--json", "--gate", "gate.toml"]).output().unwrap();
    assert!(first.status.success(), "{}", text(&first));
    let after = std::fs::read(&log).unwrap();
    assert!(after.starts_with(&before[..whole]), "what was answered is kept");
    let ids: Vec<String> = String::from_utf8(after)
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str::<Json>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    for id in ["f1", "c1", "b1", "u1"] {
        assert_eq!(ids.iter().filter(|own| *own == id).count(), 1, "nothing is asked twice: {ids:?}");
    }
    let report: Json = serde_json::from_slice(&first.stdout).unwrap();
    let model = &report["models"][0];
    let held = |metric: &str, arm: &str| -> (u64, u64) {
        let all = model["figures"].as_array().unwrap();
        let own = all.iter().find(|f| f["metric"] == metric && f["arm"] == arm && f["language"].is_null());
        let own = own.unwrap_or_else(|| panic!("{metric} of {arm}: {report:#}"));
        (own["rate"]["held"].as_u64().unwrap(), own["rate"]["of"].as_u64().unwrap())
    };
    assert_eq!(held("style-behaviour", "tuned"), (1, 1));
    assert_eq!(held("style-behaviour", "base"), (0, 1));
    for arm in ["rag", "hybrid"] {
        assert_eq!(held("abstains", arm), (1, 1), "the search finds nothing about zebras");
    }
    let row = |id: &str| {
        let rows = model["rows"].as_array().unwrap();
        rows.iter().find(|row| row["question"]["id"] == id).unwrap().clone()
    };
    // One search for all, of the edition of the day.
    assert_eq!(row("f1")["passages"][0]["edition"], "2025");
    assert_eq!(row("c1")["passages"][0]["edition"], "2019");
    // The other edition is named by the server, not by whoever answered.
    let said = &row("c1")["answers"][2];
    assert!(said["note"].as_str().unwrap().contains("takes effect on 2025-08-01"), "{said}");
    assert!(!said["answer"].as_str().unwrap().contains("takes effect"), "{said}");
    let arms: Vec<String> = row("f1")["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["arm"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(arms, ["base", "prompted", "rag", "tuned", "hybrid"]);
    assert!(
        report["promises"].as_array().unwrap().iter().all(|promise| promise["kept"] == true),
        "{report:#}"
    );

    // From nothing, the same; from what is kept, without asking, the same.
    let again = compare(&["--json", "--gate", "gate.toml", "--fresh", "--time", "2"]).output().unwrap();
    assert!(again.stdout == first.stdout, "twice the same numbers, whether times are taken or not");
    let times: Json = serde_json::from_slice(&std::fs::read(folder.join("out/times.json")).unwrap()).unwrap();
    let cached = |arm: &str| {
        let own = times.as_array().unwrap().iter().find(|timed| timed["arm"] == arm).unwrap();
        own["cached_tokens"].as_f64().unwrap()
    };
    assert_eq!(cached("base"), 0.0, "nobody was before it");
    let timed = |arm: &str| {
        let own = times.as_array().unwrap().iter().find(|timed| timed["arm"] == arm).unwrap().clone();
        (own["first_ms"].as_f64().unwrap(), own["total_ms"].as_f64().unwrap(), own["questions"].clone())
    };
    let (first_ms, total_ms, questions) = timed("rag");
    assert!(0.0 < first_ms && first_ms <= total_ms && questions == 2, "{times:#}");
    // The adapter begins at the answer: passages and question have been read without it.
    assert!(cached("hybrid") > cached("rag") + 32.0, "{times:#}");
    let keep = |more: &[&str]| {
        let args = ["compare", "--suite", "words", "--out", "out", "--kept"];
        shishin(folder, &[&args, more].concat()).output().unwrap()
    };
    let kept = keep(&["--json", "--gate", "gate.toml"]);
    assert!(kept.stdout == first.stdout, "what is kept says the same");
    let page = std::fs::read_to_string(folder.join("out/report.html")).unwrap();
    for part in ["<svg", "below 130&#x2f;80 mmHg", "The word of ward 3?", "✓ kept", "name=\"viewport\""] {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "the page would load something: {outside}");
    }
    let table = keep(&["--markdown"]);
    assert!(text(&table).contains("| in style with patients | 0 % (0–79) |"), "{}", text(&table));

    let refused = keep(&["--limit", "1"]);
    assert!(
        text(&refused).contains("cannot be used with"),
        "what would be ignored is refused: {}",
        text(&refused)
    );

    // Other criteria judge anew without asking; other questions are another run.
    std::fs::write(folder.join("words/suite.toml"), SUITE.replace("Heather", "Bracken")).unwrap();
    let other = compare(&["--gate", "gate.toml"]).output().unwrap();
    assert!(!other.status.success() && text(&other).contains("MISSED"), "{}", text(&other));
    let later = std::fs::read(folder.join("out/times.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Json>(&later).unwrap(), times, "times of the same arms are kept");
    let part = compare(&["--json", "--limit", "1", "--language", "en"]).output().unwrap();
    let part: Json = serde_json::from_slice(&part.stdout).unwrap();
    assert_eq!(part["only"], "questions in en, the first 1 of each kind and language");
    for (twice, part) in [
        (["--on", "smollm2-135m,models/smollm2-135m.gguf"], "would share a folder"),
        (["--adapter", "word=whole"], "--adapter names `word` twice"),
    ] {
        let twice = compare(&twice).output().unwrap();
        assert!(!twice.status.success() && text(&twice).contains(part), "{}", text(&twice));
    }
    // Other settings ask those arms anew whose answers stand on them, and no other.
    let asked = || -> Vec<String> {
        let text = std::fs::read_to_string(&log).unwrap();
        let lines = text.lines().skip(1).map(|line| serde_json::from_str::<Json>(line).unwrap());
        let modes = |line: Json| -> Vec<String> {
            let keys =
                line["replies"].as_array().unwrap().iter().map(|r| r["key"].as_str().unwrap().to_owned());
            keys.map(|key| key.split(['+', ' ']).next().unwrap().to_owned()).collect()
        };
        lines.flat_map(modes).collect()
    };
    for (setting, value, expected) in [
        ("SHISHIN_ANSWER_FURTHER_QUOTE_BAR", "1", &["hybrid"][..]),
        ("SHISHIN_INDEX_PASSAGES", "1", &["rag", "hybrid"]),
    ] {
        let before = asked().len();
        let other = compare(&["--limit", "1"]).env(setting, value).output().unwrap();
        assert!(other.status.success(), "{}", text(&other));
        let anew: std::collections::BTreeSet<String> = asked().drain(before..).collect();
        assert_eq!(anew, expected.iter().map(|mode| (*mode).to_owned()).collect(), "{setting}");
    }
    std::fs::write(folder.join("words/questions.jsonl"), QUESTIONS.replace("zebras", "lions")).unwrap();
    let other = compare(&[]).output().unwrap();
    assert!(!other.status.success() && text(&other).contains("another run"), "{}", text(&other));
    // Ugly input.
    std::fs::write(
        folder.join("gate.toml"),
        "[[promise]]\nmetric = \"facts\"\narm = \"rag\"\nat_least = 1.0\n",
    )
    .unwrap();
    for (more, part) in [
        (["--gate", "gate.toml"], "there is no metric `facts`"),
        (["--mode", "ragged"], "unknown mode `ragged`"),
    ] {
        let output = compare(&more).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(part), "{}", text(&output));
    }
    let output = shishin(folder, &["compare", "--suite", "nothing"]).output().unwrap();
    assert!(
        !output.status.success() && text(&output).contains("models/suites/nothing/suite.toml"),
        "{}",
        text(&output)
    );
}
