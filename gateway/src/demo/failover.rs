//! Kills an endpoint in east while clients in west keep calling. Every started call counts: a single failure breaks
//! the promise.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::timeout;

use super::Broken;
use super::screen::Screen;
use super::service::LAST_CALLERS;
use super::traffic::{CLIENTS, Phase, Traffic};
use super::world::World;
use isthmus_core::control::Control;
use isthmus_core::metrics::WorkerCounters;
use isthmus_core::reason::Reason;

/// Calls before the endpoint is killed.
const BEFORE: u64 = 150;
/// Calls started after its port was closed.
const AFTER: u64 = 200;
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Kills an endpoint of productpage while clients call it.
pub(super) async fn kill_under_traffic(screen: &mut Screen, world: &mut World) -> Result<(), Broken> {
    screen.step(format_args!(
        "{CLIENTS} clients in west call productpage continuously while one of its endpoints dies"
    ));
    let retries = Retries::so_far(&world.east.gateway.control);
    let traffic = Traffic::start(&world.client, &world.productpage.host());
    traffic.calls(BEFORE).await;
    let Some(victim) = world.productpage.endpoints.last_mut() else { return Ok(()) };
    let dead = victim.instance.clone();
    let died = timeout(KILL_PATIENCE, victim.kill()).await.is_ok();
    traffic.next_phase();
    traffic.calls(AFTER).await;
    let phases = traffic.end().await?;
    let retries = Retries::so_far(&world.east.gateway.control).since(&retries);
    show(screen, &phases, &dead, &retries);
    screen.promise(format_args!("{dead} died under traffic, with calls in progress"), died);
    judge(screen, &phases, &dead, &retries);
    Ok(())
}

fn show(screen: &Screen, phases: &[Phase], dead: &str, retries: &Retries) {
    for (when, phase) in ["before", "after"].iter().zip(phases) {
        screen.say(format_args!("   {when:<6}  {phase}"));
    }
    screen.dim(format_args!(
        "{dead} reset its last {LAST_CALLERS} callers and closed its port; it finished the answers it had begun."
    ));
    screen.say(format_args!(
        "   east's gateway: {} attempts refused by the closed port, {} ended before an answer, {} ClientHellos replayed, {} ejections",
        retries.refused, retries.rejected, retries.replays, retries.ejections
    ));
    for failure in phases.iter().flat_map(|phase| &phase.failures).take(3) {
        screen.say(format_args!("   failed: {failure}"));
    }
}

fn judge(screen: &mut Screen, phases: &[Phase], dead: &str, retries: &Retries) {
    let started: u64 = phases.iter().map(Phase::calls).sum();
    let failed: usize = phases.iter().map(|phase| phase.failures.len()).sum();
    screen.promise(format_args!("no call failed: {started} started, {failed} failed"), failed == 0);
    let is_by_others =
        |after: &Phase| after.calls() >= AFTER && !after.answers.contains_key(&format!("east/{dead}"));
    screen.promise(
        format_args!(
            "at least {AFTER} calls started after the death, and the other endpoint answered all of them"
        ),
        phases.get(1).is_some_and(is_by_others),
    );
    screen.promise(
        "callers whose endpoint died before its answer were moved to the other endpoint without noticing",
        retries.replays >= 1,
    );
}

/// The retries that east's gateway counted.
#[derive(Debug)]
struct Retries {
    refused: u64,
    rejected: u64,
    replays: u64,
    ejections: u64,
}

impl Retries {
    fn so_far(control: &Control) -> Retries {
        let workers = &control.process.metrics.workers;
        let sum = |count: &dyn Fn(&WorkerCounters) -> u64| workers.iter().map(|worker| count(worker)).sum();
        let failures = |reason: Reason| {
            sum(&|worker| worker.failures.get(reason as usize).map_or(0, |count| count.load(Relaxed)))
        };
        Retries {
            refused: failures(Reason::ConnectRefused),
            rejected: failures(Reason::UpstreamRejected),
            replays: sum(&|worker| worker.replays.load(Relaxed)),
            ejections: sum(&|worker| worker.ejections.load(Relaxed)),
        }
    }

    fn since(&self, before: &Retries) -> Retries {
        Retries {
            refused: self.refused.saturating_sub(before.refused),
            rejected: self.rejected.saturating_sub(before.rejected),
            replays: self.replays.saturating_sub(before.replays),
            ejections: self.ejections.saturating_sub(before.ejections),
        }
    }
}
