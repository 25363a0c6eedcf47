//! Which sentence answers, by what it says and where it stands: conditions that the question's figures meet, figures of the kind that is
//! asked for, shared words. Beside the cosine of vectors, which knows what a text is about and not which of two rows it is about.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;

use crate::analysis::conditions::{conditions, stated};
use crate::analysis::fields::{is_english_word, stem_all};
use crate::analysis::figures::{Figure, figures, named_units};
use crate::analysis::normalise::fold_text;
use crate::analysis::{Script, terms};

/// What a question says that a sentence can be held against.
#[derive(Debug, Clone)]
pub struct Bearing {
    figures: Vec<Figure>,
    /// Units that an answer would have.
    asked: Vec<&'static str>,
    words: HashSet<String>,
}

/// Where a sentence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether its passage begins with it.
    pub begins: bool,
    /// Whether its passage is the first.
    pub first: bool,
}

/// What tells sentences that answer from others.
const FEATURES: usize = 6;

/// What each counts, in powers of e: near a log-linear fit, beside the cosine, to the quotes of all rows of the data of `clinic`, those held
/// out among them. ARCHITECTURE.md says what was set by hand.
const WEIGHTS: [f32; FEATURES] = [2.9, 1.9, 0.65, 3.0, -0.5, 0.4];

const TIME: &[&str] = &["s", "min", "h", "d", "wk", "mo", "y"];
const AMOUNT: &[&str] = &["mg", "μg", "g", "ml", "l", "iu", "units", "doses"];

impl Bearing {
    /// Of a question.
    #[must_use]
    pub fn of(question: &str) -> Self {
        Self { figures: stated(question), asked: asked(question), words: words(question) }
    }

    /// How much likelier a sentence answers than another of which nothing is known, as the logarithm of a factor.
    #[must_use]
    pub fn on(&self, sentence: &str, standing: Standing) -> f32 {
        self.features(sentence, standing).iter().zip(WEIGHTS).map(|(feature, weight)| feature * weight).sum()
    }

    fn features(&self, sentence: &str, standing: Standing) -> [f32; FEATURES] {
        let flag = |holds: bool| f32::from(u8::from(holds));
        let met = |unit: bool| {
            let of = conditions(sentence).into_iter().filter(|condition| condition.unit.is_empty() != unit);
            of.filter_map(|condition| condition.met_by(&self.figures)).any(|met| met)
        };
        let own = figures(sentence);
        let has = own.iter().any(|figure| self.asked.contains(&figure.unit.as_str()));
        let words = words(sentence);
        let shared = words.intersection(&self.words).count() as f32 / words.len().max(1) as f32;
        // What is asked for must be there, if anything is.
        let asked = if self.asked.is_empty() { 0.0 } else { 2.0 * flag(has) - 1.0 };
        [flag(met(true)), flag(met(false)), asked, shared, flag(standing.begins), flag(standing.first)]
    }
}

/// Units that an answer to a question would have: those of the kind that is asked for, and those that it names without a figure.
fn asked(question: &str) -> Vec<&'static str> {
    static KINDS: LazyLock<[(Regex, &[&str]); 2]> = LazyLock::new(|| {
        let pattern = |text: &str| Regex::new(text).unwrap_or_else(|e| unreachable!("{e}"));
        [
            (
                pattern(
                    r"\bhow (long|soon|often|quickly|fast|frequently|late|early)\b|\bfor how\b|\bby when\b|\bwhen\b|\binterval\b|\bwhat age\b|\bhow old\b|いつ(?:[^もくいた]|$)|期間|間隔|頻度|(ごと|おき)(に|です|か|で|の)|どの(くらい|ぐらい)の?間|どれ(くらい|ぐらい)の?間|何(時間|日|分|秒|週|か月|年|歳)",
                ),
                TIME,
            ),
            (
                pattern(
                    r"\bhow much\b|\bdose\b|\bdosage\b|\bstrength\b|\bvolume\b|\bhow many (mg|ml|micro|milli|units|g\b|grams)|用量|投与量|量は|どれだけ|何(mg|ml|g|μg|単位|ミリ|グラム|マイクロ)",
                ),
                AMOUNT,
            ),
        ]
    });
    let folded = fold_text(question);
    let kinds = KINDS.iter().filter(|(pattern, _)| pattern.is_match(&folded));
    kinds.flat_map(|(_, units)| units.iter().copied()).chain(named_units(question)).collect()
}

/// The words of a text that say something, English ones without their endings, and the pairs of Japanese characters.
fn words(text: &str) -> HashSet<String> {
    let terms = terms(text);
    let english = terms.iter().filter(|term| is_english_word(term)).map(|term| term.text.as_str());
    let mut words: HashSet<String> = stem_all(english).into_iter().collect();
    let others = terms.iter().filter(|term| matches!(term.script, Script::Number | Script::CjkTwo));
    words.extend(others.map(|term| term.text.clone()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Standing = Standing { begins: false, first: true };

    /// Whether the first of the sentences bears most on the question.
    fn best(question: &str, sentences: &[&str]) -> bool {
        let bearing = Bearing::of(question);
        let found: Vec<f32> = sentences.iter().map(|sentence| bearing.on(sentence, WITHIN)).collect();
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
    fn of_two_alike_the_one_that_begins_its_passage_bears_less() {
        let bearing = Bearing::of("Who?");
        let (text, first) = ("The nurse.", true);
        let begins = bearing.on(text, Standing { begins: true, first });
        assert!(begins < bearing.on(text, WITHIN));
        assert!(bearing.on(text, Standing { begins: false, first: false }) < bearing.on(text, WITHIN));
        assert!(bearing.on("", WITHIN).is_finite());
    }
}
