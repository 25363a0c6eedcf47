//! What the base has read before late adapters begin, kept from epoch to epoch as far as memory goes, and beyond that in a folder.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::{Batch, Prefix};
use super::examples::Example;
use super::graph::Graph;
use super::prefix_folder::PrefixFolder;
use crate::model::weights::WeightForm;

/// Prefixes by their tokens.
#[derive(Debug)]
pub struct Prefixes {
    kept: HashMap<Vec<u32>, Arc<Prefix>>,
    bytes: usize,
    budget: usize,
    folder: Option<PrefixFolder>,
    form: WeightForm,
    /// Nothing more is written into it.
    ended: bool,
    trouble: Option<String>,
}

impl Prefixes {
    /// None yet, of a base whose weights have this form; at most `budget` bytes will be kept. What comes first stays: an epoch asks for each once, so that throwing out the
    /// oldest would throw out each before it is asked for again.
    #[must_use]
    pub fn new(budget: usize, form: WeightForm) -> Self {
        Self { kept: HashMap::new(), bytes: 0, budget, folder: None, form, ended: false, trouble: None }
    }

    /// And a folder for all of them, those of other runs among them.
    #[must_use]
    pub fn and_in(mut self, folder: Option<PrefixFolder>) -> Self {
        self.folder = folder;
        self
    }

    /// Why nothing more goes into the folder, once.
    pub fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Bytes that are kept in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts in front of a batch's sequences what the base has read before them.
    pub fn fill(&mut self, graph: &mut Graph<'_>, batch: &mut Batch, members: &[&Example]) {
        if members.iter().all(|example| example.late == 0) {
            return;
        }
        batch.prefixes = members.iter().map(|e| (e.late > 0).then(|| self.of(graph, e.before()))).collect();
    }

    fn of(&mut self, graph: &mut Graph<'_>, tokens: &[u32]) -> Arc<Prefix> {
        if let Some(prefix) = self.kept.get(tokens) {
            return Arc::clone(prefix);
        }
        let found = self.folder.as_ref().and_then(|folder| folder.read(tokens));
        // One that an earlier version kept beside weights in 32 bits is written anew.
        let found = found.filter(|prefix| prefix.is_of(self.form));
        let prefix = found.unwrap_or_else(|| {
            let prefix = graph.prefix(tokens, self.form);
            self.keep(tokens, &prefix);
            prefix
        });
        let prefix = Arc::new(prefix);
        if self.bytes + prefix.bytes() <= self.budget {
            self.bytes += prefix.bytes();
            self.kept.insert(tokens.to_vec(), Arc::clone(&prefix));
        }
        prefix
    }

    /// Writes a prefix into the folder, until there is no room or the disk refuses: what is there is still read, and the run needs no more.
    fn keep(&mut self, tokens: &[u32], prefix: &Prefix) {
        let Some(folder) = self.folder.as_mut().filter(|_| !self.ended) else { return };
        let reason = match folder.write(tokens, prefix) {
            Ok(true) => return,
            Ok(false) => "there is no room for more (training.prefix_gigabytes)".to_owned(),
            Err(error) => error.to_string(),
        };
        self.trouble = Some(format!("nothing more is kept in {}: {reason}", folder.path().display()));
        self.ended = true;
    }
}
