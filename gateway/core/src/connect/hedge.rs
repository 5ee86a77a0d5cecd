//! Connects to an attempt's endpoint and, once that takes longer than 99 in 100 connects of the service, to a second
//! one beside it. The first that is connected gets the client's bytes; the other is closed and has received none.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Attempt, Beaten, Tried, leads_back};
use crate::account::Account;
use crate::breakers::{Places, UnderWay};
use crate::dial::{Connected, dial, patience};
use crate::metrics::add;
use crate::pick::Step;
use crate::reason::Reason;
use crate::worker::Worker;

/// Connects within the attempt's patience. `tried` learns whether a second endpoint was tried, and which of the two the
/// result is about.
///
/// # Errors
/// Why the endpoint, or the last of the two, was not reached.
pub(crate) async fn dial_hedged<'t>(
    attempt: &Attempt<'t, '_>,
    tried: &mut Tried<'t>,
    account: &mut Account,
    worker: &Worker,
) -> Result<Connected, Reason> {
    let first = pin!(dial(attempt.step, &attempt.wire, worker));
    let dialled = raced(first, attempt, tried, account, worker).await;
    if let Ok(connected) = &dialled {
        attempt.step.route.service.state.connects.time.record(connected.took);
    }
    dialled
}

async fn raced<'t, F: Future<Output = Result<Connected, Reason>>>(
    mut first: Pin<&mut F>,
    attempt: &Attempt<'t, '_>,
    tried: &mut Tried<'t>,
    account: &mut Account,
    worker: &Worker,
) -> Result<Connected, Reason> {
    let mut patience = attempt.patience;
    if let Some(after) = attempt.hedge_after {
        if let Ok(dialled) = timeout(after, first.as_mut()).await {
            return dialled;
        }
        patience = patience.saturating_sub(after);
        if let Some(second) = Second::begin(attempt, account, worker) {
            tried.hedged = true;
            // Boxed: few connections need it.
            return Box::pin(race((first, after, patience), second, (attempt, tried, account, worker))).await;
        }
    }
    within(patience, first).await
}

async fn within<F: Future<Output = Result<Connected, Reason>>>(
    patience: Duration,
    dialling: F,
) -> Result<Connected, Reason> {
    timeout(patience, dialling).await.unwrap_or(Err(Reason::ConnectTimeout))
}

/// The endpoint that is tried beside a slow one.
struct Second<'t> {
    step: Step<'t>,
    patience: Duration,
    places: Places,
    _retry: UnderWay,
}

impl<'t> Second<'t> {
    /// Takes the places for a second connect; none if no healthy endpoint is left, or a limit is reached.
    fn begin(attempt: &Attempt<'t, '_>, account: &mut Account, worker: &Worker) -> Option<Second<'t>> {
        let endpoint = attempt.attempts.beside(attempt.step, account, worker)?;
        let step = Step { endpoint, ..attempt.step };
        if leads_back(step, worker) {
            return None;
        }
        let service = &step.route.service;
        let retry = service.state.begin_retry(&step.tables.live.upstream.replay)?;
        let places = Places::reserve(step).ok()?;
        account.count_attempt();
        let patience = patience(endpoint, service.rules.timeouts.connect);
        Some(Second { step, patience: patience.min(attempt.time_left()), places, _retry: retry })
    }
}

async fn race<'t, F: Future<Output = Result<Connected, Reason>>>(
    (first, after, patience): (Pin<&mut F>, Duration, Duration),
    second: Second<'t>,
    (attempt, tried, account, worker): (&Attempt<'t, '_>, &mut Tried<'t>, &mut Account, &Worker),
) -> Result<Connected, Reason> {
    let begun = Instant::now();
    let mut first = pin!(within(patience, first));
    let mut other = pin!(within(second.patience, dial(second.step, &attempt.wire, worker)));
    let (dialled, is_second) = tokio::select! {
        biased;
        dialled = &mut first => match dialled {
            Ok(connected) => (Ok(connected), false),
            Err(reason) => {
                tried.beaten = Some(Beaten { endpoint: attempt.step.endpoint, failure: Some(reason) });
                (other.await, true)
            }
        },
        dialled = &mut other => match dialled {
            Ok(connected) => {
                attempt.step.route.service.state.connects.time.record(after.saturating_add(begun.elapsed()));
                tried.beaten = Some(Beaten { endpoint: attempt.step.endpoint, failure: None });
                (Ok(connected), true)
            }
            Err(reason) => {
                tried.beaten = Some(Beaten { endpoint: second.step.endpoint, failure: Some(reason) });
                (first.await, false)
            }
        },
    };
    let won = dialled.is_ok() && is_second;
    add(if won { &worker.counters.hedges_won } else { &worker.counters.hedges_lost }, 1);
    if is_second {
        tried.step = second.step;
        account.moves_to(second.step, second.places.endpoint);
    }
    tracing::debug!(endpoint = %tried.step.endpoint.address, won, "a second endpoint was tried beside a slow one");
    dialled
}
