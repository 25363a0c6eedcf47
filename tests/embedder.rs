//! The embedders against programs of others on the same weights, and against themselves.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test reports by panicking, and says what it skips"
)]

#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "common/gguf_file.rs"]
mod gguf_file;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde::Deserialize;
use shishin::analysis::synonyms::Synonyms;
use shishin::evaluate::passages::{self, Found, Gated};
use shishin::ingest::{BuildOptions, BuildTools, build_with};
use shishin::kernels::{Cpu, Variant};
use shishin::model::catalog::Catalog;
use shishin::model::embed::{Embedder, TextKind, load};
use shishin::model::fetch::{FetchOptions, default_cache_dir, ensure};
use shishin::model::gguf::Value;
use shishin::quote::QuoteChoice;
use shishin::retrieve::{Filter, Gate, GuidelineIndex, Meaning, Ranking, SearchTools};

#[allow(clippy::disallowed_methods, reason = "a test finds the user's cache as the program does")]
fn cache() -> PathBuf {
    let var = |name| std::env::var_os(name);
    var("SHISHIN_MODEL_CACHE")
        .map(Into::into)
        .or_else(|| default_cache_dir(var("XDG_CACHE_HOME").as_deref(), var("HOME").as_deref()))
        .unwrap()
}

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(Variant::best(), 2).unwrap())
}

static E5: LazyLock<Arc<dyn Embedder>> = LazyLock::new(|| {
    let catalog = Catalog::builtin().unwrap();
    let path =
        ensure(catalog.get("multilingual-e5-small").unwrap(), &FetchOptions::new(cache()), &mut ()).unwrap();
    load("multilingual-e5-small", &path, cpu()).unwrap().into()
});

/// The folder of an embedder that only some machines have.
fn folder(name: &str) -> Option<PathBuf> {
    let path = cache().join("models").join(name);
    let there = path.join("model.safetensors").exists();
    if !there {
        println!("skipped: {name} is not in the cache (shishin model pull {name})");
    }
    there.then_some(path)
}

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    kind: String,
    text: String,
    starts: Vec<f32>,
}

#[test]
fn vectors_are_those_of_the_program_that_the_weights_come_from() {
    let golden = include_str!("fixtures/embeddings/multilingual-e5-small.json");
    let golden: Golden = serde_json::from_str(golden).unwrap();
    let mut worst = 0f32;
    for Row { kind, text, starts } in &golden.rows {
        let kind = if kind == "query" { TextKind::Query } else { TextKind::Passage };
        let vector = E5.embed(kind, &[text]).unwrap().remove(0);
        let length: f32 = vector.iter().map(|n| n * n).sum();
        assert!((length - 1.0).abs() < 1e-4, "{text}: {length}");
        for (own, other) in vector.iter().zip(starts) {
            worst = worst.max((own - other).abs());
        }
    }
    println!("largest difference to the C program over {} texts: {worst:.5}", golden.rows.len());
    // Both round activations to 8 bits, in different places; a number of a vector is about 0.05.
    assert!(worst < 6e-3, "{worst}");
}

#[test]
fn a_text_has_one_vector_alone_and_in_any_company() {
    let texts = ["a", "血圧の目標は130/80mmHg未満である。", &"long text ".repeat(100), "", "🙂", "b c d"];
    let together = E5.embed(TextKind::Passage, &texts).unwrap();
    for (text, vector) in texts.iter().zip(&together) {
        assert_eq!(&E5.embed(TextKind::Passage, &[text]).unwrap()[0], vector, "{text:.20}");
    }
    let many: Vec<&str> = texts.iter().copied().cycle().take(90).collect();
    let all = E5.embed(TextKind::Passage, &many).unwrap();
    assert!(all.iter().zip(together.iter().cycle()).all(|(a, b)| a == b));
}

#[test]
fn what_is_too_long_is_cut_and_the_kinds_differ() {
    let long = "hypertension ".repeat(2_000);
    let longer = format!("{long} and something else at its end");
    let vectors = E5.embed(TextKind::Passage, &[&long, &longer]).unwrap();
    assert_eq!(vectors[0], vectors[1]);
    assert!(E5.tells_kinds_apart());
    assert_ne!(
        E5.embed(TextKind::Query, &["blood"]).unwrap(),
        E5.embed(TextKind::Passage, &["blood"]).unwrap()
    );
}

#[test]
fn a_question_is_nearest_to_what_answers_it_in_either_language() {
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let passages = [
        "成人の降圧目標は診察室血圧130/80mmHg未満とする。",
        "Use formoterol as the asthma reliever.",
        "骨密度は腰椎と大腿骨近位部で測る。",
        "The blood pressure target for adults is below 130/80 mmHg.",
    ];
    let vectors = E5.embed(TextKind::Passage, &passages).unwrap();
    for (question, answers) in
        [("What is the blood pressure target?", [3, 0]), ("降圧目標はいくつですか", [0, 3])]
    {
        let asked = E5.embed(TextKind::Query, &[question]).unwrap().remove(0);
        let mut order: Vec<usize> = (0..passages.len()).collect();
        order.sort_by(|a, b| cosine(&asked, &vectors[*b]).total_cmp(&cosine(&asked, &vectors[*a])));
        assert!(order[..2].iter().all(|n| answers.contains(n)), "{question}: {order:?}");
    }
}

/// Mean-pooled, normalised vectors by candle's own BERT, in 32-bit floats.
fn by_candle(folder: &Path, text: &str) -> Vec<f32> {
    let config: Config =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let model =
        BertModel::load(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu), &config).unwrap();
    let mut tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    tokenizer.with_padding(None);
    let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    let ids = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let states = model.forward(&ids, &ids.zeros_like().unwrap(), None).unwrap();
    let mean: Vec<f32> = states.mean(1).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
    let length = mean.iter().map(|n| n * n).sum::<f32>().sqrt();
    mean.into_iter().map(|n| n / length).collect()
}

/// Writes an encoder's folder as llama.cpp's converter writes it: names, vocabulary and metadata of GGUF.
fn as_gguf(folder: &Path, to: &Path) {
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text("config.json")).unwrap();
    let tokenizer: serde_json::Value = serde_json::from_str(&text("tokenizer.json")).unwrap();
    let mut vocabulary: Vec<(String, u64)> = tokenizer["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (token.clone(), id.as_u64().unwrap()))
        .collect();
    vocabulary.sort_by_key(|(_, id)| *id);
    let phantom = |token: &str| match token.strip_prefix("##") {
        Some(goes_on) => goes_on.to_owned(),
        None if token.starts_with('[') && token.ends_with(']') && token.len() > 2 => token.to_owned(),
        None => format!("\u{2581}{token}"),
    };
    let tokens = vocabulary.iter().map(|(token, _)| phantom(token)).collect();
    let id = |token: &str| Value::Int(vocabulary.iter().find(|(t, _)| t == token).unwrap().1 as i64);
    let number = |key: &str| Value::Int(config[key].as_i64().unwrap());
    let metadata = [
        ("general.architecture", Value::Str("bert".into())),
        ("general.name", Value::Str("MiniLM".into())),
        ("bert.block_count", number("num_hidden_layers")),
        ("bert.embedding_length", number("hidden_size")),
        ("bert.feed_forward_length", number("intermediate_size")),
        ("bert.attention.head_count", number("num_attention_heads")),
        ("bert.context_length", number("max_position_embeddings")),
        ("bert.attention.layer_norm_epsilon", Value::Float(config["layer_norm_eps"].as_f64().unwrap())),
        ("bert.pooling_type", Value::Int(1)),
        ("tokenizer.ggml.model", Value::Str("bert".into())),
        ("tokenizer.ggml.tokens", Value::Strs(tokens)),
        ("tokenizer.ggml.bos_token_id", id("[CLS]")),
        ("tokenizer.ggml.eos_token_id", id("[SEP]")),
        ("tokenizer.ggml.unknown_token_id", id("[UNK]")),
    ];
    let metadata: Vec<(String, Value)> = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let renamed = |name: &str| {
        let (stem, half) = name.rsplit_once('.')?;
        let fixed = [
            ("embeddings.word_embeddings", "token_embd"),
            ("embeddings.position_embeddings", "position_embd"),
            ("embeddings.token_type_embeddings", "token_types"),
            ("embeddings.LayerNorm", "token_embd_norm"),
        ];
        if let Some((_, own)) = fixed.iter().find(|(hf, _)| *hf == stem) {
            return Some(format!("{own}.{half}"));
        }
        let (layer, part) = stem.strip_prefix("encoder.layer.")?.split_once('.')?;
        let parts = [
            ("attention.self.query", "attn_q"),
            ("attention.self.key", "attn_k"),
            ("attention.self.value", "attn_v"),
            ("attention.output.dense", "attn_output"),
            ("attention.output.LayerNorm", "attn_output_norm"),
            ("intermediate.dense", "ffn_up"),
            ("output.dense", "ffn_down"),
            ("output.LayerNorm", "layer_output_norm"),
        ];
        let (_, own) = parts.iter().find(|(hf, _)| *hf == part)?;
        Some(format!("blk.{layer}.{own}.{half}"))
    };
    let tensors: Vec<(String, Tensor)> =
        weights.into_iter().filter_map(|(name, tensor)| Some((renamed(&name)?, tensor))).collect();
    gguf_file::write(to, &metadata, &tensors);
}

#[test]
fn a_gguf_file_gives_the_vectors_of_the_folder() {
    let Some(folder) = folder("all-minilm-l6-v2") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("minilm.gguf");
    as_gguf(&folder, &path);
    let (own, other) = (load("gguf", &path, cpu()).unwrap(), load("folder", &folder, cpu()).unwrap());
    let texts = [
        "Blood Pressure targets, 130/80 mmHg!",
        "naïve café Übelkeit",
        "colchicine's unaffordability",
        "血圧 is read too",
        "",
    ];
    for text in texts {
        assert_eq!(
            own.embed(TextKind::Passage, &[text]).unwrap(),
            other.embed(TextKind::Passage, &[text]).unwrap(),
            "{text}"
        );
    }
    assert_ne!(own.fingerprint(), other.fingerprint());
    std::fs::write(&path, b"GGUF\x03\0\0\0").unwrap();
    assert!(load("gguf", &path, cpu()).is_err());
}

#[test]
fn minilm_is_that_of_candle() {
    let Some(folder) = folder("all-minilm-l6-v2") else { return };
    let own = load("all-minilm-l6-v2", &folder, cpu()).unwrap();
    for text in
        ["What is the blood pressure target?", "Colchicine treats a gout flare, 0.5 mg twice a day.", "x"]
    {
        let vector = own.embed(TextKind::Passage, &[text]).unwrap().remove(0);
        let cosine: f32 = vector.iter().zip(by_candle(&folder, text)).map(|(a, b)| a * b).sum();
        println!("{text:.30}: cosine with candle {cosine:.6}");
        assert!(cosine > 0.999, "{text}: {cosine}");
    }
}

/// An index of the guidelines of a folder of this repository, with vectors.
fn index(guidelines: &str) -> (tempfile::TempDir, GuidelineIndex) {
    let dir = tempfile::tempdir().unwrap();
    let options = BuildOptions {
        source: Path::new(env!("CARGO_MANIFEST_DIR")).join(guidelines),
        index: dir.path().to_owned(),
        chunk_tokens: 240,
        overlap_tokens: 40,
        strict: true,
        keep_generations: 1,
    };
    let synonyms = Arc::new(Synonyms::built_in().unwrap());
    let tools = BuildTools { embedder: Some(&**E5), ..BuildTools::default() };
    build_with(tools, &options, jiff::civil::date(2026, 11, 1), &mut |_| {}).unwrap();
    let meaning = Meaning { embedder: Arc::clone(&E5), path: "none".into(), cpu: cpu() };
    let tools = SearchTools { meaning: Some(meaning), synonyms, ..SearchTools::default() };
    let index = GuidelineIndex::open_with(dir.path(), tools).unwrap();
    (dir, index)
}

/// Short questions and the long messages of patients and staff, in both languages: a gate that fits the ones alone
/// stops nearly all of the others.
#[test]
fn the_gate_keeps_questions_and_messages_that_a_guideline_answers() {
    let bars = [
        (
            "index/guidelines",
            &["answerable.jsonl", "english-to-japanese.jsonl", "unanswerable.jsonl"][..],
            [(0.9, 0.82), (0.85, 0.7)],
            0.7,
        ),
        ("models/datasets/grounded/guidelines", &["messages.en.jsonl"], [(0.8, 0.7), (0.65, 0.7)], 0.8),
        ("models/datasets/grounded/guidelines", &["messages.ja.jsonl"], [(0.9, 0.4), (0.85, 0.4)], 0.9),
    ];
    let mut built: Option<(&str, (tempfile::TempDir, GuidelineIndex))> = None;
    for (guidelines, files, bars, shown) in bars {
        let (_, (_, index)) = match built.take() {
            Some(same) if same.0 == guidelines => built.insert(same),
            _ => built.insert((guidelines, index(guidelines))),
        };
        let snapshot = index.snapshot().unwrap();
        for (ranking, (recall, stopped)) in [Ranking::Fused, Ranking::Bm25].into_iter().zip(bars) {
            let mut judged = Vec::new();
            for file in files {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/questions").join(file);
                let questions = passages::read(&path).unwrap();
                let (all, today) = (Filter::default(), jiff::civil::date(2026, 11, 1));
                let choice =
                    QuoteChoice { nearness: 240.0, bearing: 4.0, bar: 0.0, ..QuoteChoice::default() };
                judged.extend(
                    passages::ask(&snapshot, &questions, &all, Some(ranking), (today, 2), choice).unwrap(),
                );
            }
            let gated = Gated::of(&judged, Gate::default());
            let found = Found::of(&judged).unwrap();
            println!(
                "{files:?}, {ranking:?}: answers {:.2}, stops {:.2}; {:.2} found by prompts of two",
                gated.recall, gated.stopped, found.shown.mean
            );
            assert!(gated.recall >= recall && gated.stopped >= stopped, "{files:?}, {ranking:?}: {gated:?}");
            assert!(found.shown.mean >= shown || ranking == Ranking::Bm25, "{files:?}: {found:?}");
        }
    }
}
