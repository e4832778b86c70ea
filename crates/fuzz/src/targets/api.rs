//! Messages between agents and control plane, and bodies of the HTTP API.

use outrider_api::agent::{Fact, FactKind, Instruction};
use outrider_api::{agent, http};
use prost::Message;

use super::{Target, Verdict, expect};
use crate::mutate::Shape;

pub(super) const FACT: Target = Target {
    name: "fact",
    from: "agents",
    shape: Shape::Protobuf,
    pieces: &[b"shop/web", b"/", b"\xff", b"native", b"builtin", b"\0", b"127.0.0.1"],
    most: 8_000,
    memory: 2_000,
    rounds: 3_000,
    accepted: 20,
    seeds: facts,
    check: fact,
};

pub(super) const INSTRUCTION: Target = Target {
    name: "instruction",
    from: "the control plane",
    seeds: instructions,
    check: |bytes| {
        let Ok(instruction) = Instruction::decode(bytes) else { return Ok(false) };
        let again =
            Instruction::decode(instruction.encode_to_vec().as_slice()).map_err(|error| error.to_string())?;
        // Numbers that are none are not equal to themselves.
        expect(format!("{again:?}") == format!("{instruction:?}"), || {
            "another one when it is said again".to_owned()
        })?;
        Ok(true)
    },
    ..FACT
};

pub(super) const HTTP: Target = Target {
    name: "api-http",
    from: "whoever calls the API",
    shape: Shape::Json,
    pieces: &[b"\"", b"{", b"}", b"null", b"-1", b"\\u0000", b"\"kind\"", b"\"name\"", b"1e99", b"[["],
    memory: 400,
    rounds: 5_000,
    accepted: 5,
    seeds: bodies,
    check: body,
    ..FACT
};

fn facts() -> Vec<Vec<u8>> {
    let text = |text: &str| text.to_owned();
    let version = agent::ResourceVersion { name: text("inbound/main"), version: text("1") };
    let release = agent::Release { engine: text("native"), release: text("builtin"), ..Default::default() };
    let generation = agent::GenerationStatus {
        generation: 1,
        target: Some(release.clone()),
        state: text("accepting"),
        ..Default::default()
    };
    let kinds = [
        FactKind::Hello(agent::Hello::default()),
        FactKind::Heartbeat(agent::Heartbeat::default()),
        FactKind::Instances(agent::Instances {
            instances: vec![agent::Instance {
                service: text("shop/web"),
                name: text("web-1"),
                endpoints: vec![agent::InstanceEndpoint {
                    address: text("10.0.0.1"),
                    port: text("http"),
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }),
        FactKind::Applied(agent::Applied {
            proxy: text("shop/web-1"),
            acked: vec![version],
            ..Default::default()
        }),
        FactKind::Traffic(agent::Traffic {
            proxy: text("shop/web-1"),
            listeners: vec![agent::ListenerTraffic::default()],
            clusters: vec![agent::ClusterTraffic {
                cluster: text("outbound/shop/db/sql"),
                unused: vec![agent::UnusedEndpoint::default()],
                ..Default::default()
            }],
            ..Default::default()
        }),
        FactKind::Occurred(Box::new(agent::Occurred {
            proxy: text("shop/web-1"),
            number: 7,
            ..Default::default()
        })),
        FactKind::ProxyStatus(Box::new(agent::ProxyStatus {
            proxy: text("shop/web-1"),
            generations: vec![generation],
            ..Default::default()
        })),
        FactKind::Answer(Box::default()),
    ];
    kinds.into_iter().map(|kind| Fact { kind: Some(kind) }.encode_to_vec()).collect()
}

fn fact(bytes: &[u8]) -> Verdict {
    let Ok(fact) = Fact::decode(bytes) else { return Ok(false) };
    let again = Fact::decode(fact.encode_to_vec().as_slice()).map_err(|error| error.to_string())?;
    expect(format!("{again:?}") == format!("{fact:?}"), || "another one when it is said again".to_owned())?;
    if let Some(FactKind::ProxyStatus(status)) = &fact.kind {
        expect(!status.is_news_after(status) || format!("{status:?}").contains("NaN"), || {
            "news after itself".to_owned()
        })?;
    }
    Ok(fact.kind.is_some())
}

fn instructions() -> Vec<Vec<u8>> {
    use agent::InstructionKind as Kind;
    let kinds = [
        Kind::Welcome(agent::Welcome { heartbeat_ms: 2000, ..Default::default() }),
        Kind::Bundle(agent::Bundle::default()),
        Kind::Refused(agent::Refused::default()),
        Kind::Command(agent::Command {
            proxy: "shop/web-1".into(),
            action: Some(agent::Action::Upgrade(agent::Upgrade { release: "r2".into() })),
            ..Default::default()
        }),
        Kind::Withdrawn(agent::Withdrawn { instances: vec!["shop/web-1".into()] }),
    ];
    kinds.into_iter().map(|kind| Instruction { kind: Some(kind) }.encode_to_vec()).collect()
}

fn bodies() -> Vec<Vec<u8>> {
    [
        r#"{"sources":[{"name":"a.yaml","text":"kind: Service"}]}"#,
        r#"{"keys":[{"kind":"Service","namespace":"shop","name":"web"}],"namespace_contents":"refuse"}"#,
        r#"{"release":"builtin"}"#,
        r#"{"within_ms":5}"#,
        r#"{"namespaces":["shop"],"services":["shop/web"]}"#,
        r#"{"error":"no"}"#,
    ]
    .map(Into::into)
    .to_vec()
}

fn body(bytes: &[u8]) -> Verdict {
    fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> bool {
        serde_json::from_slice::<T>(bytes).is_ok()
    }
    // Requests at the control plane; what it answers at the CLI.
    Ok(read::<http::ApplyRequest>(bytes)
        | read::<http::DeleteRequest>(bytes)
        | read::<http::TokenRequest>(bytes)
        | read::<http::ReleaseRequest>(bytes)
        | read::<http::DrainRequest>(bytes)
        | read::<http::ErrorBody>(bytes)
        | read::<http::ChangeResponse>(bytes)
        | read::<http::ProxyEvent>(bytes))
}
