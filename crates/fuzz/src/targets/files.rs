//! Files that an earlier process left, and files of the kernel.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use outrider_agent::credentials::Credential;
use outrider_agent::journal::Journal;
use outrider_agent::kept;
use outrider_agent::lastgood::LastGood;
use outrider_os::cgroup::Layout;
use outrider_xds::{Resource, ResourceSet};
use outrider_xds_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Target, Verdict, expect, fixture};
use crate::mutate::{Random, Shape};

pub(super) const LAST_GOOD: Target = Target {
    name: "last-good",
    from: "an earlier agent",
    shape: Shape::Protobuf,
    pieces: &[b"shop/web", b"\xff", b"type.googleapis.com/", b"1700000000", b"18446744073709551615"],
    most: 8_000,
    memory: 2_000,
    rounds: 400,
    accepted: 10,
    seeds: || {
        ["1700000000", "1"]
            .map(|when| {
                DeltaDiscoveryResponse { system_version_info: when.into(), ..resources() }.encode_to_vec()
            })
            .to_vec()
    },
    check: last_good,
};

pub(super) const RETIRED: Target =
    Target { name: "retired", seeds: || vec![resources().encode_to_vec()], check: retired, ..LAST_GOOD };

pub(super) const INSTANCE: Target = Target {
    name: "instance",
    shape: Shape::Json,
    pieces: &[
        b"\"",
        b"{",
        b"}",
        b"null",
        b"-1",
        b"18446744073709551615",
        b"\"kept\":true",
        b"shop",
        b"[]",
        b"\\u0000",
    ],
    memory: 400,
    accepted: 3,
    seeds: instances,
    check: instance,
    ..LAST_GOOD
};

pub(super) const SIZES: Target = Target {
    name: "sizes",
    accepted: 3,
    seeds: || vec![br#"{"shop/web native": 67108864, "shop/api envoy": 268435456}"#.to_vec()],
    check: sizes,
    ..INSTANCE
};

pub(super) const EVENTS: Target =
    Target { name: "events", accepted: 3, seeds: events, check: journal, ..INSTANCE };

pub(super) const IDENTITY: Target = Target {
    name: "identity-file",
    pieces: &[b"-----BEGIN ", b"CERTIFICATE-----", b"-----END ", b"\\n", b"AAAA", b"=", b"\"", b"null"],
    rounds: 500,
    accepted: 1,
    seeds: || {
        let text = |file: &str| String::from_utf8(fixture(&format!("fuzz/corpus/seeds/{file}"))).unwrap();
        let whole = json!({"key": text("svid.key"), "chain": text("svid.pem"), "bundle": text("root.pem")});
        vec![serde_json::to_vec(&whole).unwrap()]
    },
    check: identity,
    ..INSTANCE
};

/// `/proc/self/cgroup`, an empty line, and `/proc/self/mountinfo`.
pub(super) const KERNEL: Target = Target {
    name: "cgroup",
    from: "the kernel",
    shape: Shape::Lines,
    pieces: &[
        b":",
        b"/",
        b",",
        b" ",
        b"cgroup2",
        b"\\040",
        b"\\999",
        b"\\",
        b"memory",
        b"cpu,cpuacct",
        b" - ",
        b"..",
    ],
    memory: 400,
    rounds: 5_000,
    accepted: 1,
    seeds: || {
        let one = "0::/user.slice/a\n\n30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let other = "4:memory:/a\\040b\n3:cpu,cpuacct:/a\n\n33 32 0:29 /a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            34 32 0:30 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
        [one, other].map(Into::into).to_vec()
    },
    check: kernel,
    ..INSTANCE
};

fn resources() -> DeltaDiscoveryResponse {
    let of = |name: &str| Resource::new("type.googleapis.com/a.B", name, "1", vec![1, 2, 3]).to_wire();
    DeltaDiscoveryResponse {
        resources: vec![of("inbound/main"), of("outbound/shop/api/main")],
        ..Default::default()
    }
}

/// A folder of this thread.
fn folder<T>(then: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
    }
    FOLDER.with(|folder| then(folder.path()))
}

/// Files of ours are read only if nobody else can read them.
fn put(path: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn last_good(bytes: &[u8]) -> Verdict {
    let mut random = Random::of(bytes);
    let whole = !random.one_in(10);
    folder(|folder| {
        let service = folder.join("last-good/shop.web");
        let _ = std::fs::remove_dir_all(&service);
        std::fs::create_dir_all(&service).unwrap();
        let mut content = Sha256::digest(bytes).to_vec();
        if !whole {
            content[random.below(32)] ^= 1;
        }
        content.extend_from_slice(bytes);
        put(&service.join("0000000001"), &content);
        let (loaded, passed_over) = LastGood::new(folder.join("last-good")).load("shop/web");
        expect(loaded.is_some() != (passed_over.len() == 1), || "neither loaded nor passed over".to_owned())?;
        let Some(loaded) = loaded else { return Ok(false) };
        expect(whole, || "loaded although it is damaged".to_owned())?;
        // What is loaded can be kept, and is loaded as the same.
        let _ = std::fs::remove_dir_all(&service);
        let store = LastGood::new(folder.join("last-good"));
        store.keep("shop/web", loaded.set.clone());
        expect(store.flush(UNIX_EPOCH + Duration::from_secs(1)), || "it cannot be kept".to_owned())?;
        let again = LastGood::new(folder.join("last-good")).load("shop/web").0.map(|again| again.set);
        let same = again.as_ref().unwrap_or(&ResourceSet::new()) == &loaded.set;
        expect(same, || format!("{:?} became {again:?}", loaded.set))?;
        Ok(!loaded.set.is_empty())
    })
}

fn retired(bytes: &[u8]) -> Verdict {
    folder(|folder| {
        put(&folder.join("retired"), bytes);
        let (count, same) = kept::retired(folder);
        expect(same, || "it is another one when it is written again".to_owned())?;
        Ok(count > 0)
    })
}

fn instances() -> Vec<Vec<u8>> {
    // As an agent writes it, with one process; the rest is its defaults.
    vec![fixture("fuzz/corpus/seeds/instance.json")]
}

fn instance(bytes: &[u8]) -> Verdict {
    folder(|folder| {
        put(&folder.join("instance.json"), bytes);
        let Some(same) = kept::instance(folder) else { return Ok(false) };
        expect(same, || "it is another one when it is written again".to_owned())?;
        Ok(true)
    })
}

fn sizes(bytes: &[u8]) -> Verdict {
    folder(|folder| {
        put(&folder.join("sizes.json"), bytes);
        Ok(kept::size(folder) > 0)
    })
}

fn events() -> Vec<Vec<u8>> {
    String::from_utf8(fixture("fuzz/corpus/seeds/events")).unwrap().lines().map(Into::into).collect()
}

fn journal(bytes: &[u8]) -> Verdict {
    folder(|folder| {
        let file = folder.join("events");
        let _ = std::fs::remove_file(folder.join("events.1"));
        put(&file, bytes);
        let journal = Journal::open(file, UNIX_EPOCH);
        let all = journal.last(None, 100);
        for one in &all {
            expect(!one.sentence().is_empty(), || "nothing is said of it".to_owned())?;
            let line = serde_json::to_vec(one).map_err(|error| error.to_string())?;
            let again: outrider_agent::journal::Occurrence = serde_json::from_slice(&line)
                .map_err(|error| format!("{one:?} is not read again: {error}"))?;
            expect(again == *one, || format!("{one:?} became {again:?}"))?;
            let _ = one.to_wire();
        }
        Ok(!all.is_empty())
    })
}

fn identity(bytes: &[u8]) -> Verdict {
    folder(|folder| {
        let file = folder.join("identity.json");
        put(&file, bytes);
        let Ok(Some(credential)) = Credential::load(&file) else { return Ok(false) };
        credential.slot().map_err(|error| error.to_string())?;
        Ok(true)
    })
}

fn kernel(bytes: &[u8]) -> Verdict {
    let at = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
    let (cgroup, mounts) = bytes.split_at(at);
    Ok(format!("{:?}", Layout::parse(cgroup, mounts)) != format!("{:?}", Layout::default()))
}
