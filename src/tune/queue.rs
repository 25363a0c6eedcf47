//! Runs of tuning that a server was asked for: one at a time, each in a process of its own with lower priority.
//!
//! A job is a folder: `job.json` (what was asked and how it stands), `tune.toml` (the run), `log.txt` (what the run said), `adapter/` (what
//! came of it). A job that was running when the server ended goes on when it starts again, from its last checkpoint.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::checkpoint::write_whole;
use super::files::{DataFiles, FileError};
use super::progress::Step;
use super::settings::TuneSettings;

/// Jobs that may wait.
pub const MOST_WAITING: usize = 16;
/// How often a running process is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// It waits for the one before it.
    Queued,
    /// It trains.
    Running,
    /// Its adapter is loaded.
    Succeeded,
    /// It ended without an adapter.
    Failed,
    /// Someone ended it.
    Cancelled,
}

impl JobStatus {
    /// Whether it waits or runs.
    fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }
}

/// What may be chosen of a run; the rest is the recipe's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Hyperparameters {
    /// Passes over the data.
    pub n_epochs: Option<usize>,
    /// Examples of a step.
    pub batch_size: Option<usize>,
    /// Times the recipe's learning rate.
    pub learning_rate_multiplier: Option<f64>,
}

/// What a job is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// The file of the queue's folder `files` to learn from.
    pub training_file: String,
    /// The one that says when to stop.
    pub validation_file: Option<String>,
    /// What the adapter's name begins with.
    pub suffix: Option<String>,
    /// Decides the start and the order.
    pub seed: Option<u64>,
    /// Choices.
    pub hyperparameters: Hyperparameters,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// When it was asked for, in seconds since 1970.
    pub created_at: i64,
    /// Its place in the line, which seconds do not tell. Files of before have none.
    #[serde(default)]
    pub place: u64,
    /// When it ended.
    pub finished_at: Option<i64>,
    /// Where it stands.
    pub status: JobStatus,
    /// The base model.
    pub model: String,
    /// What was asked.
    pub request: JobRequest,
    /// The name of its adapter, once that is loaded.
    pub fine_tuned_model: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What happened: when, and what.
    pub events: Vec<(i64, String)>,
}

impl Job {
    /// What jobs are ordered by: who came first.
    fn line(&self) -> (u64, i64, &str) {
        (self.place, self.created_at, &self.id)
    }
}

/// Why a job was not taken or cannot be ended.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A field has a value that it cannot have.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: &'static str,
        /// What is wrong, and the mend.
        message: String,
    },
    /// There is no such job.
    #[error("there is no job `{0}`")]
    Unknown(String),
    /// It has ended.
    #[error("the job `{id}` has ended ({status:?}) and cannot be cancelled")]
    Ended {
        /// The job.
        id: String,
        /// How.
        status: JobStatus,
    },
    /// A file that runs learn from.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file must stay.
    #[error("the job `{job}` still needs the file `{name}`; cancel it first, or wait")]
    Needed {
        /// The file.
        name: String,
        /// Who needs it.
        job: String,
    },
    /// Too many wait.
    #[error("{MOST_WAITING} jobs are waiting; try again when one has ended")]
    Full,
    /// The disk, or a file of the queue's.
    #[error("{0}")]
    Disk(String),
}

/// What a queue is made of.
pub struct QueueParts {
    /// The folder.
    pub directory: PathBuf,
    /// The run that jobs are variants of.
    pub recipe: PathBuf,
    /// The program that trains.
    pub program: PathBuf,
    /// Arguments that go before `tune`, such as a settings file.
    pub arguments: Vec<String>,
    /// The base model that serves.
    pub model: String,
    /// Loads a finished adapter under a name.
    pub load: Box<LoadAdapter>,
}

/// Loads the adapter of a folder under a name, or says why not.
pub type LoadAdapter = dyn Fn(&str, &Path) -> Result<(), String> + Send + Sync;

/// The jobs of a server; clones share them.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

struct Shared {
    parts: QueueParts,
    files: DataFiles,
    state: Mutex<State>,
    changed: Condvar,
    /// Held as long as the queue lives: one that has ended, in whatever way, keeps nobody out.
    _lock: File,
}

/// Takes a folder for this server alone: two would run each other's jobs and sweep away each other's uploads.
fn lock(directory: &Path) -> Result<File, QueueError> {
    let path = directory.join("lock");
    let failed = |e: std::io::Error| QueueError::Disk(format!("cannot lock {}: {e}", path.display()));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(e)) => Err(failed(e)),
        Err(TryLockError::WouldBlock) => Err(QueueError::Disk(format!(
            "another server tunes in {}; end it, or set tuning.directory to another folder",
            directory.display()
        ))),
    }
}

struct State {
    jobs: BTreeMap<String, Job>,
    stopping: bool,
    made: u64,
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

impl Queue {
    /// Opens the queue in a folder: loads the adapters of jobs that are done. [`Queue::work`] runs the others.
    ///
    /// # Errors
    /// When the folder cannot be read or made, another server has it, or a job in it is damaged.
    pub fn open(parts: QueueParts) -> Result<Self, QueueError> {
        let folder = parts.directory.join("jobs");
        std::fs::create_dir_all(&folder)
            .map_err(|e| QueueError::Disk(format!("cannot create {}: {e}", folder.display())))?;
        let lock = lock(&parts.directory)?;
        let files = DataFiles::open(&parts.directory.join("files"))?;
        let mut jobs = BTreeMap::new();
        let entries = std::fs::read_dir(&folder)
            .map_err(|e| QueueError::Disk(format!("cannot read {}: {e}", folder.display())))?;
        for entry in entries.flatten() {
            let path = entry.path().join("job.json");
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let job: Job = serde_json::from_slice(&bytes).map_err(|e| {
                QueueError::Disk(format!("{} is damaged: {e}; remove its folder", path.display()))
            })?;
            jobs.insert(job.id.clone(), job);
        }
        for job in jobs.values() {
            if job.model != parts.model {
                let (id, model) = (&job.id, &job.model);
                tracing::warn!(job = id, model, "of another base than the one that serves: left as it is");
                continue;
            }
            let Some(name) = &job.fine_tuned_model else { continue };
            if let Err(error) = (parts.load)(name, &folder.join(&job.id).join("adapter")) {
                tracing::warn!(job = job.id, adapter = name, error, "left out");
            }
        }
        let made = jobs.values().map(|job| job.place).max().unwrap_or_default();
        let state = State { jobs, stopping: false, made };
        Ok(Self(Arc::new(Shared {
            parts,
            files,
            state: Mutex::new(state),
            changed: Condvar::new(),
            _lock: lock,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.0.parts.directory.join("jobs").join(id)
    }

    /// All jobs, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self.state().jobs.values().cloned().collect();
        jobs.sort_by(|a, b| b.line().cmp(&a.line()));
        jobs
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn get(&self, id: &str) -> Result<Job, QueueError> {
        self.state().jobs.get(id).cloned().ok_or_else(|| QueueError::Unknown(id.to_owned()))
    }

    /// The steps that a job has done.
    #[must_use]
    pub fn steps(&self, id: &str) -> Vec<Step> {
        let path = self.folder(id).join("adapter/run/metrics.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // A line that is being written is not whole yet.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Takes a job.
    ///
    /// # Errors
    /// When a file is missing or has faults, a value makes no sense, too many wait, or the disk refuses.
    pub fn create(&self, request: JobRequest) -> Result<Job, QueueError> {
        let parts = &self.0.parts;
        let invalid = |param, message: String| QueueError::Invalid { param, message };
        let mut tune = TuneSettings::read(&parts.recipe).map_err(|e| QueueError::Disk(e.to_string()))?;
        tune.base.clone_from(&parts.model);
        let files = &self.0.files;
        let file = |param: &'static str, looked: Result<PathBuf, FileError>| match looked {
            Err(FileError::Disk(reason)) => Err(QueueError::Disk(reason)),
            other => other.map_err(|error| invalid(param, error.to_string())),
        };
        tune.data.train = vec![file("training_file", files.learnable(&request.training_file))?];
        let valid = request.validation_file.as_ref().map(|name| file("validation_file", files.sound(name)));
        tune.data.valid = valid.transpose()?.into_iter().collect();
        let choices = request.hyperparameters;
        if let Some(epochs) = choices.n_epochs {
            (tune.training.epochs, tune.training.steps) = (epochs, 0);
        }
        if let Some(batch) = choices.batch_size {
            tune.training.batch = batch;
        }
        if let Some(times) = choices.learning_rate_multiplier {
            tune.training.learning_rate *= times;
        }
        if let Some(seed) = request.seed {
            tune.training.seed = seed;
        }
        if choices.n_epochs.is_some_and(|n| n > 50) {
            return Err(invalid("hyperparameters.n_epochs", "n_epochs must be at most 50".into()));
        }
        if choices.batch_size.is_some_and(|n| n > 256) {
            return Err(invalid("hyperparameters.batch_size", "batch_size must be at most 256".into()));
        }
        if tune.budget.forgetting.is_some() && tune.data.valid.is_empty() {
            let why = "the server's recipe has a budget.forgetting, which is watched while a validation file is looked at; name one";
            return Err(invalid("validation_file", why.into()));
        }
        if let Some((key, problem)) = tune.problem() {
            return Err(invalid("hyperparameters", format!("{key} {problem}")));
        }
        let suffix = request.suffix.as_deref().unwrap_or("tuned");
        if suffix.is_empty()
            || suffix.len() > 40
            || !suffix.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        {
            return Err(invalid("suffix", "a suffix has 1 to 40 letters, digits and -".into()));
        }
        let mut state = self.state();
        if state.jobs.values().filter(|job| job.status == JobStatus::Queued).count() >= MOST_WAITING {
            return Err(QueueError::Full);
        }
        // From here on nobody takes them away; one may have since they were looked over.
        self.0.files.path(&request.training_file)?;
        request.validation_file.as_ref().map(|name| self.0.files.path(name)).transpose()?;
        state.made += 1;
        let moment = Timestamp::now().as_nanosecond();
        let digest = crate::model::fingerprint([
            &moment.to_le_bytes()[..],
            &state.made.to_le_bytes(),
            &std::process::id().to_le_bytes(),
        ]);
        let id = format!("ftjob-{}", &digest[..16]);
        let folder = self.folder(&id);
        tune.output = folder.join("adapter");
        std::fs::create_dir_all(&folder)
            .map_err(|e| QueueError::Disk(format!("cannot create {}: {e}", folder.display())))?;
        let text = toml::to_string_pretty(&tune).map_err(|e| QueueError::Disk(e.to_string()))?;
        write_whole(&folder.join("tune.toml"), text.as_bytes())
            .map_err(|e| QueueError::Disk(e.to_string()))?;
        let job = Job {
            id: id.clone(),
            created_at: now(),
            place: state.made,
            finished_at: None,
            status: JobStatus::Queued,
            model: parts.model.clone(),
            request,
            fine_tuned_model: None,
            error: None,
            events: vec![(now(), "the job was taken".into())],
        };
        self.keep(&job)?;
        state.jobs.insert(id, job.clone());
        drop(state);
        self.0.changed.notify_all();
        Ok(job)
    }

    /// The files that jobs learn from.
    #[must_use]
    pub fn files(&self) -> &DataFiles {
        &self.0.files
    }

    /// Takes a file away that no job needs any more.
    ///
    /// # Errors
    /// When a job needs it, there is none of that name, or the disk refuses.
    pub fn remove_file(&self, name: &str) -> Result<(), QueueError> {
        // Held, so that no job begins that needs it.
        let state = self.state();
        let needs = |job: &&Job| {
            let JobRequest { training_file, validation_file, .. } = &job.request;
            job.status.is_open() && (training_file == name || validation_file.as_deref() == Some(name))
        };
        if let Some(job) = state.jobs.values().find(needs) {
            return Err(QueueError::Needed { name: name.to_owned(), job: job.id.clone() });
        }
        Ok(self.0.files.remove(name)?)
    }

    /// Ends a job.
    ///
    /// # Errors
    /// When there is no such job, or it has ended.
    pub fn cancel(&self, id: &str) -> Result<Job, QueueError> {
        let mut state = self.state();
        let job = state.jobs.get_mut(id).ok_or_else(|| QueueError::Unknown(id.to_owned()))?;
        match job.status {
            JobStatus::Queued | JobStatus::Running => {
                job.status = JobStatus::Cancelled;
                job.finished_at = Some(now());
                job.events.push((now(), "the job was cancelled".into()));
            }
            status => return Err(QueueError::Ended { id: id.to_owned(), status }),
        }
        let job = job.clone();
        let kept = self.keep(&job);
        drop(state);
        self.0.changed.notify_all();
        kept.map(|()| job)
    }

    /// Ends the worker; a running job goes on at the next start.
    pub fn stop(&self) {
        self.state().stopping = true;
        self.0.changed.notify_all();
    }

    /// Writes how a job stands, while the state is held: what was written last must be what holds.
    fn keep(&self, job: &Job) -> Result<(), QueueError> {
        let text = serde_json::to_vec_pretty(job).map_err(|e| QueueError::Disk(e.to_string()))?;
        write_whole(&self.folder(&job.id).join("job.json"), &text)
            .map_err(|e| QueueError::Disk(e.to_string()))
    }

    /// Changes a job that has not ended; one that was cancelled meanwhile stays so.
    fn change(&self, id: &str, change: impl FnOnce(&mut Job)) {
        let mut state = self.state();
        let Some(job) = state.jobs.get_mut(id) else { return };
        if !job.status.is_open() {
            return;
        }
        change(job);
        self.note(job);
    }

    /// As [`Queue::keep`], where nobody waits to hear that it failed.
    fn note(&self, job: &Job) {
        if let Err(error) = self.keep(job) {
            tracing::error!(job = job.id, %error, "the state of a job was not kept");
        }
    }

    /// Runs jobs until [`Queue::stop`]; blocks.
    pub fn work(&self) {
        loop {
            let mut state = self.state();
            let id = loop {
                if state.stopping {
                    return;
                }
                match self.next(&state) {
                    Some(id) => break id,
                    None => state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            self.run(&id);
        }
    }

    /// The job that is to be run now. Those of another base wait until that one serves.
    fn next(&self, state: &State) -> Option<String> {
        let open = |job: &&Job| job.status.is_open() && job.model == self.0.parts.model;
        // One that was running when the server ended goes on first.
        let next = state.jobs.values().filter(open).min_by(|a, b| {
            (a.status != JobStatus::Running, a.line()).cmp(&(b.status != JobStatus::Running, b.line()))
        });
        next.map(|job| job.id.clone())
    }

    fn run(&self, id: &str) {
        self.change(id, |job| {
            let what = if job.status == JobStatus::Running { "the run goes on" } else { "the run began" };
            job.status = JobStatus::Running;
            job.events.push((now(), what.into()));
        });
        if self.get(id).is_ok_and(|job| job.status != JobStatus::Running) {
            return;
        }
        tracing::info!(job = id, "a run of tuning began");
        let folder = self.folder(id);
        let ended = self.spawn(&folder).and_then(|child| self.wait(id, child));
        match ended {
            // Cancelled, or the server stops.
            Ok(None) => {}
            Ok(Some(status)) if status.success() => self.succeed(id, &folder),
            Ok(Some(status)) => {
                let log = std::fs::read_to_string(folder.join("log.txt")).unwrap_or_default();
                self.fail(id, why(status, &log));
            }
            Err(error) => self.fail(id, error),
        }
    }

    /// Loads the adapter of a job, unless that was cancelled. The state is held meanwhile: who cancels it a moment later learns that it has
    /// ended.
    fn succeed(&self, id: &str, folder: &Path) {
        let mut state = self.state();
        let Some(job) = state.jobs.get_mut(id).filter(|job| job.status.is_open()) else { return };
        let short: String = id.trim_start_matches("ftjob-").chars().take(8).collect();
        let name = format!("{}-{short}", job.request.suffix.as_deref().unwrap_or("tuned"));
        if let Err(error) = (self.0.parts.load)(&name, &folder.join("adapter")) {
            drop(state);
            return self.fail(id, error);
        }
        tracing::info!(job = id, adapter = name, "a run of tuning succeeded");
        job.status = JobStatus::Succeeded;
        job.finished_at = Some(now());
        job.events.push((now(), format!("the adapter `{name}` is loaded")));
        job.fine_tuned_model = Some(name);
        self.note(job);
    }

    fn fail(&self, id: &str, error: String) {
        tracing::error!(job = id, error, "a run of tuning failed");
        self.change(id, |job| {
            job.status = JobStatus::Failed;
            job.finished_at = Some(now());
            job.events.push((now(), format!("the run failed: {error}")));
            job.error = Some(error);
        });
    }

    fn spawn(&self, folder: &Path) -> Result<Child, String> {
        let log = |e: std::io::Error| format!("cannot write {}: {e}", folder.join("log.txt").display());
        let out = File::options().create(true).append(true).open(folder.join("log.txt")).map_err(log)?;
        let error = out.try_clone().map_err(log)?;
        let parts = &self.0.parts;
        Command::new(&parts.program)
            .args(&parts.arguments)
            .args(["tune", "--job", "--run"])
            .arg(folder.join("tune.toml"))
            // It ends when this end closes, even when the server is killed.
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(error)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", parts.program.display()))
    }

    /// Waits for a process to end; how it did, or nothing when it was ended from here.
    fn wait(&self, id: &str, mut child: Child) -> Result<Option<ExitStatus>, String> {
        let mut asked = false;
        loop {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                return Ok((!asked).then_some(status));
            }
            let state = self.state();
            let cancelled = state.jobs.get(id).is_none_or(|job| !job.status.is_open());
            if !asked && (state.stopping || cancelled) {
                asked = true;
                // It saves a checkpoint and ends.
                drop(child.stdin.take());
            }
            drop(self.0.changed.wait_timeout(state, LOOK));
        }
    }
}

/// Why a process failed, by its last word. One that was ended from outside had no time for any.
fn why(status: ExitStatus, log: &str) -> String {
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    let last: String = last.chars().take(400).collect();
    match status.code() {
        Some(_) => last,
        None => {
            format!("ended from outside, {status} (9 is most often want of memory); its last line: {last}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const RECIPE: &str = "objective = \"x\"\nbase = \"b\"\noutput = \"o\"\n[data]\ntrain = [\"t\"]\n";
    /// As few as are taken.
    const WORDS: [&str; 10] =
        ["gout", "croup", "burns", "fever", "sprain", "cough", "anaemia", "eczema", "migraine", "angina"];

    /// A queue that trains nothing, and how many adapters it has loaded.
    fn queue(folder: &Path) -> (Queue, Arc<AtomicUsize>) {
        queue_of(folder, "b")
    }

    /// The same where another base serves.
    fn queue_of(folder: &Path, model: &str) -> (Queue, Arc<AtomicUsize>) {
        let directory = folder.join("tuning");
        std::fs::create_dir_all(directory.join("files")).unwrap();
        let line = |word: &&str| {
            let turn = |role: &str, content: String| serde_json::json!({ "role": role, "content": content });
            let asked = turn("user", format!("What of {word} on the ward?"));
            let said = turn("assistant", format!("For {word} ring the bell, {word} first."));
            serde_json::json!({ "messages": [asked, said] }).to_string() + "\n"
        };
        let lines: String = WORDS.iter().map(line).collect();
        std::fs::write(directory.join("files/t.jsonl"), lines).unwrap();
        std::fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
        let loaded = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&loaded);
        let parts = QueueParts {
            directory,
            recipe: folder.join("recipe.toml"),
            program: "no such program".into(),
            arguments: Vec::new(),
            model: model.into(),
            load: Box::new(move |_, _| {
                counter.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }),
        };
        (Queue::open(parts).unwrap(), loaded)
    }

    fn job(queue: &Queue) -> String {
        queue.create(JobRequest { training_file: "t.jsonl".into(), ..JobRequest::default() }).unwrap().id
    }

    fn begin(job: &mut Job) {
        job.status = JobStatus::Running;
    }

    /// Also where another one is cancelled before the worker has looked; and one that ends by itself just then loads nothing.
    #[cfg(unix)]
    #[test]
    fn who_is_cancelled_is_ended_and_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, loaded) = queue(dir.path());
        let (first, second) = (job(&queue), job(&queue));
        queue.change(&first, begin);
        queue.cancel(&first).unwrap();
        queue.cancel(&second).unwrap();
        // Ends by itself, as a run does that hears too late that it should.
        let child = Command::new("sleep").arg("1").stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(queue.wait(&first, child), Ok(None), "it was not asked to end");
        let mut killed = Command::new("sleep").arg("60").spawn().unwrap();
        killed.kill().unwrap();
        let said = why(killed.wait().unwrap(), "step 3/9  loss 0.8\n\n");
        assert!(said.contains("signal: 9") && said.contains("step 3/9"), "{said}");
        queue.succeed(&first, &queue.folder(&first));
        assert_eq!(loaded.load(Ordering::SeqCst), 0);
        let ended = queue.get(&first).unwrap();
        assert_eq!((ended.status, ended.fine_tuned_model), (JobStatus::Cancelled, None));

        let third = job(&queue);
        queue.change(&third, begin);
        queue.succeed(&third, &queue.folder(&third));
        assert_eq!(loaded.load(Ordering::SeqCst), 1);
        assert!(matches!(queue.cancel(&third), Err(QueueError::Ended { status: JobStatus::Succeeded, .. })));
    }

    #[test]
    fn jobs_of_another_base_are_left_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, _) = queue(dir.path());
        let (done, open) = (job(&queue), job(&queue));
        queue.change(&done, begin);
        queue.succeed(&done, &queue.folder(&done));
        drop(queue);
        let (other, loaded) = queue_of(dir.path(), "c");
        assert_eq!(loaded.load(Ordering::SeqCst), 0, "its adapter is made for `b`");
        assert_eq!(other.next(&other.state()), None);
        assert_eq!(other.get(&open).unwrap().status, JobStatus::Queued);
        drop(other);
        let (again, loaded) = queue_of(dir.path(), "b");
        assert_eq!(loaded.load(Ordering::SeqCst), 1);
        assert_eq!(again.next(&again.state()), Some(open));
    }

    /// Whatever comes first in memory comes first on the disk.
    #[test]
    fn the_file_of_a_job_says_what_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, _) = queue(dir.path());
        for _ in 0..40 {
            let id = job(&queue);
            std::thread::scope(|scope| {
                scope.spawn(|| queue.change(&id, begin));
                scope.spawn(|| queue.cancel(&id).unwrap());
            });
            let bytes = std::fs::read(queue.folder(&id).join("job.json")).unwrap();
            let written: Job = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(written, queue.get(&id).unwrap());
            assert_eq!(written.status, JobStatus::Cancelled);
        }
    }
}
