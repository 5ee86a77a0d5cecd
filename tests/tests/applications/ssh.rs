//! OpenSSH through the gateways: the server speaks first, and what it is sent comes back unchanged.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use isthmus_tests::bulk::random;
use isthmus_tests::endpoint::free;
use isthmus_tests::ends::Domains;
use isthmus_tests::wait::until;
use isthmus_tests::{is_root, skip};

use crate::Way;
use crate::program::{Program, command, done, find};

const SIZE: usize = 3_000_017;

#[test]
fn ssh_login_and_transfer_pass_both_gateways() {
    let [Some(sshd), Some(ssh), Some(keygen)] = ["sshd", "ssh", "ssh-keygen"].map(find) else {
        skip!("OpenSSH is not installed (tests/run installs it)")
    };
    let folder = tempfile::Builder::new().prefix("isthmus-ssh-").tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    for key in ["host", "user"] {
        done(command(&keygen).args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]));
    }
    if is_root() {
        // What Debian's unit makes, for the server's unprivileged part.
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let address = free();
    fs::write(file("sshd_config"), format!(
        "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
        file("host"),
        file("user.pub")
    ))
    .unwrap();
    let mut run = command(sshd);
    let mut server =
        Program::start(run.args(["-D", "-e", "-f", &file("sshd_config")]), &folder.path().join("log"));
    until("the server listens", || {
        server.assert_runs();
        server.output().contains("Server listening")
    });
    let domains = Domains::new();
    let way = Way::to(&domains, address);
    let host_key = fs::read_to_string(file("host.pub")).unwrap();
    fs::write(file("known_hosts"), format!("[127.0.0.1]:{} {host_key}", way.address().port())).unwrap();
    let user = done(Command::new("id").arg("-un"));
    let mut client = command(ssh);
    client
        .args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            &format!("UserKnownHostsFile={}", file("known_hosts")),
        ])
        .args(["-i", &file("user"), "-o", "IdentitiesOnly=yes", "-p", &way.address().port().to_string()])
        .arg(format!("{user}@127.0.0.1"))
        .arg("cat");
    let mut child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let bytes = random(SIZE);
    let (mut input, sent) = (child.stdin.take().unwrap(), bytes.clone());
    let sending = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let answer = child.wait_with_output().unwrap();
    sending.join().unwrap();
    assert!(answer.status.success(), "{answer:?}");
    assert!(answer.stdout == bytes, "{} of {SIZE} bytes came back", answer.stdout.len());
    let line = way.west.log().wait("the login", |line| line.number("bytes_in") > 3_000_000);
    // Which side closes first is chance.
    assert!(["client_closed", "server_closed"].contains(&line.reason()), "{line:?}");
}
