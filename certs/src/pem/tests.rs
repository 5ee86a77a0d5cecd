//! PEM as people write it: every certificate of a file is read, or the file is refused with a line number.

use super::*;
use crate::{Authority, TrustDomain};

fn root() -> Authority {
    Authority::generate(TrustDomain::new("west.example").unwrap()).unwrap()
}

/// Two roots, their PEM and their DER.
fn two() -> ([String; 2], [CertificateDer<'static>; 2]) {
    let roots = [root(), root()];
    (roots.each_ref().map(Authority::certificate_pem), roots.map(|root| root.certificate().clone()))
}

fn lines(text: &str, change: impl Fn(&str) -> String) -> String {
    text.lines().map(|line| change(line) + "\n").collect()
}

#[track_caller]
fn refused(text: impl AsRef<[u8]>, line: usize, flaw: Flaw) {
    assert_eq!(certificates(text).unwrap_err(), PemError::Line { line, flaw });
}

#[test]
fn pem_joined_files_are_read_whole() {
    let ([one, two], ders) = two();
    let cut = one.trim_end();
    let texts = [
        ("in a row", format!("{one}{two}")),
        ("without a final newline", format!("{cut}{two}")),
        ("on one line", format!("{cut}{two}").replace('\n', " ")),
        ("with a byte order mark", format!("\u{feff}{one}{two}")),
        ("with a byte order mark, joined", format!("{one}\u{feff}{two}")),
        ("indented", format!("{}{two}", lines(&one, |line| format!("  \t{line}")))),
        ("with CRLF", format!("{one}{two}").replace('\n', "\r\n")),
        ("with CR", format!("{one}{two}").replace('\n', "\r")),
        ("with trailing spaces", format!("{}{two}", lines(&one, |line| format!("{line}  ")))),
        ("with the old label", format!("{}{two}", one.replace(" CERT", " X509 CERT"))),
        ("with remarks", format!("subject=CN = a: b\n---the end of it---\n{one}issuer=c\n\n{two}x")),
        ("with one left out", format!("{one}{}{two}", lines(&two, |line| format!("# {line}")))),
        ("with a key beside", format!("{}{one}{two}", root().key_pem().unwrap())),
    ];
    for (what, text) in texts {
        match certificates(&text) {
            Ok(read) => assert_eq!(read, ders, "{what}"),
            Err(error) => panic!("{what}: {error}\n{text}"),
        }
    }
    let latin1 = [b"Soci\xe9t\xe9\n", one.as_bytes(), b"\xa9\n", two.as_bytes()].concat();
    assert_eq!(certificates(latin1).unwrap(), ders);
}

#[test]
fn pem_with_a_flaw_is_refused_with_its_line() {
    let ([one, two], _) = two();
    let length = one.lines().count();
    let with = |from: &str, to: &str| format!("{one}{}", two.replacen(from, to, 1));
    refused(with("BEGIN CERT", "BEGIN TRUSTED CERT").replace("END CERT", "END TRUSTED CERT"), 1, Flaw::NoEnd);
    let trusted = two.replace(" CERT", " TRUSTED CERT");
    refused(format!("{one}{trusted}"), length + 1, Flaw::Trusted);
    let container = two.replace(" CERTIFICATE", " PKCS7");
    refused(format!("{one}{container}"), length + 1, Flaw::Container("PKCS7".to_owned()));
    let mistyped = two.replace(" CERTIFICATE", " CERTIFCATE");
    refused(format!("{one}{mistyped}"), length + 1, Flaw::Unknown("CERTIFCATE".to_owned()));
    refused(with("-----BEGIN", "----BEGIN"), length + 1, Flaw::Marker);
    refused(with("-----BEGIN", "\u{2013}BEGIN"), length + 1, Flaw::Marker);
    refused(with("CERTIFICATE-----", "CERTIFICATE----"), length + 1, Flaw::Marker);
    refused(with("BEGIN CERTIFICATE", "begin certificate"), length + 1, Flaw::Marker);
    refused(with("-----END", "----END"), 2 * length, Flaw::Marker);
    refused(with("-----BEGIN", "ca: -----BEGIN"), length + 1, Flaw::Behind);
    refused(with("-----BEGIN CERTIFICATE-----\n", ""), 2 * length - 1, Flaw::NoBegin);
    refused(with("-----END CERTIFICATE-----\n", ""), length + 1, Flaw::NoEnd);
    let cut: String = one.lines().take(length - 1).map(|line| format!("{line}\n")).collect();
    refused(format!("{cut}{two}"), 1, Flaw::NoEnd);
    refused(with("\nM", "\n\u{e9}"), length + 2, Flaw::Base64);
    refused(with("\nM", "\n# M"), length + 2, Flaw::Base64);
    refused(with("\nM", "\n"), length + 1, Flaw::Damaged);
}

#[test]
fn pem_key_file_has_exactly_one_key() {
    let root = root();
    let text = root.key_pem().unwrap();
    let der = key(text).unwrap();
    assert_eq!(encode_key(&der), text);
    assert_eq!(key([b"cl\xe9\n", text.as_bytes()].concat()).unwrap(), der, "anything may surround a block");
    assert_eq!(key(format!("{}{text}", root.certificate_pem())).unwrap(), der, "beside the certificate");
    let second = PemError::Line { line: text.lines().count() + 1, flaw: Flaw::Second(Wanted::Key) };
    assert_eq!(key(format!("{text}{text}")).unwrap_err(), second);
}

#[test]
fn pem_error_names_der_pkcs12_utf16_and_encrypted_keys() {
    let root = root();
    let (text, certificate) = (root.key_pem().unwrap(), root.certificate_pem());
    let check = |error: PemError, words: &[&str]| {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains(", 48") && text.is_ascii(), "no bytes as numbers: {text}");
    };
    check(key(key(text).unwrap().secret_der()).unwrap_err(), &["DER", "`openssl pkey -inform DER -in"]);
    check(certificates(root.certificate()).unwrap_err(), &["DER", "`openssl x509 -inform DER -in"]);
    for label in ["ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY"] {
        let headers =
            if label.starts_with("EC") { "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0A\n" } else { "" };
        let encrypted =
            text.replace("PRIVATE KEY", label).replacen("-----\n", &format!("-----{headers}\n"), 1);
        check(key(encrypted).unwrap_err(), &["encrypted", "`openssl pkey -in"]);
    }
    check(
        key(&certificate).unwrap_err(),
        &["no private key in it, but a CERTIFICATE;", "one -----BEGIN PRIVATE KEY"],
    );
    check(certificates(text).unwrap_err(), &["no certificate in it, but a PRIVATE KEY;"]);
    check(certificates("").unwrap_err(), &["no certificate in it; it must hold -----BEGIN CERTIFICATE"]);
    let utf16: Vec<u8> = certificate.encode_utf16().flat_map(u16::to_le_bytes).collect();
    check(certificates([&b"\xff\xfe"[..], &utf16].concat()).unwrap_err(), &["UTF-16", "`iconv"]);
    check(certificates(utf16).unwrap_err(), &["UTF-16"]);
    let pkcs12 = b"\x30\x82\x09\x00\x02\x01\x03\x30\x82";
    check(key(pkcs12).unwrap_err(), &["PKCS#12", "`openssl pkcs12 -in"]);
}

proptest::proptest! {
    /// Whatever is inserted between or into two roots: both are read, or the file is refused.
    #[test]
    fn pem_never_loses_a_certificate(between in "[ \\t\\r\\n#a-z-]{0,12}", place in 0..2_000_usize, byte: u8) {
        let (texts, ders) = two();
        let joined = texts.join(&between);
        if let Ok(read) = certificates(&joined) {
            proptest::prop_assert_eq!(&read[..], &ders[..]);
        }
        let mut bytes = texts.concat().into_bytes();
        let place = place % bytes.len();
        bytes[place] = byte;
        if let Ok(read) = certificates(&bytes) {
            proptest::prop_assert_eq!(read.len(), 2, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
