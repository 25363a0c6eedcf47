//! Takes connections until it is told to stop, then drains them within a deadline.
//!
//! axum's own `serve` has no limit on how slowly a head may come, none on the number of connections,
//! and at its end waits for connections for ever; so this one drives hyper itself.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::admin::Peer;
use super::socket::StallGuard;
use super::state::AppState;
use super::{HttpSettings, router};

/// Bytes that a request's head may have, and that hyper buffers at a time.
const MAX_HEAD: usize = 64 * 1024;
/// How long to wait when the system gives no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// What streams that the deadline ends have to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is done. Then no connection and no request is taken any more, and the
/// answers under way have `drain` to finish; those that do not are ended with an `error` event. Returns
/// within about a second of that, whatever clients do; the engine is told to end in any case.
///
/// # Errors
/// When the listener cannot be used at all.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) -> io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "listening");
    let router = router(state.clone());
    let places = Arc::new(Semaphore::new(state.settings().max_connections.min(Semaphore::MAX_PERMITS)));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (socket, peer, place) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let served = connection(
            socket,
            router.clone().layer(Extension(Peer(peer))),
            state.settings(),
            stopping.clone(),
        );
        connections.spawn(async move {
            served.await;
            drop(place);
        });
    }
    tracing::info!(connections = connections.len(), "shutting down");
    state.begin_shutdown();
    drop(listener);
    stop.send_replace(true);
    if timeout(drain, all(&mut connections)).await.is_err() {
        tracing::warn!(connections = connections.len(), "the deadline has passed; ending what still runs");
        state.abort();
        if timeout(LAST_WORDS, all(&mut connections)).await.is_err() {
            connections.abort_all();
        }
    }
    state.abort();
    Ok(())
}

async fn all<T: 'static>(tasks: &mut JoinSet<T>) {
    while tasks.join_next().await.is_some() {}
}

/// The next connection and its place among those allowed.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there is always a place in the end.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => return (socket, peer, place),
            // The client was gone before it was taken.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be taken");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end; from the signal on, to the end of the request under way.
fn connection(
    socket: TcpStream,
    router: Router,
    settings: &HttpSettings,
    mut stopping: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout).max_buf_size(MAX_HEAD);
    // Tokens are small, and each should be seen at once.
    let _: Result<(), _> = socket.set_nodelay(true);
    let socket = TokioIo::new(StallGuard::new(socket, settings.write_timeout));
    async move {
        let mut connection = pin!(http.serve_connection(socket, TowerToHyperService::new(router)));
        let told = async move { stopping.wait_for(|stop| *stop).await.map(drop) };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = told => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
