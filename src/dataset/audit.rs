//! Looks at what a dataset teaches besides its wording: facts that belong in a guideline, lopsided shares, and answers that differ where
//! only the sex or the age in the question does.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use regex::Regex;

use super::read::Message;
use crate::analysis::figures::{Figure, among, figures};
use crate::analysis::normalise::fold_text;
use crate::language::Language;

/// Something about a dataset as a whole, or about one example of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The example, by its place in the list; `None` for all together.
    pub example: Option<usize>,
    /// Another example that it is about.
    pub other: Option<usize>,
    /// What kind.
    pub code: &'static str,
    /// What it is and the mend.
    pub message: String,
}

/// Fewer examples than this have no shares worth a word.
const MANY: usize = 20;
/// A language or a sex with less than this share is outweighed.
const LITTLE: f64 = 0.1;
/// One answer for more than this share of the questions is what will be said to all of them.
const MUCH: f64 = 0.4;
/// Answers whose longest tenth is so many times the median teach two lengths.
const FAR: usize = 8;

/// Figures that an answer brings along: they stand neither in what was said before nor in what is `known`. For each turn that is learnt,
/// its number and those figures as they are written.
#[must_use]
pub fn facts(messages: &[Message], known: Option<&[Figure]>) -> Vec<(usize, Vec<String>)> {
    let mut given: Vec<Figure> = Vec::new();
    let mut found = Vec::new();
    for (n, message) in messages.iter().enumerate() {
        let own = figures(&message.content);
        if message.role == "assistant" && message.trained {
            let new: Vec<String> = own
                .iter()
                .filter(|figure| is_fact(figure))
                .filter(|figure| !among(&given, figure) && !known.is_some_and(|known| among(known, figure)))
                .map(|figure| format!("{} {}", figure.value, figure.unit).trim_end().to_owned())
                .collect();
            if !new.is_empty() {
                found.push((n, new));
            }
        }
        given.extend(own);
    }
    found
}

/// Doses, limits, times; and a year, which has no unit. Bare numbers count things.
fn is_fact(figure: &Figure) -> bool {
    let year = figure.value.fract() == 0.0 && (1900.0..2100.0).contains(&figure.value);
    !figure.unit.is_empty() || year
}

/// What the question and the last answer of an example are.
fn ends(messages: &[Message]) -> (String, &str) {
    let asked = messages.iter().filter(|m| m.role == "user").map(|m| m.content.as_str());
    let answered = messages.iter().rfind(|m| m.role == "assistant").map_or("", |m| m.content.as_str());
    (asked.collect::<Vec<_>>().join("\n"), answered)
}

/// Shares that a model would learn along.
#[must_use]
pub fn balance(examples: &[&[Message]]) -> Vec<Remark> {
    if examples.len() < MANY {
        return Vec::new();
    }
    let all = |code, message| Remark { example: None, other: None, code, message };
    let mut remarks = Vec::new();
    let ends: Vec<(String, &str)> = examples.iter().map(|messages| ends(messages)).collect();
    let japanese = ends.iter().filter(|(asked, _)| Language::detect(asked) == Language::Ja).count();
    let share = |part: usize, of: usize| part as f64 / of as f64;
    for (count, name) in [(japanese, "Japanese"), (ends.len() - japanese, "English")] {
        if count > 0 && share(count, ends.len()) < LITTLE {
            let message = format!(
                "{count} of {} examples are in {name}: too few to hold it; write more, or train without them",
                ends.len()
            );
            remarks.push(all("language-imbalance", message));
        }
    }
    let mut answers: HashMap<String, usize> = HashMap::new();
    for (_, answered) in &ends {
        *answers.entry(without_citations(answered)).or_default() += 1;
    }
    let most = answers.iter().max_by_key(|(answer, count)| (**count, *answer));
    if let Some((answer, count)) = most.filter(|(_, count)| share(**count, ends.len()) > MUCH) {
        let shown: String = answer.chars().take(40).collect();
        let message = format!(
            "{count} of {} answers are “{shown}”: it will be given to other questions too; write fewer of them",
            ends.len()
        );
        remarks.push(all("class-imbalance", message));
    }
    let mut lengths: Vec<usize> = ends.iter().map(|(_, answered)| answered.chars().count()).collect();
    lengths.sort_unstable();
    let (middle, long) = (lengths[lengths.len() / 2], lengths[lengths.len() * 9 / 10]);
    if long > FAR * middle.max(1) {
        let message = format!(
            "half of the answers have at most {middle} characters, a tenth has {long} and more: say in the question what length is wanted"
        );
        remarks.push(all("length-imbalance", message));
    }
    let (women, men) = ends.iter().fold((0, 0), |(women, men), (asked, _)| {
        let (w, m) = sexes(asked);
        (women + usize::from(w && !m), men + usize::from(m && !w))
    });
    let named = women + men;
    if named >= MANY && share(women.min(men), named) < 2.0 * LITTLE {
        let message = format!("{women} questions are about women and {men} about men: vary who asks");
        remarks.push(all("sex-imbalance", message));
    }
    remarks
}

fn without_citations(text: &str) -> String {
    fold_text(&crate::analysis::citations::without(text)).trim().to_owned()
}

/// Words for women and girls, and for men and boys, of which each stands for the other.
const SEXES: [(&str, &str); 14] = [
    ("woman", "man"),
    ("women", "men"),
    ("female", "male"),
    ("girl", "boy"),
    ("wife", "husband"),
    ("mother", "father"),
    ("daughter", "son"),
    ("she", "he"),
    ("her", "his|him"),
    ("女性", "男性"),
    ("女児", "男児"),
    ("妻", "夫"),
    ("母", "父"),
    ("娘", "息子"),
];

struct Sexes {
    women: Regex,
    men: Regex,
    age: Regex,
}

static WORDS: LazyLock<Sexes> = LazyLock::new(|| {
    let of = |side: fn(&(&'static str, &'static str)) -> &'static str| {
        let (latin, other): (Vec<&str>, Vec<&str>) = SEXES.iter().map(side).partition(|word| word.is_ascii());
        let pattern = format!(r"\b(?:{})s?\b|{}", latin.join("|"), other.join("|"));
        Regex::new(&pattern).unwrap_or_else(|e| unreachable!("{e}"))
    };
    let age = Regex::new(
        r"\b\d{1,3}[- ]?(?:years?[- ]old|year-old|yo\b|months?[- ]old)|\d{1,3}\s?(?:歳|か月|ヶ月|カ月)",
    )
    .unwrap_or_else(|e| unreachable!("{e}"));
    Sexes { women: of(|pair| pair.0), men: of(|pair| pair.1), age }
});

/// Whether a text names women, and men.
fn sexes(text: &str) -> (bool, bool) {
    let text = fold_text(text);
    (WORDS.women.is_match(&text), WORDS.men.is_match(&text))
}

/// Questions that are alike but for the sex, or for the age, and are answered differently. Each may be right; somebody should have looked.
#[must_use]
pub fn swaps(examples: &[&[Message]]) -> Vec<Remark> {
    let sexless = |text: &str| {
        let text = WORDS.women.replace_all(text, "\u{1}").into_owned();
        WORDS.men.replace_all(&text, "\u{1}").into_owned()
    };
    let ageless = |text: &str| WORDS.age.replace_all(text, "\u{2}").into_owned();
    let mut remarks = Vec::new();
    for (code, what) in [("bias-sex", "sex"), ("bias-age", "age")] {
        let plain = |text: &str| if what == "sex" { sexless(text) } else { ageless(text) };
        let mut seen: BTreeMap<String, (usize, String, String)> = BTreeMap::new();
        for (n, messages) in examples.iter().enumerate() {
            let (asked, answered) = ends(messages);
            let asked = fold_text(&asked);
            let own = plain(&asked);
            // Without a word that can be swapped there is nothing to compare.
            if own == asked {
                continue;
            }
            let answer = plain(&without_citations(answered));
            match seen.get(&own) {
                None => {
                    seen.insert(own, (n, asked, answer));
                }
                Some((first, other, said)) if *other != asked && *said != answer => {
                    let message = format!(
                        "asks, but for the {what}, and is answered differently: make sure that this is meant"
                    );
                    remarks.push(Remark { example: Some(n), other: Some(*first), code, message });
                }
                Some(_) => {}
            }
        }
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        let message = |(role, content): &(&str, &str)| Message {
            role: (*role).into(),
            content: (*content).into(),
            trained: true,
            ..Message::default()
        };
        turns.iter().map(message).collect()
    }

    fn pair(asked: &str, answered: &str) -> Vec<Message> {
        messages(&[("user", asked), ("assistant", answered)])
    }

    fn codes(remarks: &[Remark]) -> Vec<&'static str> {
        remarks.iter().map(|remark| remark.code).collect()
    }

    #[test]
    fn facts_that_nobody_gave_are_found() {
        let new = |turns: &[(&str, &str)], known: Option<&str>| -> Vec<String> {
            let known = known.map(figures);
            facts(&messages(turns), known.as_deref()).into_iter().flat_map(|(_, new)| new).collect()
        };
        let asked = ("user", "What dose for a 70-year-old?");
        assert_eq!(
            new(&[asked, ("assistant", "Take 5 mg for 3 days, since 2021.")], None),
            ["5 mg", "3 d", "2021"]
        );
        assert_eq!(new(&[asked, ("assistant", "At 70 years: 5 mg.")], Some("give ５mg")), [] as [&str; 0]);
        assert_eq!(
            new(&[("system", "5 mg"), asked, ("assistant", "Take 5 mg [1], in 2 steps.")], None),
            [] as [&str; 0]
        );
    }

    #[test]
    fn lopsided_shares_are_found_and_even_ones_are_not() {
        let word = |n: usize| format!("{n:0>3}");
        let even: Vec<Vec<Message>> = (0..40)
            .map(|n| match n % 4 {
                0 => pair(&format!("A woman asks {}", word(n)), &format!("answer {}", word(n))),
                1 => pair(&format!("A man asks {}", word(n)), &format!("answer {}", word(n))),
                2 => pair(&format!("女性の質問{n}です"), &format!("答え{n}です")),
                _ => pair(&format!("男性の質問{n}です"), &format!("答え{n}です")),
            })
            .collect();
        let refs =
            |list: &[Vec<Message>]| codes(&balance(&list.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        assert_eq!(refs(&even), [] as [&str; 0]);
        let mut men: Vec<Vec<Message>> =
            (0..38).map(|n| pair(&format!("A man asks {}", word(n)), "No, see a doctor.")).collect();
        men.push(pair("女性の質問です", &"長い答え".repeat(60)));
        men.push(pair("Another man", "b"));
        assert_eq!(refs(&men), ["language-imbalance", "class-imbalance", "sex-imbalance"]);
        let long: Vec<Vec<Message>> = (0..40)
            .map(|n| pair(&format!("q{n}"), &format!("{n} ").repeat(if n % 5 == 0 { 60 } else { 2 })))
            .collect();
        assert_eq!(refs(&long), ["length-imbalance"]);
    }

    #[test]
    fn answers_that_change_with_the_sex_or_age_alone_are_found() {
        let list = [
            pair("A 40-year-old woman has chest pain. What now?", "She should rest."),
            pair("A 40-year-old man has chest pain. What now?", "He should call for help."),
            pair("A 70-year-old woman has chest pain. What now?", "She should call for help."),
            pair("40歳の女性です。熱があります。", "休んでください。"),
            pair("40歳の男性です。熱があります。", "休んでください。"),
            pair("The dose?", "None."),
        ];
        let list: Vec<&[Message]> = list.iter().map(Vec::as_slice).collect();
        let found: Vec<_> = swaps(&list).into_iter().map(|r| (r.example, r.code)).collect();
        assert_eq!(found, [(Some(1), "bias-sex"), (Some(2), "bias-age")]);
    }
}
