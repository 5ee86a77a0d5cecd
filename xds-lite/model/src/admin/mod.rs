//! The JSON of the admin APIs of gateways and agents: a type for each page and body, and its schema. Programs render
//! these types, command lines and tests read them. Readers ignore unknown fields and fill in missing ones where a
//! default is safe, so that programs of different versions understand each other.

pub mod agent;
mod answer;
mod decided;
pub mod gateway;
mod schema;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::Target;

pub use answer::{Answer, NotThePage};
pub use decided::{Decided, RuleName, WouldDecide};

/// The answer to a request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// What is wrong and the remedy, one line for each problem.
    pub error: String,
}

/// The answer to an unknown path: the existing ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Index {
    /// What is wrong.
    pub error: String,
    /// The paths that take GET and HEAD.
    #[serde(default)]
    pub get: Vec<String>,
    /// The paths that take POST.
    #[serde(default)]
    pub post: Vec<String>,
}

impl Index {
    /// The answer to an unknown path.
    #[must_use]
    pub fn new(get: &[&str], post: &[&str]) -> Index {
        let owned = |paths: &[&str]| paths.iter().map(ToString::to_string).collect();
        Index { error: "no such path".to_owned(), get: owned(get), post: owned(post) }
    }
}

/// The address of an endpoint as its configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Address {
    /// `IP:PORT`.
    Ip(String),
    /// A name, which stands for every address it resolves to.
    Name {
        /// The host name.
        host: String,
        /// The port.
        port: u16,
    },
}

impl From<&Target> for Address {
    fn from(target: &Target) -> Address {
        match target {
            Target::Address(address) => Address::Ip(address.to_string()),
            Target::Name { host, port } => Address::Name { host: host.to_string(), port: *port },
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Ip(address) => f.write_str(address),
            Address::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The health of a store of state that survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreHealth {
    /// What the store persists.
    pub store: String,
    /// Its file or directory.
    #[serde(default)]
    pub file: String,
    /// Whether changes are written to it.
    pub usable: bool,
    /// Why it is not usable.
    pub problem: Option<String>,
    /// Whether changes are waiting to be written.
    #[serde(default)]
    pub behind: bool,
    /// Damaged files found since the program started.
    #[serde(default)]
    pub damaged_files: u64,
    /// Records lost with them.
    #[serde(default)]
    pub lost_records: u64,
    /// The last lost records, at most 20.
    #[serde(default)]
    pub lost: Vec<String>,
    /// The cause of the last damage.
    pub damage: Option<String>,
    /// The new name of the last damaged file.
    pub set_aside: Option<String>,
    /// Records that were too large to write.
    #[serde(default)]
    pub too_large: u64,
}
