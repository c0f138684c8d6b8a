//! Production's steps in an order that a seed decides, with restarts at any point and applications that
//! lie; then everything is healed, driven to rest, and every checker must hold.
//!
//! `ANNALS_TEST_SEED=n` repeats one run; `ANNALS_TEST_SEEDS=n` runs so many.

use std::collections::BTreeSet;
use std::time::Duration;

use annals_domain::tenant::Driver;
use annals_testkit::clock::rng;
use annals_testkit::downstream::{Action, Downstream};
use annals_testkit::load::Acknowledged;
use annals_testkit::nats;
use annals_testkit::scim::{Scim, add_member, remove_member, user, values};
use annals_testkit::world::{PARTS, World};
use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const APP_TOKEN: &str = "app-token";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ACTIONS: usize = 250;

/// What a correct system must know afterwards.
#[derive(Default)]
struct Expected {
    acknowledged: Acknowledged,
    groups: Vec<String>,
    members: BTreeSet<(String, String)>,
    count: usize,
}

impl Expected {
    fn name(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{what}-{:06}", self.count)
    }
}

async fn write(scim: &Scim, rng: &mut ChaCha8Rng, expected: &mut Expected) -> Result<()> {
    let users = expected.acknowledged.users.len();
    let choice = if users < 3 { 0 } else { rng.random_range(0..12) };
    let at = rng.random_range(0..users.max(1));
    match choice {
        0..4 => {
            let name = expected.name("user");
            let id = scim.post("/Users", &user(&name)).await?.expect(201)?.id();
            expected.acknowledged.markers.insert(name.clone());
            expected.acknowledged.users.push((id, name, None));
        }
        4..7 => {
            let title = expected.name("title");
            let path = format!("/Users/{}", expected.acknowledged.users[at].0);
            let operations = json!([{"op": "replace", "path": "title", "value": title}]);
            scim.patch(&path, operations).await?.expect(200)?;
            expected.acknowledged.markers.insert(title.clone());
            expected.acknowledged.users[at].2 = Some(title);
        }
        7 => {
            let active = json!([{"op": "replace", "path": "active", "value": rng.random_bool(0.5)}]);
            scim.patch(&format!("/Users/{}", expected.acknowledged.users[at].0), active)
                .await?
                .expect(200)?;
        }
        8 if expected.groups.len() < 4 => {
            let name = expected.name("group");
            expected.groups.push(scim.create_group(&name).await?);
        }
        8..11 if !expected.groups.is_empty() => {
            let group = expected.groups[rng.random_range(0..expected.groups.len())].clone();
            let pair = (group.clone(), expected.acknowledged.users[at].0.clone());
            let path = format!("/Groups/{group}");
            let answer = if expected.members.remove(&pair) {
                scim.patch(&path, remove_member(&pair.1)).await?
            } else {
                expected.members.insert(pair.clone());
                scim.patch(&path, add_member(&pair.1)).await?
            };
            ensure!(answer.is_success(), "{}: {} {}", answer.asked, answer.status, answer.json());
        }
        _ => {
            let (id, ..) = expected.acknowledged.users.swap_remove(at);
            scim.delete(&format!("/Users/{id}")).await?.expect(204)?;
            expected.members.retain(|(_, member)| *member != id);
            expected.acknowledged.deleted.insert(id);
        }
    }
    Ok(())
}

/// What applications do to those who deliver to them.
fn misbehave(rng: &mut ChaCha8Rng, app: &Downstream, hook: &Downstream) {
    let target = if rng.random_bool(0.5) { app } else { hook };
    let action = match rng.random_range(0..6) {
        0 => Action::status(500),
        1 => Action::retry_after(429, "7"),
        2 => Action::retry_after(503, "1"),
        3 => Action::DropBefore,
        4 => Action::DropAfter,
        _ => Action::status(502),
    };
    let method = [None, Some(Method::POST), Some(Method::PATCH)][rng.random_range(0..3)].clone();
    target.script(method, "", rng.random_range(1..4), action);
}

async fn simulate(mut world: World, seed: u64) -> Result<()> {
    let mut rng = rng(seed);
    let app = Downstream::scim(APP_TOKEN).await?;
    let hook = Downstream::webhook(SECRET).await?;
    let scim = Driver::Scim { base_url: app.url(), members_per_request_max: 3 };
    world.add_app("app", scim, APP_TOKEN).await?;
    world.add_app("hook", Driver::Webhook { url: hook.url() }, SECRET).await?;
    let mut expected = Expected::default();
    for action in 0..ACTIONS {
        let result = match rng.random_range(0..100) {
            0..45 => write(&world.api(), &mut rng, &mut expected).await,
            45..90 => {
                let part = PARTS[rng.random_range(0..PARTS.len())];
                // A step may fail while applications or the bus misbehave; it must not stop the next one.
                world.step(part).await.map(drop).or(Ok(()))
            }
            90..94 => {
                world.clock.advance(Duration::from_millis(rng.random_range(1..90_000)));
                Ok(())
            }
            94..98 => {
                misbehave(&mut rng, &app, &hook);
                Ok(())
            }
            _ => world.restart().await,
        };
        result.with_context(|| format!("action {action}"))?;
    }

    app.behave();
    hook.behave();
    world.settle().await?;
    world.checkers.all().await?;
    world.checkers.acknowledged(&world.tenant, &expected.acknowledged).await?;
    world.checkers.converged(&world.tenant, &app.users(), &app.groups()).await?;
    world.checkers.webhook_with_repeats(&world.tenant, &hook).await?;
    let api = world.api();
    for group in &expected.groups {
        let of = expected.members.iter().filter(|(g, _)| g == group);
        let mut wanted: Vec<String> = of.map(|(_, member)| member.clone()).collect();
        wanted.sort();
        let found = api.get(&format!("/Groups/{group}")).await?.expect(200)?.json();
        ensure!(values(&found["members"]) == wanted, "{group}: {found}");
    }
    let names: Vec<&str> = expected.acknowledged.markers.iter().map(String::as_str).take(50).collect();
    world.checkers.dump_is_sealed(&names).await
}

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match (number("ANNALS_TEST_SEED"), number("ANNALS_TEST_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => (1..=count.unwrap_or(default)).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite() -> Result<()> {
    for seed in seeds(6) {
        let world = World::sqlite(seed).await?;
        simulate(world, seed).await.with_context(|| format!("ANNALS_TEST_SEED={seed}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_postgres_and_nats() -> Result<()> {
    for seed in seeds(2) {
        let world = World::postgres(seed).await?.nats(nats::Server::start().await?).await?;
        simulate(world, seed).await.with_context(|| format!("ANNALS_TEST_SEED={seed}"))?;
    }
    Ok(())
}
