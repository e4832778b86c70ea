//! JSON: values change, what is around them stays JSON.

use serde_json::{Map, Value, json};

use super::{Random, text};

/// Some value within, or the outermost.
fn somewhere<'a>(value: &'a mut Value, random: &mut Random) -> &'a mut Value {
    let length = match &*value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if length == 0 || random.one_in(5) {
        return value;
    }
    let at = random.below(length);
    let inside = match value {
        Value::Array(list) => list.get_mut(at),
        Value::Object(map) => map.values_mut().nth(at),
        _ => None,
    };
    match inside {
        Some(inside) => somewhere(inside, random),
        None => unreachable!("it is below the length"),
    }
}

fn scalar(random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 => json!(random.number()),
        3 => json!(-(random.below(1 << 20) as i64)),
        4 => json!(1e300),
        5 => json!("x".repeat(random.below(3000))),
        6 => json!({}),
        _ => json!(""),
    }
}

fn change(value: &mut Value, seeds: &[Vec<u8>], pieces: &[&[u8]], random: &mut Random) {
    match value {
        _ if random.one_in(4) => *value = scalar(random),
        _ if random.one_in(6) => {
            if let Ok(mut other) = serde_json::from_slice::<Value>(random.pick::<Vec<u8>>(seeds)) {
                *value = somewhere(&mut other, random).take();
            }
        }
        Value::String(string) => {
            let mut bytes = std::mem::take(string).into_bytes();
            text(&mut bytes, &[], pieces, random);
            *string = String::from_utf8_lossy(&bytes).into_owned();
        }
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len());
            match random.below(3) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, list[at].clone()),
                _ => *list = vec![list[at].clone(); random.below(40)],
            }
        }
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
            let taken = map.shift_remove(&key).unwrap_or_default();
            match random.below(3) {
                0 => {}
                1 => {
                    let mut bytes = key.into_bytes();
                    text(&mut bytes, &[], pieces, random);
                    map.insert(String::from_utf8_lossy(&bytes).into_owned(), taken);
                }
                _ => *map = Map::from_iter([(key, Value::Array(vec![taken]))]),
            }
        }
        other => *other = scalar(random),
    }
}

pub(super) fn mutate(
    seed: &[u8],
    seeds: &[Vec<u8>],
    pieces: &[&[u8]],
    times: usize,
    random: &mut Random,
) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(seed) else {
        let mut bytes = seed.to_vec();
        text(&mut bytes, seeds, pieces, random);
        return bytes;
    };
    for _ in 0..times {
        change(somewhere(&mut value, random), seeds, pieces, random);
    }
    // Written again in one way out of two, so that numbers are read in every spelling.
    serde_json::to_vec(&value).unwrap_or_default()
}
