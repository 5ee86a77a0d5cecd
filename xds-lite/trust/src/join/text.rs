//! Serializes names, addresses and bytes for JSON: as people write them, or as base64url.

use std::fmt::Display;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

use isthmus_model::address::Target;

/// A name that is one text, such as a cluster's or a token's id.
pub(super) mod name {
    use super::*;

    pub(in crate::join) fn serialize<T: Display, S: Serializer>(name: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(name)
    }

    pub(in crate::join) fn deserialize<'de, T, D: Deserializer<'de>>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// `IP:PORT` or `NAME:PORT`.
pub(super) mod address {
    use super::*;

    pub(in crate::join) fn serialize<S: Serializer>(address: &Target, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(address)
    }

    pub(in crate::join) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Target, D::Error> {
        target(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Several addresses.
pub(super) mod addresses {
    use super::*;

    pub(in crate::join) fn serialize<S: Serializer>(all: &[Target], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(ToString::to_string))
    }

    pub(in crate::join) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Target>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| target(text).map_err(D::Error::custom)).collect()
    }
}

/// 32 bytes.
pub(super) mod bytes {
    use super::*;

    pub(in crate::join) fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(in crate::join) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let decoded = URL_SAFE_NO_PAD.decode(String::deserialize(from)?).ok();
        let bytes = decoded.and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| D::Error::custom("is not 32 bytes in base64url"))
    }
}

/// Parses an address; the error does not quote it.
pub(super) fn target(text: &str) -> Result<Target, String> {
    text.parse::<Target>().map_err(|wrong| format!("the address {}; {}", wrong.what, wrong.remedy))
}
