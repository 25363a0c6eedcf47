//! ARCHITECTURE.md and README.md stay true: what they name exists.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Everything between backticks, outside of fenced blocks.
fn code_spans(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut spans = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    spans
}

/// Every Rust file below a folder, with its text.
fn rust_sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(rust_sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            sources.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    sources
}

#[test]
fn files_that_the_documents_name_exist() {
    for document in ["ARCHITECTURE.md", "README.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        let spans = code_spans(&text);
        let paths: Vec<&String> = spans
            .iter()
            .filter(|s| {
                ["src/", "tests/", "config/", "models/", "index/guidelines"].iter().any(|p| s.starts_with(p))
            })
            .collect();
        assert!(!paths.is_empty(), "{document} names no file");
        for path in paths {
            assert!(root().join(path).exists(), "{document} names {path}, which is not there");
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let local = !link.starts_with("http") && !link.starts_with('#');
            assert!(!local || root().join(link).exists(), "{document} links to {link}, which is not there");
        }
    }
}

#[test]
fn symbols_that_the_architecture_names_exist() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let sources: String = rust_sources(&root().join("src")).into_iter().map(|(_, text)| text).collect();
    let mut checked = 0;
    for span in code_spans(&text) {
        // `Type` or `Type::function`.
        let mut parts = span.split("::");
        let (Some(first), second, None) = (parts.next(), parts.next(), parts.next()) else { continue };
        let is_type = first.starts_with(char::is_uppercase) && first.chars().all(char::is_alphanumeric);
        if !is_type || first.chars().all(char::is_uppercase) || first == "Retry" {
            continue;
        }
        let defined = ["struct", "enum", "trait", "type"]
            .iter()
            .any(|kind| sources.contains(&format!("{kind} {first}")));
        assert!(defined, "ARCHITECTURE.md names `{span}`, and there is no type {first}");
        if let Some(function) = second {
            assert!(
                sources.contains(&format!("fn {function}")),
                "there is no function {function} of `{span}`"
            );
        }
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} symbols were checked");
}

/// The dependency rule of ARCHITECTURE.md, held against what the files import.
#[test]
fn outside_crates_stay_where_they_belong() {
    let allowed: [(&str, &[&str]); 3] = [
        ("axum", &["src/http"]),
        ("tantivy", &["src/ingest", "src/analysis", "src/store", "src/retrieve"]),
        ("candle_core", &["src/model", "src/tune", "src/cli/setup.rs"]),
    ];
    for (path, text) in rust_sources(&root().join("src")) {
        for (name, places) in allowed {
            let uses =
                text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(&format!("{name}::")));
            let fits = places.iter().any(|place| path.starts_with(root().join(place)));
            assert!(!uses || fits, "{} uses {name}", path.display());
        }
    }
}

#[test]
fn no_source_file_outgrows_one_idea() {
    for (path, text) in rust_sources(&root().join("src")) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//")).count();
        assert!(lines <= 500, "{} has {lines} lines of code", path.display());
    }
}

/// The words of a command up to the first operator of the shell or comment; quotes hold words together.
fn words(command: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut quote) = (None::<String>, None);
    for c in command.chars() {
        match (c, quote) {
            (_, Some(open)) if c == open => quote = None,
            (_, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('|' | '>' | '<' | '&' | ';', None) => break,
            ('#', None) if word.is_none() => break,
            (_, None) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The commands of fenced blocks, and those between backticks, which may leave out what they need. With whether they are whole.
fn commands(text: &str) -> Vec<(String, bool)> {
    let mut commands: Vec<(String, bool)> = code_spans(text).into_iter().map(|span| (span, false)).collect();
    for (n, block) in text.split("\n```").enumerate() {
        if n % 2 == 1 {
            commands.extend(block.replace("\\\n", " ").lines().skip(1).map(|line| (line.to_owned(), true)));
        }
    }
    commands
}

#[test]
fn commands_that_the_documents_show_are_understood() {
    use clap::Parser as _;
    use clap::error::ErrorKind;
    let mut documents: Vec<(&str, String)> = Vec::new();
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "models/adapters/README.md",
        "models/datasets/README.md",
        "models/suites/README.md",
    ] {
        documents.push((document, std::fs::read_to_string(root().join(document)).unwrap()));
    }
    let recipes = std::fs::read_to_string(root().join("justfile")).unwrap();
    documents.push(("justfile", format!("\n```sh\n{recipes}\n```")));
    let (mut checked, mut wrong) = (0, Vec::new());
    for (document, text) in &documents {
        for (command, whole) in commands(text) {
            let words = words(&command);
            let program = words.iter().position(|word| word == "--").map_or(0, |at| at + 1);
            let ours = match &words[..program] {
                [] => words.first().is_some_and(|word| word == "shishin" || word.ends_with("/shishin")),
                before => before.windows(2).any(|pair| pair == ["cargo", "run"]),
            };
            // Some show only a part of themselves.
            if !ours || words.len() < 2 || words.iter().any(|word| word.contains(['…', '{'])) {
                continue;
            }
            checked += 1;
            let arguments = words.iter().skip(program.max(1)).cloned();
            let parsed =
                shishin::cli::Cli::try_parse_from(std::iter::once("shishin".to_owned()).chain(arguments));
            if let Err(error) = parsed {
                let fine = match error.kind() {
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
                    ErrorKind::MissingRequiredArgument
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => !whole,
                    _ => false,
                };
                if !fine {
                    wrong.push(format!("{document} shows `{command}`: {error}"));
                }
            }
            for word in &words {
                let named = ["models/", "config/", "benches/", "index/guidelines"]
                    .iter()
                    .any(|p| word.starts_with(p));
                if named && !word.contains(['*', '$']) && !root().join(word).exists() {
                    wrong.push(format!("{document} shows `{command}`, and there is no {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 25, "only {checked} commands were checked");
}
