//! Cuts a dataset into parts to learn from, to say when to stop, and to judge by, so that what is nearly the same is in one part.

use std::collections::BTreeMap;

use serde::Serialize;

use super::similar;
use crate::language::Language;

/// Which part of the data an example belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To learn from.
    Train,
    /// To say when to stop.
    Valid,
    /// To judge by.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// The name of its file, without the ending.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// How much of the data is not learnt from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// To judge by.
    pub test: f64,
    /// To say when to stop.
    pub valid: f64,
}

impl Default for Shares {
    fn default() -> Self {
        Self { test: 0.16, valid: 0.08 }
    }
}

/// A name of what belongs together, by which parts are chosen.
pub type Group = (Language, [u8; 32]);

/// For each text the first of those that it says nearly the same as, directly or through others; itself where there is none.
#[must_use]
pub fn clusters(texts: &[&str]) -> Vec<usize> {
    let mut cluster: Vec<usize> = (0..texts.len()).collect();
    // Earlier ones point to what is earlier still, so the way ends at the first.
    let first = |cluster: &[usize], mut at: usize| {
        while cluster[at] != at {
            at = cluster[at];
        }
        at
    };
    for pair in similar::near(texts, |_, _| true).into_iter().flatten() {
        let (one, other) = (first(&cluster, pair.second), first(&cluster, pair.first));
        cluster[one.max(other)] = one.min(other);
    }
    (0..texts.len())
        .map(|at| {
            cluster[at] = first(&cluster, at);
            cluster[at]
        })
        .collect()
}

/// The part of each group: those with the lowest hashes are tested on until they hold their share of the examples of their language, the
/// next say when to stop until they hold theirs. A group that is added moves few others.
#[must_use]
pub fn shared_out(examples: &[Group], shares: Shares) -> BTreeMap<Group, Split> {
    let mut sizes: BTreeMap<Group, usize> = BTreeMap::new();
    examples.iter().for_each(|group| *sizes.entry(*group).or_default() += 1);
    let mut parts = BTreeMap::new();
    for language in Language::ALL {
        let own = || sizes.iter().filter(|((of, _), _)| *of == language);
        let total: f64 = own().map(|(_, size)| *size as f64).sum();
        // Fewer than three groups cannot be in three parts; then all are learnt from.
        let enough = own().count() >= 3;
        let (mut tested, mut valid) = (0.0, 0.0);
        for (group, size) in own() {
            let size = *size as f64;
            let part = match enough {
                true if tested < shares.test * total => Split::Test,
                true if valid < shares.valid * total => Split::Valid,
                _ => Split::Train,
            };
            match part {
                Split::Test => tested += size,
                Split::Valid => valid += size,
                Split::Train => {}
            }
            parts.insert(*group, part);
        }
    }
    parts
}

/// The part of each group by its hash alone, so that nothing moves it that is added later: those with the lowest are tested on, the next say
/// when to stop. Of a language that has fewer than `few`, a part might by chance hold next to none; they are [shared out](shared_out).
#[must_use]
pub fn by_hash(examples: &[Group], shares: Shares, few: usize) -> BTreeMap<Group, Split> {
    let mut parts = shared_out(examples, shares);
    for language in Language::ALL {
        if parts.keys().filter(|(of, _)| *of == language).count() < few {
            continue;
        }
        for ((_, hash), part) in parts.iter_mut().filter(|((of, _), _)| *of == language) {
            let [a, b, c, d, ..] = *hash;
            let place = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
            *part = match place {
                place if place < shares.test => Split::Test,
                place if place < shares.test + shares.valid => Split::Valid,
                _ => Split::Train,
            };
        }
    }
    parts
}

/// The part of each text.
#[must_use]
pub fn split(texts: &[&str], shares: Shares, seed: u64) -> Vec<Split> {
    let clusters = clusters(texts);
    let group = |first: usize| -> Group {
        let seed = seed.to_le_bytes();
        let hash = crate::model::digest([b"split".as_slice(), &seed, texts[first].as_bytes()]);
        (Language::detect(texts[first]), hash)
    };
    let groups: Vec<Group> = clusters.into_iter().map(group).collect();
    let parts = shared_out(&groups, shares);
    groups.iter().map(|group| parts[group]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_fills_its_parts() {
        let group = |language, n: u8| (language, [n; 32]);
        let mut items: Vec<Group> = Vec::new();
        for n in 0..50 {
            items.extend(vec![group(Language::En, n); 1 + usize::from(n % 4)]);
        }
        items.extend([group(Language::Ja, 1), group(Language::Ja, 2)]);
        let parts = shared_out(&items, Shares::default());
        let share = |part: Split| {
            let own = items.iter().filter(|(language, _)| *language == Language::En);
            let held = own.clone().filter(|group| parts[*group] == part).count();
            held as f64 / own.count() as f64
        };
        assert!((0.16..0.20).contains(&share(Split::Test)), "{}", share(Split::Test));
        assert!((0.08..0.12).contains(&share(Split::Valid)), "{}", share(Split::Valid));
        // Two groups are too few for three parts.
        assert!((1..3).all(|n| parts[&group(Language::Ja, n)] == Split::Train));
        // One more group moves few others.
        let more =
            shared_out(&[items.clone(), vec![group(Language::En, 200); 3]].concat(), Shares::default());
        assert!(parts.iter().filter(|(group, part)| more[*group] != **part).count() <= 3);
    }

    #[test]
    fn many_groups_stay_where_they_are_whatever_is_added() {
        let group = |language, n: u32| (language, crate::model::digest([n.to_le_bytes().as_slice()]));
        let few: Vec<Group> = (0..24).map(|n| group(Language::Ja, n)).collect();
        let many: Vec<Group> = (0..2_000).map(|n| group(Language::Ja, n)).collect();
        let (of_few, of_many) = (by_hash(&few, Shares::default(), 24), by_hash(&many, Shares::default(), 24));
        assert!(few.iter().all(|group| of_few[group] == of_many[group]));
        let share = |part| of_many.values().filter(|of| **of == part).count() as f64 / 2_000.0;
        assert!((0.14..0.18).contains(&share(Split::Test)), "{}", share(Split::Test));
        assert!((0.06..0.10).contains(&share(Split::Valid)), "{}", share(Split::Valid));
        // Fewer fill their parts by shares.
        let three: Vec<Group> = (0..3).map(|n| group(Language::En, n)).collect();
        assert_eq!(by_hash(&three, Shares::default(), 24), shared_out(&three, Shares::default()));
    }

    #[test]
    fn near_texts_are_one_group_whichever_they_are_nearest_to() {
        // The first two are too far from each other; the third is near to both.
        let words: Vec<String> = (0..60).map(|n| format!("w{}", n * n + 17)).collect();
        let text = |from: usize, to: usize| words[from..to].join(" ");
        let (one, two, between) = (text(0, 50), text(10, 60), text(5, 55));
        let found = clusters(&[&one, &two, &between]);
        assert_eq!(found, [0, 0, 0]);
        assert_eq!(clusters(&[&one, &two]), [0, 1]);
    }

    #[test]
    fn what_is_nearly_the_same_stays_together() {
        let words = "angina gout asthma fever sepsis anaemia migraine fracture burn stroke eczema croup";
        let texts: Vec<String> = words
            .split(' ')
            .flat_map(|w| {
                let first = format!("My {w} has been with me for {w} days, and {w} pills for my {w} do not help the {w} at all.");
                [first.clone(), first.replace("at all", "at  ALL"), format!("{w} {w} quite another {w} question")]
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let parts = split(&texts, Shares { test: 0.3, valid: 0.2 }, 1);
        assert!(parts.chunks(3).all(|three| three[0] == three[1]));
        for part in Split::ALL {
            assert!(parts.contains(&part), "{part:?}");
        }
        assert_eq!(parts, split(&texts, Shares { test: 0.3, valid: 0.2 }, 1));
        assert_ne!(parts, split(&texts, Shares { test: 0.3, valid: 0.2 }, 2));
    }
}
