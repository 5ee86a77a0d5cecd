//! Probes the gateways of other clusters while the gateway runs: which addresses are due, and what the results mean, is
//! decided in `isthmus_health::matrix`. Addresses that are down are marked in `gateways`, which also has what is found.

mod probe;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use isthmus_health::matrix::{Answer, Change, Matrix, Place};
use isthmus_model::matrix::State;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::control::Control;
use crate::gateways::Rows;

/// Probes under way at once.
pub(crate) const AT_ONCE: usize = 32;
/// How often the addresses in the tables are compared with those probed.
const LOOK: Duration = Duration::from_secs(1);

/// Probes until dropped.
///
/// # Errors
/// The ClientHello cannot be made.
pub(crate) async fn run(control: Arc<Control>) -> io::Result<()> {
    let hello: Arc<[u8]> = probe::hello()?.into();
    let mut matrix = Matrix::default();
    let mut asking = JoinSet::new();
    let mut looked: Option<Instant> = None;
    let mut was_cut_off = false;
    loop {
        let now = Instant::now();
        if looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK) {
            looked = Some(now);
            matrix.want(control.gateways.places(), now, fastrand::f64);
            let changes = matrix.settle(now);
            publish(&control, &mut matrix, changes);
        }
        for place in matrix.next(AT_ONCE.saturating_sub(asking.len()), now) {
            let (hello, process) = (Arc::clone(&hello), Arc::clone(&control.process));
            asking.spawn(async move {
                let answer = probe::ask(place.address, &hello, &process).await;
                (place, answer)
            });
        }
        let next = looked.map_or(now, |looked| looked + LOOK);
        let next = matrix.next_due().filter(|_| asking.len() < AT_ONCE).map_or(next, |due| due.min(next));
        tokio::select! {
            Some(Ok((place, answer))) = asking.join_next() => {
                let changes = record(&control, &mut matrix, &place, answer);
                publish(&control, &mut matrix, changes);
            }
            () = sleep_until(next.into()) => {}
        }
        let is_cut_off = matrix.cut_off_since().is_some();
        if is_cut_off != was_cut_off {
            note_cut_off(is_cut_off);
            was_cut_off = is_cut_off;
        }
    }
}

fn record(control: &Control, matrix: &mut Matrix, place: &Place, answer: Answer) -> Vec<Change> {
    control.matrix.count(&answer);
    matrix.answered(place, answer, Instant::now(), fastrand::f64())
}

fn note_cut_off(is_cut_off: bool) {
    if is_cut_off {
        tracing::error!(
            "no gateway of another cluster answers: this gateway seems to be cut off; the last good addresses stay in use"
        );
    } else {
        tracing::info!("a gateway of another cluster answers again");
    }
}

/// Applies what has changed, and shows the rest.
fn publish(control: &Control, matrix: &mut Matrix, changes: Vec<Change>) {
    let now = Instant::now();
    if !changes.is_empty() {
        control.gateways.set_down(matrix.down().cloned().collect());
    }
    for Change { place: Place { cluster, gateway, address }, state, why } in changes {
        match state {
            State::Down => {
                tracing::warn!(%cluster, %gateway, %address, why, "gateway of another cluster is down; new connections avoid it");
            }
            State::Up | State::Kept | State::Unknown => {
                tracing::info!(%cluster, %gateway, %address, state = state.word(), "gateway of another cluster");
            }
        }
    }
    if let Some(distances) = matrix.measure(now) {
        control.matrix.distances.send_replace(distances);
    }
    let clock = SystemTime::now();
    let rows = Rows {
        rows: matrix.rows(now, clock),
        cut_off_since: matrix
            .cut_off_since()
            .map(|since| isthmus_health::matrix::seconds(clock, now.saturating_duration_since(since))),
        left_out: matrix.left_out(),
    };
    control.matrix.rows.send_if_modified(|known| {
        let is_news = **known != rows;
        if is_news {
            *known = Arc::new(rows);
        }
        is_news
    });
}
