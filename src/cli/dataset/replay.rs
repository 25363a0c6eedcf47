//! `shishin dataset replay`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;

use super::super::setup;
use super::super::signals::cancel_on_signal;
use crate::config::Settings;
use crate::engine::{Engine, FinishReason};
use crate::evaluate::answers::{self, Held, System};
use crate::evaluate::criteria::Criteria;
use crate::files;
use crate::language::Language;
use crate::model::fetch::Cancel;
use crate::model::template::{Role, Turn};
use crate::tune::checkpoint::write_whole;
use crate::tune::examples::DAY;

pub(super) fn run(
    settings: &Settings,
    questions: &Path,
    to: &Path,
    (model, max_tokens): (Option<&str>, usize),
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let text =
        std::fs::read_to_string(questions).with_context(|| format!("cannot read {}", questions.display()))?;
    let wording = setup::wording(settings)?;
    let mut held = Vec::new();
    for (n, line) in files::lines(&text) {
        let language = Language::detect(line);
        let turn = |role, content: &str| Turn { role, content: content.trim().to_owned() };
        held.push(Held {
            id: format!("replay-{n}"),
            language,
            turns: vec![turn(Role::System, &wording.plain(language, DAY)?), turn(Role::User, line)],
            reference: String::new(),
            passages: 0,
            oracle: None,
            question: None,
            facts: Vec::new(),
            rejected: None,
        });
    }
    anyhow::ensure!(!held.is_empty(), "{} has no question", questions.display());
    let cancel = Cancel::default();
    cancel_on_signal(cancel.clone()).context("cannot listen for signals")?;
    let (located, model) = setup::base(settings, model, &cancel)?;
    let model = Arc::new(model);
    let engine = Engine::start(&model, &settings.engine)?;
    let systems = [System { name: "base".into(), adapter: None }];
    let criteria = Criteria { objective: String::new(), goal: None, criterion: Vec::new() };
    let generation = setup::generation(settings, None, max_tokens);
    let mut going = |_| !cancel.is_cancelled();
    let asked = (&held[..], &systems[..]);
    let answers = answers::answer(&model, &engine.handle(), asked, &criteria, &generation, &mut going)?;
    let mut lines = String::new();
    let mut left_out = 0;
    for (one, answer) in held.iter().zip(&answers) {
        // An answer that was cut off would teach not to end.
        if answer.completion.finish_reason != FinishReason::Stop || answer.answer.trim().is_empty() {
            left_out += 1;
            continue;
        }
        let asked = one.turns.last().map_or("", |turn| &turn.content);
        let line = json!({ "id": one.id, "language": one.language, "messages": [
            { "role": "user", "content": asked },
            { "role": "assistant", "content": answer.answer.trim() },
        ] });
        lines.push_str(&format!("{line}\n"));
    }
    write_whole(to, lines.as_bytes())?;
    writeln!(
        out,
        "{}: {} answers of {}; {left_out} left out that did not end",
        to.display(),
        held.len() - left_out,
        located.name
    )?;
    Ok(ExitCode::SUCCESS)
}
