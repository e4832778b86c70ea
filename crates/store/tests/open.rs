//! Opening, limits, tokens and hosts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrider_store::{
    Change, ChangesError, CommitError, Key, LogLimits, MAX_CHANGE_SET, MAX_CHANGES, MAX_DOCUMENT, OpenError,
    PAGE_BYTES, Store, Token, UseTokenError,
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
    let token = |id: &str, expires| Token { id: id.into(), hash: [9; 32], expires, scope: None };
    store.put_token(&token("once", 1_000), 500).unwrap();
    let (barrier, wins) = (Barrier::new(8), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (store, barrier, wins) = (&store, &barrier, &wins);
            scope.spawn(move || {
                barrier.wait();
                match store.use_token("once", |hash| *hash == [9; 32], &format!("node-{index}"), 600) {
                    Ok(_) => {
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

#[test]
fn large_documents_fill_pages_and_the_log_by_bytes_and_a_watcher_behind_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let limits = LogLimits { revisions: 10_000, bytes: 16 << 20 };
    let mut store = Store::open_with_log(&path, limits).unwrap();
    let large = |name: &str, fill: &str| {
        Change::Put(Key::new("Service", "shop", name), json!({"pad": fill.repeat(1 << 20)}))
    };
    // Ten sets of two documents of 1 MiB: the log keeps the last seven.
    for round in 0..10 {
        let fill = ["a", "b"][round % 2];
        store.commit(None, &[large("one", fill), large("two", fill)]).unwrap();
        if round == 5 {
            drop(store);
            store = Store::open_with_log(&path, limits).unwrap();
        }
    }
    let behind = store.changes_after(2, usize::MAX).unwrap_err();
    let ChangesError::Compacted { after: 2, oldest } = behind else { panic!("{behind}") };
    assert_eq!(oldest, 3, "the sets 4 to 10 are 14 MiB, the set 3 would make them 16 MiB and a bit");

    // Who starts there reads pages of one set each, and all of them.
    let (mut after, mut pages) = (oldest, Vec::new());
    loop {
        let page = store.changes_after(after, usize::MAX).unwrap();
        let bytes: usize = page.events.iter().map(|event| serde_json::to_vec(event).unwrap().len()).sum();
        assert!(bytes as u64 <= PAGE_BYTES);
        after = page.events.last().unwrap().revision;
        pages.push(page.events.len());
        if !page.more {
            break;
        }
    }
    assert_eq!((after, pages), (10, vec![2; 7]));

    // A set larger than a page is a page, one larger than the log is kept while it is the latest.
    drop(store);
    let store = Store::open_with_log(&path, LogLimits { revisions: 10_000, bytes: 1 << 20 }).unwrap();
    let names: Vec<String> = (0..6).map(|number| format!("n{number}")).collect();
    let six: Vec<Change> = names.iter().map(|name| large(name, "c")).collect();
    store.commit(None, &six).unwrap();
    let page = store.changes_after(10, 1).unwrap();
    assert_eq!((page.events.len(), page.more), (6, false));
    assert!(matches!(store.changes_after(9, 1), Err(ChangesError::Compacted { oldest: 10, .. })));
    // One that no page could hold is refused.
    let most: Vec<Change> = (0..33).map(|number| large(&format!("m{number}"), "d")).collect();
    let error = store.commit(None, &most).unwrap_err();
    assert!(matches!(error, CommitError::TooLarge { limit: MAX_CHANGE_SET, .. }), "{error}");
    assert_eq!(store.revision().unwrap(), 11);
}

#[test]
fn scopes_of_tokens_and_admissions_of_nodes_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Store::open(&path).unwrap();
    let scope = json!({"namespaces": ["shop"]});
    for (id, scope) in [("narrow", Some(scope.clone())), ("wide", None)] {
        store.put_token(&Token { id: id.into(), hash: [9; 32], expires: 100, scope }, 1).unwrap();
    }
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.use_token("narrow", |_| true, "a", 2).unwrap(), Some(scope));
    assert_eq!(store.use_token("wide", |_| true, "b", 2).unwrap(), None);

    let (a, b) = (json!({"keys": ["k"]}), json!({}));
    store.put_nodes(&[("a".into(), Some(a.clone())), ("b".into(), Some(b))]).unwrap();
    store.put_nodes(&[("b".into(), None)]).unwrap();
    store.put_hosts(&[("a".into(), Some(json!({}))), ("c".into(), Some(json!({})))]).unwrap();
    drop(store);
    assert_eq!(Store::open(&path).unwrap().nodes().unwrap(), [("a".to_owned(), a)]);

    // A database of before there were admissions: its hosts are admitted.
    let db = redb::Database::open(&path).unwrap();
    let transaction = db.begin_write().unwrap();
    for table in ["node", "scope"] {
        let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new(table);
        assert!(transaction.delete_table(table).unwrap());
    }
    transaction.commit().unwrap();
    drop(db);
    let store = Store::open(&path).unwrap();
    let empty = |name: &str| (name.to_owned(), serde_json::Value::Null);
    assert_eq!(store.nodes().unwrap(), [empty("a"), empty("c")]);
    store.put_nodes(&[("a".into(), None)]).unwrap();
    drop(store);
    assert_eq!(Store::open(&path).unwrap().nodes().unwrap(), [empty("c")], "only once");
}
