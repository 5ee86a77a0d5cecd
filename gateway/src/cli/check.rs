//! `check`: is the file right, what is its schema, and what would it change on a running gateway.

use std::collections::BTreeMap;

use hyper::Method;
use isthmus_gateway::config::{self, settings::Settings};
use serde_json::{Map, Value, json};

use super::CheckOptions;
use super::ask::fetch;

/// Prints what was asked; an error is everything that is wrong with the file.
pub(crate) fn check(options: &CheckOptions) -> anyhow::Result<()> {
    let Some(file) = &options.config else {
        println!("{}", config::schema());
        return Ok(());
    };
    let settings = config::load(file)?;
    let Some(admin) = &options.against else {
        let (services, listeners) = (settings.live.services.len(), settings.fixed.binds.len());
        if options.json {
            println!("{}", json!({ "file": file, "services": services, "listeners": listeners }));
        } else {
            println!("{}: right; listeners: {listeners}, services: {services}", file.display());
        }
        return Ok(());
    };
    let changes = changes(&fetch(admin, Method::GET, "/config")?, &effective(&settings)?);
    if options.json {
        println!("{:#}", json!({ "changes": changes }));
    } else if changes.is_empty() {
        println!("no change");
    } else {
        for change in &changes {
            println!("{change}");
        }
    }
    Ok(())
}

/// The settings as `/config` shows them.
fn effective(settings: &Settings) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(settings)?)
}

/// What is different, a line each; keys that need a restart say so.
fn changes(running: &Value, edit: &Value) -> Vec<String> {
    let empty = Map::new();
    let (before, after) = (running.as_object().unwrap_or(&empty), edit.as_object().unwrap_or(&empty));
    let live = ["listeners", "services", "limits", "timeouts", "upstream", "drain"];
    let mut changes = Vec::new();
    for (key, value) in after {
        let old = before.get(key).unwrap_or(&Value::Null);
        match key.as_str() {
            "services" => changes.extend(service_changes(old, value)),
            _ if old == value => {}
            _ if live.contains(&key.as_str()) => changes.push(format!("~ {key}: {old} → {value}")),
            _ => {
                changes.push(format!("! {key}: {old} → {value} (needs a restart: the edit would be refused)"))
            }
        }
    }
    changes
}

fn service_changes(before: &Value, after: &Value) -> Vec<String> {
    let (before, after) = (by_name(before), by_name(after));
    let removed = before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("- {name}"));
    let added = after.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("+ {name}"));
    let changed = after.iter().filter_map(|(name, service)| {
        let old = before.get(name)?.as_object()?;
        let keys: Vec<_> = service
            .as_object()?
            .iter()
            .filter(|(key, value)| old.get(*key) != Some(value))
            .map(|(key, _)| key.as_str())
            .collect();
        (!keys.is_empty()).then(|| format!("~ {name}: {}", keys.join(", ")))
    });
    removed.chain(added).chain(changed).collect()
}

fn by_name(services: &Value) -> BTreeMap<String, &Value> {
    let text = |service: &Value, key: &str| service.get(key).map(|value| value.to_string().replace('"', ""));
    services
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|service| {
            Some((format!("{}:{}", text(service, "host")?, text(service, "port")?), service))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_restarts_are_announced() {
        let running = json!({
            "workers": 2, "drain": { "window": "15s" },
            "services": [{ "host": "a", "port": 1, "weight": 1 }, { "host": "b", "port": 1 }],
        });
        let edit = json!({
            "workers": 4, "drain": { "window": "15s" },
            "services": [{ "host": "a", "port": 1, "weight": 2 }, { "host": "c", "port": 1 }],
        });
        assert_eq!(changes(&running, &running), Vec::<String>::new());
        assert_eq!(
            changes(&running, &edit),
            [
                "- b:1",
                "+ c:1",
                "~ a:1: weight",
                "! workers: 2 → 4 (needs a restart: the edit would be refused)",
            ]
        );
    }
}
