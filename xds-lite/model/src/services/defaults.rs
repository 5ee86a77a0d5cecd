//! Defaults and limits of `services:`, in one place: the resolver applies them, the JSON Schema shows them.

use std::time::Duration;

use crate::values::Range;

/// Services that may share one name under different conditions.
pub(super) const CLAIMS: usize = 64;
/// The port of a service.
pub const PORT: u16 = 443;
pub(super) const WEIGHT: u32 = 1;
pub(super) const WEIGHTS: Range = (0, 65_535);

/// Identities of the endpoints of one service.
pub(super) const MAX_IDENTITIES: usize = 64;

/// The range of a connection limit.
pub const CONNECTION_COUNTS: Range = (1, 10_000_000);

/// One connect attempt.
pub const CONNECT: Duration = Duration::from_secs(3);
/// The minimum for a connect attempt to another cluster's gateway.
pub const CONNECT_ACROSS: Duration = Duration::from_secs(10);
/// All connect attempts together.
pub const CONNECT_TOTAL: Duration = Duration::from_secs(15);
/// No byte in either direction.
pub const IDLE: Option<Duration> = Some(Duration::from_hours(1));
/// One side closed, the other silent.
pub const HALF_CLOSED: Option<Duration> = Some(Duration::from_mins(1));
/// From connect to the endpoint's first byte.
pub const FIRST_BYTE: Option<Duration> = None;
/// From accept to the end.
pub const MAX_DURATION: Option<Duration> = None;
