//! How long somebody on an open connection is believed. What makes a certificate believed is in `isthmus_certs`.

use std::time::Duration;

use isthmus_certs::{Standing, VerifyError};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::rustls::pki_types::UnixTime;

/// How soon it is noticed that somebody was denied, or that a certificate has ended.
const PACE: Duration = Duration::from_secs(1);

/// Ends when somebody would not be let in any longer, and says why.
pub async fn until_disbelieved(mut standing: Standing) -> VerifyError {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if let Err(why) = standing.check(UnixTime::now()) {
            return why;
        }
    }
}
