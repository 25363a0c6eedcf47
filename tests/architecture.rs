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
