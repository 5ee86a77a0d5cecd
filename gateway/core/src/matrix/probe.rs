//! Probes one gateway address: connects, sends a ClientHello with the name that every gateway refuses, and measures the
//! time until the alert.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isthmus_certs::probe;
use isthmus_health::matrix::Answer;
use isthmus_health::tcp::has_no_way;
use isthmus_model::host::PROBE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::dial;
use crate::reason::Alert;
use crate::socket;
use crate::worker::Process;

/// Longest wait for the connection, and then for the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The ClientHello of all probes.
pub(super) fn hello() -> io::Result<Vec<u8>> {
    probe::hello(PROBE, &[]).map_err(io::Error::other)
}

/// Probes an address.
pub(super) async fn ask(to: SocketAddr, hello: &[u8], process: &Process) -> Answer {
    let mut stream = match timeout(PATIENCE, dial::plain(to, process)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if socket::is_local_resource(&error) && !has_no_way(&error, to) => {
            return Answer::Unasked;
        }
        Ok(Err(error)) => return Answer::Unreached(error.to_string()),
        Err(_) => return Answer::Unreached(format!("no connection within {} s", PATIENCE.as_secs())),
    };
    let sent = Instant::now();
    let mut first = [0];
    let answer = async {
        // If the write fails, the read tells that the other side has closed.
        let _written = stream.write_all(hello).await;
        stream.read(&mut first).await
    };
    match timeout(PATIENCE, answer).await {
        Ok(Ok(0) | Err(_)) => Answer::Closed(sent.elapsed()),
        Ok(Ok(_)) if first == [Alert::RECORD] => Answer::Alerted(sent.elapsed()),
        Ok(Ok(_)) => {
            Answer::Unreached("it answers a name that every gateway refuses: it is no gateway".to_owned())
        }
        Err(_) => Answer::Unreached(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
