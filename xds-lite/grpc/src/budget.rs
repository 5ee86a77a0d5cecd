//! Limits what each identity may use of the agent: connections, streams, bytes of requests in flight, subscribed names.
//! Use is counted before the cost arises. The registry's `imports` limits the slices of a peer.

mod limits;
mod places;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_certs::SpiffeId;
use tonic::Status;

use isthmus_model::slice::Cluster;

pub use isthmus_model::Usage;
pub use limits::{Amounts, Kind, LARGEST_REPORT, Limits, Resource};
pub(crate) use limits::{longest_message, window};
pub use places::{Places, raise_descriptor_limit};

/// At most one log line for each kind of client and resource in this time, however often a limit is exceeded.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// The owner of a budget. All agents of a peer share one: their authority can issue identities without limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// A gateway of this cluster.
    Gateway(SpiffeId),
    /// The agents of a peer.
    Peer(Cluster),
    /// A workload that renews its certificate at this agent.
    Workload(SpiffeId),
    /// An identity of a trusted domain that the agent does not serve.
    Stranger(SpiffeId),
}

impl Principal {
    /// The kind of client.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Principal::Gateway(_) => Kind::Gateway,
            Principal::Peer(_) => Kind::Peer,
            Principal::Workload(_) => Kind::Workload,
            Principal::Stranger(_) => Kind::Stranger,
        }
    }

    fn name(&self) -> String {
        match self {
            Principal::Peer(cluster) => cluster.to_string(),
            Principal::Gateway(id) | Principal::Workload(id) | Principal::Stranger(id) => id.to_string(),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind().name(), self.name())
    }
}

/// A limit was reached, and the request refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{who} may have {limit} {resource} at once, has {used} and asks for {more} more; use fewer, or raise `limits` in agent.yaml"
)]
pub struct Exceeded {
    who: String,
    resource: Resource,
    used: u64,
    more: u64,
    limit: u64,
}

impl From<Exceeded> for Status {
    fn from(exceeded: Exceeded) -> Status {
        Status::resource_exhausted(exceeded.to_string())
    }
}

/// The accounts of all connected clients.
#[derive(Debug)]
pub struct Budgets {
    limits: Limits,
    places: Places,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    accounts: HashMap<Principal, Entry>,
    totals: HashMap<Kind, Entry>,
    logged: HashMap<(Kind, Resource), LogLimiter>,
}

#[derive(Debug, Default)]
struct Entry {
    used: Amounts,
    exceeded: Amounts,
}

impl Budgets {
    /// Starts with nothing in use.
    #[must_use]
    pub fn new(limits: Limits, places: Places) -> Budgets {
        Budgets { limits, places, ledger: Mutex::default() }
    }

    /// The limits on connections.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The limits of each client of a kind.
    #[must_use]
    pub fn limits(&self, kind: Kind) -> &Amounts {
        self.limits.get(kind)
    }

    /// The account of a client.
    #[must_use]
    pub fn account(self: &Arc<Self>, of: Principal) -> Account {
        Account { budgets: Arc::clone(self), of: Arc::new(of) }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self, who: &Principal, resource: Resource, more: u64) -> Result<(), Exceeded> {
        let kind = who.kind();
        let (own, all) = (self.limits.get(kind).get(resource), self.of_all(kind, resource));
        let mut ledger = self.ledger();
        let used = ledger.used(who, resource);
        let total = ledger.totals.get(&kind).map_or(0, |entry| entry.used.get(resource));
        let error = if used.saturating_add(more) > own {
            Exceeded { who: who.to_string(), resource, used, more, limit: own }
        } else if total.saturating_add(more) > all {
            Exceeded {
                who: format!("all {} together", kind.plural()),
                resource,
                used: total,
                more,
                limit: all,
            }
        } else {
            ledger.change(who, |entry| *entry.used.get_mut(resource) += more);
            return Ok(());
        };
        ledger.change(who, |entry| *entry.exceeded.get_mut(resource) += 1);
        if ledger.logged.entry((kind, resource)).or_default().allows(1) {
            tracing::warn!(who = %who, limit = %error, "limit exceeded");
        }
        ledger.settle(who);
        Err(error)
    }

    fn give_back(&self, who: &Principal, resource: Resource, less: u64) {
        let mut ledger = self.ledger();
        ledger.change(who, |entry| {
            let used = entry.used.get_mut(resource);
            *used = used.saturating_sub(less);
        });
        ledger.settle(who);
    }

    /// The common limit of all clients of a kind.
    fn of_all(&self, kind: Kind, resource: Resource) -> u64 {
        match resource {
            Resource::Connections => self.places.get(kind),
            Resource::RequestBytes => limits::request_bytes_of_all(kind),
            Resource::Streams | Resource::Names | Resource::NameBytes => u64::MAX,
        }
    }

    /// Use, limit and refusals of each account, by kind and name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<&'static str, BTreeMap<String, BTreeMap<&'static str, Usage>>> {
        let ledger = self.ledger();
        let mut report: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (who, entry) in &ledger.accounts {
            let limits = self.limits.get(who.kind());
            let usage = |resource: Resource| Usage {
                used: entry.used.get(resource),
                limit: limits.get(resource),
                exceeded: entry.exceeded.get(resource),
            };
            let usages = Resource::ALL.map(|resource| (resource.name(), usage(resource)));
            report.entry(who.kind().plural()).or_default().insert(who.name(), usages.into());
        }
        report
    }

    /// The total use by clients of a kind, and how often one of them reached a limit.
    #[must_use]
    pub fn totals(&self, kind: Kind, resource: Resource) -> (u64, u64) {
        let ledger = self.ledger();
        ledger.totals.get(&kind).map_or((0, 0), |all| (all.used.get(resource), all.exceeded.get(resource)))
    }
}

impl Default for Budgets {
    fn default() -> Budgets {
        Budgets::new(Limits::default(), Places::default())
    }
}

impl Ledger {
    fn used(&self, who: &Principal, resource: Resource) -> u64 {
        self.accounts.get(who).map_or(0, |entry| entry.used.get(resource))
    }

    fn change(&mut self, who: &Principal, change: impl Fn(&mut Entry)) {
        if !self.accounts.contains_key(who) {
            self.accounts.insert(who.clone(), Entry::default());
        }
        if let Some(entry) = self.accounts.get_mut(who) {
            change(entry);
        }
        change(self.totals.entry(who.kind()).or_default());
    }

    /// Removes an unused account. Accounts of gateways and peers stay: they are few and configured. The number of
    /// others is unlimited.
    fn settle(&mut self, who: &Principal) {
        let stays = matches!(who, Principal::Gateway(_) | Principal::Peer(_));
        if !stays && self.accounts.get(who).is_some_and(|entry| entry.used == Amounts::default()) {
            self.accounts.remove(who);
        }
    }
}

/// The account of one principal.
#[derive(Clone, Debug)]
pub struct Account {
    budgets: Arc<Budgets>,
    of: Arc<Principal>,
}

impl Account {
    /// The owner of the account.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.of
    }

    /// The limits of the account.
    #[must_use]
    pub fn limits(&self) -> &Amounts {
        self.budgets.limits(self.of.kind())
    }

    /// Takes an amount until the share is dropped.
    ///
    /// # Errors
    /// The limit of the account, or of all clients of its kind, is reached.
    pub fn reserve(&self, resource: Resource, amount: u64) -> Result<Share, Exceeded> {
        let mut share = Share { account: self.clone(), resource, amount: 0 };
        share.set(amount)?;
        Ok(share)
    }
}

/// An amount taken from an account, returned when this is dropped.
#[derive(Debug)]
pub struct Share {
    account: Account,
    resource: Resource,
    amount: u64,
}

impl Share {
    /// The amount.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Changes the amount: takes more or gives some back.
    ///
    /// # Errors
    /// The limit is reached; the share is unchanged.
    pub fn set(&mut self, amount: u64) -> Result<(), Exceeded> {
        let Account { budgets, of } = &self.account;
        if amount > self.amount {
            budgets.reserve(of, self.resource, amount - self.amount)?;
        } else if amount < self.amount {
            budgets.give_back(of, self.resource, self.amount - amount);
        }
        self.amount = amount;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Account { budgets, of } = &self.account;
        if self.amount > 0 {
            budgets.give_back(of, self.resource, self.amount);
        }
    }
}

/// Limits how often a message is logged that clients can trigger.
#[derive(Debug, Default)]
pub struct LogLimiter(Mutex<Option<(Instant, u32)>>);

impl LogLimiter {
    /// Allows a line if there were fewer than `most` in the last ten seconds.
    pub fn allows(&self, most: u32) -> bool {
        let now = Instant::now();
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |began: Instant| now.saturating_duration_since(began) >= LOGGED_EVERY;
        let (began, lines) = window.filter(|(began, _)| !is_over(*began)).unwrap_or((now, 0));
        *window = Some((began, lines.saturating_add(1)));
        lines < most
    }
}

#[cfg(test)]
mod tests;
