//! `shishin bench --only quality`: how far the served form of a model moves its next-token distribution from
//! that of the same weights in 32-bit floats.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use crate::evaluate::distributions::{divergence, log_softmax, most_likely};
use crate::kernels::KvCache;
use crate::model::BaseModel;
use crate::model::decoder::Logits;
use crate::model::fast::{FastDecoder, Piece, Workspace};

/// Tokens that are read together; the second half of them is judged, as llama.cpp's `llama-perplexity` does.
const WINDOW: usize = 512;

/// Figures over all judged positions of a text.
#[derive(Debug, Serialize)]
pub(super) struct Quality {
    text: String,
    tokens: usize,
    /// Mean of KL(reference ‖ served), in nats.
    mean_kl: f64,
    perplexity: f64,
    reference_perplexity: f64,
    /// Share of positions where both would choose the same token.
    same_choice: f64,
}

impl std::fmt::Display for Quality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { text, tokens, mean_kl, perplexity, reference_perplexity, same_choice } = self;
        write!(
            f,
            "{text}: {tokens} tokens, mean KL {mean_kl:.5}, perplexity {perplexity:.4} against {reference_perplexity:.4} ({:+.2} %), same choice {:.2} %",
            100.0 * (perplexity / reference_perplexity - 1.0),
            100.0 * same_choice
        )
    }
}

/// Compares on the first windows of each text: a file, or the Markdown files of a folder.
pub(super) fn compare(
    served: &BaseModel<FastDecoder>,
    reference: &BaseModel,
    texts: &[PathBuf],
    windows: usize,
) -> anyhow::Result<Vec<Quality>> {
    let mut all = Sums::default();
    let mut figures = Vec::new();
    for path in texts {
        let tokens = served.tokenizer.encode_content(&read(path)?)?;
        anyhow::ensure!(
            tokens.len() >= WINDOW,
            "{} has {} tokens; at least {WINDOW} are needed",
            path.display(),
            tokens.len()
        );
        let mut sums = Sums::default();
        for window in tokens.chunks_exact(WINDOW).take(windows) {
            let mut window = window.to_vec();
            if let Some(bos) = served.tokenizer.bos().filter(|_| served.tokenizer.add_bos()) {
                window[0] = bos;
            }
            sums.add(served, reference, &window)?;
        }
        figures.push(sums.figures(path.display().to_string()));
        all.join(&sums);
    }
    if figures.len() > 1 {
        figures.push(all.figures("together".into()));
    }
    Ok(figures)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("cannot read the text {}", path.display());
    if !path.is_dir() {
        return std::fs::read_to_string(path).with_context(failed);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(failed)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "md"))
        .collect();
    files.sort();
    let texts: Result<Vec<_>, _> = files.iter().map(std::fs::read_to_string).collect();
    Ok(texts.with_context(failed)?.join("\n"))
}

#[derive(Default)]
struct Sums {
    count: usize,
    kl: f64,
    served: f64,
    reference: f64,
    same: usize,
}

impl Sums {
    fn join(&mut self, other: &Self) {
        self.count += other.count;
        self.kl += other.kl;
        self.served += other.served;
        self.reference += other.reference;
        self.same += other.same;
    }

    fn figures(&self, text: String) -> Quality {
        let n = self.count as f64;
        Quality {
            text,
            tokens: self.count,
            mean_kl: self.kl / n,
            perplexity: (self.served / n).exp(),
            reference_perplexity: (self.reference / n).exp(),
            same_choice: self.same as f64 / n,
        }
    }

    fn add(
        &mut self,
        served: &BaseModel<FastDecoder>,
        reference: &BaseModel,
        window: &[u32],
    ) -> anyhow::Result<()> {
        let pages: Vec<u32> = (0..WINDOW.div_ceil(KvCache::PAGE) as u32).collect();
        let mut cache = KvCache::new(served.decoder.cache_shape(), pages.len());
        let mut workspace = Workspace::default();
        let piece = Piece {
            tokens: window,
            position: 0,
            pages: &pages,
            adapter: None,
            before: 0,
            logits: WINDOW / 2 + 1,
        };
        let ours = served.decoder.forward(&[piece], &mut cache, &mut workspace, &|| false)?;
        let theirs = reference.decoder.forward(
            window,
            &mut reference.decoder.new_cache(),
            None,
            Logits::All,
            &|| false,
        )?;
        let vocab = served.config.vocab;
        for (n, ours) in ours.chunks_exact(vocab).enumerate().take(WINDOW / 2) {
            let at = WINDOW / 2 - 1 + n;
            let theirs = theirs.get(at)?.to_vec1::<f32>()?;
            let next = window[at + 1] as usize;
            let (q, p) = (log_softmax(ours), log_softmax(&theirs));
            self.kl += divergence(&p, &q);
            self.served -= q[next];
            self.reference -= p[next];
            self.same += usize::from(most_likely(&q) == most_likely(&p));
            self.count += 1;
        }
        Ok(())
    }
}
