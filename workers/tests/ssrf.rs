//! What must not be reached is not reached, and redirects lead nowhere.

#[expect(dead_code, reason = "each test binary uses a part of the world")]
mod world;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use annals_domain::tenant::Driver;
use annals_store::lanes::LaneState;
use annals_testkit::downstream::{Action, Downstream};
use annals_workers::HttpError;
use annals_workers::http::{ANSWER_BYTES_MAX, Http, HttpOptions, Outgoing, REFUSAL_BYTES_MAX, is_public};
use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use reqwest::{Method, Url};
use world::{SECRET, TOKEN, World};

fn http(allow_private: bool, networks: &[&str]) -> Http {
    Http::new(HttpOptions {
        allow_private,
        allow_networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(5),
    })
    .unwrap()
}

fn get(url: &str) -> Outgoing {
    let url = Url::parse(url).unwrap();
    Outgoing { method: Method::GET, url, headers: Default::default(), body: None }
}

#[test]
fn special_addresses_are_not_public() {
    for private in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.1.2.3",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:1::1",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "4000::1",
    ] {
        assert!(!is_public(private.parse::<IpAddr>().unwrap()), "{private}");
    }
    for public in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.1",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2400:cb00::1",
        "2a00::1",
        "2606::1",
    ] {
        assert!(is_public(public.parse::<IpAddr>().unwrap()), "{public}");
    }
}

#[tokio::test]
async fn literal_addresses_schemes_and_names_are_checked() {
    let guarded = http(false, &[]);
    for url in [
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:7f00:1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/",
        "http://example.com/",
        "https://user:secret@example.com/",
        "ftp://example.com/",
    ] {
        match guarded.send(get(url)).await {
            Err(HttpError::Blocked(reason)) => assert!(!reason.contains("secret"), "{reason}"),
            other => panic!("{url}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_allowed_network_is_reached_and_nothing_else() {
    // Nobody listens there: the guard lets it pass, the connection fails.
    let guarded = http(false, &["127.0.0.0/8"]);
    match guarded.send(get("https://127.0.0.1:1/")).await {
        Err(HttpError::Unreachable(_)) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(guarded.send(get("https://10.0.0.1/")).await, Err(HttpError::Blocked(_))));
    // Plain HTTP stays forbidden.
    assert!(matches!(guarded.send(get("http://127.0.0.1:1/")).await, Err(HttpError::Blocked(_))));
}

#[tokio::test]
async fn an_error_names_no_address() {
    let open = http(true, &[]);
    let url = "http://127.0.0.1:1/Users?filter=userName%20eq%20%22ines%22";
    let error = open.send(get(url)).await.unwrap_err();
    assert!(!error.to_string().contains("ines"), "{error}");
    assert!(matches!(error, HttpError::Unreachable(_)));
    let error = open.send(get("http://no-such-host.invalid/")).await.unwrap_err();
    assert!(matches!(error, HttpError::Unreachable(_)), "{error:?}");
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

#[tokio::test]
async fn answers_are_read_up_to_a_bound() {
    let big = "x".repeat(ANSWER_BYTES_MAX + 5_000);
    let refusal = big.clone();
    let router = Router::new()
        .route("/ok", axum::routing::get(move || async move { big }))
        .route("/no", axum::routing::get(move || async move { (StatusCode::BAD_REQUEST, refusal) }))
        .route("/slow", axum::routing::get(std::future::pending::<()>));
    let base = serve(router).await;
    let open = http(true, &[]);
    let answer = open.send(get(&format!("{base}/ok"))).await.unwrap();
    assert_eq!((answer.body.len(), answer.is_cut), (ANSWER_BYTES_MAX, true));
    let answer = open.send(get(&format!("{base}/no"))).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (400, REFUSAL_BYTES_MAX));
    let impatient = Http::new(HttpOptions {
        allow_private: true,
        allow_networks: Vec::new(),
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_millis(100),
    });
    let error = impatient.unwrap().send(get(&format!("{base}/slow"))).await.unwrap_err();
    assert!(matches!(error, HttpError::Timeout(_)), "{error:?}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let visits = Arc::new(AtomicUsize::new(0));
    let counted = visits.clone();
    let elsewhere = serve(Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { StatusCode::OK.into_response() }
    }))
    .await;
    for status in [301, 302, 303, 307, 308] {
        let mut world = World::new().await;
        let hook = Downstream::webhook(SECRET).await.unwrap();
        let target = Downstream::scim(TOKEN).await.unwrap();
        let headers = vec![("location".to_owned(), elsewhere.clone())];
        let redirect = Action::Answer { status, headers, body: String::new() };
        hook.script(None, "", 1, redirect.clone());
        target.script(None, "", 1, redirect);
        world.webhook_app(&hook.url()).await;
        world.scim_app(&target.url()).await;
        let ines = world.user("ines").await;
        world.settle().await;
        for app in ["hook", "crm"] {
            let reason = world.target(app).await.reason.unwrap();
            assert!(reason.contains(&status.to_string()), "{app}: {reason}");
            assert_eq!(world.lane(app, &ines).await.attempts, 0);
        }
        assert_eq!(visits.load(Ordering::SeqCst), 0, "{status}");
    }
}

#[tokio::test]
async fn a_private_target_is_refused_before_anything_is_sent() {
    let options = annals_workers::WorkerOptions { allow_private: false, ..world::options() };
    let mut world = World::with(options).await;
    let hook = Downstream::webhook(SECRET).await.unwrap();
    world.webhook_app(&hook.url()).await;
    let tls = hook.url().replace("http://127.0.0.1", "https://localhost");
    world.app("tls", Driver::Webhook { url: tls }).await;
    let ines = world.user("ines").await;
    world.settle().await;
    assert_eq!(hook.seen().len(), 0);
    for app in ["hook", "tls"] {
        let target = world.target(app).await;
        assert!(target.reason.unwrap().contains("not allowed"));
        let lane = world.lane(app, &ines).await;
        assert_eq!((lane.state, lane.attempts), (LaneState::Due, 0));
    }
}
