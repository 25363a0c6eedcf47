//! Takes a line of a chat dataset apart. Every fault of its form is found, each at its column.

use std::fmt;

use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Severity;

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
#[derive(Debug, Clone, PartialEq)]
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
}

/// A line that is an example, as far as it can be read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Its turns.
    pub messages: Vec<Message>,
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
        for raw in list {
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
        Some(Example { messages })
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
        let calls =
            member("tool_calls").or_else(|| member("function_call")).is_some_and(|raw| raw.get() != "null");
        let trained = self.weight(member("weight"), role.as_deref());
        let (content, content_at) = self.content(member("content"), at, calls)?;
        Some(Message { role: role?, content, at: content_at, trained, calls })
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

    /// Text, or a list of typed parts of which the texts count.
    fn content(
        &mut self,
        raw: Option<&'a RawValue>,
        message_at: usize,
        calls: bool,
    ) -> Option<(String, usize)> {
        let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
            if calls {
                return Some((String::new(), message_at));
            }
            let at = raw.map_or(message_at, |raw| self.at(raw));
            self.faults.push(Fault::error(at, "content-missing", "`content` is missing; write what is said"));
            return None;
        };
        let at = self.at(raw);
        let text = match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => text,
            Err(_) => {
                let parts = items(raw).and_then(|parts| {
                    let texts = parts.into_iter().map(|part| {
                        let part: serde_json::Value = serde_json::from_str(part.get()).ok()?;
                        (part["type"] == "text").then(|| part["text"].as_str().map(str::to_owned)).flatten()
                    });
                    texts.collect::<Option<Vec<String>>>()
                });
                let Some(parts) = parts else {
                    self.faults.push(Fault::error(
                        at,
                        "content-no-text",
                        "`content` is neither text nor a list of parts of the type text",
                    ));
                    return None;
                };
                parts.concat()
            }
        };
        if text.trim().is_empty() && !calls {
            self.faults.push(Fault::error(
                at,
                "content-empty",
                "`content` is empty; write what is said, or remove the turn",
            ));
        }
        Some((text, at))
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
                r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","tool_calls":[]},{"role":"tool","content":"t"},{"role":"assistant","content":"a"}]}"#
            ),
            []
        );
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
