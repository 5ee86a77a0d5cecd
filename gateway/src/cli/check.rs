//! Runs `check`: validates the file, prints its JSON Schema, or compares it with a running gateway.

use anyhow::Context as _;
use hyper::Method;
use isthmus_core::admin::effective::effective;
use isthmus_core::config;
use isthmus_model::admin::gateway::Config;
use serde_json::json;

use super::ask::fetch;
use super::changes::changes;
use super::{CheckOptions, say};

/// Prints the result; the error lists every problem of the file.
pub(crate) fn check(options: &CheckOptions) -> anyhow::Result<()> {
    let Some(file) = &options.config else {
        return say(&config::schema());
    };
    let (settings, warnings) = config::load_argument(file)?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    let Some(admin) = &options.against else {
        let (services, listeners) = (settings.live.services.len(), settings.fixed.binds.len());
        return if options.json {
            say(&json!({ "file": file, "services": services, "listeners": listeners }).to_string())
        } else {
            let (listeners, services) = (counted(listeners, "listener"), counted(services, "service"));
            say(&format!("{}: OK ({listeners}, {services})", file.display()))
        };
    };
    let running = fetch(admin, Method::GET, "/config")?;
    running.page::<Config>().with_context(|| admin.clone())?;
    let edit = serde_json::to_value(effective(&settings.fixed, &settings.live))?;
    let changes = changes(running.value(), &edit);
    if options.json {
        say(&format!("{:#}", json!({ "changes": changes })))
    } else if changes.is_empty() {
        say("no change")
    } else {
        say(&changes.join("\n"))
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
