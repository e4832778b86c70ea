//! Which of a cluster's TLS settings an endpoint is spoken to with: by what its metadata says, as Envoy's
//! `transport_socket_matches` do.
//!
//! Holds: the first match all of whose fields an endpoint has is its; whoever none is for gets the cluster's own. Only
//! texts are compared; an endpoint's other values match nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use outrider_xds_types::names::TRANSPORT_SOCKET_MATCH;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use outrider_xds_types::pb::envoy::config::core::v3::Metadata;
use outrider_xds_types::pb::google::protobuf::{Struct, value::Kind};

use super::cluster::{ParsedTls, upstream_tls};
use super::fields::{Refusal, join, transport_socket};

/// Most matches of a cluster, and most endpoints' marks that differ.
const MAX_MARKS: usize = 256;

/// Names and their values.
pub type Mark = BTreeMap<String, String>;

/// TLS settings of some endpoints of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedMatch {
    /// What an endpoint has to say; everything of it.
    pub wanted: Mark,
    /// What it is spoken to with.
    pub tls: ParsedTls,
}

/// Reads a cluster's matches.
pub(super) fn matches(given: Vec<TransportSocketMatch>) -> Result<Vec<ParsedMatch>, Refusal> {
    let path = "transport_socket_matches";
    if given.len() > MAX_MARKS {
        return Err(Refusal::new(path, format!("at most {MAX_MARKS} are supported")));
    }
    let one = |(n, one): (usize, TransportSocketMatch)| {
        let path = format!("{path}[{n}]");
        let fields = one.r#match.unwrap_or_default().fields.into_iter();
        let text = |(name, value): (String, _)| text(value).map(|text| (name, text));
        let wanted: Option<Mark> = fields.map(text).collect();
        let wanted = wanted.ok_or_else(|| Refusal::new(join(&path, "match"), "only texts are supported"))?;
        let path = join(&path, "transport_socket");
        let socket = one.transport_socket.ok_or_else(|| Refusal::new(&path, "required"))?;
        let tls = upstream_tls(&transport_socket(socket, &path)?, &path)?;
        Ok(ParsedMatch { wanted, tls })
    };
    given.into_iter().enumerate().map(one).collect()
}

fn text(value: outrider_xds_types::pb::google::protobuf::Value) -> Option<String> {
    match value.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// What the endpoints of a load assignment say. Those that say nothing are not in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    differing: Vec<Mark>,
    of: HashMap<SocketAddr, u16>,
}

impl Marks {
    /// Takes in what an endpoint says.
    pub(super) fn add(&mut self, endpoint: SocketAddr, metadata: Option<Metadata>) -> Result<(), Refusal> {
        let said = metadata.and_then(|mut all| all.filter_metadata.remove(TRANSPORT_SOCKET_MATCH));
        let Some(Struct { fields }) = said.filter(|said| !said.fields.is_empty()) else { return Ok(()) };
        let mark: Mark = fields.into_iter().filter_map(|(name, value)| Some((name, text(value)?))).collect();
        let place = match self.differing.iter().position(|known| *known == mark) {
            Some(place) => place,
            None if self.differing.len() >= MAX_MARKS => {
                let cause = format!("at most {MAX_MARKS} that differ are supported");
                return Err(Refusal::new(join("metadata", TRANSPORT_SOCKET_MATCH), cause));
            }
            None => {
                self.differing.push(mark);
                self.differing.len() - 1
            }
        };
        // There are fewer than that.
        self.of.insert(endpoint, place as u16);
        Ok(())
    }

    /// The endpoints that one of `matches` is for, and its place.
    pub fn places<'a>(
        &'a self,
        matches: &'a [ParsedMatch],
    ) -> impl Iterator<Item = (SocketAddr, usize)> + use<'a> {
        let for_mark = |mark: &Mark| {
            let has = |(name, value): (&String, &String)| mark.get(name) == Some(value);
            matches.iter().position(|one| one.wanted.iter().all(has))
        };
        let places: Vec<Option<usize>> = self.differing.iter().map(for_mark).collect();
        let place = move |mark: &u16| places.get(usize::from(*mark)).copied().flatten();
        self.of.iter().filter_map(move |(endpoint, mark)| Some((*endpoint, place(mark)?)))
    }
}

#[cfg(test)]
mod tests;
