//! Keys are at the endpoint where a real Envoy puts them.
//!
//! `data/owners-of-envoy.txt` is what Envoy 1.40 answered: five endpoints, `127.0.0.1:19101` and on, of weights 1, 1, 2, 3
//! and 1, asked 200 times by users `user-0` to `user-199`; each digit is the endpoint that answered. `ring` and `maglev`
//! are of the usual sizes, `small` is a Maglev table of 251 places. The fourth, `two`, is a ring as well, asked by a hash
//! of the header, a cookie `id` of `c0` to `c2`, a parameter `q` from 0 to 6, and the address.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::{IpAddr, Ipv4Addr};

use outrider_proxy_core::balance::{
    Ask, BalanceConfig, Balancer, DEFAULT_MAGLEV, DEFAULT_RING, Endpoint, Layout, MAX_RING, Policy, TableKind,
};
use outrider_proxy_core::http1::{Limits, RequestHead};
use outrider_proxy_core::route::{HashPolicy, Http1View, KeySource, Route};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn balancer(kind: TableKind) -> Balancer {
    let weights = [1, 1, 2, 3, 1];
    let endpoint = |(n, weight): (u16, u32)| Endpoint { weight, ..Endpoint::new((LOCAL, 19_101 + n).into()) };
    let list: Vec<_> = (0..).zip(weights).map(endpoint).collect();
    let config = BalanceConfig { policy: Policy::Table(kind), ..BalanceConfig::default() };
    let mut layout = Layout::default();
    layout.make_tables(&list, &config);
    let mut balancer = Balancer::new(config);
    balancer.assign(&list, &layout.into(), 0);
    balancer
}

#[test]
fn keys_are_where_envoy_puts_them() {
    let ring = || balancer(TableKind::ring(DEFAULT_RING, MAX_RING).unwrap());
    let maglev = |size: u32| balancer(TableKind::maglev(size).unwrap());
    let from = |source: KeySource| HashPolicy { source, terminal: false };
    let header = || from(KeySource::Header("x-user".into()));
    let all = vec![
        header(),
        from(KeySource::Cookie("id".into(), None)),
        from(KeySource::Query("q".into())),
        from(KeySource::SourceAddress),
    ];
    let mut lines = include_str!("data/owners-of-envoy.txt").lines();
    for (name, mut balancer, policies) in [
        ("ring", ring(), vec![header()]),
        ("maglev", maglev(DEFAULT_MAGLEV), vec![header()]),
        ("small", maglev(251), vec![header()]),
        ("two", ring(), all),
    ] {
        let route = Route { hash: policies, ..Route::to_cluster("r", 0) };
        let expected = lines.next().and_then(|line| line.strip_prefix(name)).unwrap().trim();
        let owners: String = (0..200)
            .map(|n| {
                let request = format!(
                    "GET /two?q={} HTTP/1.1\r\nHost: a\r\nx-user: user-{n}\r\ncookie: id=c{}\r\n\r\n",
                    n % 7,
                    n % 3
                );
                let mut head = RequestHead::new();
                head.parse(request.as_bytes(), &Limits::default()).unwrap();
                let view = Http1View { head: &head, buf: request.as_bytes() };
                let (key, _) = route.key(&view, Some(LOCAL), n);
                assert!(key.is_some());
                let index = balancer.choose(&Ask { random: n, key, tried: &[] }).unwrap();
                let owner = balancer.key(index).unwrap().port() - 19_100;
                assert!(balancer.done(index));
                char::from_digit(u32::from(owner), 10).unwrap()
            })
            .collect();
        assert_eq!(owners, expected, "{name}");
    }
}
