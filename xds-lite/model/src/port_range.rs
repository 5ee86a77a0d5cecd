//! Parses a range of ports as written in YAML, `20000-29999`.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::allotment::PlaceRange;
use crate::units::{Scalar, Wrong};

/// A range of ports, `FROM-TO`, with both ends.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[0-9]{1,5}-[0-9]{1,5}$"))]
pub struct Ports(String);

impl Scalar for Ports {
    type Value = PlaceRange<u16>;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<PlaceRange<u16>, Wrong> {
        let wrong = Wrong { what: "is not a range of ports", remedy: "write FROM-TO, such as 20000-29999" };
        let (first, last) = self.0.split_once('-').ok_or(wrong)?;
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let port = |text: &str| text.parse().ok().filter(|port: &u16| *port != 0 && is_number(text));
        let (first, last) = port(first).zip(port(last)).ok_or(wrong)?;
        if first > last {
            return Err(Wrong { what: "ends before it begins", remedy: "write the lower port first" });
        }
        Ok(PlaceRange { first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_range_is_two_ports_in_order() {
        let read = |text: &str| Ports(text.to_owned()).read();
        assert_eq!(read("20000-29999"), Ok(PlaceRange { first: 20_000, last: 29_999 }));
        assert_eq!(read("80-80").unwrap().to_string(), "80-80");
        for wrong in ["", "80", "-80", "0-80", "80-65536", "a-b", "1-2-3", "+1-2"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(read("81-80").unwrap_err().what, "ends before it begins");
    }
}
