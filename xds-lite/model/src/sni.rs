//! Istio's name for one port of a host, `outbound_.PORT_._.HOST`.

/// Splits such a name into host and port; any other name is returned as it is. A name with a subset between
/// the last two underscores, or with a port that could be written shorter, is an ordinary name: one port has
/// one name.
#[must_use]
pub fn split(name: &str) -> (&str, Option<u16>) {
    let parsed = name
        .strip_prefix("outbound_.")
        .filter(|rest| !rest.starts_with('0'))
        .and_then(|rest| rest.split_once("_._."));
    match parsed.and_then(|(port, host)| Some((host, port.parse::<u16>().ok()?))) {
        Some((host, port)) => (host, Some(port)),
        None => (name, None),
    }
}

/// The host of a name that resembles this form but differs, by a subset or in how the number is written.
#[must_use]
pub fn host_of_other_form(name: &str) -> Option<&str> {
    let (_port, rest) = name.strip_prefix("outbound_.")?.split_once("_.")?;
    let (_subset, host) = rest.split_once("_.")?;
    split(name).1.is_none().then_some(host)
}

/// The name of a port of a host in this form.
#[must_use]
pub fn name(host: &str, port: u16) -> String {
    format!("outbound_.{port}_._.{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sni_port_has_one_form() {
        assert_eq!(split("outbound_.8080_._.web.example"), ("web.example", Some(8080)));
        assert_eq!(split(&name("web.example", 8080)), ("web.example", Some(8080)));
        let others =
            ["outbound_.01_._.web.example", "outbound_.80_.v1_.web.example", "outbound_.x_._.web.example"];
        for name in others {
            assert_eq!(host_of_other_form(name), Some("web.example"), "{name}");
        }
        for name in ["outbound_.80_._.web.example", "web.example", "outbound_.80_.web.example"] {
            assert_eq!(host_of_other_form(name), None, "{name}");
        }
        for name in [
            "web.example",
            "outbound_.8080_.v1_.web.example",
            "outbound_.08080_._.web.example",
            "outbound_.0_._.web.example",
            "outbound_.65536_._.web.example",
            "outbound_.x_._.web.example",
            "outbound.8080_._.web.example",
        ] {
            assert_eq!(split(name), (name, None));
        }
    }
}
