//! `annals recover`: goes on after an older backup of the journal was restored.

use annals_projector::recover::{Survey, TAIL_MESSAGES_MAX, drop_tail, survey};
use anyhow::Context;

use super::{open, operator};
use crate::config::Config;
use crate::wiring;

/// How to go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Give up the events that the journal does not have any more. Without it, nothing is changed.
    #[arg(long)]
    drop_tail: bool,
}

/// Runs it.
pub(crate) async fn run(config: &Config, args: Args) -> anyhow::Result<()> {
    let store = open(config).await?;
    let nats = wiring::connect_nats(config).await?;
    // Without an answer nothing can be decided: the stream may know what was lost.
    let seen = survey(&store, nats.as_ref()).await.context("comparing the journal with its readers")?;
    print!("{}", plan(&seen, args.drop_tail));
    if seen.is_needed() && args.drop_tail {
        let epoch = drop_tail(&store, nats.as_ref(), &seen, &operator()).await?;
        println!(
            "Done: the journal is at epoch {epoch}, and writes are let in. Now run `annals audit verify`."
        );
    }
    store.close().await;
    Ok(())
}

/// What is, and what will be done, in plain words.
fn plan(seen: &Survey, drop_tail: bool) -> String {
    let mut lines = vec![format!("The journal ends at position {}, epoch {}.", seen.head, seen.epoch)];
    let reader = |position: Option<i64>| match position {
        Some(position) if position > seen.head => format!("is at {position}, ahead of the journal"),
        Some(position) => format!("is at {position}"),
        None => "is of an older epoch and will follow by itself".to_owned(),
    };
    lines.push(format!("The read model {}.", reader(seen.model)));
    lines.push(format!("Planning of deliveries {}.", reader(seen.planned)));
    match &seen.stream {
        None => lines.push("There is no stream with messages.".to_owned()),
        Some(stream) if stream.common == stream.last => {
            lines.push(format!("The stream ends at {}, as the journal has it.", stream.last));
        }
        Some(stream) => {
            lines.push(format!(
                "The stream ends at {}. After {} it has events that the journal does not have:",
                stream.last, stream.common
            ));
            for ((tenant, kind), count) in &stream.lost {
                lines.push(format!("  {count} x {kind} of {tenant}"));
            }
            if stream.last - stream.common > TAIL_MESSAGES_MAX as i64 {
                lines.push("  and more".to_owned());
            }
        }
    }
    if let Some(reason) = &seen.halted {
        lines.push(format!("Writes are stopped: {reason}"));
    }
    if !seen.is_needed() {
        lines.push("There is nothing to recover.".to_owned());
        return lines.join("\n") + "\n";
    }
    let base = seen.base();
    lines.push(String::new());
    lines.push(if drop_tail { "Doing:" } else { "With --drop-tail this is done:" }.to_owned());
    lines.push(format!(
        "1. What was written after the backup is given up. Identity providers send it again at their next full \
         synchronization; positions after {base} are given anew."
    ));
    if seen.stream.is_some() {
        lines.push(format!("2. The stream is deleted and made anew from position {} on.", base + 1));
    }
    lines.push(format!(
        "3. The journal goes on in epoch {}; an event in each tenant says so, and writes are let in.",
        seen.epoch + 1
    ));
    lines.push("4. The projector rebuilds the read model by itself.".to_owned());
    lines.push("5. Every SCIM target is compared again; webhooks go on with what happens next.".to_owned());
    if !drop_tail {
        lines.push(String::new());
        lines.push(
            "Nothing was changed. If a later backup exists, restore that instead. Else stop `annals serve` and \
             `annals projector`, and run: annals recover --drop-tail"
                .to_owned(),
        );
    }
    lines.join("\n") + "\n"
}
