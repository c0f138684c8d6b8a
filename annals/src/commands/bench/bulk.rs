//! `annals bench bulk`: creates one by one over one connection, beside the same creates in bulk requests.

use std::time::Instant;

use annals_api::{App, Readiness};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::client::{Connection, quantile_ms};
use super::{drain, open_empty, spawn, tenant, user_body};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::wiring;

/// Options.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Users created each way in a turn.
    #[arg(long, default_value_t = 1_000)]
    users: u64,
    /// Turns; each measures both ways.
    #[arg(long, default_value_t = 7)]
    turns: u64,
}

/// Runs it against the configured storage, which must be empty: it leaves users behind.
pub(crate) async fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let options = wiring::api_options(config);
    let most = u64::try_from(options.bulk_operations_max).unwrap_or(u64::MAX);
    if args.users == 0 || args.turns == 0 || args.users > most {
        bail!("a bulk request holds 1 to {most} operations");
    }
    let store = open_empty(config).await?;
    let token = tenant(&store).await?;
    let mut lifecycle = Lifecycle::new()?;
    wiring::start_parts(&mut lifecycle, config, &store, true, true).await?;
    let stop = lifecycle.stop_token();
    let annals = spawn(annals_api::router(App::new(store.clone(), options, Readiness::new()))).await?;
    let mut connection = Connection::open(annals, &token).await?;

    let (mut singles, mut bulks, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..args.turns {
        let begun = Instant::now();
        for number in 0..args.users {
            let body = user_body(&format!("s{turn}"), number);
            let (status, _) = connection.send("POST", "/scim/v2/Users", &body).await?;
            if status != 201 {
                bail!("a create was answered {status}");
            }
        }
        let single = begun.elapsed();
        // Both begin with a read model that has caught up.
        drain(&store).await?;
        let body = bulk_body(turn, args.users)?;
        let (status, bulk) = connection.send("POST", "/scim/v2/Bulk", &body).await?;
        check(status, connection.body(), args.users)?;
        drain(&store).await?;
        eprintln!("turn {}: {single:.0?} one by one, {bulk:.0?} in bulk", turn + 1);
        ratios.push(bulk.as_secs_f64() / single.as_secs_f64().max(f64::MIN_POSITIVE));
        singles.push(single);
        bulks.push(bulk);
    }
    stop.cancel();
    let place = if config.is_embedded() { "SQLite" } else { "PostgreSQL" };
    println!("{place}, {} creates, one connection, {} turns", args.users, args.turns);
    println!("way\tmedian ms\tfastest ms\tslowest ms");
    for (way, times) in [("one by one", &mut singles), ("in bulk", &mut bulks)] {
        let quantiles = [0.5, 0.0, 1.0].map(|p| format!("{:.0}", quantile_ms(times, p)));
        println!("{way}\t{}", quantiles.join("\t"));
    }
    ratios.sort_by(f64::total_cmp);
    println!("ratio\t{:.3} (median of the turns)", ratios[ratios.len() / 2]);
    lifecycle.wait().await;
    store.close().await;
    Ok(())
}

fn bulk_body(turn: u64, users: u64) -> anyhow::Result<String> {
    let mut operations = Vec::new();
    for number in 0..users {
        let data: Value = serde_json::from_str(&user_body(&format!("b{turn}"), number))?;
        let bulk_id = format!("b{number}");
        operations.push(json!({ "method": "POST", "path": "/Users", "bulkId": bulk_id, "data": data }));
    }
    let schemas = ["urn:ietf:params:scim:api:messages:2.0:BulkRequest"];
    Ok(json!({ "schemas": schemas, "Operations": operations }).to_string())
}

/// Every operation answered 201.
fn check(status: u16, body: &[u8], users: u64) -> anyhow::Result<()> {
    if status != 200 {
        bail!("the bulk request was answered {status}: {}", String::from_utf8_lossy(body));
    }
    let answer: Value = serde_json::from_slice(body).context("the bulk request's answer")?;
    let operations = answer["Operations"].as_array().context("the answer's operations")?;
    let created = operations.iter().filter(|operation| operation["status"] == "201").count();
    if u64::try_from(created)? != users {
        bail!("{created} of {users} operations were answered 201");
    }
    Ok(())
}
