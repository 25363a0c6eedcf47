//! `/admin/*`: who may, and the routes of the index.
//!
//! With a key configured, whoever has it may. Without one, whoever is on this machine may, as far as that can be told: the peer's
//! address is a loopback one, and the request does not come through a proxy or out of a browser's page.

use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, FORWARDED, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::error::ApiError;
use super::jobs::{self, Jobs};
use super::state::AppState;
use super::{HttpSettings, extract};
use crate::store::StoreError;
use crate::store::disk::Filesystem;
use crate::store::publish::{self, BuildLock};

/// A key, as its digest: what is compared has one length, and says nothing of the key.
#[derive(Debug, Clone, Copy)]
pub struct AdminKey([u8; 32]);

impl AdminKey {
    /// Of a key's text.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    fn is(&self, given: &str) -> bool {
        self.0.ct_eq(&Self::new(given).0).into()
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Lets pass who may.
pub(super) async fn guard(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    match allowed(state.settings(), request.headers(), peer) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let mut response = error.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

fn allowed(settings: &HttpSettings, headers: &HeaderMap, peer: Option<Peer>) -> Result<(), ApiError> {
    if let Some(key) = &settings.admin_key {
        let given = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let given =
            given.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        return match given {
            Some((_, given)) if key.is(given.trim()) => Ok(()),
            _ => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the admin key is needed: -H 'authorization: Bearer KEY'",
            )),
        };
    }
    let forbidden = |message| Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
    if !peer.is_some_and(|Peer(address)| is_loopback(address.ip())) {
        return forbidden(
            "without a configured admin key (server.admin_key) this answers on the machine itself only",
        );
    }
    // Behind a proxy everyone is on the machine.
    if headers.contains_key(FORWARDED) || headers.contains_key("x-forwarded-for") {
        return forbidden("behind a proxy an admin key is needed; set server.admin_key");
    }
    // A page in a browser on this machine can send requests as well, and may not know what it is made to send.
    let host = headers.get(HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let site = headers.get("sec-fetch-site").and_then(|v| v.to_str().ok());
    let own = site.is_none_or(|site| matches!(site, "none" | "same-origin"));
    if headers.contains_key(ORIGIN) || !own || !names_loopback(host) {
        return forbidden("for requests of a browser an admin key is needed; set server.admin_key");
    }
    Ok(())
}

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    }
}

/// Whether a `Host` header names this machine by address or as localhost: a page whose own name was made to point here names itself.
fn names_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_loopback)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BuildRequest {
    #[serde(default)]
    strict: bool,
}

/// `POST /admin/index`: starts a build; streams its progress where events are asked for.
pub(super) async fn build(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let answerer = state.answerer()?;
    let asked: BuildRequest = optional(state.settings(), &headers, body).await?;
    let indexer = state.indexer().ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "no_indexer",
            "this server was started without a way to build the index",
        )
    })?;
    state.jobs().start(indexer, answerer, asked.strict)?;
    let wants_events = headers
        .get_all(axum::http::header::ACCEPT)
        .iter()
        .any(|v| v.to_str().is_ok_and(|v| v.contains("text/event-stream")));
    if wants_events {
        return Ok(events_of(state.jobs(), state.settings()));
    }
    Ok((StatusCode::ACCEPTED, Json(state.jobs().status())).into_response())
}

/// A body that may be left out.
async fn optional<T: Default + serde::de::DeserializeOwned>(
    settings: &HttpSettings,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    use axum::body::HttpBody as _;
    if body.is_end_stream() { Ok(T::default()) } else { extract::json(settings, headers, body).await }
}

/// `GET /admin/index`: where the build stands, or how the last one ended.
pub(super) async fn status(State(state): State<AppState>) -> Json<jobs::Status> {
    Json(state.jobs().status())
}

/// `GET /admin/index/events`: the same as it changes, until the build ends.
pub(super) async fn events(State(state): State<AppState>) -> Response {
    events_of(state.jobs(), state.settings())
}

fn events_of(jobs: &Jobs, settings: &HttpSettings) -> Response {
    jobs::response(jobs.watch(), settings.keep_alive)
}

/// `GET /admin/index/generations`: all of them, oldest first.
pub(super) async fn generations(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let answerer = state.answerer()?;
    let listed = tokio::task::spawn_blocking(move || publish::list(answerer.index().directory()));
    let listed = listed.await.map_err(|error| ApiError::internal(&error))?;
    let all: Vec<_> = listed
        .map_err(|error| ApiError::internal(&error))?
        .into_iter()
        .map(|(manifest, live)| json!({ "live": live, "manifest": manifest }))
        .collect();
    Ok(Json(json!({ "generations": all })))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackRequest {
    generation: Option<String>,
}

/// `POST /admin/index/rollback`: makes an older generation the live one.
pub(super) async fn roll_back(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let answerer = state.answerer()?;
    let asked: RollbackRequest = optional(state.settings(), &headers, body).await?;
    let rolled = tokio::task::spawn_blocking(move || {
        let index = answerer.index();
        let manifest =
            BuildLock::take(&Filesystem, index.directory())?.roll_back(asked.generation.as_deref())?;
        index.refresh()?;
        Ok::<_, StoreError>(manifest)
    });
    let manifest = rolled.await.map_err(|error| ApiError::internal(&error))?.map_err(refused)?;
    Ok(Json(json!({ "live": manifest.id })))
}

/// How HTTP says what the store refuses.
pub(super) fn refused(error: StoreError) -> ApiError {
    let message = error.to_string();
    match error {
        StoreError::Busy(_) => ApiError::new(
            StatusCode::CONFLICT,
            "build_running",
            "a build of the index is running; wait for it to finish",
        ),
        StoreError::NoSuchGeneration { .. } => {
            ApiError::new(StatusCode::NOT_FOUND, "no_such_generation", message).param("generation")
        }
        StoreError::NothingBefore => ApiError::new(StatusCode::CONFLICT, "nothing_before", message),
        StoreError::Damaged { .. } | StoreError::Version { .. } => {
            ApiError::new(StatusCode::CONFLICT, "unusable_generation", message).param("generation")
        }
        other => ApiError::internal(&other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(key: Option<&str>, peer: Option<&str>, headers: &[(&'static str, &str)]) -> Option<&'static str> {
        let settings = HttpSettings { admin_key: key.map(AdminKey::new), ..HttpSettings::default() };
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let peer = peer.map(|address| Peer(address.parse().unwrap()));
        allowed(&settings, &headers, peer).err().map(|error| error.code())
    }

    #[test]
    fn with_a_key_the_key_decides() {
        let far = Some("203.0.113.9:1");
        assert_eq!(code(Some("k"), far, &[("authorization", "Bearer k")]), None);
        assert_eq!(code(Some("k"), far, &[("authorization", "bearer  k ")]), None);
        for given in ["Bearer", "Bearer ", "Bearer K", "Bearer kk", "Basic k", "k"] {
            assert_eq!(
                code(Some("k"), Some("127.0.0.1:1"), &[("authorization", given)]),
                Some("unauthorized"),
                "{given}"
            );
        }
        assert_eq!(code(Some("k"), Some("127.0.0.1:1"), &[]), Some("unauthorized"));
    }

    #[test]
    fn without_a_key_only_the_machine_itself_may() {
        let local = ("host", "127.0.0.1:8080");
        for peer in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(code(None, Some(peer), &[local]), None, "{peer}");
        }
        for host in ["localhost:8080", "LOCALHOST", "[::1]:8080", "127.0.0.1"] {
            assert_eq!(code(None, Some("127.0.0.1:1"), &[("host", host)]), None, "{host}");
        }
        for (peer, headers) in [
            (None, &[local][..]),
            (Some("203.0.113.9:1"), &[local]),
            (Some("127.0.0.1:1"), &[]),
            (Some("127.0.0.1:1"), &[("host", "evil.example:8080")]),
            (Some("127.0.0.1:1"), &[local, ("x-forwarded-for", "127.0.0.1")]),
            (Some("127.0.0.1:1"), &[local, ("forwarded", "for=x")]),
            (Some("127.0.0.1:1"), &[local, ("origin", "http://127.0.0.1:8080")]),
        ] {
            assert_eq!(code(None, peer, headers), Some("forbidden"), "{peer:?} {headers:?}");
        }
    }
}
