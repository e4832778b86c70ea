use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Model = BTreeMap<(String, String), String>;

fn resource(type_url: &str, name: &str, version: &str) -> Resource {
    Resource::new(type_url, name, version, version.as_bytes().to_vec())
}

fn model(set: &ResourceSet) -> Model {
    set.iter().map(|r| ((r.type_url.to_string(), r.name.to_string()), r.version.to_string())).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u8, u8),
    Remove(u8, u8),
    Replace(u8, Vec<(u8, u8)>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3u8, 0..4u8, 0..3u8).prop_map(|(t, n, v)| Step::Insert(t, n, v)),
        1 => (0..3u8, 0..4u8).prop_map(|(t, n)| Step::Remove(t, n)),
        1 => (0..3u8, proptest::collection::vec((0..4u8, 0..3u8), 0..4)).prop_map(|(t, l)| Step::Replace(t, l)),
    ];
    proptest::collection::vec(step, 0..30)
}

fn apply(set: &mut ResourceSet, model: &mut Model, step: &Step) {
    let key = |t: &u8, n: &u8| (format!("type{t}"), format!("name{n}"));
    match step {
        Step::Insert(t, n, v) => {
            let ((t, n), v) = (key(t, n), v.to_string());
            let changed = set.insert(resource(&t, &n, &v));
            assert_eq!(changed, model.insert((t, n), v.clone()) != Some(v));
        }
        Step::Remove(t, n) => {
            let (t, n) = key(t, n);
            let gone = set.remove(&t, &n).map(|resource| resource.version.to_string());
            assert_eq!(gone, model.remove(&(t, n)));
        }
        Step::Replace(t, list) => {
            let before = model.clone();
            let type_url = format!("type{t}");
            model.retain(|(other, _), _| *other != type_url);
            let new = list.iter().map(|(n, v)| {
                let (t, n) = key(t, n);
                model.insert((t.clone(), n.clone()), v.to_string());
                Arc::new(resource(&t, &n, &v.to_string()))
            });
            let new: Vec<_> = new.collect();
            assert_eq!(set.replace(&type_url, new), before != *model);
        }
    }
}

proptest! {
    #[test]
    fn a_set_is_a_sorted_map(before in steps(), after in steps()) {
        let (mut set, mut expected) = (ResourceSet::new(), Model::new());
        for step in &before {
            apply(&mut set, &mut expected, step);
        }
        prop_assert_eq!(model(&set), expected.clone());
        let (old, old_expected) = (set.clone(), expected.clone());
        for step in &after {
            apply(&mut set, &mut expected, step);
        }
        prop_assert_eq!(model(&old), old_expected, "a clone is not touched");
        prop_assert_eq!(set.len(), expected.len());
        prop_assert_eq!(old == set, model(&old) == expected);
        // The changes lead from one to the other.
        let mut rebuilt = old.clone();
        for change in old.changes_to(&set) {
            match change {
                Change::Added(new) => {
                    prop_assert!(rebuilt.get(&new.type_url, &new.name).is_none());
                    rebuilt.insert(new);
                }
                Change::Changed(new) => {
                    prop_assert!(rebuilt.get(&new.type_url, &new.name).is_some());
                    rebuilt.insert(new);
                }
                Change::Removed(gone) => prop_assert!(rebuilt.remove(&gone.type_url, &gone.name).is_some()),
            }
        }
        prop_assert_eq!(model(&rebuilt), expected);
    }
}

#[test]
fn prefixes_select_neighbours_only() {
    let set: ResourceSet = ["a", "a/b", "a/b/c", "a/c", "ab"].iter().map(|n| resource("t", n, "1")).collect();
    let names: Vec<&str> = set.with_prefix("t", "a/b").map(|r| &*r.name).collect();
    assert_eq!(names, ["a/b", "a/b/c"]);
    assert_eq!(set.with_prefix("other", "").count(), 0);
}
