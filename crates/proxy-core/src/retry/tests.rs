use proptest::prelude::*;

use super::budget::{Budget, BudgetConfig};
use super::*;
use crate::http1::{Limits, RequestHead};
use crate::route::Http1View;

const FACTS: Facts = Facts {
    idempotent: true,
    repeatable: true,
    whole: true,
    elsewhere: true,
    attempts: 1,
    left_ms: u64::MAX,
};

fn policy(on: &str) -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::parse(on).unwrap(),
        statuses: [418, 429].into(),
        retries: 2,
        unprocessed_retries: 2,
        ..RetryPolicy::default()
    }
}

#[test]
fn conditions_are_read_or_refused_by_name() {
    assert_eq!(RetryOn::parse(""), Ok(RetryOn::UNPROCESSED));
    let unprocessed = RetryOn::parse("connect-failure,refused-stream, reset-before-request");
    assert_eq!(unprocessed, Ok(RetryOn::UNPROCESSED));
    let all = RetryOn::parse("5xx,gateway-error,reset,retriable-4xx,retriable-status-codes").unwrap();
    assert!(all.server_error && all.gateway_error && all.reset && all.conflict && all.statuses);
    let grpc = RetryOn::parse("cancelled,deadline-exceeded,resource-exhausted,internal,unavailable").unwrap();
    let statuses: Vec<u8> =
        (0..=40).filter(|s| RetryPolicy { on: grpc, ..policy("") }.wants_grpc(*s)).collect();
    assert_eq!(statuses, [1, 4, 8, 13, 14]);
    assert_eq!(RetryOn::parse("5xx,sometimes"), Err(UnknownCondition("sometimes".into())));
}

#[test]
fn each_condition_is_for_its_own_endings() {
    let answers = [409, 418, 429, 500, 502, 503, 504, 599].map(Ended::Status);
    let endings = [Ended::InVain, Ended::Unprocessed, Ended::Broken, Ended::TimedOut].into_iter();
    let endings: Vec<Ended> = endings.chain(answers).collect();
    let cases: [(&str, &[usize]); 6] = [
        ("", &[0, 1]),
        ("5xx", &[0, 1, 2, 3, 7, 8, 9, 10, 11]),
        ("gateway-error", &[0, 1, 2, 3, 8, 9, 10]),
        ("reset", &[0, 1, 2, 3]),
        ("retriable-4xx", &[0, 1, 4]),
        ("retriable-status-codes", &[0, 1, 5, 6]),
    ];
    for (on, expected) in cases {
        let again = |ended: &Ended| matches!(policy(on).decide(*ended, FACTS, 0), Verdict::Again(_));
        let got: Vec<usize> = (0..endings.len()).filter(|n| again(&endings[*n])).collect();
        assert_eq!(got, expected, "{on}");
    }
    assert!(!policy("").keeps());
    assert!(policy("unavailable").keeps());
    assert!(!RetryPolicy { retries: 0, ..policy("5xx") }.keeps());
}

#[test]
fn what_may_be_repeated_is_an_idempotent_method_or_what_the_policy_names() {
    let parse = |text: &str| {
        let mut head = RequestHead::new();
        head.parse(text.as_bytes(), &Limits::default()).unwrap();
        head
    };
    let post = "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: 7\r\n\r\n";
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut policy = policy("5xx");
    assert!(policy.may_repeat(&Http1View { head: &parse(get), buf: get.as_bytes() }));
    assert!(!policy.may_repeat(&Http1View { head: &parse(post), buf: post.as_bytes() }));
    policy.repeatable = vec![HeaderMatch {
        invert: false,
        ..HeaderMatch::new("idempotency-key", crate::route::ValueMatch::Present)
    }];
    assert!(policy.may_repeat(&Http1View { head: &parse(post), buf: post.as_bytes() }));
    assert!(!policy.may_repeat(&Http1View { head: &parse(get), buf: get.as_bytes() }));
}

#[test]
fn e34_what_swallowed_an_attempt_is_not_tried_again() {
    let ended = Ended::unconnected(Reason::ConnectTimeout);
    for on in ["", "5xx,reset"] {
        let decide = |elsewhere| policy(on).decide(ended, Facts { elsewhere, ..FACTS }, 0);
        assert_eq!(decide(false), Verdict::Over(Over::NowhereElse));
        assert_eq!(decide(true), Verdict::Again(Again::default()));
    }
    // So it is where a proxy has tried in vain: it has done so as often as that makes sense.
    let decide = |elsewhere| policy("").decide(Ended::InVain, Facts { elsewhere, ..FACTS }, 0);
    assert_eq!(decide(false), Verdict::Over(Over::NowhereElse));
    assert_eq!(decide(true), Verdict::Again(Again::default()));
    // Refused at once, it costs nobody time.
    let refused = Ended::unconnected(Reason::ConnectFailed);
    let facts = Facts { elsewhere: false, ..FACTS };
    assert!(matches!(policy("").decide(refused, facts, 0), Verdict::Again(_)));
}

#[test]
fn a_race_is_repeated_at_once_and_only_where_twice_means_once() {
    let again = Verdict::Again(Again { wait_ms: 0, budgeted: false, fresh: true });
    assert_eq!(RetryPolicy::default().decide(Ended::Raced, FACTS, 9), again);
    let once = Facts { idempotent: false, repeatable: false, ..FACTS };
    assert_eq!(RetryPolicy::default().decide(Ended::Raced, once, 9), Verdict::Over(Over::NotTwice));
    assert_eq!(policy("reset").decide(Ended::Raced, once, 9), Verdict::Over(Over::NotTwice));
    let said = Facts { repeatable: true, ..once };
    assert!(matches!(policy("reset").decide(Ended::Raced, said, 9), Verdict::Again(_)));
}

fn ended() -> impl Strategy<Value = Ended> {
    prop_oneof![
        Just(Ended::NotConnected),
        Just(Ended::Unreachable),
        Just(Ended::Unprocessed),
        Just(Ended::InVain),
        Just(Ended::Raced),
        Just(Ended::Broken),
        Just(Ended::TimedOut),
        (100_u16..600).prop_map(Ended::Status),
        (0_u8..20).prop_map(Ended::Grpc),
    ]
}

fn on() -> impl Strategy<Value = RetryOn> {
    (any::<[bool; 5]>(), 0_u32..1 << 17).prop_map(|([a, b, c, d, e], grpc)| RetryOn {
        server_error: a,
        gateway_error: b,
        reset: c,
        conflict: d,
        statuses: e,
        grpc,
    })
}

proptest! {
    /// N46: whatever the policy and the order of failures, a request that must not be processed twice is sent again only
    /// after attempts that cannot have been processed; and attempts end.
    #[test]
    fn what_must_not_happen_twice_is_repeated_only_if_it_did_not_happen(
        on in on(), retries in 0..MAX_RETRIES, history in prop::collection::vec((ended(), any::<bool>(), any::<u64>()), 1..40),
    ) {
        let policy = RetryPolicy { on, statuses: [409, 503].into(), retries, ..RetryPolicy::default() };
        let mut attempts = 1;
        for (ended, whole, random) in history {
            let facts = Facts { idempotent: false, repeatable: false, whole, attempts, ..FACTS };
            let Verdict::Again(again) = policy.decide(ended, facts, random) else { break };
            let unprocessed = [Ended::NotConnected, Ended::Unreachable, Ended::Unprocessed, Ended::InVain];
            prop_assert!(unprocessed.contains(&ended), "{ended:?}");
            prop_assert!(whole && !again.budgeted && !again.fresh);
            attempts += 1;
            prop_assert!(attempts <= 1 + UNPROCESSED_RETRIES);
        }
    }

    /// Edge cases 41 and 43: never with a part of the request missing, never beyond the time, the number or the bounds of pauses.
    #[test]
    fn attempts_are_whole_and_bounded(
        on in on(), retries in 0..MAX_RETRIES, ended in ended(), random: u64,
        idempotent: bool, repeatable: bool, whole: bool, elsewhere: bool, attempts in 1_u32..12, left_ms in 0_u64..1000,
    ) {
        let policy = RetryPolicy { on, statuses: [409, 503].into(), retries, unprocessed_retries: retries.max(2), ..RetryPolicy::default() };
        let facts = Facts { idempotent, repeatable, whole, elsewhere, attempts, left_ms };
        if let Verdict::Again(again) = policy.decide(ended, facts, random) {
            prop_assert!(whole);
            prop_assert!(again.wait_ms <= 250);
            if !again.fresh {
                prop_assert!(again.wait_ms < left_ms);
                prop_assert!(attempts <= retries.max(2));
            }
            prop_assert!(elsewhere || !matches!(ended, Ended::Unreachable | Ended::InVain));
            prop_assert_eq!(again.fresh, ended == Ended::Raced && idempotent);
            if again.budgeted {
                prop_assert!(repeatable);
            }
        }
    }

    #[test]
    fn pauses_are_anything_up_to_their_bound(retry in 1_u32..40, random: u64, base in 0_u64..1000, max in 0_u64..10_000) {
        let backoff = Backoff { base: Duration::from_millis(base), max: Duration::from_millis(max) };
        let bound = base.saturating_mul((1 << retry.min(32)) - 1).min(max);
        prop_assert!(backoff.wait(retry, random) <= bound);
        prop_assert_eq!(backoff.wait(retry, u64::MAX), bound);
        prop_assert_eq!(backoff.wait(retry, 0), 0);
    }

    /// N47, against a plain list of what happened in which second.
    #[test]
    fn retries_stay_within_the_budget(
        percent in 0.0..100.0, least_per_second in 0_u32..5,
        seconds in prop::collection::vec((0_u64..200, 0_u64..100), 1..60),
    ) {
        let config = BudgetConfig { percent, least_per_second };
        let mut budget = Budget::default();
        let mut total = 0;
        let mut past: Vec<(u64, u64)> = Vec::new();
        for (n, (requests, failures)) in seconds.into_iter().enumerate() {
            let now = 5_000 + n as u64 * 1000;
            total += requests;
            budget.note(now, total);
            past.push((requests, 0));
            for _ in 0..failures {
                let window = &past[past.len().saturating_sub(10)..];
                let (asked, again) = window.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                let most = (asked as f64 * percent / 100.0).max(f64::from(least_per_second) * 10.0);
                let taken = budget.take(config, now + 3, total);
                prop_assert_eq!(taken, (again + 1) as f64 <= most);
                past.last_mut().unwrap().1 += u64::from(taken);
            }
        }
    }
}

/// N47: every answer a failure, a thousand requests per second, for a minute.
#[test]
fn a_service_that_fails_altogether_gets_a_fifth_more() {
    let (mut budget, mut again) = (Budget::default(), 0_u64);
    let config = BudgetConfig::default();
    for total in 1..=60_000_u64 {
        budget.note(total, total);
        while again < 2 * total && budget.take(config, total, total) {
            again += 1;
        }
    }
    assert!((11_500..=12_000).contains(&again), "{again}");
}
