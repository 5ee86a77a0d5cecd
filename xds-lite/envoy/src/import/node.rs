//! Builds the node with which a gateway introduces itself to another control plane. istiod reads the proxy's identity
//! from the form of the id, and its configuration from the metadata.

use std::net::IpAddr;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Map;

use isthmus_model::locality::Locality;
use isthmus_proto::envoy::config::core::v3;

/// The gateway that introduces itself.
#[derive(Clone, Debug)]
pub struct Asker<'a> {
    /// Its name, such as that of its pod.
    pub id: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
    /// Its network; may be empty.
    pub network: &'a str,
    /// Its locality.
    pub locality: &'a Locality,
    /// Its address.
    pub ip: IpAddr,
    /// The namespace of its identity.
    pub namespace: &'a str,
}

/// The node of a gateway: `router~IP~ID.NAMESPACE~NAMESPACE.svc.cluster.local` unless `id` is given, and the metadata
/// of istiod's own proxies, which `metadata` overrides.
#[must_use]
pub fn node(asker: &Asker<'_>, id: Option<&str>, metadata: &Map<String, serde_json::Value>) -> v3::Node {
    let Asker { id: name, cluster, network, locality, ip, namespace } = asker;
    let id = match id {
        Some(id) => id.to_owned(),
        None => format!("router~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
    };
    let mut said = Map::new();
    for (key, value) in
        [("NAME", *name), ("NAMESPACE", *namespace), ("CLUSTER_ID", *cluster), ("NETWORK", *network)]
    {
        if !value.is_empty() {
            said.insert(key.to_owned(), value.into());
        }
    }
    said.insert("INSTANCE_IPS".to_owned(), ip.to_string().into());
    said.extend(metadata.clone());
    v3::Node {
        id,
        cluster: (*cluster).to_owned(),
        metadata: Some(fields(said)),
        locality: Some(v3::Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            sub_zone: locality.sub_zone.clone(),
        }),
        user_agent_name: "isthmus-gateway".to_owned(),
        ..v3::Node::default()
    }
}

fn fields(map: Map<String, serde_json::Value>) -> Struct {
    Struct { fields: map.into_iter().map(|(key, json)| (key, value(json))).collect() }
}

fn value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(yes) => Kind::BoolValue(yes),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(list) => {
            Kind::ListValue(ListValue { values: list.into_iter().map(value).collect() })
        }
        serde_json::Value::Object(map) => Kind::StructValue(fields(map)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_has_istiods_form_of_id_and_metadata() {
        let asker = Asker {
            id: "gw-1",
            cluster: "east",
            network: "east-net",
            locality: &Locality::default(),
            ip: [10, 1, 2, 3].into(),
            namespace: "istio-system",
        };
        let metadata = serde_json::json!({ "LABELS": { "istio": "eastwestgateway" }, "NETWORK": "other" });
        let serde_json::Value::Object(metadata) = metadata else { panic!("a map") };
        let made = node(&asker, None, &metadata);
        assert_eq!(made.id, "router~10.1.2.3~gw-1.istio-system~istio-system.svc.cluster.local");
        let sent = made.metadata.unwrap().fields;
        let text = |key: &str| match sent[key].kind.as_ref() {
            Some(Kind::StringValue(text)) => text.clone(),
            other => panic!("{key}: {other:?}"),
        };
        assert_eq!(
            ["NAMESPACE", "CLUSTER_ID", "NETWORK", "INSTANCE_IPS"].map(text),
            ["istio-system", "east", "other", "10.1.2.3"]
        );
        let Some(Kind::StructValue(labels)) = &sent["LABELS"].kind else { panic!("labels") };
        assert_eq!(labels.fields["istio"].kind, Some(Kind::StringValue("eastwestgateway".to_owned())));
        assert_eq!(node(&asker, Some("mine"), &metadata).id, "mine");
    }
}
