//! What an operator sees of requests: metrics, log lines, and a panic that is answered.

use std::io::Write;
use std::sync::{Arc, Mutex};

use annals_api::{App, Readiness, router};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;

use crate::world::{USER, World, encode, options};

#[tokio::test]
async fn requests_are_counted_by_route_never_by_path() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Of this thread, which runs the whole test.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
    world.get(&format!("/Users/{id}")).await.is(200);
    world.get(&format!("/Users/{id}")).await.is(200);
    world.get("/t/acme/scim/v2/Users/nobody").await.is(404);
    world.get("//raw/nowhere").await.is(404);
    world.call("BREW", "/Users").send().await.is(405);
    let text = handle.render();
    for line in [
        "annals_http_requests_total{method=\"POST\",route=\"/scim/v2/{endpoint}\",status=\"201\"} 1",
        "annals_http_requests_total{method=\"GET\",route=\"/scim/v2/{endpoint}/{id}\",status=\"200\"} 2",
        "annals_http_requests_total{method=\"GET\",route=\"/t/{tenant}/scim/v2/{endpoint}/{id}\",status=\"404\"} 1",
        "annals_http_requests_total{method=\"GET\",route=\"unmatched\",status=\"404\"} 1",
        "annals_http_requests_total{method=\"other\",route=\"/scim/v2/{endpoint}\",status=\"405\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.contains("annals_http_request_duration_seconds"));
    assert!(!text.contains(&id) && !text.contains("acme"));
}

/// What marks the lines of this test: its request ids, and what no line may contain.
const MARKS: [&str; 4] = ["log-test-", "mara.personal", "S3cret-log", "filter="];

/// Collects the marked lines of the whole process: a subscriber of one thread would depend on which test
/// meets a call site first.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<String>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        if MARKS.iter().any(|mark| line.contains(mark)) {
            self.0.lock().unwrap().push_str(&line);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// SE-008: no query string, no filter, no body is in the log.
#[tokio::test]
async fn log_lines_name_the_request_and_nothing_personal() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let world = World::new().await;
    let name = "mara.personal@example.com";
    let body = json!({"schemas": [USER], "userName": name, "password": "S3cret-log"});
    let send = async |n: u32, method: &str, path: &str, body: &str| {
        let call = world.call(method, path).header("x-request-id", &format!("log-test-{n}"));
        call.header("content-type", "application/json").raw(body.to_owned()).send().await.status.as_u16()
    };
    assert_eq!(send(1, "POST", "/Users", &body.to_string()).await, 201);
    assert_eq!(send(2, "POST", "/Users", &body.to_string()).await, 409);
    let by_name = encode(&format!("userName eq \"{name}\""));
    assert_eq!(send(3, "GET", &format!("/Users?filter={by_name}"), "").await, 200);
    let by_mail = encode(&format!("emails co \"{name}\""));
    assert_eq!(send(4, "GET", &format!("/Users?filter={by_mail}"), "").await, 200);
    assert_eq!(send(5, "GET", "/Users?filter=userName%20eq%20mara.personal", "").await, 400);
    assert_eq!(send(6, "POST", "/Users", "{\"userName\":\"mara.personal").await, 400);
    let text = lines.0.lock().unwrap().clone();
    let line = text.lines().find(|l| l.contains("log-test-1") && l.contains("answered")).unwrap_or_default();
    for part in ["POST /scim/v2/{endpoint} answered 201", "tenant=\"acme\"", "status=201", "duration_ms="] {
        assert!(line.contains(part), "{part} is not in {line:?}");
    }
    for secret in ["mara", "S3cret", world.token.as_str(), "filter="] {
        assert!(!text.contains(secret), "{secret} is in the log: {text}");
    }
}

#[tokio::test]
async fn a_panic_is_answered_and_tells_nothing() {
    let mut world = World::new().await;
    let app = App::new(world.store.clone(), options(), Readiness::new());
    world.router = router(app.with_metrics(Arc::new(|| panic!("internal secret"))));
    let answer = world.get("//raw/metrics").await;
    answer.is_error(500, "");
    assert!(!answer.body.to_string().contains("secret"));
    assert!(!answer.header("x-request-id").is_empty());
    world.get("/Users").await.is(200);
}

#[tokio::test]
async fn a_lost_database_is_503_and_tells_nothing() {
    let world = World::new().await;
    world.store.close().await;
    let answer = world.get("/Users/x").await;
    answer.is_error(503, "");
    assert!(answer.header("retry-after").parse::<u32>().is_ok());
    assert!(!answer.body.to_string().contains("pool"), "{}", answer.body);
    assert_eq!(world.get("//raw/health/ready").await.is(503).body["status"], "failed");
    world.get("//raw/health/live").await.is(200);
}
