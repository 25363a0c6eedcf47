//! What the base has read before late adapters begin, kept from epoch to epoch as far as memory goes.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::{Batch, Prefix};
use super::examples::Example;
use super::graph::Graph;

/// Prefixes by their tokens.
#[derive(Debug)]
pub struct Prefixes {
    kept: HashMap<Vec<u32>, Arc<Prefix>>,
    bytes: usize,
    budget: usize,
}

impl Prefixes {
    /// None yet; at most `budget` bytes will be kept. What comes first stays: an epoch asks for each once, so that throwing out the
    /// oldest would throw out each before it is asked for again.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self { kept: HashMap::new(), bytes: 0, budget }
    }

    /// Bytes that are kept.
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
        let prefix = Arc::new(graph.prefix(tokens));
        if self.bytes + prefix.bytes() <= self.budget {
            self.bytes += prefix.bytes();
            self.kept.insert(tokens.to_vec(), Arc::clone(&prefix));
        }
        prefix
    }
}
