//! Adds a service file to east's registry while everything runs, and checks that nothing else changes.

use std::time::Instant;

use rustls::AlertDescription;

use super::screen::Screen;
use super::tour::{refused_with, see_each_other, show, show_refusal};
use super::world::World;
use super::{Broken, until};

/// The file that holds only reviews.
pub(super) const FILE: &str = "reviews.yaml";

/// Registers reviews, which has been running all the time.
pub(super) async fn add_a_service(screen: &mut Screen, world: &World) -> Result<(), Broken> {
    screen.step(format_args!("A file is added to east's registry, {FILE}; west is not changed"));
    let name = world.reviews.host();
    let before = world.client.call(&name).await;
    show_refusal(screen, &name, &before, "it runs, but is not registered");
    let open = world.client.open(&world.details.host()).await;

    let since = Instant::now();
    world.east.register(FILE, &[&world.reviews])?;
    let after = until(async || world.client.call(&name).await.ok()).await;
    let took = since.elapsed().as_millis();
    if let Some(answer) = &after {
        show(screen, &name, answer);
    }
    screen.promise(
        format_args!(
            "a service added in east is reachable from west without a restart, {took} ms after the edit"
        ),
        refused_with(&before, AlertDescription::UnrecognisedName)
            && after.is_some_and(|answer| see_each_other(world, &world.reviews, &answer)),
    );
    let kept = match open {
        Ok(open) => open.ask().await,
        Err(error) => Err(error),
    };
    screen.promise(
        "a connection that was open during the edit survived it",
        kept.is_ok_and(|answer| see_each_other(world, &world.details, &answer)),
    );
    Ok(())
}
