//! Reports and their messages. Everything in a message is bounded: gateways leave out what is too much, and agents refuse
//! it.

use std::fmt;
use std::net::SocketAddr;

use isthmus_model::HostPattern;
use isthmus_model::address::Target;
use isthmus_model::matrix::{Row, State};
use isthmus_model::slice::Cluster;
use isthmus_proto::isthmus::v1::{
    GatewayReport, GatewayState, MatrixRow, ReportedHealth, ReportedMatrix, UnhealthyEndpoint,
};

/// The most unhealthy endpoints of a report.
const UNHEALTHY: usize = 1_500;
/// The most rows of the matrix.
const ROWS: usize = 256;
/// The longest explanation, in bytes.
const WHY: usize = 200;

/// What a gateway reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Endpoints to which it sends no new connections.
    pub unhealthy: Vec<Unhealthy>,
    /// Those that are left out because there are too many.
    pub left_out: u64,
    /// The gateway addresses of other clusters.
    pub matrix: Vec<Row>,
    /// Since when none of these has answered, in seconds since 1970.
    pub cut_off_since: Option<u64>,
}

/// An unhealthy endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unhealthy {
    /// The host of its service.
    pub host: HostPattern,
    /// The port of its service.
    pub port: u16,
    /// Its address.
    pub address: SocketAddr,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Why.
    pub why: String,
}

/// What a message changes: each part replaces the former one, and none is a sign of life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    health: Option<(Vec<Unhealthy>, u64)>,
    matrix: Option<(Vec<Row>, Option<u64>)>,
}

/// A message is not a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    field: &'static str,
    why: String,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "report: {} {}", self.field, self.why)
    }
}

impl std::error::Error for WireError {}

fn wrong<T>(field: &'static str, why: impl fmt::Display) -> Result<T, WireError> {
    Err(WireError { field, why: why.to_string() })
}

impl Report {
    /// Applies what a message changes.
    pub fn apply(&mut self, part: Part) {
        if let Some(health) = part.health {
            (self.unhealthy, self.left_out) = health;
        }
        if let Some(matrix) = part.matrix {
            (self.matrix, self.cut_off_since) = matrix;
        }
    }

    /// Whether an agent should know at once: a state has changed, and not only a measurement.
    pub(crate) fn differs_in_state(&self, other: &Report) -> bool {
        let states = |report: &Report| -> Vec<_> {
            report.matrix.iter().map(|row| (row.address.clone(), row.state, row.class)).collect()
        };
        self.unhealthy != other.unhealthy
            || self.cut_off_since.is_some() != other.cut_off_since.is_some()
            || states(self) != states(other)
    }

    /// The message that changes `before` into this report; none: everything.
    pub(crate) fn message(&self, before: Option<&Report>) -> GatewayReport {
        let is_known = |same: fn(&Report, &Report) -> bool| before.is_some_and(|before| same(before, self));
        let has_health =
            is_known(|one, other| (&one.unhealthy, one.left_out) == (&other.unhealthy, other.left_out));
        let has_matrix =
            is_known(|one, other| (&one.matrix, one.cut_off_since) == (&other.matrix, other.cut_off_since));
        GatewayReport {
            health: (!has_health).then(|| ReportedHealth {
                unhealthy: self.unhealthy.iter().take(UNHEALTHY).map(unhealthy_message).collect(),
                left_out: self.left_out + self.unhealthy.len().saturating_sub(UNHEALTHY) as u64,
            }),
            matrix: (!has_matrix).then(|| ReportedMatrix {
                rows: self.matrix.iter().take(ROWS).map(row_message).collect(),
                cut_off_since: self.cut_off_since.unwrap_or_default(),
            }),
        }
    }
}

/// The text, cut to the longest explanation and without control characters.
fn cut(text: &str) -> String {
    let clean = text.chars().filter(|one| !one.is_control());
    let mut cut = String::new();
    for one in clean {
        if cut.len() + one.len_utf8() > WHY {
            break;
        }
        cut.push(one);
    }
    cut
}

fn unhealthy_message(one: &Unhealthy) -> UnhealthyEndpoint {
    UnhealthyEndpoint {
        host: one.host.to_string(),
        port: one.port.into(),
        address: one.address.to_string(),
        since: one.since,
        why: cut(&one.why),
    }
}

fn row_message(row: &Row) -> MatrixRow {
    let state = match row.state {
        State::Unknown => GatewayState::Unknown,
        State::Up => GatewayState::Up,
        State::Down => GatewayState::Down,
        State::Kept => GatewayState::Kept,
    };
    MatrixRow {
        cluster: row.cluster.clone(),
        gateway: row.gateway.clone(),
        address: row.address.clone(),
        state: state.into(),
        rtt_micros: row.rtt_micros.unwrap_or_default(),
        jitter_micros: row.jitter_micros.unwrap_or_default(),
        loss_percent: row.loss_percent.into(),
        class: row.class.into(),
        since: row.since,
        why: row.why.as_deref().map(cut).unwrap_or_default(),
    }
}

impl TryFrom<GatewayReport> for Part {
    type Error = WireError;

    fn try_from(message: GatewayReport) -> Result<Part, WireError> {
        let health = |health: ReportedHealth| {
            bounded("unhealthy", health.unhealthy.len(), UNHEALTHY)?;
            let unhealthy = health.unhealthy.into_iter().map(unhealthy).collect::<Result<_, _>>()?;
            Ok((unhealthy, health.left_out.min(u32::MAX.into())))
        };
        let matrix = |matrix: ReportedMatrix| {
            bounded("rows", matrix.rows.len(), ROWS)?;
            let rows = matrix.rows.into_iter().map(row).collect::<Result<_, _>>()?;
            Ok((rows, (matrix.cut_off_since > 0).then_some(matrix.cut_off_since)))
        };
        Ok(Part {
            health: message.health.map(health).transpose()?,
            matrix: message.matrix.map(matrix).transpose()?,
        })
    }
}

fn bounded(field: &'static str, found: usize, most: usize) -> Result<(), WireError> {
    if found > most {
        wrong(field, format_args!("has {found} entries; at most {most} are accepted"))
    } else {
        Ok(())
    }
}

fn unhealthy(message: UnhealthyEndpoint) -> Result<Unhealthy, WireError> {
    let port = u16::try_from(message.port).or_else(|error| wrong("port", error))?;
    Ok(Unhealthy {
        host: HostPattern::parse(&message.host).or_else(|error| wrong("host", error))?,
        port,
        address: address(&message.address)?,
        since: message.since,
        why: why(message.why)?,
    })
}

fn row(message: MatrixRow) -> Result<Row, WireError> {
    let state = match GatewayState::try_from(message.state).unwrap_or_default() {
        // A state of a later version.
        GatewayState::Unknown => State::Unknown,
        GatewayState::Up => State::Up,
        GatewayState::Down => State::Down,
        GatewayState::Kept => State::Kept,
    };
    let cluster: Cluster = message.cluster.parse().or_else(|error| wrong("cluster", error))?;
    let Ok(gateway) = message.gateway.parse::<Target>() else {
        return wrong("gateway", "is not IP:PORT or NAME:PORT");
    };
    let measured = |micros: u64| (message.rtt_micros > 0).then_some(micros);
    Ok(Row {
        cluster: cluster.to_string(),
        gateway: gateway.to_string(),
        address: address(&message.address)?.to_string(),
        state,
        since: message.since,
        rtt_micros: measured(message.rtt_micros),
        jitter_micros: measured(message.jitter_micros),
        loss_percent: u8::try_from(message.loss_percent.min(100)).unwrap_or(100),
        class: u8::try_from(message.class).unwrap_or(u8::MAX),
        why: Some(why(message.why)?).filter(|why| !why.is_empty()),
    })
}

fn address(text: &str) -> Result<SocketAddr, WireError> {
    text.parse().or_else(|error| wrong("address", error))
}

fn why(text: String) -> Result<String, WireError> {
    if text.len() > WHY || text.chars().any(char::is_control) {
        return wrong("why", format_args!("must have at most {WHY} bytes and no control characters"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn report() -> Report {
        let row = |number: u8, state| Row {
            cluster: "east".to_owned(),
            gateway: "gw.east.example:15443".to_owned(),
            address: format!("203.0.113.{number}:15443"),
            state,
            since: 7,
            rtt_micros: (state != State::Unknown).then_some(30_000),
            jitter_micros: (state != State::Unknown).then_some(400),
            loss_percent: 3,
            class: number,
            why: (state == State::Down).then(|| "no answer within 2 s".to_owned()),
        };
        let unhealthy = Unhealthy {
            host: HostPattern::parse("*.pxc").unwrap(),
            port: 3306,
            address: "[2001:db8::1]:3306".parse().unwrap(),
            since: 9,
            why: "ejected".to_owned(),
        };
        let rows = (0..).zip(State::ALL).map(|(number, state)| row(number, state));
        Report { unhealthy: vec![unhealthy], left_out: 2, matrix: rows.collect(), cut_off_since: Some(5) }
    }

    fn passed(message: &GatewayReport) -> Result<Part, WireError> {
        GatewayReport::decode(&*message.encode_to_vec()).unwrap().try_into()
    }

    #[test]
    fn report_survives_the_wire_and_later_messages_have_what_changed() {
        let first = report();
        let mut received = Report::default();
        received.apply(passed(&first.message(None)).unwrap());
        assert_eq!(received, first);
        assert_eq!(first.message(Some(&first)), GatewayReport::default(), "a heartbeat");
        let healthy = Report { unhealthy: Vec::new(), left_out: 0, ..first.clone() };
        let message = healthy.message(Some(&first));
        assert!(message.matrix.is_none() && healthy.differs_in_state(&first));
        received.apply(passed(&message).unwrap());
        assert_eq!(received, healthy);
        let mut measured = first.clone();
        measured.matrix[1].rtt_micros = Some(31_000);
        assert!(!measured.differs_in_state(&first) && measured.message(Some(&first)).matrix.is_some());
    }

    #[test]
    fn report_that_is_too_large_is_cut_by_the_gateway_and_refused_by_the_agent() {
        let mut large = report();
        large.unhealthy[0].why = "é\n".repeat(500);
        large.unhealthy = vec![large.unhealthy[0].clone(); UNHEALTHY + 7];
        let message = large.message(None);
        let mut received = Report::default();
        received.apply(passed(&message).unwrap());
        assert_eq!((received.unhealthy.len(), received.left_out), (UNHEALTHY, 9));
        let mut refused = message.clone();
        let health = refused.health.as_mut().unwrap();
        health.unhealthy.push(health.unhealthy[0].clone());
        assert!(passed(&refused).unwrap_err().to_string().contains("at most 1500"));
    }

    #[test]
    fn report_with_a_bad_field_is_refused() {
        let edits: [fn(&mut UnhealthyEndpoint); 5] = [
            |one| one.host = "a b".to_owned(),
            |one| one.port = 70_000,
            |one| one.address = "gw.example:1".to_owned(),
            |one| one.why = "x".repeat(WHY + 1),
            |one| one.why = "\u{1b}[31m".to_owned(),
        ];
        for edit in edits {
            let mut message = report().message(None);
            edit(&mut message.health.as_mut().unwrap().unhealthy[0]);
            assert!(passed(&message).is_err(), "{message:?}");
        }
        let mut message = report().message(None);
        message.matrix.as_mut().unwrap().rows[0].cluster = "east\n".to_owned();
        assert!(passed(&message).is_err());
    }

    proptest! {
        #[test]
        fn report_of_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = GatewayReport::decode(&*bytes) {
                let _any = Part::try_from(message);
            }
        }
    }
}
