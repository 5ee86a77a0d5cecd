//! Runs a gateway: its addresses, output and metrics. The process ends with the test.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use isthmus_model::admin::gateway::Status;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::{End, echo, read_exactly, rest, send};
use crate::http::{self, Answer};
use crate::lock::{self, SharedLock};
use crate::log::{Line, Log};
use crate::metrics::Metrics;
use crate::process::Process;
use crate::setup::Setup;
use crate::wait::{until, until_some};

/// A running gateway, killed when it is dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    folder: TempDir,
    addresses: BTreeMap<String, SocketAddr>,
    errors: Arc<Mutex<Vec<String>>>,
    log: Log,
    ended: Option<ExitStatus>,
    namespace: Option<String>,
    _beside: SharedLock,
}

/// Runs the gateway's binary to its end, as a shell does.
#[must_use]
pub fn run_to_end(arguments: &[&str]) -> Output {
    Command::new(crate::binary::gateway()).args(arguments).output().unwrap()
}

impl Gateway {
    /// Makes one call: greeted by `+`, whatever failed before; echoed, closed by the client. Returns its log line.
    #[track_caller]
    pub fn call(&self, hello: &[u8]) -> Line {
        let mut client = send(self.address(), hello);
        assert_eq!(read_exactly(&mut client, 1), b"+", "a failover is invisible to the client");
        echo(&mut client, b"ping");
        let peer = client.local_addr().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), (Vec::new(), End::Fin));
        self.log().line_of(peer)
    }

    #[track_caller]
    pub(crate) fn start(setup: &Setup) -> Gateway {
        let beside = lock::beside();
        let folder = tempfile::Builder::new().prefix("isthmus-world-").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let file = folder.path().join("gateway.yaml");
        fs::write(&file, setup.yaml()).unwrap();
        let mut child = setup
            .command(folder.path())
            .args(["run", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::read_from(child.stdout.take().unwrap());
        let errors = collect_lines(child.stderr.take().unwrap());
        let mut gateway = Gateway {
            child,
            folder,
            addresses: BTreeMap::new(),
            errors,
            log,
            ended: None,
            namespace: setup.namespace.clone(),
            _beside: beside,
        };
        gateway.addresses = gateway.announced(&setup.yaml());
        gateway
    }

    #[track_caller]
    fn announced(&mut self, yaml: &str) -> BTreeMap<String, SocketAddr> {
        let errors = Arc::clone(&self.errors);
        until_some("the gateway is ready", || {
            let lines = errors.lock().unwrap().clone();
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the gateway exited ({status}):\n{}\nits file:\n{yaml}", lines.join("\n"));
            }
            lines.iter().any(|line| line == "ready").then(|| {
                lines
                    .iter()
                    .filter_map(|line| line.strip_prefix("listening ")?.rsplit_once(" address="))
                    .map(|(name, address)| (name.replace("listener=", "listener "), address.parse().unwrap()))
                    .collect()
            })
        })
    }

    /// The announced addresses by name: `listener east-west`, `admin`, `metrics`, `health`.
    #[must_use]
    pub fn addresses(&self) -> &BTreeMap<String, SocketAddr> {
        &self.addresses
    }

    /// The address of its east-west listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.at("listener east-west")
    }

    /// One of its addresses.
    #[must_use]
    #[track_caller]
    pub fn at(&self, name: &str) -> SocketAddr {
        *self.addresses.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.addresses))
    }

    /// Its configuration file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("gateway.yaml")
    }

    /// Replaces a text in its configuration file, by rename as editors do, and waits until the edit is applied.
    #[track_caller]
    pub fn edit(&self, from: &str, to: &str) {
        let applied = || self.admin("GET", "/status").json()["reloads"]["applied"].as_u64().unwrap();
        let before = applied();
        let text = fs::read_to_string(self.file()).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        let new = self.file().with_extension("new");
        fs::write(&new, text.replace(from, to)).unwrap();
        fs::rename(&new, self.file()).unwrap();
        until("the edit is applied", || applied() > before);
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Its access log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its lines on standard error.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }

    /// Gets its metrics.
    #[must_use]
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let answer = http::ask_in(self.namespace(), self.at("metrics"), "GET", "/metrics");
        assert_eq!(answer.status, 200, "{}", answer.headers);
        Metrics::parse(&answer.body)
    }

    /// Sends a request to its admin address.
    #[must_use]
    #[track_caller]
    pub fn admin(&self, method: &str, path: &str) -> Answer {
        http::ask_in(self.namespace(), self.at("admin"), method, path)
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.admin("GET", "/status").page()
    }

    /// Whether it reports ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        http::ask_in(self.namespace(), self.at("health"), "GET", "/healthz/ready").status == 200
    }

    /// Its network namespace, unless it is the test's.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Whether it is running.
    pub fn runs(&mut self) -> bool {
        self.ended = self.ended.or_else(|| self.child.try_wait().unwrap());
        self.ended.is_none()
    }

    /// Waits until it exits by itself.
    #[track_caller]
    pub fn wait_end(&mut self) -> ExitStatus {
        until("the gateway exits", || !self.runs());
        self.ended.unwrap()
    }

    /// Kills it with SIGKILL, as the OOM killer does.
    pub fn kill(&mut self) {
        if self.runs() {
            self.child.kill().unwrap();
            self.ended = Some(self.child.wait().unwrap());
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let alive = self.runs();
        self.kill();
        if thread::panicking() {
            let errors = self.errors();
            let tail = errors[errors.len().saturating_sub(30)..].join("\n");
            eprintln!(
                "the gateway {}; last output:\n{tail}",
                if alive { "was running" } else { "had exited" }
            );
        }
    }
}

fn collect_lines(from: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let own = Arc::clone(&lines);
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            own.lock().unwrap().push(line);
        }
    });
    lines
}
