//! Finds texts that say the same, or nearly: MinHash (Broder 1997) over runs of characters, candidates by bands, each candidate
//! compared exactly.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::analysis::normalise::fold_text;

/// Characters of a run: short enough for Japanese, long enough for English.
const RUN: usize = 5;
/// Smallest hashes that are kept of a text, in bands.
const BANDS: usize = 16;
const ROWS: usize = 4;
/// Texts that share this much of their runs (Jaccard) say nearly the same.
pub const NEAR: f64 = 0.8;

/// Two texts that say the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The earlier one's number.
    pub first: usize,
    /// The later one's number.
    pub second: usize,
    /// The share of their runs that both have; 1 when they are equal.
    pub share: f64,
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The runs of a text, widths, case and white space apart.
pub(super) fn runs(text: &str) -> HashSet<u64> {
    let folded: Vec<char> = fold_text(text).chars().filter(|c| !c.is_whitespace()).collect();
    if folded.len() < RUN {
        return HashSet::from([hash(&folded)]);
    }
    folded.windows(RUN).map(hash).collect()
}

fn signature(runs: &HashSet<u64>) -> Vec<u64> {
    (0..(BANDS * ROWS) as u64)
        .map(|n| {
            // One family of hashes of the runs' hashes: odd multipliers permute 64-bit numbers.
            let odd = hash(("minhash", n)) | 1;
            runs.iter()
                .map(|run| run.wrapping_mul(odd).rotate_left(29).wrapping_mul(odd))
                .min()
                .unwrap_or(u64::MAX)
        })
        .collect()
}

/// The share of the runs of two texts that both have (Jaccard).
pub(super) fn share(one: &HashSet<u64>, other: &HashSet<u64>) -> f64 {
    let both = one.intersection(other).count() as f64;
    let all = (one.len() + other.len()) as f64;
    both / all / (1.0 - both / all)
}

/// For each text that says the same as an earlier one, the pair with the one that it is nearest to.
#[must_use]
pub fn pairs(texts: &[&str]) -> Vec<Pair> {
    pairs_that(texts, |_, _| true)
}

/// The same among those pairs, by their numbers, that fit.
pub(super) fn pairs_that(texts: &[&str], fits: impl Fn(usize, usize) -> bool) -> Vec<Pair> {
    let nearest = |near: Vec<Pair>| {
        near.into_iter().max_by(|a, b| a.share.total_cmp(&b.share).then(b.first.cmp(&a.first)))
    };
    near(texts, fits).into_iter().filter_map(nearest).collect()
}

/// For each text the pairs with earlier ones that it says the same as and that fit: of those that are all alike, the first alone.
pub(super) fn near(texts: &[&str], fits: impl Fn(usize, usize) -> bool) -> Vec<Vec<Pair>> {
    // Alike in all their runs: they are compared once for all, since a file may hold one text many thousand times.
    struct Alike {
        runs: HashSet<u64>,
        members: Vec<usize>,
    }
    let mut kinds: Vec<Alike> = Vec::new();
    let mut buckets: HashMap<(usize, u64), Vec<usize>> = HashMap::new();
    let mut found = Vec::with_capacity(texts.len());
    for (second, text) in texts.iter().enumerate() {
        let own = runs(text);
        let signature = signature(&own);
        let bands: Vec<(usize, u64)> =
            signature.chunks(ROWS).enumerate().map(|(n, rows)| (n, hash(rows))).collect();
        let candidates: BTreeSet<usize> =
            bands.iter().filter_map(|band| buckets.get(band)).flatten().copied().collect();
        let pair = |kind: &usize| {
            let kind = &kinds[*kind];
            let first = kind.members.iter().copied().find(|first| fits(*first, second))?;
            let share = share(&own, &kind.runs);
            (share >= NEAR).then_some(Pair { first, second, share })
        };
        found.push(candidates.iter().filter_map(pair).collect());
        match candidates.into_iter().find(|kind| kinds[*kind].runs == own) {
            Some(kind) => kinds[kind].members.push(second),
            None => {
                bands.into_iter().for_each(|band| buckets.entry(band).or_default().push(kinds.len()));
                kinds.push(Alike { runs: own, members: vec![second] });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_the_same_is_paired_and_what_does_not_is_not() {
        let long = "The blood pressure target for most adults with hypertension is below 130/80 mmHg, measured at the clinic after a rest of five minutes.";
        let nearly = long.replace("five", "ten");
        let other = "Colchicine treats a gout flare; start within a day and watch the kidneys of older people closely, as toxicity is common.";
        let japanese = "成人の降圧目標は診察室血圧130/80mmHg未満とし、家庭血圧では125/75mmHg未満とする。";
        let texts = [long, other, &nearly, &long.to_uppercase(), japanese, "短い", "短い"];
        let found: Vec<(usize, usize)> = pairs(&texts).iter().map(|p| (p.first, p.second)).collect();
        assert_eq!(found, [(0, 2), (0, 3), (5, 6)]);
        assert!((pairs(&texts)[1].share - 1.0).abs() < 1e-9);
    }

    #[test]
    fn texts_that_are_all_alike_are_compared_once() {
        let text = "The wound is rinsed with warm saline before the dressing is changed, and looked at each morning.";
        let texts: Vec<String> =
            (0..2_000).map(|n| if n % 2 == 0 { text.to_owned() } else { text.to_uppercase() }).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert!(pairs(&texts).iter().all(|pair| pair.first == 0 && pair.share == 1.0));
        assert_eq!(pairs(&texts).len(), 1_999);
        // The first that fits stands for all that are alike.
        let other_half = pairs_that(&texts, |first, second| first % 2 != second % 2);
        assert!(other_half.iter().all(|pair| pair.first == 1 - pair.second % 2));
    }

    #[test]
    fn a_thousand_different_texts_make_no_pair() {
        let texts: Vec<String> = (0..1_000u64)
            .map(|n| format!("{:x}{:x}{:x}", hash(n), hash(n + 7_000), hash(n + 90_000)))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(pairs(&texts), []);
    }
}
