//! An endpoint that accepts and closes at once, as one does whose program has just fallen over behind its balancer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A running one; dropping it ends its thread.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Closing {
    /// On any free port of loopback.
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let close =
            move || listener.incoming().take_while(|_| !is_over.load(Ordering::Acquire)).for_each(drop);
        let thread = std::thread::Builder::new().name("closing".into()).spawn(close)?;
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Its accept returns for this one, and for no other.
        let is_woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_woken) {
            // A thread that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}
