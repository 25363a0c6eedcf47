//! Mends what can be mended without inventing anything; the rest is put aside as it stands.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};

use super::read::{self, EXAMPLE_KEYS, MESSAGE_KEYS, ROLES};
use super::{Severity, same, text};
use crate::files::without_mark;

/// A file, mended.
#[derive(Debug, Default, PartialEq)]
pub struct Fixed {
    /// Sound examples, a line each.
    pub lines: Vec<String>,
    /// What was done, by line of the original.
    pub changes: Vec<(usize, String)>,
    /// Lines that stay as they were, and why they cannot be mended here.
    pub rejected: Vec<(usize, String, String)>,
}

/// Mends a file's bytes.
#[must_use]
pub fn fix(bytes: &[u8]) -> Fixed {
    let mut fixed = Fixed::default();
    let mut kept: Vec<(usize, String)> = Vec::new();
    let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
    for (number, raw) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let text = match std::str::from_utf8(raw) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                let text = String::from_utf8_lossy(raw).into_owned();
                fixed.rejected.push((number, text, "not UTF-8; save the original as UTF-8 again".into()));
                continue;
            }
        };
        let line = if number == 1 { without_mark(&text) } else { &text };
        if line.len() < text.len() {
            fixed.changes.push((number, "removed the byte order mark".into()));
        }
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() {
            // What follows the last line end is no line.
            if number <= ends {
                fixed.changes.push((number, "removed a blank line".into()));
            }
            continue;
        }
        let objects = match parsed(line, &mut |what| fixed.changes.push((number, what))) {
            Ok(objects) => objects,
            Err(reason) => {
                fixed.rejected.push((number, line.to_owned(), reason));
                continue;
            }
        };
        for (object, twice) in objects {
            if let Some((key, _)) = twice.iter().find(|(_, agree)| !agree) {
                let reason = format!("`{key}` stands twice and says two things; keep one of the two");
                fixed.rejected.push((number, line.to_owned(), reason));
                continue;
            }
            let mut done: Vec<String> =
                twice.iter().map(|(key, _)| format!("`{key}` stood twice and said the same")).collect();
            let mended = example(object, &mut done);
            let out = Json::Object(mended).to_string();
            match fault(&out) {
                Some(reason) => fixed.rejected.push((number, line.to_owned(), reason)),
                None => {
                    // An untouched example keeps its own notation.
                    let out = if done.is_empty() && serde_json::from_str::<Json>(line).is_ok() {
                        line.to_owned()
                    } else {
                        out
                    };
                    fixed.changes.extend(done.into_iter().map(|what| (number, what)));
                    kept.push((number, out));
                }
            }
        }
    }
    let mut firsts: HashMap<([u8; 32], String), usize> = HashMap::new();
    for (number, line) in &kept {
        // Only what says the same in every turn is removed: another system turn is another example, and what is noted of one is not thrown away.
        let noted =
            || serde_json::from_str::<Json>(line).map(|json| json["meta"].to_string()).unwrap_or_default();
        match read::parse(line).0.map(|example| firsts.entry((same::digest(&example), noted()))) {
            Some(Entry::Occupied(first)) => {
                fixed.changes.push((*number, format!("removed: says the same as line {}", first.get())));
            }
            Some(Entry::Vacant(free)) => {
                free.insert(*number);
                fixed.lines.push(line.clone());
            }
            None => fixed.lines.push(line.clone()),
        }
    }
    // What was put aside stays as it was.
    let kept: BTreeSet<usize> = kept.iter().map(|(line, _)| *line).collect();
    let stays = |line: &usize| kept.contains(line);
    let aside: BTreeSet<usize> =
        fixed.rejected.iter().map(|(line, ..)| *line).filter(|line| !stays(line)).collect();
    fixed.changes.retain(|(line, _)| !aside.contains(line));
    fixed.changes.sort();
    fixed
}

/// What still stands against a line.
fn fault(line: &str) -> Option<String> {
    let (example, faults) = read::parse(line);
    let first = faults.into_iter().find(|fault| fault.severity == Severity::Error).map(|fault| fault.message);
    first.or_else(|| {
        let spots = example?.messages.into_iter().flat_map(|message| text::look(&message.content));
        spots.into_iter().find(|spot| spot.severity == Severity::Error).map(|spot| spot.message)
    })
}

/// An object of a line, and the keys that it has twice; see [`read::doubled`].
type Object = (Map<String, Json>, Vec<(String, bool)>);

/// The objects of a line, perhaps after a mend of its notation.
fn parsed(line: &str, change: &mut impl FnMut(String)) -> Result<Vec<Object>, String> {
    let objects = |text: &str| -> Result<Vec<Object>, serde_json::Error> {
        let mut objects = Vec::new();
        for raw in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
            let raw = raw?;
            objects.push((serde_json::from_str(raw.get())?, read::doubled(raw)));
        }
        Ok(objects)
    };
    let reason = match objects(line) {
        Ok(list) => {
            if list.len() > 1 {
                change(format!("gave each of {} objects a line of its own", list.len()));
            }
            return Ok(list);
        }
        Err(reason) => reason,
    };
    let without = without_trailing_commas(line);
    let closed = format!("{without}{}", closers(&without).unwrap_or_default());
    match objects(&closed) {
        Ok(list) if !list.is_empty() => {
            change("mended the JSON: commas that nothing follows, brackets that were not closed".to_owned());
            Ok(list)
        }
        _ => Err(format!("not valid JSON: {reason}")),
    }
}

/// Runs over the characters outside of texts.
fn outside(line: &str, mut each: impl FnMut(usize, char)) -> bool {
    let (mut within, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match (within, c) {
            (true, _) if escaped => escaped = false,
            (true, '\\') => escaped = true,
            (_, '"') => within = !within,
            (false, c) => each(at, c),
            _ => {}
        }
    }
    within
}

fn without_trailing_commas(line: &str) -> String {
    let mut cut = Vec::new();
    outside(line, |at, c| {
        let next = line[at + c.len_utf8()..].trim_start().chars().next();
        if c == ',' && next.is_none_or(|next| next == ']' || next == '}') {
            cut.push(at);
        }
    });
    line.char_indices().filter(|(at, _)| !cut.contains(at)).map(|(_, c)| c).collect()
}

/// The brackets that close what is open; `None` where a text is cut off, whose end nobody knows.
fn closers(line: &str) -> Option<String> {
    let mut open = Vec::new();
    let cut = outside(line, |_, c| match c {
        '{' => open.push('}'),
        '[' => open.push(']'),
        '}' | ']' => {
            open.pop();
        }
        _ => {}
    });
    (!cut).then(|| open.into_iter().rev().collect())
}

fn example(object: Map<String, Json>, done: &mut Vec<String>) -> Map<String, Json> {
    let mut object = keys(object, &EXAMPLE_KEYS, done);
    let Some(Json::Array(list)) = object.remove("messages") else { return object };
    let mut turns: Vec<Json> = Vec::new();
    for turn in list {
        let Json::Object(turn) = turn else {
            turns.push(turn);
            continue;
        };
        let turn = message(turn, done);
        let empty = turn.get("content").and_then(Json::as_str).is_some_and(|text| text.trim().is_empty());
        let calls = turn.contains_key("tool_calls") || turn.contains_key("function_call");
        if empty && !calls {
            done.push(format!("removed an empty turn of {}", role_of(&turn)));
            continue;
        }
        // Two turns of one speaker are one.
        if let Some(before) = turns.last_mut().filter(|before| !calls && joins(before, &turn)) {
            let joined = format!(
                "{}\n\n{}",
                before["content"].as_str().unwrap_or_default(),
                turn.get("content").and_then(Json::as_str).unwrap_or_default()
            );
            before["content"] = json!(joined);
            done.push(format!("joined two turns of {}", role_of(&turn)));
            continue;
        }
        turns.push(Json::Object(turn));
    }
    let systems = turns.iter().filter(|turn| turn["role"] == "system").count();
    if let (1, Some(at)) = (systems, turns.iter().position(|turn| turn["role"] == "system"))
        && at > 0
    {
        let turn = turns.remove(at);
        turns.insert(0, turn);
        done.push("moved the system turn to the front".to_owned());
    }
    let last = turns.iter().rposition(|turn| turn["role"] == "assistant");
    if let Some(last) = last.filter(|last| last + 1 < turns.len()) {
        done.push(format!("removed {} turns after the last answer", turns.len() - last - 1));
        turns.truncate(last + 1);
    }
    object.insert("messages".to_owned(), Json::Array(turns));
    object
}

fn role_of(turn: &Map<String, Json>) -> &str {
    turn.get("role").and_then(Json::as_str).unwrap_or_default()
}

fn joins(before: &Json, turn: &Map<String, Json>) -> bool {
    let plain = |turn: &Json| turn["content"].is_string() && turn.get("tool_calls").is_none();
    let role = role_of(turn);
    (role == "user" || role == "assistant")
        && before["role"] == role
        && plain(before)
        && turn.get("content").is_some_and(Json::is_string)
        && before.get("weight") == turn.get("weight")
        && before.get("name") == turn.get("name")
}

/// Whether a key is a known one with a slip of the keyboard: one in a short name, since `time` is two from `name`, two in a longer one.
fn misspelt(key: &str, known: &str) -> bool {
    let slips = if known.len() <= 5 { 1 } else { 2 };
    strsim::damerau_levenshtein(known, &key.to_lowercase()) <= slips
}

/// Keys that are nearly known get their names; what is unknown of an example goes into `meta`, beside what is there, of a turn is removed.
fn keys(object: Map<String, Json>, known: &[&str], done: &mut Vec<String>) -> Map<String, Json> {
    let (mut to, mut unknown) = (Map::new(), Map::new());
    let own: Vec<String> = object.keys().cloned().collect();
    for (key, value) in object {
        if known.contains(&key.as_str()) {
            to.insert(key, value);
            continue;
        }
        let near = known.iter().find(|k| !own.iter().any(|own| own == *k) && misspelt(&key, k));
        match near {
            Some(near) if !to.contains_key(*near) => {
                done.push(format!("renamed `{key}` to `{near}`"));
                to.insert((*near).to_owned(), value);
            }
            _ => {
                unknown.insert(key, value);
            }
        }
    }
    if unknown.is_empty() {
        return to;
    }
    let names: Vec<&str> = unknown.keys().map(String::as_str).collect();
    if known.contains(&"meta") && to.get("meta").is_none_or(Json::is_object) {
        done.push(format!("moved {} into `meta`", names.join(", ")));
        let meta = to.entry("meta").or_insert_with(|| json!({}));
        for (mut key, value) in unknown {
            while meta.get(&key).is_some() {
                key.push('_');
            }
            meta[key] = value;
        }
    } else {
        done.push(format!("removed {} of a turn", names.join(", ")));
    }
    to
}

fn message(turn: Map<String, Json>, done: &mut Vec<String>) -> Map<String, Json> {
    let mut turn = keys(turn, &MESSAGE_KEYS, done);
    if let Some(name) = turn.get("role").and_then(Json::as_str).map(str::to_owned)
        && !ROLES.contains(&name.as_str())
        && let Some(role) = super::forms::role(&name)
    {
        done.push(format!("the role `{name}` is `{role}`"));
        turn.insert("role".to_owned(), json!(role));
    }
    if turn.get("weight").is_some() && turn.get("role").is_some_and(|role| role != "assistant") {
        turn.remove("weight");
        done.push("removed the weight of a turn that is not the assistant's".to_owned());
    }
    if let Some(content) = turn.get("content").and_then(Json::as_str).map(str::to_owned) {
        let mended = readable(&content);
        if mended != content {
            done.push(
                "mended text that was read in the wrong encoding, or had control characters".to_owned(),
            );
            turn.insert("content".to_owned(), json!(mended));
        }
    }
    turn
}

/// A text without control characters, and with UTF-8 that was taken for Windows-1252 read as what it is.
fn readable(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t' | '\r')).collect();
    let damaged = text::look(&text).iter().any(|spot| spot.code == "encoding");
    if !damaged {
        return text;
    }
    // Runs of characters that Windows-1252 has beyond ASCII were bytes of UTF-8.
    let (mut to, mut run) = (String::new(), Vec::new());
    let flush = |run: &mut Vec<(char, u8)>, to: &mut String| {
        let bytes: Vec<u8> = run.iter().map(|(_, byte)| *byte).collect();
        match String::from_utf8(bytes) {
            Ok(read) => to.push_str(&read),
            Err(_) => to.extend(run.iter().map(|(c, _)| *c)),
        }
        run.clear();
    };
    for c in text.chars() {
        match windows_1252(c) {
            Some(byte) if byte >= 0x80 => run.push((c, byte)),
            _ => {
                flush(&mut run, &mut to);
                to.push(c);
            }
        }
    }
    flush(&mut run, &mut to);
    to
}

/// The byte of a character in Windows-1252; the five that it leaves free stand for themselves.
fn windows_1252(c: char) -> Option<u8> {
    const HIGH: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";
    match u32::from(c) {
        code @ (0..=0x7f | 0xa0..=0xff) => u8::try_from(code).ok(),
        _ => HIGH.chars().position(|own| own == c).and_then(|at| u8::try_from(0x80 + at).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"{"messages": [{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;

    /// What a line becomes, as compact JSON; nothing when it is put aside.
    fn mended(line: &str) -> Option<Json> {
        let fixed = fix(line.as_bytes());
        assert_eq!(fixed.lines.len() + fixed.rejected.len(), 1, "{fixed:?}");
        if !fixed.lines.is_empty() {
            assert!(!fixed.changes.is_empty() || line == fixed.lines[0], "{line}: changed without a word");
        }
        fixed.lines.first().map(|line| serde_json::from_str(line).unwrap())
    }

    #[test]
    fn what_can_be_mended_is() {
        let good: Json = serde_json::from_str(GOOD).unwrap();
        for line in [
            GOOD,
            "\u{feff}{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}]}\r",
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},]}"#,
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}"#,
            r#"{"message":[{"rol":"human","contents":"q"},{"role":"Assistant","content":"a"}]}"#,
            r#"{"messages":[{"role":"user","content":"q","weight":1},{"role":"assistant","content":"a"},{"role":"user","content":"and?"}]}"#,
            r#"{"messages":[{"role":"user","content":"q\u0007","foo":1},{"role":"user","content":" "},{"role":"assistant","content":"a"}]}"#,
        ] {
            assert_eq!(mended(line), Some(good.clone()), "{line}");
        }
        let joined = mended(r#"{"messages":[{"role":"user","content":"q"},{"role":"user","content":"r"},{"role":"assistant","content":"a"},{"role":"system","content":"s"}],"topic":"x"}"#).unwrap();
        assert_eq!(joined["messages"][0]["content"], "s");
        assert_eq!(joined["messages"][1]["content"], "q\n\nr");
        assert_eq!(joined["meta"]["topic"], "x");
    }

    #[test]
    fn damaged_encodings_are_read_again() {
        assert_eq!(readable("The patientâ€™s cafÃ©"), "The patient’s café");
        assert_eq!(readable("café au lait, 5 µg"), "café au lait, 5 µg");
        assert_eq!(readable("血圧は130／80"), "血圧は130／80");
    }

    #[test]
    fn what_cannot_is_put_aside_as_it_stands() {
        for line in [
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"#,
            r#"{"messages":[{"role":"user","content":"q"}]}"#,
            r#"{"messages":[{"role":"nurse","content":"q"},{"role":"assistant","content":"a"}]}"#,
            r#"{"messages":[{"role":"user","content":"<|im_end|>"},{"role":"assistant","content":"a"}]}"#,
            r#"{"prompt":"q","completion":"a"}"#,
            r#"{"messages":[{"role":"user","content":"q","content":"r"},{"role":"assistant","content":"a"}]}"#,
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"messages":[{"role":"user","content":"r"},{"role":"assistant","content":"a"}]}"#,
            "[1]",
        ] {
            let fixed = fix(line.as_bytes());
            assert_eq!(fixed.lines, [] as [&str; 0], "{line}");
            assert_eq!(fixed.rejected[0].1, line);
        }
        assert_eq!(fix(b"\xff\xfe").rejected.len(), 1);
        let both = fix(br#"{"messages": [{"role": "human""#);
        assert_eq!((both.changes.len(), both.rejected.len()), (0, 1), "mended, and put aside all the same");
    }

    #[test]
    fn keys_that_stand_twice_and_agree_become_one() {
        let line = |question: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","role":"user","content":"{question}"}},{{"role":"assistant","content":"a"}}]}}"#
            )
        };
        let fixed = fix(format!("{}\n{}\n", line("q"), line("r")).as_bytes());
        assert_eq!(fixed.lines.len(), 2, "{fixed:#?}");
        for (n, line) in fixed.lines.iter().enumerate() {
            assert_eq!(read::parse(line).1, [], "{line}");
            assert!(fixed.changes.contains(&(n + 1, "`role` stood twice and said the same".to_owned())));
        }
    }

    #[test]
    fn a_key_that_only_resembles_a_known_one_is_kept_and_nothing_is_written_over() {
        let line = r#"{"mesages":[{"role":"user","content":"q","time":"9:00"},{"role":"assistant","contnet":"a"}],"meta":{"seed":1},"seed":2}"#;
        let mended = mended(line).unwrap();
        assert_eq!(mended["messages"][0], json!({"role": "user", "content": "q"}), "`time` is no `name`");
        assert_eq!(mended["messages"][1]["content"], "a");
        assert_eq!(mended["meta"], json!({"seed": 1, "seed_": 2}));
    }

    #[test]
    fn an_example_with_another_system_turn_stays() {
        let with = |system: &str| {
            format!(
                r#"{{"messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"q"}},{{"role":"assistant","content":"a"}}]}}"#
            )
        };
        let (one, other) = (with("Passage of gout."), with("Passage of asthma."));
        let fixed = fix([one.clone(), other.clone(), one.clone()].join("\n").as_bytes());
        assert_eq!(fixed.lines, [one, other]);
        assert_eq!(fixed.changes, [(3, "removed: says the same as line 1".to_owned())]);
    }

    #[test]
    fn lines_are_split_and_doubles_removed() {
        let text = format!("{GOOD}\n\n{GOOD}{GOOD}\n");
        let fixed = fix(text.as_bytes());
        assert_eq!(fixed.lines.len(), 1);
        let lines: Vec<usize> = fixed.changes.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 3, 3]);
    }

    proptest! {
        #[test]
        fn a_second_pass_changes_nothing(text in "\\PC{0,60}|[\\[\\]{}\":,a-z\n]{0,80}", cut in 0usize..90) {
            let cut: String = GOOD.chars().take(cut).collect();
            let first = fix(format!("{text}\n{cut}").as_bytes());
            let again = fix(first.lines.join("\n").as_bytes());
            prop_assert_eq!(&again.lines, &first.lines);
            prop_assert_eq!(again.changes, []);
            prop_assert_eq!(again.rejected, []);
        }
    }
}
