//! Finds unknown fields in an encoded message. Generated code skips them, and a skipped field may have restricted
//! access.

/// The known fields of a message.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    /// Fields that are read, or without effect on passthrough.
    pub(super) plain: &'static [u32],
    /// Nested messages that are checked, too.
    pub(super) messages: &'static [(u32, &'static Shape)],
}

/// A field on the wire.
struct Field<'a> {
    number: u32,
    /// The content of a length-delimited field.
    content: Option<&'a [u8]>,
}

/// The first unknown field: `field 12 of TcpProxy`.
pub(super) fn unknown(bytes: &[u8], shape: &Shape) -> Option<String> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(field) = next(&mut rest) else { return Some(format!("a part of {}", shape.name)) };
        if shape.plain.contains(&field.number) {
            continue;
        }
        let inner = shape.messages.iter().find(|(number, _)| *number == field.number);
        let found = match (inner, field.content) {
            (Some((_, inner)), Some(content)) => unknown(content, inner),
            _ => Some(format!("field {} of {}", field.number, shape.name)),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The encoded messages of a repeated field, in order.
pub(super) fn messages(bytes: &[u8], number: u32) -> Vec<&[u8]> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while let Some(field) = next(&mut rest) {
        if field.number == number {
            found.extend(field.content);
        }
    }
    found
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<Field<'a>> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0)?;
    let content = match key & 7 {
        0 => {
            varint(rest)?;
            None
        }
        1 => {
            take(rest, 8)?;
            None
        }
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Some(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            None
        }
        // Groups: none of these messages has any.
        _ => return None,
    };
    Some(Field { number, content })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static INNER: Shape = Shape { name: "Inner", plain: &[1], messages: &[] };
    static OUTER: Shape = Shape { name: "Outer", plain: &[1, 2], messages: &[(3, &INNER), (4, &OUTER)] };

    #[test]
    fn unknown_field_is_found_at_any_depth() {
        // 1: 5, 2: "a", 3: { 1: 7 }, 4: { 3: { 1: 1 } }
        let known = [8, 5, 18, 1, b'a', 26, 2, 8, 7, 34, 4, 26, 2, 8, 1];
        assert_eq!(unknown(&known, &OUTER), None);
        assert_eq!(unknown(&[40, 1], &OUTER).as_deref(), Some("field 5 of Outer"));
        assert_eq!(unknown(&[34, 4, 26, 2, 16, 1], &OUTER).as_deref(), Some("field 2 of Inner"));
        assert_eq!(unknown(&[24, 1], &OUTER).as_deref(), Some("field 3 of Outer"), "not a message");
        assert_eq!(unknown(&[18, 9, b'a'], &OUTER).as_deref(), Some("a part of Outer"), "cut off");
        assert_eq!(messages(&known, 3), [&[8, 7]]);
    }

    proptest! {
        #[test]
        fn unknown_field_check_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (unknown(&bytes, &OUTER), messages(&bytes, 3));
        }
    }
}
