//! Emulates a WAN in user space: links between network namespaces with delay, jitter and limited bandwidth,
//! for the packets of the kernel's TCP. Only full queues drop packets; there is no reordering and no routing.

mod lane;
mod pump;
mod shape;
pub(crate) mod units;

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use tappers::{Interface, Tun};

pub(crate) use shape::{Change, Shape};

use self::lane::Lane;
use self::pump::Pump;
use crate::netns::Namespace;
use crate::stop::Stop;

/// Ethernet MTU.
const MTU: u16 = 1500;
/// Packets queued in a device. More than any burst, so that only [`Lane`] drops packets.
const DEVICE_QUEUE: u16 = 10_000;

/// One end of a link: its device name and its address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) device: &'a str,
    pub(crate) address: Ipv4Addr,
}

/// A link between two namespaces, until dropped.
#[derive(Debug)]
pub(crate) struct Link {
    stop: Stop,
    dropped: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Creates a link. Both directions have the same shape; `seed` determines the jitter.
    ///
    /// # Errors
    /// Without /dev/net/tun or the permission to create devices.
    pub(crate) fn join(ends: [End<'_>; 2], shape: Shape, seed: u64) -> io::Result<Self> {
        let [near, far] = ends;
        let devices = [near.attach(far.address)?, far.attach(near.address)?];
        let lanes = [Lane::new(shape, seed), Lane::new(shape, !seed)];
        let (stop, dropped) = (Stop::default(), Arc::<AtomicU64>::default());
        let mut pump = Pump::new(devices, lanes, Arc::clone(&dropped))?;
        let (name, stopped) = (format!("wan-{}", far.device), stop.clone());
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            if let Err(error) = pump.run(&stopped) {
                eprintln!("{name}: {error}");
            }
        })?;
        Ok(Self { stop, dropped, thread: Some(thread) })
    }

    /// Packets dropped at full queues since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // A panicked thread has already reported to stderr.
            let _ = thread.join();
        }
    }
}

impl End<'_> {
    fn attach(&self, peer: Ipv4Addr) -> io::Result<Tun> {
        let Self { namespace, device, address } = self;
        let tun = namespace.inside(|| {
            let mut tun = Tun::new_named(Interface::new(device)?)?;
            tun.set_nonblocking(true)?;
            Ok(tun)
        });
        let tun = tun.map_err(|error| {
            let remedy = "run as root, and load /dev/net/tun with `modprobe tun`";
            io::Error::new(error.kind(), format!("cannot create the device {device}: {error}; {remedy}"))
        })?;
        namespace.ip(&format!("addr add {address} peer {peer} dev {device}"))?;
        namespace.ip(&format!("link set {device} mtu {MTU} txqueuelen {DEVICE_QUEUE} up"))?;
        Ok(tun)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::netns::or_skip;

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);

    struct Pair {
        near: Namespace,
        far: Namespace,
        _link: Link,
    }

    /// A pair, or `None` with a printed reason if devices are unavailable.
    fn pair(change: &str) -> Option<Pair> {
        let shape = Shape::default().changed(&change.parse().unwrap());
        let made = Namespace::new().and_then(|near| {
            let far = Namespace::new()?;
            let ends = [
                End { namespace: &near, device: "far", address: HERE },
                End { namespace: &far, device: "near", address: THERE },
            ];
            let link = Link::join(ends, shape, 7)?;
            Ok(Pair { near, far, _link: link })
        });
        or_skip(made)
    }

    impl Pair {
        fn listen(&self) -> TcpListener {
            self.far.inside(|| TcpListener::bind((THERE, 0))).unwrap()
        }

        fn connect(&self, to: SocketAddr) -> (TcpStream, Duration) {
            self.near
                .inside(|| {
                    let began = Instant::now();
                    TcpStream::connect(to).map(|stream| (stream, began.elapsed()))
                })
                .unwrap()
        }
    }

    /// A lower bound by construction: a handshake crosses the link twice before connect returns.
    #[test]
    fn connection_sees_both_delays_and_intact_bytes_despite_jitter() {
        let Some(pair) = pair("delay=30ms,jitter=10ms,bandwidth=200Mbit") else { return };
        let listener = pair.listen();
        let (mut client, connecting) = pair.connect(listener.local_addr().unwrap());
        assert!(connecting >= Duration::from_millis(60), "{connecting:?}");
        let mut random = fastrand::Rng::with_seed(3);
        let sent: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(1 << 20).collect();
        let (mut server, _) = listener.accept().unwrap();
        let received = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut received = Vec::new();
                server.read_to_end(&mut received).map(|_| received)
            });
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            reader.join().unwrap().unwrap()
        });
        assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
    }

    #[test]
    fn transfer_is_limited_to_the_bandwidth() {
        let Some(pair) = pair("delay=1ms,bandwidth=20Mbit") else { return };
        let listener = pair.listen();
        let (mut client, _) = pair.connect(listener.local_addr().unwrap());
        let (mut server, _) = listener.accept().unwrap();
        let bytes = 500_000;
        let began = Instant::now();
        let writer = thread::spawn(move || client.write_all(&vec![1; bytes]));
        let read = io::copy(&mut server, &mut io::sink()).unwrap();
        let took = began.elapsed();
        writer.join().unwrap().unwrap();
        assert_eq!(read, bytes as u64);
        assert!(took >= Duration::from_millis(200), "4 Mbit at 20 Mbit/s took {took:?}");
    }

    #[test]
    fn removed_link_carries_nothing_and_leaves_no_device() {
        let Some(pair) = pair("delay=1ms") else { return };
        let listener = pair.listen();
        pair.connect(listener.local_addr().unwrap());
        let Pair { near, _link, .. } = pair;
        near.ip("link show far").unwrap();
        drop(_link);
        assert!(near.ip("link show far").is_err());
    }
}
