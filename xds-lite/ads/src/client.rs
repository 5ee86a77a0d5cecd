//! Tracks one type of a delta client across its streams: subscribed names, accepted versions, the first request of a
//! stream and the answer to a response. A version counts as known only if that resource was accepted.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use isthmus_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::google::rpc::Status;

/// gRPC's INVALID_ARGUMENT.
const INVALID: i32 = 3;
/// Resources named in a refusal, at most.
const NAMED: usize = 16;
/// Longest resource name in bytes: names go into logs, status and refusals.
const LONGEST_NAME: usize = 1_024;
/// Characters shown of a longer name.
const SHOWN: usize = 64;

/// One type of a delta client.
#[derive(Debug)]
pub struct Client {
    type_url: String,
    /// Accepted versions by name. None: the tables know them.
    known: Option<HashMap<String, String>>,
    /// Subscribed names. None: all that the server has.
    names: Option<BTreeSet<String>>,
}

/// The changes in a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The type of the resources.
    pub type_url: String,
    /// New or changed resources.
    pub resources: Vec<Resource>,
    /// Names of removed resources.
    pub removed: Vec<String>,
    nonce: String,
}

/// A received resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// The server's version of it.
    pub version: String,
    /// The encoded message.
    pub bytes: Bytes,
}

/// A resource that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// The reason.
    pub why: String,
}

impl Update {
    /// An update without a nonce: no server waits for its answer.
    #[must_use]
    pub fn new(type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Update {
        Update { type_url: type_url.to_owned(), resources, removed, nonce: String::new() }
    }
}

impl Client {
    /// A client of all resources of a type, which knows these versions from before.
    pub fn new(type_url: &str, known: impl IntoIterator<Item = (String, String)>) -> Client {
        Client { type_url: type_url.to_owned(), known: Some(known.into_iter().collect()), names: None }
    }

    /// A client of all resources of a type whose versions the tables know: a hundred thousand need not be stored twice.
    #[must_use]
    pub fn of_tables(type_url: &str) -> Client {
        Client { type_url: type_url.to_owned(), known: None, names: None }
    }

    /// A client of the resources that [`Client::follow`] names; of none at first.
    #[must_use]
    pub fn of_names(type_url: &str) -> Client {
        Client { type_url: type_url.to_owned(), known: Some(HashMap::new()), names: Some(BTreeSet::new()) }
    }

    /// The type URL.
    #[must_use]
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// The first request of a stream; the caller adds the node. None while no name is subscribed: a first request
    /// without names would subscribe to all. `versions` returns the versions that the tables know.
    #[must_use]
    pub fn first(&self, versions: &dyn Fn() -> HashMap<String, String>) -> Option<DeltaDiscoveryRequest> {
        if self.names.as_ref().is_some_and(BTreeSet::is_empty) {
            return None;
        }
        Some(DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            resource_names_subscribe: self.names.iter().flatten().cloned().collect(),
            initial_resource_versions: self.known.clone().unwrap_or_else(versions),
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Subscribes to these names and no others. Returns the request for that, if anything changes; it is the first of
    /// its type on a stream that has had none.
    #[must_use]
    pub fn set_names(&mut self, names: &BTreeSet<String>) -> Option<DeltaDiscoveryRequest> {
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

    /// A request to send names again that were refused.
    #[must_use]
    pub fn resend_request(&self, names: Vec<String>) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Reads a response. A resource of another type, without content or with an over-long name is refused.
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
                    format!("has a name of {} bytes; at most {LONGEST_NAME} are accepted", sent.name.len());
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

    /// The answer to an update that was applied except for `refused`: an ACK, or a NACK that names them.
    #[must_use]
    pub fn answer(&mut self, update: &Update, refused: &[Refused]) -> DeltaDiscoveryRequest {
        if let Some(known) = &mut self.known {
            for resource in &update.resources {
                // A resource in flight when its name was unsubscribed is not known.
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

    /// The number of accepted resources; 0 where the tables know them.
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
    fn overlong_name_is_refused_and_truncated_in_the_refusal() {
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
        let expected = format!("{}…: has a name of 1026 bytes; at most 1024 are accepted", "ü".repeat(SHOWN));
        assert_eq!((answer.message, client.known()), (expected, 1));
    }
}
