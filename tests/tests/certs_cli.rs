//! `isthmus-certs` as people and scripts use it: every command, what it leaves on disk, what it says when
//! something is wrong. Not about whether others take its certificates (`certs_openssl`, `certs_envoy`), and
//! not about roll-over and crashes (`rotation`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use isthmus_tests::certs::{Sites, id, like_ours};
use isthmus_tests::endpoint::{Scripted, closed};
use isthmus_tests::setup::{NOBODY, Setup, service};
use isthmus_tests::tls::{Peer, openssl};
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
const EAST: [&str; 2] = ["east/clusters/east/ca-cert.pem", "east/clusters/east/ca-key.pem"];
const WEST: [&str; 2] = ["west/clusters/west/ca-cert.pem", "west/clusters/west/ca-key.pem"];

/// Everything below a directory but `.lock`: modes, and what files hold and links lead to.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let content = if kind.is_dir() {
            found.extend(snapshot(&path));
            Vec::new()
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(path, (entry.metadata().unwrap().mode(), content));
    }
    found.retain(|path, _| !path.ends_with(".lock"));
    found
}

fn serial(sites: &Sites, file: &str) -> String {
    sites.json("", &format!("inspect {file}"))["chain"][0]["serial"].as_str().unwrap().to_owned()
}

// ---- every command, for people and for machines

#[test]
fn every_help_has_examples_and_every_shell_completions() {
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
fn an_authority_is_made_and_says_what_comes_next() {
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
    assert_eq!((&again["new"], &again["pin"]), (&json!(false), &second["pin"]), "the same one is shown");
    let text = sites.done("east", "intermediate --cluster third");
    let warning =
        "third and east, second are one security domain: each can sign every identity of east.example";
    assert!(text.contains(warning), "{text}");

    let which = sites.refused("east", "issue --spiffe spiffe://east.example/ns/a/sa/b");
    assert!(which.contains("say which with --cluster: east, second, third"), "{which}");
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
    assert!(taken.contains("a-b is the leaf of spiffe://east.example/ns/a/sa/b already"), "{taken}");
}

#[test]
fn a_file_is_shown_with_its_chain_identity_and_time_left() {
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
    assert!(text.contains("--bundles DIR tells whether it would be believed"), "{text}");
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
    assert!(text.contains("a peer would object: spiffe://west.example/ns/test/sa/below"), "{text}");
}

#[test]
fn wrong_words_are_2_and_everything_else_that_is_wrong_is_1() {
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
        ("inspect absent", "absent", "not HOST:PORT"),
        ("issue --spiffe spiffe://east.example/x --dns a/b", "\"a/b\"", "write one such as web.example"),
        ("issue --spiffe spiffe://east.example/x --name ../x", "\"../x\"", "start with a letter or digit"),
        ("issue --spiffe spiffe://east.example/x --cluster no", "\"no\"", "intermediate --cluster no"),
        ("issue --spiffe spiffe://east.example/x --ttl 2years", "2years", "end before the authority does"),
        (
            "issue --spiffe spiffe://east.example --name x",
            "spiffe://east.example",
            "such as /ns/NAMESPACE/sa/ACCOUNT",
        ),
        ("intermediate --cluster ../x", "\"../x\"", "start with a letter or digit"),
        ("bundle add absent --trust-domain w.example", "absent", "No such file"),
        ("bundle --for pem --trust-domain w.example", "w.example", "`isthmus-certs bundle` lists them"),
        ("deny add nonsense", "\"nonsense\"", "no serial number (hexadecimal)"),
        ("deny remove spiffe://east.example/x", "spiffe://east.example/x", "`isthmus-certs deny` prints it"),
    ] {
        let why = sites.refused("east", words);
        assert!(why.contains(names) && why.contains(remedy), "{words}: {why}");
    }
}

// ---- what stands on disk

#[test]
fn keys_are_for_their_owner_only_and_stand_where_keys_belong() {
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
    assert_eq!(keys, 1 + 2 + 2, "a root, an intermediate by two names, two leaves");
}

#[test]
fn directories_are_for_their_owner_only_whatever_the_umask() {
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
fn an_intermediate_has_the_files_of_istio_and_of_cert_manager_and_no_other() {
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
fn an_authority_is_not_overwritten_unless_forced() {
    let sites = Sites::new();
    sites.found("east");
    sites.write("east/notes.txt", "an operator's own");
    let before = snapshot(&sites.path("east"));
    let why = sites.refused("east", "init --trust-domain other.example");
    assert!(why.contains("authority in east already") && why.contains("--force"), "{why}");
    assert!(snapshot(&sites.path("east")) == before, "nothing is changed");
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
    assert_eq!(sites.read("east/notes.txt"), "an operator's own", "what is not its own stays");
    assert_eq!(sites.json("east", "bundle")["bundles"].as_array().unwrap().len(), 1);
}

#[test]
fn a_root_key_is_not_overwritten_even_where_the_state_is_lost() {
    let sites = Sites::new();
    sites.done("east", "init --trust-domain east.example");
    let key = sites.read("east/roots/1/root-key.pem");
    fs::remove_file(sites.path("east/authority.json")).unwrap();
    let _whichever = sites.run("east", "init --trust-domain east.example");
    assert_eq!(sites.read("east/roots/1/root-key.pem"), key, "without --force");
}

#[test]
fn files_of_others_beside_a_leaf_are_left_alone() {
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
fn a_place_that_cannot_be_written_is_named_with_a_remedy() {
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
        skip!("another user's directory needs root");
    }
    fs::set_permissions(sites.folder(), Permissions::from_mode(0o755)).unwrap();
    let why = as_nobody(&sites, "init --trust-domain east.example --out theirs");
    assert!(why.contains("theirs") && why.contains("must exist and be writable"), "{why}");
    assert!(why.contains("Permission denied"), "{why}");
}

/// What the command line tells a user without privilege, in a directory that is not theirs.
#[track_caller]
fn as_nobody(sites: &Sites, words: &str) -> String {
    let copy = sites.path("isthmus-certs");
    if !copy.exists() {
        fs::copy(binary::certs(), &copy).unwrap();
    }
    let user = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups {} {words}", copy.display());
    let output = sites.other("setpriv", &user).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn an_authority_that_may_not_be_read_is_not_said_to_be_absent() {
    if !is_root() {
        skip!("another user's directory needs root");
    }
    let sites = Sites::new();
    sites.done("east", "init --trust-domain east.example");
    fs::set_permissions(sites.folder(), Permissions::from_mode(0o755)).unwrap();
    let why = as_nobody(&sites, "status --dir east");
    assert!(why.contains("Permission denied") && !why.contains("there is no authority"), "{why}");
}

// ---- inspect, live

/// An OpenSSL server that asks for client certificates as the words say.
fn s_server(sites: &Sites, words: &str) -> (Peer, SocketAddr) {
    let leaf = "-cert east/leaves/below/tls.crt -key east/leaves/below/tls.key -cert_chain east/clusters/east/ca-cert.pem";
    let words = format!("--pdeathsig=KILL openssl s_server -accept 127.0.0.1:0 -rev {leaf} {words}");
    let mut server = Peer::start(sites.other("setpriv", &words).stderr(Stdio::null()));
    let address = server.find("ACCEPT ").parse().unwrap();
    (server, address)
}

#[test]
fn a_live_endpoint_is_inspected_through_the_gateway() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let ours = sites.serve("east", "below", &id("east", "direct"));
    let mut services = service("ours.example", &[], &[ours.address]);
    let mut servers = Vec::new();
    let roots = "-CAfile east/roots/1/root-cert.pem -verify_return_error";
    let kinds = [("not_asked", ""), ("asked", "-verify 1"), ("demanded", "-Verify 1")];
    let versions = [("tls1_2", "TLSv1_2"), ("tls1_3", "TLSv1_3")];
    for (kind, words) in kinds {
        for (version, _) in versions {
            let (server, address) = s_server(&sites, &format!("{roots} {words} -{version}"));
            let host = format!("{}.{}.example", kind.replace('_', "-"), version.replace('_', "-"));
            services += &service(&host, &[], &[address]);
            servers.push(server);
        }
    }
    let gateway = Setup::new(services).start();
    let at = gateway.address();
    let look = |sni: &str| sites.json("", &format!("inspect {at} --sni {sni} --bundles east/bundles"));
    for (kind, _) in kinds {
        for (version, shown) in versions {
            let host = format!("{}.{}.example", kind.replace('_', "-"), version.replace('_', "-"));
            let seen = look(&host);
            let endpoint = json!({ "version": shown, "alpn": null, "client_certificate": kind });
            assert_eq!(seen["endpoint"], endpoint, "{host}");
            assert_eq!(seen["chain"][0]["uris"], json!([id("east", "below")]), "{host}");
            assert_eq!(
                (seen["chain"].as_array().unwrap().len(), &seen["objections"]),
                (2, &json!([])),
                "{host}"
            );
        }
    }
    assert_eq!(look("ours.example")["endpoint"]["client_certificate"], "demanded");
    let text = sites.done("", &format!("inspect {at} --sni ours.example --bundles west/bundles"));
    assert!(text.contains("TLSv1_3; the endpoint demands a client certificate"), "{text}");
    assert!(text.contains("would object to nothing"), "west believes east: {text}");
    let text = sites.done("", &format!("inspect {at} --sni not-asked.tls1-2.example"));
    assert!(text.contains("asks for no client certificate: anybody gets in"), "{text}");

    let unknown = sites.refused("", &format!("inspect {at} --sni unknown.example"));
    assert!(
        unknown.contains(&at.to_string()) && unknown.contains("does it know this name (--sni)?"),
        "{unknown}"
    );
    let bad_name = sites.refused("", &format!("inspect {at} --sni a_b..c"));
    assert!(bad_name.contains("\"a_b..c\" is no name"), "{bad_name}");
}

#[test]
fn an_endpoint_that_speaks_no_tls_or_is_not_there_is_said_to_be_so() {
    let http = Scripted::unread(|mut stream| {
        let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let sites = Sites::new();
    let plain = http.address();
    let why = sites.refused("", &format!("inspect {plain} --sni web.example"));
    assert!(why.contains(&plain.to_string()) && why.contains("is it a TLS port"), "{why}");
    let nobody = closed();
    let why = sites.refused("", &format!("inspect {nobody}"));
    assert!(why.contains(&nobody.to_string()) && why.contains("cannot be reached"), "{why}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hung_up = listener.local_addr().unwrap();
    let closing = thread::spawn(move || listener.incoming().take(2).for_each(drop));
    let why = sites.refused("", &format!("inspect {hung_up} --sni web.example"));
    assert!(why.contains("no TLS handshake"), "{why}");
    closing.join().unwrap();
}

#[test]
fn the_protocol_that_an_endpoint_chooses_is_shown() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let (_server, at) = s_server(&sites, "-alpn h2,test");
    let seen = sites.json("", &format!("inspect {at} --sni web.example --alpn nonsense,test"));
    assert_eq!(seen["endpoint"]["alpn"], "test");
    let text = sites.done("", &format!("inspect {at} --sni web.example --alpn h2"));
    assert!(text.contains("protocol h2; the endpoint"), "{text}");
}

// ---- verify

/// Judges a chain in both forms; says the reason.
#[track_caller]
fn wrong(sites: &Sites, chain: &str, words: &str, reason: &str) {
    let words = format!("verify {chain} --bundles east/bundles {words}");
    let ran = sites.run("", &format!("{words} --json"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{words}: {ran:?}"));
    assert_eq!((&said["believed"], &said["reason"]), (&json!(false), &json!(reason)), "{said}");
    let text = sites.run("", &words);
    assert_eq!(text.code, Some(1));
    let sentence = text.out.trim_end();
    assert!(sentence.starts_with(&format!("{chain}: ")), "{sentence}");
    let says_how =
        ["; ", " must ", "a SPIFFE ID starts with", " needs "].iter().any(|how| sentence.contains(how));
    assert!(says_how, "it has a remedy: {sentence}");
}

/// A leaf of east's intermediate with its chain, as these lines of an extension file say.
fn east_leaf(sites: &Sites, name: &str, extensions: &str) -> String {
    sites.forge(name, EAST, extensions);
    sites.write(&format!("{name}.pem"), sites.read(&format!("{name}.crt")) + &sites.read(EAST[0]));
    format!("{name}.pem")
}

#[test]
fn verify_believes_what_is_good_as_client_and_server() {
    let sites = Sites::federated();
    for (chain, who) in
        [("east/leaves/below", id("east", "below")), ("west/leaves/direct", id("west", "direct"))]
    {
        for role in ["", "--role client", "--role server", "--role both"] {
            let words = format!("verify {chain}/tls.crt --bundles east/bundles {role}");
            assert_eq!(sites.json("", &words), json!({ "believed": true, "id": who }));
            assert_eq!(sites.done("", &words), format!("{chain}/tls.crt: is {who}\n"));
        }
    }
    let pin = sites.json("east", "intermediate --cluster east")["pin"].as_str().unwrap().to_owned();
    let expectations =
        format!("--expect spiffe://east.example/ns/test/* --expect spiffe://x.example/y --pin {pin}");
    let words = format!("verify east/leaves/below/tls.crt --bundles east/bundles {expectations}");
    assert_eq!(sites.json("", &words)["believed"], true);
}

#[test]
fn verify_names_what_is_wrong_with_a_leaf() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let good = like_ours(&id("east", "x"));
    let control = east_leaf(&sites, "good", &good);
    assert_eq!(sites.json("", &format!("verify {control} --bundles east/bundles"))["believed"], true);
    let uri = format!("URI:{}", id("east", "x"));
    for (name, from, to, reason) in [
        ("two-uris", &*uri, &*format!("{uri},URI:spiffe://east.example/y"), "uri_names"),
        ("no-uri", &*uri, "DNS:web.example", "uri_names"),
        ("https", &*uri, "URI:https://east.example/x", "not_spiffe"),
        ("upper-case", &*uri, "URI:spiffe://EAST.example/x", "not_spiffe"),
        ("dots", &*uri, "URI:spiffe://east.example/a/../b", "not_spiffe"),
        ("no-path", &*uri, "URI:spiffe://east.example", "no_path"),
        ("authority", "CA:FALSE", "CA:TRUE", "authority_as_leaf"),
        ("signs", "digitalSignature", "digitalSignature,keyCertSign", "authority_as_leaf"),
        ("no-signature", "digitalSignature", "keyAgreement", "key_usage"),
        ("client-only", "serverAuth,clientAuth", "clientAuth", "wrong_use"),
        ("mail-only", "serverAuth,clientAuth", "emailProtection", "wrong_use"),
        (
            "unknown",
            "serverAuth,clientAuth",
            "serverAuth,clientAuth\n1.2.3.4=critical,DER:0500",
            "critical_extension",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        let chain = east_leaf(&sites, name, &good.replace(from, to));
        wrong(&sites, &chain, "", reason);
    }
    let client_only = "verify client-only.pem --bundles east/bundles --role";
    assert_eq!(sites.json("", &format!("{client_only} client"))["believed"], true, "a client it may be");
    wrong(&sites, "client-only.pem", "--role server", "wrong_use");
}

#[test]
fn verify_names_what_is_wrong_with_a_chain() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let leaf = like_ours(&id("east", "x"));
    sites.forge("forged", WEST, &leaf);
    sites.write("forged.pem", sites.read("forged.crt") + &sites.read(WEST[0]));
    wrong(&sites, "forged.pem", "", "unknown_issuer");

    let whole = sites.read("east/leaves/below/tls.crt");
    let end = whole.find("-----END").unwrap();
    sites.write("alone.pem", &whole[..end + "-----END CERTIFICATE-----\n".len()]);
    wrong(&sites, "alone.pem", "", "unknown_issuer");
    wrong(&sites, EAST[0], "", "authority_as_leaf");

    let authority =
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n";
    let below = |name: &str, signer: [&str; 2], extensions: &str| {
        // A subject of its own, so that nothing is taken for another's.
        sites.write(&format!("{name}.ext"), extensions);
        let request = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        let _made =
            sites.openssl(&format!("{request} -subj /CN={name} -keyout {name}.key -out {name}.csr")).done();
        let sign = format!("x509 -req -in {name}.csr -CA {} -CAkey {} -days 1", signer[0], signer[1]);
        let _made = sites.openssl(&format!("{sign} -extfile {name}.ext -out {name}.crt")).done();
    };
    below("sub", EAST, authority);
    sites.forge("deep", ["sub.crt", "sub.key"], &leaf);
    sites.write("deep.pem", sites.read("deep.crt") + &sites.read("sub.crt") + &sites.read(EAST[0]));
    wrong(&sites, "deep.pem", "", "path_length");

    below("no-authority", EAST, &leaf);
    sites.forge("by-leaf", ["no-authority.crt", "no-authority.key"], &leaf);
    sites.write(
        "by-leaf.pem",
        sites.read("by-leaf.crt") + &sites.read("no-authority.crt") + &sites.read(EAST[0]),
    );
    wrong(&sites, "by-leaf.pem", "", "issuer_not_authority");

    let root = ["east/roots/1/root-cert.pem", "east/roots/1/root-key.pem"];
    below("constrained", root, &format!("{authority}nameConstraints=critical,permitted;URI:east.example\n"));
    sites.forge("within", ["constrained.crt", "constrained.key"], &leaf);
    sites.write("within.pem", sites.read("within.crt") + &sites.read("constrained.crt"));
    wrong(&sites, "within.pem", "", "name_constraints");

    sites.done("east", "bundle remove --trust-domain west.example");
    wrong(&sites, "west/leaves/below/tls.crt", "", "no_bundle");
}

#[test]
fn verify_names_who_is_not_meant_and_what_was_taken_back() {
    let sites = Sites::federated();
    let chain = "east/leaves/below/tls.crt";
    wrong(&sites, chain, "--expect spiffe://east.example/ns/test/sa/other", "unexpected");
    wrong(&sites, chain, "--expect spiffe://east.example/ns/tes/*", "unexpected");
    wrong(&sites, chain, "--expect spiffe://east.example/ns/test/sa/below/*", "unexpected");
    sites.done("east", "intermediate --cluster second");
    let other = sites.json("east", "intermediate --cluster second")["pin"].as_str().unwrap().to_owned();
    wrong(&sites, chain, &format!("--pin {other}"), "pin");
    let own = sites.json("", &format!("inspect {chain}"))["chain"][0]["pin"].as_str().unwrap().to_owned();
    wrong(&sites, chain, &format!("--pin {own}"), "pin");

    sites.done("east", &format!("deny add {}", id("east", "below")));
    wrong(&sites, chain, "--deny east/deny", "denied");
    assert_eq!(
        sites.json("", &format!("verify {chain} --bundles east/bundles"))["believed"],
        true,
        "without the list"
    );
    sites.done("east", &format!("deny remove {}", id("east", "below")));
    assert_eq!(
        sites.json("", &format!("verify {chain} --bundles east/bundles --deny east/deny"))["believed"],
        true
    );

    sites.done("east", "issue --spiffe spiffe://east.example/short --name short --ttl 1s --cluster east");
    let short = "verify east/leaves/short/tls.crt --bundles east/bundles";
    until("it has expired", || sites.run("", short).code == Some(1));
    wrong(&sites, "east/leaves/short/tls.crt", "", "expired");
}

/// What `openssl ca` needs to know.
const CA: &str = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n\
                  unique_subject=no\npolicy=any\ncrlnumber=crlnumber\n[any]\ncommonName=optional\n";

#[test]
fn verify_reads_revocation_lists_that_openssl_makes() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    sites.write("ca.cnf", CA);
    sites.write("index", "");
    sites.write("serial", "0a0b");
    sites.write("crlnumber", "01");
    fs::create_dir(sites.path("crls")).unwrap();
    let ca = format!("ca -batch -config ca.cnf -cert {} -keyfile {}", EAST[0], EAST[1]);
    let list = |words: &str| {
        sites.write("crls/east.example.pem", "");
        let _made = sites.openssl(&format!("{ca} -gencrl {words} -out crls/east.example.pem")).done();
    };
    let chain = "east/leaves/below/tls.crt";
    let verify = format!("verify {chain} --bundles east/bundles --crls crls");
    list("-crldays 7");
    assert_eq!(sites.json("", &verify)["believed"], true, "nothing is revoked yet");
    let budget = sites.refused("", &format!("{verify} --outage-budget 8days"));
    assert!(budget.contains("crls/east.example.pem: ") && budget.contains("lives for 7days"), "{budget}");
    assert!(budget.contains("a later nextUpdate, or lower the outage budget"), "{budget}");
    assert_eq!(sites.json("", &format!("{verify} --outage-budget 6days"))["believed"], true);

    let _revoked = sites.openssl(&format!("{ca} -revoke {chain}")).done();
    list("-crldays 7");
    wrong(&sites, chain, "--crls crls", "revoked");
    let other = "verify east/leaves/direct/tls.crt --bundles east/bundles --crls crls";
    assert_eq!(sites.json("", other)["believed"], true, "an authority without a list has revoked nothing");

    list("-crlsec 1");
    until("the list is stale", || sites.run("", &format!("{verify} --json")).out.contains("crl_stale"));
    wrong(&sites, chain, "--crls crls", "crl_stale");
    wrong(&sites, chain, "--crls crls --stale-crl accept", "revoked");

    sites.write("crls/east.example.pem", "no list\n");
    let why = sites.refused("", &verify);
    assert!(why.contains("crls/east.example.pem: ") && why.contains("X509 CRL"), "{why}");
}

#[test]
fn verify_names_a_leaf_whose_time_has_not_come() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    sites.write("ca.cnf", CA);
    sites.write("index", "");
    sites.write("serial", "0a0b");
    sites.forge("later", EAST, &like_ours(&id("east", "x")));
    let dates = "-startdate 20980101000000Z -enddate 20990101000000Z";
    let ca = format!("ca -batch -notext -config ca.cnf -cert {} -keyfile {}", EAST[0], EAST[1]);
    let _made =
        sites.openssl(&format!("{ca} -in later.csr -out later.crt -extfile later.ext {dates}")).done();
    sites.write("later.pem", sites.read("later.crt") + &sites.read(EAST[0]));
    wrong(&sites, "later.pem", "", "not_yet_valid");
}

// ---- bundles

#[test]
fn bundles_are_made_added_printed_and_removed() {
    let sites = Sites::new();
    for site in ["east", "west"] {
        sites.found(site);
    }
    let made = "bundle make west/roots/1/root-cert.pem --trust-domain west.example --sequence 7";
    let document: Value = serde_json::from_str(&sites.done("", made)).unwrap();
    assert_eq!((&document["spiffe_sequence"], &document["keys"][0]["use"]), (&json!(7), &json!("x509-svid")));
    assert_eq!(
        (&document["keys"][0]["kty"], document["keys"][0]["x5c"].as_array().unwrap().len()),
        (&json!("EC"), 1)
    );
    let text = sites.done("", &format!("{made} --out west.json"));
    assert_eq!(text, "wrote the bundle to west.json\n");
    let added = sites.json("east", "bundle add west.json --trust-domain west.example");
    assert_eq!((&added["trust_domain"], &added["sequence"]), (&json!("west.example"), &json!(7)));
    let text = sites.done("east", "bundle add west.json --trust-domain west.example");
    assert_eq!(text, "believes 1 root(s) of west.example, sequence 7\n", "the same again changes nothing");

    let both = sites.json("east", "bundle");
    let domains: Vec<&Value> =
        both["bundles"].as_array().unwrap().iter().map(|one| &one["trust_domain"]).collect();
    assert_eq!(domains, ["east.example", "west.example"], "side by side, one's own first");
    let text = sites.done("east", "bundle");
    assert!(text.contains("TRUST DOMAIN") && text.contains("west.example  7"), "{text}");
    let one = sites.json("east", "bundle --trust-domain west.example");
    assert_eq!(one["bundles"].as_array().unwrap().len(), 1);
    assert_eq!(
        sites.done("east", "bundle --for pem --trust-domain west.example"),
        sites.read("west/roots/1/root-cert.pem")
    );
    assert_eq!(sites.done("east", "bundle --for pem"), sites.read("east/roots/1/root-cert.pem"));
    let spiffe = sites.json("east", "bundle --for spiffe --trust-domain west.example");
    assert_eq!((&spiffe["spiffe_sequence"], &spiffe["keys"]), (&json!(7), &document["keys"]));

    let removed = sites.json("east", "bundle remove --trust-domain west.example");
    assert_eq!(removed, json!({ "removed": "west.example" }));
    let again = sites.refused("east", "bundle remove --trust-domain west.example");
    assert!(again.contains("no bundle of west.example"), "{again}");
    let text = {
        sites.done("east", "bundle add west/roots/1/root-cert.pem --trust-domain west.example");
        sites.done("east", "bundle remove --trust-domain west.example")
    };
    assert_eq!(text, "no longer believes anybody of west.example\n");
}

#[test]
fn a_bundles_sequence_rises_and_an_older_one_never_replaces_it() {
    let sites = Sites::federated();
    let sequence = || sites.json("east", "bundle --for spiffe")["spiffe_sequence"].as_u64().unwrap();
    let first = sequence();
    sites.done("east", "rotate");
    assert_eq!(sequence(), first, "nothing changed");
    sites.done("east", "rotate --root");
    assert!(sequence() > first, "a new root is believed");

    let make =
        "bundle make west/roots/1/root-cert.pem --trust-domain west.example --out made.json --sequence";
    sites.done("", &format!("{make} 99999999999"));
    sites.done("east", "bundle add made.json --trust-domain west.example");
    sites.done("", &format!("{make} 99999999998"));
    let before = snapshot(&sites.path("east"));
    let why = sites.refused("east", "bundle add made.json --trust-domain west.example");
    assert!(why.contains("99999999998") && why.contains("99999999999 is here"), "{why}");
    assert!(why.contains("`bundle remove`"), "{why}");
    let pem = sites.refused("east", "bundle add west/roots/1/root-cert.pem --trust-domain west.example");
    assert!(pem.contains("sequence 0"), "a PEM file has no number, and is the oldest: {pem}");
    assert!(snapshot(&sites.path("east")) == before, "nothing is changed");
}

#[test]
fn bundles_of_ones_own_domain_and_of_wrong_ones_are_refused() {
    let sites = Sites::federated();
    sites.done("east", "bundle --for spiffe --out own.json");
    for words in
        ["bundle add own.json --trust-domain east.example", "bundle remove --trust-domain east.example"]
    {
        let why = sites.refused("east", words);
        assert!(why.contains("east.example is this authority's own domain"), "{why}");
    }
    let before = snapshot(&sites.path("east"));
    for file in ["west.json", "west/roots/1/root-cert.pem"] {
        let why = sites.refused("east", &format!("bundle add {file} --trust-domain north.example"));
        assert!(
            why.contains(&format!("{file}: ")) && why.contains("says that it is of spiffe://west.example"),
            "{why}"
        );
    }
    let leaf = sites.refused("east", "bundle add west/leaves/direct/tls.crt --trust-domain west.example");
    assert!(
        leaf.contains("west/leaves/direct/tls.crt: ") && leaf.contains("give the root, not a leaf"),
        "{leaf}"
    );
    let made = sites.refused("", "bundle make west/roots/1/root-cert.pem --trust-domain north.example");
    assert!(made.contains("says that it is of spiffe://west.example"), "{made}");
    for (name, text, what) in [
        ("empty.json", "", "no certificate"),
        ("half.json", "{\"keys\": [", "not a SPIFFE bundle"),
        ("none.json", "{\"keys\": []}", "no X.509 authority"),
        ("key.pem", &*sites.read("west/roots/1/root-key.pem"), "no certificate"),
        ("noise.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
    ] {
        sites.write(name, text);
        let why = sites.refused("east", &format!("bundle add {name} --trust-domain north.example"));
        assert!(why.contains(&format!("{name}: ")) && why.contains(what), "{why}");
    }
    assert!(snapshot(&sites.path("east")) == before, "nothing is changed");
}

// ---- deny-lists

#[test]
fn identities_and_serial_numbers_are_denied_and_taken_off_again() {
    let sites = Sites::federated();
    let leaf = "east/leaves/below/tls.crt";
    let number = serial(&sites, leaf);
    let mut last = 0;
    let mut rises = |list: &Value| {
        let sequence = list["sequence"].as_u64().unwrap();
        assert!(sequence > last, "{list}");
        last = sequence;
    };
    let list = sites.json("east", &format!("deny add {} {leaf}", id("east", "gone")));
    assert_eq!(list["identities"], json!([id("east", "gone")]));
    assert_eq!(list["serials"][0]["serial"], json!(number));
    let ends = sites.json("", &format!("inspect {leaf}"))["chain"][0]["not_after"].clone();
    assert_eq!(list["serials"][0]["until"], ends, "forgotten when it has expired");
    rises(&list);
    let list = sites.json("east", "deny add spiffe://east.example/ns/bad/* 4F:1B");
    assert_eq!(list["serials"].as_array().unwrap().len(), 2);
    assert!(list["serials"].to_string().contains("4f1b"), "as inspect prints it: {list}");
    rises(&list);
    wrong(&sites, leaf, "--deny east/deny", "denied");
    sites.done("east", "issue --spiffe spiffe://east.example/ns/bad/sa/x --name bad");
    wrong(&sites, "east/leaves/bad/tls.crt", "--deny east/deny", "denied");
    let text = sites.done("east", "deny");
    for shown in
        ["spiffe://east.example/ns/bad/*", &*id("east", "gone"), &*format!("serial {number}"), "serial 4f1b"]
    {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    let lists = sites.json("east", "deny --trust-domain east.example");
    assert_eq!((lists["lists"].as_array().unwrap().len(), &lists["lists"][0]), (1, &list));

    let renewed = sites.json("east", "rotate");
    assert!(
        renewed["done"].to_string().contains("\"leaf\":\"below\""),
        "a denied serial is replaced: {renewed}"
    );
    assert_ne!(serial(&sites, leaf), number);
    assert_eq!(
        sites.json("", &format!("verify {leaf} --bundles east/bundles --deny east/deny"))["believed"],
        true
    );

    let text = sites.done("east", "deny remove 4f1b spiffe://east.example/ns/bad/*");
    assert!(text.contains("1 identities and 1 serial numbers"), "{text}");
    let before = snapshot(&sites.path("east/deny"));
    let why = sites.refused("east", "deny remove 4f1b");
    assert!(why.contains("not on the deny-list: 4f1b"), "{why}");
    assert!(snapshot(&sites.path("east/deny")) == before);
}

#[test]
fn a_federated_deny_list_is_taken_over_if_its_domain_signed_it_and_it_is_not_old() {
    let sites = Sites::federated();
    sites.done("west", &format!("deny add {}", id("west", "below")));
    sites.write("first.json", sites.read("west/deny/west.example.json"));
    sites.done("west", "deny add 0a0b");
    sites.write("second.json", sites.read("west/deny/west.example.json"));
    let take = |file: &str| format!("deny take {file} --trust-domain west.example");
    assert_eq!(sites.json("", "verify west/leaves/below/tls.crt --bundles east/bundles")["believed"], true);
    sites.done("east", &take("first.json"));
    wrong(&sites, "west/leaves/below/tls.crt", "--deny east/deny", "denied");
    let list = sites.json("east", &take("second.json"));
    assert_eq!(
        (&list["identities"], &list["serials"][0]["serial"]),
        (&json!([id("west", "below")]), &json!("0a0b"))
    );

    let before = snapshot(&sites.path("east"));
    let old = sites.refused("east", &take("first.json"));
    assert!(old.contains("an old list never replaces a newer one"), "{old}");
    sites.done("east", "deny add 0c");
    sites.write("ours.json", sites.read("east/deny/east.example.json"));
    let forged = sites.refused("east", &take("ours.json"));
    assert!(forged.contains("not signed by an authority of its bundle"), "{forged}");
    let altered = sites.read("second.json").replacen("\"payload\": \"ey", "\"payload\": \"eZ", 1);
    assert_ne!(altered, sites.read("second.json"));
    sites.write("altered.json", altered);
    let forged = sites.refused("east", &take("altered.json"));
    assert!(forged.contains("not signed by an authority of its bundle"), "{forged}");
    sites.write("noise.json", "{\"payloadType\": 1");
    let noise = sites.refused("east", &take("noise.json"));
    assert!(noise.contains("deny-list cannot be read"), "{noise}");
    let own = sites.refused("east", "deny take ours.json --trust-domain east.example");
    assert!(own.contains("own domain"), "{own}");
    let unknown = sites.refused("east", "deny take second.json --trust-domain north.example");
    assert!(unknown.contains("no bundle of north.example"), "{unknown}");
    let list = sites.path("east/deny/west.example.json");
    assert_eq!(snapshot(&sites.path("east"))[&list], before[&list], "the newer one stays");
}

#[test]
fn a_domain_that_is_no_longer_believed_leaves_nothing_that_breaks_verification() {
    let sites = Sites::federated();
    sites.done("west", "deny add 0a");
    sites.done("east", "deny take west/deny/west.example.json --trust-domain west.example");
    sites.done("east", "bundle remove --trust-domain west.example");
    let own = sites.json("", "verify east/leaves/below/tls.crt --bundles east/bundles --deny east/deny");
    assert_eq!(own["believed"], true);
}

// ---- rotation

#[test]
fn a_pass_does_what_is_due_and_nothing_else() {
    let sites = Sites::federated();
    let before = snapshot(&sites.path("east"));
    let pass = sites.json("east", "rotate");
    assert_eq!((&pass["done"], &pass["problems"]), (&json!([]), &json!([])));
    assert!(pass["next"].is_string());
    assert!(sites.done("east", "rotate").starts_with("nothing was due\nnext: "));
    assert!(snapshot(&sites.path("east")) == before);

    sites.done("east", "issue --spiffe spiffe://east.example/short --name short --ttl 2s --dns a.example");
    let first = serial(&sites, "east/leaves/short/tls.crt");
    let direct = serial(&sites, "east/leaves/direct/tls.crt");
    until("it is renewed", || {
        let done = sites.json("east", "rotate")["done"].clone();
        assert!(done == json!([]) || done == json!([{ "done": "leaf_renewed", "leaf": "short" }]), "{done}");
        serial(&sites, "east/leaves/short/tls.crt") != first
    });
    let renewed = sites.json("", "inspect east/leaves/short/tls.crt");
    assert_eq!(renewed["chain"][0]["dns"], json!(["a.example"]), "the same leaf, but for its time");
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
fn what_cannot_be_done_is_named_and_the_rest_is_done() {
    let sites = Sites::federated();
    fs::rename(sites.path("east/roots/1/root-key.pem"), sites.path("safe.pem")).unwrap();
    for leaf in ["direct", "below"] {
        fs::remove_file(sites.path(&format!("east/leaves/{leaf}/tls.crt"))).unwrap();
    }
    let pass = sites.run("east", "rotate");
    assert_eq!(pass.code, Some(1), "{pass:?}");
    assert!(pass.out.contains("renewed leaf below"), "its signer is here: {pass:?}");
    assert!(pass.err.contains("east/roots/1/root-key.pem: the key is not here; bring it back"), "{pass:?}");
    assert!(sites.path("east/leaves/below/tls.crt").exists());
    let again = sites.run("east", "rotate --json");
    assert_eq!(again.code, Some(1));
    let told: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(told["done"], json!([]));
    assert_eq!(told["problems"].as_array().unwrap().len(), 1, "{told}");
    assert!(told["problems"][0].as_str().unwrap().contains("root-key.pem"), "{told}");
    fs::rename(sites.path("safe.pem"), sites.path("east/roots/1/root-key.pem")).unwrap();
    assert!(sites.done("east", "rotate").contains("renewed leaf direct"));
    assert!(sites.done("east", "rotate").contains("nothing was due"));
}

#[test]
fn status_says_what_there_is_and_where_a_roll_over_is() {
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
    assert!(text.contains("root 1 signs; no roll-over is under way"), "{text}");

    let begun = sites.done("east", "rotate --root");
    assert!(begun.starts_with("root roll-over: begun\n"), "{begun}");
    let status = sites.json("east", "status");
    assert_eq!((&status["rollover"]["step"], &status["trusted_roots"]), (&json!("trusted"), &json!([1, 2])));
    let text = sites.done("east", "status");
    assert!(text.contains("the new root is trusted, and not used yet"), "{text}");
    assert!(
        text.contains("next: sign all anew with the new root, at ") && text.contains("(in 6days"),
        "{text}"
    );
    assert!(sites.done("east", "rotate --root").contains("under way already"));
}

/// A `rotate --watch` that ends with the test.
struct Watching(std::process::Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn a_watch_renews_while_it_runs_and_ends_in_order() {
    let sites = Sites::federated();
    sites.done("east", "issue --spiffe spiffe://east.example/short --name short --ttl 2s");
    for signal in [Signal::TERM, Signal::INT] {
        let watch = sites.command("east", "rotate --watch").stdout(Stdio::piped()).spawn();
        let mut watch = Watching(watch.unwrap());
        let mut leaves = BTreeSet::new();
        until("it has renewed twice", || {
            leaves.insert(serial(&sites, "east/leaves/short/tls.crt"));
            leaves.len() > 2
        });
        // Other commands work beside it.
        assert_eq!(sites.json("east", "status")["trust_domain"], "east.example");
        kill_process(Pid::from_child(&watch.0), signal).unwrap();
        let mut out = String::new();
        watch.0.stdout.as_mut().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(watch.0.wait().unwrap().code(), Some(0), "{out}");
        assert!(out.matches("renewed leaf short").count() >= 2, "{out}");
    }
}

#[test]
fn what_is_refused_does_not_prolong_a_roll_over() {
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

// ---- bad input

#[test]
fn a_state_that_is_damaged_is_named_and_left_alone() {
    let sites = Sites::federated();
    let good = sites.read("east/authority.json");
    let bad = [1, good.len() / 3, good.len() / 2, good.len() - 3].map(|end| good.as_bytes()[..end].to_vec());
    let noise =
        [b"".to_vec(), b"null".to_vec(), b"\xff\xfe\x00".to_vec(), good.replace("p256", "rsa").into_bytes()];
    for text in bad.into_iter().chain(noise) {
        sites.write("east/authority.json", &text);
        for words in [
            "status",
            "rotate",
            "issue --spiffe spiffe://east.example/x",
            "bundle",
            "deny add 0a",
            "intermediate --cluster x",
        ] {
            let why = sites.refused("east", words);
            assert!(why.starts_with("east/authority.json: "), "{words}: {why}");
        }
        let again = sites.refused("east", "init --trust-domain east.example");
        assert!(again.contains("already"), "{again}");
        assert_eq!(fs::read(sites.path("east/authority.json")).unwrap(), text, "it is left as it is");
    }
    sites.write("east/authority.json", &good);
    assert_eq!(sites.json("east", "rotate")["done"], json!([]), "put back, it is as it was");
}

#[test]
fn a_damaged_file_is_named() {
    let sites = Sites::federated();
    let noise = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    for (file, text, words) in [
        ("east/bundles/west.example.json", "{", "bundle"),
        ("east/bundles/west.example.json", "{}", "verify east/leaves/below/tls.crt --bundles east/bundles"),
        ("east/roots/1/root-cert.pem", "none", "intermediate --cluster new"),
        ("east/roots/1/root-cert.pem", "none", "rotate"),
        ("east/roots/1/root-key.pem", "none", "intermediate --cluster new"),
        ("east/clusters/east/ca-key.pem", "none", "issue --spiffe spiffe://east.example/x"),
        ("east/clusters/east/ca-cert.pem", noise, "issue --spiffe spiffe://east.example/x"),
        ("chain.pem", "none", "inspect chain.pem"),
        ("chain.pem", "none", "verify chain.pem --bundles east/bundles"),
        ("chain.pem", "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n", "inspect chain.pem"),
    ] {
        let good = fs::read(sites.path(file)).ok();
        sites.write(file, text);
        let why = sites.refused("east", words);
        let named = file.rsplit_once('/').map_or(file, |(folder, _)| folder);
        assert!(why.contains(named), "{words}: {why}");
        if let Some(good) = good {
            sites.write(file, good);
        }
    }
    sites.write("malformed.pem", noise);
    wrong_form(&sites, "malformed.pem");
    assert_eq!(sites.json("east", "rotate")["problems"], json!([]), "put back, all is as it was");
}

#[track_caller]
fn wrong_form(sites: &Sites, chain: &str) {
    let ran = sites.run("", &format!("verify {chain} --bundles east/bundles --json"));
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["reason"], "malformed", "{ran:?}");
}

#[test]
fn a_certificate_that_cannot_be_read_is_named_by_its_file() {
    let sites = Sites::new();
    sites.write("chain.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    let why = sites.refused("", "inspect chain.pem");
    assert!(why.starts_with("chain.pem: "), "{why}");
}

/// Names that would colour, ring and overwrite, in every field that is shown.
const ESCAPES: &str = "\u{1b}[31mred\u{7}\u{8}";

/// A root of somebody who wants the terminal.
fn evil(sites: &Sites) {
    let request =
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout evil.key -out evil.pem -days 1";
    let names = format!(
        "-subj /CN=a{ESCAPES}/O=b{ESCAPES} -addext subjectAltName=URI:spiffe://c{ESCAPES},DNS:d{ESCAPES}"
    );
    let _made = sites.openssl(&format!("{request} {names}")).done();
}

#[track_caller]
fn assert_harmless(sites: &Sites, words: &str) {
    let ran = sites.run("east", words);
    for text in [&ran.out, &ran.err] {
        let raw: String = text.chars().filter(|c| c.is_control() && *c != '\n').collect();
        assert!(raw.is_empty(), "{words}: {:?}", text);
    }
    assert!(!(ran.out + &ran.err).is_empty());
}

#[test]
fn what_a_certificate_says_never_reaches_the_terminal_raw() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    evil(&sites);
    let seen = sites.json("", "inspect evil.pem");
    let subject = seen["chain"][0]["subject"].as_str().unwrap();
    assert!(subject.contains("\\u{1b}[31mred\\u{7}"), "it is there: {seen}");
    sites.forge("leaf", EAST, &like_ours(&format!("spiffe://east.example/{ESCAPES}")));
    sites.write("leaf.pem", sites.read("leaf.crt") + &sites.read(EAST[0]));
    for json in ["", "--json"] {
        for words in [
            "inspect evil.pem",
            "verify evil.pem --bundles east/bundles",
            "inspect leaf.pem --bundles east/bundles",
            "verify leaf.pem --bundles east/bundles",
            "deny add evil.pem",
        ] {
            assert_harmless(&sites, &format!("{words} {json}"));
        }
    }
    let own = "-cert evil.pem -key evil.key";
    let words = format!("--pdeathsig=KILL openssl s_server -accept 127.0.0.1:0 -rev {own}");
    let mut server = Peer::start(sites.other("setpriv", &words).stderr(Stdio::null()));
    let address = server.find("ACCEPT ");
    assert_harmless(&sites, &format!("inspect {address} --sni web.example"));
}

#[test]
fn what_a_root_says_never_reaches_the_terminal_raw_in_an_error() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    evil(&sites);
    assert_harmless(&sites, "bundle add evil.pem --trust-domain north.example");
    assert_harmless(&sites, "bundle make evil.pem --trust-domain north.example");
    sites.write("east/bundles/north.example.pem", sites.read("evil.pem"));
    assert_harmless(&sites, "verify east/leaves/below/tls.crt --bundles east/bundles");
}
