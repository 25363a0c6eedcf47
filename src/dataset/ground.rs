//! Examples with passages, as serving will show them: RAFT (Zhang et al. 2024) over our own index.
//!
//! An [`Item`] asks a question, answers it, and quotes the guideline that says so. Around the quoted passage, which must hold the
//! quote, go the passages that the search finds for the same question and that do not: hard to tell from it. Some questions are
//! asked a second time without it, and questions that nothing answers are asked too; there the answer is that the passages do not
//! say. Dialogues that bring passages of their own are written out likewise.
//!
//! The prompt is the server's own, so that what is learnt is what will be seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::ToSpan as _;
use jiff::civil::Date;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::parts;
use super::split::Split;
use crate::analysis::citations;
use crate::files::lines;
use crate::language::Language;
use crate::prompt::{Wording, WordingError};
use crate::quote;
use crate::retrieve::{Passage, RetrieveError, SearchQuery, Snapshot};

/// The day on which the index is searched.
const DAY: Date = Date::constant(2026, 11, 1);
/// Days before it that prompts may name.
const DAYS: i64 = 200;
/// How deep the search looks for passages that do not answer.
const DEPTH: usize = 12;

/// What is said when no passage answers.
#[must_use]
pub const fn abstention(language: Language) -> &'static str {
    match language {
        Language::En => {
            "The passages do not answer this question, so I will not guess. Please check the original guideline or ask a specialist."
        }
        Language::Ja => {
            "抜粋の中に、この質問に答える記述はありません。推測での回答は控えますので、原典のガイドラインか専門医にご確認ください。"
        }
    }
}

/// Where an answer stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oracle {
    /// The guideline.
    pub guideline: String,
    /// Its edition.
    pub edition: String,
    /// What it says, letter by letter.
    pub quote: String,
}

/// The same answer as it is not wanted: wrapped in politeness, without its source.
fn rambling(language: Language, answer: &str) -> String {
    let answer = citations::without(answer);
    match language {
        Language::En => format!(
            "Thank you for your question. Based on the passages that were provided, {} I hope that this helps!",
            answer.trim()
        ),
        Language::Ja => {
            format!(
                "ご質問ありがとうございます。ご提供いただいた抜粋によりますと、{}ご参考になれば幸いです。",
                answer.trim()
            )
        }
    }
}

/// A line of a source file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawItem")]
pub enum Item {
    /// A question whose answer stands in a guideline; `[1]` in the answer is the first of `oracle`.
    Answered {
        /// Its name.
        id: String,
        /// Its language.
        language: Language,
        /// What is asked.
        question: String,
        /// The answer.
        answer: String,
        /// Where it stands.
        oracle: Vec<Oracle>,
        /// What a right answer must hold, to judge by; see `evaluate::facts`.
        facts: Vec<String>,
    },
    /// A conversation, perhaps over passages of its own.
    Dialogue {
        /// Its name.
        id: String,
        /// Its language.
        language: Language,
        /// The turns.
        messages: Vec<Said>,
        /// What the assistant has before it; `[1]` is the first.
        passages: Vec<Leaflet>,
    },
    /// A question that nothing answers.
    Unanswerable {
        /// Its name.
        id: String,
        /// Its language.
        language: Language,
        /// What is asked.
        question: String,
    },
}

/// An item's keys, before it is known what kind it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawItem {
    id: String,
    language: Language,
    question: Option<String>,
    answer: Option<String>,
    oracle: Option<Vec<Oracle>>,
    #[serde(default)]
    facts: Vec<String>,
    messages: Option<Vec<Said>>,
    passages: Option<Vec<Leaflet>>,
}

impl TryFrom<RawItem> for Item {
    type Error = &'static str;

    fn try_from(raw: RawItem) -> Result<Self, Self::Error> {
        let RawItem { id, language, question, answer, oracle, facts, messages, passages } = raw;
        if !facts.is_empty() && oracle.is_none() {
            return Err("only an answered question has facts");
        }
        match (question, answer, oracle, messages, passages) {
            (Some(question), Some(answer), Some(oracle), None, None) if !oracle.is_empty() => {
                Ok(Self::Answered { id, language, question, answer, oracle, facts })
            }
            (Some(question), None, None, None, None) => Ok(Self::Unanswerable { id, language, question }),
            (None, None, None, Some(messages), passages) => {
                Ok(Self::Dialogue { id, language, messages, passages: passages.unwrap_or_default() })
            }
            _ => Err("these keys make no item"),
        }
    }
}

/// A turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    role: String,
    content: String,
}

/// A passage that a dialogue brings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaflet {
    title: String,
    section: String,
    text: String,
}

/// How examples are made.
#[derive(Debug, Clone, Copy)]
pub struct Grounding {
    /// Passages of an example, the answering ones among them.
    pub passages: usize,
    /// How often a question to learn from is written out, each time among other passages.
    pub variants: usize,
    /// Share of the answered questions that are asked again without the passage that answers.
    pub without: f64,
    /// The largest share of the rows to learn from in which nothing answers; all are tested on. Too many teach to decline what could be
    /// answered.
    pub declined: f64,
    /// Begin answers with what they answer from; see [`crate::quote`].
    pub quotes: bool,
    /// Keep the order in which the search finds passages, the answering ones last if they are not among the first; else numbers and
    /// places are drawn.
    pub ranked: bool,
    /// Decides places and choices.
    pub seed: u64,
}

/// A row and where it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its part.
    pub split: Split,
    /// A chat example.
    pub example: Json,
}

/// What items have become.
#[derive(Debug, Clone, PartialEq)]
pub struct Grounded {
    /// The rows of all parts.
    pub rows: Vec<Row>,
    /// Where the items stand that would join two parts, and are in none.
    pub left_out: Vec<String>,
}

/// Why rows cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is no item.
    #[error("{place}: {reason}")]
    Line {
        /// file:line.
        place: String,
        /// Why.
        reason: String,
    },
    /// The index cannot be searched.
    #[error(transparent)]
    Search(#[from] RetrieveError),
    /// A prompt file failed.
    #[error(transparent)]
    Wording(#[from] WordingError),
}

/// Reads items, each with its place.
///
/// # Errors
/// When a file cannot be read or a line is no item.
pub fn read(files: &[PathBuf]) -> Result<Vec<(String, Item)>, GroundError> {
    let mut items = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path)
            .map_err(|source| GroundError::Read { path: path.clone(), source })?;
        for (number, line) in lines(&text) {
            let place = format!("{}:{number}", path.display());
            let item = serde_json::from_str(line).map_err(|e| GroundError::Line {
                place: place.clone(),
                reason: format!(
                    "{e}; write id, language, and question, answer, oracle (or question alone, or messages)"
                ),
            })?;
            items.push((place, item));
        }
    }
    Ok(items)
}

impl Item {
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Answered { id, .. } | Self::Dialogue { id, .. } | Self::Unanswerable { id, .. } => id,
        }
    }

    pub(super) fn language(&self) -> Language {
        match self {
            Self::Answered { language, .. }
            | Self::Dialogue { language, .. }
            | Self::Unanswerable { language, .. } => *language,
        }
    }

    /// What it says, to compare by.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Answered { question, answer, .. } => format!("{question}\n{answer}"),
            Self::Unanswerable { question, .. } => question.clone(),
            Self::Dialogue { messages, .. } => {
                messages.iter().map(|said| said.content.as_str()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// A question that becomes a row.
#[derive(Clone, Copy)]
struct Asked<'a> {
    id: &'a str,
    language: Language,
    question: &'a str,
    /// What a right answer must hold.
    facts: &'a [String],
}

/// Makes rows of items over an index.
pub struct Grounder<'a> {
    /// The index that holds the guidelines.
    pub snapshot: &'a Snapshot,
    /// The server's prompt texts.
    pub wording: &'a Wording,
    /// How.
    pub grounding: Grounding,
}

impl Grounder<'_> {
    /// The rows of all items, in order, but of those that would join two parts.
    ///
    /// # Errors
    /// When a quote is in no passage of its guideline, a citation points nowhere, or the search fails.
    pub fn rows(&self, items: &[(String, Item)]) -> Result<Grounded, GroundError> {
        let (mut rows, mut left_out) = (Vec::new(), Vec::new());
        for ((place, item), split) in items.iter().zip(parts::of(items)) {
            let Some(split) = split else {
                left_out.push(place.clone());
                continue;
            };
            let seed = crate::model::digest([item.id().as_bytes(), &self.grounding.seed.to_le_bytes()]);
            let mut random = ChaCha8Rng::from_seed(seed);
            let examples = match item {
                Item::Answered { id, language, question, answer, oracle, facts } => {
                    let variants = if split == Split::Train { self.grounding.variants } else { 1 };
                    let asked = Asked { id, language: *language, question, facts };
                    self.answered(place, asked, (answer, oracle), variants, &mut random)?
                }
                Item::Unanswerable { id, language, question } => {
                    let found = self.search(question, *language)?;
                    let passages = found.into_iter().take(self.grounding.passages).collect();
                    let asked = Asked { id, language: *language, question, facts: &[] };
                    vec![self.example(asked, passages, None, &mut random)?]
                }
                Item::Dialogue { id, language, messages, passages } => {
                    vec![self.dialogue((id, *language), messages, passages, &mut random)?]
                }
            };
            rows.extend(examples.into_iter().map(|example| Row { split, example }));
        }
        Ok(Grounded { rows: trimmed(rows, self.grounding.declined), left_out })
    }

    fn search(&self, text: &str, language: Language) -> Result<Vec<Passage>, GroundError> {
        let found = self.snapshot.search(&SearchQuery {
            text,
            as_of: DAY,
            language: Some(language),
            filter: None,
            limit: DEPTH,
            ranking: None,
        })?;
        Ok(found.passages.into_iter().filter(|p| p.language == language).collect())
    }

    fn answered(
        &self,
        place: &str,
        asked: Asked<'_>,
        (answer, oracle): (&str, &[Oracle]),
        variants: usize,
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<Json>, GroundError> {
        let line = |reason: String| GroundError::Line { place: place.to_owned(), reason };
        let Asked { id, language, question, .. } = asked;
        let found = self.search(question, language)?;
        let holds = |p: &Passage, o: &Oracle| {
            p.guideline == o.guideline && p.edition == o.edition && p.text.contains(&o.quote)
        };
        let mut answering: Vec<Passage> = Vec::new();
        // For each oracle, the place of its passage among those that answer.
        let mut cited = Vec::new();
        for one in oracle {
            let at = match answering.iter().position(|p| holds(p, one)) {
                Some(at) => at,
                None => {
                    let near = found.iter().find(|p| holds(p, one)).cloned();
                    let passage = match near {
                        Some(passage) => Some(passage),
                        None => self.search(&one.quote, language)?.into_iter().find(|p| holds(p, one)),
                    };
                    answering.push(passage.ok_or_else(|| {
                        line(format!(
                            "no passage of {}@{} that is in force on {DAY} holds “{}”; quote one line of an edition in force",
                            one.guideline, one.edition, one.quote
                        ))
                    })?);
                    answering.len() - 1
                }
            };
            cited.push(at);
        }
        let ranks: Vec<String> = found.iter().map(|p| p.chunk_id.clone()).collect();
        let others: Vec<Passage> = found
            .into_iter()
            .filter(|p| {
                !oracle.iter().any(|o| holds(p, o)) && !answering.iter().any(|a| a.chunk_id == p.chunk_id)
            })
            .collect();
        let mut before: Vec<String> = Vec::new();
        for (one, at) in oracle.iter().zip(&cited).filter(|_| self.grounding.quotes) {
            let units = quote::units_around(&answering[*at].text, &one.quote);
            if units.is_empty() {
                let reason =
                    format!("“{}” is no part of a sentence, list item or row that can be quoted", one.quote);
                return Err(line(reason));
            }
            for unit in units {
                if !before.contains(&unit) {
                    before.push(unit);
                }
            }
        }
        let mut rows = Vec::new();
        for variant in 0..variants.max(1) {
            // The nearest distract most; each further variant is asked among others.
            let mut near: Vec<&Passage> = others.iter().take(2 * self.grounding.passages).collect();
            let mut id = id.to_owned();
            if variant > 0 {
                near.shuffle(random);
                id = format!("{id}-{}", variant + 1);
            }
            let (passages, numbers) = self.mixed(&answering, &cited, &near, &ranks, random);
            let answer = renumbered(answer, &numbers).map_err(line)?;
            let asked = Asked { id: &id, ..asked };
            rows.push(self.example(asked, passages, Some((&answer, &numbers, &before)), random)?);
        }
        if random.random_bool(self.grounding.without) && !others.is_empty() {
            let others = others.into_iter().take(self.grounding.passages).collect();
            let id = format!("{id}-without");
            rows.push(self.example(Asked { id: &id, facts: &[], ..asked }, others, None, random)?);
        }
        Ok(rows)
    }

    /// Passages that answer among others, and the number that each oracle's has come to.
    fn mixed(
        &self,
        answering: &[Passage],
        cited: &[usize],
        others: &[&Passage],
        ranks: &[String],
        random: &mut ChaCha8Rng,
    ) -> (Vec<Passage>, Vec<usize>) {
        let Grounding { passages, ranked, .. } = self.grounding;
        let room = passages.saturating_sub(answering.len());
        let count = if room > 1 && !ranked { random.random_range(room / 2..=room) } else { room };
        let mut passages: Vec<(Option<usize>, Passage)> =
            answering.iter().enumerate().map(|(at, p)| (Some(at), p.clone())).collect();
        passages.extend(others.iter().take(count).map(|p| (None, (*p).clone())));
        match ranked {
            // One that the search has not found comes last.
            true => passages
                .sort_by_key(|(_, p)| ranks.iter().position(|id| *id == p.chunk_id).unwrap_or(usize::MAX)),
            false => passages.shuffle(random),
        }
        let number =
            |at: &usize| passages.iter().position(|(which, _)| which == &Some(*at)).map_or(0, |n| n + 1);
        let numbers = cited.iter().map(number).collect();
        (passages.into_iter().map(|(_, p)| p).collect(), numbers)
    }

    /// A question over passages; without an answer it is that they do not say.
    fn example(
        &self,
        Asked { id, language, question, facts }: Asked<'_>,
        mut passages: Vec<Passage>,
        answer: Option<(&str, &[usize], &[String])>,
        random: &mut ChaCha8Rng,
    ) -> Result<Json, GroundError> {
        if answer.is_none() && !self.grounding.ranked {
            passages.shuffle(random);
        }
        passages.iter_mut().zip(1..).for_each(|(p, n)| p.n = n);
        let day = day(random);
        let system = self.wording.grounded(language, &passages, question, day)?;
        let user = self.wording.question(language, question, day)?;
        let said = answer.map_or_else(
            || abstention(language).to_owned(),
            |(answer, _, before)| quote::with(before, answer),
        );
        let mut row = json!({
            "id": id,
            "language": language,
            "messages": [
                {"role": "system", "content": system.trim()},
                {"role": "user", "content": user.trim()},
                {"role": "assistant", "content": said},
            ],
            "meta": {
                "question": question,
                "oracle": answer.map(|(_, numbers, _)| numbers),
                "passages": passages.iter().map(|p| p.chunk_id.as_str()).collect::<Vec<_>>(),
            },
        });
        if !facts.is_empty() {
            row["meta"]["facts"] = json!(facts);
        }
        if let Some((answer, _, before)) = answer {
            row["meta"]["rejected"] = json!(quote::with(before, &rambling(language, answer)));
        }
        Ok(row)
    }

    fn dialogue(
        &self,
        (id, language): (&str, Language),
        messages: &[Said],
        leaflets: &[Leaflet],
        random: &mut ChaCha8Rng,
    ) -> Result<Json, GroundError> {
        let mut messages = messages.to_vec();
        if !leaflets.is_empty() {
            let day = day(random);
            let passages: Vec<Passage> = leaflets
                .iter()
                .zip(1..)
                .map(|(leaflet, n)| Passage {
                    n,
                    title: leaflet.title.clone(),
                    section: leaflet.section.clone(),
                    text: leaflet.text.clone(),
                    language,
                    ..Passage::default()
                })
                .collect();
            let newest = messages.iter().rev().find(|said| said.role == "user");
            let newest = newest.map_or("", |said| said.content.as_str());
            let system = self.wording.grounded(language, &passages, newest, day)?;
            // The server adds its reminder to the newest question; each turn of a dialogue was the newest once, but only the last one is
            // when the conversation is read as a whole.
            if let Some(last) = messages.iter_mut().rev().find(|said| said.role == "user") {
                last.content = self.wording.question(language, &last.content, day)?.trim().to_owned();
            }
            messages.insert(0, Said { role: "system".into(), content: system.trim().to_owned() });
        }
        Ok(json!({"id": id, "language": language, "messages": messages}))
    }
}

/// Rows without those in which nothing answers that are beyond their share of a part; the ones with the lowest hashes stay.
fn trimmed(rows: Vec<Row>, share: f64) -> Vec<Row> {
    if share >= 1.0 {
        return rows;
    }
    let declines = |row: &Row| row.example["meta"].is_object() && row.example["meta"]["oracle"].is_null();
    let hash =
        |row: &Row| crate::model::digest([b"declined".as_slice(), row.example["id"].to_string().as_bytes()]);
    let mut bounds: BTreeMap<Split, [u8; 32]> = BTreeMap::new();
    for split in [Split::Train, Split::Valid] {
        let own = || rows.iter().filter(move |row| row.split == split);
        let mut hashes: Vec<[u8; 32]> = own().filter(|row| declines(row)).map(hash).collect();
        hashes.sort_unstable();
        let answered = own().filter(|row| !declines(row)).count();
        let most = (answered as f64 * share / (1.0 - share)).round();
        if let Some(first) = hashes.get(most.min(1e9) as usize) {
            bounds.insert(split, *first);
        }
    }
    let stays = |row: &Row| !declines(row) || bounds.get(&row.split).is_none_or(|bound| hash(row) < *bound);
    rows.into_iter().filter(stays).collect()
}

/// A day for a prompt to name.
fn day(random: &mut ChaCha8Rng) -> Date {
    DAY.checked_sub(random.random_range(0..DAYS).days()).unwrap_or(DAY)
}

/// An answer with `[k]` replaced by the number of the k-th oracle's passage.
fn renumbered(answer: &str, numbers: &[usize]) -> Result<String, String> {
    let mut to = String::with_capacity(answer.len());
    let (mut rest, mut found) = (answer, false);
    while let Some(open) = rest.find('[') {
        let close = rest[open..].find(']').map(|c| open + c);
        let k = close.and_then(|close| rest[open + 1..close].parse::<usize>().ok());
        let (Some(close), Some(k)) = (close, k) else {
            return Err("the answer has a bracket that is no citation".into());
        };
        let number = k.checked_sub(1).and_then(|at| numbers.get(at));
        let number = number.ok_or_else(|| format!("the answer cites [{k}] of {} oracles", numbers.len()))?;
        to.push_str(&rest[..open]);
        to.push_str(&format!("[{number}]"));
        rest = &rest[close + 1..];
        found = true;
    }
    to.push_str(rest);
    if found { Ok(to) } else { Err("the answer cites nothing; end its sentences with [1]".into()) }
}

/// Writes the parts' files into a folder; returns how many rows each has.
///
/// # Errors
/// When the disk refuses.
pub fn write(folder: &Path, rows: &[Row]) -> Result<Vec<(PathBuf, usize)>, GroundError> {
    let mut written = Vec::new();
    for split in Split::ALL {
        let path = folder.join(format!("{}.jsonl", split.as_str()));
        let own: Vec<String> =
            rows.iter().filter(|row| row.split == split).map(|row| format!("{}\n", row.example)).collect();
        std::fs::write(&path, own.concat())
            .map_err(|source| GroundError::Read { path: path.clone(), source })?;
        written.push((path, own.len()));
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_decline_keep_to_their_share() {
        let row = |split, n: usize, oracle: Json| Row {
            split,
            example: json!({ "id": format!("a{n}"), "meta": { "oracle": oracle } }),
        };
        let mut rows: Vec<Row> = (0..90).map(|n| row(Split::Train, n, json!([1]))).collect();
        rows.extend((90..130).map(|n| row(Split::Train, n, Json::Null)));
        rows.extend((130..170).map(|n| row(Split::Test, n, Json::Null)));
        rows.push(Row { split: Split::Train, example: json!({ "id": "dialogue" }) });
        let count = |share: f64, split: Split| {
            trimmed(rows.clone(), share).iter().filter(|row| row.split == split).count()
        };
        assert_eq!(count(0.1, Split::Train), 91 + 10);
        assert_eq!(count(0.0, Split::Train), 91);
        assert_eq!(count(1.0, Split::Train), 131);
        assert_eq!(count(0.0, Split::Test), 40);
        let unanswered: Vec<Row> = (0..5).map(|n| row(Split::Train, n, Json::Null)).collect();
        assert_eq!(trimmed(unanswered, 1.0).len(), 5, "no share is no bound, also where nothing is answered");
    }

    #[test]
    fn citations_follow_their_passages() {
        assert_eq!(
            renumbered("Give 5 mg [1]. Then rest [2].", &[4, 2]),
            Ok("Give 5 mg [4]. Then rest [2].".into())
        );
        assert!(renumbered("Give 5 mg.", &[1]).is_err());
        assert!(renumbered("Give 5 mg [2].", &[1]).is_err());
        assert!(renumbered("Give [five] mg [1].", &[1]).is_err());
    }
}
