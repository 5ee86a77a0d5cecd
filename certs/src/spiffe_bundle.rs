//! Reads and writes the SPIFFE bundle format: a JSON Web Key Set in which each root is a key with its certificate. Only
//! X.509 authorities are read; JWT authorities are ignored.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::bundle::{Bundle, BundleError};
use crate::spiffe::TrustDomain;

const USE: &str = "x509-svid";
/// How often readers should check for a new bundle, in seconds.
const REFRESH_HINT: u64 = 300;

/// Why a text is not a usable SPIFFE bundle.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Not the JSON of a bundle.
    #[error("is not a SPIFFE bundle: {0}")]
    Json(#[from] serde_json::Error),
    /// An X.509 authority without exactly one certificate.
    #[error("is not a SPIFFE bundle: key {0} must have exactly one certificate, in x5c")]
    Certificates(usize),
    /// The bundle has no roots.
    #[error("has no X.509 authority, so no identity of its domain would be trusted; get the bundle again")]
    Empty,
    /// A certificate in it cannot be a root.
    #[error(transparent)]
    Root(#[from] BundleError),
}

#[derive(Deserialize, Serialize)]
struct Document {
    keys: Vec<Key>,
    #[serde(default)]
    spiffe_sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Deserialize, Serialize)]
struct Key {
    #[serde(rename = "use", default)]
    usage: String,
    #[serde(default)]
    x5c: Vec<String>,
    #[serde(flatten)]
    numbers: Map<String, Value>,
}

/// Reads the bundle of `domain`. The format does not name the domain: the file name does.
pub fn read(domain: &TrustDomain, text: impl AsRef<[u8]>) -> Result<Bundle, FormatError> {
    let text = text.as_ref();
    // Some editors begin UTF-8 with a byte order mark.
    let document: Document = serde_json::from_slice(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text))?;
    let mut roots = Vec::new();
    for (place, key) in document.keys.iter().enumerate().filter(|(_, key)| key.usage == USE) {
        let decoded = match key.x5c.as_slice() {
            [one] => STANDARD.decode(one).ok(),
            _ => None,
        };
        roots.push(CertificateDer::from(decoded.ok_or(FormatError::Certificates(place))?));
    }
    if roots.is_empty() {
        return Err(FormatError::Empty);
    }
    Ok(Bundle::new(domain, document.spiffe_sequence, &roots)?)
}

/// Writes a bundle.
pub fn write(bundle: &Bundle) -> Result<String, FormatError> {
    let keys = bundle.roots().iter().map(key).collect();
    let document =
        Document { keys, spiffe_sequence: bundle.sequence, spiffe_refresh_hint: Some(REFRESH_HINT) };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn key(root: &CertificateDer<'static>) -> Key {
    let parsed = X509Certificate::from_der(root);
    let numbers = parsed.map(|(_, root)| numbers(&root)).unwrap_or_default();
    Key { usage: USE.to_owned(), x5c: vec![STANDARD.encode(root)], numbers }
}

/// The JWK parameters of a root's key, for readers that do not parse certificates.
fn numbers(root: &X509Certificate<'_>) -> Map<String, Value> {
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let unsigned = |bytes: &[u8]| encoded(bytes.strip_prefix(&[0]).unwrap_or(bytes));
    let pairs = match root.public_key().parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            vec![("kty", "RSA".to_owned()), ("n", unsigned(rsa.modulus)), ("e", unsigned(rsa.exponent))]
        }
        Ok(PublicKey::EC(point)) => {
            let curve = match point.key_size() {
                384 => "P-384",
                521 => "P-521",
                _ => "P-256",
            };
            // An uncompressed point: 4, x, y.
            let (x, y) = point.data().get(1..).map(|xy| xy.split_at(xy.len() / 2)).unwrap_or_default();
            vec![("kty", "EC".to_owned()), ("crv", curve.to_owned()), ("x", encoded(x)), ("y", encoded(y))]
        }
        Ok(PublicKey::Unknown(raw)) => {
            vec![("kty", "OKP".to_owned()), ("crv", "Ed25519".to_owned()), ("x", encoded(raw))]
        }
        _ => Vec::new(),
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, ROOT_LIFETIME};
    use crate::key::KeyKind;

    #[test]
    fn spiffe_bundle_round_trips() {
        let domain = TrustDomain::new("east.example").unwrap();
        let roots = KeyKind::ALL.map(|kind| Authority::root(domain.clone(), kind, ROOT_LIFETIME).unwrap());
        let bundle = Bundle::new(&domain, 7, roots.iter().map(Authority::certificate)).unwrap();
        let text = write(&bundle).unwrap();
        assert_eq!(read(&domain, &text).unwrap(), bundle);
        let document: Value = serde_json::from_str(&text).unwrap();
        let curves: Vec<_> = document["keys"].as_array().unwrap().iter().map(|key| &key["crv"]).collect();
        assert_eq!(curves, ["P-256", "P-384", "Ed25519"]);
        assert_eq!(document["keys"][0]["x"].as_str().unwrap().len(), 43, "32 bytes");
    }

    #[test]
    fn spiffe_bundle_malformed_is_refused() {
        let domain = TrustDomain::new("east.example").unwrap();
        let jwt = r#"{"keys": [{"use": "jwt-svid", "kty": "EC"}]}"#;
        let two = r#"{"keys": [{"use": "x509-svid", "x5c": ["AAAA", "AAAA"]}]}"#;
        let leaf = r#"{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}"#;
        for (text, expected) in [
            ("", "not a SPIFFE bundle"),
            ("{}", "missing field `keys`"),
            (r#"{"keys": []}"#, "no X.509 authority"),
            (jwt, "no X.509 authority"),
            (two, "exactly one certificate"),
            (leaf, "cannot be read"),
        ] {
            let error = read(&domain, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
