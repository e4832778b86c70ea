use super::*;
use crate::http1::{Limits, Parsed, RequestHead};

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
    match table.find(&Http1View { head: &head, buf: &bytes }) {
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
        (PathMatch::Pattern(Pattern::new("/a/[0-9]+").unwrap()), "/a/7?q", true),
        (PathMatch::Pattern(Pattern::new("/a/[0-9]+").unwrap()), "/a/7/", false),
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
        |name: &str, value: ValueMatch, invert: bool| HeaderMatch { invert, ..HeaderMatch::new(name, value) };
    let missing = |condition: HeaderMatch| HeaderMatch { missing_is_empty: true, ..condition };
    let pattern = |text: &str| ValueMatch::Pattern(Pattern::new(text).unwrap());
    let suffix = |text: &str| ValueMatch::Suffix(text.as_bytes().into());
    let contains = |text: &str| ValueMatch::Contains(text.as_bytes().into());
    let any_case = |part: Part, text: &str| ValueMatch::AnyCase(part, text.as_bytes().into());
    let long = format!("x-a: {}\r\nx-a: {}\r\n", "b".repeat(900), "c".repeat(900));
    let exact = |value: &str| ValueMatch::Exact(value.as_bytes().into());
    let prefix = |value: &str| ValueMatch::Prefix(value.as_bytes().into());
    for (matches, lines, expected) in [
        (header("X-A", exact("1"), false), "x-a: 1\r\n", true),
        (header("x-a", exact("1"), false), "X-A:   1  \r\n", true),
        (header("x-a", exact("1"), false), "x-a: 12\r\n", false),
        (header("x-a", exact("1"), false), "x-ab: 1\r\n", false),
        (header("x-a", exact("1"), true), "x-a: 2\r\n", true),
        // As in Envoy: a value that is not there is not another value.
        (header("x-a", exact("1"), true), "", false),
        (missing(header("x-a", exact("1"), true)), "", true),
        (missing(header("x-a", exact(""), false)), "", true),
        (missing(header("x-a", pattern("[0-9]*"), false)), "", true),
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
        (header(":scheme", exact("http"), false), "", true),
        (header(":path", exact("/"), false), "", true),
        (header("x-a", pattern("[0-9]+"), false), "x-a: 12\r\n", true),
        (header("x-a", pattern("[0-9]+"), false), "x-a: 12a\r\n", false),
        (header("x-a", pattern("[0-9]+"), true), "x-a: 12a\r\n", true),
        (header("x-a", pattern("1,2"), false), "x-a: 1\r\nx-a: 2\r\n", true),
        (header("x-a", pattern("b+,c+"), false), &long, true),
        (header("x-a", pattern("b+,c+,"), false), &long, false),
        (header("x-a", suffix("c"), false), &long, true),
        (header("x-a", suffix("12"), false), "x-a: 312\r\n", true),
        (header("x-a", suffix("12"), false), "x-a: 2\r\n", false),
        (header("x-a", suffix("1,2"), false), "x-a: 31\r\nx-a: 2\r\n", true),
        (header("x-a", contains("b,c"), false), &long, true),
        (header("x-a", contains("12"), false), "x-a: 0123\r\n", true),
        (header("x-a", contains("13"), false), "x-a: 0123\r\n", false),
        (header("x-a", any_case(Part::Whole, "blue"), false), "x-a: BLUE\r\n", true),
        (header("x-a", any_case(Part::Whole, "blue"), false), "x-a: blues\r\n", false),
        (header("x-a", any_case(Part::Start, "blue"), false), "x-a: BLUEs\r\n", true),
        (header("x-a", any_case(Part::End, "blue"), false), "x-a: skyBlue\r\n", true),
        (header("x-a", any_case(Part::End, "blue"), false), "x-a: lue\r\n", false),
        (header("x-a", any_case(Part::Any, "blue"), false), "x-a: a bLue sky\r\n", true),
        (header("x-a", ValueMatch::Range(-10..0), false), "x-a: -1\r\n", true),
        (header("x-a", ValueMatch::Range(-10..0), false), "x-a: 0\r\n", false),
        (header("x-a", ValueMatch::Range(-10..0), false), "x-a: -1.5\r\n", false),
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
    let backends = |weights: &[u32]| weights.iter().map(|weight| Backend::new("c", 0, *weight)).collect();
    assert_eq!(Split::new(backends(&[u32::MAX, 1]), SplitBy::Random), Err(RouteTableError::Weights));
    assert_eq!(Split::new(backends(&[1; 65]), SplitBy::Random), Err(RouteTableError::Backends(65)));
    let good = Redirect { status: 301, ..Redirect::default() };
    for (redirect, expected) in [
        (Redirect { status: 200, ..good.clone() }, RewriteError::Status(200)),
        (Redirect { scheme: Some("ftp".into()), ..good.clone() }, RewriteError::Scheme("ftp".to_owned())),
        (Redirect { host: Some("a b".into()), ..good.clone() }, RewriteError::Host("a b".to_owned())),
        (
            Redirect { path: RedirectPath::Full("/a\r\nb".into()), ..good },
            RewriteError::Path("/a\r\nb".to_owned()),
        ),
    ] {
        let route = Route { action: RouteAction::Redirect(redirect), ..Route::to_cluster("r", 0) };
        assert_eq!(one(route), Some(RouteTableError::Redirect(expected)));
    }
    for path in ["a", "", "/a b", "/a?b", "/a#b", "/a\n"] {
        assert_eq!(PathRewrite::matched(path), Err(RewriteError::Path(path.to_owned())));
    }
    assert!(PathRewrite::pattern(Substitution::new("a", "b c").unwrap()).is_err());
    assert!(Rewrite::default().with_host("a\r\n").is_err());
    for status in [0, 199, 600] {
        let direct = DirectResponse { status, body: Box::default(), reason: Reason::DirectResponse };
        let route = Route { action: RouteAction::Direct(direct), ..Route::to_cluster("r", 0) };
        assert_eq!(one(route), Some(RouteTableError::Status(status)));
    }
}

#[test]
fn query_parameters() {
    let exact = |value: &str| ValueMatch::Exact(value.as_bytes().into());
    for (condition, target, expected) in [
        (QueryMatch::new("a", exact("1")), "/?a=1", true),
        (QueryMatch::new("a", exact("1")), "/?b=2&a=1&c", true),
        (QueryMatch::new("a", exact("1")), "/?a=2&a=1", false),
        (QueryMatch::new("a", exact("1")), "/?aa=1", false),
        (QueryMatch::new("a", exact("1")), "/?A=1", false),
        (QueryMatch::new("a", exact("1")), "/a=1", false),
        (QueryMatch::new("a", exact("1")), "/?x?a=1", false),
        (QueryMatch::new("a", exact("%31")), "/?a=%31", true),
        (QueryMatch::new("a", exact("")), "/?a", true),
        (QueryMatch::new("a", exact("")), "/?a=", true),
        (QueryMatch::new("a", exact("b=c")), "/?a=b=c", true),
        (QueryMatch::new("a", ValueMatch::Present), "/?b&a", true),
        (QueryMatch::new("a", ValueMatch::Present), "/", false),
        (QueryMatch { invert: true, ..QueryMatch::new("a", ValueMatch::Present) }, "/", true),
        (QueryMatch::new("a", ValueMatch::Pattern(Pattern::new("[0-9]{2}").unwrap())), "/?a=42", true),
        (QueryMatch::new("a", ValueMatch::Pattern(Pattern::new("[0-9]{2}").unwrap())), "/?a=421", false),
        (QueryMatch::new("a", exact("1")), "http://a?a=1", true),
    ] {
        let matches = RouteMatch { query: vec![condition.clone()], ..RouteMatch::default() };
        let table = RouteTable::new(vec![host(&["*"], vec![route("hit", matches)])], false).unwrap();
        assert_eq!(found(&table, &get("a", target)) == "hit", expected, "{condition:?} {target}");
    }
}

/// Calls `then` with what a table sees of this request.
fn viewing<T>(request: &str, then: impl FnOnce(&Http1View<'_>) -> T) -> T {
    let (head, bytes) = head(request);
    then(&Http1View { head: &head, buf: &bytes })
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn paths_are_rewritten_and_queries_stay() {
    let prefix = |path: &str| PathMatch::Prefix(path.as_bytes().into());
    let elements = |path: &str| PathMatch::ElementPrefix(path.as_bytes().into());
    let exact = |path: &str| PathMatch::Exact(path.as_bytes().into());
    let pattern = |text: &str| PathMatch::Pattern(Pattern::new(text).unwrap());
    let matched = |by: &str| PathRewrite::matched(by).unwrap();
    let replaced = |text: &str, by: &str| PathRewrite::pattern(Substitution::new(text, by).unwrap()).unwrap();
    for (path, rewrite, target, expected) in [
        (PathMatch::Any, PathRewrite::Keep, "/a", None),
        (elements("/a"), matched("/b"), "/a/c?q=1", Some("/b/c?q=1")),
        (elements("/a/"), matched("/b"), "/a/c", Some("/b/c")),
        (elements("/a"), matched("/b"), "/a", Some("/b")),
        (elements("/a"), matched("/b"), "/a?", Some("/b?")),
        // As Envoy: bytes for bytes.
        (prefix("/a/"), matched("/"), "/a/c", Some("/c")),
        (elements("/a"), matched("/"), "/a/c", Some("//c")),
        (PathMatch::Any, matched("/x/"), "/c", Some("/x/c")),
        (exact("/a"), matched("/b"), "/a?q", Some("/b?q")),
        (pattern("/a/.*"), matched("/b"), "/a/c?q", Some("/b?q")),
        (PathMatch::Any, replaced("^/.*$", "/all"), "/a/b?/q", Some("/all?/q")),
        (elements("/a"), replaced("^/a/*", "/"), "/a/c", Some("/c")),
        (elements("/a"), replaced("^/a/*", "/"), "/a", Some("/")),
        (PathMatch::Any, replaced("^/([a-z]+)/([0-9]+)$", r"/\2/\1"), "/x/1", Some("/1/x")),
        (PathMatch::Any, replaced("^/x", ""), "/xy", Some("/y")),
        (PathMatch::Any, matched("/b"), "http://h", Some("/b")),
    ] {
        let rewrite = Rewrite { path: rewrite, host: None };
        let mut out = Vec::new();
        let changed = viewing(&get("h", target), |view| rewrite.target(&path, view, &mut out));
        assert_eq!(changed, Ok(expected.is_some()), "{path:?} {rewrite:?} {target}");
        assert_eq!(text(out), expected.unwrap_or_default(), "{path:?} {rewrite:?} {target}");
    }
    let all = Rewrite { path: matched("/x"), host: None };
    let mut out = Vec::new();
    let options = "OPTIONS * HTTP/1.1\r\nHost: a\r\n";
    assert_eq!(viewing(options, |view| all.target(&PathMatch::Any, view, &mut out)), Ok(true));
    assert_eq!(out, b"*");
    let growing = Rewrite { path: replaced("x", &"y".repeat(1000)), host: None };
    let long = get("h", &format!("/{}", "x".repeat(1000)));
    let grown = viewing(&long, |view| growing.target(&PathMatch::Any, view, &mut Vec::new()));
    assert_eq!(grown, Err(Reason::HeaderTooLarge));
}

#[test]
fn redirects_say_where_to() {
    let plain = Redirect { status: 302, ..Redirect::default() };
    let elements = PathMatch::ElementPrefix(b"/a".as_slice().into());
    let path = |path: RedirectPath| Redirect { path, ..plain.clone() };
    let https = Redirect { scheme: Some("https".into()), ..plain.clone() };
    for (redirect, host, target, expected) in [
        (plain.clone(), "shop:8080", "/a?q=1", "http://shop:8080/a?q=1"),
        (https.clone(), "shop", "/a", "https://shop/a"),
        (https.clone(), "shop:80", "/a", "https://shop/a"),
        (https.clone(), "shop:8080", "/a", "https://shop:8080/a"),
        (https, "[::1]:80", "/a", "https://[::1]/a"),
        (Redirect { port: Some(8443), ..plain.clone() }, "shop:80", "/a", "http://shop:8443/a"),
        (Redirect { host: Some("other".into()), ..plain.clone() }, "shop:80", "/a", "http://other/a"),
        (Redirect { strip_query: true, ..plain.clone() }, "shop", "/a?q", "http://shop/a"),
        (path(RedirectPath::Full("/b".into())), "shop", "/a?q", "http://shop/b?q"),
        (path(RedirectPath::Full("/b?r".into())), "shop", "/a?q", "http://shop/b?r"),
        (
            path(RedirectPath::Rewrite(PathRewrite::matched("/b").unwrap())),
            "shop",
            "/a/c?q",
            "http://shop/b/c?q",
        ),
    ] {
        redirect.check().unwrap();
        let mut out = Vec::new();
        viewing(&get(host, target), |view| redirect.location(&elements, view, &mut out)).unwrap();
        assert_eq!(text(out), expected, "{redirect:?} {host} {target}");
    }
    let nameless = viewing("GET / HTTP/1.0\r\n", |view| plain.location(&elements, view, &mut Vec::new()));
    assert_eq!(nameless, Err(Reason::InvalidHost));
}

#[test]
fn keys_are_combined_in_order() {
    let from = |source: KeySource| HashPolicy { source, terminal: false };
    let last = |source: KeySource| HashPolicy { source, terminal: true };
    let header = || KeySource::Header("x-user".into());
    let cookie = || KeySource::Cookie("id".into(), None);
    let hash = |text: &str| crate::hash::xxh64(text.as_bytes(), 0);
    let both = |a: u64, b: u64| a.rotate_left(1) ^ b;
    let address: IpAddr = "10.1.2.3".parse().unwrap();
    for (policies, lines, expected) in [
        (vec![], "x-user: a\r\n", None),
        (vec![from(header())], "X-User: a\r\n", Some(hash("a"))),
        (vec![from(header())], "", None),
        (vec![from(cookie())], "Cookie: a=b; id=7; id=8\r\n", Some(hash("7"))),
        (vec![from(cookie())], "Cookie: xid=1\r\nCookie: id=\"7\"\r\n", Some(hash("7"))),
        (vec![from(cookie())], "Cookie: id=\r\n", None),
        (vec![from(KeySource::SourceAddress)], "", Some(hash("10.1.2.3"))),
        (vec![from(KeySource::Query("q".into()))], "", Some(hash("v"))),
        (
            vec![from(header()), from(cookie())],
            "x-user: a\r\ncookie: id=b\r\n",
            Some(both(hash("a"), hash("b"))),
        ),
        (vec![last(header()), from(cookie())], "x-user: a\r\ncookie: id=b\r\n", Some(hash("a"))),
        (vec![last(header()), from(cookie())], "cookie: id=b\r\n", Some(hash("b"))),
        (vec![from(header()), from(header())], "x-user: a\r\n", Some(both(hash("a"), hash("a")))),
    ] {
        let route = Route { hash: policies, ..Route::to_cluster("r", 0) };
        let request = format!("{}{lines}", get("a", "/?q=v"));
        let key = viewing(&request, |view| route.key(view, Some(address), 7));
        assert_eq!(key, (expected, None), "{:?} {lines:?}", route.hash);
    }
    assert_eq!(address_key("::1".parse().unwrap()), hash("::1"));
    assert_eq!(
        address_key("1111:2222:3333:4444:5555:6666:7777:8888".parse().unwrap()),
        hash("1111:2222:3333:4444:5555:6666:7777:8888")
    );
}

#[test]
fn a_split_goes_by_what_it_says() {
    let by = |by: SplitBy| {
        let backends = vec![Backend::new("stable", 1, 50), Backend::new("canary", 2, 50)];
        Route {
            action: RouteAction::Weighted(Split::new(backends, by).unwrap()),
            hash: vec![HashPolicy { source: KeySource::Cookie("id".into(), None), terminal: false }],
            ..Route::to_cluster("r", 0)
        }
    };
    // How many clusters these requests see over many random numbers.
    let clusters = |route: &Route, lines: &str| {
        viewing(&format!("{}{lines}", get("a", "/")), |view| {
            let (key, _) = route.key(view, None, 7);
            let random = (0..100u64).map(|step| step * (u64::MAX / 100));
            let seen: std::collections::BTreeSet<_> = random
                .map(|random| match route.destination(view, key, random) {
                    Ok(Destination::Cluster(cluster)) => cluster,
                    other => panic!("{other:?}"),
                })
                .collect();
            seen.len()
        })
    };
    for (route, lines, expected) in [
        (by(SplitBy::Random), "x-user: a\r\ncookie: id=1\r\n", 2),
        (by(SplitBy::Header("x-user".into())), "x-user: a\r\n", 1),
        (by(SplitBy::Header("x-user".into())), "cookie: id=1\r\n", 2),
        (by(SplitBy::HashPolicy), "cookie: id=1\r\n", 1),
        (by(SplitBy::HashPolicy), "", 2),
    ] {
        assert_eq!(clusters(&route, lines), expected, "{:?} {lines:?}", route.action);
    }
}

#[test]
fn a_cookie_that_is_missing_is_made_and_leads_to_the_same_key() {
    let life = |max_age: u64, path: &str| Some(Lifetime { max_age, path: path.into() });
    let cookie = |name: &str, life: Option<Lifetime>| HashPolicy {
        source: KeySource::Cookie(name.into(), life),
        terminal: true,
    };
    for (policy, expected) in [
        (
            cookie("id", life(60, "/")),
            "Set-Cookie: id=\"00000000deadbeef\"; Max-Age=60; Path=/; HttpOnly\r\n",
        ),
        (cookie("id", life(0, "")), "Set-Cookie: id=\"00000000deadbeef\"; HttpOnly\r\n"),
    ] {
        let route = Route { hash: vec![policy], ..Route::to_cluster("r", 0) };
        let (key, made) = viewing(&get("a", "/"), |view| route.key(view, None, 0xdead_beef));
        let mut line = Vec::new();
        route.set_cookie(made.unwrap(), &mut line);
        assert_eq!(text(line), expected);
        for value in ["00000000deadbeef", "\"00000000deadbeef\""] {
            let request = format!("{}cookie: id={value}\r\n", get("a", "/"));
            let again = viewing(&request, |view| route.key(view, None, 8));
            assert_eq!(again, (key, None), "{value}");
        }
    }
    let table = |policy: HashPolicy| {
        let route = Route { hash: vec![policy], ..Route::to_cluster("r", 0) };
        RouteTable::new(vec![host(&["*"], vec![route])], false).err()
    };
    assert_eq!(table(cookie("a;b", None)), Some(RouteTableError::Cookie("a;b".to_owned())));
    assert_eq!(table(cookie("a", life(0, "/;x"))), Some(RouteTableError::Cookie("a".to_owned())));
    assert_eq!(table(cookie("a", life(0, "/x\r\n"))), Some(RouteTableError::Cookie("a".to_owned())));
    assert_eq!(table(cookie("a", life(0, "/x"))), None);
}
