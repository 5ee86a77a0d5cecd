//! Names of agents, control planes and peers → addresses, as the C library of this system resolves them, and each
//! family of addresses by itself: one that its name servers do not answer for must not hold up the other. Not the
//! endpoints of services, which a gateway resolves and follows by their TTL.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use dns_lookup::{AddrFamily, AddrInfoHints, SockType, getaddrinfo};
use tokio::sync::oneshot;
use tokio::time::timeout;

use isthmus_model::address::Target;

/// Once one family has answered, the other one may take this much longer.
const GRACE: Duration = Duration::from_millis(250);
/// The C library asks each server twice, for 5 s.
const PATIENCE: Duration = Duration::from_secs(15);

type Found = io::Result<Vec<IpAddr>>;

/// Where a target stands now; at least one address.
///
/// # Errors
/// The name does not resolve, or nobody answers in time.
pub async fn addresses(target: &Target) -> io::Result<Vec<SocketAddr>> {
    match target {
        Target::Address(address) => Ok(vec![*address]),
        Target::Name { host, port } => {
            let found = timeout(PATIENCE, by_name(host.as_str())).await;
            let found = found.map_err(|_| {
                let why = format!("{host}: no name server has answered within {PATIENCE:?}");
                io::Error::new(io::ErrorKind::TimedOut, why)
            })?;
            let found = found.map_err(|error| io::Error::new(error.kind(), format!("{host}: {error}")))?;
            Ok(found.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect())
        }
    }
}

/// IPv6 first, as the C library has it.
async fn by_name(host: &str) -> Found {
    let (mut v6, mut v4) = (ask(host, AddrFamily::Inet6)?, ask(host, AddrFamily::Inet)?);
    let mut found = tokio::select! {
        first = &mut v6 => both(answer(first), v4).await?,
        first = &mut v4 => both(answer(first), v6).await?,
    };
    found.sort_by_key(IpAddr::is_ipv4);
    Ok(found)
}

/// What came first, and what came of the other family.
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

/// In a thread of its own, which nothing waits for: a runtime that ends would wait for one of its own.
fn ask(host: &str, family: AddrFamily) -> io::Result<oneshot::Receiver<Found>> {
    let host = host.to_owned();
    let (tell, told) = oneshot::channel();
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
        // Nobody waits any more.
        let _late = tell.send(found);
    };
    thread::Builder::new().name("resolve".to_owned()).spawn(look_up)?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn told(found: Found) -> oneshot::Receiver<Found> {
        let (tell, told) = oneshot::channel();
        tell.send(found).unwrap();
        told
    }

    #[tokio::test]
    async fn names_of_this_system_are_resolved() {
        let here = addresses(&"localhost:80".parse().unwrap()).await.unwrap();
        assert!(here.contains(&(Ipv4Addr::LOCALHOST, 80).into()), "{here:?}");
        let literal = "10.0.0.1:1".parse::<SocketAddr>().unwrap();
        assert_eq!(addresses(&Target::Address(literal)).await.unwrap(), [literal]);
        let nobody = addresses(&"nobody.invalid:80".parse().unwrap()).await.unwrap_err();
        assert!(nobody.to_string().starts_with("nobody.invalid: "), "{nobody}");
    }

    #[tokio::test(start_paused = true)]
    async fn dns_family_that_is_silent_does_not_hold_up_the_other() {
        let ip = IpAddr::from([10, 0, 0, 1]);
        let (_silent, second) = oneshot::channel();
        let found = both(Ok(vec![ip]), second).await;
        assert_eq!(found.unwrap(), [ip]);
        let none = || Err(io::Error::other("no such family"));
        assert_eq!(both(none(), told(Ok(vec![ip]))).await.unwrap(), [ip]);
        assert_eq!(both(Ok(vec![ip]), told(none())).await.unwrap(), [ip]);
        assert!(both(none(), told(none())).await.is_err());
        assert!(both(Ok(Vec::new()), told(Ok(Vec::new()))).await.is_err());
    }
}
