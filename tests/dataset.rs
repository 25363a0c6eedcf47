//! `shishin dataset` over files: a hundred mutations of a sound one, each found with its line and then mended or put aside; the forms of
//! other programs; and the commands as a user runs them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value as Json, json};
use shishin::dataset::fix::fix;
use shishin::dataset::lint::{Against, Purpose, Report, lint};
use shishin::dataset::{Severity, forms};

/// Examples that nothing is wrong with.
fn sound() -> Vec<Json> {
    let cases = [
        ("My knee hurts on the stairs.", "Since when, and did you fall? Rest it until you know."),
        ("熱が三日続いています。", "おつらいですね。水分はとれていますか。"),
        ("Can I swim with a cold?", "Wait until you feel well; the water will still be there."),
        ("薬を飲み忘れました。", "次の時間に、いつもの量をのんでください。"),
        ("The baby will not sleep.", "That is hard. How long does she drink at a time?"),
        ("血圧の薬はいつまで続けますか。", "外来で数値を見ながら、先生と決めていきましょう。"),
        ("I fainted at the market.", "Please lie down and call for help now if it comes again."),
        ("咳が夜だけ出ます。", "横になると強くなりますか。枕を高くしてみてください。"),
        ("Is this rash catching?", "Does it itch, and has anybody at home the same?"),
        ("検査の結果が怖いです。", "怖いお気持ちはよくわかります。一緒に聞きましょうか。"),
        ("May my father drive again?", "Let his doctor see him first. What does he say himself?"),
        ("食欲がありません。", "いつごろからでしょう。体重は変わりましたか。"),
    ];
    let example = |(asked, answered): &(&str, &str)| {
        json!({ "messages": [
            { "role": "system", "content": "You are a nurse." },
            { "role": "user", "content": asked },
            { "role": "assistant", "content": answered },
        ] })
    };
    cases.iter().map(example).collect()
}

/// What is done to an example, the code that must be found, and whether `fix` mends it.
type Mutation = (&'static str, fn(Json) -> String, &'static str, bool);

fn turn(example: &mut Json, n: usize) -> &mut serde_json::Map<String, Json> {
    example["messages"][n].as_object_mut().unwrap()
}

fn with(mut example: Json, change: impl FnOnce(&mut Json)) -> String {
    change(&mut example);
    example.to_string()
}

const MUTATIONS: [Mutation; 27] = [
    (
        "cut in a text",
        |e| e.to_string()[..e.to_string().char_indices().nth(60).unwrap().0].to_owned(),
        "json",
        false,
    ),
    ("comma at the end", |e| e.to_string().replace("}]}", "},]}"), "json", true),
    ("bracket left open", |e| e.to_string().trim_end_matches('}').to_owned(), "json", true),
    (
        "two objects",
        |e| {
            format!(
                "{e}{}",
                with(e.clone(), |e| {
                    turn(e, 1).insert("content".into(), json!("Another?"));
                })
            )
        },
        "json",
        true,
    ),
    (
        "no messages",
        |e| json!({ "prompt": e["messages"][1]["content"], "completion": "a" }).to_string(),
        "messages-missing",
        false,
    ),
    ("messages misspelt", |e| e.to_string().replace("\"messages\"", "\"message\""), "messages-missing", true),
    ("no list", |e| with(e, |e| e["messages"] = json!("hello")), "messages-no-list", false),
    ("empty list", |e| with(e, |e| e["messages"] = json!([])), "messages-empty", false),
    ("turn is a text", |e| with(e, |e| e["messages"][1] = json!("hello")), "message-no-object", false),
    (
        "role of another program",
        |e| {
            with(e, |e| {
                turn(e, 1).insert("role".into(), json!("human"));
            })
        },
        "role-unknown",
        true,
    ),
    (
        "role of nobody",
        |e| {
            with(e, |e| {
                turn(e, 1).insert("role".into(), json!("nurse"));
            })
        },
        "role-unknown",
        false,
    ),
    (
        "role missing",
        |e| {
            with(e, |e| {
                turn(e, 1).remove("role");
            })
        },
        "role-missing",
        false,
    ),
    (
        "role misspelt",
        |e| e.to_string().replacen("\"role\":\"user\"", "\"rolle\":\"user\"", 1),
        "key-unknown",
        true,
    ),
    (
        "content missing",
        |e| {
            with(e, |e| {
                turn(e, 2).remove("content");
            })
        },
        "content-missing",
        false,
    ),
    (
        "content a number",
        |e| {
            with(e, |e| {
                turn(e, 1).insert("content".into(), json!(5));
            })
        },
        "content-no-text",
        false,
    ),
    (
        "answer blank",
        |e| {
            with(e, |e| {
                turn(e, 2).insert("content".into(), json!("  "));
            })
        },
        "content-empty",
        false,
    ),
    (
        "key unknown",
        |e| {
            with(e, |e| {
                turn(e, 1).insert("mood".into(), json!("sad"));
            })
        },
        "key-unknown",
        true,
    ),
    (
        "key twice",
        |e| e.to_string().replacen("\"role\":\"user\"", "\"role\":\"user\",\"role\":\"user\"", 1),
        "key-twice",
        true,
    ),
    (
        "key twice, of two minds",
        |e| e.to_string().replacen("\"role\":\"user\"", "\"role\":\"user\",\"role\":\"assistant\"", 1),
        "key-twice",
        false,
    ),
    ("topic beside", |e| with(e, |e| e["topic"] = json!("knee")), "key-unknown", true),
    (
        "user twice",
        |e| {
            with(e, |e| {
                let t = e["messages"][1].clone();
                e["messages"].as_array_mut().unwrap().insert(1, t);
            })
        },
        "role-order",
        true,
    ),
    (
        "system last",
        |e| {
            with(e, |e| {
                let t = e["messages"].as_array_mut().unwrap().remove(0);
                e["messages"].as_array_mut().unwrap().push(t);
            })
        },
        "role-order",
        true,
    ),
    (
        "ends with a question",
        |e| {
            with(e, |e| {
                e["messages"].as_array_mut().unwrap().push(json!({ "role": "user", "content": "And?" }));
            })
        },
        "last-not-assistant",
        true,
    ),
    (
        "no answer",
        |e| {
            with(e, |e| {
                e["messages"].as_array_mut().unwrap().pop();
            })
        },
        "no-assistant",
        false,
    ),
    (
        "weight of a half",
        |e| {
            with(e, |e| {
                turn(e, 2).insert("weight".into(), json!(0.5));
            })
        },
        "weight",
        false,
    ),
    (
        "control token",
        |e| {
            with(e, |e| {
                turn(e, 2).insert("content".into(), json!("Rest.<|im_end|>"));
            })
        },
        "control-token",
        false,
    ),
    (
        "damaged text",
        |e| {
            with(e, |e| {
                turn(e, 2).insert("content".into(), json!("Don\u{e2}\u{20ac}\u{2122}t worry, rest."));
            })
        },
        "encoding",
        true,
    ),
];

#[test]
fn a_hundred_mutations_are_found_in_their_lines_and_mended_or_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    let write = |lines: &[String]| std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let good: Vec<String> = sound().iter().map(Json::to_string).collect();
    write(&good);
    let clean = lint(&[&path], &Against::default()).unwrap();
    assert_eq!((clean.errors(), clean.examples[0].1), (0, 12), "{:#?}", clean.findings);
    assert_eq!(fix(&std::fs::read(&path).unwrap()).lines, good);
    let mut files = 0;
    for (what, mutate, code, mends) in MUTATIONS {
        // English and Japanese, the first line, the last and two between.
        for at in [0, 3, 6, 11] {
            let mut lines = good.clone();
            lines[at] = mutate(sound()[at].clone());
            write(&lines);
            let report = lint(&[&path], &Against::default()).unwrap();
            let errors: Vec<(usize, &str)> = report
                .findings
                .iter()
                .filter(|f| f.severity == Severity::Error)
                .map(|f| (f.line, f.code))
                .collect();
            assert!(errors.contains(&(at + 1, code)), "{what} in line {}: {errors:?}", at + 1);
            assert!(errors.iter().all(|(line, _)| *line == at + 1), "{what}: {errors:?}");
            let fixed = fix(&std::fs::read(&path).unwrap());
            assert_eq!(fixed.rejected.is_empty(), mends, "{what}: {fixed:#?}");
            if !mends {
                assert_eq!((fixed.rejected[0].0, &fixed.rejected[0].1), (at + 1, &lines[at]), "{what}");
            }
            write(&fixed.lines);
            let after = lint(&[&path], &Against::default()).unwrap();
            assert_eq!(after.errors(), 0, "{what}: {:#?}", after.findings);
            assert!(after.examples[0].1 >= if mends { 12 } else { 11 }, "{what}");
            files += 1;
        }
    }
    assert_eq!(files, 108);
}

fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/lint");
    let there = folder.is_dir();
    if !there {
        println!("skipped: there is no shared data");
    }
    there.then_some(folder)
}

/// The lines and codes of what a lint finds to be errors.
fn errors(report: &Report) -> Vec<(usize, &'static str)> {
    let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| (finding.line, finding.code)).collect()
}

#[test]
fn files_of_other_programs_are_read_and_their_faults_found() {
    let Some(folder) = shared() else { return };
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("lines.jsonl");
    let against = Against { purpose: Purpose::HeldOut, ..Against::default() };
    let look_over = |lines: &str| {
        std::fs::write(&path, lines).unwrap();
        lint(&[&path], &against).unwrap()
    };
    // Lines that OpenAI's cookbook calls faulty, each after a sound one.
    let text = std::fs::read_to_string(folder.join("malformed_vectors.jsonl")).unwrap();
    for vector in text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()) {
        let report = look_over(&format!("{}\n{}\n", sound()[0], vector["line"].as_str().unwrap()));
        let found = errors(&report);
        assert!(!found.is_empty() && found.iter().all(|(line, _)| *line == 2), "{vector}: {found:?}");
        assert_eq!(report.examples[0].1, 1, "{vector}");
    }
    let report = lint(&[&folder.join("openai_toy_chat_fine_tuning.jsonl")], &against).unwrap();
    assert_eq!((errors(&report), report.examples[0].1), (vec![], 5), "{:#?}", report.findings);
    for (file, examples, refused) in [
        ("axolotl_alpaca.json", 2, 0),
        ("axolotl_conversation.json", 1, 0),
        ("axolotl_conversation.missingturns.json", 0, 1),
        ("llamafactory_dataset_info.json", 0, 1),
        ("llamafactory_alpaca_en_demo.json", 999, 0),
        ("llamafactory_identity.json", 91, 0),
        ("llamafactory_glaive_toolcall_en_demo.json", 300, 0),
        ("llamafactory_v1_sft_demo.jsonl", 500, 0),
        ("llamafactory_reason_tool_use_demo_50.jsonl", 50, 0),
        ("llamafactory_kto_en_demo.json", 150, 150),
        ("llamafactory_v1_dpo_demo.jsonl", 0, 10),
    ] {
        let imported = forms::import(&folder.join(file)).unwrap();
        let errors: Vec<_> =
            imported.findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert_eq!(
            (imported.examples.len(), errors.len()),
            (examples, refused),
            "{file}: {:#?}",
            errors.first()
        );
        if examples == 0 {
            continue;
        }
        // What is written can be read; some of these files say things twice, and one has thoughts that were not cut off.
        let lines: Vec<String> = imported.examples.iter().map(Json::to_string).collect();
        let report = look_over(&lines.join("\n"));
        let found: Vec<(usize, &str)> = self::errors(&report);
        let known = |(_, code): &(usize, &str)| matches!(*code, "duplicate" | "control-token");
        assert!(found.iter().all(known), "{file}: {found:?}");
    }
}

fn shishin(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shishin"));
    command.current_dir(folder).env("SHISHIN_MODEL_NAME", "smollm2-135m").args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_dataset_is_imported_looked_over_split_counted_and_exported() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let ok = |args: &[&str]| {
        let output = shishin(dir, args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        said(&output)
    };
    let fails = |args: &[&str], part: &str| {
        let output = shishin(dir, args);
        assert!(!output.status.success() && said(&output).contains(part), "{args:?}: {}", said(&output));
    };
    let list: Vec<Json> = sound()
        .iter()
        .map(|e| {
            json!({ "conversations": [
            { "from": "human", "value": e["messages"][1]["content"] },
            { "from": "gpt", "value": e["messages"][2]["content"] },
        ] })
        })
        .collect();
    std::fs::write(dir.join("sharegpt.json"), json!(list).to_string()).unwrap();
    assert!(ok(&["dataset", "import", "sharegpt.json", "--out", "all.jsonl"]).contains("12 examples"));
    assert!(ok(&["dataset", "lint", "all.jsonl"]).contains("0 errors"));
    // Few examples are too few to learn from, and enough to hold out.
    let few: String = sound().iter().take(3).map(|e| format!("{e}\n")).collect();
    std::fs::write(dir.join("few.jsonl"), &few).unwrap();
    std::fs::write(dir.join("valid.jsonl"), &few).unwrap();
    fails(&["dataset", "lint", "few.jsonl"], "error[too-few]");
    assert!(ok(&["dataset", "lint", "few.jsonl", "--held-out"]).contains("warning[too-few]"));
    assert!(ok(&["dataset", "lint", "valid.jsonl"]).contains("warning[too-few]"));
    std::fs::remove_file(dir.join("few.jsonl")).unwrap();
    ok(&["dataset", "split", "all.jsonl", "--out", "parts", "--test", "0.2", "--valid", "0.2"]);
    let count = |part: &str| {
        std::fs::read_to_string(dir.join(format!("parts/{part}.jsonl"))).unwrap().lines().count()
    };
    assert_eq!(count("train") + count("valid") + count("test"), 12);
    assert!(count("valid") >= 2 && count("test") >= 2);
    for platform in ["openai", "vertex", "hf"] {
        ok(&["dataset", "export", "all.jsonl", "--to", platform, "--out", "out.jsonl"]);
        let back = forms::import(&dir.join("out.jsonl")).unwrap();
        assert_eq!((back.examples.len(), back.findings.len()), (12, 0), "{platform}");
    }
    fails(
        &["dataset", "export", "parts/test.jsonl", "--to", "openai", "--out", "few.jsonl"],
        "fewer than 10",
    );
    assert!(!dir.join("few.jsonl").exists());
    fails(&["dataset", "split", "sharegpt.json", "--out", "parts"], "dataset fix");
    fails(&["dataset", "import", "all.jsonl", "none.jsonl", "--out", "x.jsonl"], "none.jsonl");
    std::fs::write(dir.join("broken.jsonl"), "{\"messages\": [\n").unwrap();
    fails(&["dataset", "fix", "broken.jsonl", "--out", "fixed.jsonl"], "put aside");
    assert_eq!(std::fs::read_to_string(dir.join("fixed.jsonl.rejected")).unwrap(), "{\"messages\": [\n");
    // Of another encoding, and written over: what it said is still there.
    let foreign = b"{\"messages\": \"\x8a\xb3\x8e\xd2\"}\n";
    std::fs::write(dir.join("foreign.jsonl"), foreign).unwrap();
    fails(&["dataset", "fix", "foreign.jsonl", "--out", "foreign.jsonl"], "not UTF-8");
    assert_eq!(std::fs::read(dir.join("foreign.jsonl.rejected")).unwrap(), foreign);
    fails(
        &["dataset", "fix", "broken.jsonl", "--out", "same.jsonl", "--rejected", "same.jsonl"],
        "name two files",
    );
    fails(
        &["dataset", "fix", "broken.jsonl", "--out", "same.jsonl", "--rejected", "broken.jsonl"],
        "name another file",
    );

    // Facts that nobody gave, and that a guideline gives.
    let dose = json!({ "messages": [
        { "role": "user", "content": "What is the target?" },
        { "role": "assistant", "content": "Below 130/80 mmHg." },
    ] });
    std::fs::write(dir.join("facts.jsonl"), dose.to_string()).unwrap();
    let output = said(&shishin(dir, &["dataset", "lint", "facts.jsonl"]));
    assert!(output.contains("fact-not-given") && output.contains("80 mmhg"), "{output}");
    let guidelines = format!("{}/index/guidelines/en", env!("CARGO_MANIFEST_DIR"));
    let output = said(&shishin(dir, &["dataset", "lint", "facts.jsonl", "--guidelines", &guidelines]));
    assert!(!output.contains("fact-not-given"), "{output}");

    ok(&["model", "pull", "smollm2-135m"]);
    let run = "objective = \"Speak as a nurse.\"\nbase = \"smollm2-135m\"\noutput = \"a\"\n[data]\n\
        train = [\"parts/train.jsonl\"]\nvalid = [\"parts/valid.jsonl\"]\nmax_tokens = 400\n[training]\nbatch = 2\n[lora]\nrank = 2\n";
    std::fs::write(dir.join("run.toml"), run).unwrap();
    std::fs::write(
        dir.join("prices.toml"),
        "own_hour = { cost = 3600.0, currency = \"JPY\" }\n[[price]]\nplatform = \"P\"\nmodel = \"M\"\nper_million_tokens = 1e6\ncurrency = \"USD\"\nas_of = \"2026\"\n",
    )
    .unwrap();
    let args = ["dataset", "stats", "--run", "run.toml", "--prices", "prices.toml", "--probe", "--json"];
    let stats: Json = serde_json::from_str(&ok(&args)).unwrap();
    let tokens = stats["stats"]["tokens"]["sum"].as_f64().unwrap();
    assert_eq!(stats["stats"]["examples"], count("train"));
    assert!(
        stats["probe"]["seconds"].as_f64().unwrap() > 0.0 && stats["peak_bytes"].as_u64().unwrap() > 1 << 20
    );
    // A yen for each second, and a dollar for each token of each of three epochs.
    assert_eq!(stats["costs"][1]["cost"].as_f64().unwrap(), 3.0 * tokens);
    // Read from JSON, either may be off in its last digit.
    let (cost, seconds) = (&stats["costs"][0]["cost"], &stats["probe"]["seconds"]);
    assert!((cost.as_f64().unwrap() - seconds.as_f64().unwrap()).abs() < 1e-9, "{cost} {seconds}");
    let text = ok(&["dataset", "stats", "parts/train.jsonl", "parts/valid.jsonl", "--run", "run.toml"]);
    assert!(text.contains("tokens of smollm2-135m"), "{text}");
    let tried = ok(&["tune", "--run", "run.toml", "--rates", "1e-4,1e-3", "--rate-steps", "2"]);
    assert!(tried.contains("lowest with"), "{tried}");
    assert!(!dir.join("a").exists());
}

/// The shipped suites ask what they say they ask: quotes stand in the edition of the day, references hold the facts and nothing older, and
/// none of them nearly repeats what is learnt from.
#[test]
fn the_suites_are_sound_and_held_out() {
    use shishin::evaluate::compare::suite::{Kind, Suite};
    use shishin::evaluate::facts::states;

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [suite, tuning] =
        ["clinic", "tuning"].map(|name| Suite::read(&root.join("models/suites").join(name)).unwrap());
    let of_tuning = |kind: Kind| tuning.questions.iter().filter(|q| q.kind == kind).count();
    assert!(of_tuning(Kind::Fact) >= 80 && of_tuning(Kind::Unanswerable) >= 28);
    let count = |kind: Kind| suite.questions.iter().filter(|q| q.kind == kind).count();
    assert!(suite.questions.len() >= 120 && count(Kind::Changed) >= 40);
    assert!(count(Kind::Behaviour) >= 30 && count(Kind::Unanswerable) >= 20);
    let files = |folder: &Path, ending: &str| -> Vec<(String, String)> {
        let mut folders = vec![folder.to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == ending) {
                    files.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        files
    };
    let over = |suite: &Suite| -> Vec<(String, String)> {
        suite.guidelines.iter().flat_map(|g| files(g, "md")).collect()
    };
    let (own, of_tuning) = (over(&suite), over(&tuning));
    let asked = suite.questions.iter().map(|question| (question, &own));
    for (question, guidelines) in asked.chain(tuning.questions.iter().map(|q| (q, &of_tuning))) {
        assert!(question.as_of.is_some(), "{}: the answer would change with the day", question.id);
        for fact in &question.facts {
            assert!(states(&question.reference, fact), "{}: {fact}", question.id);
        }
        for older in &question.older {
            assert!(!states(&question.reference, older), "{}: {older}", question.id);
        }
        for oracle in &question.oracle {
            let of = |text: &str, key: &str, value: &str| {
                let line =
                    |l: &&str| l.strip_prefix(key).is_some_and(|v| v.trim().trim_matches('"') == value);
                text.lines().any(|l| line(&l))
            };
            let found = guidelines.iter().any(|(_, text)| {
                of(text, "id:", &oracle.guideline)
                    && of(text, "edition:", &oracle.edition)
                    && text.contains(&oracle.quote)
            });
            assert!(found, "{}: “{}” stands in no edition {}", question.id, oracle.quote, oracle.edition);
        }
    }
    let mut texts: Vec<String> = Vec::new();
    let (mut general, mut probes) = (Vec::new(), Vec::new());
    let guidelines =
        ["models/datasets", "index/guidelines"].map(|folder| files(&root.join(folder), "md")).concat();
    let mut quoted = 0;
    for (name, text) in files(&root.join("models/datasets"), "jsonl") {
        for line in text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()) {
            let asked = line["question"].as_str().or(line["messages"][0]["content"].as_str());
            let asked = asked.unwrap_or_else(|| panic!("{name}: {line}")).to_owned();
            match Path::new(&name).parent().and_then(Path::file_name).and_then(|folder| folder.to_str()) {
                Some("general") => general.push(asked.clone()),
                Some("forgetting") => probes.push(asked.clone()),
                _ => {}
            }
            texts.push(asked);
            // What answers can be quoted, so that an adapter can learn to.
            for oracle in line["oracle"].as_array().into_iter().flatten() {
                // Probes number their passages.
                let Some(quote) = oracle["quote"].as_str() else {
                    assert!(oracle.is_u64(), "{name}: {line}");
                    continue;
                };
                let around = |(_, text): &(String, String)| {
                    text.contains(quote).then(|| shishin::quote::units_around(text, quote))
                };
                let units: Vec<_> = guidelines.iter().filter_map(around).flatten().collect();
                assert!(!units.is_empty(), "{name}: “{quote}” is in no sentence, list item or row");
                quoted += 1;
            }
        }
    }
    assert!(quoted >= 2500, "{quoted}");
    let learnt = texts.len();
    let asked = suite.questions.iter().chain(&tuning.questions);
    texts.extend(asked.map(|question| question.question.clone()));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for pair in shishin::dataset::similar::pairs(&texts) {
        let at = pair.first.max(pair.second);
        assert!(at < learnt, "{} ~ {}", texts[pair.first], texts[pair.second]);
    }
    // What is learnt along is not what is probed.
    assert!(general.len() >= 400 && probes.len() >= 90);
    let both: Vec<&str> = general.iter().chain(&probes).map(String::as_str).collect();
    for pair in shishin::dataset::similar::pairs(&both) {
        let (first, second) = (pair.first.min(pair.second), pair.first.max(pair.second));
        assert!(first >= general.len() || second < general.len(), "{} ~ {}", both[first], both[second]);
    }
    // The shipped promises and probes can be read too.
    shishin::evaluate::compare::gate::read(&root.join("config/gate.toml")).unwrap();
    let probes = root.join("models/datasets/forgetting/probes.jsonl");
    assert!(shishin::evaluate::probes::read(&probes).unwrap().len() >= 90);
}
