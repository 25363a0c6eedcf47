//! What an answer is worth: right, from the right passage, in style, or rightly silent.

use serde::{Deserialize, Serialize};

use super::log::{Reply, Shown};
use super::suite::{Kind, Suite, SuiteQuestion};
use crate::analysis::citations::cited;
use crate::evaluate::criteria::{Check, Said};
use crate::evaluate::facts;
use crate::quote::Quote;

/// What is said of one answer. `None` where it does not apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// It holds all facts.
    pub right: Option<bool>,
    /// It says what the other edition says.
    pub older: Option<bool>,
    /// What answers is among the passages that it was given; where the arm is given passages and something answers.
    #[serde(default)]
    pub shown: Option<bool>,
    /// It speaks of urgent help; of what patients say, in an emergency or where a good answer does not speak of it.
    #[serde(default)]
    pub escalates: Option<bool>,
    /// It cites a passage that answers; where something answers, also of an arm that is given nothing to cite.
    pub cited: Option<bool>,
    /// What it quotes before it begins is what answers, a part of it, or holds it; where it quotes, and a fact is asked for.
    #[serde(default)]
    pub quoted: Option<bool>,
    /// It cites something, and nothing else than passages that answer; where it cites.
    pub precise: Option<bool>,
    /// It says that nothing answers.
    pub abstained: bool,
    /// The criteria of style that it misses.
    pub faults: Vec<String>,
}

impl Judgement {
    /// Judges an answer, and what it quotes, with the passages that it was given, in the order of their numbers.
    #[must_use]
    pub fn of(suite: &Suite, question: &SuiteQuestion, passages: &[Shown], reply: &Reply) -> Self {
        let answer = reply.answer.as_str();
        let oracle: Vec<usize> = passages.iter().filter(|p| answers(question, p)).map(|p| p.n).collect();
        let given: Vec<&str> =
            passages.iter().map(|p| p.text.as_str()).chain([question.question.as_str()]).collect();
        let given = given.join("\n");
        let said = Said {
            language: question.language,
            given: &given,
            reference: &question.reference,
            passages: passages.len(),
            oracle: Some(&oracle),
            facts: &question.facts,
            answer,
        };
        let numbers = cited(answer);
        let asks_facts = !question.facts.is_empty();
        let right = asks_facts.then(|| question.facts.iter().all(|fact| facts::states(answer, fact)));
        let older = (!question.older.is_empty()).then(|| {
            // An answer that holds the right one too has not been misled.
            right != Some(true) && question.older.iter().any(|fact| facts::states(answer, fact))
        });
        let answerable = question.kind != Kind::Unanswerable;
        let abstained = Check::Abstains { texts: suite.abstains.clone() };
        let abstained = abstained.holds(&Said { oracle: Some(&[]), ..said }) == Some(true);
        let urgent = suite.style.behaviour.iter().find_map(|criterion| match &criterion.check {
            Check::Escalates { texts } => Some(Check::ContainsAny { texts: texts.clone() }),
            _ => None,
        });
        let urgent = urgent.filter(|check| {
            let reference = Said { answer: &question.reference, ..said };
            question.kind == Kind::Behaviour && (question.urgent || check.holds(&reference) == Some(false))
        });
        let missed = suite.style.of(question.kind).iter().filter(|c| c.check.holds(&said) == Some(false));
        Self {
            right,
            older,
            shown: (reply.grounded && answerable && !question.oracle.is_empty())
                .then_some(!oracle.is_empty()),
            escalates: urgent.and_then(|check| check.holds(&said)),
            cited: (answerable && !question.oracle.is_empty())
                .then(|| numbers.iter().any(|n| oracle.contains(n))),
            quoted: quoted(question, &oracle, &reply.quotes),
            precise: (!numbers.is_empty()).then(|| numbers.iter().all(|n| oracle.contains(n))),
            abstained,
            faults: missed.map(|criterion| criterion.name.clone()).collect(),
        }
    }

    /// Whether the answer is all that its kind asks for: the fact, from its passage, in style; for behaviour the style alone; where
    /// nothing answers, that it says so.
    #[must_use]
    pub fn joint(&self, kind: Kind) -> bool {
        match kind {
            Kind::Fact | Kind::Changed => {
                self.right == Some(true) && self.cited == Some(true) && self.faults.is_empty()
            }
            Kind::Behaviour => self.faults.is_empty() && !self.abstained,
            Kind::Unanswerable => self.abstained,
        }
    }
}

/// Whether a passage answers: it is of the edition, and holds the quote.
fn answers(question: &SuiteQuestion, passage: &Shown) -> bool {
    question.oracle.iter().any(|oracle| {
        oracle.guideline == passage.guideline
            && oracle.edition == passage.edition
            // A leaflet's manner is all of it; a fact stands in one place.
            && (question.kind == Kind::Behaviour || squeezed(&passage.text).contains(&squeezed(&oracle.quote)))
    })
}

/// Whether one of the quotes of an answer is what answers, a part of it, or holds it; `oracle` are the passages that answer.
fn quoted(question: &SuiteQuestion, oracle: &[usize], quotes: &[Quote]) -> Option<bool> {
    if question.facts.is_empty() || question.oracle.is_empty() || quotes.is_empty() {
        return None;
    }
    let answers = |quote: &Quote| {
        let text = squeezed(&quote.text);
        let parts = question.oracle.iter().map(|oracle| squeezed(&oracle.quote));
        oracle.contains(&quote.n)
            && parts.into_iter().any(|part| part.contains(&text) || text.contains(&part))
    };
    Some(quotes.iter().any(answers))
}

/// White space apart: a passage may break lines elsewhere.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_answers_from_the_passage_that_does() {
        let question = |facts: &str| -> SuiteQuestion {
            serde_json::from_str(&format!(
                r#"{{"id":"1","language":"en","kind":"fact","question":"q","facts":{facts},"reference":"r",
                    "oracle":[{{"guideline":"g","edition":"2","quote":"Give\n5 mg"}}]}}"#
            ))
            .unwrap()
        };
        let asked = question(r#"["5 mg"]"#);
        let says = |quotes: &[(usize, &str)]| {
            let quotes: Vec<Quote> =
                quotes.iter().map(|(n, text)| Quote { n: *n, text: (*text).into() }).collect();
            quoted(&asked, &[2], &quotes)
        };
        assert_eq!(says(&[(1, "Wait."), (2, "Give 5 mg at once.")]), Some(true));
        assert_eq!(says(&[(2, "5 mg")]), Some(true));
        assert_eq!(says(&[(1, "Give 5 mg at once.")]), Some(false), "another passage");
        assert_eq!(says(&[(2, "Give 50 mg.")]), Some(false));
        assert_eq!(says(&[]), None);
        assert_eq!(quoted(&question("[]"), &[2], &[Quote { n: 2, text: "Wait.".into() }]), None);
    }
}
