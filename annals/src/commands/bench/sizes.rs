//! `annals bench sizes`: one member PATCH, one GET of a group without members and one `userName` filter,
//! as the group and the tenant grow. Each should cost the same at every size.

use std::sync::Arc;
use std::time::Duration;

use annals_api::{App, Readiness};
use annals_domain::event::{Actor, Cause};
use annals_domain::ids::ResourceId;
use annals_domain::resource::Command;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::patch::parse_request;
use annals_domain::tenant::TenantSettings;
use annals_store::{IfMatch, Request, Store};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::{Connection, quantile_ms};
use super::{bench_tenant, open_empty, spawn, tenant, user_body};
use crate::config::Config;
use crate::wiring;

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Members of the groups, smallest first.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 10_000, 200_000])]
    members: Vec<usize>,
    /// Users at which the filter is measured, smallest first.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 200_000])]
    users: Vec<usize>,
    /// Requests measured at each size.
    #[arg(long, default_value_t = 500)]
    requests: usize,
}

const IN_FLIGHT: usize = 512;
const MEMBERS_PER_PATCH: usize = 10_000;

/// Runs it.
pub(crate) async fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let store = open_empty(config).await?;
    let token = tenant(&store).await?;
    let app = App::new(store.clone(), wiring::api_options(config), Readiness::new());
    let address = spawn(annals_api::router(app)).await?;
    let mut connection = Connection::open(address, &token).await?;
    let mut users: Vec<ResourceId> = Vec::new();

    println!("request\tsize\tp50 ms\tp99 ms");
    for size in &args.users {
        add_users(&store, &mut users, *size).await?;
        let (p50, p99) = filter_by_name(&mut connection, *size, args.requests).await?;
        println!("userName eq\t{size} users\t{p50:.2}\t{p99:.2}");
    }
    let most = args.members.iter().copied().max().unwrap_or(0) + args.requests;
    add_users(&store, &mut users, most).await?;
    for size in &args.members {
        let group = fill_group(&store, &users[..*size]).await?;
        let fresh = &users[*size..*size + args.requests];
        let (p50, p99) = add_members(&mut connection, &group, fresh).await?;
        println!("PATCH add one member\t{size} members\t{p50:.2}\t{p99:.2}");
        let target = format!("/scim/v2/Groups/{group}?excludedAttributes=members");
        let mut took = Vec::new();
        for _ in 0..args.requests {
            let (status, time) = connection.send("GET", &target, "").await?;
            expect(status, 200, &connection)?;
            took.push(time);
        }
        let (p50, p99) = (quantile_ms(&mut took, 0.5), quantile_ms(&mut took, 0.99));
        println!("GET without members\t{size} members\t{p50:.2}\t{p99:.2}");
    }
    store.close().await;
    Ok(())
}

fn expect(status: u16, wanted: u16, connection: &Connection) -> anyhow::Result<()> {
    if status != wanted {
        bail!("answered {status}: {}", String::from_utf8_lossy(connection.body()));
    }
    Ok(())
}

async fn filter_by_name(
    connection: &mut Connection,
    users: usize,
    requests: usize,
) -> anyhow::Result<(f64, f64)> {
    let mut took: Vec<Duration> = Vec::with_capacity(requests);
    for n in 0..requests {
        // Spread over all of them, so that no cache holds the answer.
        let user = n.wrapping_mul(2_654_435_761) % users;
        let target = format!("/scim/v2/Users?filter=userName+eq+%22sn{user}%40bench.test%22");
        let (status, time) = connection.send("GET", &target, "").await?;
        expect(status, 200, connection)?;
        if !String::from_utf8_lossy(connection.body()).contains("\"totalResults\":1") {
            bail!("user {user} was not found: {}", String::from_utf8_lossy(connection.body()));
        }
        took.push(time);
    }
    Ok((quantile_ms(&mut took, 0.5), quantile_ms(&mut took, 0.99)))
}

async fn add_members(
    connection: &mut Connection,
    group: &ResourceId,
    users: &[ResourceId],
) -> anyhow::Result<(f64, f64)> {
    let mut took = Vec::with_capacity(users.len());
    for user in users {
        let body = patch_body(std::slice::from_ref(user)).to_string();
        let (status, time) = connection.send("PATCH", &format!("/scim/v2/Groups/{group}"), &body).await?;
        expect(status, 204, connection)?;
        took.push(time);
    }
    Ok((quantile_ms(&mut took, 0.5), quantile_ms(&mut took, 0.99)))
}

fn patch_body(members: &[ResourceId]) -> Value {
    let members: Vec<Value> = members.iter().map(|id| json!({ "value": id })).collect();
    json!({
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
        "Operations": [{ "op": "add", "path": "members", "value": members }],
    })
}

async fn add_users(store: &Store, users: &mut Vec<ResourceId>, upto: usize) -> anyhow::Result<()> {
    let body = |n: usize| serde_json::from_str(&user_body("s", n as u64)).unwrap_or_default();
    let created = create_all(store, users.len()..upto, body).await?;
    users.extend(created);
    Ok(())
}

/// Creates users past HTTP, many at once; their ids, in no order.
pub(super) async fn create_all(
    store: &Store,
    numbers: std::ops::Range<usize>,
    body: impl Fn(usize) -> Value,
) -> anyhow::Result<Vec<ResourceId>> {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut tasks = JoinSet::new();
    let mut users = Vec::with_capacity(numbers.len());
    for n in numbers {
        let slot = slots.clone().acquire_owned().await?;
        let (store, body) = (store.clone(), body(n));
        tasks.spawn(async move {
            let id = create(&store, "User", body).await;
            drop(slot);
            id
        });
        while let Some(done) = tasks.try_join_next() {
            users.push(done??);
        }
    }
    for done in tasks.join_all().await {
        users.push(done?);
    }
    Ok(users)
}

async fn fill_group(store: &Store, members: &[ResourceId]) -> anyhow::Result<ResourceId> {
    let name = format!("Group of {}", members.len());
    let group = create(store, "Group", json!({ "displayName": name })).await?;
    for chunk in members.chunks(MEMBERS_PER_PATCH) {
        let operations = parse_request(&patch_body(chunk), &mut Dialect::new(Profile::Generic))?;
        let command = Command::Patch { id: group.clone(), operations, client: Profile::Generic.into() };
        execute(store, "Group", group.clone(), command).await?;
    }
    Ok(group)
}

async fn create(store: &Store, resource_type: &str, body: Value) -> anyhow::Result<ResourceId> {
    let id = ResourceId::from_uuid(store.entropy().uuid_v7(store.now()));
    let command = Command::Create { id: id.clone(), body, client: Profile::Generic.into() };
    execute(store, resource_type, id.clone(), command).await?;
    Ok(id)
}

async fn execute(store: &Store, resource_type: &str, id: ResourceId, command: Command) -> anyhow::Result<()> {
    let registry = store.registry_of(&bench_tenant()?).await?;
    let resource_type = registry.resource_type(resource_type).context("the resource type")?;
    let request = Request {
        tenant: bench_tenant()?,
        resource_type: resource_type.clone(),
        id,
        command,
        if_match: IfMatch::Absent,
        actor: Actor::system("bench"),
        cause: Cause::default(),
        connection: None,
        settings: TenantSettings::default(),
        group_name_unique: false,
        idempotency: None,
        deadline: None,
    };
    store.execute(request).await?;
    Ok(())
}
