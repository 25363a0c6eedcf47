//! Editions in time: which edition of which guideline holds from when until when.
//!
//! Third step of the operator path, and the first that needs all files at once. An edition holds from its
//! `effective_from` until the day after its `effective_to`, or until the first day of an edition that replaces
//! it, whichever comes first. Faults (the same edition twice, an unknown replaced edition, a cycle) are findings.

use std::collections::{HashMap, HashSet};

use jiff::civil::Date;

use super::Finding;
use super::metadata::{EditionKey, FrontMatter};

/// A file's metadata on its way to the index.
#[derive(Debug, Clone)]
pub struct Edition {
    /// Its number among those that were given.
    pub number: usize,
    /// The file, relative to the guideline folder.
    pub file: String,
    /// Its metadata.
    pub front: FrontMatter,
    /// The first day on which it no longer holds, if there is one.
    pub ends: Option<Date>,
    /// The edition that replaces it first, if one does.
    pub replaced_by: Option<EditionKey>,
}

impl Edition {
    /// Whether it holds on a day.
    #[must_use]
    pub fn in_effect(&self, day: Date) -> bool {
        self.front.effective_from <= day && self.ends.is_none_or(|end| day < end)
    }
}

/// Sets the end of each edition, and reports what does not fit together. Those with an error are left out.
pub fn resolve(files: Vec<(String, FrontMatter)>) -> (Vec<Edition>, Vec<Finding>) {
    let mut findings = Vec::new();
    let (files, known) = without_duplicates(files, &mut findings);
    let in_cycle = cycles(&files, &known, &mut findings);
    let mut successors: HashMap<EditionKey, (Date, EditionKey)> = HashMap::new();
    for (_, file, front) in &files {
        for old in &front.supersedes {
            if !known.contains_key(old) {
                let text = format!(
                    "`supersedes` names `{old}`, which is not among the guidelines; add it or fix the name"
                );
                findings.push(Finding::warning(file, front.line("supersedes"), text));
            } else if !in_cycle.contains(&front.key) {
                let own = (front.effective_from, front.key.clone());
                let first = successors.entry(old.clone()).or_insert_with(|| own.clone());
                if own < *first {
                    *first = own;
                }
            }
        }
    }
    let editions: Vec<_> = files
        .into_iter()
        .filter(|(_, _, front)| !in_cycle.contains(&front.key))
        .map(|(number, file, front)| {
            let expiry = front.effective_to.and_then(|last| last.tomorrow().ok());
            let (replaced, replaced_by) = successors.remove(&front.key).unzip();
            let ends = [expiry, replaced].into_iter().flatten().min();
            Edition { number, file, front, ends, replaced_by }
        })
        .collect();
    overlaps(&editions, &mut findings);
    (editions, findings)
}

type Named = (usize, String, FrontMatter);

/// Of files that claim the same edition none can be trusted over the other, so all are left out.
fn without_duplicates(
    files: Vec<(String, FrontMatter)>,
    findings: &mut Vec<Finding>,
) -> (Vec<Named>, HashMap<EditionKey, usize>) {
    let mut claims: HashMap<EditionKey, Vec<(usize, String)>> = HashMap::new();
    for (number, (file, front)) in files.iter().enumerate() {
        let place = format!("{file}:{}", front.line("edition"));
        claims.entry(front.key.clone()).or_default().push((number, place));
    }
    let mut kept = Vec::new();
    for (number, (file, front)) in files.into_iter().enumerate() {
        match claims.get(&front.key).and_then(|c| c.iter().find(|(other, _)| *other != number)) {
            Some((_, other)) => findings.push(Finding::error(
                &file,
                front.line("edition"),
                format!("`{}` is also in `{other}`; give each edition one place", front.key),
            )),
            None => kept.push((number, file, front)),
        }
    }
    let known = kept.iter().enumerate().map(|(i, (_, _, front))| (front.key.clone(), i)).collect();
    (kept, known)
}

/// Editions that replace each other in a ring. Those outside that merely lead into one are fine.
fn cycles(
    files: &[Named],
    known: &HashMap<EditionKey, usize>,
    findings: &mut Vec<Finding>,
) -> HashSet<EditionKey> {
    // Strip editions that nothing replaces, then those that replace nothing, until nothing changes: what
    // remains lies in a ring or between two.
    let mut alive: HashSet<usize> = (0..files.len()).collect();
    let olds = |i: usize| files[i].2.supersedes.iter().filter_map(|k| known.get(k).copied());
    loop {
        let replaced: HashSet<usize> = alive.iter().flat_map(|&i| olds(i)).collect();
        let next: HashSet<usize> = alive
            .iter()
            .copied()
            .filter(|i| replaced.contains(i) && olds(*i).any(|old| alive.contains(&old)))
            .collect();
        if next.len() == alive.len() {
            break;
        }
        alive = next;
    }
    let mut ring: Vec<_> = alive.into_iter().collect();
    ring.sort_unstable();
    ring.into_iter()
        .map(|i| {
            let (_, file, front) = &files[i];
            let text = format!("`{}` takes part in a ring of `supersedes`; break it", front.key);
            findings.push(Finding::error(file, front.line("supersedes"), text));
            front.key.clone()
        })
        .collect()
}

/// Two editions of one guideline that hold at the same time are shown both, which is rarely meant.
fn overlaps(editions: &[Edition], findings: &mut Vec<Finding>) {
    let mut by_guideline: HashMap<&str, Vec<&Edition>> = HashMap::new();
    for edition in editions {
        by_guideline.entry(&edition.front.key.guideline).or_default().push(edition);
    }
    for group in by_guideline.values_mut() {
        group.sort_by(|a, b| (a.front.effective_from, &a.file).cmp(&(b.front.effective_from, &b.file)));
        for pair in group.windows(2) {
            let (old, new) = (pair[0], pair[1]);
            if old.in_effect(new.front.effective_from) {
                let text = format!(
                    "`{}` is still in effect when `{}` begins; say `supersedes: {}` or give the older one an `effective_to`",
                    old.front.key, new.front.key, old.front.key.edition
                );
                findings.push(Finding::warning(&new.file, new.front.line("effective_from"), text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::front_matter::parse;

    fn file(id: &str, edition: &str, from: &str, more: &str) -> (String, FrontMatter) {
        let name = format!("{id}-{edition}.md");
        let text = format!(
            "---\nid: {id}\ntitle: T\nedition: {edition}\nissuer: I\njurisdiction: JP\nlanguage: en\n\
             effective_from: {from}\nsource: S\nlicence: L\n{more}---\nBody.\n"
        );
        let head = parse(&name, &text);
        assert_eq!(head.findings, []);
        (name, head.front.unwrap())
    }

    fn day(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn an_edition_ends_when_its_successor_begins_or_when_it_expires() {
        let (editions, findings) = resolve(vec![
            file("htn", "2019", "2019-01-01", "effective_to: 2026-12-31\n"),
            file("htn", "2025", "2025-04-01", "supersedes: 2019\n"),
            file("flu", "1", "2020-01-01", "effective_to: 2020-12-31\n"),
        ]);
        assert_eq!(findings, []);
        let find = |id: &str, e: &str| {
            editions.iter().find(|x| x.front.key.guideline == id && x.front.key.edition == e).unwrap()
        };
        assert_eq!(find("htn", "2019").ends, Some(day("2025-04-01")));
        assert_eq!(find("htn", "2019").replaced_by, Some(find("htn", "2025").front.key.clone()));
        assert_eq!(find("flu", "1").replaced_by, None);
        assert!(find("htn", "2019").in_effect(day("2025-03-31")));
        assert!(!find("htn", "2019").in_effect(day("2025-04-01")));
        assert!(find("htn", "2025").in_effect(day("2025-04-01")));
        assert!(!find("htn", "2025").in_effect(day("2025-03-31")));
        assert!(find("flu", "1").in_effect(day("2020-12-31")));
        assert!(!find("flu", "1").in_effect(day("2021-01-01")));
    }

    #[test]
    fn duplicates_are_all_left_out() {
        let mut twin = file("a", "1", "2020-01-01", "");
        twin.0 = "other.md".to_owned();
        let (editions, findings) = resolve(vec![file("a", "1", "2020-01-01", ""), twin]);
        assert!(editions.is_empty());
        assert_eq!(findings.iter().filter(|f| f.is_error()).count(), 2);
    }

    #[test]
    fn rings_are_errors_and_what_leads_into_them_is_not() {
        let (editions, findings) = resolve(vec![
            file("a", "1", "2020-01-01", "supersedes: 2\n"),
            file("a", "2", "2021-01-01", "supersedes: 1\n"),
            file("a", "3", "2022-01-01", "supersedes: 2\n"),
            file("b", "1", "2022-01-01", "supersedes: 1\n"),
        ]);
        assert_eq!(editions.iter().map(|e| e.front.key.to_string()).collect::<Vec<_>>(), ["a@3"]);
        assert_eq!(findings.iter().filter(|f| f.message.contains("ring")).count(), 3);
    }

    #[test]
    fn unknown_and_overlapping_editions_are_warned_about() {
        let (editions, findings) =
            resolve(vec![file("a", "1", "2020-01-01", "supersedes: 0\n"), file("a", "2", "2021-01-01", "")]);
        assert_eq!(editions.len(), 2);
        assert!(findings.iter().any(|f| f.message.contains("a@0") && !f.is_error()));
        assert!(findings.iter().any(|f| f.message.contains("still in effect")));
    }
}
