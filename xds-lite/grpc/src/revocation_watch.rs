//! Watches whether the peer of an open connection is still trusted. `isthmus_certs` decides that.

use std::time::Duration;

use isthmus_certs::{Standing, VerifyError};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::rustls::pki_types::UnixTime;

/// How often to check: the delay until a denied or expired certificate is noticed.
const PACE: Duration = Duration::from_secs(1);

/// Completes once the peer would be refused, with the reason.
pub async fn until_distrusted(mut standing: Standing) -> VerifyError {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if let Err(why) = standing.check(UnixTime::now()) {
            return why;
        }
    }
}
