//! Resolves `registration:` of an agent's file: who may register VMs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use isthmus_model::problem::{Place, Quoted, Report};

use super::raw;

/// The default socket, in the state directory.
const SOCKET: &str = "agent.sock";
/// Token files at most: every one is read when a client presents a token.
const TOKENS: usize = 64;
/// Largest token name, in bytes.
const NAME: usize = 63;

/// Who may register VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// The Unix socket for local processes; none without a state directory or a path, or when it is off.
    pub socket: Option<PathBuf>,
    /// Users that may register, besides root and the agent's own.
    pub users: BTreeSet<u32>,
    /// Token files, by the tokens' names.
    pub tokens: BTreeMap<String, PathBuf>,
}

pub(super) fn registration(
    report: &mut Report,
    raw: Option<raw::Registration>,
    state: Option<&PathBuf>,
) -> Registration {
    let raw = raw.unwrap_or_default();
    let place = Place::Root.key("registration");
    let socket = match raw.socket {
        Some(written) if written.value == "off" => None,
        Some(written) => Some(written.value.into()),
        None => state.map(|folder| folder.join(SOCKET)),
    };
    let mut tokens = BTreeMap::new();
    for (name, file) in raw.tokens.into_iter().flatten() {
        let fits = (1..=NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !fits {
            let what = format_args!("{}: {} is not a valid token name", place.key("tokens"), Quoted(&name));
            report.add(file.spot, what, "write 1 to 63 letters, digits, '-', '_' or '.'");
        }
        if tokens.len() >= TOKENS {
            let what = format_args!("{}: more than {TOKENS} tokens", place.key("tokens"));
            report.add(file.spot, what, "share one token between VMs");
            break;
        }
        tokens.insert(name, file.value.into());
    }
    Registration { socket, users: raw.users.into_iter().flatten().collect(), tokens }
}
