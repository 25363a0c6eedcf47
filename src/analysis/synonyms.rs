//! Terms that mean the same in English and Japanese, which a question is widened by.
//!
//! Applied to questions only, so that an index need not be built again when the list changes. A member is found in a question by
//! the stems of its words, or by its characters where it is Japanese.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use aho_corasick::{AhoCorasick, MatchKind};

use super::fields::{is_english_word, stem_all};
use super::normalise::{fold, fold_text};
use super::scan::{Script, is_cjk, terms};
use super::words::japanese_words;

/// The list that is shipped, as it stands in its file.
pub const BUILT_IN: &str = include_str!("../../config/synonyms.txt");
/// Separates the members of a group.
const SEPARATOR: char = '=';
/// No list is longer than this.
const MAX_BYTES: usize = 4 << 20;

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SynonymsError {
    /// It cannot be read.
    #[error("cannot read the synonyms {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is no group.
    #[error("{}:{line}: {reason}; write a group as `hypertension = 高血圧`", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A member of a group, as it is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Stems of its English words, without stop words.
    pub stems: Vec<String>,
    /// Pairs of its Japanese characters, or the one that it has.
    pub pairs: Vec<String>,
    /// Its Japanese words.
    pub words: Vec<String>,
}

impl Member {
    fn of(text: &str) -> Self {
        let found = terms(text);
        let stems = stem_all(found.iter().filter(|t| is_english_word(t)).map(|t| t.text.as_str()));
        let mut pairs: Vec<_> =
            found.iter().filter(|t| t.script == Script::CjkTwo).map(|t| t.text.clone()).collect();
        if pairs.is_empty() {
            pairs.extend(found.iter().filter(|t| t.script == Script::CjkOne).map(|t| t.text.clone()));
        }
        let words = japanese_words(text).into_iter().map(|word| word.text).collect();
        Self { stems, pairs, words }
    }

    fn is_empty(&self) -> bool {
        self.stems.is_empty() && self.pairs.is_empty()
    }
}

/// A place of a question where a member stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// Bytes of the question.
    pub span: Range<usize>,
    /// The other members of its group.
    pub others: Vec<Member>,
}

/// Groups of terms that mean the same.
#[derive(Debug, Default)]
pub struct Synonyms {
    groups: Vec<Vec<Member>>,
    /// English members by the first of their words' stems, stop words included: all stems, group, member.
    english: HashMap<String, Vec<(Vec<String>, usize, usize)>>,
    japanese: Option<AhoCorasick>,
    /// Group and member of each pattern of `japanese`.
    japanese_members: Vec<(usize, usize)>,
}

impl Synonyms {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The list that is shipped.
    ///
    /// # Errors
    /// Never in practice; a test reads it.
    pub fn built_in() -> Result<Self, SynonymsError> {
        Self::of(&[(Path::new("config/synonyms.txt"), BUILT_IN)])
    }

    /// The list that is shipped, and one of the operator's.
    ///
    /// # Errors
    /// When the file cannot be read, or a line is no group.
    pub fn with_file(path: &Path) -> Result<Self, SynonymsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SynonymsError::Read { path: path.to_owned(), source })?;
        Self::of(&[(Path::new("config/synonyms.txt"), BUILT_IN), (path, &text)])
    }

    fn of(lists: &[(&Path, &str)]) -> Result<Self, SynonymsError> {
        let mut all = Self::default();
        let mut patterns = Vec::new();
        for (path, text) in lists {
            let fault = |line: usize, reason| SynonymsError::Line {
                path: (*path).to_owned(),
                line: line + 1,
                reason,
            };
            if text.len() > MAX_BYTES {
                return Err(fault(0, "the list is longer than 4 MiB"));
            }
            for (n, line) in text.lines().enumerate() {
                let line = line.trim().trim_start_matches('\u{feff}');
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let members: Vec<&str> = line.split(SEPARATOR).map(str::trim).collect();
                if members.len() < 2 {
                    return Err(fault(n, "a group needs two members"));
                }
                let group = all.groups.len();
                for (number, member) in members.iter().enumerate() {
                    all.add(member, group, number, &mut patterns).map_err(|reason| fault(n, reason))?;
                }
                all.groups.push(members.into_iter().map(Member::of).collect());
            }
        }
        all.japanese = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns).ok();
        Ok(all)
    }

    fn add(
        &mut self,
        member: &str,
        group: usize,
        number: usize,
        patterns: &mut Vec<String>,
    ) -> Result<(), &'static str> {
        if Member::of(member).is_empty() {
            return Err("a member holds no word");
        }
        let folded = fold_text(member);
        if folded.chars().any(is_cjk) {
            patterns.push(folded);
            self.japanese_members.push((group, number));
            return Ok(());
        }
        let words = terms(member);
        let stems =
            stem_all(words.iter().filter(|t| t.script != Script::NumberPart).map(|t| t.text.as_str()));
        let Some(first) = stems.first().cloned() else { return Err("a member holds no word") };
        self.english.entry(first).or_default().push((stems, group, number));
        Ok(())
    }

    /// Where members stand in a question.
    #[must_use]
    pub fn find(&self, question: &str) -> Vec<Meant> {
        let mut found = self.find_english(question);
        found.extend(self.find_japanese(question));
        found
    }

    fn find_english(&self, question: &str) -> Vec<Meant> {
        let mut words = terms(question);
        words.retain(|t| matches!(t.script, Script::Word | Script::Number));
        let stems = stem_all(words.iter().map(|t| t.text.as_str()));
        let mut found = Vec::new();
        let mut at = 0;
        while at < stems.len() {
            let candidates = self.english.get(&stems[at]).map_or(&[][..], Vec::as_slice);
            let here = candidates.iter().filter(|(own, ..)| stems[at..].starts_with(own));
            // The longest: `blood pressure` says more than `blood`.
            let longest = here.clone().map(|(own, ..)| own.len()).max().unwrap_or(0);
            for (own, group, number) in here.filter(|(own, ..)| own.len() == longest) {
                let span = words[at].from..words[at + own.len() - 1].to;
                found.push(Meant { span, others: self.others(*group, *number) });
            }
            at += longest.max(1);
        }
        found
    }

    fn find_japanese(&self, question: &str) -> Vec<Meant> {
        let Some(automaton) = &self.japanese else { return Vec::new() };
        let folded = fold(question);
        let text: String = folded.iter().map(|f| f.c).collect();
        let mut starts = Vec::with_capacity(folded.len());
        let mut at = 0;
        for f in &folded {
            starts.push(at);
            at += f.c.len_utf8();
        }
        let place = |byte: usize| starts.partition_point(|start| *start < byte);
        let meant = automaton.find_iter(&text).filter_map(|hit| {
            let (group, number) = *self.japanese_members.get(hit.pattern().as_usize())?;
            let (first, last) =
                (folded.get(place(hit.start()))?, folded.get(place(hit.end()).checked_sub(1)?)?);
            Some(Meant { span: first.from..last.to, others: self.others(group, number) })
        });
        meant.collect()
    }

    fn others(&self, group: usize, number: usize) -> Vec<Member> {
        let members = self.groups.get(group).map_or(&[][..], Vec::as_slice);
        members.iter().enumerate().filter(|(n, _)| *n != number).map(|(_, member)| member.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(question: &str) -> Vec<(String, Vec<String>)> {
        let synonyms = Synonyms::built_in().unwrap();
        let meant = synonyms.find(question).into_iter();
        meant
            .map(|m| {
                let others = m.others.into_iter().flat_map(|o| [o.stems, o.words].concat()).collect();
                (question[m.span].to_owned(), others)
            })
            .collect()
    }

    #[test]
    fn members_are_found_by_their_stems_and_characters() {
        let english = found("What is the Blood Pressure goal?");
        assert_eq!(english[0].0, "Blood Pressure");
        assert!(english[0].1.contains(&"血圧".to_owned()), "{english:?}");
        let japanese = found("ｱﾅﾌｨﾗｷｼｰの治療は");
        assert_eq!(japanese[0].0, "ｱﾅﾌｨﾗｷｼｰ");
        assert!(japanese[0].1.contains(&"anaphylaxi".to_owned()), "{japanese:?}");
        assert_eq!(found("xyzzy"), []);
    }

    #[test]
    fn what_is_no_group_is_named() {
        let read = |text: &str| Synonyms::of(&[(Path::new("own.txt"), text)]).unwrap_err().to_string();
        assert!(read("# a\nlonely\n").contains("own.txt:2"));
        assert!(read("a = \n").contains("no word"));
    }

    proptest! {
        #[test]
        fn places_are_places(question in "(blood|pressure|高血圧|ﾜﾙﾌｧﾘﾝ|[ a-zあ。]{0,3}){0,12}") {
            for meant in Synonyms::built_in().unwrap().find(&question) {
                prop_assert!(question.get(meant.span).is_some());
                prop_assert!(!meant.others.is_empty());
            }
        }
    }
}
