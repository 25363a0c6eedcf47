//! A run, step by step, for another program to do the same.

use std::io::Write;

use serde::Serialize;

use super::examples::pack;
use super::graph::Graph;
use super::optimiser::rate;
use super::parameters::Parameters;
use super::run::{Run, RunError, fill};

/// One step.
#[derive(Serialize)]
struct Dumped<'a> {
    /// Its number, from 1.
    step: usize,
    /// The learning rate.
    rate: f64,
    /// What is learnt from.
    examples: Vec<DumpedExample<'a>>,
}

#[derive(Serialize)]
struct DumpedExample<'a> {
    /// file:line.
    place: &'a str,
    tokens: &'a [u32],
    /// Which of them are learnt.
    learnt: &'a [bool],
    /// Places of those that choose a quote.
    choices: &'a [usize],
    /// The first token that the adapter acts on.
    late: usize,
    /// In the first step, −ln p of each token that is learnt, in their order, by the adapter that the run starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    losses: Option<Vec<f32>>,
}

impl Run<'_> {
    /// Writes each step's rate and examples as a line of JSON; those of the first step with the losses of their tokens at the start.
    ///
    /// # Errors
    /// When the disk refuses, or what the base has read cannot be kept.
    pub fn dump(&self, parameters: &Parameters, out: &mut impl Write) -> Result<(), DumpError> {
        for step in 1..=self.steps() {
            let members = self.members(step);
            let mut losses = match step {
                1 => self.losses_apart(parameters)?.into_iter().map(Some).collect(),
                _ => vec![None; members.len()],
            };
            let examples = members.iter().zip(&mut losses).map(|(example, losses)| DumpedExample {
                place: &example.place,
                tokens: &example.tokens,
                learnt: &example.learnt,
                choices: &example.choices,
                late: example.late,
                losses: losses.take(),
            });
            let rate = rate(self.settings, step, self.steps());
            serde_json::to_writer(&mut *out, &Dumped { step, rate, examples: examples.collect() })
                .map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// The losses of the first step's examples, token by token, before it.
    fn losses_apart(&self, parameters: &Parameters) -> Result<Vec<Vec<f32>>, RunError> {
        let mut graph = Graph::new(&self.model.decoder);
        let mut prefixes = self.prefixes()?;
        let members = self.members(1);
        let mut apart = vec![Vec::new(); members.len()];
        for (mut batch, places) in pack(&members, self.settings.row_tokens, 1.0, 1.0) {
            fill(&mut prefixes, &mut graph, &mut batch, &members, &places);
            let losses = graph.losses(&batch, Some(parameters));
            for (target, loss) in batch.targets.iter().zip(losses.nll) {
                // The spans are in the order of the rows.
                let span = batch.spans.partition_point(|span| span.end <= target.row);
                apart[places[span]].push(loss);
            }
        }
        Ok(apart)
    }
}

/// Why a run cannot be written down.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The disk refuses.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What the run itself would meet.
    #[error(transparent)]
    Run(#[from] RunError),
}
