use super::*;
use crate::http1::{Limits, Parsed};

fn head(request: &str) -> (RequestHead, Vec<u8>) {
    let bytes = format!("{request}\r\n").into_bytes();
    let mut head = RequestHead::new();
    assert_eq!(head.parse(&bytes, &Limits::default()), Ok(Parsed::Complete(bytes.len())), "{request:?}");
    (head, bytes)
}

fn get(host: &str, target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n")
}

fn host(domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    VirtualHost { domains: domains.iter().map(|domain| (*domain).to_owned()).collect(), routes }
}

fn route(name: &str, matches: RouteMatch) -> Route {
    Route { matches, ..Route::to_cluster(name, 0) }
}

/// The name of the route found, or `-`.
fn found(table: &RouteTable, request: &str) -> String {
    let (head, bytes) = head(request);
    match table.find(&head, &bytes) {
        Ok(route) => route.name.to_string(),
        Err(reason) => {
            assert_eq!(reason, Reason::NoRoute);
            "-".to_owned()
        }
    }
}

#[test]
fn domains() {
    let named = |domain: &str| host(&[domain], vec![Route::to_cluster(domain, 0)]);
    let domains = [
        "inventory",
        "Inventory.SHOP",
        "inventory:8080",
        "*.shop",
        "*.eu.shop",
        "pay.*",
        "pay.eu.*",
        "[::1]",
        "*",
    ];
    let table = RouteTable::new(domains.iter().map(|domain| named(domain)).collect(), false).unwrap();
    for (authority, expected) in [
        ("inventory", "inventory"),
        ("INVENTORY", "inventory"),
        ("inventory.shop", "Inventory.SHOP"),
        ("inventory:8080", "inventory:8080"),
        ("inventory:80", "*"),
        ("a.shop", "*.shop"),
        ("a.eu.shop", "*.eu.shop"),
        (".shop", "*"),
        ("shop", "*"),
        ("pay.example", "pay.*"),
        ("pay.eu.example", "pay.eu.*"),
        ("pay.", "*"),
        ("pay.shop", "*.shop"),
        ("[::1]", "[::1]"),
        ("other", "*"),
        (&"x".repeat(300), "*"),
    ] {
        assert_eq!(found(&table, &get(authority, "/")), expected, "{authority}");
    }
    assert_eq!(found(&table, "GET / HTTP/1.0\r\n"), "*");

    let portless = RouteTable::new(vec![named("inventory"), named("[::1]")], true).unwrap();
    for (authority, expected) in [
        ("inventory:80", "inventory"),
        ("inventory", "inventory"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("other", "-"),
    ] {
        assert_eq!(found(&portless, &get(authority, "/")), expected, "{authority}");
    }
    assert_eq!(found(&RouteTable::default(), &get("a", "/")), "-");
}

#[test]
fn paths() {
    let exact = |path: &str| PathMatch::Exact(path.as_bytes().into());
    let prefix = |path: &str| PathMatch::Prefix(path.as_bytes().into());
    let elements = |path: &str| PathMatch::ElementPrefix(path.as_bytes().into());
    for (path, target, expected) in [
        (PathMatch::Any, "/x", true),
        (exact("/a"), "/a", true),
        (exact("/a"), "/a?q", true),
        (exact("/a"), "/a/", false),
        (exact("/a"), "/A", false),
        (exact("/a"), "/%61", false),
        (prefix("/a"), "/ab", true),
        (prefix("/a"), "/b/a", false),
        (prefix("/"), "/x", true),
        (elements("/a"), "/a", true),
        (elements("/a"), "/a/", true),
        (elements("/a"), "/a/b?c", true),
        (elements("/a"), "/a?b", true),
        (elements("/a"), "/ab", false),
        (elements("/a/"), "/a", true),
        (elements("/a/"), "/a/b", true),
        (elements("/"), "/", true),
        (elements("/"), "/x", true),
        (prefix("/"), "http://a?q", true),
        (exact("/x"), "http://a/x?q", true),
    ] {
        let table =
            host(&["*"], vec![route("hit", RouteMatch { path: path.clone(), ..RouteMatch::default() })]);
        let table = RouteTable::new(vec![table], false).unwrap();
        assert_eq!(found(&table, &get("a", target)) == "hit", expected, "{path:?} {target}");
    }
}

#[test]
fn methods_and_headers() {
    let header =
        |name: &str, value: ValueMatch, invert: bool| HeaderMatch { name: name.into(), value, invert };
    let exact = |value: &str| ValueMatch::Exact(value.as_bytes().into());
    let prefix = |value: &str| ValueMatch::Prefix(value.as_bytes().into());
    for (matches, lines, expected) in [
        (header("X-A", exact("1"), false), "x-a: 1\r\n", true),
        (header("x-a", exact("1"), false), "X-A:   1  \r\n", true),
        (header("x-a", exact("1"), false), "x-a: 12\r\n", false),
        (header("x-a", exact("1"), false), "x-ab: 1\r\n", false),
        (header("x-a", exact("1"), true), "x-a: 2\r\n", true),
        (header("x-a", exact("1"), true), "", true),
        (header("x-a", exact("1"), true), "x-a: 1\r\n", false),
        (header("x-a", exact("1,2"), false), "x-a: 1\r\nb: c\r\nX-a: 2\r\n", true),
        (header("x-a", exact("1"), false), "x-a: 1\r\nx-a: 2\r\n", false),
        (header("x-a", exact("1,"), false), "x-a: 1\r\nx-a:\r\n", true),
        (header("x-a", exact("1,2"), false), "x-a: 1,2\r\n", true),
        (header("x-a", exact("1,2"), false), "x-a: 1\r\n", false),
        (header("x-a", exact(""), false), "x-a:\r\n", true),
        (header("x-a", exact(""), false), "", false),
        (header("x-a", prefix("1"), false), "x-a: 12\r\n", true),
        (header("x-a", prefix("1,2"), false), "x-a: 1\r\nx-a: 23\r\n", true),
        (header("x-a", prefix("1,2"), false), "x-a: 1\r\nx-a: 3\r\n", false),
        (header("x-a", prefix("12"), false), "x-a: 1\r\n", false),
        (header("x-a", ValueMatch::Present, false), "x-a:\r\n", true),
        (header("x-a", ValueMatch::Present, true), "x-b: 1\r\n", true),
        (header(":method", exact("GET"), false), "", true),
        (header(":method", exact("get"), false), "", false),
        (header(":authority", exact("a"), false), "", true),
    ] {
        let table = host(
            &["*"],
            vec![route("hit", RouteMatch { headers: vec![matches.clone()], ..RouteMatch::default() })],
        );
        let table = RouteTable::new(vec![table], false).unwrap();
        let request = format!("{}{lines}", get("a", "/"));
        assert_eq!(found(&table, &request) == "hit", expected, "{matches:?} {lines:?}");
    }
}

#[test]
fn the_first_that_matches_wins_and_hosts_do_not_fall_through() {
    let post = RouteMatch { method: Some("POST".into()), ..RouteMatch::default() };
    let a = RouteMatch { path: PathMatch::ElementPrefix(b"/a".as_slice().into()), ..RouteMatch::default() };
    let table = RouteTable::new(
        vec![
            host(&["shop"], vec![route("post", post), route("a", a.clone()), route("a again", a)]),
            host(&["*"], vec![route("any", RouteMatch::default())]),
        ],
        false,
    )
    .unwrap();
    assert_eq!(found(&table, "POST /a HTTP/1.1\r\nHost: shop\r\n"), "post");
    assert_eq!(found(&table, &get("shop", "/a")), "a");
    assert_eq!(found(&table, &get("shop", "/b")), "-");
    assert_eq!(found(&table, &get("b", "/b")), "any");
    assert_eq!(table.routes().len(), 4);
}

#[test]
fn weights_share_requests_exactly_over_all_random_numbers() {
    let weighted = |weights: &[(u32, u32)]| Route {
        action: RouteAction::Weighted(weights.to_vec()),
        ..Route::to_cluster("w", 0)
    };
    let route = weighted(&[(7, 95), (8, 0), (9, 5)]);
    let mut counts = [0; 10];
    for step in 0..1000u64 {
        match route.destination(step * (u64::MAX / 1000) + u64::MAX / 2000) {
            Ok(Destination::Cluster(cluster)) => counts[cluster as usize] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((counts[7], counts[8], counts[9]), (950, 0, 50));
    for random in [0, u64::MAX / 2, u64::MAX] {
        assert_eq!(weighted(&[]).destination(random), Err(Reason::NoBackends));
        assert_eq!(weighted(&[(1, 0), (2, 0)]).destination(random), Err(Reason::NoBackends));
        assert_eq!(weighted(&[(3, u32::MAX)]).destination(random), Ok(Destination::Cluster(3)));
    }
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let compile = |hosts| RouteTable::new(hosts, false).err();
    let plain = |domains: &[&str]| host(domains, Vec::new());
    for domains in [&["a", "A"][..], &["*", "*"], &["*.a", "*.A"], &["a.*", "a.*"]] {
        let duplicate = RouteTableError::DuplicateDomain(domains[1].to_owned());
        assert_eq!(compile(vec![plain(domains)]), Some(duplicate.clone()));
        assert_eq!(compile(vec![plain(&domains[..1]), plain(&domains[1..])]), Some(duplicate));
    }
    for domain in ["", "a*b", "*a*", "**"] {
        assert_eq!(compile(vec![plain(&[domain])]), Some(RouteTableError::Domain(domain.to_owned())));
    }
    let one = |route| compile(vec![host(&["*"], vec![route])]);
    let headers = vec![HeaderMatch::exact("a b", "1")];
    let bad_header = route("r", RouteMatch { headers, ..RouteMatch::default() });
    assert_eq!(one(bad_header), Some(RouteTableError::HeaderName("a b".to_owned())));
    let heavy = RouteAction::Weighted(vec![(0, u32::MAX), (1, 1)]);
    assert_eq!(one(Route { action: heavy, ..Route::to_cluster("r", 0) }), Some(RouteTableError::Weights));
    for status in [0, 199, 600] {
        let direct = DirectResponse { status, body: Box::default(), reason: Reason::DirectResponse };
        let route = Route { action: RouteAction::Direct(direct), ..Route::to_cluster("r", 0) };
        assert_eq!(one(route), Some(RouteTableError::Status(status)));
    }
}
