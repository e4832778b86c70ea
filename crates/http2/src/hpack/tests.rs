use proptest::prelude::*;

use super::*;
use crate::head::{Expect, Head, Name};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Decodes to name and value pairs, whatever they mean.
fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Pairs, HpackError> {
    let mut head = Head::new();
    head.begin(Expect::Nothing, u32::MAX, 10_000);
    head.keep_all = Some(Vec::new());
    decoder.decode(block, &mut head)?;
    Ok(head.keep_all.take().unwrap_or_default())
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn pairs(text: &str) -> Pairs {
    let line = |line: &str| {
        let (name, value) = line.trim().split_once("= ").unwrap();
        (name.trim().as_bytes().to_vec(), value.as_bytes().to_vec())
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(line).collect()
}

/// The sequences of RFC 7541, appendix C: blocks on one connection, and the size of the table after each.
#[test]
fn examples_of_the_rfc() {
    let requests = [
        ":method= GET\n:scheme= http\n:path= /\n:authority= www.example.com",
        ":method= GET\n:scheme= http\n:path= /\n:authority= www.example.com\ncache-control= no-cache",
        ":method= GET\n:scheme= https\n:path= /index.html\n:authority= www.example.com\ncustom-key= custom-value",
    ];
    let responses = [
        ":status= 302\ncache-control= private\ndate= Mon, 21 Oct 2013 20:13:21 GMT\nlocation= https://www.example.com",
        ":status= 307\ncache-control= private\ndate= Mon, 21 Oct 2013 20:13:21 GMT\nlocation= https://www.example.com",
        ":status= 200\ncache-control= private\ndate= Mon, 21 Oct 2013 20:13:22 GMT\nlocation= https://www.example.com\n\
         content-encoding= gzip\nset-cookie= foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    ];
    /// Section, size of the table, blocks, what they are, the table's size after each.
    type Case<'a> = (&'a str, usize, &'a [&'a str], &'a [&'a str], &'a [usize]);
    let cases: &[Case<'_>] = &[
        (
            "C.3",
            4096,
            &[
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            &requests,
            &[57, 110, 164],
        ),
        (
            "C.4",
            4096,
            &[
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            &requests,
            &[57, 110, 164],
        ),
        (
            "C.5",
            256,
            &[
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17\
                 68747470733a2f2f7777772e6578616d706c652e636f6d",
                "4803333037c1c0bf",
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d41\
                 53444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
            ],
            &responses,
            &[222, 222, 215],
        ),
        (
            "C.6",
            256,
            &[
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
                "4883640effc1c0bf",
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960\
                 d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ],
            &responses,
            &[222, 222, 215],
        ),
    ];
    for (section, size, blocks, fields, sizes) in cases {
        let mut decoder = Decoder::new(*size as u32);
        decoder.set_table_size(*size);
        for ((block, fields), size) in blocks.iter().zip(*fields).zip(*sizes) {
            let decoded = decode(&mut decoder, &hex(block)).unwrap();
            assert_eq!(decoded, pairs(fields), "{section}");
            assert_eq!(decoder.table_size(), *size, "{section}");
        }
    }
}

/// RFC 7541, appendix C.2: each representation by itself.
#[test]
fn every_representation() {
    let cases: &[(&str, &str, usize)] = &[
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key= custom-header", 55),
        ("040c2f73616d706c652f70617468", ":path= /sample/path", 0),
        ("100870617373776f726406736563726574", "password= secret", 0),
        ("82", ":method= GET", 0),
    ];
    for (block, fields, size) in cases {
        let mut decoder = Decoder::new(4096);
        assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), pairs(fields));
        assert_eq!(decoder.table_size(), *size);
    }
}

#[test]
fn blocks_that_are_none() {
    let cases: &[(&str, HpackError)] = &[
        ("80", HpackError::Index),
        ("be", HpackError::Index),
        ("ff00", HpackError::Index),
        ("7e0161", HpackError::Index),
        ("4001", HpackError::Truncated),
        ("400161", HpackError::Truncated),
        ("40", HpackError::Truncated),
        ("ff", HpackError::Truncated),
        ("ffffffffffffffffff", HpackError::Integer),
        ("00ff808080808080", HpackError::Integer),
        ("008100ff", HpackError::Huffman),
        ("0084ffffffff0161", HpackError::Huffman),
        // The size is changed after a field, or above the limit.
        ("8220", HpackError::TableSize),
        ("3fe21f", HpackError::TableSize),
    ];
    for (block, error) in cases {
        assert_eq!(decode(&mut Decoder::new(4096), &hex(block)), Err(*error), "{block}");
    }
    assert_eq!(decode(&mut Decoder::new(4096), &hex("3fe11f")), Ok(vec![]));
    assert_eq!(decode(&mut Decoder::new(4096), &hex("203fe11f82")).map(|fields| fields.len()), Ok(1));
}

/// RFC 7541 section 4.2.
#[test]
fn a_lower_limit_must_be_followed_once_it_is_acknowledged() {
    let mut decoder = Decoder::new(100);
    assert!(decode(&mut decoder, &hex("82")).is_ok());
    decoder.acknowledged(100);
    assert_eq!(decode(&mut decoder, &hex("82")), Err(HpackError::TableSize));
    let mut decoder = Decoder::new(100);
    decoder.acknowledged(100);
    assert_eq!(decode(&mut decoder, &hex("3f46")), Err(HpackError::TableSize));
    let mut decoder = Decoder::new(100);
    decoder.acknowledged(100);
    assert!(decode(&mut decoder, &hex("3f4582")).is_ok());
    assert!(decode(&mut decoder, &hex("82")).is_ok());
}

#[test]
fn the_encoder_announces_the_smallest_and_the_last_size() {
    let mut encoder = Encoder::new(4096, true);
    let mut out = Vec::new();
    encoder.set_limit(100);
    encoder.set_limit(0);
    encoder.set_limit(200);
    encoder.begin(&mut out);
    assert_eq!(out, hex("203fa901"));
    out.clear();
    encoder.begin(&mut out);
    assert_eq!(out, hex(""));
    encoder.set_limit(8000);
    encoder.begin(&mut out);
    assert_eq!(out, hex("3fe11f"), "our own limit holds");
}

#[test]
fn credentials_enter_no_table_and_paths_only_when_they_come_again() {
    let mut encoder = Encoder::new(4096, true);
    let mut out = Vec::new();
    encoder.begin(&mut out);
    for name in ["authorization", "cookie", "set-cookie", "proxy-authorization", "Cookie"] {
        out.clear();
        encoder.field(name.as_bytes(), b"secret", false, &mut out);
        assert_eq!(out[0] & 0xf0, 0x10, "{name}");
    }
    out.clear();
    encoder.field(b":path", b"/a/b", false, &mut out);
    assert_eq!(out[0] & 0xf0, 0x00);
    out.clear();
    encoder.field(b":path", b"/a/b", false, &mut out);
    assert_eq!(out[0] & 0xc0, 0x40);
    out.clear();
    encoder.field(b":path", b"/a/b", false, &mut out);
    assert_eq!(out.len(), 1);
}

#[test]
fn names_of_the_tables_are_known_without_being_looked_at() {
    assert_eq!(crate::head::classify(b":Method"), Name::UnknownPseudo);
    assert_eq!(crate::head::classify(b"Accept"), Name::Bad);
}

fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, bool)> {
    let names = prop_oneof![
        Just(b":path".to_vec()),
        Just(b":status".to_vec()),
        Just(b"cookie".to_vec()),
        Just(b"content-type".to_vec()),
        Just(b"x-trace".to_vec()),
        prop::collection::vec(any::<u8>().prop_map(|b| b.to_ascii_lowercase()), 0..40),
    ];
    let values = prop_oneof![
        Just(b"200".to_vec()),
        Just(b"/".to_vec()),
        "[a-f]{0,2}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..120),
    ];
    (names, values, prop::bool::weighted(0.1))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    /// What is encoded is decoded, over many blocks and changes of the table's size.
    #[test]
    fn blocks_survive(
        blocks in prop::collection::vec((prop::collection::vec(field(), 0..12), prop::option::of(0u32..6000)), 1..16),
        cap in prop_oneof![Just(0u32), Just(64), Just(4096), Just(16_384)],
    ) {
        let mut encoder = Encoder::new(cap, true);
        let mut decoder = Decoder::new(8192);
        for (fields, limit) in blocks {
            if let Some(limit) = limit {
                encoder.set_limit(limit);
            }
            let mut block = Vec::new();
            encoder.begin(&mut block);
            for (name, value, sensitive) in &fields {
                encoder.field(name, value, *sensitive, &mut block);
            }
            let expected: Vec<_> = fields.into_iter().map(|(name, value, _)| (name, value)).collect();
            prop_assert_eq!(decode(&mut decoder, &block), Ok(expected));
        }
        prop_assert!(encoder.footprint() <= 64 << 10);
    }

    /// Nothing that is decoded panics, and the table keeps to its size.
    #[test]
    fn no_block_panics(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6)) {
        let mut decoder = Decoder::new(4096);
        for block in blocks {
            let _ = decode(&mut decoder, &block);
            prop_assert!(decoder.table_size() <= 4096);
        }
    }
}
