//! Whether the process lives, whether it can serve, and what it counts. For machines next door: none of
//! it needs a token, none of it tells about a tenant.

use annals_store::Result;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{ApiError, chain};

/// `GET /health/live`: the process answers. Says nothing about anything it depends on, so that an outage
/// of the database restarts no process.
pub(crate) async fn live() -> Response {
    answer(StatusCode::OK, &json!({ "status": "ok" }))
}

/// `GET /health/ready`: 200 if requests can be served. `degraded` is ready too: reads work while writes
/// are stopped, and old rows answer for parked entities (D11).
pub(crate) async fn ready(State(app): State<App>) -> Response {
    if app.readiness.is_stopping() {
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "stopping" }));
    }
    match examine(&app).await {
        Ok(report) => {
            let status = match report["status"].as_str() {
                Some("ok" | "degraded") => StatusCode::OK,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            answer(status, &report)
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "the readiness check failed");
            answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "failed", "journal": "unreachable" }))
        }
    }
}

async fn examine(app: &App) -> Result<Value> {
    if !app.store.is_migrated().await? {
        return Ok(json!({ "status": "failed", "journal": "its tables are not those of this build" }));
    }
    let head = app.store.head().await?;
    let model = app.store.model_health().await?;
    let sound = head.halted.is_none() && model.parked == 0 && !model.rebuild_needed;
    Ok(json!({
        "status": if sound { "ok" } else { "degraded" },
        "journal": { "position": head.position, "epoch": head.epoch, "writesStopped": head.halted.is_some() },
        "readModel": {
            "position": model.checkpoint,
            "lagPositions": (head.position - model.checkpoint).max(0),
            "generation": model.generation,
            "parkedEntities": model.parked,
            "rebuildNeeded": model.rebuild_needed,
        },
    }))
}

/// `GET /metrics`: the text format of Prometheus.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let Some(render) = &app.metrics else {
        return ApiError::not_found("metrics are not collected").into_response();
    };
    let mut response = Response::new(Body::from(render()));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
