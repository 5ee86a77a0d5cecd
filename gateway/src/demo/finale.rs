//! Kills the only endpoint of west's own catalog while clients in west call it, and starts it again. East has the
//! same service, and both clusters say that it is one: calls move there and back.

use std::time::Instant;

use super::screen::Screen;
use super::traffic::{CLIENTS, Phase, Traffic};
use super::world::World;
use super::{Broken, until};

/// Calls before the endpoint dies, and after its return.
const SETTLED: u64 = 150;
/// Calls while it is dead.
const AWAY: u64 = 200;
/// The file that holds catalog in both registries.
const FILE: &str = "catalog.yaml";
/// The endpoints of both clusters, as calls name them.
const WEST: &str = "west/catalog-0";
const EAST: &str = "east/catalog-0";

/// Registers catalog in both clusters, then kills west's endpoint under traffic and starts it again.
pub(super) async fn move_and_return(screen: &mut Screen, world: &mut World) -> Result<(), Broken> {
    screen.step(format_args!(
        "Finale: catalog runs in both clusters as one service; {CLIENTS} clients in west call it while west's own endpoint dies"
    ));
    world.east.register(FILE, &[&world.catalog_east])?;
    world.west.register(FILE, &[&world.catalog_west])?;
    let host = world.catalog_west.host();
    let both = until(async || (world.west.gateway.endpoints(&host) == 2).then_some(())).await;
    screen.promise(
        "west's gateway knows west's own endpoint of catalog, and the way to east's",
        both.is_some(),
    );

    let traffic = Traffic::start(&world.everyone, &host);
    traffic.calls(SETTLED).await;
    let own = world.catalog_west.id.clone();
    let Some(endpoint) = world.catalog_west.endpoints.first_mut() else { return Ok(()) };
    endpoint.close().await;
    traffic.next_phase();
    traffic.calls(AWAY).await;
    traffic.next_phase();
    endpoint.revive().await?;
    let since = Instant::now();
    let back =
        until(async || world.everyone.call(&host).await.ok().filter(|answer| answer.server == own)).await;
    let took = since.elapsed().as_millis();
    traffic.next_phase();
    traffic.calls(SETTLED).await;
    let phases = traffic.end().await?;
    for (when, phase) in ["before", "away", "returning", "back"].iter().zip(&phases) {
        screen.say(format_args!("   {when:<9}  {phase}"));
    }
    for failure in phases.iter().flat_map(|phase| &phase.failures).take(3) {
        screen.say(format_args!("   failed: {failure}"));
    }
    judge(screen, &phases, back.map(|_| took));
    Ok(())
}

fn judge(screen: &mut Screen, phases: &[Phase], returned: Option<u128>) {
    let [before, away, _, back] = phases else {
        return screen.promise("all phases were reached", false);
    };
    let started: u64 = phases.iter().map(Phase::calls).sum();
    let failed: usize = phases.iter().map(|phase| phase.failures.len()).sum();
    screen.promise(format_args!("no call failed: {started} started, {failed} failed"), failed == 0);
    // Calls in flight when it died have moved, too.
    let own_first = before.answers.get(EAST).is_none_or(|count| *count <= CLIENTS as u64);
    screen.promise(
        format_args!(
            "west called its own endpoint first, and all {} calls begun after its death moved to east",
            away.calls()
        ),
        own_first && away.is_answered_by(EAST) && away.calls() >= AWAY,
    );
    screen.promise(
        format_args!(
            "{} ms after it was back, west's own endpoint answered again, and all {} later calls",
            returned.unwrap_or_default(),
            back.calls()
        ),
        returned.is_some() && back.is_answered_by(WEST),
    );
}
