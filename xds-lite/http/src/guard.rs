//! Guards the admin pages against web pages of other sites, open in a browser on this machine: a request must name this
//! machine.

use std::net::{IpAddr, SocketAddr};

use hyper::Request;
use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};

/// Why a request to the address `own` is refused; none if it is allowed.
#[must_use]
pub fn refusal<B>(request: &Request<B>, own: SocketAddr) -> Option<&'static str> {
    // Browsers send the name in the address of the page, which exposes a page of another origin that points its own
    // name at this address (DNS rebinding).
    let mut hosts = values(request.headers(), HOST);
    let host = hosts.next().flatten();
    let target = request.uri().authority().map(hyper::http::uri::Authority::as_str);
    if hosts.next().is_some()
        || ![host, target.or(host)].iter().all(|name| name.is_some_and(|name| names(name, own)))
    {
        return Some(
            "the Host header or the request target names another host; use this address or localhost (web pages of other hosts are refused)",
        );
    }
    // A page of another origin can send a POST with the right Host, although it cannot read the answer. Its browser
    // then sends an Origin header; `curl` and the command line do not.
    let mut origins = values(request.headers(), ORIGIN);
    let is_own = |origin: Option<&str>| {
        origin.and_then(|origin| origin.strip_prefix("http://")).is_some_and(|host| names(host, own))
    };
    (!origins.all(is_own))
        .then_some("the Origin header names another host; only pages of this address are allowed")
}

fn values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Option<&str>> {
    headers.get_all(name).into_iter().map(|value| value.to_str().ok())
}

/// Whether `NAME`, `NAME:PORT` or an address means this machine, on the port of `own`.
fn names(host: &str, own: SocketAddr) -> bool {
    let is_ours = |ip: IpAddr| ip.is_loopback() || ip == own.ip() || own.ip().is_unspecified();
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.port() == own.port() && is_ours(address.ip());
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return is_ours(ip);
    }
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, port.parse().ok()),
        None => (host, Some(own.port())),
    };
    port == Some(own.port()) && name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_accepts_only_names_of_this_machine() {
        let own: SocketAddr = "127.0.0.1:15014".parse().unwrap();
        for host in ["127.0.0.1:15014", "localhost:15014", "LOCALHOST", "[::1]:15014", "127.0.0.1", "[::1]"] {
            assert!(names(host, own), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:15014",
            "localhost:1",
            "localhost:",
            "localhost:15014:15014",
            "127.0.0.1:1",
            "10.0.0.1:15014",
            "localhost.evil.example",
            "user@localhost",
            "[localhost]",
            "",
        ] {
            assert!(!names(host, own), "{host}");
        }
        let open: SocketAddr = "0.0.0.0:15014".parse().unwrap();
        assert!(names("10.0.0.1:15014", open) && !names("evil.example:15014", open));
    }

    #[test]
    fn guard_refuses_two_hosts_foreign_targets_and_origins() {
        let own: SocketAddr = "127.0.0.1:15014".parse().unwrap();
        let refused = |uri: &str, headers: &[(HeaderName, &str)]| {
            let mut request = Request::builder().uri(uri);
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            refusal(&request.body(()).unwrap(), own).is_some()
        };
        let here = (HOST, "localhost");
        let with = |origin| [here.clone(), (ORIGIN, origin)];
        assert!(!refused("/", std::slice::from_ref(&here)));
        assert!(!refused("http://127.0.0.1:15014/", std::slice::from_ref(&here)));
        assert!(!refused("/", &with("http://127.0.0.1:15014")));
        assert!(refused("/", &[]), "no Host");
        assert!(refused("/", &[here.clone(), here.clone()]), "two");
        assert!(refused("/", &[here.clone(), (HOST, "evil.example")]), "two that differ");
        assert!(refused("http://evil.example/", std::slice::from_ref(&here)));
        assert!(refused("http://localhost/", &[(HOST, "evil.example")]));
        for origin in ["http://evil.example", "null", "https://127.0.0.1:15014", "http://127.0.0.1:1", ""] {
            assert!(refused("/", &with(origin)), "{origin}");
        }
    }
}
