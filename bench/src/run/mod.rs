//! `run`: generates load against any address with any SNI, for operators who test their own installation.
//! It starts no systems and compares none: see `compare`.

mod client;
mod drive;
mod failure;
mod plan;
mod report;
mod show;
mod tally;
#[cfg(test)]
mod tests;
mod tls;

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use hyper::Uri;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use tokio::runtime::{self, Runtime};
use tokio::time::{Instant, interval_at};

use self::client::{Client, Work};
use self::drive::Drive;
use self::plan::{Plan, Rate};
use self::report::{Asked, Report};
use self::show::{Live, TICK};
use self::tls::Tls;
use crate::descriptors;
use crate::stop::Stop;

/// Descriptors reserved for other uses than connections.
const RESERVE: u64 = 64;

/// Largest echo payload; a run holds one copy.
const MOST_ECHO: u64 = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  Full handshakes with a gateway at 500 per second, with a client certificate:
    isthmus-bench run gw.east.example:15443 --sni db.east.example --rate 500 \\
      --ca ca.pem --expect spiffe://east.example --cert client.crt --key client.key
  Requests over 50 kept-alive connections, at full speed, for a minute:
    isthmus-bench run 10.1.0.7:15443 --sni web.east.example --ca ca.pem --http / -c 50 -d 1m
  A single operation as a check, with JSON output:
    isthmus-bench run '[::1]:15443' --sni web.east.example --insecure -n 1 --json -

With --rate, latency counts from the time an operation was due, so that a stall is charged to every operation
that it delayed. Operations without a free connection wait in a queue; none is skipped.
Exit code: 0 all operations succeeded, 1 some failed or were never started, 2 a usage error.";

/// Generate load against an address, with any SNI.
///
/// An operation is a whole connection (connect, full TLS handshake, close by both sides), or with --http or
/// --echo a request on a kept-alive connection. Ctrl-C ends the run early and prints the results so far.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// The server's address. All addresses of a name are used in turn.
    #[arg(value_name = "HOST:PORT")]
    address: String,
    /// The SNI. [default: HOST, if it is a name]
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Concurrent connections, and so concurrent operations.
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Operations per second (500, 500/s) or minute (30/m), as an open loop. [default: as fast as the
    /// connections allow]
    #[arg(short, long, value_name = "N/s")]
    rate: Option<Rate>,
    /// How long to start operations: 500ms, 30s, 5m, 1h. [default: 10s, or unlimited with --count]
    #[arg(short, long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Number of operations to start.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Timeout of an operation, from its start.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Send an HTTP/1.1 GET of this path as the operation; a status of 400 or more is a failure.
    #[arg(long, value_name = "PATH", conflicts_with = "echo")]
    http: Option<String>,
    /// Send this many bytes as the operation and expect them back.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=MOST_ECHO))]
    echo: Option<u64>,
    /// Open a new connection for each --http or --echo operation.
    #[arg(long)]
    new: bool,
    /// Also write the result to this file as JSON; `-` writes it to standard output instead of the tables.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    tls: Tls,
}

/// A run whose options have been validated.
struct Prepared {
    plan: Plan,
    client: Client,
    connections: usize,
    asked: Asked,
    output: Output,
}

/// Destination of the result.
enum Output {
    Tables,
    Json,
    /// Tables on standard output and JSON in this file.
    Both(File),
}

impl Run {
    /// Exits with 0 if all operations succeeded, 1 if some did not, 2 on a usage error.
    pub(crate) fn run(&self) -> ExitCode {
        let prepared = match self.prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                eprintln!("isthmus-bench: {error:#}");
                return ExitCode::from(2);
            }
        };
        match prepared.run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("isthmus-bench: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn prepare(&self) -> anyhow::Result<Prepared> {
        let addresses = resolve(&self.address)?;
        let sni = self.sni()?;
        let work = self.work()?;
        ensure!(!self.timeout.is_zero(), "--timeout must be above zero");
        ensure!(self.duration.is_none_or(|end| !end.is_zero()), "--duration must be above zero");
        let default = self.count.is_none().then_some(Duration::from_secs(10));
        let plan = Plan { rate: self.rate, duration: self.duration.or(default), count: self.count };
        let mut tls = self.tls.config()?;
        if tls.alpn_protocols.is_empty() && self.http.is_some() {
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        if self.tls.insecure {
            eprintln!("isthmus-bench: --insecure: the server's certificate is not verified");
        }
        allow_descriptors(self.connections)?;
        let connections = u64::from(self.connections);
        let asked = Asked {
            addresses: addresses.iter().map(SocketAddr::to_string).collect(),
            sni: sni.to_str().into_owned(),
            operation: describe(&work),
            new_connections: self.new || matches!(work, Work::Handshake),
            server_verified: !self.tls.insecure,
            // More connections than operations would stay unused.
            connections: usize::try_from(self.count.map_or(connections, |count| connections.min(count)))?,
            rate_per_s: self.rate.map(Rate::per_second),
            duration_s: plan.duration.map(|end| end.as_secs_f64()),
            count: self.count,
        };
        let client = Client {
            addresses,
            turn: AtomicUsize::new(0),
            tls: Arc::new(tls),
            sni,
            work,
            fresh: self.new,
            timeout: self.timeout,
            open: Arc::default(),
        };
        Ok(Prepared { plan, client, connections: asked.connections, asked, output: self.output()? })
    }

    fn sni(&self) -> anyhow::Result<ServerName<'static>> {
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        let name = self.sni.as_deref().unwrap_or(host);
        match ServerName::try_from(name.to_owned()) {
            Ok(name @ ServerName::DnsName(_)) => Ok(name),
            _ if self.sni.is_none() => {
                bail!("{} has no host name to use as SNI; add --sni NAME", self.address)
            }
            _ => bail!("--sni {name}: not a DNS name; SNI allows DNS names only"),
        }
    }

    fn work(&self) -> anyhow::Result<Work> {
        if let Some(path) = &self.http {
            let valid = path.starts_with('/') && path.parse::<Uri>().is_ok();
            ensure!(valid, "--http {path}: not a path; use a path such as / or /healthz?full=1");
            ensure!(
                !self.tls.alpn.iter().any(|name| name == "h2"),
                "--http speaks HTTP/1.1; remove h2 from --alpn"
            );
            return Ok(Work::Http(path.clone()));
        }
        let Some(bytes) = self.echo else {
            ensure!(!self.new, "--new requires --http or --echo; a handshake always opens a new connection");
            return Ok(Work::Handshake);
        };
        // The period of 251 bytes, a prime, exposes bytes returned in the wrong order.
        let payload = (0..=250_u8).cycle().take(usize::try_from(bytes)?).collect();
        Ok(Work::Echo(payload))
    }

    /// Opens the output before the run, so that an unwritable file is reported before the measurement.
    fn output(&self) -> anyhow::Result<Output> {
        let Some(path) = &self.json else { return Ok(Output::Tables) };
        if path == Path::new("-") {
            return Ok(Output::Json);
        }
        let file = File::create(path).with_context(|| format!("--json: cannot write {}", path.display()))?;
        Ok(Output::Both(file))
    }
}

fn describe(work: &Work) -> String {
    match work {
        Work::Handshake => "TLS handshake".to_owned(),
        Work::Http(path) => format!("HTTP GET {path}"),
        Work::Echo(payload) => format!("echo of {} bytes", payload.len()),
    }
}

fn resolve(address: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let found = address.to_socket_addrs().with_context(|| {
        format!("{address}: not an address; use HOST:PORT, such as 10.1.0.7:15443 or [::1]:15443")
    })?;
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    ensure!(!addresses.is_empty(), "{address}: the name resolves to no address");
    Ok(addresses)
}

fn allow_descriptors(connections: u32) -> anyhow::Result<()> {
    let most = descriptors::raise_limit()?.saturating_sub(RESERVE);
    ensure!(
        u64::from(connections) <= most,
        "--connections {connections}: the descriptor limit allows {most}; raise the hard limit (ulimit -Hn)"
    );
    Ok(())
}

impl Prepared {
    /// Runs the operations; returns whether all succeeded.
    fn run(self) -> anyhow::Result<bool> {
        let (report, output) = self.measure()?;
        match output {
            Output::Tables => {}
            Output::Both(file) => write_json(file, &report)?,
            Output::Json => {
                write_json(io::stdout(), &report)?;
                return Ok(report.is_good());
            }
        }
        io::stdout().write_all(show::summary(&report).as_bytes())?;
        Ok(report.is_good())
    }

    fn measure(self) -> anyhow::Result<(Report, Output)> {
        let Self { plan, client, connections, asked, output } = self;
        let drive = Drive::new(plan, client, connections)?;
        let runtime = warm_runtime()?;
        let interrupted = runtime.block_on(watch(&drive, plan.duration))?;
        let (undone, elapsed) = (drive.undone(), drive.elapsed());
        // Operations in flight at Ctrl-C must not delay the exit.
        runtime.shutdown_background();
        let report = Report::new(asked, &drive.tally(), undone, elapsed, interrupted);
        Ok((report, output))
    }
}

/// Builds a runtime whose threads have all drawn their first random bytes: aws-lc takes some 40 ms for that
/// on each thread, which would otherwise be the slowest handshakes of the run.
fn warm_runtime() -> anyhow::Result<Runtime> {
    let workers = thread::available_parallelism()?.get();
    let (warm, warmed) = channel();
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .on_thread_start(move || {
            // A failure shows again in the first handshake, with a better error.
            let _ = aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
            let _ = warm.send(());
        })
        .build()?;
    for () in warmed.iter().take(workers) {}
    Ok(runtime)
}

fn write_json(mut to: impl io::Write, report: &Report) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut to, report)?;
    writeln!(to)
}

/// Runs until the end or a signal and shows the progress. Returns whether a signal ended the run.
async fn watch(drive: &Arc<Drive>, duration: Option<Duration>) -> io::Result<bool> {
    let stop = Stop::on_signals()?;
    let live = Live::new(duration);
    let mut ticks = interval_at(Instant::now() + TICK, TICK);
    let mut last = Instant::now();
    let run = drive.run();
    tokio::pin!(run);
    let interrupted = loop {
        tokio::select! {
            ended = &mut run => {
                ended?;
                break false;
            }
            now = ticks.tick() => {
                if stop.requested() {
                    break true;
                }
                live.tick(drive, now - last);
                last = now;
            }
        }
    };
    live.end();
    Ok(interrupted)
}
