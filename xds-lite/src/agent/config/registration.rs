//! Who may register VMs at the agent: the `registration` section.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use isthmus_model::problem::{Place, Quoted, Report};

use super::raw;

/// The socket of an agent that has a state directory and says nothing else.
const SOCKET: &str = "agent.sock";
/// Tokens at once: each is read when one is shown.
const TOKENS: usize = 64;
/// Bytes of a token's name.
const NAME: usize = 63;

/// Who may register VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// The Unix socket that local processes come by; none where there is nowhere to put it.
    pub socket: Option<PathBuf>,
    /// Users that may, besides root and the agent's own.
    pub users: BTreeSet<u32>,
    /// Files with tokens, by the tokens' names.
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
            let what = format_args!("{}: {} is no name of a token", place.key("tokens"), Quoted(&name));
            report.add(file.spot, what, "write 1 to 63 letters, digits, '-', '_' or '.'");
        }
        if tokens.len() >= TOKENS {
            let what = format_args!("{}: more than {TOKENS} tokens", place.key("tokens"));
            report.add(file.spot, what, "let several VMs share one");
            break;
        }
        tokens.insert(name, file.value.into());
    }
    Registration { socket, users: raw.users.into_iter().flatten().collect(), tokens }
}
