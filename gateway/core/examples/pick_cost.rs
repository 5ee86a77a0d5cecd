//! Counts the instructions of one pick with Valgrind, which says the same on every machine and under any load.
//! `cargo run --release -p isthmus-core --example pick_cost` prints a table; docs/performance.md has the last one.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use isthmus_core::config::settings::Side;
use isthmus_core::family::Off;
use isthmus_core::pick::{Choice, pick};
use isthmus_core::snapshot::{Resolved, Service, Snapshot};

/// Picks of the longer of two runs; the shorter one makes half as many, so that the difference is picks alone.
const PICKS: usize = 20_000;
const SIZES: [usize; 3] = [1, 10, 1_000];
const LOCALITIES: [usize; 3] = [1, 3, 20];
const BALANCES: [&str; 4] = ["round_robin", "random", "least_connections", "source_hash"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", balance, size, localities, picks] => run(
            &service(balance, size.parse().unwrap(), localities.parse().unwrap()),
            balance,
            picks.parse().unwrap(),
        ),
        _ => report(),
    }
}

fn report() {
    println!("{:<18} {:>9} {:>10} {:>22}", "balance", "endpoints", "localities", "instructions of a pick");
    for balance in BALANCES {
        for size in SIZES {
            for localities in LOCALITIES.into_iter().filter(|localities| *localities <= size) {
                let picks = picks(balance, size);
                let counted =
                    |picks| instructions(&[balance, &size.to_string(), &localities.to_string()], picks);
                let per_pick = (counted(picks) - counted(picks / 2)) / (picks as u64 / 2);
                println!("{balance:<18} {size:>9} {localities:>10} {per_pick:>22}");
            }
        }
    }
}

/// A source's hash looks at every endpoint: fewer picks say the same.
fn picks(balance: &str, size: usize) -> usize {
    if balance == "source_hash" && size > 10 { PICKS / 100 } else { PICKS }
}

/// Runs this program under Valgrind and returns the instructions that it counted.
fn instructions(what: &[&str], picks: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .arg("run")
        .args(what)
        .arg(picks.to_string())
        .output()
        .expect("valgrind runs; it is in Debian's package of that name");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find_map(|line| line.split_once("Collected :"));
    line.expect("valgrind counts").1.trim().parse().unwrap()
}

fn run(service: &Service, balance: &str, picks: usize) {
    let mut random = fastrand::Rng::with_seed(7);
    for turn in 0..picks {
        let source = if balance == "source_hash" { u32::try_from(turn).unwrap() } else { 0x0a00_0001 };
        let choice = Choice {
            instance: None,
            side: Side::Outbound,
            tried: &[],
            source: IpAddr::V4(Ipv4Addr::from(source)),
            identity: None,
            turn,
            off: Off::NONE,
            now: 1,
        };
        black_box(pick(black_box(service), black_box(&choice), &mut random));
    }
}

/// A service whose endpoints are spread over localities, the first of which is the gateway's own.
fn service(balance: &str, size: usize, localities: usize) -> Arc<Service> {
    let mut endpoints = String::new();
    for index in 0..size {
        let (address, place) =
            (Ipv4Addr::from(0x0a00_0001 + u32::try_from(index).unwrap()), index % localities);
        let (region, zone) = (place / 4, place % 4);
        writeln!(
            endpoints,
            "  - {{ address: {address}:80, locality: {{ region: r{region}, zone: z{zone} }} }}"
        )
        .unwrap();
    }
    let text = format!(
        "node: {{ locality: {{ region: r0, zone: z0 }} }}\nlisteners:\n- address: 127.0.0.1:0\nservices:\n- host: a.example\n  balance: {balance}\n  endpoints:\n{endpoints}"
    );
    let settings = isthmus_core::config::parse(&text, Path::new("bench.yaml")).unwrap();
    let tables = Snapshot::compile(settings.live, &Resolved::new(), None, &|_| false);
    Arc::clone(tables.services().next().unwrap())
}
