//! Probes addresses by a TCP connect and nothing more. `schedule` says which; its callers act on the results.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::io::Errno;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::schedule::Answer;
use isthmus_model::address::Target;

/// Concurrent probes.
const AT_ONCE: usize = 64;
/// Timeout of a connect.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most addresses of a name that are tried.
const ADDRESSES: usize = 8;
/// How often to collect results and start due probes.
const PACE: Duration = Duration::from_millis(250);

/// The owner of probes: says what is due and takes the results.
pub trait Asker {
    /// Takes the results since the last turn, and returns the addresses to probe now, at most `most`.
    fn poll(&self, answers: Vec<(Target, Answer)>, most: usize) -> Vec<Target>;

    /// Probes an address.
    fn ask(&self, target: &Target) -> impl Future<Output = Answer> + Send + 'static;
}

/// Probes for ever.
pub async fn run_probes(asker: impl Asker) {
    let mut asking = JoinSet::new();
    let mut pace = interval(PACE);
    loop {
        pace.tick().await;
        let mut answers = Vec::new();
        while let Some(answered) = asking.try_join_next() {
            answers.extend(answered.ok());
        }
        for target in asker.poll(answers, AT_ONCE.saturating_sub(asking.len())) {
            let answer = asker.ask(&target);
            asking.spawn(async move { (target, answer.await) });
        }
    }
}

/// Connects to all of these addresses; the first success is enough. Each connection is closed at once.
pub async fn reach<F>(addresses: &[SocketAddr], connect: impl Fn(SocketAddr) -> F) -> Answer
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let ask = |address: &SocketAddr| {
        let (address, connected) = (*address, timeout(PATIENCE, connect(*address)));
        async move { (address, connected.await) }
    };
    let mut connecting: JoinSet<_> = addresses.iter().take(ADDRESSES).map(ask).collect();
    let mut answer = Answer::Unasked;
    while let Some(connected) = connecting.join_next().await {
        match connected {
            Ok((_, Ok(Ok(())))) => return Answer::Reached,
            Ok((to, Ok(Err(error)))) if is_our_own(&error) && !has_no_way(&error, to) => {
                return Answer::Unasked;
            }
            Ok((_, Ok(Err(error)))) => answer = Answer::Unreached(error.to_string()),
            Ok((_, Err(_))) => {
                answer = Answer::Unreached(format!("no answer within {} s", PATIENCE.as_secs()))
            }
            Err(_) => {}
        }
    }
    answer
}

/// Whether a connect failed because this machine has no route to the address.
///
/// Linux returns EADDRNOTAVAIL both if no local address fits the family (`disable_ipv6`) and if the TCP ports of a
/// local address are used up. Connecting a datagram socket distinguishes them: it needs the same route and local
/// address but no TCP port, and sends nothing.
#[must_use]
pub fn has_no_way(error: &io::Error, to: SocketAddr) -> bool {
    let errno = |error: &io::Error| error.raw_os_error().map(Errno::from_raw_os_error);
    match errno(error) {
        Some(Errno::NETUNREACH | Errno::AFNOSUPPORT) => true,
        Some(Errno::ADDRNOTAVAIL) => {
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(to)).is_err_and(|error| {
                matches!(errno(&error), Some(Errno::ADDRNOTAVAIL | Errno::NETUNREACH | Errno::AFNOSUPPORT))
            })
        }
        _ => false,
    }
}

/// Whether this machine lacks a resource, so that the error says nothing of the address.
fn is_our_own(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM)
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::net::TcpStream;

    use super::*;

    async fn ask(addresses: &[SocketAddr]) -> Answer {
        reach(addresses, |address| async move { TcpStream::connect(address).await.map(drop) }).await
    }

    #[tokio::test]
    async fn tcp_probe_needs_one_address_that_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(ask(&[here]).await, Answer::Reached);
        assert_eq!(ask(&[closed, here]).await, Answer::Reached);
        let answer = ask(&[closed]).await;
        assert!(matches!(&answer, Answer::Unreached(why) if why.contains("refused")), "{answer:?}");
        assert_eq!(ask(&[]).await, Answer::Unasked);
        let short = reach(&[here], |_| async { Err(Errno::MFILE.into()) }).await;
        assert_eq!(short, Answer::Unasked, "a lack of descriptors says nothing of the address");
        let no_ports = reach(&[here], |_| async { Err(Errno::ADDRNOTAVAIL.into()) }).await;
        assert_eq!(no_ports, Answer::Unasked, "nor does a lack of ports");
    }

    #[tokio::test]
    async fn tcp_probe_with_one_family_off_reaches_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let far = "[2001:db8::9]:443".parse().unwrap();
        let connect = move |address: SocketAddr| async move {
            if address == far {
                return Err(Errno::NETUNREACH.into());
            }
            TcpStream::connect(address).await.map(drop)
        };
        assert_eq!(reach(&[far, here], connect).await, Answer::Reached);
        let answer = reach(&[far], connect).await;
        assert!(matches!(&answer, Answer::Unreached(why) if why.contains("nreachable")), "{answer:?}");
    }

    #[test]
    fn tcp_probe_distinguishes_no_ports_from_no_route() {
        let to = "127.0.0.1:9".parse().unwrap();
        assert!(!has_no_way(&Errno::ADDRNOTAVAIL.into(), to), "loopback is always reached");
        assert!(has_no_way(&Errno::NETUNREACH.into(), to));
        assert!(has_no_way(&Errno::AFNOSUPPORT.into(), to));
        assert!(!has_no_way(&Errno::MFILE.into(), to));
    }
}
