//! `shishin reader` as a user runs it, on the real embedder: trained, killed and resumed, judged, and loaded beside the embedder.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use shishin::kernels::{Cpu, Variant};
use shishin::model::embed;

use super::common;
use super::program::{shishin, text};

const EMBEDDER: &str = "multilingual-e5-small";

/// Questions about wards that keep things in places; what is asked for stands among what is kept elsewhere.
fn rows(wards: std::ops::Range<usize>) -> String {
    const THINGS: [&str; 4] = ["splints", "masks", "drains", "blankets"];
    let mut lines = Vec::new();
    for ward in wards {
        let kept = |thing: usize| format!("The {} lie on shelf {}.", THINGS[thing % 4], ward + 3 * thing);
        let passage: Vec<String> = (ward..ward + 4).map(kept).collect();
        let prompt = format!(
            "Answer from these.\n\n<passage number=\"1\" title=\"Ward {ward}\" section=\"Stores\">\n{}\n</passage>",
            passage.join(" ")
        );
        let (question, quote) = (format!("On ward {ward}, where are the {}?", THINGS[ward % 4]), &passage[0]);
        let answer = format!("> {quote}\n{} [1].", quote.trim_end_matches('.'));
        lines.push(
            json!({"messages": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": &question},
                {"role": "assistant", "content": answer},
            ], "meta": {"question": question}})
            .to_string(),
        );
    }
    lines.join("\n")
}

fn recipe(output: &str) -> String {
    format!(
        "objective = \"Find the shelf.\"\nembedder = \"{EMBEDDER}\"\noutput = \"{output}\"\n\
         [data]\ntrain = [\"train.jsonl\"]\nvalid = [\"valid.jsonl\"]\n[lora]\nrank = 4\nalpha = 8.0\n\
         [training]\nepochs = 4\nbatch = 4\nlearning_rate = 1e-3\ncheckpoint_every = 2\n"
    )
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    // An example without passages is counted and left out; one that its passages do not answer is learnt from.
    let declined =
        json!({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "No."}]});
    let unanswered = rows(30..31)
        .replace("> The drains lie on shelf 120.\\n", "")
        .replace("The drains lie on shelf 120 [1].", "That is not in them.");
    write("train.jsonl", &format!("{}\n{declined}\n{unanswered}", rows(1..12)));
    write("valid.jsonl", &rows(20..26));
    for output in ["whole", "killed"] {
        write(&format!("{output}.toml"), &recipe(output));
    }
    let pulled = shishin(folder.path(), &["model", "pull", EMBEDDER]).output().unwrap();
    assert!(pulled.status.success(), "{}", text(&pulled));
    folder
}

fn files(folder: &Path) -> [Vec<u8>; 3] {
    ["reader.json", "adapter_config.json", "adapter_model.safetensors"]
        .map(|name| std::fs::read(folder.join(name)).unwrap())
}

#[test]
fn a_reader_learns_survives_kills_and_fits_its_embedder_alone() {
    let folder = folder();
    let at = |path: &str| folder.path().join(path);
    let train = |run: &str| shishin(folder.path(), &["reader", "train", "--run", run]);
    let whole = train("whole.toml").output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole));
    assert!(
        text(&whole).contains("12 examples to learn from and 6 to look at; 1 and 0 lines"),
        "{}",
        text(&whole)
    );
    let metrics = std::fs::read_to_string(at("whole/run/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Json>(line).unwrap()["loss"].as_f64())
        .collect();
    assert_eq!(losses.len(), 12);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[9..]) < 0.8 * mean(&losses[..3]), "{losses:?}");
    let card = std::fs::read_to_string(at("whole/README.md")).unwrap();
    assert!(card.contains("Find the shelf.") && card.contains("Of 6 held-out examples"), "{card}");

    // Killed during a step three times, it ends at the same bytes.
    for kill in 0..3 {
        let mut child = train("killed.toml").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let steps = stderr.lines().map_while(Result::ok).filter(|line| line.starts_with("step "));
        assert_eq!(steps.take(3).count(), 3, "{kill}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let resumed = train("killed.toml").output().unwrap();
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert!(!text(&resumed).contains("step 3/"), "{}", text(&resumed));
    assert_eq!(files(&at("killed")), files(&at("whole")));

    // Other settings do not go on from there, unless they are told to begin again.
    for other in ["rank = 2", "epochs = 1"] {
        let key = other.split(' ').next().unwrap();
        let lines = recipe("killed");
        let lines =
            lines.lines().map(|line| if line.starts_with(&format!("{key} =")) { other } else { line });
        std::fs::write(at("killed.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
        let refused = train("killed.toml").output().unwrap();
        assert!(!refused.status.success() && text(&refused).contains("--restart"), "{}", text(&refused));
    }
    let again =
        shishin(folder.path(), &["reader", "train", "--run", "killed.toml", "--restart"]).output().unwrap();
    assert!(again.status.success(), "{}", text(&again));

    // Judged by the program as by itself.
    let judge = ["reader", "evaluate", "valid.jsonl", "--reader", "whole", "--json"];
    let judged = shishin(folder.path(), &judge).output().unwrap();
    assert!(judged.status.success(), "{}", text(&judged));
    let judged: Json = serde_json::from_slice(&judged.stdout).unwrap();
    let reading = &judged["files"][0]["reading"];
    assert_eq!(reading["of"], 6);
    assert!(reading["reader"].as_u64() >= reading["cosine"].as_u64(), "{judged}");

    // Found by the settings as well, in a folder of its embedder's name.
    let named = at("readers").join(EMBEDDER);
    std::fs::create_dir_all(&named).unwrap();
    for name in ["reader.json", "adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(at("whole").join(name), named.join(name)).unwrap();
    }
    let by_settings = |readers: &str| {
        let mut command = shishin(folder.path(), &["reader", "evaluate", "valid.jsonl", "--json"]);
        command.env("SHISHIN_ANSWER_READERS", readers).output().unwrap()
    };
    let found: Json = serde_json::from_slice(&by_settings("readers").stdout).unwrap();
    assert_eq!(found, judged);
    let none: Json = serde_json::from_slice(&by_settings("whole").stdout).unwrap();
    assert_eq!((&none["reader"], &none["files"][0]["reading"]["reader"]), (&Json::Null, &Json::Null));
    assert_eq!(none["files"][0]["reading"]["cosine"], reading["cosine"]);
    let missing = by_settings("nowhere");
    assert!(
        !missing.status.success() && text(&missing).contains("answer.readers: there is no folder"),
        "{}",
        text(&missing)
    );

    // Beside the embedder; its vectors stay what they are.
    let path = common::model(EMBEDDER);
    let cpu = Arc::new(Cpu::new(Variant::best(), 2).unwrap());
    let load = |reader: Option<&Path>| embed::load_with(EMBEDDER, &path, reader, Arc::clone(&cpu));
    let (plain, reads) = (load(None).unwrap(), load(Some(&at("whole"))).unwrap());
    assert_eq!(judged["reader"].as_str(), reads.reader());
    assert_eq!(plain.reader(), None);
    let (question, texts) =
        ("Where are the masks?", ["The masks lie on shelf 3.", "The drains lie on shelf 5."]);
    assert_eq!(plain.nearness(question, &texts).unwrap(), None);
    let near = reads.nearness(question, &texts).unwrap().unwrap();
    assert!(near.texts[0] > near.texts[1], "{near:?}");
    // Whatever is read together with a text changes nothing of it.
    for (text, alone) in texts.iter().zip(&near.texts) {
        assert_eq!(reads.nearness(question, &[text]).unwrap().unwrap().texts, [*alone]);
    }
    assert!(reads.nearness(question, &[]).unwrap().unwrap().texts.is_empty());
    let kind = embed::TextKind::Passage;
    assert_eq!(plain.embed(kind, &texts).unwrap(), reads.embed(kind, &texts).unwrap());
    assert_eq!(plain.fingerprint(), reads.fingerprint());

    // Of another embedder, or damaged, it is refused with the mend.
    let own = std::fs::read_to_string(at("whole/reader.json")).unwrap();
    let other = own.replace(plain.fingerprint(), &"0".repeat(64));
    assert_ne!(own, other);
    std::fs::write(at("whole/reader.json"), other).unwrap();
    let why = load(Some(&at("whole"))).err().unwrap().to_string();
    assert!(why.contains("shishin reader train") && why.contains("no reader for this embedder"), "{why}");
    std::fs::write(at("whole/reader.json"), own).unwrap();
    let weights = std::fs::read(at("whole/adapter_model.safetensors")).unwrap();
    for damaged in [&weights[..weights.len() / 2], &[]] {
        std::fs::write(at("whole/adapter_model.safetensors"), damaged).unwrap();
        let why = load(Some(&at("whole"))).err().unwrap().to_string();
        assert!(why.contains("not those that reader.json was written with"), "{why}");
    }
    std::fs::remove_file(at("whole/adapter_model.safetensors")).unwrap();
    let why = load(Some(&at("whole"))).err().unwrap().to_string();
    assert!(why.contains("answer.readers"), "{why}");
}

#[test]
fn what_no_reader_can_learn_from_is_named() {
    let folder = folder();
    let train = |data: &str, recipe: &str| {
        std::fs::write(folder.path().join("train.jsonl"), data).unwrap();
        std::fs::write(folder.path().join("run.toml"), recipe).unwrap();
        let output = shishin(folder.path(), &["reader", "train", "--run", "run.toml"]).output().unwrap();
        assert!(!output.status.success());
        text(&output)
    };
    let sound = recipe("out");
    let mut without_quotes: Json = serde_json::from_str(&rows(1..2)).unwrap();
    without_quotes["messages"][2]["content"] = "They lie on shelf 1 [1].".into();
    without_quotes["meta"]["oracle"] = json!([1]);
    let without_quotes = without_quotes.to_string();
    let cases = [
        (
            r#"{"messages":[{"role":"user","content":"?"},{"role":"assistant","content":"No."}]}"#,
            &sound[..],
            "no example that quotes",
        ),
        ("{\"messages\":[]}\n", &sound, "train.jsonl:1: it has no `messages`"),
        ("{\"messages\":", &sound, "train.jsonl:1"),
        (&without_quotes[..], &sound, "its answer quotes none of them"),
        ("", &sound.replace("rank = 4", "rank = 0"), "lora.rank must be from 1 to 256"),
        ("", &sound.replace("[lora]", "[lara]"), "lara"),
        ("", &sound.replace(EMBEDDER, "smollm2-135m"), "answers and makes no embeddings"),
    ];
    for (data, recipe, expected) in cases {
        let said = train(data, recipe);
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
