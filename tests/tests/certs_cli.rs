//! `isthmus-certs` as a command line: every command, its files and its errors. For interoperability see
//! `certs_openssl` and `certs_envoy`, for roll-over and crashes `rotation`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use isthmus_tests::certs::{Sites, id, serial, snapshot};
use isthmus_tests::setup::NOBODY;
use isthmus_tests::wait::until;
use isthmus_tests::{binary, is_root, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const COMMANDS: [&str; 10] = [
    "init",
    "intermediate",
    "issue",
    "bundle",
    "inspect",
    "verify",
    "rotate",
    "status",
    "deny",
    "completions",
];

// ---- all commands, as text and as JSON

#[test]
fn help_has_examples_and_every_shell_has_completions() {
    let sites = Sites::new();
    for command in COMMANDS {
        let help = sites.done("", &format!("{command} --help"));
        let example = format!("  isthmus-certs {command}");
        assert!(help.contains("Example") && help.contains(&example), "{help}");
        assert!(help.contains("--json"), "{help}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sites.done("", &format!("completions {shell}"));
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} completes {command}");
        }
    }
    sites.write("completions.bash", sites.done("", "completions bash"));
    let parsed = Command::new("bash").arg("-n").arg(sites.path("completions.bash")).status();
    assert!(parsed.unwrap().success());
}

#[test]
fn init_creates_authority_and_prints_next_steps() {
    let sites = Sites::new();
    let text = sites.done("east", "init --trust-domain east.example");
    assert!(text.contains("made the authority of east.example in east"), "{text}");
    assert!(text.contains("isthmus-certs intermediate --cluster NAME --dir east"), "{text}");
    let made = sites.json("", "init --trust-domain west.example --out west --key ed25519 --overlap 1h");
    assert_eq!(made, json!({ "trust_domain": "west.example", "dir": "west" }));

    let text = sites.done("east", "intermediate --cluster east");
    assert!(text.contains("east/clusters/east") && text.contains("pin sha256:"), "{text}");
    assert!(!text.contains("security domain"), "{text}");
    let second = sites.json("east", "intermediate --cluster second");
    assert_eq!((&second["new"], &second["shares_root_with"]), (&json!(true), &json!(["east"])));
    let again = sites.json("east", "intermediate --cluster second");
    assert_eq!(
        (&again["new"], &again["pin"]),
        (&json!(false), &second["pin"]),
        "the existing intermediate is shown"
    );
    let text = sites.done("east", "intermediate --cluster third");
    let warning =
        "third and east, second are one security domain: each can sign every identity of east.example";
    assert!(text.contains(warning), "{text}");

    let which = sites.refused("east", "issue --spiffe spiffe://east.example/ns/a/sa/b");
    assert!(which.contains("name one with --cluster: east, second, third"), "{which}");
    let issue = "issue --spiffe spiffe://east.example/ns/a/sa/b --cluster second";
    let issued = sites.json("east", issue);
    let dir = "east/leaves/a-b";
    assert_eq!(issued, json!({ "name": "a-b", "id": "spiffe://east.example/ns/a/sa/b", "dir": dir }));
    let text = sites.done("east", &format!("{issue} --name other --out elsewhere"));
    assert!(text.contains("spiffe://east.example/ns/a/sa/b in /") && text.contains("/elsewhere"), "{text}");
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        assert!(sites.path(dir).join(file).exists() && sites.path("elsewhere").join(file).exists());
    }
    let taken = sites.refused("east", "issue --spiffe spiffe://east.example/x --cluster east --name a-b");
    assert!(taken.contains("a-b is already the leaf of spiffe://east.example/ns/a/sa/b"), "{taken}");
}

#[test]
fn inspect_shows_chain_identity_and_time_left() {
    let sites = Sites::federated();
    let file = "east/leaves/below/tls.crt";
    let text = sites.done("", &format!("inspect {file}"));
    for shown in [
        "1  leaf",
        "2  authority",
        &id("east", "below"),
        "web.example",
        "127.0.0.1",
        "(in 23h 59m)",
        "ECDSA 256",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert!(text.contains("give --bundles DIR to verify the chain"), "{text}");
    let seen = sites.json("", &format!("inspect {file} --bundles east/bundles"));
    let leaf = &seen["chain"][0];
    assert_eq!(leaf["uris"], json!([id("east", "below")]));
    assert_eq!((&leaf["dns"], &leaf["ips"]), (&json!(["web.example"]), &json!(["127.0.0.1"])));
    assert_eq!((&leaf["is_authority"], &leaf["subject"]), (&json!(false), &json!("")));
    assert_eq!(seen["chain"][1]["path_length"], json!(0));
    assert_eq!((&seen["judged_by_bundles"], &seen["objections"]), (&json!(true), &json!([])));
    assert_eq!(seen["endpoint"], Value::Null);
    sites.done("east", "bundle remove --trust-domain west.example");
    let seen = sites.json("", "inspect west/leaves/below/tls.crt --bundles east/bundles");
    let objection = seen["objections"][0].as_str().unwrap();
    assert!(objection.contains("add the bundle of west.example"), "{objection}");
    let text = sites.done("", "inspect west/leaves/below/tls.crt --bundles east/bundles");
    assert!(text.contains("a peer would refuse it: spiffe://west.example/ns/test/sa/below"), "{text}");
}

#[test]
fn exit_code_is_2_for_usage_errors_and_1_for_all_others() {
    let sites = Sites::new();
    sites.found("east");
    for words in [
        "",
        "frob",
        "init --trust-domain East.Example",
        "init",
        "intermediate",
        "issue --spiffe https://east.example/x",
        "issue --spiffe spiffe://east.example/x --ttl soon",
        "issue --spiffe spiffe://east.example/x --csr a --name b",
        "verify",
        "verify east/leaves/below/tls.crt",
        "verify x --role nobody",
        "verify x --pin sha256:short",
        "bundle --for everybody",
        "deny add",
        "completions tcsh",
    ] {
        let ran = sites.run("east", words);
        assert_eq!((ran.code, &*ran.out), (Some(2), ""), "{words}: {ran:?}");
        assert!(ran.err.contains("--help") || ran.err.contains("Usage:"), "{words}: {ran:?}");
    }
    for (words, names, remedy) in [
        ("status --dir absent", "absent", "make one with `isthmus-certs init --out absent`"),
        ("inspect absent", "absent", "nor HOST:PORT"),
        ("issue --spiffe spiffe://east.example/x --dns a/b", "\"a/b\"", "write one such as web.example"),
        ("issue --spiffe spiffe://east.example/x --name ../x", "\"../x\"", "start with a letter or digit"),
        ("issue --spiffe spiffe://east.example/x --cluster no", "\"no\"", "intermediate --cluster no"),
        ("issue --spiffe spiffe://east.example/x --ttl 2years", "2years", "end before the authority expires"),
        (
            "issue --spiffe spiffe://east.example --name x",
            "spiffe://east.example",
            "such as /ns/NAMESPACE/sa/ACCOUNT",
        ),
        ("intermediate --cluster ../x", "\"../x\"", "start with a letter or digit"),
        ("bundle add absent --trust-domain w.example", "absent", "No such file"),
        ("bundle --for pem --trust-domain w.example", "w.example", "`isthmus-certs bundle` lists them"),
        ("deny add nonsense", "\"nonsense\"", "nor a serial number (hexadecimal)"),
        ("deny remove spiffe://east.example/x", "spiffe://east.example/x", "`isthmus-certs deny` prints it"),
    ] {
        let why = sites.refused("east", words);
        assert!(why.contains(names) && why.contains(remedy), "{words}: {why}");
    }
}

// ---- files on disk

#[test]
fn key_files_are_owner_only_and_in_key_directories() {
    let sites = Sites::federated();
    let mut keys = 0;
    for (path, (mode, content)) in snapshot(&sites.path("east")) {
        let has_key = String::from_utf8_lossy(&content).contains("PRIVATE KEY");
        let is_called_key = path.to_string_lossy().contains("key");
        let is_file = mode & 0o170_000 == 0o100_000;
        if is_file {
            assert_eq!(has_key, is_called_key, "{}", path.display());
            assert_eq!(mode & 0o777, if has_key { 0o600 } else { 0o644 }, "{}", path.display());
            keys += usize::from(has_key);
        }
    }
    assert_eq!(keys, 1 + 2 + 2, "a root, an intermediate under two names, two leaves");
}

#[test]
fn directories_are_owner_only_under_any_umask() {
    let sites = Sites::new();
    let script = "umask 0 && $CERTS init --trust-domain east.example && $CERTS intermediate --cluster east \
                  && $CERTS issue --spiffe spiffe://east.example/ns/a/sa/b && $CERTS deny add 0a \
                  && $CERTS issue --spiffe spiffe://east.example/ns/a/sa/c --out elsewhere";
    let mut shell = sites.other("sh", "-c");
    let shell = shell.arg(script).env("CERTS", binary::certs()).env("ISTHMUS_CERTS_DIR", "east");
    assert!(shell.stdout(Stdio::null()).status().unwrap().success());
    for folder in ["east", "elsewhere"] {
        assert_eq!(fs::metadata(sites.path(folder)).unwrap().mode() & 0o777, 0o700, "{folder}");
    }
    for (path, (mode, _)) in snapshot(sites.folder()) {
        if mode & 0o170_000 == 0o040_000 {
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        } else if path.to_string_lossy().contains("key") && !path.is_symlink() {
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }
}

#[test]
fn intermediate_directory_has_exactly_istio_and_cert_manager_files() {
    let sites = Sites::new();
    sites.found("east");
    let folder = sites.path("east/clusters/east");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with("..")).collect();
    names.sort();
    let expected =
        ["ca-cert.pem", "ca-key.pem", "ca.crt", "cert-chain.pem", "root-cert.pem", "tls.crt", "tls.key"];
    assert_eq!(names, expected);
}

#[test]
fn authority_is_not_overwritten_without_force() {
    let sites = Sites::new();
    sites.found("east");
    sites.write("east/notes.txt", "an operator's own");
    let before = snapshot(&sites.path("east"));
    let why = sites.refused("east", "init --trust-domain other.example");
    assert!(why.contains("authority in east already") && why.contains("--force"), "{why}");
    assert!(snapshot(&sites.path("east")) == before, "a file has changed");
    sites.done("east", "init --trust-domain other.example --force");
    let status = sites.json("east", "status");
    assert_eq!(
        (&status["trust_domain"], status["certificates"].as_array().unwrap().len()),
        (&json!("other.example"), 1)
    );
    let key = Path::new("east/roots/1/root-key.pem");
    assert_ne!(
        fs::read(sites.path("east/roots/1/root-key.pem")).unwrap(),
        before[&sites.folder().join(key)].1
    );
    assert!(!sites.path("east/leaves").exists() && !sites.path("east/clusters").exists());
    assert_eq!(sites.read("east/notes.txt"), "an operator's own", "a foreign file was changed");
    assert_eq!(sites.json("east", "bundle")["bundles"].as_array().unwrap().len(), 1);
}

#[test]
fn root_key_is_not_overwritten_without_state_file() {
    let sites = Sites::new();
    sites.done("east", "init --trust-domain east.example");
    let key = sites.read("east/roots/1/root-key.pem");
    fs::remove_file(sites.path("east/authority.json")).unwrap();
    let _whichever = sites.run("east", "init --trust-domain east.example");
    assert_eq!(sites.read("east/roots/1/root-key.pem"), key, "without --force");
}

#[test]
fn unknown_files_beside_a_leaf_are_left_alone() {
    let sites = Sites::new();
    sites.found("east");
    fs::create_dir_all(sites.path("service/..state")).unwrap();
    sites.write("service/service.conf.new", "an operator's draft");
    sites.write("service/..state/data", "a program's own");
    sites.done("east", "issue --spiffe spiffe://east.example/ns/a/sa/b --out service");
    sites.done("east", "rotate");
    assert_eq!(sites.read("service/service.conf.new"), "an operator's draft");
    assert_eq!(sites.read("service/..state/data"), "a program's own");
}

#[test]
fn unwritable_path_error_names_path_and_remedy() {
    let sites = Sites::new();
    sites.write("file", "no directory");
    for place in ["file", "file/below"] {
        let why = sites.refused(place, "init --trust-domain east.example");
        assert!(why.contains(place) && why.contains("must exist and be writable"), "{why}");
    }
    assert_eq!(sites.read("file"), "no directory");
    sites.found("east");
    let why = sites.refused("east", "issue --spiffe spiffe://east.example/x --out file");
    assert!(why.contains("/file") && why.contains("must exist and be writable"), "{why}");
    let why = sites.run("east", "bundle --for pem --out absent/x.pem").refused();
    assert!(why.contains("absent/x.pem") && why.contains("must exist and be writable"), "{why}");
    if !is_root() {
        skip!("another user's directory requires root");
    }
    fs::set_permissions(sites.folder(), Permissions::from_mode(0o755)).unwrap();
    let why = as_nobody(&sites, "init --trust-domain east.example --out theirs");
    assert!(why.contains("theirs") && why.contains("must exist and be writable"), "{why}");
    assert!(why.contains("Permission denied"), "{why}");
}

/// The error of a command run by an unprivileged user in another user's directory.
#[track_caller]
fn as_nobody(sites: &Sites, words: &str) -> String {
    let copy = sites.path("isthmus-certs");
    if !copy.exists() {
        fs::copy(binary::certs(), &copy).unwrap();
    }
    let user = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups {} {words}", copy.display());
    let output = sites.other("setpriv", &user).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

#[test]
fn unreadable_authority_is_not_reported_as_missing() {
    if !is_root() {
        skip!("another user's directory requires root");
    }
    let sites = Sites::new();
    sites.done("east", "init --trust-domain east.example");
    fs::set_permissions(sites.folder(), Permissions::from_mode(0o755)).unwrap();
    let why = as_nobody(&sites, "status --dir east");
    assert!(why.contains("Permission denied") && !why.contains("there is no authority"), "{why}");
}

// ---- rotation

#[test]
fn rotate_pass_renews_only_what_is_due() {
    let sites = Sites::federated();
    let before = snapshot(&sites.path("east"));
    let pass = sites.json("east", "rotate");
    assert_eq!((&pass["done"], &pass["problems"]), (&json!([]), &json!([])));
    assert!(pass["next"].is_string());
    assert!(sites.done("east", "rotate").starts_with("nothing to do\nnext: "));
    assert!(snapshot(&sites.path("east")) == before);

    sites.done("east", "issue --spiffe spiffe://east.example/short --name short --ttl 2s --dns a.example");
    let first = serial(&sites, "east/leaves/short/tls.crt");
    let direct = serial(&sites, "east/leaves/direct/tls.crt");
    until("the leaf is renewed", || {
        let done = sites.json("east", "rotate")["done"].clone();
        assert!(done == json!([]) || done == json!([{ "done": "leaf_renewed", "leaf": "short" }]), "{done}");
        serial(&sites, "east/leaves/short/tls.crt") != first
    });
    let renewed = sites.json("", "inspect east/leaves/short/tls.crt");
    assert_eq!(renewed["chain"][0]["dns"], json!(["a.example"]), "the renewed leaf has other names");
    assert_eq!(renewed["chain"][0]["uris"], json!(["spiffe://east.example/short"]));
    assert_eq!(serial(&sites, "east/leaves/direct/tls.crt"), direct);

    fs::remove_file(sites.path("east/leaves/below/tls.key")).unwrap();
    let pass = sites.done("east", "rotate");
    assert!(pass.contains("renewed leaf below"), "{pass}");
    assert!(sites.read("east/leaves/below/tls.key").contains("PRIVATE KEY"));
    fs::remove_dir_all(sites.path("east/leaves/direct")).unwrap();
    fs::remove_dir_all(sites.path("east/clusters/east")).unwrap();
    let pass = sites.json("east", "rotate");
    assert!(pass["done"].to_string().contains("intermediate_renewed"), "{pass}");
    for leaf in ["direct", "below"] {
        let words = format!("verify east/leaves/{leaf}/tls.crt --bundles east/bundles");
        assert_eq!(sites.json("", &words)["believed"], true);
    }
}

#[test]
fn rotate_pass_reports_failures_and_does_the_rest() {
    let sites = Sites::federated();
    fs::rename(sites.path("east/roots/1/root-key.pem"), sites.path("safe.pem")).unwrap();
    for leaf in ["direct", "below"] {
        fs::remove_file(sites.path(&format!("east/leaves/{leaf}/tls.crt"))).unwrap();
    }
    let pass = sites.run("east", "rotate");
    assert_eq!(pass.code, Some(1), "{pass:?}");
    assert!(
        pass.out.contains("renewed leaf below"),
        "the leaf of the available signer is not renewed: {pass:?}"
    );
    assert!(pass.err.contains("east/roots/1/root-key.pem: the key is not here; restore it"), "{pass:?}");
    assert!(sites.path("east/leaves/below/tls.crt").exists());
    let again = sites.run("east", "rotate --json");
    assert_eq!(again.code, Some(1));
    let report: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(report["done"], json!([]));
    assert_eq!(report["problems"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["problems"][0].as_str().unwrap().contains("root-key.pem"), "{report}");
    fs::rename(sites.path("safe.pem"), sites.path("east/roots/1/root-key.pem")).unwrap();
    assert!(sites.done("east", "rotate").contains("renewed leaf direct"));
    assert!(sites.done("east", "rotate").contains("nothing to do"));
}

#[test]
fn status_shows_certificates_and_roll_over_step() {
    let sites = Sites::new();
    sites.found("east");
    let status = sites.json("east", "status");
    let kinds: Vec<_> =
        status["certificates"].as_array().unwrap().iter().map(|one| (&one["kind"], &one["name"])).collect();
    let expected = [("root", "1"), ("intermediate", "east"), ("leaf", "below"), ("leaf", "direct")];
    assert_eq!(
        kinds,
        expected
            .map(|(kind, name)| (json!(kind), json!(name)))
            .iter()
            .map(|(a, b)| (a, b))
            .collect::<Vec<_>>()
    );
    assert_eq!(
        (&status["root"], &status["trusted_roots"], &status["rollover"]),
        (&json!(1), &json!([1]), &Value::Null)
    );
    let text = sites.done("east", "status");
    assert!(text.contains("root 1 signs; no roll-over in progress"), "{text}");

    let begun = sites.done("east", "rotate --root");
    assert!(begun.starts_with("root roll-over: started\n"), "{begun}");
    let status = sites.json("east", "status");
    assert_eq!((&status["rollover"]["step"], &status["trusted_roots"]), (&json!("trusted"), &json!([1, 2])));
    let text = sites.done("east", "status");
    assert!(text.contains("the new root is trusted but does not sign yet"), "{text}");
    assert!(
        text.contains("next: sign everything with the new root, at ") && text.contains("(in 6days"),
        "{text}"
    );
    assert!(sites.done("east", "rotate --root").contains("already in progress"));
}

/// A `rotate --watch` process, killed with the test.
struct Watching(std::process::Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn rotate_watch_renews_and_stops_cleanly() {
    let sites = Sites::federated();
    sites.done("east", "issue --spiffe spiffe://east.example/short --name short --ttl 2s");
    for signal in [Signal::TERM, Signal::INT] {
        let watch = sites.command("east", "rotate --watch").stdout(Stdio::piped()).spawn();
        let mut watch = Watching(watch.unwrap());
        let mut leaves = BTreeSet::new();
        until("the leaf has been renewed twice", || {
            leaves.insert(serial(&sites, "east/leaves/short/tls.crt"));
            leaves.len() > 2
        });
        // Other commands work concurrently.
        assert_eq!(sites.json("east", "status")["trust_domain"], "east.example");
        kill_process(Pid::from_child(&watch.0), signal).unwrap();
        let mut out = String::new();
        watch.0.stdout.as_mut().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(watch.0.wait().unwrap().code(), Some(0), "{out}");
        assert!(out.matches("renewed leaf short").count() >= 2, "{out}");
    }
}

#[test]
fn refused_command_does_not_prolong_roll_over() {
    let sites = Sites::new();
    sites.found("east");
    let before = snapshot(&sites.path("east"));
    for words in [
        "issue --spiffe spiffe://east.example/x --ttl 20years",
        "issue --spiffe spiffe://north.example/x --ttl 300days",
        "issue --spiffe spiffe://east.example --name x --ttl 300days",
        "issue --spiffe spiffe://east.example/x --dns a/b --ttl 300days",
    ] {
        let _why = sites.refused("east", words);
        assert!(snapshot(&sites.path("east")) == before, "{words}: {}", sites.read("east/authority.json"));
    }
}
