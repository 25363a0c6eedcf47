//! Takes a line of a chat dataset apart. Every fault of its form is found, each at its column.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::{Severity, calls};

/// Who may speak.
pub const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
/// Keys of an example.
pub(super) const EXAMPLE_KEYS: [&str; 8] =
    ["messages", "tools", "functions", "parallel_tool_calls", "id", "language", "meta", "metadata"];
/// Keys of a message.
pub(super) const MESSAGE_KEYS: [&str; 7] =
    ["role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call"];

/// A finding within a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, in bytes of the line.
    pub at: usize,
    /// What kind.
    pub code: &'static str,
    /// How much it weighs.
    pub severity: Severity,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl Fault {
    fn error(at: usize, code: &'static str, message: impl Into<String>) -> Self {
        Self { at, code, severity: Severity::Error, message: message.into() }
    }

    fn warning(at: usize, code: &'static str, message: impl Into<String>) -> Self {
        Self { at, code, severity: Severity::Warning, message: message.into() }
    }
}

/// A turn of an example.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// Who speaks; one of [`ROLES`].
    pub role: String,
    /// What is said; empty where only a tool is called.
    pub content: String,
    /// Where the content stands, in bytes of the line.
    pub at: usize,
    /// Whether it is trained on, for an assistant's turn.
    pub trained: bool,
    /// Whether it calls a tool.
    pub calls: bool,
    /// What it calls, as it is written; empty where it calls nothing.
    pub called: String,
    /// The texts that the content is put together of: where each begins in the line, with its quotation mark, and its characters.
    pub texts: Vec<(usize, usize)>,
}

impl Message {
    /// For each character of the content, its column in the line that the turn was read from, from 1.
    #[must_use]
    pub fn columns(&self, line: &str) -> Vec<usize> {
        let mut columns = Vec::new();
        for (quote, characters) in &self.texts {
            let mut at = quote + 1;
            let mut column = line.get(..at).map_or(1, |before| before.chars().count() + 1);
            for _ in 0..*characters {
                columns.push(column);
                let rest = line.get(at..).unwrap_or_default();
                let escape = escape_len(rest);
                // What is not escaped is written as it is; escapes are ASCII.
                column += escape.unwrap_or(1);
                at += escape.unwrap_or_else(|| rest.chars().next().map_or(1, char::len_utf8));
            }
        }
        columns
    }
}

/// The bytes of the escape that a JSON text goes on with; `None` where it goes on with a character as it is.
fn escape_len(rest: &str) -> Option<usize> {
    let unit =
        rest.strip_prefix("\\u").map(|hex| hex.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok()));
    match unit {
        // The first half of a character that UTF-16 writes as two.
        Some(Some(0xd800..=0xdbff)) => Some(12),
        Some(_) => Some(6),
        None => rest.starts_with('\\').then_some(2),
    }
}

/// A line that is an example, as far as it can be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Its turns.
    pub messages: Vec<Message>,
    /// The tools that may be called, as they are written; empty where there are none.
    pub tools: String,
    /// What is asked, where the example notes it (`meta.question`) and a user says it; see `shishin dataset ground`.
    pub question: Option<String>,
    /// What it notes of the passages that it is asked over, in their order (`meta.passages`).
    pub passages: Vec<String>,
}

/// What an example may note of itself.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Notes {
    question: Option<String>,
    passages: Vec<String>,
}

/// Reads a line. The example is there when its form can be trained on; the faults are there in any case.
#[must_use]
pub fn parse(line: &str) -> (Option<Example>, Vec<Fault>) {
    let mut reader = Reader { line, faults: Vec::new() };
    let example = reader.example();
    let failed = reader.faults.iter().any(|fault| fault.severity == Severity::Error);
    reader.faults.sort_by_key(|fault| fault.at);
    (example.filter(|_| !failed), reader.faults)
}

/// Why a line with these faults is no example.
#[must_use]
pub fn reason(faults: &[Fault]) -> &str {
    let first = faults.iter().find(|fault| fault.severity == Severity::Error);
    first.map_or("it is no example", |fault| fault.message.as_str())
}

/// The keys of an example and of its turns that stand twice, and whether both say the same.
pub(super) fn doubled(raw: &RawValue) -> Vec<(String, bool)> {
    let Ok(Members(members)) = serde_json::from_str(raw.get()) else { return Vec::new() };
    let mut found = twice(&members);
    for turn in members.iter().filter_map(|(_, list)| items(list)).flatten() {
        if let Ok(Members(own)) = serde_json::from_str(turn.get()) {
            found.extend(twice(&own));
        }
    }
    found
}

fn twice(members: &[(String, &RawValue)]) -> Vec<(String, bool)> {
    let value = |raw: &RawValue| serde_json::from_str::<Json>(raw.get()).ok();
    let mut found = Vec::new();
    for (n, (key, raw)) in members.iter().enumerate() {
        if let Some((_, first)) = members[..n].iter().find(|(before, _)| before == key) {
            found.push((key.clone(), value(first) == value(raw)));
        }
    }
    found
}

/// An object's members in order, repeated ones included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for All<'a> {
            type Value = Members<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All(std::marker::PhantomData))
    }
}

/// A list's items.
pub(super) fn items(raw: &RawValue) -> Option<Vec<&RawValue>> {
    struct Items;
    impl<'de> Visitor<'de> for Items {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                items.push(item);
            }
            Ok(items)
        }
    }
    serde_json::Deserializer::from_str(raw.get()).deserialize_seq(Items).ok()
}

struct Reader<'a> {
    line: &'a str,
    faults: Vec<Fault>,
}

/// What a turn says; where it stands, and [`Message::texts`].
type Content = (String, usize, Vec<(usize, usize)>);

impl<'a> Reader<'a> {
    /// Where a part of the line stands in it.
    fn at(&self, raw: &RawValue) -> usize {
        (raw.get().as_ptr() as usize).saturating_sub(self.line.as_ptr() as usize).min(self.line.len())
    }

    fn example(&mut self) -> Option<Example> {
        let raw: &RawValue = match serde_json::from_str(self.line) {
            Ok(raw) => raw,
            Err(error) => {
                let at = byte_of_column(self.line, error.column());
                let text = error.to_string();
                let reason = text.split(" at line ").next().unwrap_or_default();
                self.faults.push(Fault::error(at, "json", format!("not valid JSON: {reason}")));
                return None;
            }
        };
        let at = self.at(raw);
        let Ok(Members(members)) = serde_json::from_str(raw.get()) else {
            self.faults.push(Fault::error(at, "no-object", "not an object; write {\"messages\": [...]}"));
            return None;
        };
        self.keys(&members, &EXAMPLE_KEYS);
        let Some((_, messages)) = members.iter().find(|(key, _)| key == "messages") else {
            let foreign = [
                ("prompt", "a prompt and its completion"),
                ("conversations", "ShareGPT's form"),
                ("instruction", "Alpaca's form"),
            ];
            let found = foreign.iter().find(|(key, _)| members.iter().any(|(own, _)| own == key));
            let mend = match found {
                Some((key, form)) => format!(
                    "`messages` is missing, and `{key}` is {form}; write it as messages of user and assistant"
                ),
                None => "`messages` is missing; write {\"messages\": [{\"role\": …, \"content\": …}, …]}"
                    .to_owned(),
            };
            self.faults.push(Fault::error(at, "messages-missing", mend));
            return None;
        };
        let at = self.at(messages);
        let Some(list) = items(messages) else {
            self.faults.push(Fault::error(
                at,
                "messages-no-list",
                "`messages` is no list; write its turns in [ ]",
            ));
            return None;
        };
        if list.is_empty() {
            self.faults.push(Fault::error(
                at,
                "messages-empty",
                "`messages` is empty; write at least a question and its answer",
            ));
            return None;
        }
        let mut read = Vec::new();
        for raw in list.iter().copied() {
            read.push((self.at(raw), self.message(raw)));
        }
        let roles: Vec<(usize, Option<&str>)> =
            read.iter().map(|(at, message)| (*at, message.as_ref().map(|m| m.role.as_str()))).collect();
        self.order(&roles);
        let messages: Vec<Message> = read.into_iter().filter_map(|(_, message)| message).collect();
        if !messages.iter().any(|m| m.role == "assistant" && m.trained)
            && messages.iter().any(|m| m.role == "assistant")
        {
            self.faults.push(Fault::error(
                at,
                "nothing-trained",
                "every assistant turn has the weight 0, so nothing is learnt; give one the weight 1",
            ));
        }
        if messages.iter().any(|m| m.calls || m.role == "tool") {
            let turns: Vec<Json> =
                list.iter().map(|raw| serde_json::from_str(raw.get()).unwrap_or_default()).collect();
            for (n, code, message) in calls::problems(&turns) {
                self.faults.push(Fault::warning(self.at(list[n]), code, message));
            }
        }
        let tools = self.tools(&members);
        let Notes { question, passages } = notes(&members);
        let asked = |question: &String| {
            let question = question.trim();
            !question.is_empty() && messages.iter().any(|m| m.role == "user" && m.content.contains(question))
        };
        let question = question.filter(asked);
        Some(Example { messages, tools, question, passages })
    }

    /// The tools that an example declares.
    fn tools(&mut self, members: &[(String, &'a RawValue)]) -> String {
        let declares = |raw: &RawValue| raw.get() != "null" && items(raw).is_none_or(|list| !list.is_empty());
        let tools = members.iter().find(|(key, raw)| (key == "tools" || key == "functions") && declares(raw));
        let Some((key, raw)) = tools else { return String::new() };
        let message = format!(
            "`{key}` have no place in our prompts, so that this cannot be trained on here; export it to a platform that takes them, or remove them and what calls them"
        );
        self.faults.push(Fault::warning(self.at(raw), "tools-untrained", message));
        raw.get().to_owned()
    }

    /// Keys that are not known, or that stand twice.
    fn keys(&mut self, members: &[(String, &'a RawValue)], known: &[&str]) {
        for (n, (key, raw)) in members.iter().enumerate() {
            let at = self.at(raw);
            if members[..n].iter().any(|(before, _)| before == key) {
                self.faults.push(Fault::error(
                    at,
                    "key-twice",
                    format!("`{key}` stands twice; keep one of the two"),
                ));
            } else if !known.contains(&key.as_str()) {
                let near = known.iter().find(|k| strsim::damerau_levenshtein(k, key) <= 2);
                let hint = near.map_or_else(
                    || format!("known are {}", known.join(", ")),
                    |k| format!("did you mean `{k}`?"),
                );
                let shown: String = key.chars().take(40).collect();
                self.faults.push(Fault::error(at, "key-unknown", format!("unknown key `{shown}`; {hint}")));
            }
        }
    }

    fn message(&mut self, raw: &'a RawValue) -> Option<Message> {
        let at = self.at(raw);
        let Ok(Members(members)) = serde_json::from_str(raw.get()) else {
            self.faults.push(Fault::error(
                at,
                "message-no-object",
                "a turn is no object; write {\"role\": …, \"content\": …}",
            ));
            return None;
        };
        self.keys(&members, &MESSAGE_KEYS);
        let member = |key: &str| members.iter().find(|(own, _)| own == key).map(|(_, raw)| *raw);
        let role = match member("role") {
            None => {
                self.faults.push(Fault::error(
                    at,
                    "role-missing",
                    format!("`role` is missing; it is one of {}", ROLES.join(", ")),
                ));
                None
            }
            Some(raw) => {
                let role = serde_json::from_str::<String>(raw.get())
                    .ok()
                    .filter(|role| ROLES.contains(&role.as_str()));
                if role.is_none() {
                    let shown: String = raw.get().chars().take(40).collect();
                    let message = format!("unknown role {shown}; it is one of {}", ROLES.join(", "));
                    self.faults.push(Fault::error(self.at(raw), "role-unknown", message));
                }
                role
            }
        };
        let called = member("tool_calls").or_else(|| member("function_call"));
        let called = called.map(RawValue::get).filter(|raw| *raw != "null").unwrap_or_default().to_owned();
        let calls = !called.is_empty();
        let trained = self.weight(member("weight"), role.as_deref());
        let (content, at, texts) = self.content(member("content"), at, calls)?;
        Some(Message { role: role?, content, at, trained, calls, called, texts })
    }

    fn weight(&mut self, raw: Option<&'a RawValue>, role: Option<&str>) -> bool {
        let Some(raw) = raw else { return true };
        let at = self.at(raw);
        match raw.get() {
            "0" | "0.0" | "1" | "1.0" if role.is_some_and(|role| role != "assistant") => {
                self.faults.push(Fault::warning(
                    at,
                    "weight-unused",
                    "only an assistant's turn has a weight; remove it",
                ));
                true
            }
            "0" | "0.0" => false,
            "1" | "1.0" => true,
            other => {
                let shown: String = other.chars().take(40).collect();
                self.faults.push(Fault::error(
                    at,
                    "weight",
                    format!("the weight {shown} is neither 0 nor 1"),
                ));
                true
            }
        }
    }

    /// Text, or a list of typed parts of which the texts count; where it stands, and [`Message::texts`].
    fn content(&mut self, raw: Option<&'a RawValue>, message_at: usize, calls: bool) -> Option<Content> {
        let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
            if calls {
                return Some((String::new(), message_at, Vec::new()));
            }
            let at = raw.map_or(message_at, |raw| self.at(raw));
            self.faults.push(Fault::error(at, "content-missing", "`content` is missing; write what is said"));
            return None;
        };
        let at = self.at(raw);
        let parts = match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => vec![(text, at)],
            Err(_) => {
                let parts = items(raw).and_then(|parts| {
                    parts.into_iter().map(|part| self.part(part)).collect::<Option<Vec<(String, usize)>>>()
                });
                let Some(parts) = parts else {
                    self.faults.push(Fault::error(
                        at,
                        "content-no-text",
                        "`content` is neither text nor a list of parts of the type text",
                    ));
                    return None;
                };
                parts
            }
        };
        let texts = parts.iter().map(|(text, at)| (*at, text.chars().count())).collect();
        let text: String = parts.into_iter().map(|(text, _)| text).collect();
        if text.trim().is_empty() && !calls {
            self.faults.push(Fault::error(
                at,
                "content-empty",
                "`content` is empty; write what is said, or remove the turn",
            ));
        }
        Some((text, at, texts))
    }

    /// A typed part's text, and where that stands.
    fn part(&self, part: &'a RawValue) -> Option<(String, usize)> {
        let Members(members): Members<'a> = serde_json::from_str(part.get()).ok()?;
        let member = |key: &str| members.iter().rfind(|(own, _)| own == key).map(|(_, raw)| *raw);
        let kind: String = serde_json::from_str(member("type")?.get()).ok()?;
        let text = member("text").filter(|_| kind == "text")?;
        Some((serde_json::from_str(text.get()).ok()?, self.at(text)))
    }

    /// Who speaks after whom.
    fn order(&mut self, roles: &[(usize, Option<&str>)]) {
        let mut before: Option<&str> = None;
        for (n, (at, role)) in roles.iter().enumerate() {
            let Some(role) = *role else {
                before = None;
                continue;
            };
            let error = match (role, before) {
                ("system" | "developer", _) if n > 0 => Some("a system turn must be the first"),
                ("user", Some("user")) => {
                    Some("two user turns follow each other; join them, or put the answer between")
                }
                ("assistant", Some("assistant")) => Some("two assistant turns follow each other; join them"),
                ("tool", before) if before.is_none_or(|b| b != "assistant" && b != "tool") => {
                    Some("a tool answers without having been called; put the assistant's call before it")
                }
                _ => None,
            };
            self.faults.extend(error.map(|message| Fault::error(*at, "role-order", message)));
            // A greeting is meant now and then; the model sees no question before it.
            if role == "assistant"
                && roles[..n].iter().all(|(_, role)| matches!(role, Some("system" | "developer")))
            {
                let message =
                    "an assistant speaks before any user; put the question first, or mean it as a greeting";
                self.faults.push(Fault::warning(*at, "speaks-first", message));
            }
            before = Some(role);
        }
        let Some((at, last)) = roles.last() else { return };
        if !roles.iter().any(|(_, role)| *role == Some("assistant")) {
            if roles.iter().all(|(_, role)| role.is_some()) {
                self.faults.push(Fault::error(
                    *at,
                    "no-assistant",
                    "no turn is the assistant's, so nothing is learnt; add the answer",
                ));
            }
        } else if last.is_some_and(|role| role != "assistant") {
            self.faults.push(Fault::error(
                *at,
                "last-not-assistant",
                "the last turn is not the assistant's; add the answer or remove the turn",
            ));
        }
    }
}

/// What an example notes of itself; nothing where that has another form.
fn notes(members: &[(String, &RawValue)]) -> Notes {
    let meta = members.iter().find(|(key, _)| key == "meta" || key == "metadata");
    meta.and_then(|(_, raw)| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
}

/// The byte at which a column of serde_json's stands: it counts bytes, from 1.
fn byte_of_column(line: &str, column: usize) -> usize {
    let mut at = column.saturating_sub(1).min(line.len());
    while !line.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn codes(line: &str) -> Vec<(&'static str, usize)> {
        parse(line).1.into_iter().map(|f| (f.code, f.at)).collect()
    }

    #[test]
    fn a_good_example_is_read() {
        let line = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"q"}]},{"role":"assistant","content":"a","weight":1}]}"#;
        let (example, faults) = parse(line);
        assert_eq!(faults, []);
        let example = example.unwrap();
        assert_eq!(example.messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>(), ["s", "q", "a"]);
        assert_eq!(&line[example.messages[2].at..example.messages[2].at + 3], "\"a\"");
        assert_eq!(
            codes(
                r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"t"},{"role":"assistant","content":"a"}]}"#
            ),
            []
        );
    }

    #[test]
    fn each_character_has_its_column() {
        let line = r#"{"messages":[{"role":"user","content":"血\n\u00e9\ud83e\ude7a\"x"},{"role":"assistant","content":[{"type":"text","text":"a\t"},{"text":"b","type":"text"}]}]}"#;
        let messages = parse(line).0.unwrap().messages;
        let column = |part: &str| line[..line.find(part).unwrap()].chars().count() + 1;
        assert_eq!(messages[0].content, "血\né🩺\"x");
        let start = column("血");
        assert_eq!(messages[0].columns(line), [0, 1, 3, 9, 21, 23].map(|after| start + after));
        assert_eq!(messages[1].content, "a\tb");
        assert_eq!(messages[1].columns(line), [column("a\\t\""), column("\\t\""), column("b\"")]);
    }

    #[test]
    fn tools_and_notes_are_read() {
        let line = r#"{"messages":[{"role":"user","content":"Say: which?"},{"role":"assistant","content":"a"}],"tools":[{"type":"function","function":{"name":"f"}}],"meta":{"question":"which?","passages":["x"],"more":1}}"#;
        let (example, faults) = parse(line);
        let example = example.unwrap();
        assert_eq!((example.question.as_deref(), example.passages), (Some("which?"), vec!["x".to_owned()]));
        assert!(example.tools.contains("\"f\""));
        assert_eq!(faults.iter().map(|fault| fault.code).collect::<Vec<_>>(), ["tools-untrained"]);
        let without = line
            .replace(r#"[{"type":"function","function":{"name":"f"}}]"#, "[]")
            .replace("which?\",", "topic\",");
        let (example, faults) = parse(&without);
        let example = example.unwrap();
        assert_eq!((example.question, example.tools.as_str(), faults), (None, "", vec![]));
    }

    #[test]
    fn every_fault_is_found_at_its_place() {
        for (line, want) in [
            ("", &[("json", 0)][..]),
            ("{\"messages\": [}", &[("json", 14)]),
            ("[]", &[("no-object", 0)]),
            ("{}", &[("messages-missing", 0)]),
            (r#"{"messages":{}}"#, &[("messages-no-list", 12)]),
            (r#"{"messages":[]}"#, &[("messages-empty", 12)]),
            (
                r#"{"messages":[{"role":"nurse","content":"x"},{"role":"assistant","content":"y"}]}"#,
                &[("role-unknown", 21)],
            ),
            (
                r#"{"messages":[{"role":"user","content":"x","foo":1},{"role":"assistant","content":"y"}]}"#,
                &[("key-unknown", 48)],
            ),
            (
                r#"{"messages":[{"role":"user","content":null},{"role":"assistant","content":"y"}]}"#,
                &[("content-missing", 38)],
            ),
            (
                r#"{"messages":[{"role":"user","content":" "},{"role":"assistant","content":"y"}]}"#,
                &[("content-empty", 38)],
            ),
            (r#"{"messages":[{"role":"user","content":"x"}]}"#, &[("no-assistant", 13)]),
            (
                r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"},{"role":"user","content":"z"}]}"#,
                &[("last-not-assistant", 78)],
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","weight":2}]}"#,
                &[("weight", 86)],
            ),
            (
                r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","weight":0}]}"#,
                &[("nothing-trained", 12)],
            ),
            (
                r#"{"messages":[{"role":"user","role":"user","content":"x"},{"role":"assistant","content":"y"}]}"#,
                &[("key-twice", 35)],
            ),
            (
                r#"{"messages":[{"role":"assistant","content":"y"},{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}"#,
                &[("speaks-first", 13)],
            ),
            (
                r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","tool_calls":[]},{"role":"tool","content":"t"},{"role":"assistant","content":"a"}]}"#,
                &[("calls-empty", 43), ("call-unknown", 80)],
            ),
        ] {
            assert_eq!(codes(line), want, "{line}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_says_why(line in "\\PC{0,60}|[\\[\\]{}\":,a-z0-9 血]{0,60}") {
            let (example, faults) = parse(&line);
            prop_assert!(example.is_some() || !faults.is_empty());
            prop_assert!(faults.iter().all(|fault| line.is_char_boundary(fault.at)));
        }
    }
}
