//! What happened to proxies, as their agents told: bounded rings, one per service.
//!
//! Holds: a node's event is taken once, however often it is sent; one proxy that crashes all the time pushes only its
//! own events out, and one node that reports without end only its own. Does not: outlive this process, or check who
//! may say what (agents send their latest again with each session).

use std::collections::{BTreeMap, VecDeque};

use outrider_api::agent as wire;
use outrider_api::http::{EventList, ProxyEvent};
use outrider_intent::model::ServiceRef;

use super::hosts::printable;

/// Events kept of one service.
pub(crate) const PER_SERVICE: usize = 256;
/// Bytes that all events take together, about.
const MAX_BYTES: usize = 16 << 20;
/// Characters kept of words and names.
const MAX_WORD: usize = 100;
/// Characters kept of sentences.
const MAX_TEXT: usize = 1_500;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventFilter {
    pub(crate) service: Option<ServiceRef>,
    /// `NS/INSTANCE`.
    pub(crate) proxy: Option<String>,
    /// After this cursor.
    pub(crate) since: Option<u64>,
    /// The newest so many.
    pub(crate) limit: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    services: BTreeMap<ServiceRef, VecDeque<ProxyEvent>>,
    nodes: BTreeMap<String, OfNode>,
    bytes: usize,
    /// Of the last event taken.
    cursor: u64,
    /// Of the newest event that was dropped.
    dropped: u64,
    max_bytes: Option<usize>,
}

#[derive(Debug, Default)]
struct OfNode {
    /// The highest number taken.
    last: u64,
    bytes: usize,
}

/// About what it takes.
fn size(event: &ProxyEvent) -> usize {
    let texts = [
        &event.node,
        &event.service,
        &event.proxy,
        &event.engine,
        &event.release,
        &event.happened,
        &event.cause,
        &event.text,
        &event.exit,
        &event.configuration,
        &event.next,
        &event.next_release,
    ];
    size_of::<ProxyEvent>() + texts.into_iter().map(String::len).sum::<usize>()
}

fn word(text: &str) -> String {
    printable(text, MAX_WORD)
}

impl Events {
    /// Cursors go on from `first`, which is to be larger than those of an earlier life of this server.
    pub(crate) fn new(first: u64) -> Self {
        Self { cursor: first, dropped: first, ..Self::default() }
    }

    /// The cursor of the last event.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Takes an event of a node in. Returns whether it is new.
    pub(crate) fn add(&mut self, node: &str, service: ServiceRef, event: &wire::Occurred) -> bool {
        let of_node = self.nodes.entry(node.to_owned()).or_default();
        let ring = self.services.entry(service).or_default();
        if event.number <= of_node.last
            || ring.iter().any(|one| one.number == event.number && one.node == node)
        {
            return false;
        }
        of_node.last = event.number;
        self.cursor += 1;
        let event = ProxyEvent {
            cursor: self.cursor,
            node: node.to_owned(),
            number: event.number,
            time_ms: event.time_ms,
            service: event.service.clone(),
            proxy: event.proxy.clone(),
            generation: event.generation,
            engine: word(&event.engine),
            release: word(&event.release),
            happened: word(&event.happened),
            cause: word(&event.cause),
            text: printable(&event.text, MAX_TEXT),
            exit: printable(&event.exit, MAX_TEXT),
            configuration: word(&event.configuration),
            uptime_ms: event.uptime_ms,
            resident_bytes: event.resident_bytes,
            lost_connections: event.lost_connections,
            lost_requests: event.lost_requests,
            next: word(&event.next),
            next_generation: event.next_generation,
            next_pause_ms: event.next_pause_ms,
            next_release: word(&event.next_release),
        };
        let bytes = size(&event);
        ring.push_back(event);
        let surplus = if ring.len() > PER_SERVICE { remove_of_the_busiest(ring) } else { None };
        of_node.bytes += bytes;
        self.bytes += bytes;
        if let Some(event) = surplus {
            self.account_dropped(&event);
        }
        if self.bytes > self.max_bytes.unwrap_or(MAX_BYTES) {
            self.thin_out();
        }
        true
    }

    fn account_dropped(&mut self, event: &ProxyEvent) {
        let bytes = size(event);
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(of_node) = self.nodes.get_mut(&event.node) {
            of_node.bytes = of_node.bytes.saturating_sub(bytes);
        }
        self.dropped = self.dropped.max(event.cursor);
    }

    /// The node that takes most loses the older half of its events. Half of them, so that this is rare.
    fn thin_out(&mut self) {
        let largest = self.nodes.iter().max_by_key(|(_, node)| node.bytes).map(|(name, _)| name.clone());
        let Some(largest) = largest else { return };
        let of_largest = self.services.values().flatten().filter(|event| event.node == largest);
        let mut cursors: Vec<u64> = of_largest.map(|event| event.cursor).collect();
        cursors.sort_unstable();
        let Some(until) = cursors.get(cursors.len() / 2).copied() else { return };
        let mut gone = Vec::new();
        for ring in self.services.values_mut() {
            ring.retain(|event| {
                let goes = event.node == largest && event.cursor <= until;
                if goes {
                    gone.push(event.clone());
                }
                !goes
            });
        }
        self.services.retain(|_, ring| !ring.is_empty());
        for event in &gone {
            self.account_dropped(event);
        }
    }

    /// The node was deleted. What happened on it stays; another machine of that name counts from the beginning.
    pub(crate) fn evict(&mut self, node: &str) {
        if let Some(of_node) = self.nodes.get_mut(node) {
            of_node.last = 0;
        }
    }

    /// The newest event of a proxy.
    pub(crate) fn last(&self, service: &ServiceRef, proxy: &str) -> Option<&ProxyEvent> {
        self.services.get(service)?.iter().rev().find(|event| event.proxy == proxy)
    }

    /// The newest events that pass, the oldest of them first.
    pub(crate) fn list(&self, filter: &EventFilter) -> EventList {
        let since = filter.since.unwrap_or_default();
        let passes = |event: &&ProxyEvent| {
            event.cursor > since && filter.proxy.as_ref().is_none_or(|proxy| *proxy == event.proxy)
        };
        let mut found: Vec<&ProxyEvent> = match &filter.service {
            Some(service) => self.services.get(service).into_iter().flatten().filter(passes).collect(),
            None => self.services.values().flatten().filter(passes).collect(),
        };
        found.sort_unstable_by_key(|event| event.cursor);
        let surplus = found.len().saturating_sub(filter.limit);
        let cut = filter.since.is_some_and(|since| surplus > 0 || since < self.dropped);
        EventList { events: found.into_iter().skip(surplus).cloned().collect(), cursor: self.cursor, cut }
    }
}

/// Takes the oldest event of the proxy with most events out.
fn remove_of_the_busiest(ring: &mut VecDeque<ProxyEvent>) -> Option<ProxyEvent> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for event in ring.iter() {
        *counts.entry(&event.proxy).or_default() += 1;
    }
    let busiest = counts.into_iter().max_by_key(|(_, count)| *count).map(|(proxy, _)| proxy.to_owned())?;
    let oldest = ring.iter().position(|event| event.proxy == busiest)?;
    ring.remove(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceRef {
        ServiceRef::new("shop", name)
    }

    fn occurred(proxy: &str, number: u64) -> wire::Occurred {
        wire::Occurred {
            proxy: format!("shop/{proxy}"),
            service: "shop/a".to_owned(),
            number,
            text: format!("event {number}"),
            ..wire::Occurred::default()
        }
    }

    fn numbers(events: &Events, filter: EventFilter) -> Vec<u64> {
        events.list(&filter).events.iter().map(|event| event.number).collect()
    }

    fn all() -> EventFilter {
        EventFilter { limit: usize::MAX, ..EventFilter::default() }
    }

    #[test]
    fn an_event_is_taken_once_however_often_it_is_sent() {
        let mut events = Events::new(1_000);
        for _session in 0..2 {
            for number in [5, 6] {
                events.add("n", service("a"), &occurred("a-1", number));
            }
        }
        assert_eq!(numbers(&events, all()), [5, 6]);
        assert!(events.add("m", service("a"), &occurred("a-2", 5)), "numbers are a node's own");
        assert_eq!(events.cursor(), 1_003);
        // Another machine under the name: its numbers begin anew, and what is here is not taken twice.
        events.evict("n");
        assert!(events.add("n", service("a"), &occurred("a-1", 3)));
        assert!(!events.add("n", service("a"), &occurred("a-1", 6)));
    }

    #[test]
    fn filters_and_cursors_find_what_is_meant() {
        let mut events = Events::new(0);
        for (name, proxy, number) in [("a", "a-1", 1), ("b", "b-1", 2), ("a", "a-2", 3), ("a", "a-1", 4)] {
            events.add("n", service(name), &occurred(proxy, number));
        }
        let of = |name: &str| EventFilter { service: Some(service(name)), ..all() };
        assert_eq!(numbers(&events, all()), [1, 2, 3, 4]);
        assert_eq!(numbers(&events, of("a")), [1, 3, 4]);
        assert_eq!(numbers(&events, of("x")), [0; 0]);
        assert_eq!(numbers(&events, EventFilter { proxy: Some("shop/a-1".into()), ..all() }), [1, 4]);
        assert_eq!(numbers(&events, EventFilter { since: Some(2), ..all() }), [3, 4]);
        let cut = events.list(&EventFilter { since: Some(0), limit: 1, ..all() });
        assert_eq!((cut.events[0].number, cut.cut, cut.cursor), (4, true, 4));
        assert!(!events.list(&EventFilter { limit: 1, ..all() }).cut, "nobody asked for more");
        assert_eq!(events.last(&service("a"), "shop/a-2").map(|event| event.number), Some(3));
    }

    #[test]
    fn one_that_crashes_all_the_time_pushes_only_its_own_out() {
        let mut events = Events::new(0);
        events.add("n", service("a"), &occurred("a-1", 1));
        for number in 2..5_000 {
            events.add("n", service("a"), &occurred("a-2", number));
        }
        let kept = numbers(&events, all());
        assert_eq!((kept.len(), kept[0], kept[1]), (PER_SERVICE, 1, 5_000 - PER_SERVICE as u64 + 1));
        assert!(events.list(&EventFilter { since: Some(1), ..all() }).cut, "some of those are gone");
    }

    #[test]
    fn a_node_that_reports_without_end_takes_bounded_memory_and_pushes_only_its_own_out() {
        let mut events = Events { max_bytes: Some(1 << 20), ..Events::new(0) };
        for number in 1..=3 {
            events.add("quiet", service("a"), &occurred("a-1", number));
        }
        let long = "x".repeat(1 << 12);
        let mut peak = 0;
        for number in 1..8_000_u64 {
            let hostile =
                wire::Occurred { text: long.clone(), cause: long.clone(), ..occurred("b-1", number) };
            events.add("hostile", service(&format!("b-{}", number % 2_000)), &hostile);
            peak = peak.max(events.bytes);
        }
        assert!(peak <= (1 << 20) + 8_192, "{peak}");
        let counted: usize = events.services.values().flatten().map(size).sum();
        assert_eq!(events.bytes, counted);
        assert_eq!(numbers(&events, EventFilter { service: Some(service("a")), ..all() }), [1, 2, 3]);
        let kept = events.list(&all()).events.iter().filter(|event| event.node == "hostile").count();
        assert!(kept > 100 && events.services.len() < 2_000, "{kept}");
    }
}
