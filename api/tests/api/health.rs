//! `/health/live`, `/health/ready`, `/metrics`.

use crate::world::{USER, World};
use serde_json::json;

#[tokio::test]
async fn health_needs_no_token_and_tells_of_no_tenant() {
    let world = World::new().await;
    let live = world.call("GET", "//raw/health/live").anonymous().send().await;
    assert_eq!(live.is(200).body, json!({"status": "ok"}));
    world.user("bo").await;
    world.get("/Users?count=0").await.is(200);
    let ready = world.call("GET", "//raw/health/ready").anonymous().send().await;
    assert_eq!(ready.is(200).body["status"], "ok");
    assert_eq!(ready.body["readModel"]["parkedEntities"], 0);
    assert!(!ready.body.to_string().contains("acme"));
    let metrics = world.call("GET", "//raw/metrics").anonymous().send().await;
    assert_eq!(metrics.is(200).body, "metrics_text 1\n");
    assert!(metrics.header("content-type").starts_with("text/plain"));
}

#[tokio::test]
async fn a_stopping_process_is_not_ready_but_serves() {
    let world = World::new().await;
    world.readiness.stop();
    assert_eq!(world.get("//raw/health/ready").await.is(503).body["status"], "stopping");
    world.get("//raw/health/live").await.is(200);
    world.get("/Users").await.is(200);
}

#[tokio::test]
async fn stopped_writes_answer_503_and_reads_go_on() {
    let world = World::new().await;
    let id = world.user("bo").await["id"].as_str().unwrap().to_owned();
    world.store.halt("the journal was restored").await.unwrap();
    let answer = world.post("/Users", json!({"schemas": [USER], "userName": "emil"})).await;
    answer.is_error(503, "");
    assert!(answer.header("retry-after").parse::<u32>().is_ok());
    world.get(&format!("/Users/{id}")).await.is(200);
    world.get("/Users").await.is(200);
    assert_eq!(world.get("//raw/health/ready").await.is(200).body["status"], "degraded");
}

#[tokio::test]
async fn a_process_without_scim_answers_about_its_health_only() {
    let mut world = World::new().await;
    let app = annals_api::App::new(world.store.clone(), crate::world::options(), world.readiness.clone());
    world.router = annals_api::health_router(app);
    world.get("//raw/health/live").await.is(200);
    world.get("//raw/health/ready").await.is(200);
    world.get("//raw/metrics").await.is_error(404, "");
    world.get("/Users").await.is_error(404, "");
    world.call("POST", "//raw/health/live").send().await.is_error(405, "");
}
