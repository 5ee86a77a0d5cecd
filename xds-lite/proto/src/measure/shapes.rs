//! The parts of the messages that others send, and what each takes once decoded.

/// Parts of a message.
#[derive(Debug)]
pub struct Shape(pub(super) &'static [Part]);

/// One part, by its field number.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) number: u64,
    /// Its cost in bytes, besides its own bytes.
    pub(super) takes: u64,
    /// Its own parts, if there may be many.
    pub(super) inside: Option<&'static Shape>,
}

/// The cost of a part that is not listed.
pub(super) const PART: u64 = 32;

const fn part(number: u64, takes: u64) -> Part {
    Part { number, takes, inside: None }
}

const fn parts(number: u64, takes: u64, inside: &'static Shape) -> Part {
    Part { number, takes, inside: Some(inside) }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Shape) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Shape {}

/// A delta request: names to subscribe, names to unsubscribe, known names.
pub static DELTA_REQUEST: Shape = Shape(&[part(3, 64), part(4, 64), part(5, 192)]);
/// A state-of-the-world request: names.
pub static SOTW_REQUEST: Shape = Shape(&[part(3, 64)]);
/// A delta response: resources, removed names.
pub static DELTA_RESPONSE: Shape = Shape(&[parts(2, 512, &RESOURCE), part(6, 64)]);
/// A message without lists.
pub static PLAIN: Shape = Shape(&[]);

/// A report of a gateway: unhealthy endpoints, rows of the matrix.
pub static REPORT: Shape = Shape(&[parts(1, 64, &HEALTH), parts(2, 64, &MATRIX)]);
static HEALTH: Shape = Shape(&[parts(1, 160, &UNHEALTHY)]);
static UNHEALTHY: Shape = Shape(&[part(1, PART), part(3, PART), part(5, PART)]);
static MATRIX: Shape = Shape(&[parts(1, 256, &ROW)]);
static ROW: Shape = Shape(&[part(1, PART), part(2, PART), part(3, PART), part(10, PART)]);

/// A resource: version, message, name.
static RESOURCE: Shape = Shape(&[part(1, PART), part(2, PART), part(3, PART)]);

/// A slice: network, aliases, ports, gateways; `exposed_on` and `requires`.
pub static SLICE: Shape = Shape(&[
    part(1, PART),
    part(2, PART),
    part(6, PART),
    part(7, 64),
    parts(8, 512, &PORT),
    parts(9, 192, &GATEWAY),
    part(12, 64),
    part(13, 64),
]);
/// A port: protocols, sources, endpoints, ready counts, access, identities, policy.
static PORT: Shape = Shape(&[
    part(4, 64),
    part(5, 64),
    parts(9, 384, &ENDPOINT),
    parts(10, 192, &READY),
    part(11, PART),
    parts(13, 128, &ACCESS),
    part(14, 128),
    parts(16, 128, &TRAFFIC),
]);
static ACCESS: Shape = Shape(&[parts(2, 256, &RULE), parts(3, 256, &RULE)]);
/// A rule: scope, name, identities, sources, ports.
static RULE: Shape = Shape(&[part(2, PART), part(3, PART), part(4, 128), part(5, 64), part(6, 8)]);
/// An endpoint: address, locality, instance, identity, aliases, labels.
static ENDPOINT: Shape = Shape(&[
    part(1, PART),
    part(2, PART),
    part(5, PART),
    part(8, PART),
    part(10, 64),
    parts(11, 128, &LABEL),
]);
static LABEL: Shape = Shape(&[part(1, PART), part(2, PART)]);
static TRAFFIC: Shape = Shape(&[parts(5, 128, &SPLIT_PART)]);
/// A part of a split: cluster, labels.
static SPLIT_PART: Shape = Shape(&[part(1, PART), parts(2, PART, &LABELS)]);
static LABELS: Shape = Shape(&[parts(1, 128, &LABEL)]);
static READY: Shape = Shape(&[part(1, PART), parts(3, 96, &INSTANCE)]);
static INSTANCE: Shape = Shape(&[part(1, PART), part(2, 64)]);
static GATEWAY: Shape = Shape(&[part(1, PART), part(2, PART)]);
