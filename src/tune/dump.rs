//! A run, step by step, for another program to do the same.

use std::io::Write;

use serde::Serialize;

use super::graph::Graph;
use super::optimiser::rate;
use super::parameters::Parameters;
use super::run::{Run, RunError};

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
    /// Writes each step's rate and examples as a line of JSON; those of the first step with these losses, as
    /// [`first_losses`](Self::first_losses) gives them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn dump(&self, first_losses: Vec<Vec<f32>>, out: &mut impl Write) -> std::io::Result<()> {
        let mut losses = first_losses.into_iter();
        for step in 1..=self.steps() {
            let members = self.members(step);
            let examples = members.iter().map(|example| DumpedExample {
                place: &example.place,
                tokens: &example.tokens,
                learnt: &example.learnt,
                choices: &example.choices,
                late: example.late,
                losses: losses.next(),
            });
            let rate = rate(self.settings.course(), step, self.steps());
            serde_json::to_writer(&mut *out, &Dumped { step, rate, examples: examples.collect() })?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// The losses of the first step's examples before it, in nats: of each those of the tokens that it has to learn, in their order.
    ///
    /// # Errors
    /// When it is stopped, a loss is not finite, or what the base has read cannot be kept.
    pub fn first_losses(
        &self,
        parameters: &Parameters,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, RunError> {
        let mut graph = Graph::new(&self.model.decoder);
        let mut prefixes = self.prefixes()?;
        let members = self.members(1);
        let mut apart = vec![Vec::new(); members.len()];
        self.each_batch(
            &mut graph,
            &mut prefixes,
            &members,
            Some(parameters),
            0,
            stop,
            |batch, places, losses| {
                for (target, loss) in batch.targets.iter().zip(losses) {
                    // The spans are in the order of the rows.
                    let span = batch.spans.partition_point(|span| span.end <= target.row);
                    apart[places[span]].push(*loss);
                }
            },
        )?;
        Ok(apart)
    }
}
