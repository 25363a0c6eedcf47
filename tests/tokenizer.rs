//! Our tokenizers against llama.cpp's: the ids of 153 strings for each of three vocabularies, English and
//! Japanese, as content and as template text; and `tokenizer.json` against the `tokenizers` crate.
//! `tests/fixtures/README.md` says how the golden ids were made.
//!
//! Where we differ from llama.cpp we mean to; [`deliberate`] lists those strings and says why.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test reports by panicking"
)]

mod common;

use std::collections::HashMap;
use std::path::Path;

use shishin::model::config::Architecture;
use shishin::model::gguf::Gguf;
use shishin::model::tokenizer::Tokenizer;
use unicode_normalization::UnicodeNormalization;

struct Case {
    text: String,
    /// With control tokens not parsed.
    plain: Vec<u32>,
    /// With control tokens parsed.
    special: Vec<u32>,
}

fn cases(model: &str) -> Vec<Case> {
    let json = common::fixture(&format!("tokenizer/{model}.json"));
    json["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| Case {
            text: case["text"].as_str().unwrap().to_owned(),
            plain: common::ids(&case["ids_plain"]),
            special: common::ids(&case["ids_special"]),
        })
        .collect()
}

fn load(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(Gguf::open(path).unwrap().header()).unwrap()
}

/// Why our ids are not llama.cpp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// Qwen's own `tokenizer.json` normalises to NFC, so the model was trained on NFC; llama.cpp does
    /// not normalise. Ours are the ids of the normalised text.
    Normalised,
    /// llama.cpp matches tokens of the type "user-defined" in any text. Some of them steer the model
    /// (tool calls, places of images), so for us they are control tokens and content never becomes one.
    MarkupInContent,
    /// The file gives `</s>` as ordinary text, as the model's own tokenizer does; llama.cpp takes it for
    /// the end of the text by its spelling. For us the file decides.
    SpellingOfEnd,
}

/// The difference that we mean to have for a string as content and as template text.
fn deliberate(model: &str, text: &str) -> (Option<Difference>, Option<Difference>) {
    match (model, text) {
        (common::QWEN, text) if text.nfc().ne(text.chars()) => {
            (Some(Difference::Normalised), Some(Difference::Normalised))
        }
        (common::QWEN, "<tool_call>" | "<tool_call>\n{\"name\": \"f\"}\n</tool_call>")
        | (
            common::GEMMA,
            "<unused5> <unused99> [multimodal] <start_of_image> <end_of_image> <image_soft_token>",
        ) => (Some(Difference::MarkupInContent), None),
        (common::QWEN, "<s>text</s>") => (None, Some(Difference::SpellingOfEnd)),
        _ => (None, None),
    }
}

#[test]
fn ids_are_those_of_llama_cpp() {
    for (name, path) in common::models() {
        let tokenizer = load(&path);
        let cases = cases(name);
        let golden: HashMap<&str, &Case> = cases.iter().map(|case| (case.text.as_str(), case)).collect();
        let mut equal = 0;
        for case in &cases {
            let (content, template) = deliberate(name, &case.text);
            let nfc: String = case.text.nfc().collect();
            for (ours, theirs, difference) in [
                (tokenizer.encode_content(&case.text).unwrap(), &case.plain, content),
                (tokenizer.encode_template(&case.text).unwrap(), &case.special, template),
            ] {
                let what = format!("{name}: {:?}, {difference:?}", case.text);
                let Some(difference) = difference else {
                    assert_eq!(&ours, theirs, "{what}");
                    equal += 1;
                    continue;
                };
                assert_ne!(&ours, theirs, "{what}: no longer a difference");
                match difference {
                    Difference::Normalised => {
                        assert_eq!(ours, tokenizer.encode_content(&nfc).unwrap(), "{what}");
                        if let Some(twin) = golden.get(nfc.as_str()) {
                            assert_eq!(ours, twin.plain, "{what}");
                        }
                    }
                    Difference::MarkupInContent => {
                        assert!(theirs.iter().any(|&id| tokenizer.is_control(id)), "{what}");
                        assert_eq!(tokenizer.decode(&ours), case.text, "{what}");
                    }
                    Difference::SpellingOfEnd => assert_eq!(ours, case.plain, "{what}"),
                }
            }
        }
        println!("{name}: {equal} of {} encodings are equal to llama.cpp's", 2 * cases.len());
        // 40 strings in both kinds of text, and far more than the deliberate differences leave out.
        assert!(equal >= 290, "{name}: only {equal} encodings were compared");
    }
}

#[test]
fn content_never_holds_a_control_token_and_reads_back() {
    for (name, path) in common::models() {
        let tokenizer = load(&path);
        for Case { text, .. } in cases(name) {
            let ids = tokenizer.encode_content(&text).unwrap();
            assert!(!ids.iter().any(|&id| tokenizer.is_control(id)), "{name}: {text:?}");
            let expected = match name {
                common::QWEN => text.nfc().collect(),
                // SentencePiece spells a space as U+2581, so the two cannot be told apart again.
                common::GEMMA => text.replace('▁', " "),
                _ => text,
            };
            assert_eq!(tokenizer.decode(&ids), expected, "{name}");
        }
    }
}

#[test]
fn known_control_tokens_are_found_in_template_text() {
    for (name, path) in common::models() {
        let tokenizer = load(&path);
        let (text, start, end) = match name {
            common::GEMMA => ("<start_of_turn>user\nhi<end_of_turn>\n", "<start_of_turn>", "<end_of_turn>"),
            _ => ("<|im_start|>user\nhi<|im_end|>\n", "<|im_start|>", "<|im_end|>"),
        };
        let ids = tokenizer.encode_template(text).unwrap();
        let control: Vec<u32> = ids.iter().copied().filter(|&id| tokenizer.is_control(id)).collect();
        let spelled: Vec<String> = control.iter().map(|&id| tokenizer.display(id)).collect();
        assert_eq!(spelled, [start, end], "{name}");
        assert!(tokenizer.is_end(control[1]) && !tokenizer.is_end(control[0]), "{name}");
        assert_eq!(tokenizer.decode(&ids), "user\nhi\n", "{name}");
    }
}

/// A tokenizer.json that the `tokenizers` crate reads by itself gives the same ids through ours.
#[test]
fn a_tokenizer_json_gives_the_ids_of_its_own_library() {
    let Some(folder) = common::shared("data/adapters/smollm-135m-instruct-medical-flashcards-5ep") else {
        return;
    };
    let ours = Tokenizer::from_hf(&folder).unwrap();
    let theirs = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let mut compared = 0;
    for Case { text, .. } in cases(common::SMOLLM) {
        // The library takes control tokens from any text: the very thing that ours is there to prevent.
        let expected = theirs.encode(text.as_str(), false).unwrap().get_ids().to_vec();
        assert_eq!(ours.encode_template(&text).unwrap(), expected, "{text:?}");
        if !expected.iter().any(|&id| ours.is_control(id)) {
            assert_eq!(ours.encode_content(&text).unwrap(), expected, "{text:?}");
            compared += 1;
        }
    }
    assert!(compared >= 100, "only {compared} strings were compared");
}

#[test]
fn both_formats_of_one_vocabulary_agree() {
    let tiny = common::tiny::Tiny::new(Architecture::Llama);
    let (folder, file) = (tiny.load().tokenizer, tiny.load_gguf().tokenizer);
    assert_eq!(folder.vocabulary_size(), file.vocabulary_size());
    for text in ["the thing", "血圧は 130/80 mmHg", "<|im_start|>the<|im_end|>", " \n\t"] {
        assert_eq!(folder.encode_content(text).unwrap(), file.encode_content(text).unwrap(), "{text:?}");
        assert_eq!(folder.encode_template(text).unwrap(), file.encode_template(text).unwrap(), "{text:?}");
        assert_eq!(folder.decode(&folder.encode_content(text).unwrap()), text);
    }
    assert_eq!(folder.encode_content("the").unwrap().len(), 1);
}
