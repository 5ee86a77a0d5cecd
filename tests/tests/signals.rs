//! Signals and blocked output of long-running programs: non-terminating signals do not end them, and full
//! pipes do not keep them from exiting.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use isthmus_tests::cluster::Cluster;
use isthmus_tests::process::Process;
use isthmus_tests::wait::{until, until_some};
use isthmus_tests::{binary, figure, http};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Socket state TCP_LISTEN.
const LISTEN: u8 = 10;

/// A long-running program, killed with the test.
struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Program {
    /// Starts a program and reads both of its outputs.
    fn start(command: &mut Command) -> Program {
        let (reader, writer) = std::io::pipe().unwrap();
        let child = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let program = Program { child, log: Arc::default() };
        program.read_lines(reader);
        program
    }

    fn read_lines(&self, reader: PipeReader) {
        let log = Arc::clone(&self.log);
        thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                *log.lock().unwrap() += &format!("{line}\n");
            }
        });
    }

    fn has_said(&self, what: &str) -> bool {
        self.log.lock().unwrap().contains(what)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }

    #[track_caller]
    fn wait_end(&mut self) -> ExitStatus {
        let mut ended = None;
        until("the program exits", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
        if thread::panicking() {
            eprintln!("last output:\n{}", self.log.lock().unwrap());
        }
    }
}

fn gateway(folder: &Path, more: &str) -> Command {
    let file = folder.join("g.yaml");
    let text = "listeners: [{ name: in, address: 127.0.0.1:0 }]\nadmin: { address: 127.0.0.1:0 }\nmetrics: { address: 127.0.0.1:0 }\nhealth: { address: 127.0.0.1:0 }\ndrain: { accept_for: 0s, window: 0s }\n";
    fs::write(&file, format!("{text}{more}")).unwrap();
    let mut command = Command::new(binary::gateway());
    command.arg("run").arg("--config").arg(file);
    command
}

fn agent(cluster: &Cluster) -> Command {
    let mut command = Command::new(binary::agent());
    command.arg("run").arg("--config").arg(cluster.file());
    command
}

fn rotate(cluster: &Cluster) -> Command {
    let mut command = Command::new(binary::certs());
    command.args(["rotate", "--watch", "--dir"]).arg(cluster.path("pki"));
    command
}

/// Asserts that the program ignores SIGHUP and the like, and ends on SIGTERM.
#[track_caller]
fn assert_survives_signals(mut program: Program, begun: &str) {
    until("the program has started", || program.has_said(begun));
    for (signal, name) in [(Signal::HUP, "SIGHUP"), (Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")] {
        program.signal(signal);
        until(&format!("the program logs {name}"), || program.has_said(name));
    }
    assert!(program.child.try_wait().unwrap().is_none());
    program.signal(Signal::TERM);
    assert!(program.wait_end().success());
}

#[test]
fn gateway_survives_non_terminating_signals() {
    let folder = TempDir::new().unwrap();
    assert_survives_signals(Program::start(&mut gateway(folder.path(), "")), "ready\n");
}

#[test]
fn demo_survives_non_terminating_signals() {
    let mut demo = Command::new(binary::gateway());
    assert_survives_signals(Program::start(demo.arg("demo").env("ISTHMUS_LOG", "warn")), "What to try next");
}

#[test]
fn agent_survives_non_terminating_signals() {
    assert_survives_signals(Program::start(&mut agent(&Cluster::new("east"))), "ready\n");
}

#[test]
fn rotation_survives_non_terminating_signals() {
    let cluster = Cluster::new("east");
    let mut program = rotate(&cluster);
    let lock = cluster.path("pki/.lock");
    let _old = fs::remove_file(&lock);
    let program = Program::start(&mut program);
    until("the first pass", || lock.exists());
    program.signal(Signal::HUP);
    assert_survives_signals(program, "SIGHUP");
}

#[test]
fn benchmark_survives_non_terminating_signals() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(binary::bench());
    command.args(["run", "--insecure", "--sni", "a.example", "--duration", "1h", "--timeout", "100ms"]);
    command.arg(silent.local_addr().unwrap().to_string());
    let mut program = Program::start(&mut command);
    until_caught(&program, Signal::HUP);
    for (signal, name) in [(Signal::HUP, "SIGHUP"), (Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")] {
        program.signal(signal);
        until(&format!("the program logs {name}"), || program.has_said(name));
    }
    program.signal(Signal::TERM);
    let _operations_failed = program.wait_end();
}

#[test]
fn sighup_makes_gateway_reload_its_file() {
    let folder = TempDir::new().unwrap();
    let program = Program::start(&mut gateway(folder.path(), ""));
    until("the program has started", || program.has_said("ready\n"));
    program.signal(Signal::HUP);
    until("the gateway reloads", || program.has_said("re-reading the configuration file"));
    gateway(folder.path(), "services: [{ host: a.example }]\n");
    program.signal(Signal::HUP);
    until("the edit is live", || program.has_said("configuration applied"));
}

/// A full pipe; nobody reads it while the first half lives.
fn full() -> (PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(writer.as_fd()).unwrap();
    writer.write_all(&vec![b'\n'; size]).unwrap();
    (reader, writer)
}

#[track_caller]
fn assert_exits(mut program: Program, what: &str) {
    let asked = Instant::now();
    program.signal(Signal::TERM);
    let status = program.wait_end();
    figure!("{what}: ended {:?} after SIGTERM, {status}", asked.elapsed());
    assert!(status.success(), "{status}");
}

fn address_of(program: &Program, what: &str) -> SocketAddr {
    let log = program.log.lock().unwrap();
    let address = log.lines().find_map(|line| line.strip_prefix(&format!("listening {what} address=")));
    address.unwrap().parse().unwrap()
}

#[test]
fn gateway_with_blocked_stdout_serves_and_exits() {
    let folder = TempDir::new().unwrap();
    let (_reader, stdout) = full();
    let (errors, stderr) = std::io::pipe().unwrap();
    let mut command = gateway(folder.path(), "");
    let child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    drop(command);
    let program = Program { child, log: Arc::default() };
    program.read_lines(errors);
    until("the program has started", || program.has_said("ready\n"));
    for _ in 0..400 {
        let mut client = TcpStream::connect(address_of(&program, "listener=in")).unwrap();
        client.write_all(b"no tls").unwrap();
        let mut answer = Vec::new();
        let _alert_or_reset = client.read_to_end(&mut answer);
    }
    assert_exits(program, "a gateway with a full standard output");
}

#[test]
fn gateway_with_blocked_stderr_serves_and_exits() {
    let folder = TempDir::new().unwrap();
    let (mut reader, stderr) = full();
    let mut command = gateway(folder.path(), "");
    let file = folder.path().join("g.yaml");
    let child = command.stdout(Stdio::null()).stderr(stderr).env("ISTHMUS_LOG", "trace").spawn().unwrap();
    drop(command);
    let program = Program { child, log: Arc::default() };
    let health = health_of(&program);
    for turn in 0..20 {
        fs::write(&file, format!("{}# {turn}\nwrong: {turn}\n", fs::read_to_string(&file).unwrap())).unwrap();
        assert_eq!(http::ask(health, "GET", "/healthz/live").status, 200);
    }
    assert_exits(program, "a gateway with a full standard error");
    let mut first = [0; 1];
    reader.read_exact(&mut first).unwrap();
}

/// Health address of a program whose output nobody reads.
#[track_caller]
fn health_of(program: &Program) -> SocketAddr {
    until_some("the health page answers", || {
        let sockets = Process(program.child.id()).sockets().into_iter().filter(|one| one.state == LISTEN);
        let mut addresses = sockets.map(|one| one.local);
        addresses.find(|at| {
            let answer = http::ask_as(*at, &at.to_string(), "GET", "/healthz/live");
            answer.is_ok_and(|answer| answer.status == 200)
        })
    })
}

#[test]
fn agent_with_blocked_stderr_serves_and_exits() {
    let cluster = Cluster::new("east");
    let (_reader, stderr) = full();
    let mut command = agent(&cluster);
    let child = command.stdout(Stdio::null()).stderr(stderr).env("ISTHMUS_LOG", "trace").spawn().unwrap();
    drop(command);
    let program = Program { child, log: Arc::default() };
    let admin = health_of(&program);
    for turn in 0..20 {
        cluster.register("r.yaml", &format!("services: [{{ host: h{turn}.example }}, {{ prot: {turn} }}]"));
        assert_eq!(http::ask(admin, "GET", "/healthz/live").status, 200);
    }
    assert_exits(program, "an agent with a full standard error");
}

#[test]
fn rotation_and_demo_with_blocked_stdout_exit() {
    let cluster = Cluster::new("east");
    let (_reader, stdout) = full();
    let mut command = rotate(&cluster);
    let child = command.stdout(stdout.try_clone().unwrap()).stderr(Stdio::null()).spawn().unwrap();
    let program = Program { child, log: Arc::default() };
    until_caught(&program, Signal::HUP);
    program.signal(Signal::HUP);
    assert_exits(program, "a rotation with a full standard output");
    let mut command = Command::new(binary::gateway());
    let child = command.arg("demo").stdout(stdout).stderr(Stdio::null()).spawn().unwrap();
    let program = Program { child, log: Arc::default() };
    until("the program blocks on the full pipe", || {
        // The system call of its first thread, with the first argument: a write to stdout.
        let call = fs::read_to_string(format!("/proc/{}/syscall", program.child.id())).unwrap();
        call.split(' ').nth(1) == Some("0x1")
    });
    assert_exits(program, "a demo with a full standard output");
}

/// Waits until a program has installed a handler for a signal.
fn until_caught(program: &Program, signal: Signal) {
    let bit = 1_u64 << (signal.as_raw() - 1);
    until("the program handles signals", || {
        let status = fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & bit != 0
    });
}
