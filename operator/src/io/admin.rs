//! The admin port: health and metrics. Nothing here is secret, and nothing can be changed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Registry, TextEncoder};

/// What the port tells.
#[derive(Clone)]
pub struct Admin {
    /// Metrics.
    pub registry: Registry,
    /// Whether the API server was reached. A standby is ready too: it could lead.
    pub ready: Arc<AtomicBool>,
}

/// Serves, for as long as the process lives, and says where.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(address: SocketAddr, admin: Admin) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("--admin {address}"))?;
    let address = listener.local_addr()?;
    let router =
        Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(ready)).route("/metrics", get(metrics)).with_state(admin);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin port ended");
        }
    });
    Ok(address)
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if admin.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server was not reached yet\n")
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    match TextEncoder::new().encode_to_string(&admin.registry.gather()) {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error.to_string()),
    }
}
