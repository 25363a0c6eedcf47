//! The way in over HTTP: the only module that knows axum and hyper.
//!
//! In the order in which a request meets them: [`serve`] takes connections and drains them at the end,
//! `observe` gives the request its id, its log line and the form of its errors, [`AppState`] says
//! whether the server is ready, `extract` reads a body into `types`, `chat` answers it through
//! [`crate::answer`], `compare` does so in several modes at once, `sse` writes the answer as events; `search` gives passages alone; `admin` lets operators in, who start
//! `jobs`, and `tuning` the runs of tuning over `files`. `error` maps every refusal to its status.

mod admin;
mod chat;
mod compare;
mod error;
mod extract;
mod files;
mod health;
mod jobs;
mod listen;
mod observe;
mod search;
mod socket;
mod sse;
mod state;
mod tuning;
mod types;

use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

pub use admin::AdminKey;
pub use listen::serve;
pub use state::AppState;

use error::ApiError;

/// Bounds on what clients may send, hold and wait for.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Bytes in a request's body.
    pub body_limit: usize,
    /// Bytes of a file to learn from.
    pub file_limit: u64,
    /// How long a client may take to send a request's head, and how long an idle connection stays open.
    pub header_timeout: Duration,
    /// How long a client may take to send a body.
    pub body_timeout: Duration,
    /// How long a client may leave what it was sent unread.
    pub write_timeout: Duration,
    /// How often a stream that has nothing to say sends a comment.
    pub keep_alive: Duration,
    /// Connections at a time; more wait in the system's backlog.
    pub max_connections: usize,
    /// Requests that retrieve and make their prompt at a time; more wait a moment and are then refused.
    pub preparing: usize,
    /// The key to `/admin/*`; without one they answer on the machine itself only.
    pub admin_key: Option<AdminKey>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_limit: 1 << 20,
            file_limit: 100 << 20,
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            max_connections: 1024,
            preparing: 4,
            admin_key: None,
        }
    }
}

/// The routes over a state; needs no socket.
pub fn router(state: AppState) -> Router {
    let admin = Router::new()
        .route("/index", get(admin::status).post(admin::build))
        .route("/index/events", get(admin::events))
        .route("/index/generations", get(admin::generations))
        .route("/index/rollback", post(admin::roll_back))
        .route_layer(from_fn_with_state(state.clone(), admin::guard));
    let tuning = Router::new()
        .route("/", get(tuning::list).post(tuning::create))
        .route("/{id}", get(tuning::retrieve))
        .route("/{id}/cancel", post(tuning::cancel))
        .route("/{id}/events", get(tuning::events))
        .route("/{id}/checkpoints", get(tuning::checkpoints))
        .route_layer(from_fn_with_state(state.clone(), admin::guard));
    let files = Router::new()
        .route("/", get(files::list).post(files::create))
        .layer(DefaultBodyLimit::max(files::body_limit(state.settings())))
        .route("/{name}", get(files::retrieve).delete(files::remove))
        .route("/{name}/content", get(files::content))
        .route_layer(from_fn_with_state(state.clone(), admin::guard));
    Router::new()
        .nest("/admin", admin)
        .nest("/v1/fine_tuning/jobs", tuning)
        .nest("/v1/files", files)
        .route("/chat", post(chat::chat))
        .route("/compare", post(compare::compare))
        .route("/search", get(search::search))
        .route(health::HEALTH, get(health::health))
        .route(health::READY, get(health::ready))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(state.clone(), observe::observe))
        .with_state(state)
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::no_route(&method, uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(&method, uri.path())
}
