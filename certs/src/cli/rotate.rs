//! `rotate` and `status`: renew certificates, roll over the root, and show where both are.

use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use isthmus_certs::home::{Awaited, Home, Pass, State, Step};
use isthmus_certs::signals::{self, GRACE, Signal, end_within};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::options::{RotateOptions, Where};
use super::say::{Answer, complain, left, say, say_line, table, time};

/// Longest wait between passes: edits by other commands are noticed this soon.
const LONGEST: Duration = Duration::from_secs(10);
/// Wait after a failed pass.
const RETRY: Duration = Duration::from_secs(5);
/// Shortest wait between passes, however short lifetimes are.
const SHORTEST: Duration = Duration::from_millis(200);

pub(super) fn rotate(options: &RotateOptions, as_json: bool) -> anyhow::Result<ExitCode> {
    if options.by_time || !options.acknowledged.is_empty() {
        let files: std::io::Result<Vec<_>> = options.acknowledged.iter().map(std::path::absolute).collect();
        options.at.open()?.wait_for(files?)?;
    }
    if options.root {
        let begun = options.at.open()?.begin_rollover(OffsetDateTime::now_utc())?;
        let text = if begun { "root roll-over: started" } else { "root roll-over: already in progress" };
        say(&Answer::new(text, json!({ "rollover_begun": begun })), as_json)?;
    }
    if options.watch { watch(&options.at, as_json) } else { once(&options.at, as_json) }
}

fn once(at: &Where, as_json: bool) -> anyhow::Result<ExitCode> {
    let pass = at.open()?.rotate(OffsetDateTime::now_utc());
    let code = if pass.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let mut text: String = pass.done.iter().map(|done| format!("{done}\n")).collect();
    if pass.done.is_empty() && pass.problems.is_empty() && pass.awaited.is_none() {
        text += "nothing to do\n";
    }
    text.extend(waits(pass.awaited.as_ref()).iter().map(|waits| format!("{waits}\n")));
    if let Some(next) = pass.next {
        text += &format!("next: {} ({})\n", time(next), left(next));
    }
    say(&Answer::new(text, pass_json(&pass)), as_json)?;
    pass.problems.into_iter().for_each(|problem| complain(&problem.into(), as_json));
    Ok(code)
}

fn pass_json(pass: &Pass) -> Value {
    let problems: Vec<_> = pass.problems.iter().map(ToString::to_string).collect();
    let missing = pass.awaited.as_ref().map(|awaited| &awaited.missing);
    json!({ "done": pass.done, "problems": problems, "awaited": missing, "next": pass.next.map(time) })
}

/// One line for each peer that a roll-over waits for.
fn waits(awaited: Option<&Awaited>) -> Vec<String> {
    let Some(awaited) = awaited else { return Vec::new() };
    let missing = awaited.missing.iter().map(|missing| format!("roll-over: waiting for {missing}"));
    let late = awaited
        .until
        .map(|until| format!("roll-over: every peer has the new root; continues at {}", time(until)));
    missing.chain(late).collect()
}

/// Makes passes until stopped. The directory is unlocked in between for other commands.
fn watch(at: &Where, as_json: bool) -> anyhow::Result<ExitCode> {
    let signals_received = receive_signals()?;
    let (mut was_wrong, mut waited) = (Vec::new(), Vec::new());
    loop {
        let now = OffsetDateTime::now_utc();
        let pass = Home::open(&at.dir).map(|mut home| home.rotate(now));
        let pass = pass.unwrap_or_else(|problem| Pass { problems: vec![problem], ..Pass::default() });
        for done in &pass.done {
            let line = json!({ "time": time(now), "event": done });
            say_line(&Answer::new(format!("{} {done}", time(now)), line), as_json)?;
        }
        let waits = waits(pass.awaited.as_ref());
        for wait in waits.iter().filter(|wait| !waited.contains(*wait)) {
            let line = json!({ "time": time(now), "awaited": wait });
            say_line(&Answer::new(format!("{} {wait}", time(now)), line), as_json)?;
        }
        waited = waits;
        let wrong: Vec<_> = pass.problems.iter().map(ToString::to_string).collect();
        for problem in pass.problems {
            if !was_wrong.contains(&problem.to_string()) {
                complain(&problem.into(), as_json);
            }
        }
        let wait = match wrong.is_empty() {
            true if waited.is_empty() => until(pass.next, now),
            true => until(pass.next, now).min(RETRY),
            false => RETRY,
        };
        was_wrong = wrong;
        match signals_received.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Signal::Reload) => note("SIGHUP: starting a pass", as_json)?,
            Ok(Signal::Unused(name)) => note(&format!("{name}: ignored"), as_json)?,
            Ok(Signal::End) | Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn note(event: &str, as_json: bool) -> anyhow::Result<()> {
    let now = time(OffsetDateTime::now_utc());
    say_line(&Answer::new(format!("{now} {event}"), json!({ "time": now, "event": event })), as_json)
}

fn until(next: Option<OffsetDateTime>, now: OffsetDateTime) -> Duration {
    let wait = next.and_then(|next| Duration::try_from(next - now).ok()).unwrap_or(LONGEST);
    wait.clamp(SHORTEST, LONGEST)
}

fn receive_signals() -> std::io::Result<Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel();
    signals::listen(move |signal| {
        if signal == Signal::End {
            end_within(GRACE);
        }
        // The receiver lives as long as the process.
        let _ = sender.send(signal);
    })?;
    Ok(receiver)
}

pub(super) fn status(at: &Where) -> anyhow::Result<Answer> {
    let home = at.open()?;
    let state = home.state();
    let mut table = table(&["kind", "name", "expires", "", "renewal", ""]);
    let standings = home.standings();
    for standing in &standings {
        let (ends, renewal) = (standing.facts.not_after, standing.renewal);
        table.add_row([
            standing.kind.to_owned(),
            standing.name.clone(),
            time(ends),
            left(ends),
            time(renewal),
            left(renewal),
        ]);
    }
    let is_shown = |kind: &str, name: &str| standings.iter().any(|one| one.kind == kind && one.name == *name);
    let clusters = state.clusters.iter().map(|name| ("intermediate", name));
    let expected = clusters.chain(state.leaves.keys().map(|name| ("leaf", name)));
    let missing: Vec<_> = expected.filter(|(kind, name)| !is_shown(kind, name)).collect();
    let (missing_peers, unknown) = match home.awaited() {
        Ok(awaited) => (awaited.missing, None),
        Err(problem) => (Vec::new(), Some(problem.to_string())),
    };
    let mut text = format!("trust domain {}\n{}\n", state.trust_domain, rollover(state));
    text.extend(missing_peers.iter().map(|missing| format!("waiting for {missing}\n")));
    text.extend(unknown.iter().map(|unknown| format!("waiting: {unknown}\n")));
    text += &table.to_string();
    for (kind, name) in &missing {
        text += &format!("\ncannot read {kind} {name}; `isthmus-certs rotate` replaces it");
    }
    let json = json!({
        "trust_domain": state.trust_domain,
        "root": state.root,
        "trusted_roots": state.trusted(),
        "rollover": state.rollover.as_ref().map(|rollover| json!({
            "step": rollover.step,
            "since": time(rollover.since),
            "next": state.due().map(time),
            "awaited": missing_peers,
            "unknown": unknown,
        })),
        "acknowledged": state.acknowledged,
        "certificates": standings,
        "missing": missing.iter().map(|(kind, name)| json!({ "kind": kind, "name": name })).collect::<Vec<_>>(),
    });
    Ok(Answer::new(text, json))
}

fn rollover(state: &State) -> String {
    let Some(rollover) = &state.rollover else {
        return format!("root {} signs; no roll-over in progress", state.root);
    };
    let next = match rollover.step {
        Step::Trusted => "sign everything with the new root",
        Step::Used => "drop the old root",
        Step::Adding | Step::Switching | Step::Dropping => "finish this step",
    };
    let due = state.due().map(|due| format!("{} ({})", time(due), left(due))).unwrap_or_default();
    let mut text =
        format!("roll-over since {}: {}\nnext: {next}, at {due}", time(rollover.since), rollover.step);
    if matches!(rollover.step, Step::Trusted | Step::Used) && !state.clusters.is_empty() {
        text += "\nbefore that: copy the new files in clusters/ to where the intermediates are used";
    }
    text
}
