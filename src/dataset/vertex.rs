//! The form of Gemini's supervised tuning on Vertex AI, both ways: `systemInstruction`, `contents` of `user` and `model`, and `tools`
//! (<https://cloud.google.com/vertex-ai/generative-ai/docs/models/gemini-supervised-tuning-prepare> and, for calls,
//! <https://cloud.google.com/vertex-ai/generative-ai/docs/models/tune-function-calling>). As of 2026.

use serde_json::{Map, Value as Json, json};

use super::forms::{role, said};

/// Keywords of a schema of Vertex's that hold no schemas themselves.
const KEYWORDS: [&str; 18] = [
    "title",
    "description",
    "nullable",
    "default",
    "example",
    "format",
    "pattern",
    "required",
    "propertyOrdering",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "additionalProperties",
];
/// Its types; JSON Schema writes them in small letters.
const TYPES: [&str; 6] = ["STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT"];

/// The turns of a dialogue, as ours are written.
type Turns = Vec<Map<String, Json>>;

/// A call that was made: its id, the function's name, and what the tool answered.
struct Made {
    id: Json,
    name: String,
    answer: Option<Json>,
}

/// A sound example of ours as a line of Vertex's.
pub(super) fn export(example: &Map<String, Json>) -> Result<String, String> {
    let mut to = Map::new();
    let mut contents: Vec<Json> = Vec::new();
    let mut open: Vec<Made> = Vec::new();
    for turn in example["messages"].as_array().into_iter().flatten().filter_map(Json::as_object) {
        let text = text(turn.get("content").unwrap_or(&Json::Null));
        if turn["role"] == "tool" {
            answer(turn, &text, &mut open)?;
            continue;
        }
        contents.extend(answered(&mut open)?);
        match turn["role"].as_str().unwrap_or_default() {
            "system" | "developer" => {
                let parts = json!([{ "text": text }]);
                to.insert("systemInstruction".to_owned(), json!({ "role": "system", "parts": parts }));
            }
            "assistant" => {
                let mut parts: Vec<Json> = Vec::new();
                if !text.is_empty() {
                    parts.push(json!({ "text": text }));
                }
                for (id, function) in calls(turn) {
                    let (name, part) = call(function)?;
                    open.push(Made { id, name, answer: None });
                    parts.push(part);
                }
                if parts.is_empty() {
                    return Err("an assistant's turn says nothing and calls nothing".into());
                }
                contents.push(json!({ "role": "model", "parts": parts }));
            }
            _ => contents.push(json!({ "role": "user", "parts": [{ "text": text }] })),
        }
    }
    // A dialogue may end with a call: that is what is learnt then.
    if open.iter().any(|made| made.answer.is_some()) {
        contents.extend(answered(&mut open)?);
    }
    if contents.first().is_some_and(|first| first["role"] != "user") {
        return Err("Vertex takes no dialogue that the model begins; put a question first".into());
    }
    to.insert("contents".to_owned(), Json::Array(contents));
    let tools = example.get("tools").or_else(|| example.get("functions")).and_then(Json::as_array);
    let declarations = tools.into_iter().flatten().map(declaration).collect::<Result<Vec<_>, _>>()?;
    if !declarations.is_empty() {
        to.insert("tools".to_owned(), json!([{ "functionDeclarations": declarations }]));
    }
    Ok(Json::Object(to).to_string())
}

/// The text of a content that is one, or a list of typed parts.
pub(super) fn text(content: &Json) -> String {
    match content {
        Json::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

/// The calls of a turn: their ids, and the functions.
fn calls(turn: &Map<String, Json>) -> Vec<(Json, &Json)> {
    let list = turn.get("tool_calls").and_then(Json::as_array).into_iter().flatten();
    let mut calls: Vec<(Json, &Json)> = list.map(|call| (call["id"].clone(), &call["function"])).collect();
    calls.extend(turn.get("function_call").filter(|call| !call.is_null()).map(|call| (Json::Null, call)));
    calls
}

/// The name of a called function, and the call as a part.
fn call(function: &Json) -> Result<(String, Json), String> {
    let name = function["name"].as_str().ok_or("a call of a tool has no `name`")?;
    let arguments = match &function["arguments"] {
        Json::String(text) if text.trim().is_empty() => json!({}),
        Json::String(text) => serde_json::from_str(text)
            .map_err(|e| format!("the arguments of a call of `{name}` are not valid JSON: {e}"))?,
        Json::Null => json!({}),
        other => other.clone(),
    };
    if !arguments.is_object() {
        return Err(format!(
            "the arguments of a call of `{name}` are no object, and Vertex takes nothing else"
        ));
    }
    Ok((name.to_owned(), json!({ "functionCall": { "name": name, "args": arguments } })))
}

/// Puts a tool's answer to the call that it names, or to the oldest that waits.
fn answer(turn: &Map<String, Json>, text: &str, open: &mut [Made]) -> Result<(), String> {
    let named = turn.get("tool_call_id").filter(|id| !id.is_null());
    let waits = |made: &&mut Made| made.answer.is_none() && named.is_none_or(|id| made.id == *id);
    let made = open
        .iter_mut()
        .find(waits)
        .ok_or("a tool answers a call that nobody made, or that has its answer")?;
    made.answer = Some(response(text));
    Ok(())
}

/// The answers to the calls of a turn as one turn, in the order of the calls: nothing but the order tells two calls of one function apart.
fn answered(open: &mut Vec<Made>) -> Result<Option<Json>, String> {
    let mut parts = Vec::new();
    for made in open.drain(..) {
        let unanswered =
            || format!("a call of `{}` has no answer, and Vertex wants as many answers as calls", made.name);
        let response = made.answer.as_ref().ok_or_else(unanswered)?;
        parts.push(json!({ "functionResponse": { "name": made.name, "response": response } }));
    }
    Ok((!parts.is_empty()).then(|| json!({ "role": "user", "parts": parts })))
}

/// What a tool said, as the object that Vertex wants: an object as it is, anything else under the key that it knows.
fn response(text: &str) -> Json {
    match serde_json::from_str(text) {
        Ok(Json::Object(object)) if said_in(&object).is_none() => Json::Object(object),
        _ => json!({ "output": text }),
    }
}

/// The text that is all there is of a response.
fn said_in(response: &Map<String, Json>) -> Option<&str> {
    let only = response.get("output").or_else(|| response.get("result")).filter(|_| response.len() == 1);
    only.and_then(Json::as_str)
}

/// A tool, or a function alone, as Vertex declares it.
fn declaration(tool: &Json) -> Result<Json, String> {
    let function = tool.get("function").unwrap_or(tool);
    let name = function["name"].as_str().ok_or("a tool has no `name`")?;
    let mut to = Map::from_iter([("name".to_owned(), json!(name))]);
    if let Some(description) = function.get("description") {
        to.insert("description".to_owned(), description.clone());
    }
    // A function that takes nothing has no parameters there.
    let parameters =
        function.get("parameters").filter(|p| p.get("properties").is_some_and(|p| *p != json!({})));
    if let Some(parameters) = parameters {
        to.insert(
            "parameters".to_owned(),
            schema(parameters).map_err(|e| format!("the tool `{name}`: {e}"))?,
        );
    }
    Ok(Json::Object(to))
}

/// A JSON Schema as the part of OpenAPI's that Vertex knows.
fn schema(from: &Json) -> Result<Json, String> {
    let from = from.as_object().ok_or("a schema is no object")?;
    let mut to = Map::new();
    for (key, value) in from {
        let value = match key.as_str() {
            "type" => {
                let (own, nullable) = kind(value)?;
                if nullable {
                    to.insert("nullable".to_owned(), json!(true));
                }
                own
            }
            "items" => schema(value)?,
            "properties" => {
                let properties = value.as_object().ok_or("`properties` is no object")?;
                let each = properties.iter().map(|(name, value)| Ok((name.clone(), schema(value)?)));
                Json::Object(each.collect::<Result<_, String>>()?)
            }
            "anyOf" => {
                let list = value.as_array().ok_or("`anyOf` is no list")?;
                Json::Array(list.iter().map(schema).collect::<Result<_, _>>()?)
            }
            "additionalProperties" if value.is_object() => schema(value)?,
            "enum" => {
                let list = value.as_array().ok_or("`enum` is no list")?;
                let words: Vec<&Json> = list.iter().filter(|one| !one.is_null()).collect();
                if !words.iter().all(|one| one.is_string()) {
                    return Err(
                        "Vertex takes an `enum` of texts only; say in the description what may be given"
                            .into(),
                    );
                }
                json!(words)
            }
            // Only names the dialect.
            "$schema" => continue,
            known if KEYWORDS.contains(&known) => value.clone(),
            other => return Err(format!("Vertex knows no `{other}` in a schema; write it without")),
        };
        to.insert(key.clone(), value);
    }
    Ok(Json::Object(to))
}

/// A type, or a list of one and `null`, and whether it may be null.
fn kind(value: &Json) -> Result<(Json, bool), String> {
    let names: Vec<&str> = match value {
        Json::Array(list) => list.iter().filter_map(Json::as_str).collect(),
        other => other.as_str().into_iter().collect(),
    };
    let (null, own): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| name.eq_ignore_ascii_case("null"));
    let known = own.iter().find_map(|name| TYPES.into_iter().find(|known| known.eq_ignore_ascii_case(name)));
    match known {
        Some(known) if own.len() == 1 => Ok((json!(known), !null.is_empty())),
        _ => Err(format!("Vertex knows no type {value}; it takes one of {}", TYPES.join(", "))),
    }
}

/// The turns of a record of Vertex's, and its tools.
pub(super) fn import(record: &Map<String, Json>) -> Result<(Turns, Vec<Json>), String> {
    let (mut turns, mut open, mut made) = (Turns::new(), Vec::new(), 0);
    if let Some(system) = record.get("systemInstruction").or_else(|| record.get("system_instruction")) {
        turns.extend(content("system", system, &mut open, &mut made)?);
    }
    for one in record["contents"].as_array().ok_or("`contents` is no list")? {
        let name = one["role"].as_str().unwrap_or("user");
        let own = role(name).ok_or_else(|| format!("unknown role `{name}`"))?;
        turns.extend(content(own, one, &mut open, &mut made)?);
    }
    let mut tools = Vec::new();
    for tool in record.get("tools").and_then(Json::as_array).into_iter().flatten() {
        let declared = tool.get("functionDeclarations").or_else(|| tool.get("function_declarations"));
        let declared = declared.and_then(Json::as_array);
        for function in
            declared.ok_or("a tool has no `functionDeclarations`; only functions can be learnt")?
        {
            let mut function = function.clone();
            if let Some(parameters) = function.get_mut("parameters") {
                to_json_schema(parameters);
            }
            tools.push(json!({ "type": "function", "function": function }));
        }
    }
    Ok((turns, tools))
}

/// A content as turns: what is said and called is one, each answer of a function is one. `open` are calls that wait for their answers,
/// id and name; `made` counts all.
fn content(
    role: &str,
    content: &Json,
    open: &mut Vec<(String, String)>,
    made: &mut usize,
) -> Result<Turns, String> {
    let (mut text, mut calls, mut turns) = (String::new(), Vec::new(), Turns::new());
    for part in content["parts"].as_array().ok_or("a content has no `parts`")? {
        let member = |name: &str, other: &str| part.get(name).or_else(|| part.get(other));
        let named = |what: &Json| what["name"].as_str().map(str::to_owned).ok_or("a function has no `name`");
        if let Some(said) = part["text"].as_str() {
            text.push_str(said);
        } else if let Some(call) = member("functionCall", "function_call") {
            let name = named(call)?;
            let arguments = call.get("args").cloned().unwrap_or_else(|| json!({})).to_string();
            *made += 1;
            let id = call["id"].as_str().map_or_else(|| format!("call_{made}"), str::to_owned);
            calls.push(
                json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }),
            );
            open.push((id, name));
        } else if let Some(answer) = member("functionResponse", "function_response") {
            let (name, id) = (named(answer)?, answer["id"].as_str());
            let at = open.iter().position(|(own, called)| id.map_or(*called == name, |id| id == own));
            let (id, _) = open.remove(at.ok_or_else(|| format!("`{name}` answers without a call"))?);
            let response = answer.get("response").unwrap_or(&Json::Null);
            let alone = response.as_object().and_then(said_in).map(str::to_owned);
            let mut turn = said("tool", &alone.unwrap_or_else(|| response.to_string()));
            turn.insert("tool_call_id".to_owned(), json!(id));
            turns.push(turn);
        } else {
            return Err("a part has no `text`; only text and calls of functions can be learnt".into());
        }
    }
    if !text.is_empty() || !calls.is_empty() || turns.is_empty() {
        let mut turn = said(role, &text);
        if !calls.is_empty() {
            turn.insert("tool_calls".to_owned(), Json::Array(calls));
        }
        turns.push(turn);
    }
    Ok(turns)
}

/// Writes types as JSON Schema does.
fn to_json_schema(schema: &mut Json) {
    match schema {
        Json::Object(object) => {
            let nullable = object.get("nullable") == Some(&json!(true))
                && object.get("type").is_some_and(Json::is_string);
            if nullable {
                object.remove("nullable");
            }
            if let Some(Json::String(name)) = object.get("type") {
                let name = name.to_ascii_lowercase();
                object.insert("type".to_owned(), if nullable { json!([name, "null"]) } else { json!(name) });
            }
            object.values_mut().for_each(to_json_schema);
        }
        Json::Array(list) => list.iter_mut().for_each(to_json_schema),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ours() -> Map<String, Json> {
        let example = json!({
            "messages": [
                { "role": "system", "content": "s" },
                { "role": "user", "content": "q" },
                { "role": "assistant", "content": "Let me look.", "tool_calls": [
                    { "id": "1", "type": "function", "function": { "name": "dose", "arguments": "{\"drug\":\"x\"}" } },
                    { "id": "2", "type": "function", "function": { "name": "today", "arguments": "" } },
                ] },
                { "role": "tool", "tool_call_id": "2", "content": "2026-11-01" },
                { "role": "tool", "tool_call_id": "1", "content": "{\"mg\":5}" },
                { "role": "assistant", "content": "a" },
            ],
            "tools": [
                { "type": "function", "function": { "name": "dose", "description": "d", "strict": true, "parameters": {
                    "type": "object",
                    "properties": { "drug": { "type": ["string", "null"] }, "ages": { "type": "array", "items": { "type": "integer" } } },
                    "required": ["drug"], "additionalProperties": false,
                } } },
                { "type": "function", "function": { "name": "today", "parameters": { "type": "object", "properties": {} } } },
            ],
        });
        example.as_object().unwrap().clone()
    }

    #[test]
    fn calls_become_parts_and_their_answers_one_turn() {
        let line: Json = serde_json::from_str(&export(&ours()).unwrap()).unwrap();
        assert_eq!(
            line["contents"],
            json!([
                { "role": "user", "parts": [{ "text": "q" }] },
                { "role": "model", "parts": [
                    { "text": "Let me look." },
                    { "functionCall": { "name": "dose", "args": { "drug": "x" } } },
                    { "functionCall": { "name": "today", "args": {} } },
                ] },
                { "role": "user", "parts": [
                    { "functionResponse": { "name": "dose", "response": { "mg": 5 } } },
                    { "functionResponse": { "name": "today", "response": { "output": "2026-11-01" } } },
                ] },
                { "role": "model", "parts": [{ "text": "a" }] },
            ])
        );
        assert_eq!(
            line["tools"],
            json!([{ "functionDeclarations": [
                { "name": "dose", "description": "d", "parameters": {
                    "type": "OBJECT",
                    "properties": {
                        "drug": { "type": "STRING", "nullable": true },
                        "ages": { "type": "ARRAY", "items": { "type": "INTEGER" } },
                    },
                    "required": ["drug"], "additionalProperties": false,
                } },
                { "name": "today" },
            ] }])
        );
    }

    #[test]
    fn what_vertex_cannot_take_is_named() {
        let change = |from: &str, to: &str| {
            let text = Json::Object(ours()).to_string();
            assert!(text.contains(from), "{from}");
            export(serde_json::from_str::<Json>(&text.replace(from, to)).unwrap().as_object().unwrap())
                .unwrap_err()
        };
        for (from, to, named) in [
            (r#""tool_call_id":"2""#, r#""tool_call_id":"9""#, "nobody made"),
            (r#"{\"drug\":\"x\"}"#, r"[1]", "are no object"),
            (r#"{\"drug\":\"x\"}"#, r"{", "not valid JSON"),
            (r#""type":"integer""#, r#""type":"integer","multipleOf":2"#, "`multipleOf`"),
            (r#""type":"integer""#, r#""type":"integer","enum":[1,2]"#, "`enum` of texts"),
            (r#""tool_call_id":"2""#, r#""tool_call_id":"1""#, "has its answer"),
            (r#"["string","null"]"#, r#"["string","number"]"#, "knows no type"),
        ] {
            assert!(change(from, to).contains(named), "{from} {to}: {}", change(from, to));
        }
    }

    proptest! {
        /// Whatever is said and called comes back as it was, each answer at its call, though two calls are of one function.
        #[test]
        fn what_is_exported_comes_back(
            said in prop::collection::vec(
                ("[a-zé水 ]{1,9}", prop::collection::vec("[ab]", 0..4), "[a-z水{}\" ]{1,9}"), 1..4,
            ),
        ) {
            let mut messages = Vec::new();
            let mut made = 0;
            for (asked, called, answered) in &said {
                messages.push(json!({ "role": "user", "content": asked }));
                let (mut calls, mut answers) = (Vec::new(), Vec::new());
                for name in called {
                    made += 1;
                    let (id, arguments) = (format!("call_{made}"), json!({ "n": made }).to_string());
                    calls.push(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }));
                    let said = if made % 2 == 0 { format!("{answered}{made}") } else { json!({ "output": made.to_string() }).to_string() };
                    answers.push(json!({ "role": "tool", "content": said, "tool_call_id": id }));
                }
                if !calls.is_empty() {
                    messages.push(json!({ "role": "assistant", "content": "", "tool_calls": calls }));
                    // Tools may answer in another order; in ours, that of the calls comes back.
                    messages.extend(answers);
                }
                messages.push(json!({ "role": "assistant", "content": answered }));
            }
            let reversed: Vec<Json> = messages
                .chunk_by(|a, b| a["role"] == "tool" && b["role"] == "tool")
                .flat_map(|run| run.iter().rev().cloned())
                .collect();
            for order in [&messages, &reversed] {
                let example = json!({ "messages": order });
                let line: Json = serde_json::from_str(&export(example.as_object().unwrap()).unwrap()).unwrap();
                let (turns, tools) = import(line.as_object().unwrap()).unwrap();
                prop_assert!(tools.is_empty());
                let turns: Vec<Json> = turns.into_iter().map(Json::Object).collect();
                prop_assert_eq!(&turns, &messages);
            }
        }
    }

    #[test]
    fn tools_come_back_as_they_were_declared() {
        let line: Json = serde_json::from_str(&export(&ours()).unwrap()).unwrap();
        let (_, tools) = import(line.as_object().unwrap()).unwrap();
        let (dose, own) = (&tools[0]["function"]["parameters"], ours());
        assert_eq!(dose, &own["tools"][0]["function"]["parameters"]);
        assert_eq!(tools[1], json!({ "type": "function", "function": { "name": "today" } }));
    }

    #[test]
    fn a_call_without_its_answer_is_refused() {
        let mut example = ours();
        example["messages"].as_array_mut().unwrap().remove(3);
        assert!(export(&example).unwrap_err().contains("`today` has no answer"));
    }

    #[test]
    fn a_dialogue_may_end_with_a_call() {
        let mut example = ours();
        example["messages"].as_array_mut().unwrap().truncate(3);
        let line: Json = serde_json::from_str(&export(&example).unwrap()).unwrap();
        assert_eq!(line["contents"].as_array().unwrap().len(), 2);
    }
}
