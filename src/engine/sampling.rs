//! From logits to the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::kernels::Cpu;
use crate::quote::QuoteGuide;

/// How the next token is drawn. The same settings, seed and logits draw the same tokens on every
/// machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token and ignores the rest of the settings but the two against
    /// repetition.
    pub temperature: f32,
    /// Keeps the most likely tokens whose probabilities add up to this.
    pub top_p: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Divides positive logits (and multiplies negative ones) of tokens already in the answer; 1 is off.
    /// The prompt is left out, because quoting a passage is what the answer is for.
    pub repetition_penalty: f32,
    /// So many tokens in a row are not said twice in an answer, which ends loops and touches nothing else; 0 is off. The prompt is left
    /// out here too, and so are quotes before an answer. The name is that of Hugging Face's generation settings.
    pub no_repeat_ngram_size: usize,
    /// Seed of the random draws.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token, whatever was said before.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        no_repeat_ngram_size: 0,
        seed: 0,
    };
}

/// The largest [`Sampling::no_repeat_ngram_size`] that is taken: what is longer than that is hardly a loop.
pub const MAX_NO_REPEAT: usize = 100;

/// Draws tokens for one answer.
#[derive(Debug)]
pub(super) struct Sampler {
    settings: Sampling,
    rng: ChaCha8Rng,
    /// Each token of the answer once.
    drawn: Vec<u32>,
    /// All of them in order, from the newest quote's end on.
    said: Vec<u32>,
    /// Keeps quotes before the answer to what the passages say, and to what of it is preferred.
    guide: QuoteGuide,
}

/// Tokens this many times less likely than the best, in powers of e, are never drawn: together they
/// hold less probability than a 32-bit float can tell from nothing.
const NEGLIGIBLE: f32 = 30.0;

impl Sampler {
    pub(super) fn new(settings: Sampling, guide: QuoteGuide) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(settings.seed);
        Self { settings, rng, drawn: Vec::new(), said: Vec::new(), guide }
    }

    /// The next token, or `None` when a logit is not a number or infinitely high: the weights are broken,
    /// and so would be whatever was drawn. `bytes` is what each token says.
    pub(super) fn next<'t>(
        &mut self,
        logits: &mut [f32],
        cpu: &Cpu,
        bytes: impl Fn(u32) -> &'t [u8],
    ) -> Option<u32> {
        let token = self.choose(logits, cpu, bytes)?;
        if self.settings.no_repeat_ngram_size > 0 {
            self.said.push(token);
        }
        Some(token)
    }

    /// Hears what the newest token says. What an answer quotes before it begins (lines `> …`, see [`crate::quote`]) it may say once more, and
    /// so may its other quotes.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        let (watched, quoted) = (self.guide.watches(), self.guide.quotes());
        self.guide.push(bytes);
        if quoted || self.guide.quotes() {
            self.said.clear();
        }
        if watched && !self.guide.watches() {
            // The answer begins, with the newest token.
            let before = self.said.len().saturating_sub(1);
            self.said.drain(..before);
        }
    }

    fn choose<'t>(&mut self, logits: &mut [f32], cpu: &Cpu, bytes: impl Fn(u32) -> &'t [u8]) -> Option<u32> {
        // No quote comes twice, but two may begin alike.
        if !self.guide.quotes() {
            self.forbid_repeats(logits);
        }
        let greedy = self.settings.temperature == 0.0 && self.settings.repetition_penalty == 1.0;
        if greedy && let Some(token) = cpu.argmax(logits).map(|token| token as u32) {
            if !self.guide.watches() || !self.guide.prefers() && self.guide.allows(bytes(token)) {
                return Some(token);
            }
            self.keep_to_quotes(logits, bytes);
            return most_likely(logits);
        }
        // Also where the quick way found something that is not finite.
        if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return None;
        }
        // Preferences are a matter of the probabilities that are drawn from.
        self.penalise(logits);
        if self.guide.watches() {
            self.keep_to_quotes(logits, bytes);
        }
        let token = if self.settings.temperature == 0.0 { most_likely(logits) } else { self.draw(logits) }?;
        if !self.drawn.contains(&token) {
            self.drawn.push(token);
        }
        Some(token)
    }

    /// Leaves no chance to what would make a quote false, and prefers what the guide does. A vocabulary that cannot say what the passages say
    /// is left alone.
    fn keep_to_quotes<'t>(&self, logits: &mut [f32], bytes: impl Fn(u32) -> &'t [u8]) {
        let preferences: Vec<Option<f32>> =
            (0..logits.len() as u32).map(|id| self.guide.preference(bytes(id))).collect();
        let mut possible = logits.iter().zip(&preferences);
        if !possible.any(|(logit, preference)| *logit > f32::NEG_INFINITY && preference.is_some()) {
            return;
        }
        // They are divided by the temperature when they are drawn from.
        let scale = if self.settings.temperature > 0.0 { self.settings.temperature } else { 1.0 };
        for (logit, preference) in logits.iter_mut().zip(preferences) {
            *logit = preference.map_or(f32::NEG_INFINITY, |preference| *logit + preference * scale);
        }
    }

    /// Leaves no chance to whatever would say so many tokens a second time.
    fn forbid_repeats(&self, logits: &mut [f32]) {
        let Some(known) = self.settings.no_repeat_ngram_size.checked_sub(1) else { return };
        let Some(start) = self.said.len().checked_sub(known) else { return };
        let newest = &self.said[start..];
        for before in self.said.windows(known + 1).filter(|run| &run[..known] == newest) {
            if let Some(logit) = logits.get_mut(before[known] as usize) {
                // What is broken must still be seen to be.
                *logit = if logit.is_finite() { f32::NEG_INFINITY } else { *logit };
            }
        }
    }

    fn penalise(&self, logits: &mut [f32]) {
        let penalty = self.settings.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        for &token in &self.drawn {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let best = logits[most_likely(logits)? as usize];
        let temperature = self.settings.temperature;
        let mut kept: Vec<(f32, u32)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit >= best - NEGLIGIBLE * temperature)
            .map(|(id, logit)| (((logit - best) / temperature).exp(), id as u32))
            .collect();
        // Ties break by id, so that the order does not depend on the sort.
        kept.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if self.settings.top_k > 0 {
            kept.truncate(self.settings.top_k);
        }
        let total: f32 = kept.iter().map(|(weight, _)| weight).sum();
        let mut mass = 0.0;
        let within = kept.iter().position(|(weight, _)| {
            mass += weight;
            mass >= self.settings.top_p * total
        });
        kept.truncate(within.map_or(kept.len(), |last| last + 1));

        let total: f32 = kept.iter().map(|(weight, _)| weight).sum();
        let mut point = self.rng.random::<f32>() * total;
        for (weight, id) in &kept {
            point -= weight;
            if point <= 0.0 {
                return Some(*id);
            }
        }
        kept.last().map(|(_, id)| *id)
    }
}

/// The id of the highest logit, the lowest such id on a tie.
fn most_likely(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > f32::NEG_INFINITY && best.is_none_or(|(_, b)| logit > b) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id as u32)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::kernels::Variant;

    static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::new(Variant::best(), 1).unwrap());

    /// What the tokens of the tests say.
    const SAYS: [&str; 5] = ["> wait an", " hour\n", "wait an", " hour", "."];

    fn next(sampler: &mut Sampler, logits: &mut [f32]) -> Option<u32> {
        sampler.next(logits, &CPU, |id| SAYS.get(id as usize).map_or(b"?", |text| text.as_bytes()))
    }

    fn sampling(temperature: f32) -> Sampling {
        Sampling {
            temperature,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            seed: 7,
        }
    }

    #[test]
    fn zero_temperature_takes_the_best_and_the_lower_id_on_a_tie() {
        let mut sampler = Sampler::new(sampling(0.0), QuoteGuide::default());
        assert_eq!(next(&mut sampler, &mut [0.5, 2.0, 2.0, f32::NEG_INFINITY]), Some(1));
        assert_eq!(next(&mut sampler, &mut [f32::NEG_INFINITY; 2]), None);
        assert_eq!(next(&mut sampler, &mut [1.0, f32::NAN]), None);
        assert_eq!(next(&mut sampler, &mut [1.0, f32::INFINITY]), None);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut sampler = Sampler::new(sampling(1.0), QuoteGuide::default());
        let logits = [0.0, 3f32.ln(), f32::NEG_INFINITY];
        let ones = (0..4000).filter(|_| next(&mut sampler, &mut logits.clone()) == Some(1)).count();
        // Three quarters, within five standard deviations.
        assert!((2863..=3137).contains(&ones), "{ones}");
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [4.0, 3.0, 2.0, 1.0];
        let only = |top_k, top_p| {
            let mut sampler = Sampler::new(Sampling { top_k, top_p, ..sampling(5.0) }, QuoteGuide::default());
            let mut seen: Vec<u32> =
                (0..500).filter_map(|_| next(&mut sampler, &mut logits.clone())).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(only(2, 1.0), [0, 1]);
        assert_eq!(only(0, 0.01), [0]);
        assert_eq!(only(0, 1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let run = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling(1.0) }, QuoteGuide::default());
            (0..50).map(|_| next(&mut sampler, &mut [1.0; 100].clone())).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn the_penalty_counts_only_what_was_drawn() {
        let mut sampler =
            Sampler::new(Sampling { repetition_penalty: 2.0, ..sampling(0.0) }, QuoteGuide::default());
        assert_eq!(next(&mut sampler, &mut [3.0, 2.0]), Some(0));
        assert_eq!(next(&mut sampler, &mut [3.0, 2.0]), Some(1));
        assert_eq!(next(&mut sampler, &mut [3.0, 2.0]), Some(0));
    }

    #[test]
    fn no_run_of_so_many_tokens_is_said_twice() {
        let run = |size, temperature, tokens: usize| -> Vec<u32> {
            let mut sampler = Sampler::new(
                Sampling { no_repeat_ngram_size: size, ..sampling(temperature) },
                QuoteGuide::default(),
            );
            (0..tokens).map(|_| next(&mut sampler, &mut [5.0, 4.0, 3.0, 2.0, 1.0]).unwrap()).collect()
        };
        assert_eq!(run(0, 0.0, 5), [0; 5]);
        assert_eq!(run(1, 0.0, 5), [0, 1, 2, 3, 4]);
        // 00, 01, 10 stand there before, so 2 follows.
        assert_eq!(run(2, 0.0, 5), [0, 0, 1, 0, 2]);
        for temperature in [0.0, 1.0] {
            // So few that no choice of them leaves nothing to say.
            let said = run(3, temperature, 15);
            let all: Vec<&[u32]> = said.windows(3).collect();
            let once: std::collections::BTreeSet<&[u32]> = all.iter().copied().collect();
            assert_eq!(all.len(), once.len(), "{said:?}");
        }
        let mut sampler =
            Sampler::new(Sampling { no_repeat_ngram_size: 1, ..sampling(0.0) }, QuoteGuide::default());
        assert_eq!(next(&mut sampler, &mut [1.0, 0.0]), Some(0));
        assert_eq!(next(&mut sampler, &mut [f32::NAN, 0.0]), None, "broken weights are not hidden");
    }

    #[test]
    fn a_quote_is_kept_to_the_passages() {
        let guided =
            |settings| Sampler::new(settings, QuoteGuide::new(["Do wait.", "Wait.", "wait an hour"]));
        let run = |settings, tokens: usize| -> Vec<u32> {
            let mut sampler = guided(settings);
            let mut say = |_| {
                // The later ones are far less likely, where they are not the only ones that are true.
                let token = next(&mut sampler, &mut [9.0, 1.0, 7.0, -9.0, 8.0]).unwrap();
                sampler.hear(SAYS[token as usize].as_bytes());
                token
            };
            (0..tokens).map(&mut say).collect()
        };
        assert_eq!(run(sampling(0.0), 2), [0, 1]);
        for seed in 0..20 {
            let said = run(Sampling { seed, repetition_penalty: 1.1, ..sampling(0.1) }, 2);
            assert!(said[0] != 0 || said[1] == 1, "{said:?}");
        }
        // Of two that are true the preferred one.
        for (wait, said) in [(1.5, 0), (2.5, 2)] {
            let units = [("Do wait.", 0.0), ("wait an hour", wait)];
            let mut sampler = Sampler::new(
                sampling(0.0),
                QuoteGuide::preferring(units.map(|(unit, preference)| (unit.to_owned(), preference))),
            );
            sampler.hear(b"> ");
            let tokens = ["Do wait.", "> ", "wait an", " hour"];
            let says = |id: u32| tokens[id as usize].as_bytes();
            assert_eq!(sampler.next(&mut [2.0, 9.0, 0.0, 1.0], &CPU, says), Some(said));
            // Drawn at any temperature, the preferred one comes so much more often.
            for (temperature, penalty) in [(0.5, 1.0), (1.0, 1.0), (1.0, 1.2)] {
                let settings = Sampling { repetition_penalty: penalty, ..sampling(temperature) };
                let mut sampler = Sampler::new(settings, sampler.guide.clone());
                let mut draw = || sampler.next(&mut [0.0, 9.0, 0.0, 1.0], &CPU, says);
                let waits = (0..2000).filter(|_| draw() == Some(2)).count() as f32 / 2000.0;
                let expected = 1.0 / (1.0 + f32::exp(-wait));
                assert!((waits - expected).abs() < 0.06, "{waits} {expected}");
            }
        }
        // With nothing left to quote no quote may begin. What was quoted may be said once more, but not twice.
        let once = Sampling { no_repeat_ngram_size: 1, ..sampling(0.0) };
        assert_eq!(run(once, 4), [0, 1, 4, 0]);
        let mut sampler = guided(sampling(0.0));
        sampler.hear(b"> wait");
        assert_eq!(next(&mut sampler, &mut [1.0, f32::NAN, 0.0]), None, "broken weights are not hidden");
        assert_eq!(next(&mut sampler, &mut [0.0, 1.0, 2.0]), Some(2), "a vocabulary without a true token");
    }
}
