//! Runs real programs as processes that end with the test: on this machine, or at a site, which is a network namespace
//! with names of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use isthmus_tests::is_root;
use isthmus_tests::netns::Star;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

/// Finds a program in PATH, or where Debian installs servers.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .chain(versions.map(|version| version.path().join("bin")))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The network of two sites, or why there is none.
pub(crate) fn two_sites() -> Result<Star, String> {
    if is_root() { Star::new(2) } else { Err("network namespaces require root".to_owned()) }
}

/// A network namespace whose programs resolve names by files of their own.
#[derive(Debug)]
pub(crate) struct Site {
    namespace: String,
    hosts: NamedTempFile,
    resolver: NamedTempFile,
}

impl Site {
    /// `hosts` are lines of a hosts file; there is no name server.
    pub(crate) fn new(namespace: &str, hosts: &[String]) -> Site {
        let [mut own, resolver] = [(); 2].map(|()| NamedTempFile::new().unwrap());
        writeln!(own, "127.0.0.1 localhost\n{}", hosts.join("\n")).unwrap();
        Site { namespace: namespace.to_owned(), hosts: own, resolver }
    }

    /// A site whose programs ask this name server, and nothing else.
    pub(crate) fn asking(namespace: &str, server: Ipv4Addr) -> Site {
        let mut site = Site::new(namespace, &[]);
        writeln!(site.resolver, "nameserver {server}\noptions timeout:1").unwrap();
        site
    }

    /// Its network namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The command of a program at this site.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .args(["unshare", "--mount", "setpriv", "--pdeathsig=KILL"])
            .args([
                "sh",
                "-ec",
                r#"mount --bind "$0" /etc/hosts; mount --bind "$1" /etc/resolv.conf; shift; exec "$@""#,
            ])
            .args([self.hosts.path(), self.resolver.path()])
            .arg(program);
        command
    }
}

/// The command of a program on this machine.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL").arg(program);
    command
}

/// A running server, killed when it is dropped. Its output goes to a file.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a server; its output is added to the file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Program {
        let output = File::options().create(true).append(true).open(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Program { child, log: log.to_owned() }
    }

    /// Panics with its output if it has ended.
    #[track_caller]
    pub(crate) fn assert_runs(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the server ended: {status}\n{}", self.output());
        }
    }

    /// Asks it to end by a signal, and waits until it has.
    pub(crate) fn end(&mut self, signal: Signal) {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
            self.child.wait().unwrap();
        }
    }

    /// What it has written so far.
    pub(crate) fn output(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
        if thread::panicking() {
            let output = self.output();
            let lines: Vec<_> = output.lines().rev().take(20).collect();
            let tail: Vec<_> = lines.into_iter().rev().collect();
            eprintln!("{}:\n{}", self.log.display(), tail.join("\n"));
        }
    }
}

/// Runs a command that must succeed; returns its output, trimmed.
#[track_caller]
pub(crate) fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Both outputs of a program.
pub(crate) fn said(output: &Output) -> String {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    format!("{out}{err}")
}
