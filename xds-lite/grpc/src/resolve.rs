//! Resolves names of agents, control planes and peers with the C library, one address family at a time: a family
//! without answer from its name servers must not delay the other. Endpoints of services are not resolved here: a
//! gateway does that and follows their TTL.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use dns_lookup::{AddrFamily, AddrInfoHints, SockType, getaddrinfo};
use tokio::sync::oneshot;
use tokio::time::timeout;

use isthmus_model::address::{Ranges, Target};

/// How long to wait for the second family once the first has answered.
const GRACE: Duration = Duration::from_millis(250);
/// Longest lookup: the C library asks each server twice, for 5 s.
const PATIENCE: Duration = Duration::from_secs(15);

type Found = io::Result<Vec<IpAddr>>;

/// The addresses of a target; at least one.
///
/// # Errors
/// The name does not resolve, or no name server answers in time.
pub async fn addresses(target: &Target) -> io::Result<Vec<SocketAddr>> {
    match target {
        Target::Address(address) => Ok(vec![*address]),
        Target::Name { host, port } => {
            let found = timeout(PATIENCE, by_name(host.as_str())).await;
            let found = found.map_err(|_| {
                let why = format!("{host}: no answer from a name server within {PATIENCE:?}; check the resolver of this machine");
                io::Error::new(io::ErrorKind::TimedOut, why)
            })?;
            let found = found.map_err(|error| io::Error::new(error.kind(), format!("{host}: {error}")))?;
            Ok(found.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect())
        }
    }
}

/// [`addresses`] of a target that another cluster gave: the addresses of a name must be in `within`. A literal address
/// was checked when it was accepted.
///
/// # Errors
/// As for [`addresses`], and when none of the addresses is allowed.
pub async fn addresses_within(target: &Target, within: Option<&Ranges>) -> io::Result<Vec<SocketAddr>> {
    let found = addresses(target).await?;
    let (Target::Name { host, .. }, Some(ranges)) = (target, within) else { return Ok(found) };
    let (allowed, refused): (Vec<_>, Vec<_>) = found.into_iter().partition(|at| ranges.allow(at.ip()));
    match refused.first() {
        Some(refused) if allowed.is_empty() => {
            let why = format!(
                "{host} resolves to {}, and a name that another cluster gave may not lead there; if it is right, write the address under `peers` of this agent's file",
                refused.ip()
            );
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
        _ => Ok(allowed),
    }
}

/// Both families, IPv6 first, as in the C library.
async fn by_name(host: &str) -> Found {
    let (mut v6, mut v4) = (ask(host, AddrFamily::Inet6)?, ask(host, AddrFamily::Inet)?);
    let mut found = tokio::select! {
        first = &mut v6 => both(answer(first), v4).await?,
        first = &mut v4 => both(answer(first), v6).await?,
    };
    found.sort_by_key(IpAddr::is_ipv4);
    Ok(found)
}

/// Combines the answer of the first family with that of the second.
async fn both(first: Found, second: oneshot::Receiver<Found>) -> Found {
    match first {
        Ok(first) if !first.is_empty() => {
            let second = timeout(GRACE, second).await.ok().map(answer).and_then(Result::ok);
            Ok([first, second.unwrap_or_default()].concat())
        }
        nothing => match (answer(second.await), nothing) {
            (Ok(second), _) if !second.is_empty() => Ok(second),
            (Err(error), _) | (_, Err(error)) => Err(error),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
        },
    }
}

fn answer(received: Result<Found, oneshot::error::RecvError>) -> Found {
    received.unwrap_or_else(|_| Err(io::Error::other("the lookup ended without an answer")))
}

/// Looks a family up in a thread of its own: at its end, a runtime would wait for one of its blocking threads.
fn ask(host: &str, family: AddrFamily) -> io::Result<oneshot::Receiver<Found>> {
    let host = host.to_owned();
    let (sender, receiver) = oneshot::channel();
    let look_up = move || {
        let hints = AddrInfoHints {
            address: family.into(),
            socktype: SockType::Stream.into(),
            ..AddrInfoHints::default()
        };
        let found = getaddrinfo(Some(&host), None, Some(hints)).map_err(io::Error::from);
        let found = found.and_then(|found| {
            found.map(|one| one.map(|one| one.sockaddr.ip())).collect::<io::Result<Vec<_>>>()
        });
        // The caller may have given up.
        let _late = sender.send(found);
    };
    thread::Builder::new().name("resolve".to_owned()).spawn(look_up)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn answered(found: Found) -> oneshot::Receiver<Found> {
        let (sender, receiver) = oneshot::channel();
        sender.send(found).unwrap();
        receiver
    }

    #[tokio::test]
    async fn resolve_finds_names_and_literal_addresses() {
        let here = addresses(&"localhost:80".parse().unwrap()).await.unwrap();
        assert!(here.contains(&(Ipv4Addr::LOCALHOST, 80).into()), "{here:?}");
        let literal = "10.0.0.1:1".parse::<SocketAddr>().unwrap();
        assert_eq!(addresses(&Target::Address(literal)).await.unwrap(), [literal]);
        let nobody = addresses(&"nobody.invalid:80".parse().unwrap()).await.unwrap_err();
        assert!(nobody.to_string().starts_with("nobody.invalid: "), "{nobody}");
    }

    #[tokio::test]
    async fn resolve_refuses_loopback_for_names_of_other_clusters() {
        let name = "localhost:80".parse().unwrap();
        let why = addresses_within(&name, Some(&Ranges::default())).await.unwrap_err().to_string();
        assert!(why.starts_with("localhost resolves to ") && why.contains("may not lead there"), "{why}");
        let here = Ranges(vec!["127.0.0.0/8".parse().unwrap()]);
        let found = addresses_within(&name, Some(&here)).await.unwrap();
        assert_eq!(found, [(Ipv4Addr::LOCALHOST, 80).into()], "the others are left out");
        let literal = Target::Address((Ipv4Addr::LOCALHOST, 80).into());
        assert_eq!(addresses_within(&literal, Some(&Ranges::default())).await.unwrap().len(), 1);
        assert!(!addresses_within(&name, None).await.unwrap().is_empty(), "the operator's own name");
    }

    #[tokio::test(start_paused = true)]
    async fn resolve_does_not_wait_for_a_silent_address_family() {
        let ip = IpAddr::from([10, 0, 0, 1]);
        let (_silent, second) = oneshot::channel();
        let found = both(Ok(vec![ip]), second).await;
        assert_eq!(found.unwrap(), [ip]);
        let none = || Err(io::Error::other("no such family"));
        assert_eq!(both(none(), answered(Ok(vec![ip]))).await.unwrap(), [ip]);
        assert_eq!(both(Ok(vec![ip]), answered(none())).await.unwrap(), [ip]);
        assert!(both(none(), answered(none())).await.is_err());
        assert!(both(Ok(Vec::new()), answered(Ok(Vec::new()))).await.is_err());
    }
}
