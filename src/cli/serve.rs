//! `shishin serve`: listen, load, answer, and stop in good order.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::setup;
use super::signals::Signals;
use crate::answer::Answerer;
use crate::config::{LogFormat, Settings};
use crate::http::{self, AdminKey, AppState, HttpSettings};
use crate::model::fetch::Cancel;
use crate::tune::queue::{Queue, QueueParts};

/// How long an interrupted download may take to clear up.
const CANCEL_GRACE: std::time::Duration = std::time::Duration::from_secs(5);

/// Serves until a signal comes, then lets running answers finish.
///
/// # Errors
/// When the address cannot be had, or the model, an adapter or the index cannot be loaded.
pub fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    start_logs(settings, &settings.log.filter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(settings.clone()));
    // A load that was interrupted must not keep the process.
    runtime.shutdown_background();
    result
}

async fn serve(settings: Settings) -> anyhow::Result<ExitCode> {
    let listen = settings.server.listen;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; choose another address with --listen"))?;
    let address = listener.local_addr()?;

    let state = AppState::new(HttpSettings {
        body_limit: settings.server.body_limit,
        file_limit: settings.tuning.file_limit,
        keep_alive: settings.server.keep_alive,
        admin_key: settings.server.admin_key.as_ref().map(|key| AdminKey::new(&key.0)),
        ..HttpSettings::default()
    });
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let cancel = Cancel::default();
    let (load_state, load_cancel, load_settings) = (state.clone(), cancel.clone(), settings.clone());
    let mut loading = tokio::task::spawn_blocking(move || {
        setup::start(&load_settings, &load_cancel, &|what| load_state.set_detail(what.to_owned()))
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = http::serve(
        listener,
        state.clone(),
        async {
            // A dropped sender stops the server too.
            let _ = stopped.await;
        },
        settings.server.drain,
    );
    let mut server = tokio::spawn(server);

    let running = tokio::select! {
        loaded = &mut loading => match loaded.context("loading panicked") {
            Ok(Ok(running)) => Some(running),
            Ok(Err(error)) | Err(error) => {
                // The reason is what the operator needs, not a server that will never be ready.
                drop(stop);
                return Err(error);
            }
        },
        () = signals.next() => None,
        ended = &mut server => {
            ended.context("the server panicked")?.context("the server failed")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let Some(running) = running else {
        tracing::info!("stopping while loading");
        cancel.cancel();
        // A download clears away its partial files; a load of weights just ends with the process.
        let _ = tokio::time::timeout(CANCEL_GRACE, loading).await;
        return Ok(ExitCode::SUCCESS);
    };
    state.set_indexer(running.indexer);
    let queue = tuning(&settings, &running.answerer)?;
    if let Some(queue) = &queue {
        state.set_queue(queue.clone());
    }
    state.set_ready(running.answerer.clone());
    tracing::info!(%address, "ready");
    let refresher = tokio::spawn(refresh(running.answerer.clone(), settings.index.refresh));

    tokio::select! {
        () = signals.next() => tracing::info!(seconds = settings.server.drain.as_secs(), "stopping; running answers may finish"),
        ended = &mut server => {
            ended.context("the server panicked")?.context("the server failed")?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    refresher.abort();
    if let Some(queue) = &queue {
        queue.stop();
    }
    let _ = stop.send(());
    let ended = tokio::select! {
        ended = &mut server => ended,
        () = signals.next() => {
            tracing::info!("a second signal: ending the running answers");
            running.answerer.engine().abort();
            server.await
        }
    };
    ended.context("the server panicked")?.context("the server failed")?;
    running.answerer.engine().abort();
    tokio::task::spawn_blocking(move || running.engine.join()).await.context("the engine panicked")?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// What runs jobs of tuning, where a folder is named for it; it works on a thread of its own.
fn tuning(settings: &Settings, answerer: &Arc<Answerer>) -> anyhow::Result<Option<Queue>> {
    let Some(directory) = &settings.tuning.directory else { return Ok(None) };
    let to = Arc::clone(answerer);
    let load = move |name: &str, folder: &Path| {
        let adapter = setup::adapter(folder, to.model().1).map_err(|error| format!("{error:#}"))?;
        to.add_adapter(name, &adapter);
        Ok(())
    };
    let config = settings.file.iter().flat_map(|file| ["--config".to_owned(), file.display().to_string()]);
    let queue = Queue::open(QueueParts {
        directory: directory.clone(),
        recipe: settings.tuning.recipe.clone(),
        program: std::env::current_exe().context("cannot find this program")?,
        arguments: config.collect(),
        model: settings.model.name.clone(),
        load: Box::new(load),
    });
    let queue = queue.context("tuning.directory")?;
    let worker = queue.clone();
    std::thread::Builder::new().name("tuning".into()).spawn(move || worker.work())?;
    Ok(Some(queue))
}

/// Looks for a new generation of the index now and then, and swaps it in.
async fn refresh(answerer: std::sync::Arc<crate::answer::Answerer>, every: std::time::Duration) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let answerer = answerer.clone();
        let refreshed = tokio::task::spawn_blocking(move || {
            let swapped = answerer.index().refresh();
            (swapped, answerer.index().snapshot().map(|s| s.generation().to_owned()))
        });
        match refreshed.await {
            Ok((Ok(true), generation)) => tracing::info!(generation, "a new generation of the index is live"),
            Ok((Ok(false), _)) => {}
            Ok((Err(error), _)) => {
                tracing::error!(%error, "the new generation is refused; the old one stays live");
            }
            Err(error) => tracing::error!(%error, "the look for a new generation panicked"),
        }
    }
}

/// Starts logging to standard error.
///
/// # Errors
/// When the filter is none; the settings were checked, so this is a fault of ours.
pub(super) fn start_logs(settings: &Settings, filter: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal as _;
    let filter = EnvFilter::try_new(filter).context("log.filter")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that cannot be written (a full disk, a reader that went away) must not stop the answers.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process (tests) keeps the first one's logger.
    let _ = match settings.log.format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
