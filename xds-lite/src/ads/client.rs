//! One type of a delta client, across its streams: which versions it has accepted, what to say first on a new
//! stream, and how to answer a response. A version counts as known only if that resource was accepted.

use std::collections::HashMap;

use bytes::Bytes;

use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::proto::google::rpc::Status;

/// gRPC's INVALID_ARGUMENT.
const INVALID: i32 = 3;
/// A refusal names so many resources; there may be more.
const NAMED: usize = 16;

/// What a client knows of one type.
#[derive(Debug)]
pub struct Client {
    type_url: String,
    known: HashMap<String, String>,
}

/// What a response changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Update {
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

impl Client {
    /// A client of all resources of a type, which knows those that it kept from before.
    pub fn new(type_url: &str, known: impl IntoIterator<Item = (String, String)>) -> Client {
        Client { type_url: type_url.to_owned(), known: known.into_iter().collect() }
    }

    /// The first request of a stream; the node is the caller's to add.
    #[must_use]
    pub fn first(&self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.type_url.clone(),
            initial_resource_versions: self.known.clone(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// What a response changes. A resource of another type, or without content, is refused.
    #[must_use]
    pub fn read(&self, response: DeltaDiscoveryResponse) -> (Update, Vec<Refused>) {
        let mut update =
            Update { resources: Vec::new(), removed: response.removed_resources, nonce: response.nonce };
        let mut refused = Vec::new();
        for sent in response.resources {
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
        for resource in &update.resources {
            if refused.iter().any(|refused| refused.name == resource.name) {
                continue;
            }
            self.known.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &update.removed {
            self.known.remove(name);
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

    /// How many resources it has accepted.
    #[must_use]
    pub fn known(&self) -> usize {
        self.known.len()
    }
}
