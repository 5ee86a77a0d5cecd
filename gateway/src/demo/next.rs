//! Prints commands to try while the demo keeps running. Each works as printed after the first one has changed to
//! the demo's directory; a test runs them.

use std::path::Path;

use super::screen::Screen;
use super::world::World;
use super::{Broken, outage, reload};

/// Prints the commands and how to stop the demo.
pub(super) fn show(screen: &mut Screen, world: &World) -> Result<(), Broken> {
    screen.step("What to try next, from another terminal");
    screen.say(format_args!("   cd {}", quoted(world.folder())));
    screen.dim("West's client calls east through west's gateway:");
    let outbound = world.west.gateway.address_of("listener outbound")?;
    let (files, port) = (&world.client_files, outbound.port());
    let here = |path: &Path| quoted(path.strip_prefix(world.folder()).unwrap_or(path));
    let root = world.east.domain.root_file();
    let [root, cert, key] = [&root, &files.certificate, &files.key].map(|path| here(path));
    let curl = |name: &str| {
        format!(
            "curl --resolve {name}:{port}:127.0.0.1 --cacert {root} --cert {cert} --key {key} https://{name}:{port}/"
        )
    };
    let name = world.productpage.alias();
    screen.say(format_args!("   {}", curl(&name)));
    screen.say(format_args!(
        "   printf 'GET / HTTP/1.1\\r\\n\\r\\n' | openssl s_client -quiet -connect {outbound} -servername {name} \
         -verify_return_error -CAfile {root} -cert {cert} -key {key}"
    ));
    screen.dim("Registries are watched: this puts reviews back into east's registry and calls it from west.");
    let registered = world.east.registry().join(reload::FILE);
    let [aside, registered] = [outage::aside(world), registered].map(|path| here(&path));
    screen.say(format_args!("   mv {aside} {registered} && sleep 1 && {}", curl(&world.reviews.alias())));
    screen.dim("Status of agents and gateways:");
    for cluster in [&world.east, &world.west] {
        let (name, admin) = (&cluster.agent.settings.cluster, cluster.agent.settings.admin);
        screen.say(format_args!(
            "   curl http://{admin}/status    # {name}'s agent; also isthmus-agent status --admin {admin}"
        ));
    }
    let program = std::env::current_exe().map_or_else(|_| "isthmus-gateway".to_owned(), |path| quoted(&path));
    for cluster in [&world.east, &world.west] {
        let admin = cluster.gateway.address_of("admin")?;
        let name = &cluster.agent.settings.cluster;
        screen.say(format_args!("   {program} status --admin {admin}    # {name}'s gateway"));
    }
    let admin = world.west.gateway.address_of("admin")?;
    screen.say(format_args!("   {program} explain {name} --listener outbound --admin {admin}"));
    screen.say(format_args!("   curl http://{}/metrics", world.west.gateway.address_of("metrics")?));
    screen.dim("Files to read and edit; gateways and registries are watched, agents read theirs at start:");
    screen.say("   {east,west}/{registry/*.yaml,gateway.yaml,agent.yaml,pki/bundles/*}");
    screen.say("");
    screen.title("The demo keeps running. Ctrl-C ends it and removes its files.");
    Ok(())
}

/// Quotes a path as one shell word.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if path.chars().all(plain) { path.into_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
