//! `shishin index search` and `explain`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;

use super::super::{printable, setup};
use super::{Asked, nothing_built, today};
use crate::config::Settings;
use crate::retrieve::{
    Explanation, GuidelineIndex, Meaning, NotInEffect, Passage, SearchQuery, Snapshot, Why,
};

fn with_snapshot<T>(
    settings: &Settings,
    meaning: Option<Meaning>,
    asked: &Asked,
    limit: usize,
    ask: impl FnOnce(&Snapshot, &SearchQuery<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let directory = &settings.index.directory;
    let index = GuidelineIndex::open_with(directory, setup::search_tools(settings, meaning)?)?;
    let snapshot = index.snapshot().with_context(|| nothing_built(directory))?;
    let filter = asked.filter();
    let query = SearchQuery {
        text: &asked.query,
        as_of: asked.as_of.unwrap_or_else(today),
        language: None,
        filter: Some(&filter),
        limit,
        ranking: asked.ranking,
    };
    ask(&snapshot, &query)
}

pub(super) fn search(
    settings: &Settings,
    meaning: Option<Meaning>,
    asked: &Asked,
    limit: usize,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let (found, as_of) = with_snapshot(settings, meaning, asked, limit, |snapshot, query| {
        Ok((snapshot.search(query)?, query.as_of))
    })?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.passages.is_empty() {
        writeln!(out, "No passage found among the editions in effect on {as_of}.")?;
    }
    for passage in &found.passages {
        print_passage(passage, out)?;
    }
    for edition in &found.not_in_effect {
        print_not_in_effect(edition, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_passage(passage: &Passage, out: &mut dyn Write) -> std::io::Result<()> {
    let until = passage.effective_to.map_or_else(String::new, |d| format!(" to {d}"));
    writeln!(out, "[{}] {} ({})", passage.n, printable(&passage.title), printable(&passage.edition))?;
    if !passage.section.is_empty() {
        writeln!(out, "    {}", printable(&passage.section))?;
    }
    writeln!(
        out,
        "    {}, {}, from {}{until}",
        printable(&passage.issuer),
        printable(&passage.jurisdiction),
        passage.effective_from
    )?;
    let page = passage.page.map_or_else(String::new, |page| format!(", page {page}"));
    writeln!(out, "    {}:{}..{}{page}", printable(&passage.file), passage.span.start, passage.span.end)?;
    let similarity = similarity(", ", passage.similarity, passage.sentence_similarity);
    writeln!(out, "    score {:.2}, coverage {:.2}{similarity}", passage.score, passage.coverage)?;
    for line in printable(&passage.text).lines() {
        writeln!(out, "    | {line}")?;
    }
    writeln!(out)
}

/// The cosines of a passage and of its nearest sentence, as far as there are any.
fn similarity(between: &str, passage: Option<f32>, sentence: Option<f32>) -> String {
    let passage = passage.map_or_else(String::new, |cosine| format!("{between}similarity {cosine:.3}"));
    let sentence = sentence.map_or_else(String::new, |cosine| format!(" (its nearest sentence {cosine:.3})"));
    passage + &sentence
}

fn print_not_in_effect(edition: &NotInEffect, out: &mut dyn Write) -> std::io::Result<()> {
    let NotInEffect { title, edition: name, why, effective_from, effective_to, replaced_by, .. } = edition;
    let until = effective_to.map_or_else(String::new, |last| format!(" until {last}"));
    let why = match (why, replaced_by) {
        (Why::Replaced, Some(by)) => format!("was in effect{until}; {} has replaced it", printable(by)),
        (Why::Replaced | Why::Expired, _) => format!("was in effect{until}"),
        (Why::NotYet, _) => format!("takes effect on {effective_from}"),
    };
    writeln!(out, "A better match is not in effect: {} ({}) {why}.", printable(title), printable(name))
}

pub(super) fn explain(
    settings: &Settings,
    meaning: Option<Meaning>,
    asked: &Asked,
    limit: usize,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let explained =
        with_snapshot(settings, meaning, asked, limit, |snapshot, query| Ok(snapshot.explain(query)?))?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&explained)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Explanation { ranking, terms, hits, not_in_effect, generation } = &explained;
    writeln!(out, "Generation {generation}, ranked by {}.\n", ranking.as_str())?;
    writeln!(out, "{:<24} {:<16} {:>7} {:>9}  in the index", "term", "stem", "rarity", "weight")?;
    for term in terms {
        writeln!(
            out,
            "{:<24} {:<16} {:>7.2} {:>9.2}  {}",
            printable(&term.text),
            printable(term.stem.as_deref().unwrap_or("")),
            term.rarity,
            term.weight,
            if term.known { "yes" } else { "no" }
        )?;
    }
    for (n, hit) in hits.iter().enumerate() {
        writeln!(out, "\n[{}] {}  {}", n + 1, printable(&hit.chunk_id), printable(&hit.section))?;
        let similarity = similarity("; ", hit.similarity, hit.sentence_similarity);
        writeln!(
            out,
            "    score {:.3}: words {:.2} of its own and {:.2} of its document{similarity}",
            hit.score, hit.words, hit.document_words
        )?;
        let missing: Vec<_> = hit.missing.iter().map(|term| printable(term)).collect();
        let missing = if missing.is_empty() { "nothing".to_owned() } else { missing.join(", ") };
        writeln!(out, "    coverage {:.2}; of the question it lacks: {missing}", hit.coverage)?;
    }
    for edition in not_in_effect {
        print_not_in_effect(edition, out)?;
    }
    Ok(ExitCode::SUCCESS)
}
