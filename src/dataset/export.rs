//! Writes examples as hosted platforms and other trainers take them, and refuses with reasons what they would reject or get wrong.
//!
//! OpenAI: chat messages, <https://platform.openai.com/docs/guides/supervised-fine-tuning>. Vertex:
//! see `src/dataset/vertex.rs`. Hugging Face: the conversational form of TRL, <https://huggingface.co/docs/trl/dataset_formats>. As of 2026.

use serde_json::{Map, Value as Json, json};

use super::lint::FEW;
use super::{Finding, Severity, calls, read, vertex};
use crate::files::lines as lines_of;

/// Tokens of an example that OpenAI trains on; what is longer is cut off. A token is a byte at the least.
const OPENAI_TOKENS: usize = 65_536;
/// Tokens of an example that Vertex takes.
const VERTEX_TOKENS: usize = 131_072;

/// Who shall read the examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// OpenAI's fine-tuning.
    Openai,
    /// Gemini on Vertex AI.
    Vertex,
    /// Hugging Face TRL.
    Hf,
}

impl std::str::FromStr for Platform {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "openai" => Ok(Self::Openai),
            "vertex" => Ok(Self::Vertex),
            "hf" => Ok(Self::Hf),
            _ => Err("it must be openai, vertex or hf".into()),
        }
    }
}

/// The lines for a platform, of the lines of a file, and what stands against some of them.
#[must_use]
pub fn export(file: &str, text: &str, platform: Platform) -> (Vec<String>, Vec<Finding>) {
    let (mut lines, mut findings) = (Vec::new(), Vec::new());
    let mut add = |line: usize, code: &'static str, severity: Severity, message: String| {
        findings.push(Finding { file: file.to_owned(), line, column: 1, code, severity, message });
    };
    for (number, line) in lines_of(text) {
        let (_, faults) = read::parse(line);
        // Calls that do not fit together are a warning to whoever does not export them.
        let refuses = |fault: &&read::Fault| {
            fault.severity == Severity::Error
                || platform == Platform::Openai && calls::CODES.contains(&fault.code)
        };
        let errors: Vec<_> = faults.iter().filter(refuses).collect();
        let value: Option<Map<String, Json>> = serde_json::from_str(line).ok();
        let (Some(value), true) = (value, errors.is_empty()) else {
            for fault in errors {
                add(number, fault.code, Severity::Error, fault.message.clone());
            }
            continue;
        };
        match one(&value, platform) {
            Ok(example) => {
                let (most, name) = match platform {
                    Platform::Openai => (OPENAI_TOKENS, "OpenAI"),
                    Platform::Vertex => (VERTEX_TOKENS, "Vertex"),
                    Platform::Hf => (usize::MAX, ""),
                };
                let bytes = example.len();
                if bytes > most {
                    let message = format!(
                        "{bytes} bytes may be more than the {most} tokens that {name} takes of an example; count them there"
                    );
                    add(number, "maybe-too-long", Severity::Warning, message);
                }
                lines.push(example);
            }
            Err(reason) => add(number, "export", Severity::Error, reason),
        }
    }
    if platform == Platform::Openai && lines.len() < FEW {
        let message =
            format!("OpenAI takes no file with fewer than {FEW} examples; this one has {}", lines.len());
        add(1, "too-few", Severity::Error, message);
    }
    if lines.is_empty() {
        add(1, "too-few", Severity::Error, "there is no example to export".to_owned());
    }
    (lines, findings)
}

/// An example as a line for a platform. It is sound in our form.
fn one(example: &Map<String, Json>, platform: Platform) -> Result<String, String> {
    let turns: Vec<&Map<String, Json>> =
        example["messages"].as_array().into_iter().flatten().filter_map(Json::as_object).collect();
    let calls = |turn: &Map<String, Json>| {
        turn["role"] == "tool" || turn.contains_key("tool_calls") || turn.contains_key("function_call")
    };
    let tools = turns.iter().any(|turn| calls(turn)) || example.contains_key("tools");
    let unlearnt = turns.iter().any(|turn| turn.get("weight").and_then(Json::as_f64) == Some(0.0));
    match platform {
        Platform::Openai => {
            let mut to = Map::new();
            let messages: Result<Vec<Json>, String> = turns.iter().map(|turn| openai(turn)).collect();
            to.insert("messages".to_owned(), Json::Array(messages?));
            for key in ["tools", "functions", "parallel_tool_calls"] {
                to.extend(example.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            Ok(Json::Object(to).to_string())
        }
        Platform::Vertex | Platform::Hf if unlearnt => {
            let name = if platform == Platform::Vertex { "Vertex" } else { "TRL" };
            Err(format!(
                "an assistant's turn has the weight 0, and {name} would learn it all the same; end the dialogue before it, or make it part of the question"
            ))
        }
        Platform::Hf if tools => Err(
            "calls of tools do not survive a table whose rows must be alike, as TRL loads them; export to openai or vertex".into(),
        ),
        Platform::Vertex => vertex::export(example),
        Platform::Hf => {
            // The rows of a table are alike: role and content, and nothing else.
            let messages: Vec<Json> = turns
                .iter()
                .map(|turn| json!({ "role": plain_role(turn), "content": vertex::text(&turn["content"]) }))
                .collect();
            Ok(json!({ "messages": messages }).to_string())
        }
    }
}

fn openai(turn: &Map<String, Json>) -> Result<Json, String> {
    if let Some(name) = turn.get("name").and_then(Json::as_str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            return Err(format!("the name `{name}` is not of 1 to 64 letters, digits, _ and -"));
        }
    }
    let mut to = turn.clone();
    to.insert("role".to_owned(), json!(plain_role(turn)));
    if turn["role"] != "assistant" {
        to.remove("weight");
    }
    if let Some(weight) = turn.get("weight").and_then(Json::as_f64) {
        // A whole number, which 1.0 is not.
        to.insert("weight".to_owned(), json!(i64::from(weight != 0.0)));
    }
    Ok(Json::Object(to))
}

fn plain_role(turn: &Map<String, Json>) -> &str {
    match turn["role"].as_str().unwrap_or_default() {
        "developer" => "system",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = r#"{"id":"a","messages":[{"role":"developer","content":[{"type":"text","text":"s"}]},{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":1.0}],"meta":{}}"#;

    fn lines(text: &str, platform: Platform) -> Vec<Json> {
        export("a", text, platform).0.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn each_platform_gets_its_form() {
        assert_eq!(
            lines(LONG, Platform::Openai)[0],
            json!({ "messages": [
                { "role": "system", "content": [{ "type": "text", "text": "s" }] },
                { "role": "user", "content": "q" },
                { "role": "assistant", "content": "a", "weight": 1 },
            ] })
        );
        assert_eq!(
            lines(LONG, Platform::Vertex)[0],
            json!({
                "systemInstruction": { "role": "system", "parts": [{ "text": "s" }] },
                "contents": [
                    { "role": "user", "parts": [{ "text": "q" }] },
                    { "role": "model", "parts": [{ "text": "a" }] },
                ],
            })
        );
        assert_eq!(
            lines(LONG, Platform::Hf)[0],
            json!({ "messages": [
                { "role": "system", "content": "s" },
                { "role": "user", "content": "q" },
                { "role": "assistant", "content": "a" },
            ] })
        );
    }

    #[test]
    fn what_a_platform_would_reject_is_refused_with_the_reason() {
        let refused = |text: &str, platform| -> Vec<&'static str> {
            let errors = export("a", text, platform).1.into_iter().filter(|f| f.severity == Severity::Error);
            errors.map(|finding| finding.code).collect()
        };
        let ten = format!("{LONG}\n").repeat(10);
        for platform in [Platform::Openai, Platform::Vertex, Platform::Hf] {
            assert_eq!(refused(&ten, platform), [] as [&str; 0], "{platform:?}");
        }
        assert_eq!(refused(LONG, Platform::Openai), ["too-few"]);
        let codes = |line: &str| refused(&format!("{ten}{line}"), Platform::Openai);
        for (messages, want) in [
            (
                r#"{"role":"assistant","tool_calls":[]},{"role":"tool","content":"t"}"#,
                &["calls-empty", "call-unknown"][..],
            ),
            (
                r#"{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{}}}]},{"role":"tool","tool_call_id":"1","content":"t"}"#,
                &["call-arguments"],
            ),
            (
                r#"{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"user","content":"r"}"#,
                &["call-unanswered"],
            ),
            (
                r#"{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"2","content":"t"}"#,
                &["call-unknown"],
            ),
        ] {
            let line = format!(
                r#"{{"messages":[{{"role":"user","content":"q"}},{messages},{{"role":"assistant","content":"a"}}]}}"#
            );
            assert_eq!(codes(&line), want, "{line}");
        }
        let unlearnt = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","weight":0},{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#;
        let greeting = r#"{"messages":[{"role":"assistant","content":"a"},{"role":"user","content":"q"},{"role":"assistant","content":"b"}]}"#;
        let tool = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","tool_calls":[]},{"role":"tool","content":"t"},{"role":"assistant","content":"a"}]}"#;
        let called = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"t"},{"role":"assistant","content":"a"}]}"#;
        let named = r#"{"messages":[{"role":"user","content":"q","name":"Dr. Who"},{"role":"assistant","content":"a"}]}"#;
        let broken = "{\"messages\": [";
        for (line, openai, vertex, hf) in [
            (unlearnt, false, true, true),
            (greeting, false, true, false),
            (tool, true, true, true),
            (called, false, false, true),
            (named, true, false, false),
            (broken, true, true, true),
        ] {
            for (platform, want) in
                [(Platform::Openai, openai), (Platform::Vertex, vertex), (Platform::Hf, hf)]
            {
                let refused = refused(&format!("{ten}{line}"), platform);
                assert_eq!(!refused.is_empty(), want, "{line} {platform:?}: {refused:?}");
            }
        }
    }

    #[test]
    fn what_is_exported_can_be_imported() {
        let dir = tempfile::tempdir().unwrap();
        for platform in [Platform::Openai, Platform::Vertex, Platform::Hf] {
            let path = dir.path().join("a.jsonl");
            std::fs::write(&path, export("a", LONG, platform).0.join("\n")).unwrap();
            let back = crate::dataset::forms::import(&path).unwrap();
            assert_eq!(back.findings, []);
            let said: Vec<&Json> = back.examples[0]["messages"].as_array().unwrap().iter().collect();
            assert_eq!(
                said.iter().map(|t| t["content"].as_str().unwrap()).collect::<Vec<_>>(),
                ["s", "q", "a"]
            );
        }
    }
}
