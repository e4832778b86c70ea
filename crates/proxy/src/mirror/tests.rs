use outrider_http2::Field;

use super::*;

#[test]
fn shadows_have_their_port_behind() {
    for (host, shadowed) in [
        ("a.b", "a.b-shadow"),
        ("a:80", "a-shadow:80"),
        ("[::1]", "[::1]-shadow"),
        ("[::1]:8", "[::1]-shadow:8"),
    ] {
        assert_eq!(String::from_utf8(shadow(host.as_bytes())).unwrap(), shadowed);
    }
}

#[test]
fn a_tap_is_bounded_by_itself_and_by_all() {
    let copies = Rc::<Copies>::default();
    let tap = Tap::new(&copies, 0);
    let mut taps = Taps::default();
    taps.add(Rc::clone(&tap));
    taps.push(&[1; HELD], false);
    assert_eq!((tap.next().unwrap(), copies.held.get()), (Next::Bytes, HELD));
    tap.consume(1);
    taps.push(&[1; 1], false);
    assert_eq!(copies.held.get(), HELD);
    // One more than it may have: it is lost, and holds nothing.
    taps.push(&[1; 1], false);
    assert!(tap.next().is_err());
    assert_eq!(copies.held.get(), 0);
    let others: Vec<_> = (0..HELD_BY_ALL / HELD).map(|_| Tap::new(&copies, 0)).collect();
    for other in &others {
        other.push(&[1; HELD], &Lines::default(), true);
        assert_eq!(other.next().unwrap(), Next::Bytes);
    }
    let late = Tap::new(&copies, 7);
    late.push(&[1; 1], &Lines::default(), true);
    assert!(late.next().is_err());
    drop((tap, taps, others, late));
    assert_eq!((copies.held.get(), copies.running.get()), (0, 0));
}

#[test]
fn what_breaks_off_takes_its_copies_with_it_and_what_has_ended_does_not() {
    let copies = Rc::<Copies>::default();
    for (end, expected) in [(false, None), (true, Some(Next::Bytes))] {
        let tap = Tap::new(&copies, 0);
        let mut taps = Taps::default();
        taps.add(Rc::clone(&tap));
        taps.push(b"a", end);
        assert!(!tap.is_over());
        drop(taps);
        assert!(tap.is_over());
        assert_eq!(tap.next().ok(), expected);
    }
}

#[test]
fn trailers_count_among_what_all_hold_and_a_copy_that_has_left_holds_nothing() {
    let copies = Rc::<Copies>::default();
    let mut trailers = Lines::default();
    trailers.push(Field::from((b"x-sum".as_slice(), b"17".as_slice())));
    let (tap, other) = (Tap::new(&copies, 7), Tap::new(&copies, 1));
    let mut taps = Taps::default();
    taps.add(Rc::clone(&tap));
    taps.push(b"abc", false);
    taps.finish(&trailers);
    assert!(trailers.size() >= 7);
    assert_eq!((copies.held.get(), copies.running.get()), (7 + 1 + 3 + trailers.size(), 2));
    // Its original is still under way.
    tap.leave();
    assert_eq!((copies.held.get(), copies.running.get()), (1, 1));
    drop((tap, taps));
    assert_eq!((copies.held.get(), copies.running.get()), (1, 1));
    other.hold(HELD_BY_ALL - 1, 0);
    other.push(b"", &trailers, true);
    assert!(other.next().is_err(), "trailers that all copies together have no room for");
}

#[test]
fn a_copy_ends_after_its_original_or_at_the_limit_of_the_whole_whatever_moves() {
    let timers = crate::timers::Timers::new();
    let alarm = timers.alarm();
    let cx = &Task::from_waker(Waker::noop());
    const HOUR: u64 = 3_600_000;
    for (quiet, total, over, ready) in [
        (HOUR, HOUR, false, false),
        (HOUR, HOUR, true, false),
        (HOUR, 0, false, true),
        (0, HOUR, false, false),
        (0, HOUR, true, true),
    ] {
        let tap = Tap::new(&Rc::default(), 0);
        let mut deadline = Deadline::new(Patience { quiet, total }, timers.now());
        if over {
            tap.push(b"", &Lines::default(), true);
            tap.close();
        }
        let polled = deadline.poll(cx, &alarm, &tap, true);
        assert_eq!(polled.is_ready(), ready, "{quiet} {total} {over}");
    }
}

#[test]
fn a_route_without_limits_has_patience_and_no_total() {
    let seconds = |n| Some(Duration::from_secs(n));
    for (response_head, total, expected) in [
        (None, None, (15_000, u64::MAX)),
        (seconds(2), None, (2_000, u64::MAX)),
        (None, seconds(3), (3_000, 3_000)),
        (seconds(2), seconds(3), (2_000, 3_000)),
    ] {
        let limits = RouteTimeouts { response_head, total, ..RouteTimeouts::default() };
        let Patience { quiet, total } = Patience::of(limits);
        assert_eq!((quiet, total), expected);
    }
}
