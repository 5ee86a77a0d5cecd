//! What a run prints.

use super::*;

#[test]
fn result_is_available_as_json() {
    let world = World::new();
    let server = Server::start(world.open_config(), Does::Http);
    let report = world.measure(server.address, "--ca ca.pem --http /here?x=1 -n 10 --rate 500");
    let mut text = Vec::new();
    write_json(&mut text, &report).unwrap();
    let data: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(data["schema"], "isthmus-bench/run/1");
    assert_eq!((&data["succeeded"], &data["asked"]["rate_per_s"]), (&10.into(), &500.0.into()));
    let [operation, service] = ["operation", "service"].map(|name| &data["latency_us"][name]);
    assert_eq!((&operation["count"], &service["count"]), (&10.into(), &10.into()));
    assert!(service["p50"].as_f64() > Some(0.0) && operation["max"].as_f64() >= service["p50"].as_f64());
}

#[test]
fn usage_errors_show_the_right_form() {
    let refused = |line: &str| {
        let run = Cli::try_parse_from(["run"].into_iter().chain(line.split_whitespace()));
        match run {
            Err(error) => error.to_string(),
            Ok(cli) => format!("{:#}", cli.run.prepare().err().unwrap()),
        }
    };
    let cases = [
        ("127.0.0.1:1 --sni a.example", "--ca <PEM>"),
        ("127.0.0.1:1 --sni a.example --insecure --ca x", "cannot be used with"),
        ("127.0.0.1:1 --insecure", "add --sni NAME"),
        ("127.0.0.1:1 --insecure --sni 10.0.0.1", "not a DNS name"),
        ("127.0.0.1 --insecure --sni a.example", "HOST:PORT"),
        ("127.0.0.1:1 --insecure --sni a.example --http x", "a path such as /"),
        ("127.0.0.1:1 --insecure --sni a.example --http / --alpn h2", "remove h2"),
        ("127.0.0.1:1 --insecure --sni a.example --http / --echo 5", "cannot be used with"),
        ("127.0.0.1:1 --insecure --sni a.example --new", "--http or --echo"),
        ("127.0.0.1:1 --insecure --sni a.example --duration 0s", "above zero"),
        ("127.0.0.1:1 --insecure --sni a.example --rate 5/h", "500/s"),
        ("127.0.0.1:1 --insecure --sni a.example -c 4294967295", "ulimit"),
        ("127.0.0.1:1 --insecure --sni a.example --json /absent/x", "cannot write /absent/x"),
        ("127.0.0.1:1 --sni a.example --ca /absent/x", "/absent/x"),
        ("127.0.0.1:1 --sni a.example --ca /dev/null", "no certificate"),
        ("127.0.0.1:1 --insecure --sni a.example --cert x", "--key"),
    ];
    for (line, wanted) in cases {
        let message = refused(line);
        assert!(message.contains(wanted), "{line}: {message}");
    }
}
