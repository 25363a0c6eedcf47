//! Which sentence answers, by what it says and where it stands: conditions that the question's figures meet, figures of the kind that is
//! asked for, shared words. Beside the cosine of vectors, which knows what a text is about and not which of two rows it is about.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;

use crate::analysis::conditions::{conditions, stated};
use crate::analysis::fields::{is_english_word, stem_all};
use crate::analysis::figures::{Figure, figures, named_units};
use crate::analysis::normalise::fold_text;
use crate::analysis::{Script, terms};

/// What a question says that sentences can be held against.
#[derive(Debug, Clone)]
pub struct Bearing {
    figures: Vec<Figure>,
    /// Of each kind of figure that is asked for, the units that an answer would have.
    asked: Vec<Vec<&'static str>>,
    words: BTreeSet<String>,
}

/// A sentence, list item or row that may answer, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'s> {
    /// What it says.
    pub text: &'s str,
    /// The title and headings of its passage, the end of the line included.
    pub headings: &'s str,
    /// Whether it is the first of its passage that may be quoted.
    pub begins: bool,
    /// Whether its passage is the first.
    pub first: bool,
}

impl Candidate<'_> {
    /// What is embedded for it: its headings say what it is about.
    #[must_use]
    pub fn embedded(&self) -> String {
        format!("{}{}", self.headings, self.text)
    }
}

/// How many things tell sentences that answer from others.
pub const FEATURES: usize = 7;

/// What each counts, in powers of e, beside the cosine: a log-linear fit to the quotes that the `clinic` adapters learn from, which
/// `cargo bench --bench bearing` makes.
pub const WEIGHTS: [f32; FEATURES] = [3.05, 1.61, 0.73, 1.49, 0.32, -0.30, 0.29];

/// What the cosine of question and sentence counts beside them, in powers of e; they were fitted with it.
pub const NEARNESS: f32 = 60.0;

const TIME: &[&str] = &["s", "min", "h", "d", "wk", "mo", "y"];
const AMOUNT: &[&str] = &["mg", "μg", "g", "ml", "l", "iu", "units", "doses"];
const COUNT: &[&str] = &["times", "doses"];

impl Bearing {
    /// Of a question.
    #[must_use]
    pub fn of(question: &str) -> Self {
        Self { figures: stated(question), asked: asked(question), words: words(question) }
    }

    /// How much likelier each sentence of a prompt answers than another of which nothing is known, as the logarithm of a factor.
    #[must_use]
    pub fn on(&self, sentences: &[Candidate<'_>]) -> Vec<f32> {
        let weighed =
            |features: [f32; FEATURES]| features.iter().zip(WEIGHTS).map(|(f, weight)| f * weight).sum();
        self.features(sentences).into_iter().map(weighed).collect()
    }

    /// What of each sentence of a prompt tells whether it answers:
    ///
    /// 1. 1 where it has a condition with a unit that a figure of the question meets;
    /// 2. the same for one without a unit;
    /// 3. of the kinds of figures that are asked for the share that it has, from −1 to 1; 0 where none is asked for;
    /// 4. the share of its words that the question has;
    /// 5. how telling those are, but for those of headings: of each the logarithm of one more than the number of sentences, divided by how
    ///    many have it;
    /// 6. 1 where it is the first of its passage;
    /// 7. 1 where its passage is the first.
    #[must_use]
    pub fn features(&self, sentences: &[Candidate<'_>]) -> Vec<[f32; FEATURES]> {
        let of_each: Vec<BTreeSet<String>> = sentences.iter().map(|sentence| words(sentence.text)).collect();
        let mut holding: HashMap<&String, usize> = HashMap::new();
        of_each.iter().flatten().for_each(|word| *holding.entry(word).or_default() += 1);
        let headings: HashSet<&str> = sentences.iter().map(|sentence| sentence.headings).collect();
        let headings: HashSet<String> = headings.into_iter().flat_map(words).collect();
        let weight = |word: &String| ((sentences.len() + 1) as f32 / holding[word] as f32).ln();
        let each = sentences.iter().zip(&of_each).map(|(sentence, words)| {
            let shared: Vec<&String> = words.intersection(&self.words).collect();
            // In their order: sums in any other may differ by a bit.
            let telling = shared.iter().filter(|word| !headings.contains(**word)).map(|word| weight(word));
            self.of_one(sentence, shared.len() as f32 / words.len().max(1) as f32, telling.sum())
        });
        each.collect()
    }

    fn of_one(&self, sentence: &Candidate<'_>, shared: f32, telling: f32) -> [f32; FEATURES] {
        let flag = |holds: bool| f32::from(u8::from(holds));
        let text = sentence.text;
        let met = |unit: bool| {
            let of = conditions(text).into_iter().filter(|condition| condition.unit.is_empty() != unit);
            of.filter_map(|condition| condition.met_by(&self.figures)).any(|met| met)
        };
        let own = figures(text);
        let has = |units: &&Vec<&str>| own.iter().any(|figure| units.contains(&figure.unit.as_str()));
        let kinds = self.asked.len() as f32;
        let had = self.asked.iter().filter(has).count() as f32;
        // What is asked for must be there, if anything is.
        let asked = if self.asked.is_empty() { 0.0 } else { 2.0 * had / kinds - 1.0 };
        let (begins, first) = (flag(sentence.begins), flag(sentence.first));
        [flag(met(true)), flag(met(false)), asked, shared, telling, begins, first]
    }
}

/// The kinds of figures that an answer to a question would have: those that are asked for, else the units that it names without a figure.
fn asked(question: &str) -> Vec<Vec<&'static str>> {
    static KINDS: LazyLock<[(Regex, &[&str]); 3]> = LazyLock::new(|| {
        let pattern = |text: &str| Regex::new(text).unwrap_or_else(|e| unreachable!("{e}"));
        [
            (
                pattern(
                    r"\bhow (long|soon|often|quickly|fast|frequently|late|early)\b|\bfor how\b|\bby when\b|\bwhen\b|\bintervals?\b|\bgap between\b|\bhow many (seconds|minutes|hours|days|weeks|months|years)\b|\bwhat age\b|\bhow old\b|いつ(?:[^もくいた]|$)|期間|間隔|頻度|日数|(ごと|おき)(に|です|か|で|の)|どの(くらい|ぐらい)の?間|どれ(くらい|ぐらい)の?間|何(時間|日|分|秒|週|か月|年|歳)",
                ),
                TIME,
            ),
            (
                pattern(
                    r"\bhow much\b|\bdose\b|\bdosage\b|\bstrength\b|\bvolume\b|\bhow many (mg|ml|micro|milli|units|g\b|grams)|用量|投与量|量は|どれだけ|何(mg|ml|g|μg|単位|ミリ|グラム|マイクロ)",
                ),
                AMOUNT,
            ),
            (pattern(r"\bhow many (doses|times)\b|\b(in all|altogether) ?(\?|$)|何回|回数"), COUNT),
        ]
    });
    let folded = fold_text(question);
    let kinds = KINDS.iter().filter(|(pattern, _)| pattern.is_match(&folded));
    let asked: Vec<Vec<&str>> = kinds.map(|(_, units)| units.to_vec()).collect();
    // Beside a kind that is asked for, a unit without a figure is none of its own: "how many mg/kg", "nine weeks pregnant, what dose".
    if asked.is_empty() { named_units(question).into_iter().map(|unit| vec![unit]).collect() } else { asked }
}

/// The words of a text that say something, English ones without their endings, and the pairs of Japanese characters, but for those of
/// hiragana alone.
fn words(text: &str) -> BTreeSet<String> {
    let terms = terms(text);
    let english = terms.iter().filter(|term| is_english_word(term)).map(|term| term.text.as_str());
    let mut words: BTreeSet<String> = stem_all(english).into_iter().collect();
    let hiragana = |text: &str| text.chars().all(|c| matches!(c, '\u{3040}'..='\u{309f}'));
    let others = terms.iter().filter(|term| match term.script {
        Script::Number => true,
        // Most of these are endings and particles.
        Script::CjkTwo => !hiragana(&term.text),
        _ => false,
    });
    words.extend(others.map(|term| term.text.clone()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates<'s>(sentences: &[&'s str]) -> Vec<Candidate<'s>> {
        let one = |text: &&'s str| Candidate { text, headings: "Stones > Size", begins: false, first: true };
        sentences.iter().map(one).collect()
    }

    /// Whether the first of the sentences bears most on the question.
    fn best(question: &str, sentences: &[&str]) -> bool {
        let found = Bearing::of(question).on(&candidates(sentences));
        found[1..].iter().all(|other| found[0] > *other)
    }

    #[test]
    fn the_row_whose_condition_is_met_bears_most() {
        assert!(best(
            "An 11 mm stone in the lower ureter, what is booked?",
            &[
                "| 9–13 mm | shock waves |",
                "| 14 mm or more | scope within 5 days |",
                "| up to 8 mm | wait |"
            ],
        ));
        assert!(best(
            "スコアは８。寝具は？",
            &["| 6～10 | ウレタン |", "| 11～15 | エアマット |", "| 5以下 | 不要 |"]
        ));
        assert!(best(
            "He was sick 40 min after the dose. Again?",
            &["Within 25 to 70 minutes half is given again.", "Doses are kept for 3 months."],
        ));
    }

    #[test]
    fn figures_of_the_kind_that_is_asked_for_bear_on_the_question() {
        for (question, right, wrong) in [
            ("How long is it kept?", "It is kept for 3 days.", "It is kept at 5 mg."),
            ("What dose?", "Children get 5 mg.", "Children are weighed."),
            ("How many micrograms?", "Children get 5 μg.", "Children wait 5 minutes."),
            ("投与量は？", "小児では5 mgとする。", "小児では体重を量る。"),
            ("いつまで続けますか", "3日間続ける。", "5 mgを続ける。"),
        ] {
            assert!(best(question, &[right, wrong]), "{question}");
        }
        assert!(best("Is the drain flushed?", &["The drain is flushed.", "The bed is made."]));
        assert!(best("水は飲めますか", &["水は飲んでよい。", "食事は禁止。"]));
    }

    #[test]
    fn all_that_is_asked_for_bears_more_than_a_part() {
        let (both, one) = ("Give 5 mg every 6 hours.", "Give 5 mg by a slow drip.");
        assert!(best("What dose, and how often?", &[both, one]));
        assert!(best("何mgを何日間ですか", &["5 mgを7日間続ける。", "5 mgを点滴で入れる。"]));
    }

    #[test]
    fn words_count_by_how_few_have_them_and_not_those_of_the_headings() {
        assert!(best(
            "On dialysis: which contrast dose?",
            &[
                "| on dialysis | full dose |",
                "| eGFR 30 or more | full dose |",
                "| eGFR below 30 | half a dose |"
            ]
        ));
        let features = |text, headings| {
            let asked = Bearing::of("How are stones broken?");
            asked.features(&[Candidate { text, headings, begins: false, first: true }])[0][4]
        };
        assert!(features("Stones pass.", "Colic") > 0.0);
        assert_eq!(features("Stones pass.", "Stones"), 0.0);
    }

    #[test]
    fn of_two_alike_the_one_that_begins_its_passage_bears_less() {
        let bearing = Bearing::of("Who?");
        let on =
            |begins, first| bearing.on(&[Candidate { text: "The nurse.", headings: "", begins, first }])[0];
        assert!(on(true, true) < on(false, true));
        assert!(on(false, false) < on(false, true));
        assert!(bearing.on(&candidates(&[""]))[0].is_finite());
        assert!(bearing.on(&[]).is_empty());
    }
}
