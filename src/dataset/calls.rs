//! Calls of tools and their answers: what must hold for a platform to take them.
//!
//! As OpenAI has it, <https://platform.openai.com/docs/guides/function-calling>: a call has an id, a function and arguments that are a JSON
//! object written as text; each is answered, by a tool's turn with its id, before anybody else speaks. As of 2026.

use serde_json::Value as Json;

/// Codes of what is found here.
pub(super) const CODES: [&str; 5] =
    ["calls-empty", "call-form", "call-arguments", "call-unknown", "call-unanswered"];

/// What is wrong, in which turn: its number, the code, what it is and the mend.
pub(super) fn problems(turns: &[Json]) -> Vec<(usize, &'static str, String)> {
    let mut found = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for (n, turn) in turns.iter().enumerate() {
        if turn["role"] == "tool" {
            let answered = match turn["tool_call_id"].as_str() {
                Some(id) => open.iter().position(|own| *own == id).ok_or_else(|| {
                    let id = shown(id);
                    format!(
                        "no call that waits for an answer has the id `{id}`; write the id of one before it"
                    )
                }),
                None => Err("no `tool_call_id`, so that nobody knows which call this answers; \
                    `shishin dataset import` numbers calls and answers"
                    .to_owned()),
            };
            match answered {
                Ok(at) => {
                    open.remove(at);
                }
                Err(message) => {
                    found.push((n, "call-unknown", message));
                    // It was meant for one of them.
                    open.truncate(open.len().saturating_sub(1));
                }
            }
            continue;
        }
        for id in open.drain(..) {
            let id = shown(id);
            let message =
                format!("the call `{id}` has no answer before this turn; put the tool's turn in between");
            found.push((n, "call-unanswered", message));
        }
        let list = match turn.get("tool_calls") {
            None | Some(Json::Null) => continue,
            Some(Json::Array(list)) => list,
            Some(_) => {
                found.push((n, "call-form", "`tool_calls` is no list".to_owned()));
                continue;
            }
        };
        if list.is_empty() {
            found.push((n, "calls-empty", "`tool_calls` is an empty list; leave it out".to_owned()));
        }
        for call in list {
            match call["id"].as_str().filter(|id| !id.is_empty()) {
                Some(id) => open.push(id),
                None => {
                    let message = "a call has no `id`; `shishin dataset import` numbers calls and answers";
                    found.push((n, "call-form", message.to_owned()));
                }
            }
            let Some(name) = call["function"]["name"].as_str() else {
                found.push((n, "call-form", "a call names no function".to_owned()));
                continue;
            };
            let arguments = call["function"]["arguments"].as_str();
            let arguments = arguments.and_then(|text| serde_json::from_str::<Json>(text).ok());
            if !arguments.is_some_and(|arguments| arguments.is_object()) {
                let name = shown(name);
                let message = format!(
                    "the arguments of the call of `{name}` are no JSON object written as text, such as \"{{}}\""
                );
                found.push((n, "call-arguments", message));
            }
        }
    }
    // A dialogue may end with a call: that is what is learnt then.
    found
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn codes(turns: &Json) -> Vec<(usize, &'static str)> {
        problems(turns.as_array().unwrap()).into_iter().map(|(n, code, _)| (n, code)).collect()
    }

    fn call(id: &str, arguments: &Json) -> Json {
        json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": arguments } })
    }

    #[test]
    fn calls_that_are_answered_are_fine() {
        let both = json!([call("1", &json!("{}")), call("2", &json!("{\"x\": 1}"))]);
        let turns = json!([
            { "role": "user", "content": "q" },
            { "role": "assistant", "tool_calls": both },
            { "role": "tool", "tool_call_id": "2", "content": "t" },
            { "role": "tool", "tool_call_id": "1", "content": "t" },
            { "role": "assistant", "content": "a", "tool_calls": null },
            { "role": "user", "content": "q" },
            { "role": "assistant", "tool_calls": [call("3", &json!("{}"))] },
        ]);
        assert_eq!(codes(&turns), []);
    }

    #[test]
    fn each_fault_is_found_in_its_turn() {
        let ask = |calls: Json, tool: Json| {
            json!([
                { "role": "user", "content": "q" },
                { "role": "assistant", "tool_calls": calls },
                tool,
                { "role": "assistant", "content": "a" },
            ])
        };
        let answer = json!({ "role": "tool", "tool_call_id": "1", "content": "t" });
        let good = || json!([call("1", &json!("{}"))]);
        for (turns, want) in [
            (ask(json!([]), answer.clone()), &[(1, "calls-empty"), (2, "call-unknown")][..]),
            (ask(json!("f"), answer.clone()), &[(1, "call-form"), (2, "call-unknown")]),
            (ask(good(), json!({ "role": "tool", "content": "t" })), &[(2, "call-unknown")]),
            (
                ask(good(), json!({ "role": "tool", "tool_call_id": "9", "content": "t" })),
                &[(2, "call-unknown")],
            ),
            (ask(good(), json!({ "role": "user", "content": "r" })), &[(2, "call-unanswered")]),
            (
                ask(json!([call("1", &json!("{}")), call("2", &json!("{}"))]), answer.clone()),
                &[(3, "call-unanswered")],
            ),
            (ask(json!([call("1", &json!({}))]), answer.clone()), &[(1, "call-arguments")]),
            (ask(json!([call("1", &json!("[1]"))]), answer.clone()), &[(1, "call-arguments")]),
            (ask(json!([call("1", &json!(""))]), answer.clone()), &[(1, "call-arguments")]),
            (
                ask(json!([{ "function": { "name": "f", "arguments": "{}" } }]), answer.clone()),
                &[(1, "call-form"), (2, "call-unknown")],
            ),
            (ask(json!([{ "id": "1" }]), answer.clone()), &[(1, "call-form")]),
        ] {
            assert_eq!(codes(&turns), want, "{turns}");
        }
    }
}
