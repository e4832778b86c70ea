//! Long lists of endpoints in parts: what has changed of a load assignment, and the whole again.
//!
//! A load assignment of ten thousand endpoints is some 300 kB, of which a change concerns one endpoint. So who names
//! [`features::LEDS`](outrider_xds_types::features::LEDS) is sent a list whole once, and then what has changed of it, in the
//! terms of LEDS: the endpoints as resources of their own in glob collections, and behind them the assignment with
//! references in the place of its long lists, its *head*.
//! ```text
//! EDS  shop/api/main            cluster_name, endpoints: [ locality, lb_endpoints × 10,000 ]
//!   one endpoint changes
//! LEDS xdstp://outrider/…LbEndpoint/shop/api/main/zone=/10.0.3.7:80      LbEndpoint;  removed: …/10.0.3.6:80
//! EDS  shop/api/main            cluster_name, endpoints: [ locality, leds: …/shop/api/main/zone=/* ]
//!                               Resource.metadata dev.outrider: { whole: DIGEST }
//! ```
//! The acknowledgement of the head is that of the list: it has the version of the whole, and everybody but the two ends of a
//! stream sees only the whole. Holds: what comes out is the whole, byte for byte, or nothing: the digest is of all of
//! it, and who arrives at another one refuses the head and is sent the whole. A change that is not much shorter than the
//! whole is not made one. Does not: look into endpoints further than their addresses, by which they are in order.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use outrider_xds_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, Locality, Metadata,
};
use outrider_xds_types::pb::envoy::config::endpoint::v3::LedsClusterLocalityConfig;
use outrider_xds_types::pb::google::protobuf::{Struct, Value, value::Kind};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// A list of more endpoints than this is sent in parts.
pub(crate) const LONG: usize = 64;
/// Most bytes of a whole that is made of parts.
pub(crate) const MAX_WHOLE: usize = 64 << 20;
/// Fewest bytes of an assignment that can have a long list: an address alone takes more than a fourth of this.
const LEAST_BYTES: usize = LONG * 16;
/// What an endpoint of its own takes beside its name and body: type, version, and the frames of these.
const BESIDE: usize = 100;

/// `endpoints` of an assignment, and `lb_endpoints` of a locality.
const REPEATED: u32 = 2;
/// `locality` of a locality.
const LOCALITY: u32 = 1;
/// `leds_cluster_locality_config` of a locality.
const LEDS: u32 = 8;

/// Where in the metadata of a head the digest is.
const WHOLE: &str = "whole";

/// Endpoints that came, and that went (`None`), of each list of an assignment, by its key.
pub(crate) type Pending = BTreeMap<String, BTreeMap<SocketAddr, Option<Vec<u8>>>>;

/// What leads from one assignment to another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Delta {
    /// The later one, with references for its long lists.
    pub(crate) head: Vec<u8>,
    /// Of the later one.
    pub(crate) digest: u64,
    /// New and changed endpoints: names and encoded messages.
    pub(crate) changed: Vec<(String, Vec<u8>)>,
    /// Names of endpoints that are gone.
    pub(crate) removed: Vec<String>,
}

/// A field of an encoded message.
#[derive(Clone, Copy)]
struct Field<'a> {
    number: u32,
    /// All of it, its key included.
    bytes: &'a [u8],
    /// What is in it, if it has a length.
    content: Option<&'a [u8]>,
}

/// The fields of a message, up to where it cannot be read.
struct Fields<'a> {
    rest: &'a [u8],
    broken: bool,
}

impl<'a> Fields<'a> {
    fn of(message: &'a [u8]) -> Self {
        Self { rest: message, broken: false }
    }

    fn read(&mut self) -> Option<Field<'a>> {
        let begin = self.rest;
        let (number, kind) = decode_key(&mut self.rest).ok()?;
        let mut content = self.rest;
        skip_field(kind, number, &mut self.rest, DecodeContext::default()).ok()?;
        let content = match kind {
            WireType::LengthDelimited => {
                decode_varint(&mut content).ok()?;
                content.get(..content.len() - self.rest.len())
            }
            _ => None,
        };
        Some(Field { number, bytes: begin.get(..begin.len() - self.rest.len())?, content })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        if self.rest.is_empty() || self.broken {
            return None;
        }
        let field = self.read();
        self.broken = field.is_none();
        field
    }
}

/// All fields, `None` if the message cannot be read to its end.
fn fields(message: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Fields::of(message);
    let all = fields.by_ref().collect();
    (!fields.broken).then_some(all)
}

/// The content of the first field of this number.
fn first(message: &[u8], number: u32) -> Option<&[u8]> {
    Fields::of(message).find(|field| field.number == number)?.content
}

/// Where an encoded `LbEndpoint` is, if it has an address of IP.
fn address(endpoint: &[u8]) -> Option<SocketAddr> {
    // `endpoint`, `address`, `socket_address`.
    let socket = first(first(first(endpoint, 1)?, 1)?, 1)?;
    let ip: IpAddr = std::str::from_utf8(first(socket, 2)?).ok()?.parse().ok()?;
    let port = match Fields::of(socket).find(|field| field.number == 3) {
        Some(port) => {
            let mut bytes = port.bytes;
            decode_key(&mut bytes).ok()?;
            decode_varint(&mut bytes).ok()?
        }
        None => 0,
    };
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

/// The key of a locality's list.
fn key(locality: &[Field<'_>]) -> String {
    let locality = locality.iter().find(|field| field.number == LOCALITY).and_then(|field| field.content);
    let locality = locality.and_then(|bytes| Locality::decode(bytes).ok()).unwrap_or_default();
    names::list_key(&locality.zone, &locality.sub_zone)
}

/// A locality of an assignment.
struct Group<'a> {
    key: String,
    fields: Vec<Field<'a>>,
}

impl<'a> Group<'a> {
    fn read(content: &'a [u8]) -> Option<Self> {
        let fields = fields(content)?;
        Some(Self { key: key(&fields), fields })
    }

    fn endpoints(&self) -> impl Iterator<Item = &Field<'a>> {
        self.fields.iter().filter(|field| field.number == REPEATED && field.content.is_some())
    }

    fn leds(&self) -> Option<Option<&'a [u8]>> {
        self.fields.iter().find(|field| field.number == LEDS).map(|field| field.content)
    }
}

/// The fields of an assignment: its localities, and others as they are.
enum Part<'a> {
    Group(Group<'a>),
    Other(Field<'a>),
}

fn parts(assignment: &[u8]) -> Option<Vec<Part<'_>>> {
    fn part(field: Field<'_>) -> Option<Part<'_>> {
        match field.content {
            Some(content) if field.number == REPEATED => Group::read(content).map(Part::Group),
            _ => Some(Part::Other(field)),
        }
    }
    fields(assignment)?.into_iter().map(part).collect()
}

fn groups<'a, 'b>(parts: &'b [Part<'a>]) -> impl Iterator<Item = &'b Group<'a>> {
    parts.iter().filter_map(|part| match part {
        Part::Group(group) => Some(group),
        Part::Other(_) => None,
    })
}

fn put(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// Whether it may have a long list.
pub(crate) fn may_be_long(assignment: &[u8]) -> bool {
    assignment.len() >= LEAST_BYTES
}

/// Of the whole; not for secrets. Two bodies that differ in one place never have the same.
pub(crate) fn digest(body: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(29) ^ word).wrapping_mul(FACTOR);
    let (words, rest) = body.as_chunks::<8>();
    let hash = words.iter().fold(body.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let hash = mix(hash, u64::from_le_bytes(last));
    hash ^ (hash >> 31)
}

/// As metadata of a head.
pub(crate) fn to_metadata(digest: u64) -> Metadata {
    let value = Value { kind: Some(Kind::StringValue(format!("{digest:016x}"))) };
    let fields = [(WHOLE.to_owned(), value)].into();
    let filter_metadata = [(outrider_xds_types::METADATA_KEY.to_owned(), Struct { fields })].into();
    Metadata { filter_metadata, ..Metadata::default() }
}

/// The digest in the metadata of a head, if it is one of ours.
pub(crate) fn from_metadata(metadata: &Metadata) -> Option<u64> {
    let ours = metadata.filter_metadata.get(outrider_xds_types::METADATA_KEY)?;
    match &ours.fields.get(WHOLE)?.kind {
        Some(Kind::StringValue(text)) => u64::from_str_radix(text, 16).ok(),
        _ => None,
    }
}

/// What leads from one assignment of this name to a later one. `None` if it has no long list, or cannot be said in much
/// less than the later one.
pub(crate) fn delta(name: &str, from: &[u8], to: &[u8]) -> Option<Delta> {
    let (before, after) = (parts(from)?, parts(to)?);
    let mut delta = Delta { head: Vec::new(), digest: digest(to), changed: Vec::new(), removed: Vec::new() };
    let mut pending = Pending::new();
    let mut bytes = 0;
    for part in &after {
        let group = match part {
            Part::Group(group) => group,
            Part::Other(field) => {
                delta.head.extend_from_slice(field.bytes);
                continue;
            }
        };
        let new: Vec<&[u8]> = group.endpoints().filter_map(|field| field.content).collect();
        let mut content = Vec::new();
        let is_long = new.len() > LONG;
        for field in group.fields.iter().filter(|field| !is_long || field.number != REPEATED) {
            content.extend_from_slice(field.bytes);
        }
        if is_long {
            if pending.contains_key(&group.key) {
                return None;
            }
            let old = groups(&before).find(|one| one.key == group.key);
            let old: Vec<&[u8]> =
                old.into_iter().flat_map(Group::endpoints).filter_map(|field| field.content).collect();
            let changes = changes(&old, &new)?;
            for (at, body) in &changes {
                let name = names::listed(name, &group.key, *at);
                bytes += BESIDE + name.len();
                match body {
                    Some(body) => {
                        bytes += body.len();
                        delta.changed.push((name, body.clone()));
                    }
                    None => delta.removed.push(name),
                }
            }
            put(&mut content, LEDS, &reference(&names::list(name, &group.key)));
            pending.insert(group.key.clone(), changes);
        }
        put(&mut delta.head, REPEATED, &content);
    }
    let short = !pending.is_empty() && bytes + delta.head.len() <= to.len() / 2;
    // What the other side makes of it is what it was made of.
    (short && join(name, &delta.head, from, &pending).ok()? == to).then_some(delta)
}

fn reference(collection: &str) -> Vec<u8> {
    let ads = ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    };
    let leds =
        LedsClusterLocalityConfig { leds_config: Some(ads), leds_collection_name: collection.to_owned() };
    leds.encode_to_vec()
}

/// What leads from one list to another, by address. `None` if an endpoint has none, or one twice.
fn changes(old: &[&[u8]], new: &[&[u8]]) -> Option<BTreeMap<SocketAddr, Option<Vec<u8>>>> {
    let same = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[same..], &new[same..]);
    let same = old.iter().rev().zip(new.iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - same], &new[..new.len() - same]);
    let mut gone: BTreeMap<SocketAddr, &[u8]> = BTreeMap::new();
    for body in old {
        gone.insert(address(body)?, body);
    }
    let mut changes = BTreeMap::new();
    let mut kept = Vec::new();
    for body in new {
        let at = address(body)?;
        let before = gone.remove(&at);
        if before.is_some_and(|before| before == *body) {
            kept.push(at);
        } else if changes.insert(at, Some(body.to_vec())).is_some() {
            return None;
        }
    }
    if kept.iter().any(|at| changes.contains_key(at)) {
        return None;
    }
    changes.extend(gone.into_keys().map(|at| (at, None)));
    Some(changes)
}

/// Why a head cannot be made a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("it cannot be read")]
    Broken,
    #[error("endpoints[{0}].leds_cluster_locality_config: a locality has either a list or endpoints")]
    Both(usize),
    #[error("endpoints[{0}].leds_cluster_locality_config.leds_config: only `ads` and `self` are supported")]
    Source(usize),
    #[error(
        "endpoints[{0}].leds_cluster_locality_config.leds_collection_name: only glob collections of LbEndpoint without \
         parameters are supported: xdstp://AUTHORITY/envoy.config.endpoint.v3.LbEndpoint/…/*"
    )]
    Name(usize),
    #[error("its lists of endpoints do not add up to what it was made of")]
    Different,
    #[error("more than {0} bytes with its lists")]
    TooLarge(usize),
    #[error("more than {0} lists of endpoints")]
    TooMany(usize),
}

/// The collection that a locality refers to, checked.
fn collection(n: usize, group: &Group<'_>) -> Result<Option<String>, JoinError> {
    let Some(leds) = group.leds() else { return Ok(None) };
    let leds =
        leds.and_then(|bytes| LedsClusterLocalityConfig::decode(bytes).ok()).ok_or(JoinError::Broken)?;
    if group.endpoints().next().is_some() {
        return Err(JoinError::Both(n));
    }
    let source = leds.leds_config.and_then(|config| config.config_source_specifier);
    if !matches!(source, Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_))) {
        return Err(JoinError::Source(n));
    }
    let name = leds.leds_collection_name;
    let path = name.strip_prefix("xdstp://").and_then(|rest| rest.split_once('/')).map(|(_, path)| path);
    let is_glob = path.and_then(|path| path.strip_prefix("envoy.config.endpoint.v3.LbEndpoint/"));
    let is_glob = is_glob.and_then(|path| path.strip_suffix("/*"));
    if is_glob.is_none_or(|path| path.is_empty() || path.contains(['?', '#', '*'])) {
        return Err(JoinError::Name(n));
    }
    Ok(Some(name))
}

/// The collections that a head refers to, each once; none if it is a whole.
pub(crate) fn collections(head: &[u8]) -> Result<Vec<String>, JoinError> {
    let parts = parts(head).ok_or(JoinError::Broken)?;
    let mut all = Vec::new();
    for (n, group) in groups(&parts).enumerate() {
        all.extend(collection(n, group)?);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Whether it refers to collections. What cannot be read does not: it is for who looks further to refuse.
pub(crate) fn is_head(assignment: &[u8]) -> bool {
    let localities = Fields::of(assignment).filter(|field| field.number == REPEATED);
    let refers = |locality: &[u8]| {
        // Its endpoints come before and are many: nothing else has them.
        Fields::of(locality).any(|field| field.number == LEDS)
    };
    localities.filter_map(|field| field.content).any(refers)
}

/// The whole that a head stands for, `endpoints` writing those of a collection.
pub(crate) fn fill(head: &[u8], mut endpoints: impl FnMut(&str, &mut Vec<u8>)) -> Result<Vec<u8>, JoinError> {
    let parts = parts(head).ok_or(JoinError::Broken)?;
    let (mut whole, mut n) = (Vec::new(), 0);
    for part in &parts {
        let group = match part {
            Part::Other(field) => {
                whole.extend_from_slice(field.bytes);
                continue;
            }
            Part::Group(group) => group,
        };
        let collection = collection(n, group)?;
        n += 1;
        let mut content = Vec::new();
        let before = |field: &&Field<'_>| field.number < REPEATED;
        let behind =
            |field: &&Field<'_>| field.number >= REPEATED && (collection.is_none() || field.number != LEDS);
        group.fields.iter().filter(before).for_each(|field| content.extend_from_slice(field.bytes));
        if let Some(collection) = &collection {
            endpoints(collection, &mut content);
        }
        group.fields.iter().filter(behind).for_each(|field| content.extend_from_slice(field.bytes));
        // Any number of localities may refer to one collection.
        if whole.len() + content.len() > MAX_WHOLE {
            return Err(JoinError::TooLarge(MAX_WHOLE));
        }
        put(&mut whole, REPEATED, &content);
    }
    Ok(whole)
}

/// Writes an endpoint as one of a locality.
pub(crate) fn put_endpoint(content: &mut Vec<u8>, body: &[u8]) {
    put(content, REPEATED, body);
}

/// The whole of this name that a head stands for, by an earlier whole and what has come and gone since.
pub(crate) fn join(name: &str, head: &[u8], from: &[u8], pending: &Pending) -> Result<Vec<u8>, JoinError> {
    let before = parts(from).ok_or(JoinError::Broken)?;
    let none = BTreeMap::new();
    fill(head, |collection, content| {
        let key = match names::unlist(collection) {
            Some((of, key, _)) if of == name => key,
            _ => return,
        };
        let old = groups(&before).find(|group| group.key == key);
        let old: Vec<&Field<'_>> = old.into_iter().flat_map(Group::endpoints).collect();
        merge(&old, pending.get(key).unwrap_or(&none), content);
    })
}

/// Puts changes into a list that is in order.
fn merge(old: &[&Field<'_>], changes: &BTreeMap<SocketAddr, Option<Vec<u8>>>, content: &mut Vec<u8>) {
    let at = |field: &Field<'_>| field.content.and_then(address);
    let mut rest = old;
    for (place, body) in changes {
        let (smaller, others) = rest.split_at(rest.partition_point(|field| at(field) < Some(*place)));
        smaller.iter().for_each(|field| content.extend_from_slice(field.bytes));
        let replaced = others.first().is_some_and(|field| at(field) == Some(*place));
        rest = &others[usize::from(replaced)..];
        if let Some(body) = body {
            put_endpoint(content, body);
        }
    }
    rest.iter().for_each(|field| content.extend_from_slice(field.bytes));
}

#[cfg(test)]
pub(crate) mod tests;
