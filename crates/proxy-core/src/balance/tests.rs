use super::*;

fn endpoints(weights: &[u32]) -> Vec<Endpoint<u32>> {
    let endpoint = |(key, &weight): (usize, &u32)| Endpoint { key: key as u32, weight, healthy: true };
    weights.iter().enumerate().map(endpoint).collect()
}

#[test]
fn a_pick_counts_until_it_is_done() {
    let mut balancer = Balancer::default();
    assert_eq!(balancer.pick(1), None);
    assert_eq!(balancer.why_none(), Reason::NoEndpoints);
    balancer.update(endpoints(&[1]));
    let picked = balancer.pick(1).unwrap();
    assert_eq!(balancer.pending(picked), 1);
    balancer.update([]);
    assert_eq!(balancer.pick(2), None);
    assert_eq!((balancer.key(picked), balancer.is_listed(picked)), (Some(&0), false));
    assert!(balancer.done(picked));
    assert!(!balancer.done(picked));
    assert_eq!(balancer.key(picked), None);
}
