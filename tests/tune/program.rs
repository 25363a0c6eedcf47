//! `shishin tune` and `shishin dataset ground` as a user runs them, on the real small model: killed, resumed, and the adapter served.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value as Json;
use shishin::evaluate::criteria::{Check, Criteria, Said};
use shishin::language::Language;
use shishin::tune::settings::{TuneSettings, TuneSettingsError};

const MODEL: &str = "smollm2-135m";

pub(super) fn shishin(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shishin"));
    command.current_dir(folder).env_remove("RUST_BACKTRACE").env("SHISHIN_MODEL_NAME", MODEL).args(args);
    command
}

pub(super) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn root(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// A run on a base, which begins there and trains so.
pub(super) fn recipe(base: &str, output: &str, begins: &str, training: &str) -> String {
    format!(
        r#"
objective = "Answer with the ward's one word."
base = "{base}"
output = "{output}"
[data]
train = ["train.jsonl"]
valid = ["valid.jsonl"]
instructions = false
[lora]
rank = 4
alpha = 8.0
dropout = 0.1
begins = "{begins}"
[training]
checkpoint_every = 1
{training}
"#
    )
}

/// A run on the real small model that ends in this folder.
fn run_to(output: &str) -> String {
    recipe(MODEL, output, "answer", TRAINING)
}

const TRAINING: &str = "epochs = 4\nbatch = 2\nlearning_rate = 1e-3";

pub(super) fn hash(output: &Output) -> String {
    let text = text(output);
    let at = text.find("sha256 of the numbers ").unwrap_or_else(|| panic!("{text}"));
    text[at..].split_whitespace().nth(4).unwrap().to_owned()
}

#[test]
fn a_killed_run_goes_on_to_the_same_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let pulled = shishin(folder.path(), &["model", "pull", MODEL]).output().unwrap();
    assert!(pulled.status.success(), "{}", text(&pulled));
    let line = |ward: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"The word of {ward}?"}},{{"role":"assistant","content":"Heather."}}]}}"#
        )
    };
    let lines: Vec<String> = (1..=12).map(|n| line(&format!("ward {n}"))).collect();
    std::fs::write(folder.path().join("train.jsonl"), lines.join("\n")).unwrap();
    std::fs::write(folder.path().join("valid.jsonl"), line("the clinic")).unwrap();
    for name in ["whole", "killed"] {
        std::fs::write(folder.path().join(format!("{name}.toml")), run_to(name)).unwrap();
    }
    let whole = shishin(folder.path(), &["tune", "--run", "whole.toml", "--gguf"]).output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole));
    let expected = hash(&whole);

    // Killed at moments spread over the run, as `kill -9` does: during the step after the second of each start, or while its
    // checkpoint is written.
    let mut kills = 0;
    let finished = loop {
        let mut child = shishin(folder.path(), &["tune", "--run", "killed.toml"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let mut said = Vec::new();
        let mut steps = 0;
        while let Ok(line) = lines.recv() {
            steps += usize::from(line.starts_with("step "));
            said.push(line);
            if kills < 10 && steps == 2 {
                // Nothing comes, or the next line does: either way it is a moment later.
                let _ = lines.recv_timeout(Duration::from_millis(37 * kills));
                child.kill().unwrap();
                kills += 1;
                break;
            }
        }
        let output = child.wait_with_output().unwrap();
        reader.join().unwrap();
        if output.status.success() {
            break output;
        }
        assert!(steps == 2, "{said:?}");
    };
    assert_eq!(kills, 10);
    assert_eq!(hash(&finished), expected);
    let bytes =
        |name: &str| std::fs::read(folder.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert_eq!(bytes("killed"), bytes("whole"));

    // Both forms of the adapter say what was learnt.
    for adapter in ["word=whole", "word=whole/adapter.gguf"] {
        let args =
            ["ask", "--mode", "tuned", "--adapter", "word", "--load-adapter", adapter, "The word of ward 3?"];
        let output = shishin(folder.path(), &args).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    of_this_base(folder.path());
    counts(folder.path());
    goes_on(folder.path());
    super::compared::compare(folder.path());
    judge(folder.path());
}

/// A folder that holds an adapter for each base gives the one for this base, and none where there is none.
fn of_this_base(folder: &Path) {
    let ask = |adapters: &str| {
        let load = format!("word={adapters}");
        let args =
            ["ask", "--mode", "tuned", "--adapter", "word", "--load-adapter", &load, "The word of ward 3?"];
        shishin(folder, &args).output().unwrap()
    };
    for (many, base) in [("ours", MODEL), ("theirs", "another-base")] {
        let own = folder.join(many).join(base);
        std::fs::create_dir_all(&own).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(folder.join("whole").join(file), own.join(file)).unwrap();
        }
    }
    let output = ask("ours");
    assert!(output.status.success() && text(&output).contains("Heather"), "{}", text(&output));
    let output = ask("theirs");
    assert!(!output.status.success() && text(&output).contains("none is loaded"), "{}", text(&output));
}

/// Length is counted as a run would, with the instructions.
fn counts(folder: &Path) {
    let lint = |most: usize| -> Vec<Json> {
        let args = ["dataset", "lint", "valid.jsonl", "--json", "--max-tokens", &most.to_string()];
        let report: Json = serde_json::from_slice(&shishin(folder, &args).output().unwrap().stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .filter(|finding| finding["code"] == "too-long" && finding["line"] == 1)
            .cloned()
            .collect()
    };
    let first = &lint(1)[0];
    let all: usize = first["message"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap();
    let run = run_to("counted").replace("instructions = false", &format!("max_tokens = {}", all - 1));
    std::fs::write(folder.join("counted.toml"), run.replace("train.jsonl", "valid.jsonl")).unwrap();
    let refused = shishin(folder, &["tune", "--run", "counted.toml", "--preview", "1"]).output().unwrap();
    assert!(text(&refused).contains(&format!("it has {all} tokens")), "{}", text(&refused));
    assert!(lint(all).is_empty());
    let line = std::fs::read_to_string(folder.join("valid.jsonl")).unwrap();
    let last = line.find(".\"}").unwrap() + 1;
    assert_eq!(lint(all - 1)[0]["column"], last, "the mark of the end is what is too much");
}

/// A run goes on from an adapter in either form: it starts at its numbers, and refuses one of another shape or beginning.
fn goes_on(folder: &Path) {
    let dump = |from: &str, change: (&str, &str)| {
        let settings = run_to("on").replace("[training]", &format!("from = \"{from}\"\n[training]"));
        assert!(settings.contains(change.0));
        std::fs::write(folder.join("on.toml"), settings.replace(change.0, change.1)).unwrap();
        shishin(folder, &["tune", "--run", "on.toml", "--dump", "started"]).output().unwrap()
    };
    let bytes = |name: &str| std::fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap();
    for from in ["whole", "whole/adapter.gguf"] {
        let output = dump(from, ("", ""));
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(bytes("started"), bytes("whole"), "{from}");
    }
    // Each token to learn of the first step has its loss, and what was learnt is likely.
    let steps = std::fs::read_to_string(folder.join("started/steps.jsonl")).unwrap();
    for (at, line) in steps.lines().enumerate() {
        let step: Json = serde_json::from_str(line).unwrap();
        for example in step["examples"].as_array().unwrap() {
            let learnt = example["learnt"].as_array().unwrap().iter().filter(|one| **one == true).count();
            let losses: Option<Vec<f64>> =
                example["losses"].as_array().map(|all| all.iter().map(|l| l.as_f64().unwrap()).collect());
            assert_eq!(losses.as_ref().map(Vec::len), (at == 0).then_some(learnt));
            let mean = losses.map(|losses| losses.iter().sum::<f64>() / losses.len() as f64);
            assert!(mean.is_none_or(|mean| mean > 0.0 && mean < 2.0), "{mean:?}");
        }
    }
    for (change, part) in [
        (
            ("rank = 4", "rank = 8"),
            "layer 0 q_proj: rank 4 at scale 2.0000, and the run asks for rank 8 at scale 1.0000",
        ),
        (
            ("dropout = 0.1", "targets = [\"q_proj\"]"),
            "k_proj: rank 4 at scale 2.0000, and the run asks for no such map",
        ),
        (
            ("\"answer\"", "\"question\""),
            "begins at “<|im_start|>assistant”, and by lora.begins the run does at “<|im_start|>user”",
        ),
    ] {
        let output = dump("whole", change);
        assert!(!output.status.success() && text(&output).contains(part), "{}", text(&output));
    }
    let output = dump("nowhere", ("", ""));
    assert!(!output.status.success() && text(&output).contains("lora.from"), "{}", text(&output));
    // What it goes on from is part of what a run is: it starts where the other ended, and a new adapter in its folder is another run.
    dump("whole", ("epochs = 4", "epochs = 1"));
    let tune = || shishin(folder, &["tune", "--run", "on.toml"]).output().unwrap();
    let output = tune();
    assert!(output.status.success(), "{}", text(&output));
    let first = |name: &str| {
        let steps = std::fs::read_to_string(folder.join(name).join("run/metrics.jsonl")).unwrap();
        let first: Json = serde_json::from_str(steps.lines().next().unwrap()).unwrap();
        first["valid"].as_f64().unwrap()
    };
    assert!(first("on") < 0.5 * first("whole"), "{} and {}", first("on"), first("whole"));
    let card = std::fs::read_to_string(folder.join("on/README.md")).unwrap();
    assert!(card.contains("It went on from an adapter") && !card.contains("of the way"), "{card}");
    interpolates(folder);
    std::fs::write(folder.join("on.toml"), run_to("on").replace("epochs = 4", "epochs = 1")).unwrap();
    let output = tune();
    assert!(!output.status.success() && text(&output).contains("another output"), "{}", text(&output));
}

/// What an answer with the adapter in a folder of this name says it comes from.
fn provenance(folder: &Path, adapter: &str) -> Json {
    let load = format!("{adapter}={adapter}");
    let named = ["ask", "--mode", "tuned", "--adapter", adapter, "--load-adapter", &load];
    let output = shishin(folder, &[&named[..], &["--json", "--max-tokens", "4", "Ward 3?"]].concat())
        .output()
        .unwrap();
    let done = String::from_utf8(output.stdout.clone()).unwrap().lines().last().map(str::to_owned);
    let done: Json = serde_json::from_str(&done.unwrap_or_else(|| panic!("{}", text(&output)))).unwrap();
    done["data"]["provenance"].clone()
}

/// A finished run that is started again with another share of the way writes that, and trains nothing anew.
fn interpolates(folder: &Path) {
    let numbers = |name: &str| {
        let path = folder.join(name).join("adapter_model.safetensors");
        candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap()
    };
    let read = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
    // Bars of its numbers stay while these do.
    let provenance = provenance(folder, "on");
    let own = &provenance["adapter"]["sha256"];
    let bars = serde_json::json!({"adapter": own, "bars": {"en": 1.5}}).to_string();
    std::fs::write(folder.join("on/quoting.json"), bars).unwrap();
    let again = shishin(folder, &["tune", "--run", "on.toml"]).output().unwrap();
    assert!(again.status.success() && folder.join("on/quoting.json").exists(), "{}", text(&again));
    let (start, end, record, run) =
        (numbers("whole"), numbers("on"), read("on/run/metrics.jsonl"), read("on.toml"));
    std::fs::write(folder.join("on.toml"), run.replace("[training]", "interpolation = 0.25\n[training]"))
        .unwrap();
    let output = shishin(folder, &["tune", "--run", "on.toml"]).output().unwrap();
    assert!(output.status.success() && !text(&output).contains("  loss "), "{}", text(&output));
    assert_eq!(read("on/run/metrics.jsonl"), record);
    assert!(!folder.join("on/quoting.json").exists(), "it was of other numbers");
    assert!(read("on/README.md").contains("lie 0.25 of the way"));
    let mut moved = 0.0;
    for (name, own) in numbers("on") {
        let flat = |tensor: &candle_core::Tensor| {
            let tensor = tensor.to_dtype(candle_core::DType::F32).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for ((own, start), end) in flat(&own).into_iter().zip(flat(&start[&name])).zip(flat(&end[&name])) {
            // Each of the three is rounded to half precision.
            let expected = 0.75 * start + 0.25 * end;
            let rounded = 2e-3 * start.abs().max(end.abs()) + 1e-6;
            assert!((own - expected).abs() <= rounded, "{name}: {own}");
            moved = ((end - start).abs() / rounded).max(moved);
        }
    }
    assert!(moved > 10.0, "the ends lie farther apart than what is rounded: {moved}");
    std::fs::write(
        folder.join("none.toml"),
        run_to("none").replace("[training]", "interpolation = 0.25\n[training]"),
    )
    .unwrap();
    let output = shishin(folder, &["tune", "--run", "none.toml"]).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("needs lora.from"), "{}", text(&output));
    std::fs::write(folder.join("on.toml"), run).unwrap();
}

/// An adapter begins to quote where its own bar says so.
#[test]
fn an_adapter_has_a_bar_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let copy_to = |name: &str| {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let shipped = root(&format!("models/adapters/clinic/{MODEL}/{file}"));
            std::fs::copy(shipped, folder.join(name).join(file)).unwrap();
        }
    };
    copy_to("own");
    let rows = |count: usize| -> String {
        let row = |n: usize| {
            let kept = format!("The red kit is kept in cupboard {n}.");
            let system = format!(
                "Answer from this.\n\n<passage number=\"1\" title=\"Kit\" section=\"Kit\">\n{kept}\n</passage>"
            );
            let (asked, said) = match n % 2 {
                0 => ("Where is the red kit kept?", format!("> {kept}\nIn cupboard {n} [1].")),
                _ => ("Who feeds the cat?", "The passages do not answer this question.".to_owned()),
            };
            let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
            let turns = [turn("system", &system), turn("user", asked), turn("assistant", &said)];
            serde_json::json!({"id": n.to_string(), "language": "en", "messages": turns}).to_string() + "\n"
        };
        (0..count).map(row).collect()
    };
    let find = |more: &[&str]| {
        let args = ["evaluate", "quoting", "rows.jsonl", "--adapter", "own"];
        shishin(folder, &[&args, more].concat()).output().unwrap()
    };
    std::fs::write(folder.join("rows.jsonl"), rows(30)).unwrap();
    let output = find(&[]);
    assert!(
        !output.status.success() && text(&output).contains("a bar needs 20 examples"),
        "{}",
        text(&output)
    );
    std::fs::write(folder.join("rows.jsonl"), rows(40)).unwrap();
    let output = find(&["--json", "--write"]);
    assert!(output.status.success(), "{}", text(&output));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    let found = &report["bars"][0];
    assert_eq!(
        (&found["language"], &found["answered"]["of"], &found["declined"]["of"]),
        (&"en".into(), &20.into(), &20.into())
    );
    assert!(found["answered"]["rate"].as_f64().unwrap() >= 0.9, "{found}");
    let bar = || provenance(folder, "own")["quotes"]["bar"].as_f64().unwrap();
    assert!((bar() - found["bar"].as_f64().unwrap()).abs() < 1e-6);
    let path = folder.join("own/quoting.json");
    let own = std::fs::read_to_string(&path).unwrap();
    // A bar of a language that these examples are not in stays when they are weighed again.
    let more = serde_json::json!({"adapter": report["adapter"], "bars": {"en": 9.5, "ja": -0.5}});
    std::fs::write(&path, more.to_string()).unwrap();
    assert!(find(&["--write"]).status.success());
    let kept: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(kept["bars"], serde_json::json!({"en": found["bar"], "ja": -0.5}));
    // What decides is the bar: far below what it finds all begin with a quote, far above none.
    std::fs::write(folder.join("criteria.toml"), CRITERIA).unwrap();
    let answers = |bar: f32| {
        let bars = serde_json::json!({"adapter": report["adapter"], "bars": {"en": bar}}).to_string();
        std::fs::write(&path, bars).unwrap();
        let args = [
            "evaluate",
            "answers",
            "rows.jsonl",
            "--limit",
            "2",
            "--criteria",
            "criteria.toml",
            "--adapter",
            "own",
            "--json",
        ];
        let output = shishin(folder, &args).output().unwrap();
        let report: Json =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
        assert_eq!(report["bars"]["own"]["en"], serde_json::json!({"bar": bar, "own": true}));
        let own = report["answers"].as_array().unwrap().iter().filter(|one| one["system"] != "base");
        own.map(|one| one["answer"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (low, high) = (answers(-50.0), answers(50.0));
    assert!(low.len() == 2 && (0..2).all(|n| low[n] != high[n]), "{low:?} and {high:?}");
    // Of another adapter's it makes no use, and says so.
    std::fs::write(&path, own.replace(report["adapter"].as_str().unwrap(), "f00d")).unwrap();
    let output = find(&[]);
    assert!(!output.status.success() && text(&output).contains("another adapter"), "{}", text(&output));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(bar(), 0.5, "the settings'");
    // A card says at which bar its figures were found, and whose. Folders of one name are told apart.
    copy_to("other/own");
    std::fs::write(folder.join("own/README.md"), "<!-- evaluation -->\n<!-- end of evaluation -->\n")
        .unwrap();
    let args = ["evaluate", "answers", "rows.jsonl", "--limit", "1", "--criteria", "criteria.toml", "--json"];
    let args = [&args[..], &["--adapter", "own", "--adapter", "other/own"]].concat();
    let output = shishin(folder, &args).output().unwrap();
    let report: Json =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let settings = serde_json::json!({"en": {"bar": 0.5, "own": false}});
    assert_eq!(report["bars"], serde_json::json!({"own": settings, "other/own": settings}));
    let args = ["evaluate", "answers", "rows.jsonl", "--limit", "1", "--criteria", "criteria.toml", "--card"];
    let output = shishin(folder, &[&args[..], &["--adapter", "own"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let card = std::fs::read_to_string(folder.join("own/README.md")).unwrap();
    assert!(card.contains("by e to the power of 0.5 (en, `answer.quote_bar`)."), "{card}");
}

const CRITERIA: &str = r#"
objective = "Answer with the ward's one word."
goal = 0.9
[[criterion]]
name = "the word"
weight = 3
check = "contains-any"
texts = { en = ["Heather"] }
goal = 1.0
[[criterion]]
name = "no more"
check = "length"
most = 10
"#;

/// What was trained is seen in held-out answers: the base does not know the word, the adapter does, in both its forms.
fn judge(folder: &Path) {
    std::fs::write(folder.join("criteria.toml"), CRITERIA).unwrap();
    let judge = |adapter: &str, more: &[&str]| {
        let args =
            ["evaluate", "answers", "valid.jsonl", "--criteria", "criteria.toml", "--adapter", adapter];
        shishin(folder, &[&args, more].concat()).output().unwrap()
    };
    for adapter in ["whole", "whole/adapter.gguf"] {
        let output = judge(adapter, &["--json", "--gate"]);
        assert!(output.status.success(), "{}", text(&output));
        let report: Json = serde_json::from_slice(&output.stdout).unwrap();
        let held = |at: usize| report["figures"][at]["rate"]["held"].as_u64().unwrap();
        assert_eq!([held(0), held(1), held(2), held(3)], [0, 1, 0, 1], "{report:#}");
        assert_eq!(report["figures"][1]["against_first"]["difference"], 1.0);
        let score = |at: usize| report["scores"][at]["score"]["mean"].as_f64().unwrap();
        assert_eq!([score(0), score(1)], [0.0, 1.0], "{report:#}");
        let again: Json = serde_json::from_slice(&judge(adapter, &["--json", "--gate"]).stdout).unwrap();
        assert_eq!(again["figures"], report["figures"], "twice the same figures");
    }
    likely(folder);
    forget(folder);
    // The card says what it was learnt from, and takes the figures.
    let output = judge("whole", &["--card"]);
    assert!(output.status.success(), "{}", text(&output));
    let card = std::fs::read_to_string(folder.join("whole/README.md")).unwrap();
    for part in [
        "Answer with the ward's one word.",
        "| train.jsonl | learn |",
        "| the word | all | 0.0 % | 100.0 % (1 of 1)",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    for file in ["loss.svg", "run/loss.png", "run/events.out.tfevents.shishin"] {
        assert!(folder.join("whole").join(file).is_file(), "{file}");
    }
    // Two runs in one folder would spoil each other.
    let lock = std::fs::File::create(folder.join("whole/run/run.lock")).unwrap();
    lock.lock().unwrap();
    std::fs::write(folder.join("locked.toml"), run_to("whole")).unwrap();
    let output = shishin(folder, &["tune", "--run", "locked.toml"]).output().unwrap();
    assert!(
        !output.status.success() && text(&output).contains("another run is at work"),
        "{}",
        text(&output)
    );
    std::fs::write(folder.join("criteria.toml"), CRITERIA.replace("Heather", "Bracken")).unwrap();
    let output = judge("whole", &["--gate"]);
    assert!(!output.status.success() && text(&output).contains("2 goals were missed"), "{}", text(&output));
    // The word is gone and the length is right: one of four parts.
    assert!(text(&output).contains("all, whole: 0.250"), "{}", text(&output));
    std::fs::write(folder.join("valid.jsonl"), "{\"messages\": []}").unwrap();
    let output = judge("whole", &[]);
    assert!(!output.status.success() && text(&output).contains("valid.jsonl:1"), "{}", text(&output));
}

/// The adapter finds what it learnt likelier than the base does, and likelier than what is rejected.
fn likely(folder: &Path) {
    let line = std::fs::read_to_string(folder.join("valid.jsonl")).unwrap();
    let mut example: Json = serde_json::from_str(&line).unwrap();
    example["meta"] = serde_json::json!({ "rejected": "The word is not known." });
    std::fs::write(folder.join("weighed.jsonl"), example.to_string()).unwrap();
    let args = ["evaluate", "answers", "weighed.jsonl", "--criteria", "criteria.toml", "--adapter", "whole"];
    let output = shishin(folder, &[&args[..], &["--likelihood", "--json"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    let [base, adapter] = [0, 1].map(|at| report["likelihood"][at].clone());
    let bits = |one: &Json| one["bits_per_byte"].as_f64().unwrap();
    assert!(bits(&adapter) < 0.5 * bits(&base), "{base} {adapter}");
    assert_eq!((adapter["prefers"]["held"].as_u64(), adapter["prefers"]["of"].as_u64()), (Some(1), Some(1)));
    let output = shishin(folder, &[&args[..], &["--likelihood"]].concat()).output().unwrap();
    assert!(text(&output).contains("preferred to what is rejected: 1 of 1"), "{}", text(&output));
}

/// What the adapter cost elsewhere: something, by text of which it learnt nothing, and nothing where it does nothing.
fn forget(folder: &Path) {
    std::fs::write(
        folder.join("general.txt"),
        "The river rose in the night and took the lower bridge.\n\n山の上では、もう雪が降り始めていました。\n",
    )
    .unwrap();
    let probe = |id: &str, kind: &str, check: &str| {
        format!(
            r#"{{"id":"{id}","language":"en","kind":"{kind}","question":"The word of ward 2?","check":{check}}}"#
        )
    };
    let word = r#"{"check":"contains-any","texts":{"en":["Heather"]}}"#;
    let probes = [
        probe("a", "instruction", word),
        probe("b", "refusal", r#"{"check":"lacks","texts":{"en":["Heather"]}}"#),
    ];
    std::fs::write(folder.join("probes.jsonl"), probes.join("\n")).unwrap();
    let weigh = |more: &[&str]| {
        let args =
            ["evaluate", "forgetting", "general.txt", "--adapter", "whole", "--probes", "probes.jsonl"];
        shishin(folder, &[&args, more].concat()).output().unwrap()
    };
    let output = weigh(&["--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    let all = &report["figures"][0];
    assert_eq!((all["texts"].as_u64(), report["figures"].as_array().unwrap().len()), (Some(2), 3));
    let number = |key: &str| all[key].as_f64().unwrap();
    assert!(number("kl") > 0.0 && number("base") > 0.1, "{report:#}");
    assert!((number("adapter") / number("base") - 1.0 - number("change")).abs() < 1e-9);
    let held = |at: usize, who: &str| report["probes"][at][who]["held"].as_u64().unwrap();
    assert_eq!([held(0, "base"), held(0, "adapter")], [0, 1], "it follows what it learnt: {report:#}");
    // The one that must not say the word is no worse than the base by the bits, and still fails.
    let output = weigh(&["--budget", "100", "--show", "1"]);
    assert!(
        !output.status.success() && text(&output).contains("the adapter refuses 0 of 1"),
        "{}",
        text(&output)
    );
    assert!(text(&output).contains("adapter: Heather"), "{}", text(&output));
    std::fs::write(folder.join("probes.jsonl"), probe("a", "instruction", word)).unwrap();
    let output = weigh(&["--budget", "100"]);
    assert!(output.status.success() && text(&output).contains("b/byte"), "{}", text(&output));
    let output = weigh(&["--budget=-1"]);
    assert!(!output.status.success() && text(&output).contains("budget"), "{}", text(&output));
}

#[test]
fn the_preview_marks_what_is_learnt() {
    let folder = tempfile::tempdir().unwrap();
    let line =
        r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello there."}]}"#;
    std::fs::write(folder.path().join("train.jsonl"), line).unwrap();
    std::fs::write(folder.path().join("valid.jsonl"), line).unwrap();
    std::fs::write(folder.path().join("run.toml"), run_to("out")).unwrap();
    let output = shishin(folder.path(), &["tune", "--run", "run.toml", "--preview", "1"]).output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let learnt = text.split('»').nth(1).and_then(|t| t.split('«').next()).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(learnt.replace('·', ""), "Hello there.<|im_end|>");
    assert!(!folder.path().join("out").exists(), "a preview trains nothing");
}

/// What is shipped can be made into examples with all parts filled, and judged.
#[test]
fn every_shipped_item_grounds_and_every_dataset_has_criteria() {
    let folder = tempfile::tempdir().unwrap();
    let set = |path: &str| root(&format!("models/datasets/{path}"));
    let over = |language: &str| {
        [root(&format!("index/guidelines/{language}")), set(&format!("grounded/guidelines/{language}"))]
    };
    let files =
        |name: &str, kinds: &[&str]| kinds.iter().map(|k| set(&format!("{name}/{k}.jsonl"))).collect();
    let mut runs: Vec<(&str, Vec<String>, Vec<String>)> = Vec::new();
    for language in ["en", "ja"] {
        let kinds = ["samples", "invented", "cases", "unanswerable", "nearmiss"]
            .map(|kind| format!("{kind}.{language}"));
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        runs.push(("grounded", files("grounded", &kinds), over(language).to_vec()));
        let kinds = ["leaflets", "uncovered"].map(|kind| format!("{kind}.{language}"));
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        let leaflets =
            [root(&format!("index/guidelines/{language}")), set(&format!("bedside/guidelines/{language}"))];
        runs.push(("bedside", files("bedside", &kinds), leaflets.to_vec()));
    }
    for name in ["bedside", "radiology-summary", "referral-letter", "pathology-report"] {
        runs.push((name, files(name, &["en", "ja"]), vec![root("index/guidelines")]));
    }
    for (name, files, guidelines) in runs {
        let guidelines = guidelines.iter().flat_map(|g| ["--guidelines", g.as_str()]);
        let args =
            ["dataset", "ground"].into_iter().chain(files.iter().map(String::as_str)).chain(guidelines);
        let mut args: Vec<&str> = args.chain(["--out", "out"]).collect();
        if files.iter().any(|file| file.contains("leaflets")) {
            args.extend(["--without", "0"]);
        }
        let output = shishin(folder.path(), &args).output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output));
        let criteria = Criteria::read(Path::new(&set(&format!("{name}/criteria.toml")))).unwrap();
        assert!(criteria.criterion.iter().any(|criterion| criterion.goal.is_some()));
        for part in ["train", "valid", "test"] {
            let rows = std::fs::read_to_string(folder.path().join(format!("out/{part}.jsonl"))).unwrap();
            assert!(rows.lines().count() >= 6, "{name}: {part} has {}", rows.lines().count());
            for row in rows.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()) {
                let said = row["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
                let good = Said {
                    language: Language::detect(said),
                    given: "",
                    reference: said,
                    passages: 5,
                    oracle: None,
                    facts: &[],
                    answer: said,
                };
                for criterion in &criteria.criterion {
                    let form = matches!(criterion.check, Check::Json { .. } | Check::JsonSchema { .. });
                    let holds = criterion.check.holds(&good);
                    assert!(!form || holds == Some(true), "{}: {} of {said}", row["id"], criterion.name);
                }
                // Over leaflets too the nurse asks back, politely and at a length to be read.
                let over_leaflet = files.iter().any(|file| file.contains("leaflets"));
                let manner =
                    |check: &Check| matches!(check, Check::Asks | Check::Polite | Check::Length { .. });
                for criterion in criteria.criterion.iter().filter(|c| over_leaflet && manner(&c.check)) {
                    let holds = criterion.check.holds(&good);
                    assert!(holds != Some(false), "{}: {} of {said}", row["id"], criterion.name);
                }
                for fact in row["meta"]["facts"].as_array().into_iter().flatten() {
                    let fact = fact.as_str().unwrap();
                    assert!(shishin::evaluate::facts::states(said, fact), "{}: {said} / {fact}", row["id"]);
                }
                let rejected = row["meta"]["rejected"].as_str();
                assert!(
                    rejected.is_none_or(|rejected| !rejected.contains('[') && rejected != said),
                    "{}",
                    row["id"]
                );
                let asked = name == "grounded" && !row["meta"]["oracle"].is_null();
                assert!(!asked || row["meta"]["facts"].is_array(), "{}: no facts", row["id"]);
            }
        }
    }
}

#[test]
fn questions_are_written_out_over_passages() {
    let folder = tempfile::tempdir().unwrap();
    let item = r#"{"id":"a","language":"en","question":"What is the most adrenaline for a child?","answer":"At most 0.3 mg [1].","oracle":[{"guideline":"anaphylaxis","edition":"2020","quote":"and 0.3 mg in children"}]}"#;
    let none = r#"{"id":"b","language":"ja","question":"猫の血圧の正常値は？"}"#;
    let items = folder.path().join("items.jsonl");
    std::fs::write(&items, format!("{item}\n{none}\n")).unwrap();
    let guidelines = root("index/guidelines");
    let args =
        ["dataset", "ground", "items.jsonl", "--guidelines", &guidelines, "--out", "out", "--without", "1"];
    let output = shishin(folder.path(), &args).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let mut rows: Vec<Json> = Vec::new();
    for split in ["train", "valid", "test"] {
        let text = std::fs::read_to_string(folder.path().join(format!("out/{split}.jsonl"))).unwrap();
        rows.extend(text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()));
    }
    rows.sort_by_key(|row| row["id"].as_str().unwrap().to_owned());
    let said = |row: &Json| row["messages"][2]["content"].as_str().unwrap().to_owned();
    assert_eq!(rows.len(), 3);
    let n = rows[0]["meta"]["oracle"][0].as_u64().unwrap();
    assert_eq!(said(&rows[0]), format!("At most 0.3 mg [{n}]."));
    let shown = |row: &Json, n: u64| {
        let system = row["messages"][0]["content"].as_str().unwrap();
        let from = system.split(&format!("number=\"{n}\"")).nth(1).unwrap();
        from.split("</passage>").next().unwrap().to_owned()
    };
    assert!(shown(&rows[0], n).contains("and 0.3 mg in children"));
    let system = rows[0]["messages"][0]["content"].as_str().unwrap();
    // It knows what is asked when it reads them.
    assert!(system.split("<passage").next().unwrap().contains("What is the most adrenaline for a child?"));
    assert_eq!(rows[1]["id"], "a-without");
    assert!(!rows[1]["messages"][0]["content"].as_str().unwrap().contains("and 0.3 mg in children"));
    assert!(said(&rows[1]).starts_with("The passages do not answer"));
    assert!(said(&rows[2]).starts_with("抜粋の中に"));

    // Quotes go before answers, and before what is not wanted of them; nothing else changes.
    let output = shishin(folder.path(), &[&args[..], &["--quotes"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let all = ["train", "valid", "test"]
        .map(|split| std::fs::read_to_string(folder.path().join(format!("out/{split}.jsonl"))).unwrap());
    let mut quoting: Vec<Json> =
        all.iter().flat_map(|text| text.lines()).map(|line| serde_json::from_str(line).unwrap()).collect();
    quoting.sort_by_key(|row| row["id"].as_str().unwrap().to_owned());
    assert_eq!(quoting[1..], rows[1..]);
    let quote = "> The dose is **0.01 mg/kg** of the 1 mg/mL (1:1000) solution, to a maximum of **0.5 mg in adults and teenagers** and 0.3 mg in children.\n";
    assert_eq!(said(&quoting[0]), format!("{quote}{}", said(&rows[0])));
    assert!(quoting[0]["meta"]["rejected"].as_str().unwrap().starts_with(quote));
    assert_eq!(quoting[0]["messages"][0], rows[0]["messages"][0]);

    // By rank nothing is drawn: fewer are the first of more, and the answer cites the one that holds it.
    // Three guidelines are enough for it, and are embedded each time.
    std::fs::create_dir(folder.path().join("few")).unwrap();
    for name in ["anaphylaxis-2020", "asthma-adults-2026", "adult-basic-life-support-2025"] {
        let name = format!("{name}.md");
        let from = format!("{guidelines}/en/{name}");
        std::fs::copy(from, folder.path().join("few").join(name)).unwrap();
    }
    let ranked = |passages: &str, seed: &str| {
        let more = ["--passages", passages, "--ranked", "--seed", seed];
        let few = args.map(|arg| if arg == guidelines { "few" } else { arg });
        let output = shishin(folder.path(), &[&few[..], &more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let rows = ["train", "valid", "test"]
            .map(|split| std::fs::read_to_string(folder.path().join(format!("out/{split}.jsonl"))).unwrap());
        let mut rows = rows.iter().flat_map(|text| text.lines());
        let row = rows.find(|row| row.contains("\"id\":\"a\"")).unwrap();
        let row: Json = serde_json::from_str(row).unwrap();
        let n = row["meta"]["oracle"][0].as_u64().unwrap();
        assert_eq!(said(&row), format!("At most 0.3 mg [{n}]."));
        assert!(shown(&row, n).contains("and 0.3 mg in children"));
        row["meta"]["passages"].as_array().unwrap().clone()
    };
    let six = ranked("6", "1");
    assert!(six.len() == 6 && six == ranked("6", "2") && six[..3] == ranked("3", "3"), "{six:?}");

    for (from, to, expected) in [
        ("and 0.3 mg in children", "and 3 mg in children", "holds “and 3 mg in children”"),
        ("0.3 mg [1]", "0.3 mg", "cites nothing"),
        ("0.3 mg [1]", "0.3 mg [2]", "cites [2] of 1"),
        ("\"oracle\"", "\"orakel\"", "items.jsonl:1"),
    ] {
        std::fs::write(&items, item.replace(from, to)).unwrap();
        let output = shishin(folder.path(), &args).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(expected), "{}", text(&output));
    }
}

#[test]
fn the_shipped_run_is_sound_and_faults_are_named() {
    let folders = std::fs::read_dir(root("models/adapters")).unwrap().map(|entry| entry.unwrap().path());
    let folders =
        folders.filter(|path| path.is_dir()).chain([root("models/datasets/pathology-report").into()]);
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let runs: Vec<PathBuf> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml") && !path.ends_with("criteria.toml"))
        .collect();
    assert!(runs.len() >= 7, "{runs:?}");
    for run in &runs {
        TuneSettings::read(run).unwrap();
    }
    for language in ["en", "ja"] {
        let general = root(&format!("models/datasets/forgetting/{language}.txt"));
        assert_eq!(shishin::dataset::general::read(Path::new(&general)).unwrap().len(), 24);
    }
    let shipped = root("config/tune.toml");
    let settings = TuneSettings::read(Path::new(&shipped)).unwrap();
    assert_eq!(settings.shape().targets.len(), 7);
    let good = std::fs::read_to_string(&shipped).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tune.toml");
    for (from, to, expected) in [
        ("rank = 16", "rank = 0", "lora.rank must be"),
        ("begins = \"prompt\"", "begins = \"middle\"", "middle"),
        ("begins = \"prompt\"", "from = \"target/adapters/bedside\"", "lora.from is the output"),
        ("epochs = 3", "epoch = 3", "epoch"),
        ("dropout = 0.05", "dropout = 1.0", "lora.dropout must be"),
        ("\"all-linear\"]", "\"all\"]", "`all` is none of"),
        ("learning_rate = 1e-4", "learning_rate = 3", "training.learning_rate"),
        ("learning_rate = 1e-4", "learning_rate = \"fast\"", "learning_rate"),
        ("quote_weight = 1.0", "quote_weight = 0.0", "training.quote_weight must be above 0"),
        (
            "prefix_folder = \"\"\nprefix_gigabytes = 20",
            "prefix_folder = \"x\"\nprefix_gigabytes = 0",
            "training.prefix_gigabytes",
        ),
        ("weights = \"stored\"", "weights = \"int3\"", "int3"),
        ("objective = ", "objektive = ", "objekt"),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let message = TuneSettings::read(&path).unwrap_err();
        assert!(message.to_string().contains(expected), "{message}");
        assert!(message.to_string().contains("tune.toml"), "{message}");
    }
    let gone = TuneSettings::read(&folder.path().join("none.toml")).unwrap_err();
    assert!(matches!(gone, TuneSettingsError::File(_)), "{gone}");
}
