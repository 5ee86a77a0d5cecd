//! Joins the two clusters with one token, and checks the result against the files on both sides' disks.

use std::time::Instant;

use isthmus_trust::join::{JoinCause, Peer, Refusal, Token, join, peers, store};
use rustls::AlertDescription;

use super::Broken;
use super::agent::LIFETIME;
use super::cluster::Cluster;
use super::domain::trusted_bundles;
use super::screen::Screen;
use super::tour::{refused_with, show_refusal};
use super::world::World;

/// Characters of a token that are shown: enough to recognise it, without its secret.
const SHOWN: usize = 24;

/// Calls a service of east from west before the join.
pub(super) async fn call_in_vain(screen: &mut Screen, world: &World) -> Result<(), Broken> {
    screen.step("Before the join, west's client calls a service that only east has");
    let mut all_refused = true;
    for name in [world.productpage.host(), world.productpage.alias()] {
        let outcome = world.client.call(&name).await;
        all_refused &= refused_with(&outcome, AlertDescription::UnrecognisedName);
        show_refusal(screen, &name, &outcome, "not known in west yet");
    }
    let strangers = !believes(&world.east, &world.west)? && !believes(&world.west, &world.east)?;
    screen.promise(
        "west does not know the name (alert 112, unrecognized_name), and neither cluster trusts the other",
        all_refused && strangers,
    );
    Ok(())
}

/// Creates a token in east and joins west with it. Returns the time of the join.
pub(super) async fn join_by_token(screen: &mut Screen, world: &World) -> Result<Instant, Broken> {
    let World { east, west, .. } = world;
    screen.step("East makes a token, west joins with it");
    let token = east.agent.token(west.agent.party()?)?;
    let text = token.reveal();
    screen.say(format_args!(
        "   {}… ({} characters; for {}, once, within {})",
        text.get(..SHOWN).unwrap_or_default(),
        text.len(),
        token.guest,
        humantime::format_duration(LIFETIME)
    ));
    // Parsed from its text, as the other side does.
    let token: Token = text.parse().map_err(Broken::cannot("read the token"))?;
    let context = west.agent.context()?;
    join(&context, &token).await.map_err(Broken::cannot("join"))?;
    let joined = Instant::now();
    let mut met = true;
    for (one, other) in [(east, west), (west, east)] {
        met &= learned(screen, one, other)?;
    }
    screen.promise(
        "each side has the other's bundle, as its authority issued it, and the addresses of its agent and gateway",
        met,
    );
    let again = join(&context, &token).await;
    if let Err(error) = &again {
        screen.say(format_args!("   the same token again: {error}"));
    }
    screen.promise(
        "the token's second use is refused",
        again.is_err_and(|error| matches!(*error.cause, JoinCause::Refused(Refusal::Used))),
    );
    Ok(joined)
}

/// Shows what one side has stored about the other, and checks it.
fn learned(screen: &Screen, one: &Cluster, other: &Cluster) -> Result<bool, Broken> {
    let joined = peers(&store(one.agent.state()?)).map_err(Broken::cannot("read the joined clusters"))?.peers;
    let party = other.agent.party()?;
    let Some(Peer { introduction, .. }) = joined.iter().find(|peer| peer.introduction.party == party) else {
        return Ok(false);
    };
    let gateways: Vec<_> = introduction.gateways.iter().map(ToString::to_string).collect();
    let (own, theirs) = (&one.agent.settings.cluster, &other.domain.name);
    screen.say(format_args!(
        "   {own} learned  the bundle of {theirs}; agent {}; gateway {}",
        introduction.address,
        gateways.join(", ")
    ));
    let gateway = other.gateway.address_of("listener east-west")?.to_string();
    let is_true = introduction.address.to_string() == other.agent.settings.address.to_string()
        && gateways == [gateway]
        && believes(one, other)?;
    Ok(is_true)
}

/// Whether a cluster's bundle of the other domain holds exactly the other's root.
fn believes(one: &Cluster, other: &Cluster) -> Result<bool, Broken> {
    let bundles = trusted_bundles(&one.agent.settings.trust)?;
    let root = other.domain.root()?;
    Ok(bundles.get(&other.domain.name).is_some_and(|bundle| bundle.roots() == [root]))
}
