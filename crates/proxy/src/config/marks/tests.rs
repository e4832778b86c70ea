use outrider_xds_types::names::of_service;
use outrider_xds_types::pb::google::protobuf::Value;

use super::*;

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn metadata(said: Struct) -> Option<Metadata> {
    let filter_metadata = HashMap::from([(TRANSPORT_SOCKET_MATCH.to_owned(), said)]);
    Some(Metadata { filter_metadata, ..Metadata::default() })
}

fn texts(list: &[(&str, &str)]) -> Mark {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn wanted(list: &[(&str, &str)]) -> ParsedMatch {
    let server_name = rustls_pki_types::ServerName::try_from("x").unwrap();
    let tls = ParsedTls { expected: Vec::new(), server_name, alpn: Vec::new() };
    ParsedMatch { wanted: texts(list), tls }
}

fn number(name: &str) -> Struct {
    let value = Value { kind: Some(Kind::NumberValue(1.0)) };
    Struct { fields: HashMap::from([(name.to_owned(), value)]) }
}

#[test]
fn the_first_match_of_which_an_endpoint_says_everything_is_its() {
    let mut marks = Marks::default();
    let mut both = of_service("shop/a");
    both.fields.extend(of_service("x").fields.into_values().map(|value| ("more".to_owned(), value)));
    marks.add(at(1), metadata(of_service("shop/a"))).unwrap();
    marks.add(at(2), metadata(both)).unwrap();
    marks.add(at(3), metadata(of_service("shop/c"))).unwrap();
    marks.add(at(4), metadata(number("service"))).unwrap();
    marks.add(at(5), metadata(Struct::default())).unwrap();
    marks.add(at(6), None).unwrap();
    marks.add(at(7), metadata(of_service("shop/a"))).unwrap();
    let places = |matches: &[ParsedMatch]| {
        let mut places: Vec<_> =
            marks.places(matches).map(|(at, place)| (at.ip().to_string(), place)).collect();
        places.sort();
        places
            .into_iter()
            .map(|(at, place)| format!("{}={place}", at.trim_start_matches("10.0.0.")))
            .collect::<Vec<_>>()
    };
    let (more, a, none) =
        (wanted(&[("service", "shop/a"), ("more", "x")]), wanted(&[("service", "shop/a")]), wanted(&[]));
    assert_eq!(places(&[]), [] as [String; 0]);
    assert_eq!(places(&[more.clone(), a.clone()]), ["1=1", "2=0", "7=1"]);
    assert_eq!(places(&[a, more]), ["1=0", "2=0", "7=0"]);
    // It wants nothing, so it is everybody's who says anything.
    assert_eq!(places(&[none]), ["1=0", "2=0", "3=0", "4=0", "7=0"]);
}

#[test]
fn only_so_many_differ() {
    let mut marks = Marks::default();
    for n in 0..MAX_MARKS {
        marks.add(at(1), metadata(of_service(&n.to_string()))).unwrap();
    }
    marks.add(at(2), metadata(of_service("7"))).unwrap();
    let refusal = marks.add(at(3), metadata(of_service("one more"))).unwrap_err();
    assert!(refusal.to_string().contains("at most 256"), "{refusal}");
}

#[test]
fn a_match_that_cannot_be_honoured_is_refused_by_its_place() {
    let one = |r#match| TransportSocketMatch { name: "x".to_owned(), r#match, transport_socket: None };
    let cases = [
        (vec![one(None)], "transport_socket_matches[0].transport_socket"),
        (vec![one(Some(number("service")))], "transport_socket_matches[0].match"),
        (vec![one(None); MAX_MARKS + 1], "at most 256"),
    ];
    for (given, expected) in cases {
        let refusal = matches(given).unwrap_err().to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
}
