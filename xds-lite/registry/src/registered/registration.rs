//! Parses a registration from JSON: one `services:` entry as in a registry file, read by the same code, and
//! `instance`, `ttl` and `lease`. Conflicts with other registrations are checked in `fit`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use isthmus_model::address::{Label, Target};
use isthmus_model::host::HostName;
use isthmus_model::problem::{Plain, Problem, Quoted};
use isthmus_model::registry_file;
use isthmus_model::services::Service;
use isthmus_model::units::{Count, Scalar, Time, show_duration};
use isthmus_model::values::PORTS;

use super::attributes::{ATTRIBUTES, Attribute, OF_FILES};
use super::lease::LeaseId;
use super::registrar::Registrar;
use super::{Identity, Refused};

/// The limit of bytes of a registration.
pub const LARGEST: usize = 64 << 10;
/// The default TTL.
pub const TTL: Duration = Duration::from_secs(30);
/// The shortest and the longest TTL.
pub const TTLS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_hours(1));
/// The limit of items in a list.
const ITEMS: usize = 64;

/// One instance of a service.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The service with this one endpoint; omitted attributes have their defaults.
    pub(super) service: Service,
    pub(super) instance: HostName,
    pub(super) address: Target,
    pub(super) said: Vec<&'static Attribute>,
    /// The default port of its host.
    pub(super) sni_port: Option<u16>,
    pub(super) ttl: Duration,
    /// Proves the ownership of an existing registration.
    pub(super) lease: Option<LeaseId>,
    /// The registrar; `None` before it is known, or in records of older agents.
    pub(super) by: Option<Registrar>,
    /// The text as written, without the lease and with the registrar, on one line.
    pub(super) text: Arc<str>,
}

impl Registration {
    /// Parses a registration.
    ///
    /// # Errors
    /// All errors in it, one per line.
    pub fn parse(body: &[u8]) -> Result<Registration, Refused> {
        if body.len() > LARGEST {
            return Err(Refused::Wrong(format!("larger than {} KiB; shorten it", LARGEST >> 10)));
        }
        let Keys(mut keys) = serde_json::from_slice(body).map_err(|error| {
            let error = error.to_string();
            Refused::Wrong(format!("not a JSON object: {}; write {{\"host\": …}}", Plain(&error)))
        })?;
        let mut wrong = Vec::new();
        let lease = keys.remove("lease").and_then(|lease| read_lease(&lease, &mut wrong));
        let text = Value::Object(keys.clone()).to_string().into();
        let by = keys.remove("by").and_then(|by| read_registrar(&by, &mut wrong));
        check_access(&keys, &mut wrong);
        let instance = scalar::<Label>(&mut keys, "instance", &mut wrong);
        let ttl = scalar::<Time>(&mut keys, "ttl", &mut wrong).unwrap_or(TTL);
        if !(TTLS.0..=TTLS.1).contains(&ttl) {
            let [least, most] = [TTLS.0, TTLS.1].map(show_duration);
            wrong.push(format!("ttl: {} is out of range; write {least} to {most}", show_duration(ttl)));
        }
        // Read here: a single entry cannot set another default port than its own.
        let sni_port = scalar::<Count>(&mut keys, "sni_port", &mut wrong);
        let sni_port = sni_port.map(|port| u16::try_from(port).ok().filter(|port| *port > 0));
        if sni_port == Some(None) {
            wrong.push(format!("sni_port: out of range; write {} to {}", PORTS.0, PORTS.1));
        }
        check_lists(&keys, &mut wrong);
        name_endpoint(&mut keys, instance.as_ref(), &mut wrong);
        let said = ATTRIBUTES.iter().filter(|attribute| keys.contains_key(attribute.key)).collect();
        let service = read_service(&keys, &mut wrong);
        let address = service.as_ref().and_then(|service| Some(service.endpoints.first()?.address.clone()));
        match (service, address, instance) {
            (Some(service), Some(address), Some(instance)) if wrong.is_empty() => {
                let sni_port = sni_port.flatten();
                Ok(Registration { service, instance, address, said, sni_port, ttl, lease, by, text })
            }
            (_, _, instance) => {
                if instance.is_none() && !wrong.iter().any(|why| why.starts_with("instance:")) {
                    wrong.push("no instance; add \"instance\", the stable name of this VM".to_owned());
                }
                Err(Refused::Wrong(wrong.join("\n")))
            }
        }
    }

    /// The registration with its registrar.
    ///
    /// # Errors
    /// It names a registrar itself.
    pub(super) fn owned_by(self, by: Registrar) -> Result<Registration, Refused> {
        let Ok(Value::Object(mut keys)) = serde_json::from_str(&self.text) else { return Ok(self) };
        if self.by.is_some() {
            return Err(Refused::Wrong("by: set by the agent only; leave it out".to_owned()));
        }
        keys.insert("by".to_owned(), json!(by.to_string()));
        Ok(Registration { by: Some(by), text: Value::Object(keys).to_string().into(), ..self })
    }

    /// Its identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let (host, instance) = (self.service.host.clone(), self.instance.clone());
        Identity { host, port: self.service.port, instance }
    }

    /// The address of the instance.
    #[must_use]
    pub fn address(&self) -> &Target {
        &self.address
    }
}

/// The keys of an object, each once: plain JSON parsing would let the last duplicate win silently.
struct Keys(Map<String, Value>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
        deserializer.deserialize_map(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Keys, A::Error> {
        let mut keys = Map::new();
        while let Some((key, value)) = access.next_entry::<String, Value>()? {
            if keys.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {}", Quoted(&key))));
            }
            // null means omitted, as in YAML.
            if !value.is_null() {
                keys.insert(key, value);
            }
        }
        Ok(Keys(keys))
    }
}

/// Removes a key and reads it as a value of a registry file.
fn scalar<S: Scalar + DeserializeOwned>(
    keys: &mut Map<String, Value>,
    key: &str,
    wrong: &mut Vec<String>,
) -> Option<S::Value> {
    let text = match keys.remove(key)? {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => {
            wrong.push(format!("{key}: wrong kind of value; write a single value"));
            return None;
        }
    };
    let read: S = serde_json::from_value(Value::String(text)).ok()?;
    let value = read.read();
    if let Err(why) = &value {
        wrong.push(format!("{key}: {} {}; {}", Quoted(read.text()), why.what, why.remedy));
    }
    value.ok()
}

fn read_lease(written: &Value, wrong: &mut Vec<String>) -> Option<LeaseId> {
    let lease = written.as_str().and_then(LeaseId::parse);
    if lease.is_none() {
        wrong.push("lease: invalid; write the lease from /register, or leave it out".to_owned());
    }
    lease
}

fn read_registrar(written: &Value, wrong: &mut Vec<String>) -> Option<Registrar> {
    let by = written.as_str().and_then(|text| text.parse().ok());
    if by.is_none() {
        wrong.push("by: set by the agent only; leave it out".to_owned());
    }
    by
}

/// Refuses keys that control access, and wildcards, which would catch names that nobody has yet.
fn check_access(keys: &Map<String, Value>, wrong: &mut Vec<String>) {
    for key in OF_FILES.iter().filter(|key| keys.contains_key(**key)) {
        wrong.push(format!(
            "{key}: not allowed in a registration; define the service in a registry file, with \
             `registered: true` and {key}"
        ));
    }
    let aliases = keys.get("aliases").and_then(Value::as_array).into_iter().flatten();
    let names = keys.get("host").into_iter().chain(aliases);
    if names.filter_map(Value::as_str).any(|name| name.starts_with("*.")) {
        wrong.push(
            "host and aliases: a VM cannot register wildcards; define '*.…' in a registry file".to_owned(),
        );
    }
}

/// Bounds lists, so that many registrations stay small.
fn check_lists(keys: &Map<String, Value>, wrong: &mut Vec<String>) {
    for (key, value) in keys {
        if value.as_array().is_some_and(|list| list.len() > ITEMS) {
            wrong.push(format!("{}: more than {ITEMS} items; remove some", Plain(key)));
        }
    }
}

/// Names the one endpoint of a registration after its instance.
fn name_endpoint(keys: &mut Map<String, Value>, instance: Option<&HostName>, wrong: &mut Vec<String>) {
    let Some([Value::Object(endpoint)]) =
        keys.get_mut("endpoints").and_then(Value::as_array_mut).map(Vec::as_mut_slice)
    else {
        return wrong.push(
            "endpoints: write exactly one, the address of this instance: [{\"address\": …}]".to_owned(),
        );
    };
    let Some(instance) = instance else { return };
    let named = endpoint.entry("instance").or_insert_with(|| json!(instance));
    if named.as_str().and_then(|named| HostName::parse(named).ok()).as_ref() != Some(instance) {
        wrong.push("endpoints[0].instance: differs from instance; leave it out".to_owned());
    }
}

/// Reads the remaining keys as the one entry of a registry file.
fn read_service(keys: &Map<String, Value>, wrong: &mut Vec<String>) -> Option<Service> {
    // Serialized anew: JSON input has neither anchors nor tags, and does not grow.
    let file = json!({ "services": [keys] }).to_string();
    match registry_file(&file, Path::new("registration")) {
        Ok(services) => services.into_iter().next(),
        Err(problems) => {
            wrong.extend(problems.list().iter().map(describe));
            None
        }
    }
}

/// A problem without its place, since there is no file.
fn describe(problem: &Problem) -> String {
    let what = problem.what.replace("services[0].", "").replace("services[0]", "the registration");
    // Keys that an entry of a file does not have.
    let is_list = problem.remedy.starts_with("expected one of ") && what.ends_with(" in the registration");
    let own = if is_list { ", instance, ttl, lease" } else { "" };
    if problem.remedy.is_empty() { what } else { format!("{what}; {}{own}", problem.remedy) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str =
        r#"{"host":"DB.pxc","port":3306,"instance":"DB-0","endpoints":[{"address":"10.1.0.7:3306"}]}"#;

    fn wrong(text: &str) -> String {
        match Registration::parse(text.as_bytes()) {
            Err(Refused::Wrong(why)) => why,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn registration_is_a_file_entry_with_an_instance() {
        let read = Registration::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(read.identity().to_string(), "db-0 of db.pxc:3306");
        assert_eq!((read.address().to_string().as_str(), read.ttl), ("10.1.0.7:3306", TTL));
        assert!(read.said.is_empty() && read.sni_port.is_none() && read.lease.is_none());
        assert_eq!(read.service.endpoints[0].instance, Some(read.instance.clone()));
        let file = "services: [{ host: db.pxc, port: 3306, endpoints: [{ address: '10.1.0.7:3306', instance: db-0 }] }]";
        assert_eq!(registry_file(file, Path::new("x")).unwrap(), [read.service]);
        let id = LeaseId::from_bytes([7; 16]);
        let more = GOOD.replace(
            "\"port\"",
            &format!(
                "\n\t\"lease\":\"{}\",\"ttl\":\"1m\",\"sni_port\":1,\"alpn\":[\"h2\"],\"aliases\":null,\"balance\":\"random\",\"port\"",
                id.hex()
            ),
        );
        let read = Registration::parse(more.as_bytes()).unwrap();
        assert_eq!((read.lease, read.ttl, read.sni_port), (Some(id), Duration::from_secs(60), Some(1)));
        assert_eq!(read.said.iter().map(|said| said.key).collect::<Vec<_>>(), ["alpn", "balance"]);
        assert!(!read.text.contains(&id.hex()), "the lease is not stored");
        assert_eq!(Registration::parse(read.text.as_bytes()).unwrap().text, read.text);
    }

    #[test]
    fn registration_error_names_each_mistake_as_in_a_file() {
        for (text, expected) in [
            ("", "not a JSON object: EOF while parsing"),
            ("[]", "not a JSON object: invalid type: sequence, expected an object"),
            ("{\"host\":&a", "not a JSON object: "),
            ("{\"host\":\"a\",\"host\":\"b\"}", "duplicate key 'host'"),
            (&GOOD.replace("\"host\":\"DB.pxc\",", ""), "the registration has no host; add 'host: …'"),
            (
                &GOOD.replace("\"port\"", "\"prot\""),
                "unknown key 'prot' in the registration; did you mean 'port'?",
            ),
            (
                &GOOD.replace("\"port\"", "\"zzzzz\":1,\"port\""),
                "unknown key 'zzzzz' in the registration; expected one of host, port, sni_port, aliases, alpn, sources, \
                 balance, max_connections, proxy_protocol, timeouts, traffic, health, namespace, labels, client_certificate, allow_unauthenticated, merge, stale, registered, identities, tls, certificate, key, access, endpoints, instance, ttl, lease",
            ),
            (
                &GOOD.replace("\"port\"", "\"labels\":{\"app\":\"db\"},\"port\""),
                "labels: not allowed in a registration; define the service in a registry file",
            ),
            (
                &GOOD.replace("\"port\"", "\"allow_unauthenticated\":true,\"port\""),
                "allow_unauthenticated: not allowed in a registration",
            ),
            (&GOOD.replace("DB.pxc", "*.pxc"), "host and aliases: a VM cannot register wildcards"),
            (&GOOD.replace("\"port\"", "\"aliases\":[\"*.x\"],\"port\""), "a VM cannot register wildcards"),
            (&GOOD.replace("\"port\"", "\"by\":7,\"port\""), "by: set by the agent only"),
            (&GOOD.replace("3306,", "0,"), "port: '0' is out of range; write 1 to 65535"),
            (
                &GOOD.replace("10.1.0.7:3306", "10.1.0.7"),
                "endpoints[0].address: '10.1.0.7' has no port; write IP:PORT",
            ),
            (&GOOD.replace("DB-0", "a.b"), "instance: 'a.b' is not one DNS label; write 1 to 63 letters"),
            (&GOOD.replace("\"DB-0\"", "[]"), "instance: wrong kind of value"),
            (&GOOD.replace("\"instance\":\"DB-0\",", ""), "no instance; add \"instance\""),
            (&GOOD.replace("\"port\"", "\"ttl\":\"4s\",\"port\""), "ttl: 4s is out of range; write 5s to 1h"),
            (&GOOD.replace("\"port\"", "\"ttl\":30,\"port\""), "ttl: '30' is not a duration"),
            (&GOOD.replace("\"port\"", "\"sni_port\":65536,\"port\""), "sni_port: out of range"),
            (&GOOD.replace("\"port\"", "\"lease\":\"\\u0000\",\"port\""), "lease: invalid"),
            (&GOOD.replace("[{", "[{\"address\":\"a:1\"},{"), "endpoints: write exactly one"),
            (
                &GOOD.replace("\"address\"", "\"instance\":\"db-1\",\"address\""),
                "endpoints[0].instance: differs",
            ),
            (
                &GOOD.replace("\"port\"", &format!("\"alpn\":[{}\"a\"],\"port\"", "\"a\",".repeat(64))),
                "alpn: more than 64 items",
            ),
            (
                &GOOD.replace("\"port\"", &format!("\"x\":\"{}\",\"port\"", "x".repeat(LARGEST))),
                "larger than 64 KiB",
            ),
        ] {
            let found = wrong(text);
            assert!(found.contains(expected), "{text:.200}\nexpected {expected}\nfound {found}");
            assert!(found.len() < 4_096 && !found.contains(['\0', '\u{1b}']), "{found}");
        }
        assert_eq!(wrong(&GOOD.replace("3306,", "0,").replace("DB-0", "")).lines().count(), 2, "both");
    }

    /// A new key of a file's service must be handled here, too.
    #[test]
    fn registration_knows_every_key_of_a_service() {
        let problems = registry_file("services: [{ zzzzzzzz: 1 }]", Path::new("x")).unwrap_err().to_string();
        let known = problems.split("expected one of ").nth(1).unwrap().lines().next().unwrap();
        let mut here: Vec<_> = ATTRIBUTES.iter().map(|attribute| attribute.key).collect();
        here.extend(["host", "port", "sni_port", "endpoints"]);
        here.extend(OF_FILES);
        here.sort_unstable();
        let mut known: Vec<_> = known.split(", ").collect();
        known.sort_unstable();
        assert_eq!(known, here);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn registration_parser_is_total(
            rest in proptest::collection::vec(any::<u8>(), 0..40),
            at in 0..GOOD.len(),
        ) {
            let _ = Registration::parse(&rest);
            let mut text = GOOD.as_bytes().to_vec();
            text.splice(at..at, rest);
            if let Ok(read) = Registration::parse(&text) {
                let again = Registration::parse(read.text.as_bytes());
                prop_assert_eq!(again.map(|again| again.service), Ok(read.service));
            }
        }
    }
}
