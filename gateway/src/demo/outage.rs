//! Stops east's agent and starts it again. Calls continue with the last tables; edits made meanwhile take effect
//! after the restart.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use rustls::AlertDescription;

use super::reload;
use super::screen::Screen;
use super::tour::refused_with;
use super::world::World;
use super::{Broken, until};

/// Calls of each service while the agent is stopped.
const CALLS: usize = 20;
/// Name of the file moved out of the registry.
const ASIDE: &str = "reviews.yaml.aside";

/// Stops east's agent, makes calls, edits the registry, and starts the agent again.
pub(super) async fn end_an_agent(screen: &mut Screen, world: &mut World) -> Result<(), Broken> {
    screen.step("East's agent stops; calls continue with the last tables, and the agent returns");
    world.east.agent.stop().await?;
    let gone =
        until(async || is_connected(world).await.filter(|connected| !connected).map(drop)).await.is_some();
    fs::rename(world.east.registry().join(reload::FILE), aside(world))
        .map_err(Broken::cannot("edit the registry"))?;
    let names = [world.productpage.host(), world.details.alias(), world.reviews.host()];
    let mut answered = 0;
    for name in names.iter().cycle().take(CALLS * names.len()) {
        match world.client.call(name).await {
            Ok(_) => answered += 1,
            Err(error) => screen.say(format_args!("   failed: {name}: {error}")),
        }
    }
    screen.promise(
        format_args!(
            "with east's agent gone and west's agent aware of it, {answered} of {} calls were answered",
            CALLS * names.len()
        ),
        gone && answered == CALLS * names.len(),
    );
    screen.dim(format_args!(
        "Meanwhile {} was removed from the registry. The agent starts again.",
        reload::FILE
    ));
    let since = Instant::now();
    world.east.agent.run().await?;
    let name = world.reviews.host();
    let withdrawn = until(async || {
        let outcome = world.client.call(&name).await;
        refused_with(&outcome, AlertDescription::UnrecognisedName).then_some(())
    });
    let withdrawn = withdrawn.await.is_some();
    let took = since.elapsed().as_millis();
    let stands = world.client.call(&world.details.host()).await;
    if let Err(error) = &stands {
        screen.say(format_args!("   failed: {}: {error}", world.details.host()));
    }
    screen.promise(
        format_args!("{took} ms after its start the agent has caught up with the edit: reviews is unknown, all else is unchanged"),
        withdrawn && stands.is_ok(),
    );
    Ok(())
}

/// Path of the file with reviews while it is out of the registry.
pub(super) fn aside(world: &World) -> PathBuf {
    world.east.registry().join(ASIDE)
}

/// Whether west's agent is connected to east's.
async fn is_connected(world: &World) -> Option<bool> {
    let status = world.west.agent.status().await.ok()?;
    status.peers.get("east").map(|east| east.connected)
}
