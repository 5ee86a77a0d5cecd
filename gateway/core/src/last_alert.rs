//! Ends a complete TLS session of the gateway's own with a fatal alert: rustls sends none of its own accord once the
//! handshake is over. The keys are taken out of the session for this one record, which rustls encrypts.

use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{
    ConnectionTrafficSecrets, ContentType, ExtractedSecrets, ProtocolVersion, SupportedCipherSuite,
};

use crate::reason::Alert;

/// The level of an alert after which nothing follows.
const FATAL: u8 = 2;

/// Returns the record to send as the session's last one; `None` for TLS 1.2.
pub(crate) fn last_record(
    suite: SupportedCipherSuite,
    secrets: ExtractedSecrets,
    alert: Alert,
) -> Option<Vec<u8>> {
    let SupportedCipherSuite::Tls13(suite) = suite else { return None };
    let (sequence, secrets) = secrets.tx;
    let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
    else {
        return None;
    };
    let mut encrypter: Box<dyn MessageEncrypter> = suite.aead_alg.encrypter(key, iv);
    let message = OutboundPlainMessage {
        typ: ContentType::Alert,
        version: ProtocolVersion::TLSv1_3,
        payload: OutboundChunks::Single(&[FATAL, alert as u8]),
    };
    Some(encrypter.encrypt(message, sequence).ok()?.encode())
}
