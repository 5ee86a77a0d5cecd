//! Finds the blocks of a PEM text, however people joined, indented or edited it. Each BEGIN is a block or an error with
//! its line; none is skipped in silence, except on lines that begin with `#`. Anything, in any encoding, may surround
//! the blocks. `pem` decodes them.

use super::{Flaw, PemError};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const RULE: &[u8] = b"-----";
/// The longest label.
const MAX_LABEL: usize = 40;

/// One block.
pub(super) struct Block<'a> {
    /// Such as `CERTIFICATE`: capitals, digits and a few signs.
    pub(super) label: &'a str,
    /// The line of its BEGIN, counted from 1.
    pub(super) line: usize,
    /// Base64, without white space.
    pub(super) body: Vec<u8>,
    /// According to its headers.
    pub(super) is_encrypted: bool,
}

/// All blocks of a text, in its order.
pub(super) fn blocks(text: &[u8]) -> Result<Vec<Block<'_>>, PemError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let (mut done, mut open) = (Vec::new(), None);
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        if open.is_some() || !line.trim_ascii_start().starts_with(b"#") {
            read_line(number, line, &mut open, &mut done)?;
        }
    }
    match open {
        Some(Block { line, .. }) => Err(Flaw::NoEnd.at(line)),
        None => Ok(done),
    }
}

/// Reads a line. Files joined without a final newline have an END and a BEGIN on one line.
fn read_line<'a>(
    number: usize,
    mut rest: &'a [u8],
    open: &mut Option<Block<'a>>,
    done: &mut Vec<Block<'a>>,
) -> Result<(), PemError> {
    while let Some(Marker { before, is, after }) = marker(rest) {
        rest = after;
        *open = match (open.take(), is) {
            (_, Is::Damaged) => return Err(Flaw::Marker.at(number)),
            (None, Is::End(_)) => return Err(Flaw::NoBegin.at(number)),
            (Some(block), Is::Begin(_)) => return Err(Flaw::NoEnd.at(block.line)),
            (Some(block), Is::End(label)) if block.label != label => return Err(Flaw::NoEnd.at(block.line)),
            (None, Is::Begin(_)) if !is_blank(before) => return Err(Flaw::Behind.at(number)),
            (None, Is::Begin(label)) => {
                Some(Block { label, line: number, body: Vec::new(), is_encrypted: false })
            }
            (Some(mut block), Is::End(_)) => {
                block.add(before, number)?;
                done.push(block);
                None
            }
        };
    }
    open.as_mut().map_or(Ok(()), |block| block.add(rest, number))
}

impl Block<'_> {
    fn add(&mut self, text: &[u8], line: usize) -> Result<(), PemError> {
        // Headers such as `Proc-Type: 4,ENCRYPTED` precede the base64.
        if self.body.is_empty() && text.contains(&b':') {
            self.is_encrypted |= text.windows(9).any(|word| word == b"ENCRYPTED");
            return Ok(());
        }
        let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
        let letters = text.iter().filter(|byte| !byte.is_ascii_whitespace());
        if !letters.clone().all(is_base64) {
            return Err(Flaw::Base64.at(line));
        }
        self.body.extend(letters);
        Ok(())
    }
}

/// The first marker of a piece of a line.
struct Marker<'a> {
    before: &'a [u8],
    is: Is<'a>,
    after: &'a [u8],
}

enum Is<'a> {
    Begin(&'a str),
    End(&'a str),
    /// Looks like a marker, but is malformed.
    Damaged,
}

fn marker(text: &[u8]) -> Option<Marker<'_>> {
    (0..text.len()).find_map(|place| {
        let (before, rest) = text.split_at_checked(place)?;
        let is_end = match rest.first()? {
            b'B' | b'b' => false,
            b'E' | b'e' => true,
            _ => return None,
        };
        let word: &[u8] = if is_end { b"END " } else { b"BEGIN " };
        let (found, rest) = rest.split_at_checked(word.len())?;
        if !found.eq_ignore_ascii_case(word) || !ends_with_dash(before) {
            return None;
        }
        let whole = before.strip_suffix(RULE).filter(|before| !before.ends_with(b"-") && found == word);
        let label = rest.windows(RULE.len()).take(MAX_LABEL + 1).position(|window| window == RULE);
        let label = label.and_then(|length| rest.split_at_checked(length));
        let label = label.and_then(|(label, after)| Some((label_of(label)?, after.strip_prefix(RULE)?)));
        match (whole, label) {
            (Some(before), Some((label, after))) if is_end => {
                Some(Marker { before, is: Is::End(label), after })
            }
            (Some(before), Some((label, after))) => Some(Marker { before, is: Is::Begin(label), after }),
            _ => is_meant(rest).then_some(Marker { before, is: Is::Damaged, after: b"" }),
        }
    })
}

/// Joined files may have the byte order mark of the second one in the middle.
fn is_blank(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).is_empty()
}

/// Hyphens, and the dashes that word processors replace them with, in UTF-8 and in Windows-1252.
fn ends_with_dash(text: &[u8]) -> bool {
    matches!(text, [.., b'-' | 0x96 | 0x97] | [.., 0xe2, 0x80, 0x90..=0x95] | [.., 0xe2, 0x88, 0x92])
}

fn label_of(text: &[u8]) -> Option<&str> {
    let is_allowed = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b" .#".contains(byte);
    let is_label = !text.is_empty() && text.len() <= MAX_LABEL && text.iter().all(is_allowed);
    str::from_utf8(text).ok().filter(|_| is_label)
}

/// Whether a damaged marker was meant as one: prose with hyphens is not.
fn is_meant(text: &[u8]) -> bool {
    let words: [&[u8]; 4] = [b"CERTIFICATE", b" KEY", b"CRL", b"PKCS"];
    let start = text.get(..MAX_LABEL).unwrap_or(text);
    words.iter().any(|word| start.windows(word.len()).any(|found| found.eq_ignore_ascii_case(word)))
}
