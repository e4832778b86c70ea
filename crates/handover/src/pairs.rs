//! A map of numbers as a list of pairs: in a tagged message, keys of JSON objects are never read as numbers.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(map: &BTreeMap<u64, u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u64, u64>, D::Error> {
    Ok(Vec::<(u64, u64)>::deserialize(deserializer)?.into_iter().collect())
}
