//! A machine in a network namespace whose C libraries read a `resolv.conf` of its own; `dig` on it, and its name servers.
//! Requires root.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::netns::{Namespace, ip};
use crate::{is_root, wait};

/// A machine, until dropped.
#[derive(Debug)]
pub struct Machine {
    namespace: Namespace,
    folder: TempDir,
}

/// A server on a machine, killed when dropped.
#[derive(Debug)]
pub struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// The address of a machine beside loopback.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);

impl Machine {
    /// A machine with loopback and one more address, which asks a name server at 127.0.0.1; or the error.
    pub fn new() -> Result<Machine, String> {
        if !is_root() {
            return Err("network namespaces require root".to_owned());
        }
        let namespace = Namespace::new()?;
        let name = namespace.name();
        ip(&format!("-n {name} link add veth0 type veth peer name veth1"))?;
        ip(&format!("-n {name} addr add {HOST}/24 dev veth0"))?;
        for link in ["veth0", "veth1"] {
            ip(&format!("-n {name} link set {link} up"))?;
        }
        let machine = Machine { namespace, folder: TempDir::new().unwrap() };
        machine.set_resolver("nameserver 127.0.0.1\n");
        Ok(machine)
    }

    /// The name of its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.namespace.name()
    }

    /// A path in a directory of its own.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes its `/etc/resolv.conf`.
    pub fn set_resolver(&self, content: &str) {
        fs::write(self.path("resolv.conf"), content).unwrap();
    }

    /// A command on this machine, which ends with the test.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        self.script("exec \"$@\"", words)
    }

    /// A shell script on this machine, with arguments. Mounts of it are its own.
    #[must_use]
    pub fn script(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "nsenter"]).arg(format!("--net=/run/netns/{}", self.namespace()));
        command.args(["unshare", "--mount", "sh", "-ec"]);
        command.arg(format!("mount --bind \"$0\" /etc/resolv.conf; {script}"));
        command.arg(self.path("resolv.conf")).args(arguments);
        command
    }

    /// The output of a command on this machine.
    #[must_use]
    #[track_caller]
    pub fn output(&self, words: &[&str]) -> String {
        let output = self.command(words).stderr(Stdio::inherit()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `dig` prints of a question.
    #[must_use]
    pub fn dig(&self, words: &str) -> Dig {
        let words: Vec<_> = ["dig", "+tries=1", "+time=10"].into_iter().chain(words.split(' ')).collect();
        Dig(self.output(&words))
    }

    /// Starts a server, or returns why it cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Daemon, String> {
        command.stdout(Stdio::null()).spawn().map(Daemon).map_err(|error| error.to_string())
    }

    /// Starts a dnsmasq that answers at 127.0.0.1 on a port, and nothing but what these options say.
    pub fn dnsmasq(&self, port: u16, options: &[&str]) -> Result<Daemon, String> {
        if Command::new("dnsmasq").arg("--version").output().is_err() {
            return Err("dnsmasq is not installed".to_owned());
        }
        let port_option = format!("--port={port}");
        let mut words = vec!["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"];
        words.extend(["--no-hosts", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root"]);
        words.extend(["--pid-file=", &port_option]);
        words.extend(options);
        let daemon = self.start(self.command(&words))?;
        let question = format!("-p {port} @127.0.0.1 +time=1 version.bind TXT CH");
        wait::until("dnsmasq answers", || self.dig(&question).status().is_some());
        Ok(daemon)
    }
}

/// What `dig` has printed.
#[derive(Debug)]
pub struct Dig(pub String);

impl Dig {
    /// `NOERROR`, `NXDOMAIN` and so on; none without an answer.
    #[must_use]
    pub fn status(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("status: ")?;
        rest.split(',').next()
    }

    /// Whether the answer has a flag.
    #[must_use]
    pub fn has_flag(&self, flag: &str) -> bool {
        let flags = self.0.split_once(";; flags: ").and_then(|(_, rest)| rest.split_once(';'));
        flags.is_some_and(|(flags, _)| flags.split(' ').any(|each| each == flag))
    }

    /// Whether the answer has an OPT record.
    #[must_use]
    pub fn has_edns(&self) -> bool {
        self.0.contains("OPT PSEUDOSECTION")
    }

    /// The size of the answer.
    #[must_use]
    pub fn size(&self) -> usize {
        let (_, size) = self.0.split_once("rcvd: ").unwrap();
        size.trim().parse().unwrap()
    }

    /// The data of the records in a section, in order: `ANSWER` or `AUTHORITY`.
    #[must_use]
    pub fn records(&self, section: &str) -> Vec<String> {
        let heading = format!(";; {section} SECTION:\n");
        let Some((_, rest)) = self.0.split_once(&heading) else { return Vec::new() };
        let lines = rest.lines().take_while(|line| !line.is_empty());
        let mut data: Vec<_> =
            lines.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")).collect();
        data.sort();
        data
    }

    /// The data of all answers.
    #[must_use]
    pub fn answers(&self) -> Vec<String> {
        self.records("ANSWER")
    }
}
