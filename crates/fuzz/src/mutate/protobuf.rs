//! Messages of Protocol Buffers, taken apart without knowing their schema: what can be read as a message is one.

use super::{Random, text};

/// Deeper than any message that is meant, and than what decoders follow.
const MAX_DEPTH: usize = 40;

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
    Fixed32([u8; 4]),
}

#[derive(Clone)]
struct Field {
    number: u64,
    value: Value,
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn parse(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            1 => {
                let (value, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Value::Fixed64(*value)
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (inside, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                let is_text = inside.iter().all(|b| (b' '..0x7f).contains(b));
                match parse(inside, depth + 1) {
                    Some(fields) if depth < MAX_DEPTH && (!is_text || inside.is_empty()) => {
                        Value::Message(fields)
                    }
                    _ => Value::Bytes(inside.to_vec()),
                }
            }
            5 => {
                let (value, rest) = bytes.split_first_chunk()?;
                bytes = rest;
                Value::Fixed32(*value)
            }
            _ => return None,
        };
        if key >> 3 == 0 {
            return None;
        }
        fields.push(Field { number: key >> 3, value });
    }
    Some(fields)
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn write(fields: &[Field], out: &mut Vec<u8>) {
    for field in fields {
        let kind = match field.value {
            Value::Varint(_) => 0,
            Value::Fixed64(_) => 1,
            Value::Bytes(_) | Value::Message(_) => 2,
            Value::Fixed32(_) => 5,
        };
        put_varint(field.number << 3 | kind, out);
        match &field.value {
            Value::Varint(value) => put_varint(*value, out),
            Value::Fixed64(value) => out.extend_from_slice(value),
            Value::Fixed32(value) => out.extend_from_slice(value),
            Value::Bytes(bytes) => {
                put_varint(bytes.len() as u64, out);
                out.extend_from_slice(bytes);
            }
            Value::Message(fields) => {
                let mut inside = Vec::new();
                write(fields, &mut inside);
                put_varint(inside.len() as u64, out);
                out.extend_from_slice(&inside);
            }
        }
    }
}

/// The fields of some message within, or of the outermost.
fn somewhere<'a>(mut fields: &'a mut Vec<Field>, random: &mut Random) -> &'a mut Vec<Field> {
    loop {
        let within: Vec<usize> =
            (0..fields.len()).filter(|at| matches!(fields[*at].value, Value::Message(_))).collect();
        if within.is_empty() || random.one_in(4) {
            return fields;
        }
        match &mut fields[*random.pick(&within)].value {
            Value::Message(inside) => fields = inside,
            _ => unreachable!("only messages were picked"),
        }
    }
}

fn change(value: &mut Value, seeds: &[Vec<u8>], pieces: &[&[u8]], random: &mut Random) {
    match value {
        Value::Varint(number) => *number = random.number(),
        Value::Fixed64(bytes) => *bytes = random.next().to_le_bytes(),
        Value::Fixed32(bytes) => *bytes = (random.number() as u32).to_le_bytes(),
        Value::Bytes(bytes) => match random.below(6) {
            0 => bytes.clear(),
            1 => *bytes = bytes.repeat(1 + random.below(300)),
            _ => text(bytes, &[], pieces, random),
        },
        Value::Message(inside) => match random.below(3) {
            0 => inside.clear(),
            1 => *value = Value::Varint(random.number()),
            // Deeper than what a decoder follows.
            _ => {
                let number = *random.pick(&[1, 2, 3, 4, 5, 6]);
                let mut nested = if random.one_in(2) {
                    inside.clone()
                } else {
                    parse(random.pick::<Vec<u8>>(seeds), 0).unwrap_or_default()
                };
                for _ in 0..random.below(130) {
                    nested = vec![Field { number, value: Value::Message(nested) }];
                }
                *inside = nested;
            }
        },
    }
}

pub(super) fn mutate(
    seed: &[u8],
    seeds: &[Vec<u8>],
    pieces: &[&[u8]],
    times: usize,
    random: &mut Random,
) -> Vec<u8> {
    let Some(mut whole) = parse(seed, 0) else {
        let mut bytes = seed.to_vec();
        text(&mut bytes, seeds, pieces, random);
        return bytes;
    };
    for _ in 0..times {
        let fields = somewhere(&mut whole, random);
        let (at, other) = (random.below(fields.len()), random.below(fields.len()));
        match random.below(10) {
            _ if fields.is_empty() => {
                let number = 1 + random.below(40) as u64;
                fields.push(Field { number, value: Value::Varint(random.number()) });
            }
            0 => drop(fields.remove(at)),
            1 => fields.insert(other, fields[at].clone()),
            2 => fields.swap(at, other),
            3 => fields[at].number = 1 + random.below(60) as u64,
            4 => {
                if let Some(mut from) = parse(random.pick::<Vec<u8>>(seeds), 0) {
                    let from = somewhere(&mut from, random);
                    if !from.is_empty() {
                        fields.insert(at, random.pick(from).clone());
                    }
                }
            }
            _ => change(&mut fields[at].value, seeds, pieces, random),
        }
    }
    let mut bytes = Vec::new();
    write(&whole, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_apart_is_put_together_again() {
        let message: &[u8] = &[
            8, 0x96, 1, 0x12, 4, 8, 1, 0x10, 2, 0x1a, 2, b'h', b'i', 0x25, 1, 2, 3, 4, 0x31, 1, 2, 3, 4, 5,
            6, 7, 8,
        ];
        let mut again = Vec::new();
        write(&parse(message, 0).unwrap(), &mut again);
        assert_eq!(again, message);
        assert!(parse(&[8], 0).is_none());
    }
}
