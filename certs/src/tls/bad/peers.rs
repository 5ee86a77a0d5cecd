//! Chains that prove an identity, but an unexpected or a denied one.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{HOUR, Row, World, leaf, leaf_below, workload};
use crate::crl::tests::{list, list_by, pem_of};
use crate::crl::{Crls, StaleCrl};
use crate::facts::Facts;
use crate::{DenyList, IdPattern, KeyKind, KeyPin, Peer, SpiffeId, TrustBundles};

/// The presented ID, the accepted ID or pattern, and what the case tests.
const OTHERS: &[(&str, &str, &str)] = &[
    ("/ns/a/sa/x", "/ns/ab/sa/x", "a namespace that starts alike"),
    ("/ns/ab/sa/x", "/ns/a/sa/x", "a namespace that goes on"),
    ("/ns/bookinfo/sa/product", "/ns/bookinfo/sa/productpage", "a prefix of the account"),
    ("/ns/bookinfo/sa/productpage2", "/ns/bookinfo/sa/productpage", "the account and a letter"),
    ("/ns/bookinfo/sa/productpage/x", "/ns/bookinfo/sa/productpage", "below the one that is wanted"),
    ("/ns/axb/sa/x", "/ns/a.b/sa/x", "`.` is not any letter"),
    ("/NS/a/sa/x", "/ns/a/sa/x", "another case in the path"),
    ("/ns/a/sa/X", "/ns/a/sa/x", "another case in the account"),
    ("/ns/ab/sa/x", "/ns/a/*", "a pattern ends at a whole segment"),
    ("/ns/a", "/ns/a/*", "a pattern does not mean where it starts"),
    ("/NS/a/sa/x", "/ns/a/*", "another case under a pattern"),
    ("/ns/axb/sa/x", "/ns/a.b/*", "`.` is not any letter in a pattern"),
    ("/x/ns/a/sa/x", "/ns/a/*", "a pattern starts where the path does"),
    ("/ns/bookinfo/sa/productpage", "/ns/a/sa/x", "somebody else"),
];

pub(super) fn rows(world: &World) -> Vec<Row> {
    [unexpected(world), pinned(world), denied(world), revoked(world)].into_iter().flatten().collect()
}

fn unexpected(world: &World) -> Vec<Row> {
    let id = |path: &str| format!("spiffe://west.example{path}");
    let row =
        |name: String, shown, peer| Row::new(world, name, "unexpected", "Unexpected", shown).accepting(peer);
    let mut rows: Vec<_> = OTHERS
        .iter()
        .map(|&(shown, wanted, about)| {
            let identity = world.west.issue_altered(&SpiffeId::parse(&id(shown)).unwrap(), |_| {});
            let peer = match SpiffeId::parse(&id(wanted)) {
                Ok(id) => Peer::Ids(vec![id]),
                Err(_) => Peer::Matching(vec![IdPattern::parse(&id(wanted)).unwrap()]),
            };
            row(about.to_owned(), identity, peer)
        })
        .collect();
    let local = world.east.issue(&workload(&world.east, "local"), &[], HOUR).unwrap();
    let all_west = Peer::Domain(world.west.trust_domain().clone());
    rows.push(row("a trusted domain that is not wanted here".to_owned(), local, all_west));
    let dns = world.west.issue(&workload(&world.west, "ratings"), &["any.name.at.all"], HOUR).unwrap();
    let only = Peer::Ids(vec![world.client.id().clone()]);
    rows.push(row("the right DNS name, another identity".to_owned(), dns, only));
    rows.push(row("an empty list of peers".to_owned(), leaf(world, |_| {}), Peer::Ids(Vec::new())));
    rows
}

fn pinned(world: &World) -> Vec<Row> {
    let [wanted, other] = ["west-1", "west-2"]
        .map(|cluster| world.west.intermediate(cluster, KeyKind::P256, HOUR * 2).unwrap());
    let key = Facts::read(wanted.certificate()).unwrap().pin;
    let pin = |issuer: KeyPin| Peer::Pinned {
        issuer,
        peer: Box::new(Peer::Domain(world.west.trust_domain().clone())),
    };
    let row = |name, shown| Row::new(world, name, "pin", "Pin", shown).accepting(pin(key));
    let mut beside = leaf_below(world, &other, |_| {});
    beside.chain.push(wanted.certificate().clone());
    let root = Facts::read(world.west.certificate()).unwrap().pin;
    vec![
        row("signed by another cluster's intermediate", leaf_below(world, &other, |_| {})),
        row("another intermediate, the pinned one sent along", beside),
        row("signed by the root, which no pin means", leaf(world, |_| {})).accepting(pin(root)),
    ]
}

fn denied(world: &World) -> Vec<Row> {
    let row = |name, detail, shown: crate::Identity, fill: &dyn Fn(&mut DenyList)| -> Row {
        let mut list = DenyList::new(world.west.trust_domain().clone());
        fill(&mut list);
        let mut bundles = TrustBundles::clone(&world.bundles);
        bundles.deny(list);
        Row::new(world, name, "denied", detail, shown).with_bundles(bundles)
    };
    let exactly = IdPattern::Exactly(world.client.id().clone());
    let below = IdPattern::parse("spiffe://west.example/ns/bookinfo/*").unwrap();
    let all = IdPattern::parse("spiffe://west.example/*").unwrap();
    let intermediate = world.west.intermediate_altered(|_| {});
    let shown = leaf(world, |_| {});
    let [own, above] = [&shown.chain[0], intermediate.certificate()].map(serial);
    // As `openssl x509 -serial` prints it, and with colons as in `openssl x509 -text`.
    let upper = own.to_uppercase();
    let colons: Vec<_> = above.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
    let colons = colons.join(":");
    vec![
        row("its identity is denied", "Identity", leaf(world, |_| {}), &|list| {
            _ = list.add_identity(exactly.clone());
        }),
        row("its namespace is denied", "Identity", leaf(world, |_| {}), &|list| {
            _ = list.add_identity(below.clone());
        }),
        row("its whole domain is denied", "Identity", leaf(world, |_| {}), &|list| {
            _ = list.add_identity(all.clone());
        }),
        row("its serial number is denied", "Serial", shown, &|list| {
            _ = list.add_serial(upper.parse().unwrap(), None)
        }),
        row(
            "its intermediate's serial number is denied",
            "Serial",
            leaf_below(world, &intermediate, |_| {}),
            &|list| _ = list.add_serial(colons.parse().unwrap(), None),
        ),
    ]
}

fn revoked(world: &World) -> Vec<Row> {
    let now = OffsetDateTime::now_utc();
    let (from, until) = (now - HOUR, now + HOUR);
    let below = world.west.intermediate_altered(|_| {});
    let revoking = |lists: &[Vec<u8>]| {
        let crls = Crls::read(pem_of(lists).as_bytes(), StaleCrl::Refuse, Duration::ZERO).unwrap();
        let mut bundles = TrustBundles::clone(&world.bundles);
        bundles.revoke(world.west.trust_domain().clone(), crls);
        bundles
    };
    let row = |name, reason, detail, shown, lists: &[Vec<u8>]| {
        Row::new(world, name, reason, detail, shown).with_bundles(revoking(lists))
    };
    let [under_root, under_below] = [leaf(world, |_| {}), leaf_below(world, &below, |_| {})];
    let leaf_of_below = leaf_below(world, &below, |_| {});
    let by_root = list(&world.west, &[&under_root.chain[0]], from, until);
    let by_below = list(&below, &[&under_below.chain[0]], from, until);
    let of_below = list(&world.west, &[below.certificate()], from, until);
    let stale = list(&world.west, &[], from - HOUR, from);
    // The name of west with another key.
    let key = KeyKind::P256.generate().unwrap();
    let forger = rcgen::Issuer::from_ca_cert_der(world.west.certificate(), &key).unwrap();
    let forged = list_by(&forger, &[], from, until);
    let none = || leaf(world, |_| {});
    vec![
        row("revoked by the root", "revoked", "CertRevoked", under_root, &[by_root]),
        row("revoked by its intermediate", "revoked", "CertRevoked", under_below, &[by_below]),
        row("its intermediate is revoked", "revoked", "CertRevoked", leaf_of_below, &[of_below]),
        row("the revocation list is stale", "crl_stale", "CrlExpired", none(), &[stale]),
        row("the revocation list is forged", "crl_bad", "InvalidCrlSignature", none(), &[forged]),
    ]
}

fn serial(certificate: &CertificateDer<'_>) -> String {
    Facts::read(certificate).unwrap().serial
}
