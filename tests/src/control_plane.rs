//! Runs a third-party control plane: `tests/peers/control_plane.py` speaks xDS with Envoy's own messages over
//! gRPC's own library. It executes a test's commands and reports events.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use crate::wait::{until, until_some};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/control_plane.py");

/// A running control plane, killed when it is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    child: Child,
    input: ChildStdin,
    events: Arc<Mutex<Vec<Value>>>,
    address: SocketAddr,
}

/// Finds a Python with the script's packages: at `ISTHMUS_XDS_PYTHON`, where `tests/run` installs it, or in
/// PATH.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let installed = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers-xds/bin/python");
    let places = [std::env::var_os("ISTHMUS_XDS_PYTHON"), Some(installed.into()), Some("python3".into())];
    let imports = "import grpc; from envoy.service.discovery.v3 import ads_pb2_grpc";
    let runs = |place: &PathBuf| {
        Command::new(place).args(["-c", imports]).output().is_ok_and(|output| output.status.success())
    };
    places.into_iter().flatten().map(PathBuf::from).find(runs)
}

impl ControlPlane {
    /// Starts a control plane with the identity in a leaf's directory (`tls.crt`, `tls.key`, `ca.crt`) and
    /// these first resources. Port 0 selects a free port.
    #[must_use]
    #[track_caller]
    pub fn start(python: &Path, address: SocketAddr, leaf: &Path, first: &Value) -> ControlPlane {
        ControlPlane::start_with(python, address, leaf, first, &[])
    }

    /// The same with more command-line arguments.
    #[must_use]
    #[track_caller]
    pub fn start_with(
        python: &Path,
        address: SocketAddr,
        leaf: &Path,
        first: &Value,
        more: &[&str],
    ) -> ControlPlane {
        let mut child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(python)
            .arg(SCRIPT)
            .args(["--address", &address.to_string()])
            .args(["--certificate".into(), leaf.join("tls.crt")])
            .args(["--key".into(), leaf.join("tls.key")])
            .args(["--roots".into(), leaf.join("ca.crt")])
            .args(more)
            // Refusals are reported as events.
            .env("GRPC_VERBOSITY", "NONE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let events = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&events);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                own.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        let mut plane = ControlPlane { child, input, events, address };
        plane.tell(first);
        let port = until_some("the control plane listens", || {
            assert!(plane.child.try_wait().unwrap().is_none(), "the control plane exited");
            plane.find("listening", |_| true)?["port"].as_u64()
        });
        plane.address.set_port(u16::try_from(port).unwrap());
        plane
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends it a command.
    pub fn tell(&mut self, command: &Value) {
        writeln!(self.input, "{command}").unwrap();
        self.input.flush().unwrap();
    }

    /// All events of a kind so far.
    #[must_use]
    pub fn seen(&self, event: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|one| one["event"] == event).cloned().collect()
    }

    fn find(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        self.seen(event).into_iter().find(|one| wanted(one))
    }

    /// Waits for a matching event.
    #[must_use]
    #[track_caller]
    pub fn wait(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until_some(&format!("the control plane sees a {event}"), || self.find(event, &wanted))
    }

    /// Waits for a NACK of a type and returns its message.
    #[must_use]
    #[track_caller]
    pub fn refusal(&self, kind: &str) -> String {
        let refuses = |one: &Value| one["type"] == kind && one["nack"] != "";
        self.wait("request", refuses)["nack"].as_str().unwrap().to_owned()
    }

    /// Waits until every response has been answered.
    #[track_caller]
    pub fn settled(&self) {
        until("every response is answered", || {
            let answers = self.seen("request").iter().filter(|one| one["answers"] == true).count();
            answers == self.seen("sent").len()
        });
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if thread::panicking() {
            let events = self.events.lock().unwrap();
            let tail: Vec<String> =
                events[events.len().saturating_sub(20)..].iter().map(Value::to_string).collect();
            eprintln!("last output of the control plane:\n{}", tail.join("\n"));
        }
    }
}
