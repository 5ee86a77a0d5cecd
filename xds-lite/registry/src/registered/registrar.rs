//! Who has proven that it may register: a user of the agent's machine, or the holder of a token. Not how it is proven.

use std::fmt;
use std::str::FromStr;

/// Who registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Registrar {
    /// A process of this user, by the agent's Unix socket.
    User(u32),
    /// Whoever has the token of this name.
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

    /// Reads what is displayed.
    fn from_str(text: &str) -> Result<Registrar, ()> {
        match text.split_once(' ') {
            Some(("user", user)) => user.parse().map(Registrar::User).map_err(drop),
            Some(("token", name)) => Ok(Registrar::Token(name.to_owned())),
            _ => Err(()),
        }
    }
}
