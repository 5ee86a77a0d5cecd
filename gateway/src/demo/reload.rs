//! gateway.yaml is edited while the gateway runs: a service more is exported, and nothing else is touched.

use std::time::{Duration, Instant};

use rustls::AlertDescription;

use super::Broken;
use super::screen::Screen;
use super::tour::{refused_with, see_each_other, show, show_refusal};
use super::world::World;

/// The slowest way a file is watched polls it.
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(10);

/// Exports reviews, which ran all the time.
pub(super) async fn add_a_service(screen: &mut Screen, world: &World) -> Result<(), Broken> {
    screen.step("gateway.yaml is edited: reviews is exported too");
    let name = world.reviews.host();
    let before = world.client.call(&name).await;
    show_refusal(screen, &name, &before);
    let open = world.client.open(&world.details.host()).await;

    let epoch = || world.control.process.tables.load().epoch;
    let (old, since) = (epoch(), Instant::now());
    world.export_reviews()?;
    while epoch() == old && since.elapsed() < PATIENCE && world.control.last_refused().is_none() {
        tokio::time::sleep(TICK).await;
    }
    match world.control.last_refused() {
        Some(refused) => screen.say(format_args!("   the gateway refused the edit: {}", refused.why)),
        None => {
            screen.dim(format_args!("Tables {old} → {} after {} ms.", epoch(), since.elapsed().as_millis()))
        }
    }

    let after = world.client.call(&name).await;
    match &after {
        Ok(answer) => show(screen, &name, answer),
        Err(_) => show_refusal(screen, &name, &after),
    }
    screen.promise(
        "a service added to the file is reachable, without a restart",
        refused_with(&before, AlertDescription::UnrecognisedName)
            && after.is_ok_and(|answer| see_each_other(world, &world.reviews, &answer)),
    );
    let kept = match open {
        Ok(open) => open.ask().await,
        Err(error) => Err(error),
    };
    screen.promise(
        "a connection that was open during the edit lived on",
        kept.is_ok_and(|answer| see_each_other(world, &world.details, &answer)),
    );
    Ok(())
}
