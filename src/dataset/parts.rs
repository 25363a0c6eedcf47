//! Which part of the data each [`Item`] belongs to, so that nothing is tested that was learnt.

use std::collections::BTreeMap;

use super::ground::Item;
use super::split::{Group, Shares, Split, by_hash, clusters};

/// From so many guidelines of a language on, their names' hashes alone fill the parts well enough.
const FEW_GUIDELINES: usize = 24;
/// From so many other items on: one is one example, where a guideline has many.
const FEW_ITEMS: usize = 60;

/// The part of each item: that of its guidelines, each of which has its own whatever else is asked, so that what is tested is asked of
/// documents that nothing was learnt from; else that of the first of the items without one that say nearly the same. None for what would
/// join two parts: it quotes guidelines of both, or is held out and says nearly what is in another, directly or through others.
pub(super) fn of(items: &[(String, Item)]) -> Vec<Option<Split>> {
    let texts: Vec<String> = items.iter().map(|(_, item)| item.text()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let stands_alone = |at: usize| !matches!(items[at].1, Item::Answered { .. });
    let mut firsts: BTreeMap<usize, usize> = BTreeMap::new();
    let clusters = clusters(&texts);
    for (at, cluster) in clusters.iter().enumerate().filter(|(at, _)| stands_alone(*at)) {
        firsts.entry(*cluster).or_insert(at);
    }
    let groups: Vec<Vec<Group>> = (0..items.len())
        .map(|at| {
            let names: Vec<&str> = match &items[at].1 {
                Item::Answered { oracle, .. } => oracle.iter().map(|o| o.guideline.as_str()).collect(),
                _ => vec![items[firsts[&clusters[at]]].1.id()],
            };
            let group = |name: &str| {
                (items[at].1.language(), crate::model::digest([b"split".as_slice(), name.as_bytes()]))
            };
            names.into_iter().map(group).collect()
        })
        .collect();
    let of_kind = |alone: bool| -> Vec<Group> {
        let own = groups.iter().enumerate().filter(|(at, _)| stands_alone(*at) == alone);
        own.flat_map(|(_, names)| names.iter().copied()).collect()
    };
    let mut parts = by_hash(&of_kind(false), Shares::default(), FEW_GUIDELINES);
    parts.extend(by_hash(&of_kind(true), Shares::default(), FEW_ITEMS));
    let mut own: Vec<Option<Split>> = groups
        .iter()
        .map(|names| {
            let part = parts[&names[0]];
            names.iter().all(|name| parts[name] == part).then_some(part)
        })
        .collect();
    // Of those that say nearly the same, what is learnt from stays, else what is tested on.
    let stays = |part: &Split| [Split::Train, Split::Test, Split::Valid].iter().position(|of| of == part);
    let mut kept: BTreeMap<usize, Split> = BTreeMap::new();
    for (cluster, part) in clusters.iter().zip(&own).filter_map(|(c, part)| Some((*c, (*part)?))) {
        let kept = kept.entry(cluster).or_insert(part);
        *kept = std::cmp::min_by_key(*kept, part, stays);
    }
    for (cluster, part) in clusters.iter().zip(&mut own) {
        *part = part.filter(|part| kept[cluster] == *part);
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str, question: &str, guidelines: &[&str]) -> (String, Item) {
        let oracle: Vec<_> = guidelines
            .iter()
            .map(|name| serde_json::json!({ "guideline": name, "edition": "2026", "quote": "q" }))
            .collect();
        let mut item = serde_json::json!({ "id": id, "language": "en", "question": question });
        if !oracle.is_empty() {
            item["answer"] = "It is so [1].".into();
            item["oracle"] = oracle.into();
        }
        (id.to_owned(), serde_json::from_value(item).unwrap())
    }

    /// Items that ask different things of so many guidelines.
    fn items(count: usize) -> Vec<(String, Item)> {
        let words = ["cough", "stroke", "burn", "fever", "gout"];
        (0..count)
            .map(|n| {
                let question = format!("{0} {n} and {1} {2}?", words[n % 5], words[n % 3], n * n * 7919);
                asked(&format!("i{n}"), &question, &[&format!("g{n}")])
            })
            .collect()
    }

    #[test]
    fn a_guideline_stays_where_it_is_and_what_joins_two_parts_is_in_none() {
        let own = items(60);
        let parts = of(&own);
        assert!(parts.iter().all(Option::is_some));
        assert_eq!(of(&[items(90)[60..].to_vec(), own.clone()].concat())[30..], parts);
        let at = |part| parts.iter().position(|of| *of == Some(part)).unwrap();
        let (learnt, tested) = (at(Split::Train), at(Split::Test));
        let (one, other) = (format!("g{learnt}"), format!("g{tested}"));
        let Item::Answered { question, .. } = &own[tested].1 else { panic!() };
        let more = [
            asked("both", "What do the two say of quite another thing?", &[&one, &other]),
            asked("again", "And of one of the same thing twice over?", &[&other, &other]),
            asked("near", &question.to_uppercase(), &[&one]),
            asked("nearer", &question.to_lowercase(), &[&other]),
        ];
        let parts = of(&[own, more.to_vec()].concat());
        assert_eq!(parts[60..], [None, Some(Split::Test), Some(Split::Train), None]);
        assert_eq!(parts[tested], None, "it says what is learnt");
        assert_eq!(parts.iter().flatten().count(), 61);
    }

    #[test]
    fn what_nothing_answers_goes_with_what_says_the_same() {
        let mut own = items(30);
        own.extend(
            (0..60).map(|n| asked(&format!("alone{n}"), &format!("Who answers {} of {n}?", n * 7919), &[])),
        );
        let says = "Which vaccine do those get who travel to the islands of the far north in winter?";
        own.push(asked("first", says, &[]));
        own.push(asked("second", &says.replace("winter", "spring"), &[]));
        let parts = of(&own);
        assert!(parts[90].is_some());
        assert_eq!(parts[90], parts[91]);
    }
}
