//! What makes two examples the same: every turn of theirs, word for word; and what makes them nearly the same, so that the one tells what the
//! other should test: what they ask.

use std::collections::{HashMap, HashSet};

use super::read::{Example, Message};
use super::similar::{self, Pair};

/// A line of what users say that stands in so many examples is an instruction, and tells them apart no more than a system turn.
const SHARED: usize = 5;
/// Questions that share less than this of their runs differ, whatever else agrees.
const ASKS_THE_SAME: f64 = 0.5;

/// What only examples have in common that are equal: all turns, system turns and calls included, whether they are learnt, and the tools.
pub(super) fn digest(example: &Example) -> [u8; 32] {
    let turns = example.messages.iter().flat_map(|m| {
        let trained: &[u8] = if m.trained { b"1" } else { b"0" };
        [m.role.as_bytes(), m.content.as_bytes(), m.called.as_bytes(), trained]
    });
    crate::model::digest(turns.chain([example.tools.as_bytes()]))
}

/// What an example is told apart by.
pub(super) struct Asked {
    /// The question, where the example notes it; else all that is said, without instructions that many share.
    text: String,
    /// Of the latter, the runs of what users say.
    users: Option<HashSet<u64>>,
}

/// Whether a turn tells an example from another: system turns hold what many have, and passages, of which there may be many choices.
fn counts(message: &&Message) -> bool {
    message.role != "system" && message.role != "developer"
}

fn users(example: &Example) -> impl Iterator<Item = &Message> {
    example.messages.iter().filter(|m| m.role == "user")
}

/// What each of these is told apart by.
pub(super) fn asked(examples: &[&Example]) -> Vec<Asked> {
    let mut lines: HashMap<&str, usize> = HashMap::new();
    for example in examples.iter().filter(|example| example.question.is_none()) {
        let own: HashSet<&str> = users(example).flat_map(|m| m.content.lines()).map(str::trim).collect();
        for line in own {
            *lines.entry(line).or_default() += 1;
        }
    }
    let own = |content: &str| -> String {
        let rare = |line: &&str| lines.get(line.trim()).is_none_or(|count| *count < SHARED);
        let kept: Vec<&str> = content.lines().filter(|line| !line.trim().is_empty()).filter(rare).collect();
        // Where all of it is shared, all of it is the question.
        if kept.is_empty() { content.to_owned() } else { kept.join("\n") }
    };
    let one = |example: &&Example| {
        if let Some(question) = &example.question {
            return Asked { text: question.clone(), users: None };
        }
        let said = example.messages.iter().filter(counts).map(|m| match m.role.as_str() {
            "user" => own(&m.content),
            _ => m.content.clone(),
        });
        let text = said.collect::<Vec<String>>().join("\n");
        let users: Vec<String> = users(example).map(|m| own(&m.content)).collect();
        Asked { text, users: Some(similar::runs(&users.join("\n"))) }
    };
    examples.iter().map(one).collect()
}

/// The same as texts, to put examples into groups by.
#[must_use]
pub fn texts(examples: &[&Example]) -> Vec<String> {
    asked(examples).into_iter().map(|asked| asked.text).collect()
}

/// For each example that asks nearly the same as an earlier one, the pair with the one that it is nearest to, among those that fit.
pub(super) fn pairs(asked: &[Asked], fits: impl Fn(usize, usize) -> bool) -> Vec<Pair> {
    let texts: Vec<&str> = asked.iter().map(|one| one.text.as_str()).collect();
    // A short question does not weigh much beside a long answer that many share.
    let asks = |first: usize, second: usize| match (&asked[first].users, &asked[second].users) {
        (Some(one), Some(other)) => similar::share(one, other) >= ASKS_THE_SAME,
        _ => true,
    };
    similar::pairs_that(&texts, |first, second| fits(first, second) && asks(first, second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::read;

    const DECLINES: &str = "The passages do not answer this question, so I will not guess. Please check the original guideline or ask a specialist.";

    fn row(system: &str, question: &str, answer: &str, noted: bool) -> Example {
        let turn = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
        let user = format!(
            "{question}\n\nAnswer in one or two sentences, from the passages above and from nothing else, and say which passage holds it."
        );
        let mut line = serde_json::json!({ "messages": [turn("system", system), turn("user", &user), turn("assistant", answer)] });
        if noted {
            line["meta"] = serde_json::json!({ "question": question, "passages": [system] });
        }
        read::parse(&line.to_string()).0.unwrap()
    }

    fn found(rows: &[Example]) -> Vec<(usize, usize)> {
        let rows: Vec<&Example> = rows.iter().collect();
        pairs(&asked(&rows), |_, _| true).iter().map(|pair| (pair.first, pair.second)).collect()
    }

    #[test]
    fn equal_are_only_examples_that_say_the_same_in_every_turn() {
        let one = row("Passages of gout.", "Which dose?", "5 mg", true);
        assert_eq!(digest(&one), digest(&row("Passages of gout.", "Which dose?", "5 mg", false)));
        assert_ne!(digest(&one), digest(&row("Passages of asthma.", "Which dose?", "5 mg", true)));
        assert_ne!(digest(&one), digest(&row("Passages of gout.", "Which dose?", "5 Mg", true)));
        let calls = |name: &str| {
            let line = format!(
                r#"{{"messages":[{{"role":"user","content":"q"}},{{"role":"assistant","tool_calls":[{{"id":"1","function":{{"name":"{name}","arguments":"{{}}"}}}}]}}]}}"#
            );
            digest(&read::parse(&line).0.unwrap())
        };
        assert_eq!(calls("f"), calls("f"));
        assert_ne!(calls("f"), calls("g"));
    }

    #[test]
    fn a_shared_instruction_and_a_shared_answer_make_no_pair() {
        let questions = [
            "How long is the cast worn?",
            "May she swim with the tube?",
            "When is the pill taken?",
            "Who changes the dressing?",
            "What does the alarm mean?",
            "Where is the ward?",
        ];
        for noted in [true, false] {
            let mut rows: Vec<Example> =
                questions.iter().map(|question| row("Passages.", question, DECLINES, noted)).collect();
            assert_eq!(found(&rows), [], "{noted}");
            rows.push(row("Other passages.", "How long is the cast worn?", DECLINES, noted));
            assert_eq!(found(&rows), [(0, 6)], "{noted}");
        }
        // What is noted counts only where it is what is asked.
        let line = serde_json::json!({ "messages": [{ "role": "user", "content": "q" }, { "role": "assistant", "content": "a" }], "meta": { "question": "topic" } });
        assert_eq!(read::parse(&line.to_string()).0.unwrap().question, None);
    }
}
