//! Defines every default and limit of the gateway's own sections, for the resolver and the JSON Schema. The reasons
//! are in the documentation.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use isthmus_model::values::Range;

pub(crate) use isthmus_model::services::defaults::{
    CONNECT, CONNECT_TOTAL, CONNECTION_COUNTS, FIRST_BYTE, HALF_CLOSED, IDLE, MAX_DURATION,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(crate) const CLUSTER: &str = "default";
/// Bytes of a node's id, cluster and network.
pub(crate) const NODE_TEXT: usize = 253;
/// Istio's port for other networks.
pub(crate) const CONTROL_PLANE_PORT: u16 = 15_443;
/// Bytes of a node's id under another control plane.
pub(crate) const FOREIGN_ID: usize = 1024;
pub(crate) const WORKERS: Range = (1, 256);

pub(crate) const BACKLOG: u32 = 4096;
pub(crate) const BACKLOGS: Range = (1, 65_535);
pub(crate) const LISTENER_CONNECTIONS: u32 = 10_000;
pub(crate) const CONNECTIONS: u32 = 50_000;

pub(crate) const HELLO_SIZE: u64 = 64 * KIB;
pub(crate) const HELLO_SIZES: Range = (KIB, 64 * KIB);
pub(crate) const HELLO_MEMORY: u64 = 64 * MIB;

pub(crate) const HELLO: Duration = Duration::from_secs(5);

pub(crate) const ATTEMPTS: u32 = 3;
pub(crate) const ATTEMPT_COUNTS: Range = (1, 10);
pub(crate) const REPLAY_RATIO: f64 = 0.2;
pub(crate) const REPLAY_BURST: u32 = 20;
pub(crate) const REPLAY_BURSTS: Range = (0, 1_000_000);
pub(crate) const REPLAY_SOURCE_SHARE: f64 = 0.5;
pub(crate) const EJECTION_FAILURES: u32 = 5;
pub(crate) const EJECTION_FAILURE_COUNTS: Range = (0, 1_000_000);
pub(crate) const EJECTION_BASE: Duration = Duration::from_secs(30);
pub(crate) const EJECTION_MAX: Duration = Duration::from_secs(300);
pub(crate) const EJECTION_PERCENT: u8 = 10;
pub(crate) const DEMOTION: Option<Duration> = Some(Duration::from_secs(10));
pub(crate) const PERCENTS: Range = (0, 100);

pub(crate) const PIPE_SIZE: u64 = MIB;
pub(crate) const PIPE_SIZES: Range = (4 * KIB, GIB);
pub(crate) const PIPES: u32 = 64;
pub(crate) const PIPE_COUNTS: Range = (0, 65_536);

pub(crate) const KEEPALIVE: Duration = Duration::from_secs(180);
/// Linux accepts whole seconds, up to MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL.
pub(crate) const KEEPALIVE_LONGEST: Duration = Duration::from_secs(32_767);
pub(crate) const KEEPALIVE_PROBES: u32 = 9;
/// Up to MAX_TCP_KEEPCNT.
pub(crate) const KEEPALIVE_PROBE_COUNTS: Range = (1, 127);
pub(crate) const SOCKET_BUFFERS: Range = (4 * KIB, GIB);

pub(crate) const DRAIN_ACCEPT_FOR: Duration = Duration::from_secs(10);
pub(crate) const DRAIN_WINDOW: Duration = Duration::from_secs(15);

pub(crate) const ADMIN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 15_000));
pub(crate) const METRICS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 15_020));
pub(crate) const HEALTH: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 15_021));
pub(crate) const SERVICE_METRICS: u32 = 1_000;
pub(crate) const SERVICE_METRIC_COUNTS: Range = (0, 1_000_000);
pub(crate) const LOG_BUFFER: u64 = MIB;
pub(crate) const LOG_BUFFERS: Range = (4 * KIB, GIB);

/// Neither a mark nor a routing table of Istio (1337, 133) or a common VPN.
pub(crate) const CAPTURE_MARK: u32 = 15_443;
/// Numbers of routing tables below are the system's own: default, main and local.
pub(crate) const CAPTURE_MARKS: Range = (256, 2_147_483_647);

pub(crate) const OUTAGE_BUDGET: Duration = Duration::ZERO;

pub(crate) const MIN_TTL: Duration = Duration::from_secs(1);
pub(crate) const MAX_TTL: Duration = Duration::from_secs(300);
