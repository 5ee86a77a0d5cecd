//! Runs MariaDB servers and its command-line client.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use isthmus_tests::wait::until;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::program::{self, Program, Site, done, find, said};

/// MariaDB's programs, and an empty database that servers begin with.
pub(crate) struct Mariadb {
    server: PathBuf,
    client: PathBuf,
    template: TempDir,
}

/// One database: its directory, which outlives the server's restarts.
pub(crate) struct Database<'a> {
    programs: &'a Mariadb,
    id: u16,
    folder: TempDir,
}

/// A running server.
pub(crate) struct Server<'a> {
    database: &'a Database<'a>,
    program: Program,
}

/// What tests do not need: files that are flushed to the disk, and large ones.
const LEAN: [&str; 6] = [
    "--no-defaults",
    "--user=root",
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=16M",
    "--innodb-flush-log-at-trx-commit=0",
    "--performance-schema=off",
];

impl Mariadb {
    /// Creates the empty database; `None` if the server is not installed.
    pub(crate) fn find() -> Option<Mariadb> {
        let [install, server, client] = ["mariadb-install-db", "mariadbd", "mariadb"].map(find);
        let (install, server, client) = (install?, server?, client?);
        let template = tempfile::Builder::new().prefix("isthmus-mariadb-").tempdir().unwrap();
        let mut made = program::command(install);
        // Temporary tables have names by process number, which another namespace may use as well.
        made.args(LEAN).arg(format!("--tmpdir={}", template.path().display()));
        made.arg(format!("--datadir={}", template.path().join("data").display()));
        done(made.args(["--auth-root-authentication-method=normal", "--skip-test-db"]));
        Some(Mariadb { server, client, template })
    }

    /// A database whose server has this ID.
    pub(crate) fn database(&self, id: u16) -> Database<'_> {
        let folder = tempfile::Builder::new().prefix("isthmus-mariadb-").tempdir().unwrap();
        done(Command::new("cp").arg("-r").arg(self.template.path().join("data")).arg(folder.path()));
        Database { programs: self, id, folder }
    }

    /// The client with a user's name and password, for one statement.
    pub(crate) fn login(
        &self,
        site: Option<&Site>,
        to: &str,
        port: u16,
        (user, password): (&str, &str),
    ) -> Command {
        let mut client =
            site.map_or_else(|| program::command(&self.client), |site| site.command(&self.client));
        client
            .args([
                "--no-defaults",
                "--protocol=tcp",
                "--batch",
                "--skip-column-names",
                "--connect-timeout=20",
            ])
            .args([format!("--host={to}"), format!("--port={port}")])
            .args([format!("--user={user}"), format!("--password={password}")])
            .args(["--execute", "SELECT CONCAT(@@server_id, ' ', USER())"]);
        client
    }
}

impl Database<'_> {
    /// Starts its server at an address, with more options.
    #[track_caller]
    pub(crate) fn start(
        &self,
        site: Option<&Site>,
        address: impl Into<SocketAddr>,
        options: &[&str],
    ) -> Server<'_> {
        let (server, address) = (&self.programs.server, address.into());
        let mut command = site.map_or_else(|| program::command(server), |site| site.command(server));
        let file = |name| self.folder.path().join(name).display().to_string();
        command
            .args(LEAN)
            .args([format!("--datadir={}", file("data")), format!("--server-id={}", self.id)])
            .arg(format!("--tmpdir={}", self.folder.path().display()))
            .args([format!("--socket={}", file("socket")), format!("--pid-file={}", file("pid"))])
            .args([format!("--bind-address={}", address.ip()), format!("--port={}", address.port())])
            .args(["--log-bin=binlog", "--binlog-format=ROW", "--log-warnings=4"])
            .args(options);
        let program = Program::start(&mut command, &self.folder.path().join("log"));
        let mut server = Server { database: self, program };
        until("the database answers", || {
            server.program.assert_runs();
            server.try_ask("SELECT 1").status.success()
        });
        server
    }
}

impl Server<'_> {
    /// Runs statements as root; returns their rows.
    #[track_caller]
    pub(crate) fn ask(&self, sql: &str) -> String {
        let output = self.try_ask(sql);
        assert!(output.status.success(), "{sql}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn try_ask(&self, sql: &str) -> Output {
        Command::new(&self.database.programs.client)
            .args(["--no-defaults", "--user=root", "--batch", "--skip-column-names"])
            .arg(format!("--socket={}", self.database.folder.path().join("socket").display()))
            .args(["--execute", sql])
            .output()
            .unwrap()
    }

    /// The value of a status variable.
    #[track_caller]
    pub(crate) fn status(&self, name: &str) -> u64 {
        let row = self.ask(&format!("SHOW GLOBAL STATUS LIKE '{name}'"));
        row.split_whitespace().last().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{row}"))
    }

    /// Shuts it down in order.
    pub(crate) fn stop(mut self) {
        self.program.end(Signal::TERM);
    }
}

/// Whether a file is a plugin of the server.
pub(crate) fn has_plugin(name: &str) -> bool {
    let folders = ["/usr/lib/mysql/plugin", "/usr/lib64/mysql/plugin"];
    folders.iter().any(|folder| fs::exists(Path::new(folder).join(name)).unwrap_or(false))
}
