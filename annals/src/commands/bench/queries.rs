//! `annals bench queries`: what filters, orders and pages cost in a large tenant, over HTTP.

use std::time::{Duration, Instant};

use annals_api::{App, Readiness};
use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::Actor;
use annals_store::bench::settle;
use annals_store::{Store, model::PAGE_EVENTS_MAX};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::client::{Connection, quantile_ms};
use super::sizes::create_all;
use super::{bench_tenant, open_empty, spawn, tenant};
use crate::config::Config;
use crate::wiring;

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Users in the tenant.
    #[arg(long, default_value_t = 200_000)]
    users: usize,
    /// Requests measured in each row.
    #[arg(long, default_value_t = 50)]
    requests: usize,
    /// Resources on a page.
    #[arg(long, default_value_t = 100)]
    count: usize,
}

/// Users written before the read model follows.
const LOAD_USERS: usize = 2_000;
/// Users that change after all are there, for filters on the time of change.
const CHANGED_LAST: usize = 100;
const DEPARTMENTS: usize = 50;
const ENTERPRISE: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";
/// A schema that the tenant makes at run time.
const BADGE: &str = "urn:example:schemas:extension:badge:2.0:User";
/// One user in so many has no badge.
const BADGELESS: usize = 20_000;
/// One user in so many has a nickname.
const NICKNAMED: usize = 100;

/// How long the first question of its kind is asked again.
const FIRST_MAX: Duration = Duration::from_secs(120);

/// The filter of the nth request.
type FilterOf = Box<dyn Fn(usize) -> String>;

/// Runs it.
pub(crate) async fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    if args.users < 2 * args.count || args.count == 0 || args.requests == 0 {
        bail!("there must be two pages at least, and a request");
    }
    let store = open_empty(config).await?;
    let token = tenant(&store).await?;
    define_badge(&store).await?;
    let mut loaded = 0;
    let before = args.users.saturating_sub(CHANGED_LAST);
    let mut late = store.now();
    while loaded < args.users {
        // The last ones come apart, so that a time separates them from the others.
        let end = if loaded < before { before } else { args.users };
        let upto = (loaded + LOAD_USERS).min(end);
        if loaded == before {
            late = store.now();
        }
        create_all(&store, loaded..upto, |n| user(n, args.users)).await?;
        follow(&store).await?;
        loaded = upto;
    }
    settle(&store).await?;
    let app = App::new(store.clone(), wiring::api_options(config), Readiness::new());
    let address = spawn(annals_api::router(app)).await?;
    let connection = Connection::open(address, &token).await?;
    let mut bench = Bench { connection, requests: args.requests, store: store.clone(), changes: 0 };

    println!(
        "request\tmatches\tfirst ms\tp50 ms\tp99 ms\tleast ms\tp50 ms after a change\tleast ms after a change"
    );
    let n = args.users;
    // Values that differ from request to request, spread over all users.
    let spread = move |request: usize| request.wrapping_mul(2_654_435_761) % n;
    let count = args.count;
    let filters: Vec<(&str, FilterOf)> = vec![
        ("userName eq (look-up)", Box::new(move |r| format!("userName eq \"{}\"", name(spread(r), n)))),
        (
            "emails.value eq",
            Box::new(move |r| format!("emails.value eq \"{}@bench.test\"", name(spread(r), n))),
        ),
        ("userName sw", Box::new(move |r| format!("userName sw \"{}\"", &name(spread(r), n)[..4]))),
        ("displayName co", Box::new(move |r| format!("displayName co \"er {} \"", spread(r)))),
        ("title eq", Box::new(move |r| format!("title eq \"title {}\"", spread(r) % 7))),
        (
            "value path",
            Box::new(move |r| {
                format!("emails[type eq \"work\" and value eq \"{}@bench.test\"]", name(spread(r), n))
            }),
        ),
        (
            "and",
            Box::new(move |r| {
                let department = spread(r) % DEPARTMENTS;
                format!("active eq true and {ENTERPRISE}:department eq \"Department {department}\"")
            }),
        ),
        (
            "or",
            Box::new(move |r| {
                let (a, b) = (name(spread(r), n), spread(r + 1));
                format!("emails.value eq \"{a}@bench.test\" or {ENTERPRISE}:employeeNumber eq \"{b}\"")
            }),
        ),
        (
            "extension attribute eq",
            Box::new(move |r| format!("{ENTERPRISE}:employeeNumber eq \"{}\"", spread(r))),
        ),
        (
            "custom attribute eq",
            Box::new(move |r| format!("{BADGE}:number eq \"B-{}\"", with_badge(spread(r)))),
        ),
        (
            "custom attribute sw",
            Box::new(move |r| format!("{BADGE}:code sw \"c-{:06}\"", with_badge(spread(r)))),
        ),
        ("custom attribute gt, few", Box::new(move |_| format!("{BADGE}:level gt {}", n.saturating_sub(10)))),
        ("custom attribute pr", Box::new(|_| format!("{BADGE}:number pr"))),
        ("active eq true", Box::new(|_| "active eq true".to_owned())),
        (
            "meta.lastModified gt, few",
            Box::new(move |_| format!("meta.lastModified ge \"{}\"", late.to_rfc3339())),
        ),
        (
            "meta.lastModified gt, all",
            Box::new(|_| "meta.lastModified gt \"2020-01-01T00:00:00Z\"".to_owned()),
        ),
    ];
    for (label, filter) in &filters {
        bench.row(label, |r| format!("/scim/v2/Users?count={count}&filter={}", encode(&filter(r)))).await?;
    }
    let department = encode(&format!("{ENTERPRISE}:department"));
    let badge = encode(&format!("{BADGE}:code"));
    for (order, query) in [
        ("by creation", String::new()),
        ("by userName", "&sortBy=userName".to_owned()),
        ("by userName descending", "&sortBy=userName&sortOrder=descending".to_owned()),
        ("by department", format!("&sortBy={department}")),
        ("by department descending", format!("&sortBy={department}&sortOrder=descending")),
        ("by custom attribute", format!("&sortBy={badge}")),
        ("by custom attribute descending, few without", format!("&sortBy={badge}&sortOrder=descending")),
        ("by nickName, few with", "&sortBy=nickName".to_owned()),
        ("by nickName descending, few with", "&sortBy=nickName&sortOrder=descending".to_owned()),
        ("by meta.lastModified descending", "&sortBy=meta.lastModified&sortOrder=descending".to_owned()),
        ("active eq true by userName", format!("&sortBy=userName&filter={}", encode("active eq true"))),
    ] {
        let list = format!("/scim/v2/Users?count={count}{query}");
        let total = bench.row(&format!("{order}: first page by index"), |_| list.clone()).await?;
        let deep = total.saturating_sub(count as u64) + 1;
        bench.row(&format!("{order}: last page by index"), |_| format!("{list}&startIndex={deep}")).await?;
        bench.row(&format!("{order}: first page by cursor"), |_| format!("{list}&cursor=")).await?;
        bench.walk(order, &list).await?;
    }
    store.close().await;
    Ok(())
}

/// Lets the read model catch up.
async fn follow(store: &Store) -> anyhow::Result<()> {
    loop {
        let at = store.model_checkpoint().await?;
        let events = store.read_events(at, PAGE_EVENTS_MAX).await?;
        if events.is_empty() {
            return Ok(());
        }
        store.model_project(at, &events).await?;
    }
}

/// Gives users an attribute that no code knows.
async fn define_badge(store: &Store) -> anyhow::Result<()> {
    let (tenant, actor) = (bench_tenant()?, Actor::system("bench"));
    let schema = json!({ "id": BADGE, "name": "Badge", "attributes": [
        { "name": "number", "type": "string", "caseExact": true },
        { "name": "code", "type": "string" },
        { "name": "level", "type": "integer" },
    ] });
    store.put_schema(&tenant, SchemaDefinition::read(&schema)?, actor.clone()).await?;
    let users = json!({ "name": "User", "schemaExtensions": [{ "schema": BADGE, "required": false }] });
    store.put_resource_type(&tenant, ResourceTypeDefinition::read(&users)?, actor).await?;
    Ok(())
}

struct Bench {
    connection: Connection,
    requests: usize,
    store: Store,
    changes: usize,
}

impl Bench {
    async fn ask(&mut self, target: &str) -> anyhow::Result<(Value, Duration)> {
        let (status, took) = self.connection.send("GET", target, "").await?;
        if status != 200 {
            bail!("{target} answered {status}: {}", String::from_utf8_lossy(self.connection.body()));
        }
        Ok((serde_json::from_slice(self.connection.body())?, took))
    }

    /// One row of the table; how many resources matched. Asked again and again while nothing changes, and then
    /// after a change of some user each, when nothing can be remembered.
    async fn row(&mut self, label: &str, target: impl Fn(usize) -> String) -> anyhow::Result<u64> {
        let first = self.ask_first(&target(0)).await?;
        let mut took = Vec::with_capacity(self.requests);
        let mut fresh = Vec::with_capacity(self.requests);
        let mut total = 0;
        for request in 0..2 * self.requests {
            let target = target(request);
            if request >= self.requests {
                self.change().await?;
            }
            let (answer, time) = self.ask(&target).await?;
            total = answer["totalResults"].as_u64().context("totalResults")?;
            if total == 0 {
                bail!("{target} found nothing, so it measures nothing");
            }
            if request < self.requests { took.push(time) } else { fresh.push(time) }
        }
        print_row(label, total, Some(first), &mut took, Some(&mut fresh));
        Ok(total)
    }

    /// The first question of its kind: it builds the index it needs, if nobody has asked before. How long it
    /// took until the answer, repetitions after 503 included.
    async fn ask_first(&mut self, target: &str) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < FIRST_MAX {
            let (status, _) = self.connection.send("GET", target, "").await?;
            if status != 503 {
                break;
            }
        }
        Ok(begun.elapsed())
    }

    /// Changes what no filter asks for, and lets the read model follow.
    async fn change(&mut self) -> anyhow::Result<()> {
        self.changes += 1;
        let target = "/scim/v2/Users?attributes=id&filter=externalId%20eq%20%22e%2D1%22";
        let (answer, _) = self.ask(target).await?;
        let id = answer["Resources"][0]["id"].as_str().context("the user that changes")?.to_owned();
        let body = json!({
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
            "Operations": [{ "op": "replace", "path": "preferredLanguage", "value": self.changes.to_string() }],
        });
        let (status, _) =
            self.connection.send("PATCH", &format!("/scim/v2/Users/{id}"), &body.to_string()).await?;
        if !matches!(status, 200 | 204) {
            bail!("the change was answered {status}: {}", String::from_utf8_lossy(self.connection.body()));
        }
        follow(&self.store).await
    }

    /// A list from end to end by cursor, and the last tenth of its pages apart.
    async fn walk(&mut self, order: &str, list: &str) -> anyhow::Result<()> {
        let (mut cursor, mut pages, mut seen) = (String::new(), Vec::new(), 0);
        let begun = Instant::now();
        let total = loop {
            let (answer, time) = self.ask(&format!("{list}&cursor={cursor}")).await?;
            pages.push(time);
            seen += answer["Resources"].as_array().map_or(0, Vec::len);
            match answer["nextCursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break answer["totalResults"].as_u64().context("totalResults")?,
            }
        };
        let whole = begun.elapsed();
        if seen as u64 != total {
            bail!("{order}: the walk gave {seen} of {total} resources");
        }
        let deep = pages.len() - pages.len().div_ceil(10);
        print_row(
            &format!("{order}: last tenth of the pages by cursor"),
            total,
            None,
            &mut pages[deep..],
            None,
        );
        print_row(&format!("{order}: any page by cursor"), total, None, &mut pages, None);
        println!(
            "{order}: walk of all, {} pages\t{total}\t\t{:.0} in all",
            pages.len(),
            whole.as_secs_f64() * 1e3
        );
        Ok(())
    }
}

/// The least says what it costs where other work disturbs.
fn print_row(
    label: &str,
    total: u64,
    first: Option<Duration>,
    took: &mut [Duration],
    fresh: Option<&mut [Duration]>,
) {
    let first = first.map_or_else(String::new, |first| format!("{:.1}", first.as_secs_f64() * 1e3));
    let [p50, p99, least] = [0.5, 0.99, 0.0].map(|p| quantile_ms(took, p));
    print!("{label}\t{total}\t{first}\t{p50:.2}\t{p99:.2}\t{least:.2}");
    match fresh {
        Some(fresh) => println!("\t{:.2}\t{:.2}", quantile_ms(fresh, 0.5), quantile_ms(fresh, 0.0)),
        None => println!("\t\t"),
    }
}

/// The number of a user that has a badge: `n`, or the next one.
fn with_badge(n: usize) -> usize {
    if n.is_multiple_of(BADGELESS) { n + 1 } else { n }
}

/// A name whose order is not that of creation, and which nobody else of the `users` has.
fn name(n: usize, users: usize) -> String {
    // Multiplying by an odd number modulo a power of two is one to one.
    let bits = users.next_power_of_two().ilog2().max(1);
    let mixed = n.wrapping_mul(0x9E37_79B1) & ((1 << bits) - 1);
    format!("{:08x}", mixed << (32 - bits.min(32)))
}

fn user(n: usize, users: usize) -> Value {
    let name = name(n, users);
    let mut user = json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User", ENTERPRISE],
        "userName": name,
        "externalId": format!("e-{n}"),
        // Most, but not all.
        "active": !n.is_multiple_of(11),
        "displayName": format!("User {n} of the bench"),
        "title": format!("Title {}", n % 7),
        "name": { "givenName": "Bench", "familyName": format!("User {n}") },
        "emails": [
            { "value": format!("{n}@home.test"), "type": "home" },
            { "value": format!("{name}@bench.test"), "type": "work", "primary": true },
        ],
        ENTERPRISE: { "employeeNumber": n.to_string(), "department": format!("Department {}", n % DEPARTMENTS) },
    });
    if let Some(user) = user.as_object_mut() {
        if !n.is_multiple_of(BADGELESS) {
            let badge = json!({ "number": format!("B-{n}"), "code": format!("C-{n:06}"), "level": n });
            user.insert(BADGE.to_owned(), badge);
        }
        if n.is_multiple_of(NICKNAMED) {
            user.insert("nickName".to_owned(), json!(format!("Nick {n}")));
        }
    }
    user
}

/// Percent-encodes everything that is not a letter or a digit.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ() {
        let names: std::collections::BTreeSet<String> = (0..5_000).map(|n| name(n, 5_000)).collect();
        assert_eq!(names.len(), 5_000);
    }
}
