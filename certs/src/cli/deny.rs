//! `deny`: prints deny-lists, changes this domain's own and accepts those of other domains.

use std::path::Path;

use anyhow::{Context as _, bail};
use isthmus_certs::deny::Serial;
use isthmus_certs::facts::Facts;
use isthmus_certs::{DenyList, IdPattern, SpiffeId, TrustDomain, pem};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::chains::escaped;
use super::options::{DenyChange, DenyOptions};
use super::read;
use super::say::{Answer, table, time};

pub(super) fn deny(options: &DenyOptions) -> anyhow::Result<Answer> {
    match &options.change {
        None => print(options),
        Some(DenyChange::Add { what, at }) => {
            let (entries, mut home) = (parse_entries(what)?, at.open()?);
            entries.iter().try_for_each(|entry| entry.check(&home.state().trust_domain))?;
            let add = |list: &mut DenyList| entries.iter().filter(|entry| entry.add(list)).count() > 0;
            Ok(changed(&home.change_deny_list(add)?, "denied"))
        }
        Some(DenyChange::Remove { what, at }) => {
            let entries = parse_entries(what)?;
            let mut missing = Vec::new();
            let list = at.open()?.change_deny_list(|list| {
                missing = entries.iter().filter(|entry| !entry.remove(list)).map(Entry::render).collect();
                missing.len() < entries.len()
            })?;
            if !missing.is_empty() {
                bail!("not on the deny-list: {}; `isthmus-certs deny` prints it", missing.join(", "));
            }
            Ok(changed(&list, "no longer denied"))
        }
        Some(DenyChange::Take { file, trust_domain, at }) => {
            let envelope = String::from_utf8(read(file)?).with_context(|| {
                format!("{}: is not UTF-8; a deny-list is JSON: is it the right file?", escaped(file))
            })?;
            let list = at.open()?.take_deny_list(trust_domain, &envelope)?;
            Ok(changed(&list, "accepted"))
        }
    }
}

fn print(options: &DenyOptions) -> anyhow::Result<Answer> {
    let home = options.at.open()?;
    let mut table = table(&["trust domain", "sequence", "denied", "until"]);
    let mut lists = Vec::new();
    let only = options.trust_domain.as_ref();
    for domain in home.domains()?.into_iter().filter(|domain| only.is_none_or(|only| only == domain)) {
        let list = home.deny_list(&domain)?;
        let row =
            |what: String, until: String| [domain.to_string(), list.sequence().to_string(), what, until];
        for identity in list.identities() {
            table.add_row(row(identity.to_string(), "-".to_owned()));
        }
        for (serial, until) in list.serials() {
            table.add_row(row(format!("serial {serial}"), until.map_or_else(|| "-".to_owned(), time)));
        }
        lists.push(described(&list));
    }
    Ok(Answer::new(table.to_string(), json!({ "lists": lists })))
}

fn changed(list: &DenyList, how: &str) -> Answer {
    let (identities, serials) = (list.identities().count(), list.serials().count());
    let text = format!(
        "{how}; deny-list of {}: sequence {}, {identities} identities and {serials} serial numbers",
        list.trust_domain(),
        list.sequence()
    );
    Answer::new(text, described(list))
}

fn described(list: &DenyList) -> Value {
    let serials: Vec<_> =
        list.serials().map(|(serial, until)| json!({ "serial": serial, "until": until.map(time) })).collect();
    json!({ "trust_domain": list.trust_domain(), "sequence": list.sequence(),
        "identities": list.identities().collect::<Vec<_>>(), "serials": serials })
}

/// What an argument of `deny add` or `deny remove` names.
enum Entry {
    Identity(IdPattern),
    Serial(Serial, Option<OffsetDateTime>),
    Certificate(Box<Facts>, Serial),
}

impl Entry {
    /// Refuses an entry that would have no effect in a list of this domain.
    fn check(&self, own: &TrustDomain) -> anyhow::Result<()> {
        match self {
            Self::Identity(IdPattern::Exactly(id) | IdPattern::Below(id)) if id.trust_domain() != own => {
                bail!(
                    "{id} is not of {own}; only its own domain can deny it; to stop trusting that domain, use `bundle remove`"
                )
            }
            Self::Identity(IdPattern::Exactly(id)) if id.path().is_empty() => {
                bail!("{id} names a trust domain; write {id}/* to deny every identity in it")
            }
            Self::Certificate(facts, _) if facts.is_root() => bail!(
                "this is a root certificate, which a deny-list cannot deny; replace an own root by a roll-over (`rotate --root`), drop another domain's with `bundle remove`"
            ),
            Self::Certificate(facts, _) if !facts.uris.iter().any(|uri| is_of(uri, own)) => {
                bail!("the certificate is not of {own}; only its own domain can deny it")
            }
            _ => Ok(()),
        }
    }

    fn add(&self, list: &mut DenyList) -> bool {
        match self {
            Self::Identity(identity) => list.add_identity(identity.clone()),
            Self::Serial(serial, until) => list.add_serial(serial.clone(), *until),
            Self::Certificate(facts, serial) => list.add_serial(serial.clone(), Some(facts.not_after)),
        }
    }

    fn remove(&self, list: &mut DenyList) -> bool {
        match self {
            Self::Identity(identity) => list.remove_identity(identity),
            Self::Serial(serial, _) | Self::Certificate(_, serial) => list.remove_serial(serial),
        }
    }

    fn render(&self) -> String {
        match self {
            Self::Identity(identity) => identity.to_string(),
            Self::Serial(serial, _) | Self::Certificate(_, serial) => serial.to_string(),
        }
    }
}

fn is_of(uri: &str, domain: &TrustDomain) -> bool {
    SpiffeId::parse(uri).is_ok_and(|id| id.trust_domain() == domain)
}

fn parse_entries(words: &[String]) -> anyhow::Result<Vec<Entry>> {
    words.iter().map(|word| parse_entry(word)).collect()
}

fn parse_entry(word: &str) -> anyhow::Result<Entry> {
    if word.starts_with("spiffe:") {
        return Ok(Entry::Identity(IdPattern::parse(word).with_context(|| word.to_owned())?));
    }
    let path = Path::new(word);
    if path.exists() {
        let chain = pem::certificates(read(path)?).with_context(|| word.to_owned())?;
        let leaf = chain.first().context("the file has no certificate")?;
        let facts = Facts::read(leaf).with_context(|| word.to_owned())?;
        let serial = facts.serial.parse()?;
        return Ok(Entry::Certificate(Box::new(facts), serial));
    }
    match word.parse() {
        Ok(serial) => Ok(Entry::Serial(serial, None)),
        Err(_) => bail!(
            "{word:?} is neither a SPIFFE ID, nor a certificate file, nor a serial number (hexadecimal)"
        ),
    }
}
