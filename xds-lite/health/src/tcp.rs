//! Asking addresses whether they can be reached, by connecting to them and nothing more. Which, and what follows
//! from it, is `probes` and whoever keeps them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::io::Errno;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::schedule::Answer;
use isthmus_model::address::Target;

/// Questions under way at once.
const AT_ONCE: usize = 64;
/// A connect may take this long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of a name with more addresses, these many are tried.
const ADDRESSES: usize = 8;
/// How often it is looked who is due, and what was answered.
const PACE: Duration = Duration::from_millis(250);

/// Who wants to know.
pub trait Asker {
    /// Takes what was answered since the last turn, and says whom to ask now, at most so many.
    fn turn(&self, answers: Vec<(Target, Answer)>, most: usize) -> Vec<Target>;

    /// Asks one.
    fn ask(&self, target: &Target) -> impl Future<Output = Answer> + Send + 'static;
}

/// Asks for ever.
pub async fn probe(asker: impl Asker) {
    let mut asking = JoinSet::new();
    let mut pace = interval(PACE);
    loop {
        pace.tick().await;
        let mut answers = Vec::new();
        while let Some(answered) = asking.try_join_next() {
            answers.extend(answered.ok());
        }
        for target in asker.turn(answers, AT_ONCE.saturating_sub(asking.len())) {
            let answer = asker.ask(&target);
            asking.spawn(async move { (target, answer.await) });
        }
    }
}

/// Connects to all of these; the first that takes the connection is enough. Each connection is closed at once.
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

/// Whether a connect failed because this machine has no way to that address.
///
/// Linux says EADDRNOTAVAIL both where no local address fits the family (`disable_ipv6`) and where one does and its
/// TCP ports are used up. A datagram socket tells: to connect it takes the same route and the same choice of a local
/// address, and none of TCP's ports; nothing is sent.
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

/// This machine ran out of something: nobody else is to blame.
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
    async fn one_address_that_takes_a_connection_is_enough() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(ask(&[here]).await, Answer::Reached);
        assert_eq!(ask(&[closed, here]).await, Answer::Reached);
        let answer = ask(&[closed]).await;
        assert!(matches!(&answer, Answer::Unreached(why) if why.contains("refused")), "{answer:?}");
        assert_eq!(ask(&[]).await, Answer::Unasked);
        let short = reach(&[here], |_| async { Err(Errno::MFILE.into()) }).await;
        assert_eq!(short, Answer::Unasked, "descriptors of this machine say nothing of another");
        let no_ports = reach(&[here], |_| async { Err(Errno::ADDRNOTAVAIL.into()) }).await;
        assert_eq!(no_ports, Answer::Unasked, "nor do its ports");
    }

    #[tokio::test]
    async fn family_that_is_off_hides_no_address_of_the_other() {
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
    fn lack_of_ports_is_told_from_lack_of_a_way() {
        let to = "127.0.0.1:9".parse().unwrap();
        assert!(!has_no_way(&Errno::ADDRNOTAVAIL.into(), to), "loopback is always reached");
        assert!(has_no_way(&Errno::NETUNREACH.into(), to));
        assert!(has_no_way(&Errno::AFNOSUPPORT.into(), to));
        assert!(!has_no_way(&Errno::MFILE.into(), to));
    }
}
