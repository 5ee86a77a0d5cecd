//! Single values of a configuration file, and their limits.

use super::*;

/// The second line of a file, and its problem.
const SINGLE_VALUES: &[(&str, &str)] = &[
    ("workers: 257", "2:10: workers: '257' is out of range; write 1 to 256"),
    ("workers: -1", "2:10: workers: '-1' is not a whole number; write digits only"),
    ("limits: {hello_size: 512}", "2:22: limits.hello_size: '512' is out of range; write 1KiB to 64KiB"),
    ("limits: {hello_size: 65KiB}", "2:22: limits.hello_size: '65KiB' is out of range; write 1KiB to 64KiB"),
    (
        "limits: {hello_memory: 1KiB}",
        "2:24: limits.hello_memory: 1KiB is less than hello_size; write at least 64KiB",
    ),
    ("limits: {per_source: 0}", "2:22: limits.per_source: '0' is out of range; write 1 to 10000000"),
    (
        "limits: {per_source: none}",
        "2:22: limits.per_source: 'none' is not a whole number; write digits only, or off",
    ),
    ("timeouts: {hello: 0ms}", "2:19: timeouts.hello: '0ms' would let nothing succeed; write more than zero"),
    (
        "timeouts: {connect: off}",
        "2:21: timeouts.connect: 'off' is not a duration; write a whole number and its unit: 500ms, 5s, 3m or 1h",
    ),
    ("timeouts: {idle: 8761h}", "2:18: timeouts.idle: '8761h' is too long; write at most 8760h"),
    ("upstream: {attempts: 0}", "2:22: upstream.attempts: '0' is out of range; write 1 to 10"),
    ("upstream: {attempts: 11}", "2:22: upstream.attempts: '11' is out of range; write 1 to 10"),
    (
        "upstream: {replay: {ratio: 1.5}}",
        "2:28: upstream.replay.ratio: '1.5' is out of range; write a number from 0 to 1",
    ),
    (
        "upstream: {replay: {source_share: 0}}",
        "2:35: upstream.replay.source_share: '0' is out of range; write a number above 0, up to 1",
    ),
    (
        "upstream: {replay: {ratio: .nan}}",
        "2:28: upstream.replay.ratio: '.nan' is not a number; write a decimal number such as 0.5",
    ),
    (
        "upstream: {ejection: {base: 301s}}",
        "2:29: upstream.ejection: base is longer than max; make max at least as long as base",
    ),
    (
        "upstream: {ejection: {max_percent: 101}}",
        "2:36: upstream.ejection.max_percent: '101' is out of range; write 0 to 100",
    ),
    (
        "upstream: {source_addresses: [10.0.0.1:1]}",
        "2:31: upstream.source_addresses[0]: '10.0.0.1:1' is not an IP address; write an address without a port",
    ),
    (
        "tcp: {keepalive_idle: 1500ms}",
        "2:23: tcp.keepalive_idle: '1500ms' is not a time that the kernel accepts; write whole seconds, 1s to 32767s",
    ),
    ("tcp: {keepalive_probes: 0}", "2:25: tcp.keepalive_probes: '0' is out of range; write 1 to 127"),
    ("tcp: {send_buffer: 1}", "2:20: tcp.send_buffer: '1' is out of range; write 4KiB to 1GiB"),
    (
        "dns: {min_ttl: 10m}",
        "2:16: dns: min_ttl is longer than max_ttl; make max_ttl at least as long as min_ttl",
    ),
    (
        "dns: {servers: [\"10.0.0.1\"]}",
        "2:17: dns.servers[0]: '10.0.0.1' is not a server's address; write IP:PORT or [IPV6]:PORT",
    ),
    ("node: {id: \"\"}", "2:12: node.id: '' cannot be used; write 1 to 253 bytes without control characters"),
    ("relay: {pipe_size: 1KiB}", "2:20: relay.pipe_size: '1KiB' is out of range; write 4KiB to 1GiB"),
    ("access_log: {buffer: 1}", "2:22: access_log.buffer: '1' is out of range; write 4KiB to 1GiB"),
];

#[test]
fn single_values_have_limits() {
    for (line, problem) in SINGLE_VALUES {
        bad(&with_listener(line), &[problem]);
    }
}
