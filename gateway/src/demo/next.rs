//! What to try while the demo keeps running: lines to copy into another terminal. Each of them works as it
//! stands; a test runs them.

use std::path::Path;

use super::Broken;
use super::screen::Screen;
use super::world::World;

/// Prints the lines, and how to end.
pub(super) fn show(screen: &mut Screen, world: &World) -> Result<(), Broken> {
    screen.step("What to try next, from another terminal");
    let gateway = world.address_of("listener east-west")?;
    let (admin, metrics) = (world.address_of("admin")?, world.address_of("metrics")?);
    let (files, name, port) = (&world.files, world.productpage.alias(), gateway.port());
    let [root, cert, key] = [&files.root, &files.client.chain, &files.client.key].map(|path| quoted(path));
    let program = std::env::args_os().next().unwrap_or_else(|| "isthmus-gateway".into());
    let program = quoted(Path::new(&program));
    for line in [
        format!(
            "curl --resolve {name}:{port}:127.0.0.1 --cacert {root} --cert {cert} --key {key} https://{name}:{port}/"
        ),
        format!(
            "printf 'GET / HTTP/1.1\\r\\n\\r\\n' | openssl s_client -quiet -connect {gateway} -servername {name} \
             -verify_return_error -CAfile {root} -cert {cert} -key {key}"
        ),
        format!("{program} status --admin {admin}"),
        format!("{program} explain {name} --admin {admin}"),
        format!("curl http://{metrics}/metrics"),
    ] {
        screen.say(format_args!("   {line}"));
    }
    screen.say(format_args!(
        "   Edit {}: a good edit goes live at once, a bad one changes nothing.",
        quoted(&files.gateway)
    ));
    screen.say("");
    screen.title("The demo keeps running. Ctrl-C ends it and removes its files.");
    Ok(())
}

/// As a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if path.chars().all(plain) { path.into_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
