//! An endpoint that accepts and closes at once, like a load balancer whose backend has just crashed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A running endpoint; dropping it ends its thread.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Closing {
    /// Starts the endpoint on a free loopback port.
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
        // This connection makes the accept return.
        let is_woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_woken) {
            // A panicked thread has already reported to stderr.
            let _ = thread.join();
        }
    }
}
