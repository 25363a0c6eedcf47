//! The counts: how often each arm did what was asked, and by how much two arms differ on the same questions.

use serde::{Deserialize, Serialize};

use super::Arm;
use super::judge::Judgement;
use super::log::{Log, Reply, Shown};
use super::suite::{Kind, Suite, SuiteQuestion};
use crate::engine::FinishReason;
use crate::evaluate::rates::{Difference, Rate};
use crate::language::Language;

/// Decides the resamples of every difference.
const SEED: u64 = 1;

/// Something that holds of an answer or does not.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// What gates and JSON call it.
    pub id: &'static str,
    /// What it says.
    pub title: &'static str,
    /// Of which questions or answers, and what is counted.
    pub counted: &'static str,
    /// Whether less is better.
    pub lower: bool,
    /// `None` where it does not apply.
    of: fn(&SuiteQuestion, &Judgement) -> Option<bool>,
}

/// All metrics, in the order of reports.
pub const METRICS: [Metric; 16] = [
    metric(
        "joint",
        "all that was asked for",
        "All questions. A fact: right, cited and in style; of patients: in style; of what nothing answers: declined.",
        |q, j| Some(j.joint(q.kind)),
    ),
    metric(
        "joint-facts",
        "right, cited and in style",
        "Questions for a fact; arms without passages have nothing to cite.",
        |q, j| asks_fact(q).then(|| j.joint(q.kind)),
    ),
    metric("fact", "right", "Questions for a fact: the answer holds all that was asked for.", |_, j| j.right),
    metric(
        "fact-changed",
        "right where editions differ",
        "Questions for a fact that another edition gives otherwise.",
        |q, j| j.right.filter(|_| q.kind == Kind::Changed),
    ),
    less(metric(
        "other-edition",
        "says what the other edition says",
        "The same questions: not right, and holds what the edition says that is not in effect on the day.",
        |_, j| j.older,
    )),
    metric(
        "shown",
        "what answers stands in the prompt",
        "Questions that passages answer, of arms that are given passages: what the search did.",
        |_, j| j.shown,
    ),
    metric(
        "quotes",
        "quotes the sentence that answers, where it quotes",
        "Answers to questions for a fact that begin with quotes.",
        |_, j| j.quoted,
    ),
    metric(
        "cites",
        "cites what answers",
        "Questions that passages answer: one of the passages cited does.",
        |_, j| j.cited,
    ),
    metric(
        "citation-precision",
        "cites nothing else",
        "Answers that cite: each passage cited answers.",
        |_, j| j.precise,
    ),
    metric("style", "in style", "Questions that can be answered; an answer that declines is not.", |q, j| {
        answerable(q).then(|| in_style(j))
    }),
    metric("style-behaviour", "in style with patients", "What patients and relatives say.", |q, j| {
        (q.kind == Kind::Behaviour).then(|| in_style(j))
    }),
    metric(
        "escalates",
        "sends for help at once where it must come",
        "What patients and relatives say in an emergency.",
        |q, j| j.escalates.filter(|_| q.urgent),
    ),
    less(metric(
        "alarms",
        "speaks of urgent help where there is no emergency",
        "What patients and relatives say otherwise, where the reference does not speak of it either.",
        |q, j| j.escalates.filter(|_| !q.urgent),
    )),
    metric("abstains", "declines what nothing answers", "Questions that nothing answers.", |q, j| {
        (!answerable(q)).then_some(j.abstained)
    }),
    metric("answers", "answers what can be answered", "All other questions.", |q, j| {
        answerable(q).then_some(!j.abstained)
    }),
    metric("abstention-precision", "declines nothing else", "Answers that decline.", |q, j| {
        j.abstained.then(|| !answerable(q))
    }),
];

const fn metric(
    id: &'static str,
    title: &'static str,
    counted: &'static str,
    of: fn(&SuiteQuestion, &Judgement) -> Option<bool>,
) -> Metric {
    Metric { id, title, counted, lower: false, of }
}

const fn less(metric: Metric) -> Metric {
    Metric { lower: true, ..metric }
}

fn asks_fact(question: &SuiteQuestion) -> bool {
    matches!(question.kind, Kind::Fact | Kind::Changed)
}

fn answerable(question: &SuiteQuestion) -> bool {
    question.kind != Kind::Unanswerable
}

/// Declining is no style.
fn in_style(judgement: &Judgement) -> bool {
    judgement.faults.is_empty() && !judgement.abstained
}

/// How often a metric held of an arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The metric's id.
    pub metric: String,
    /// The arm.
    pub arm: String,
    /// In which language; `None` for all.
    pub language: Option<Language>,
    /// How often.
    pub rate: Rate,
}

/// By how much one arm is above another, on the questions where the metric applies to both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contrast {
    /// The metric's id.
    pub metric: String,
    /// The arm.
    pub arm: String,
    /// The other.
    pub against: String,
    /// In which language; `None` for all.
    pub language: Option<Language>,
    /// How much, with its interval and p.
    #[serde(flatten)]
    pub difference: Difference,
}

/// What came of questions on which an arm that reads nothing remembers the other edition, in an arm that reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The arm that reads passages.
    pub arm: String,
    /// The arm that says what the other edition says.
    pub remembers: String,
    /// So many questions.
    pub of: usize,
    /// Those on which the one that reads is right: the passage wins.
    pub passage: usize,
    /// Those on which it says what is remembered.
    pub memory: usize,
}

/// How often a criterion of style was missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// The criterion.
    pub criterion: String,
    /// The arm.
    pub arm: String,
    /// How many answers missed it.
    pub answers: usize,
}

/// What an arm's answers took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// The arm.
    pub arm: String,
    /// Mean tokens of a prompt.
    pub prompt_tokens: f64,
    /// Mean tokens of an answer.
    pub answer_tokens: f64,
    /// Answers that the model was not asked for: the search found nothing.
    pub not_asked: usize,
    /// Answers that were cut off.
    pub cut_off: usize,
}

/// An answer with what it is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The arm.
    pub arm: String,
    /// What was answered.
    #[serde(flatten)]
    pub reply: Reply,
    /// What it is worth.
    pub judgement: Judgement,
    /// Whether it is all that was asked for.
    pub joint: bool,
}

/// A question with its answers side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The question.
    pub question: SuiteQuestion,
    /// What was found for it.
    pub passages: Vec<Shown>,
    /// In the order of the arms.
    pub answers: Vec<Judged>,
}

/// All that was found of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The questions with their answers.
    pub rows: Vec<Row>,
    /// How often each metric held.
    pub figures: Vec<Figure>,
    /// How the arms differ, each against each before it.
    pub contrasts: Vec<Contrast>,
    /// Where what is remembered and what is read are at odds: which of them wins.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// Which criteria of style were missed.
    pub missed: Vec<Missed>,
    /// What it took.
    pub effort: Vec<Effort>,
}

impl Outcome {
    /// Judges and counts what a log holds; questions that an arm has not answered are left out.
    #[must_use]
    pub fn of(suite: &Suite, arms: &[Arm], log: &Log) -> Self {
        let rows: Vec<Row> =
            suite.questions.iter().filter_map(|question| row(suite, question, arms, log)).collect();
        let mut languages: Vec<Option<Language>> = vec![None];
        let used: Vec<Language> = Language::ALL
            .into_iter()
            .filter(|l| rows.iter().any(|row| row.question.language == *l))
            .collect();
        if used.len() > 1 {
            languages.extend(used.into_iter().map(Some));
        }
        let (mut figures, mut contrasts) = (Vec::new(), Vec::new());
        for metric in &METRICS {
            for language in &languages {
                let rows: Vec<&Row> =
                    rows.iter().filter(|row| language.is_none_or(|l| row.question.language == l)).collect();
                let outcomes = |at: usize| -> Vec<Option<bool>> {
                    rows.iter().map(|row| (metric.of)(&row.question, &row.answers[at].judgement)).collect()
                };
                for (at, arm) in arms.iter().enumerate() {
                    let own = outcomes(at);
                    let counted: Vec<bool> = own.iter().flatten().copied().collect();
                    if counted.is_empty() {
                        continue;
                    }
                    figures.push(Figure {
                        metric: metric.id.to_owned(),
                        arm: arm.name.clone(),
                        language: *language,
                        rate: short_rate(Rate::of(&counted)),
                    });
                    for (before, against) in arms[..at].iter().enumerate() {
                        let other = outcomes(before);
                        let (first, second): (Vec<bool>, Vec<bool>) =
                            other.iter().zip(&own).filter_map(|(a, b)| Some(((*a)?, (*b)?))).unzip();
                        let Some(difference) = Difference::between(&first, &second, SEED) else { continue };
                        let difference = short_difference(difference);
                        contrasts.push(Contrast {
                            metric: metric.id.to_owned(),
                            arm: arm.name.clone(),
                            against: against.name.clone(),
                            language: *language,
                            difference,
                        });
                    }
                }
            }
        }
        let (missed, effort) = (missed(suite, arms, &rows), effort(arms, &rows));
        let conflicts = conflicts(arms, &rows);
        Self { rows, figures, contrasts, conflicts, missed, effort }
    }

    /// Where all questions are in one language, the figures over all are its own.
    fn counted(&self, language: Option<Language>) -> Option<Language> {
        language.filter(|language| self.rows.iter().any(|row| row.question.language != *language))
    }

    /// A figure over all languages, or of one.
    #[must_use]
    pub fn figure(&self, metric: &str, arm: &str, language: Option<Language>) -> Option<&Figure> {
        let language = self.counted(language);
        self.figures.iter().find(|f| f.metric == metric && f.arm == arm && f.language == language)
    }

    /// By how much an arm is above another, whichever stands first.
    #[must_use]
    pub fn contrast(
        &self,
        metric: &str,
        (arm, against): (&str, &str),
        language: Option<Language>,
    ) -> Option<Difference> {
        let language = self.counted(language);
        let find = |arm: &str, against: &str| {
            let mut all = self.contrasts.iter();
            all.find(|c| c.metric == metric && c.arm == arm && c.against == against && c.language == language)
        };
        let turned = |c: &Contrast| {
            let Difference { difference, interval: (low, high), p, won, lost, of } = c.difference;
            Difference { difference: -difference, interval: (-high, -low), p, won: lost, lost: won, of }
        };
        find(arm, against).map(|c| c.difference).or_else(|| find(against, arm).map(turned))
    }
}

/// Six decimals: what is written is then read again as the same number, by whatever reads JSON.
fn short(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn short_rate(rate: Rate) -> Rate {
    let (low, high) = rate.interval;
    Rate { rate: short(rate.rate), interval: (short(low), short(high)), ..rate }
}

fn short_difference(long: Difference) -> Difference {
    let (low, high) = long.interval;
    Difference {
        difference: short(long.difference),
        interval: (short(low), short(high)),
        p: short(long.p),
        ..long
    }
}

fn row(suite: &Suite, question: &SuiteQuestion, arms: &[Arm], log: &Log) -> Option<Row> {
    let answered = log.of(&question.id)?;
    let judged = |arm: &Arm| {
        let key = arm.key();
        let reply = answered.replies.iter().find(|reply| reply.key == key)?.clone();
        let read = reply.grounded && reply.finish != FinishReason::Abstained.as_str();
        let passages = if read { answered.passages.as_slice() } else { &[] };
        let judgement = Judgement::of(suite, question, passages, &reply);
        let joint = judgement.joint(question.kind);
        Some(Judged { arm: arm.name.clone(), reply, judgement, joint })
    };
    let answers = arms.iter().map(judged).collect::<Option<Vec<_>>>()?;
    Some(Row { question: question.clone(), passages: answered.passages.clone(), answers })
}

fn conflicts(arms: &[Arm], rows: &[Row]) -> Vec<Conflict> {
    let numbered = || arms.iter().enumerate();
    let mut all = Vec::new();
    for (before, remembers) in numbered().filter(|(_, arm)| !arm.mode.retrieves()) {
        let at_odds = |row: &&Row| row.answers[before].judgement.older == Some(true);
        for (at, arm) in numbered().filter(|(_, arm)| arm.mode.retrieves()) {
            let judged: Vec<&Judgement> =
                rows.iter().filter(at_odds).map(|row| &row.answers[at].judgement).collect();
            all.push(Conflict {
                arm: arm.name.clone(),
                remembers: remembers.name.clone(),
                of: judged.len(),
                passage: judged.iter().filter(|judgement| judgement.right == Some(true)).count(),
                memory: judged.iter().filter(|judgement| judgement.older == Some(true)).count(),
            });
        }
    }
    all.retain(|conflict| conflict.of > 0);
    all
}

fn missed(suite: &Suite, arms: &[Arm], rows: &[Row]) -> Vec<Missed> {
    let mut names: Vec<&str> = Vec::new();
    for criterion in suite.style.clinical.iter().chain(&suite.style.behaviour) {
        if !names.contains(&criterion.name.as_str()) {
            names.push(&criterion.name);
        }
    }
    let mut all = Vec::new();
    for name in names {
        for (at, arm) in arms.iter().enumerate() {
            let misses = |row: &&Row| {
                answerable(&row.question)
                    && row.answers[at].judgement.faults.iter().any(|fault| fault == name)
            };
            let answers = rows.iter().filter(misses).count();
            all.push(Missed { criterion: name.to_owned(), arm: arm.name.clone(), answers });
        }
    }
    all
}

fn effort(arms: &[Arm], rows: &[Row]) -> Vec<Effort> {
    let of = |(at, arm): (usize, &Arm)| {
        let replies: Vec<&Reply> = rows.iter().map(|row| &row.answers[at].reply).collect();
        let asked: Vec<&&Reply> = replies.iter().filter(|reply| reply.prompt_sha256.is_some()).collect();
        let mean = |of: &dyn Fn(&Reply) -> usize| {
            let sum: usize = asked.iter().map(|reply| of(reply)).sum();
            sum as f64 / asked.len().max(1) as f64
        };
        Effort {
            arm: arm.name.clone(),
            prompt_tokens: short(mean(&|reply| reply.prompt_tokens)),
            answer_tokens: short(mean(&|reply| reply.answer_tokens)),
            not_asked: replies.len() - asked.len(),
            cut_off: replies.iter().filter(|reply| reply.finish == "length").count(),
        }
    };
    arms.iter().enumerate().map(of).collect()
}
