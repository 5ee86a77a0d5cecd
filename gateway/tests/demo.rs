//! Tests the demo as a user runs it: the program, its output, and the commands it prints.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic anywhere")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A running demo; it is killed when this is dropped.
struct Demo {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Directory of its files, used by nothing else.
    temporary: tempfile::TempDir,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_isthmus-gateway"))
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Demo { child, output, temporary }
    }

    /// Reads up to a line that starts with `last`.
    fn read_until(&mut self, last: &str) -> String {
        let mut text = String::new();
        while self.output.read_line(&mut text).unwrap() > 0 {
            if text.lines().last().is_some_and(|line| line.starts_with(last)) {
                return text;
            }
        }
        panic!("the demo ended without {last:?}:\n{text}");
    }

    /// Returns the rest of the output after a clean exit that left no files.
    fn finish(&mut self) -> String {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        assert_eq!(self.files(), Vec::<PathBuf>::new(), "files are left");
        rest
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[test]
fn demo_once_keeps_every_promise_and_exits() {
    let text = Demo::start(&["--once"]).finish();
    assert!(text.contains("promises kept.") && !text.contains("BROKEN"), "{text}");
    for promise in [
        "west does not know the name",
        "each side has the other's bundle, as its authority issued it",
        "the token's second use is refused",
        "west reaches productpage without further configuration",
        "every name leads to its service",
        "each end saw the other's identity, across trust domains",
        "both ends hold the same session keys",
        "is reachable from west without a restart",
        "names that are not exported are unknown at every gateway",
        "is not exported: not_mtls",
        "with alert 116",
        "no call failed",
        "60 of 60 calls were answered",
        "the agent has caught up with the edit",
        "speaks plain HTTP reaches productpage over mTLS",
        "which the gateway does not know, is reset",
        "calls begun after its death moved to east",
        "west's own endpoint answered again",
        "both gateways and both agents stopped cleanly",
    ] {
        let kept = |line: &str| line.contains(promise) && line.trim_start().starts_with("kept ");
        assert!(text.lines().any(kept), "{promise}:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no colour where there is no terminal");
}

#[test]
fn demo_curl_and_openssl_lines_work() {
    let mut demo = Demo::start(&[]);
    let text = demo.read_until("The demo keeps running.");
    let [directory] = demo.files().try_into().expect("one directory");
    let key = directory.join("west/pki/leaves/web/tls.key");
    assert_eq!((mode(&directory), mode(&key)), (0o700, 0o600));
    let answered = "client: spiffe://west.demo.isthmus/ns/shop/sa/web";
    try_line(&text, " curl --resolve productpage", &["curl"], answered);
    try_line(&text, "openssl s_client", &["openssl"], answered);
    try_line(&text, " mv ", &["curl"], "server: spiffe://east.demo.isthmus/ns/bookinfo/sa/reviews");
    demo.interrupt();
    assert!(demo.finish().contains("promises kept."));
}

#[test]
fn demo_status_lines_work() {
    let mut demo = Demo::start(&[]);
    let text = demo.read_until("The demo keeps running.");
    try_line(&text, "# east's agent", &["curl"], "not_mtls");
    try_line(&text, "# west's agent", &["curl"], "productpage.bookinfo.svc.cluster.local");
    try_line(&text, "# east's gateway", &[], " connected since ");
    try_line(&text, "# west's gateway", &[], " connected since ");
    try_line(&text, " explain ", &[], "productpage.bookinfo.svc.cluster.local");
    try_line(&text, "/metrics", &["curl"], "isthmus_");
    demo.interrupt();
    assert!(demo.finish().contains("promises kept."));
}

#[test]
fn demo_interrupted_at_any_step_leaves_no_files() {
    for moment in ["1. ", "2. ", "3. ", "4. ", "7. ", "8. ", "10. "] {
        let mut demo = Demo::start(&[]);
        demo.read_until(moment);
        demo.interrupt();
        let mut rest = String::new();
        demo.output.read_to_string(&mut rest).unwrap();
        let code = demo.child.wait().unwrap().code();
        assert!(rest.contains("promises kept.") || code == Some(1), "{code:?} {rest}");
        assert_eq!(demo.files(), Vec::<PathBuf>::new(), "files are left");
    }
}

/// Runs the printed line that contains `part`, if its tools are installed.
fn try_line(text: &str, part: &str, tools: &[&str], expected: &str) {
    for tool in tools {
        if Command::new(tool).arg("version").output().is_err() {
            assert!(std::env::var_os("ISTHMUS_REQUIRE_PEERS").is_none(), "{tool} is required and not here");
            println!("SKIPPED the line with {part}: no {tool} here");
            return;
        }
    }
    let (_, next) = text.split_once("What to try next").unwrap();
    let [line] = next.lines().filter(|line| line.contains(part)).collect::<Vec<_>>()[..] else {
        panic!("not one line with {part:?}: {next}");
    };
    let directory = next.lines().find_map(|line| line.trim_start().strip_prefix("cd ")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(directory);
    let Output { status, stdout, stderr } = shell.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success() && stdout.contains(expected), "{line}\n{status}\n{stdout}\n{stderr}");
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}
