//! Reads chat data in the forms of other programs and writes them as ours: `{"messages": [{"role", "content"}, …]}`.
//!
//! Known are, one object a line, all in one JSON list, or one object alone: messages with typed parts and loss weights (OpenAI, LLaMA-Factory's newer form),
//! ShareGPT (`conversations` of `from` and `value`), Alpaca (`instruction`, `input`, `output`, `system`, `history`), `prompt` with
//! `completion`, and Vertex (`systemInstruction`, `contents`, `tools`, with calls of functions). What has no place in our form is refused or, where it teaches nothing,
//! left out with a warning.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};

use super::read::{self, items};
use super::{Finding, Severity, vertex};
use crate::files::{lines, without_mark};

/// A file that is read whole is no larger than this.
const MAX_BYTES: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug, Default)]
pub struct Imported {
    /// The examples, in order.
    pub examples: Vec<Json>,
    /// What was refused, or left out.
    pub findings: Vec<Finding>,
}

/// Reads a file.
///
/// # Errors
/// When it cannot be read or is no UTF-8.
pub fn import(path: &Path) -> io::Result<Imported> {
    let name = path.display().to_string();
    if std::fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::other(format!("{name} is larger than {} MiB; split it", MAX_BYTES >> 20)));
    }
    let bytes = std::fs::read(path)?;
    let text = String::from_utf8(bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {}", e.utf8_error())))?;
    Ok(import_text(&name, without_mark(&text)))
}

fn import_text(name: &str, text: &str) -> Imported {
    let mut imported = Imported::default();
    // Lines of their own, unless the first one does not end what it begins.
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let alone = || serde_json::from_str::<&RawValue>(first).is_err().then(|| serde_json::from_str(text));
    let whole: Option<Result<&RawValue, _>> = match text.trim_start().starts_with('[') {
        true => Some(serde_json::from_str(text)),
        // What is neither is faulty lines.
        false => alone().filter(Result::is_ok),
    };
    let records: Vec<(usize, &str)> = match whole {
        Some(Ok(list)) => {
            // Counted on from the item before: a list may have a hundred thousand.
            let (mut line, mut counted) = (1, 0);
            let mut line = |item: &RawValue| {
                let at = item.get().as_ptr() as usize - text.as_ptr() as usize;
                line += text.as_bytes()[counted..at].iter().filter(|byte| **byte == b'\n').count();
                counted = at;
                line
            };
            items(list)
                .unwrap_or_else(|| vec![list])
                .into_iter()
                .map(|item| (line(item), item.get()))
                .collect()
        }
        Some(Err(error)) => {
            imported.findings.push(Finding {
                file: name.to_owned(),
                line: error.line(),
                column: error.column().max(1),
                code: "json",
                severity: Severity::Error,
                message: format!("not valid JSON: {error}; nothing of this file was read"),
            });
            return imported;
        }
        None => lines(text).collect(),
    };
    let mut unknown = BTreeSet::new();
    for (line, record) in records {
        let mut add = |code: &'static str, severity, message: String| {
            imported.findings.push(Finding {
                file: name.to_owned(),
                line,
                column: 1,
                code,
                severity,
                message,
            });
        };
        let value: Json = match serde_json::from_str(record) {
            Ok(value) => value,
            Err(error) => {
                let text = error.to_string();
                let reason = text.split(" at line ").next().unwrap_or_default();
                add("json", Severity::Error, format!("not valid JSON: {reason}"));
                continue;
            }
        };
        let mut left_out = Vec::new();
        let converted = convert(&value, &mut left_out);
        let keys = value.as_object().filter(|_| converted.is_ok()).into_iter().flat_map(Map::keys);
        match converted {
            Ok(example) => {
                let (_, faults) = read::parse(&example.to_string());
                let errors = faults.iter().filter(|fault| fault.severity == Severity::Error);
                let errors: Vec<&str> = errors.map(|fault| fault.message.as_str()).collect();
                if errors.is_empty() {
                    imported.examples.push(example);
                } else {
                    add("refused", Severity::Error, errors.join("; "));
                }
            }
            Err(reason) => add("refused", Severity::Error, reason),
        }
        for what in left_out {
            add("left-out", Severity::Warning, what);
        }
        for key in keys {
            // Once is enough: what one record has, most have.
            if !KNOWN.contains(&key.as_str()) && unknown.insert(key.clone()) {
                add(
                    "left-out",
                    Severity::Warning,
                    format!(
                        "`{key}`, here and in later records: nothing is learnt from it; put under `meta` it would stay"
                    ),
                );
            }
        }
    }
    imported
}

/// What is read of a record in one form or another.
const KNOWN: [&str; 21] = [
    "messages",
    "conversations",
    "conversation",
    "contents",
    "systemInstruction",
    "system_instruction",
    "system",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "tools",
    "functions",
    "label",
    "id",
    "language",
    "meta",
    "metadata",
    "parallel_tool_calls",
];

/// A record in our form.
fn convert(value: &Json, left_out: &mut Vec<String>) -> Result<Json, String> {
    let record = value.as_object().ok_or("not an object; a record is written in { }")?;
    let has = |key: &str| record.contains_key(key);
    if ["chosen", "rejected", "chosen_messages", "rejected_messages", "kto_tag"].iter().any(|key| has(key)) {
        return Err("a preference, not an example: shishin learns from answers, so keep the chosen one and write it as messages".into());
    }
    if record.get("label") == Some(&Json::Bool(false)) {
        return Err("its label says that this answer is a bad one; it must not be learnt".into());
    }
    if has("messages") {
        let list = record["messages"].as_array().ok_or("`messages` is no list")?;
        let turns = list.iter().map(|turn| message(turn, left_out)).collect::<Result<Vec<_>, _>>()?;
        return finish(told(turns, record, left_out)?, record);
    }
    if let Some(list) = record.get("conversations").or_else(|| record.get("conversation")) {
        let list = list.as_array().ok_or("`conversations` is no list")?;
        let turns = list.iter().map(|turn| message(turn, left_out)).collect::<Result<Vec<_>, _>>()?;
        return finish(told(turns, record, left_out)?, record);
    }
    if has("contents") {
        let (turns, tools) = vertex::import(record)?;
        let mut own = record.clone();
        own.insert("tools".to_owned(), Json::Array(tools));
        return finish(turns, &own);
    }
    if has("instruction") && has("output") {
        return finish(told(alpaca(record)?, record, left_out)?, record);
    }
    if has("prompt") && has("completion") {
        let mut turns = Vec::new();
        for (key, role) in [("prompt", "user"), ("completion", "assistant")] {
            match &record[key] {
                Json::String(text) => turns.push(said(role, text.trim())),
                Json::Array(list) => {
                    for turn in list {
                        turns.push(message(turn, left_out)?);
                    }
                }
                _ => return Err(format!("`{key}` is neither text nor a list of messages")),
            }
        }
        return finish(told(turns, record, left_out)?, record);
    }
    let keys: Vec<&str> = record.keys().map(String::as_str).take(8).collect();
    Err(format!("no known form has the keys {}; write {{\"messages\": [...]}}", keys.join(", ")))
}

pub(super) fn said(role: &str, content: &str) -> Map<String, Json> {
    Map::from_iter([("role".to_owned(), json!(role)), ("content".to_owned(), json!(content))])
}

/// Turns behind what stands in the record's own `system`: text, or typed parts of it.
fn told(
    mut turns: Vec<Map<String, Json>>,
    record: &Map<String, Json>,
    left_out: &mut Vec<String>,
) -> Result<Vec<Map<String, Json>>, String> {
    let text = match record.get("system") {
        None | Some(Json::Null) => return Ok(turns),
        Some(Json::String(text)) => text.clone(),
        Some(Json::Array(parts)) => parted(parts, &mut Vec::new(), left_out)?,
        Some(_) => return Err("`system` is neither text nor parts of it".into()),
    };
    match turns.first() {
        _ if text.trim().is_empty() => {}
        Some(first) if first["role"] == "system" || first["role"] == "developer" => {
            return Err(
                "a system prompt stands in `system` and in the first turn; keep one of the two".into()
            );
        }
        _ => turns.insert(0, said("system", &text)),
    }
    Ok(turns)
}

/// Our name of a role.
pub(super) fn role(name: &str) -> Option<&'static str> {
    Some(match name.trim().to_ascii_lowercase().as_str() {
        "system" => "system",
        "developer" => "developer",
        "user" | "human" => "user",
        "assistant" | "gpt" | "bot" | "model" | "chatgpt" | "function_call" => "assistant",
        "tool" | "function" | "observation" | "ipython" => "tool",
        _ => return None,
    })
}

/// A turn of `role` and `content`, or of `from` and `value`.
fn message(turn: &Json, left_out: &mut Vec<String>) -> Result<Map<String, Json>, String> {
    let turn = turn.as_object().ok_or("a turn is no object")?;
    let name = turn.get("role").or_else(|| turn.get("from")).and_then(Json::as_str);
    let name = name.ok_or("a turn has neither `role` nor `from`")?;
    let own = role(name).ok_or_else(|| format!("unknown role `{name}`"))?;
    let content = turn.get("content").or_else(|| turn.get("value")).unwrap_or(&Json::Null);
    let mut to = Map::from_iter([("role".to_owned(), json!(own))]);
    let mut calls: Vec<Json> = turn.get("tool_calls").and_then(Json::as_array).cloned().unwrap_or_default();
    // The older form of calls, beside what is said.
    if let Some(call) = turn.get("function_call").filter(|call| !call.is_null()) {
        calls.extend(called(&call.to_string())?);
    }
    let text = match content {
        Json::String(text) if name == "function_call" => {
            calls.extend(called(text)?);
            String::new()
        }
        Json::String(text) => text.clone(),
        Json::Array(parts) => parted(parts, &mut calls, left_out)?,
        Json::Null if !calls.is_empty() => String::new(),
        _ => return Err(format!("a turn of `{name}` has no text")),
    };
    to.insert("content".to_owned(), json!(text));
    if !calls.is_empty() {
        to.insert("tool_calls".to_owned(), Json::Array(calls));
    }
    for key in ["name", "tool_call_id"] {
        if let Some(value) = turn.get(key).filter(|value| !value.is_null()) {
            to.insert(key.to_owned(), value.clone());
        }
    }
    let weight = turn.get("weight").or_else(|| turn.get("loss_weight")).filter(|value| !value.is_null());
    match weight.map(Json::as_f64) {
        Some(Some(0.0)) if own == "assistant" => {
            to.insert("weight".to_owned(), json!(0));
        }
        None | Some(Some(0.0 | 1.0)) => {}
        Some(_) => return Err(format!("the weight {} is neither 0 nor 1", weight.unwrap_or(&Json::Null))),
    }
    Ok(to)
}

/// The text of typed parts; calls among them go to the others.
fn parted(parts: &[Json], calls: &mut Vec<Json>, left_out: &mut Vec<String>) -> Result<String, String> {
    let mut text = String::new();
    for part in parts {
        let kind = part["type"].as_str().ok_or("a part of `content` has no `type`")?;
        let value = part.get("text").or_else(|| part.get("value")).and_then(Json::as_str);
        match (kind, value) {
            ("text", Some(value)) => text.push_str(value),
            ("tool_call", Some(value)) => calls.extend(called(value)?),
            ("tool_result", Some(value)) => text.push_str(value),
            ("reasoning" | "thinking", _) => {
                left_out.push(format!("a part of the type `{kind}`: only what is said is learnt"));
            }
            _ => return Err(format!("a part of `content` has the type `{kind}`; only text can be learnt")),
        }
    }
    Ok(text)
}

/// A call, or a list of them, that is written as JSON in a text.
fn called(text: &str) -> Result<Vec<Json>, String> {
    let value: Json =
        serde_json::from_str(text).map_err(|e| format!("a call of a tool is not valid JSON: {e}"))?;
    let list = if let Json::Array(list) = value { list } else { vec![value] };
    let one = |call: &Json| {
        let name = call["name"].as_str().ok_or("a call of a tool has no `name`")?;
        let arguments = match call.get("arguments").unwrap_or(&Json::Null) {
            Json::String(text) => text.clone(),
            Json::Null => "{}".to_owned(),
            other => other.to_string(),
        };
        Ok(json!({ "type": "function", "function": { "name": name, "arguments": arguments } }))
    };
    list.iter().map(one).collect()
}

fn alpaca(record: &Map<String, Json>) -> Result<Vec<Map<String, Json>>, String> {
    let text = |key: &str| match record.get(key) {
        None | Some(Json::Null) => Ok(""),
        Some(Json::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("`{key}` is no text")),
    };
    let mut turns = Vec::new();
    if let Some(history) = record.get("history").and_then(Json::as_array) {
        for round in history {
            let (asked, answered) = (round[0].as_str(), round[1].as_str());
            let (Some(asked), Some(answered)) = (asked, answered) else {
                return Err("`history` is no list of [question, answer]".into());
            };
            turns.extend([said("user", asked), said("assistant", answered)]);
        }
    }
    let (instruction, input) = (text("instruction")?, text("input")?);
    let question = match (instruction.trim(), input.trim()) {
        (instruction, "") => instruction.to_owned(),
        ("", input) => input.to_owned(),
        (instruction, input) => format!("{instruction}\n{input}"),
    };
    turns.extend([said("user", &question), said("assistant", text("output")?)]);
    Ok(turns)
}

/// Puts an example together: calls get ids, and what tools answer names the call.
fn finish(mut turns: Vec<Map<String, Json>>, record: &Map<String, Json>) -> Result<Json, String> {
    let (mut made, mut open) = (0, std::collections::VecDeque::new());
    for turn in &mut turns {
        for call in turn.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
            if call["id"].as_str().is_none() {
                made += 1;
                call["id"] = json!(format!("call_{made}"));
            }
            open.push_back(call["id"].clone());
        }
        if turn["role"] == "tool" {
            let oldest = open.pop_front();
            if !turn.contains_key("tool_call_id") {
                turn.insert("tool_call_id".to_owned(), oldest.ok_or("a tool answers without a call")?);
            }
        }
    }
    let mut example =
        Map::from_iter([("messages".to_owned(), Json::Array(turns.into_iter().map(Json::Object).collect()))]);
    let tools = match record.get("tools").or_else(|| record.get("functions")) {
        None | Some(Json::Null) => None,
        Some(Json::String(text)) if text.trim().is_empty() => None,
        Some(Json::String(text)) => {
            Some(serde_json::from_str(text).map_err(|e| format!("`tools` is not valid JSON: {e}"))?)
        }
        Some(other) => Some(other.clone()),
    };
    if let Some(Json::Array(list)) = tools {
        let wrapped = list.into_iter().map(|tool| match tool.get("function") {
            Some(_) => tool,
            None => json!({ "type": "function", "function": tool }),
        });
        let wrapped: Vec<Json> = wrapped.collect();
        if !wrapped.is_empty() {
            example.insert("tools".to_owned(), Json::Array(wrapped));
        }
    }
    for key in ["id", "language", "meta", "metadata", "parallel_tool_calls"] {
        if let Some(value) = record.get(key) {
            example.insert(key.to_owned(), value.clone());
        }
    }
    Ok(Json::Object(example))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Roles and contents of the only example.
    fn turns(text: &str) -> Vec<(String, String)> {
        let imported = import_text("a", text);
        assert_eq!(imported.examples.len(), 1, "{:?}", imported.findings);
        let list = imported.examples[0]["messages"].as_array().unwrap().clone();
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        list.iter().map(|turn| (text(&turn["role"]), text(&turn["content"]))).collect()
    }

    fn pairs(turns: &[(String, String)]) -> Vec<(&str, &str)> {
        turns.iter().map(|(role, content)| (role.as_str(), content.as_str())).collect()
    }

    #[test]
    fn every_form_is_read() {
        let plain = [("user", "q"), ("assistant", "a")];
        for text in [
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
            r#"[{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}]"#,
            "{\"instruction\":\"q\",\n\"input\":\"\",\n\"output\":\"a\"}\n",
            r#"{"instruction":"q","input":"","output":"a"}"#,
            r#"{"prompt":"q","completion":" a"}"#,
            r#"{"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"a"}]}"#,
            r#"{"contents":[{"role":"user","parts":[{"text":"q"}]},{"role":"model","parts":[{"text":"a"}]}]}"#,
            r#"{"messages":[{"role":"user","content":[{"type":"text","value":"q"}],"loss_weight":0.0},{"role":"assistant","content":[{"type":"text","value":"a"}],"loss_weight":1.0}]}"#,
        ] {
            assert_eq!(pairs(&turns(text)), plain, "{text}");
        }
        let long =
            turns(r#"{"instruction":"do","input":"this","output":"a","system":"s","history":[["q0","a0"]]}"#);
        let want =
            [("system", "s"), ("user", "q0"), ("assistant", "a0"), ("user", "do\nthis"), ("assistant", "a")];
        assert_eq!(pairs(&long), want);
    }

    #[test]
    fn a_system_prompt_beside_the_turns_is_kept() {
        let want = [("system", "s"), ("user", "q"), ("assistant", "a")];
        for text in [
            r#"{"system":"s","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
            r#"{"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
            r#"{"system":"s","conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#,
            r#"{"system":"s","prompt":"q","completion":"a"}"#,
            r#"{"system":"s","instruction":"q","output":"a"}"#,
        ] {
            assert_eq!(pairs(&turns(text)), want, "{text}");
        }
        let twice = r#"{"system":"s","messages":[{"role":"system","content":"t"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
        let imported = import_text("a", twice);
        assert!(imported.examples.is_empty() && imported.findings[0].message.contains("keep one"));
    }

    #[test]
    fn the_older_form_of_calls_is_read_and_unknown_keys_are_named_once() {
        let record = r#"{"topic":"x","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"I look.","function_call":{"name":"f","arguments":"{\"x\":1}"}},{"role":"function","name":"f","content":"r"},{"role":"assistant","content":"a"}],"functions":[{"name":"f","parameters":{}}]}"#;
        let imported = import_text("a", &format!("{record}\n{record}\n"));
        let found: Vec<(usize, &str)> = imported.findings.iter().map(|f| (f.line, f.code)).collect();
        assert_eq!(found, [(1, "left-out")], "{:?}", imported.findings);
        let example = &imported.examples[1];
        assert_eq!(example["messages"][1]["tool_calls"][0]["function"]["arguments"], r#"{"x":1}"#);
        assert_eq!(example["messages"][1]["content"], "I look.");
        assert_eq!(example["tools"][0]["function"]["name"], "f");
    }

    #[test]
    fn calls_of_tools_keep_their_answers() {
        let text = r#"{"conversations":[{"from":"human","value":"q"},{"from":"function_call","value":"{\"name\":\"f\",\"arguments\":{\"x\":1}}"},{"from":"observation","value":"r"},{"from":"gpt","value":"a"}],"tools":"[{\"name\":\"f\",\"parameters\":{}}]"}"#;
        let imported = import_text("a", text);
        assert_eq!(imported.findings, []);
        let example = &imported.examples[0];
        assert_eq!(example["messages"][1]["tool_calls"][0]["function"]["arguments"], r#"{"x":1}"#);
        assert_eq!(example["messages"][2]["tool_call_id"], example["messages"][1]["tool_calls"][0]["id"]);
        assert_eq!(example["tools"][0]["function"]["name"], "f");
    }

    #[test]
    fn what_has_no_place_is_said_with_its_line() {
        let text = "[\n{\"messages\":[],\"label\":false},\n{\"chosen\":1,\"rejected\":2},\n{\"instruction\":\"q\",\"output\":\"\"},\n\
            {\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":[{\"type\":\"reasoning\",\"value\":\"r\"},{\"type\":\"text\",\"value\":\"a\"}]}]},\n\
            {\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\",\"weight\":0.5}]},\n{\"text\":\"q\"}]";
        let imported = import_text("a", text);
        let found: Vec<(usize, &str)> = imported.findings.iter().map(|f| (f.line, f.code)).collect();
        assert_eq!(
            found,
            [(2, "refused"), (3, "refused"), (4, "refused"), (5, "left-out"), (6, "refused"), (7, "refused"),]
        );
        assert_eq!(imported.examples.len(), 1);
        assert_eq!(import_text("a", "[{\n").findings[0].code, "json");
        assert_eq!(import_text("a", "{}\n{").findings.len(), 2);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}|[\\[\\]{}\":,a-z \n]{0,80}") {
            let imported = import_text("a", &text);
            prop_assert!(imported.examples.is_empty() || imported.examples.iter().all(|e| e["messages"].is_array()));
        }
    }
}
