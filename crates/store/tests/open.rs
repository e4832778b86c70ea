//! Opening, limits, tokens and hosts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrider_store::{
    Change, CommitError, Key, MAX_CHANGES, MAX_DOCUMENT, OpenError, Store, Token, UseTokenError,
};
use serde_json::json;

#[test]
fn a_locked_database_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server/store.redb");
    let store = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)));
    assert!(error.to_string().starts_with("another outrider server uses "), "{error}");
    drop(store);
    Store::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing temporary stays");
}

#[test]
fn what_an_ended_process_left_half_made_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let mut ended = std::process::Command::new("/bin/true").spawn().unwrap();
    ended.wait().unwrap();
    let left = folder.path().join(format!("store.redb.{}.new", ended.id()));
    let kept = [
        format!("store.redb.{}.new", std::process::id()),
        format!("other.redb.{}.new", ended.id()),
        "store.redb.x.new".to_owned(),
    ];
    for round in ["made", "opened"] {
        fs::write(&left, "half").unwrap();
        kept.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        drop(Store::open(&path).unwrap());
        assert!(!left.exists(), "{round}");
    }
    assert!(kept.iter().all(|name| folder.path().join(name).exists()));
}

#[test]
fn damage_is_found_at_opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Store::open(&path).unwrap();
    for number in 0..20 {
        let key = Key::new("Service", "shop", format!("s{number}"));
        store.commit(None, &[Change::Put(key, json!({"pad": "y".repeat(5_000)}))]).unwrap();
    }
    drop(store);
    let good = fs::read(&path).unwrap();
    let at = good.windows(100).position(|window| window == [b'y'; 100]).unwrap();
    let mut flipped = good.clone();
    flipped[at + 50] ^= 1;
    for (name, bad) in [
        ("not a database", b"hello".to_vec()),
        ("zeroes", vec![0; 100_000]),
        ("empty", Vec::new()),
        ("a flipped bit in a document", flipped),
        ("cut in half", good[..good.len() / 2].to_vec()),
    ] {
        fs::write(&path, bad).unwrap();
        match Store::open(&path) {
            Err(error @ OpenError::Corrupt { .. }) => {
                assert!(error.to_string().contains("restore it"), "{name}")
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    fs::write(&path, good).unwrap();
    assert_eq!(Store::open(&path).unwrap().revision().unwrap(), 20);
    assert!(matches!(Store::open(folder.path()), Err(OpenError::Io { .. } | OpenError::Corrupt { .. })));
}

#[test]
fn a_newer_format_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(Store::open(&path).unwrap());
    let db = redb::Database::open(&path).unwrap();
    let transaction = db.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("schema", 99).unwrap();
    transaction.commit().unwrap();
    drop(db);
    assert!(matches!(Store::open(&path), Err(OpenError::Newer { found: 99, .. })));
}

#[test]
fn limits_are_errors_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store.redb")).unwrap();
    let put = |name: String, document| Change::Put(Key::new("Service", "a", name), document);
    let many: Vec<_> = (0..=MAX_CHANGES).map(|number| put(format!("s{number}"), json!({}))).collect();
    assert!(matches!(store.commit(None, &many), Err(CommitError::TooLarge { .. })));
    let large = [put("ok".into(), json!({})), put("large".into(), json!("z".repeat(MAX_DOCUMENT)))];
    assert!(matches!(store.commit(None, &large), Err(CommitError::TooLarge { .. })));
    assert_eq!(store.revision().unwrap(), 0);
    assert_eq!(store.commit(None, &many[..MAX_CHANGES]).unwrap().revision, 1);
    assert_eq!(store.snapshot().unwrap().objects.len(), MAX_CHANGES);
}

#[test]
fn a_token_works_once_for_one_of_many() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store.redb")).unwrap();
    let token = |id: &str, expires| Token { id: id.into(), hash: [9; 32], expires };
    store.put_token(&token("once", 1_000), 500).unwrap();
    let (barrier, wins) = (Barrier::new(8), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (store, barrier, wins) = (&store, &barrier, &wins);
            scope.spawn(move || {
                barrier.wait();
                match store.use_token("once", |hash| *hash == [9; 32], &format!("node-{index}"), 600) {
                    Ok(()) => {
                        wins.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(error) => assert!(matches!(error, UseTokenError::Used { .. }), "{error}"),
                }
            });
        }
    });
    assert_eq!(wins.load(Ordering::SeqCst), 1);

    let wrong = store.use_token("once", |_| false, "n", 600);
    assert!(matches!(wrong, Err(UseTokenError::Unknown)), "a wrong secret learns nothing");
    assert!(matches!(store.use_token("never", |_| true, "n", 600), Err(UseTokenError::Unknown)));
    store.put_token(&token("late", 1_000), 500).unwrap();
    assert!(matches!(store.use_token("late", |_| true, "n", 1_000), Err(UseTokenError::Expired)));
    // Asking beforehand says the same and spends nothing.
    assert!(matches!(store.check_token("never", |_| true, 600), Err(UseTokenError::Unknown)));
    assert!(matches!(store.check_token("once", |_| true, 600), Err(UseTokenError::Used { .. })));
    assert!(matches!(store.check_token("late", |_| false, 999), Err(UseTokenError::Unknown)));
    assert!(matches!(store.check_token("late", |_| true, 1_000), Err(UseTokenError::Expired)));
    store.check_token("late", |_| true, 999).unwrap();
    store.use_token("late", |_| true, "n", 999).unwrap();
    // Forgotten a day after expiry.
    store.put_token(&token("new", 200_000), 1_000 + 24 * 3600).unwrap();
    assert!(matches!(store.use_token("late", |_| true, "n", 999), Err(UseTokenError::Unknown)));
}

#[test]
fn hosts_are_remembered_until_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Store::open(&path).unwrap();
    store.put_hosts(&[("b".into(), Some(json!({"v": 1}))), ("a".into(), Some(json!({"v": 2})))]).unwrap();
    store.put_hosts(&[("b".into(), None), ("gone".into(), None), ("c".into(), Some(json!(3)))]).unwrap();
    drop(store);
    let hosts = Store::open(&path).unwrap().hosts().unwrap();
    assert_eq!(hosts, [("a".to_owned(), json!({"v": 2})), ("c".to_owned(), json!(3))]);
}
