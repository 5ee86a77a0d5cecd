//! One type of a delta client, across its streams: which resources it follows, which versions it has accepted,
//! what to say first on a new stream, and how to answer a response. A version counts as known only if that
//! resource was accepted.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use isthmus_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::google::rpc::Status;

/// gRPC's INVALID_ARGUMENT.
const INVALID: i32 = 3;
/// A refusal names so many resources; there may be more.
const NAMED: usize = 16;
/// A resource's name is at most this long, in bytes; names go into logs, status and refusals.
const LONGEST_NAME: usize = 1_024;
/// Of a longer one this much is shown, in characters.
const SHOWN: usize = 64;

/// What a client knows of one type.
#[derive(Debug)]
pub struct Client {
    type_url: String,
    /// None: whoever takes the resources knows what he has.
    known: Option<HashMap<String, String>>,
    /// None: all that the server has.
    names: Option<BTreeSet<String>>,
}

/// What a response changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Update {
    /// Of what type.
    pub type_url: String,
    /// New or changed.
    pub resources: Vec<Resource>,
    /// Gone.
    pub removed: Vec<String>,
    nonce: String,
}

/// One resource as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// The server's word for this state of it.
    pub version: String,
    /// Its message.
    pub bytes: Bytes,
}

/// A resource that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

impl Update {
    /// An update that no server waits for the answer to.
    #[must_use]
    pub fn new(type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Update {
        Update { type_url: type_url.to_owned(), resources, removed, nonce: String::new() }
    }
}

impl Client {
    /// A client of all resources of a type, which knows those that it kept from before.
    pub fn new(type_url: &str, known: impl IntoIterator<Item = (String, String)>) -> Client {
        Client { type_url: type_url.to_owned(), known: Some(known.into_iter().collect()), names: None }
    }

    /// A client of all resources of a type, whose versions the tables tell: a hundred thousand need not be kept
    /// twice.
    #[must_use]
    pub fn of_tables(type_url: &str) -> Client {
        Client { type_url: type_url.to_owned(), known: None, names: None }
    }

    /// A client of those resources of a type that [`Client::follow`] names; of none at first.
    #[must_use]
    pub fn of_names(type_url: &str) -> Client {
        Client { type_url: type_url.to_owned(), known: Some(HashMap::new()), names: Some(BTreeSet::new()) }
    }

    /// Its type.
    #[must_use]
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// The first request of a stream; the node is the caller's to add. None while no name is followed: a first
    /// request without names would be for all. `told` says what the
    /// tables know, with versions.
    #[must_use]
    pub fn first(&self, told: &dyn Fn() -> HashMap<String, String>) -> Option<DeltaDiscoveryRequest> {
        if self.names.as_ref().is_some_and(BTreeSet::is_empty) {
            return None;
        }
        Some(DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            resource_names_subscribe: self.names.iter().flatten().cloned().collect(),
            initial_resource_versions: self.known.clone().unwrap_or_else(told),
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Follows these names from now on, and no others. The request that says so, if it is news; it is the first
    /// of its type on a stream that has had none.
    #[must_use]
    pub fn follow(&mut self, names: &BTreeSet<String>) -> Option<DeltaDiscoveryRequest> {
        let before = self.names.get_or_insert_default();
        if before == names {
            return None;
        }
        let more = names.difference(before).cloned().collect();
        let less: Vec<String> = before.difference(names).cloned().collect();
        if let Some(known) = &mut self.known {
            less.iter().for_each(|name| _ = known.remove(name));
        }
        before.clone_from(names);
        Some(DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            resource_names_subscribe: more,
            resource_names_unsubscribe: less,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Asks for names once more that came before and were refused.
    #[must_use]
    pub fn again(&self, names: Vec<String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// What a response changes. A resource of another type, without content, or with an endless name is refused.
    #[must_use]
    pub fn read(&self, response: DeltaDiscoveryResponse) -> (Update, Vec<Refused>) {
        let mut update = Update {
            type_url: self.type_url.clone(),
            resources: Vec::new(),
            removed: response.removed_resources,
            nonce: response.nonce,
        };
        let mut refused = Vec::new();
        for sent in response.resources {
            if sent.name.len() > LONGEST_NAME {
                let why =
                    format!("has a name of {} bytes; at most {LONGEST_NAME} are taken", sent.name.len());
                refused.push(Refused { name: sent.name.chars().take(SHOWN).chain(['…']).collect(), why });
                continue;
            }
            match sent.resource {
                Some(any) if any.type_url == self.type_url => update.resources.push(Resource {
                    name: sent.name,
                    version: sent.version,
                    bytes: any.value.into(),
                }),
                Some(_) => refused.push(Refused { name: sent.name, why: "is of another type".to_owned() }),
                None => refused.push(Refused { name: sent.name, why: "has no content".to_owned() }),
            }
        }
        (update, refused)
    }

    /// The answer to an update that was applied but for what was refused.
    #[must_use]
    pub fn answer(&mut self, update: &Update, refused: &[Refused]) -> DeltaDiscoveryRequest {
        if let Some(known) = &mut self.known {
            for resource in &update.resources {
                // What was under way when it was left is not known.
                let is_followed = self.names.as_ref().is_none_or(|names| names.contains(&resource.name));
                if is_followed && !refused.iter().any(|refused| refused.name == resource.name) {
                    known.insert(resource.name.clone(), resource.version.clone());
                }
            }
            for name in &update.removed {
                known.remove(name);
            }
        }
        let error = (!refused.is_empty()).then(|| {
            let named =
                refused.iter().take(NAMED).map(|refused| format!("{}: {}", refused.name, refused.why));
            let mut message = named.collect::<Vec<_>>().join("; ");
            if refused.len() > NAMED {
                message += &format!("; and {} more", refused.len() - NAMED);
            }
            Status { code: INVALID, message, ..Status::default() }
        });
        DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            response_nonce: update.nonce.clone(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// How many resources it has accepted, as far as it keeps them.
    #[must_use]
    pub fn known(&self) -> usize {
        self.known.as_ref().map_or(0, HashMap::len)
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;
    use isthmus_proto::envoy::service::discovery::v3::Resource as Sent;

    #[test]
    fn a_name_without_an_end_is_refused_and_told_in_part() {
        let mut client = Client::new("type", []);
        let sent = |length: usize| Sent {
            name: "ü".repeat(length / 2),
            resource: Some(Any { type_url: "type".to_owned(), value: Vec::new() }),
            ..Sent::default()
        };
        let resources = vec![sent(LONGEST_NAME), sent(LONGEST_NAME + 2)];
        let (update, refused) = client.read(DeltaDiscoveryResponse { resources, ..Default::default() });
        assert_eq!((update.resources.len(), refused.len()), (1, 1));
        let answer = client.answer(&update, &refused).error_detail.unwrap();
        let told = format!("{}…: has a name of 1026 bytes; at most 1024 are taken", "ü".repeat(SHOWN));
        assert_eq!((answer.message, client.known()), (told, 1));
    }
}
