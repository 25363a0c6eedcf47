//! Everything that a build of the index needs, for whoever starts one: the command line, a server, a watch over the folder.

use std::sync::Arc;

use jiff::ZonedDateTime;

use super::IngestError;
use super::build::{BuildOptions, BuildReport, BuildTools, Progress, build_with};
use super::chunk::estimate_tokens;
use crate::model::embed::{EmbedError, Embedder};
use crate::store::disk::Filesystem;

/// Loads the embedder that makes the vectors of chunks.
pub type LoadEmbedder = Arc<dyn Fn() -> Result<Arc<dyn Embedder>, EmbedError> + Send + Sync>;

/// Builds the index of a guideline folder.
#[derive(Clone)]
pub struct Indexer {
    /// What it builds.
    pub options: BuildOptions,
    /// Counts the tokens of a text; for chunks.
    pub count_tokens: Arc<dyn Fn(&str) -> usize + Send + Sync>,
    /// Loads the embedder when a build begins; the index is searched by words alone where there is none.
    pub embedder: Option<LoadEmbedder>,
}

impl Indexer {
    /// Builds with estimated token counts and without an embedder.
    #[must_use]
    pub fn new(options: BuildOptions) -> Self {
        Self { options, count_tokens: Arc::new(estimate_tokens), embedder: None }
    }

    /// Builds a generation and makes it live. `strict` refuses any error of a file.
    ///
    /// # Errors
    /// As [`build_with`], and when the embedder cannot be loaded.
    pub fn build(
        &self,
        strict: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<BuildReport, IngestError> {
        let embedder = self.embedder.as_ref().map(|load| load()).transpose()?;
        let tools = BuildTools {
            disk: &Filesystem,
            count_tokens: &*self.count_tokens,
            embedder: embedder.as_deref(),
        };
        let options = BuildOptions { strict: self.options.strict || strict, ..self.options.clone() };
        build_with(tools, &options, ZonedDateTime::now().date(), progress)
    }

    /// As [`build`](Self::build), on a thread of its own that gives way to everything else on the machine, with all threads that it
    /// starts: what is being served must not feel it.
    ///
    /// # Errors
    /// As [`build`](Self::build), and when there is no thread to be had.
    pub fn build_giving_way(
        &self,
        strict: bool,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<BuildReport, IngestError> {
        std::thread::scope(|scope| {
            let worker = std::thread::Builder::new().name("index-build".to_owned());
            let spawned = worker.spawn_scoped(scope, || {
                give_way();
                self.build(strict, progress)
            });
            let handle = spawned.map_err(|source| IngestError::Thread { source })?;
            handle.join().unwrap_or(Err(IngestError::Panicked))
        })
    }
}

/// Lowers the priority of this thread and of those that it starts.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        // On Linux a priority is a thread's own, whatever the name says, and inherited.
        const LOWEST: i32 = 19;
        let _ = rustix::process::setpriority_process(None, LOWEST);
    }
}
