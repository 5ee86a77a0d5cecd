//! Identifies who registers: a user of the agent's machine, or the holder of a registration token.

use std::fmt;
use std::str::FromStr;

/// The author of a registration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Registrar {
    /// A process of this user, through the agent's Unix socket.
    User(u32),
    /// A holder of the token with this name.
    Token(String),
}

impl fmt::Display for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Registrar::User(user) => write!(f, "user {user}"),
            Registrar::Token(name) => write!(f, "token {name}"),
        }
    }
}

impl FromStr for Registrar {
    type Err = ();

    /// Parses the displayed form.
    fn from_str(text: &str) -> Result<Registrar, ()> {
        match text.split_once(' ') {
            Some(("user", user)) => user.parse().map(Registrar::User).map_err(drop),
            Some(("token", name)) => Ok(Registrar::Token(name.to_owned())),
            _ => Err(()),
        }
    }
}
