//! How episodes begin, go on and end.

use super::*;

#[test]
fn a_lease_is_renewed_before_it_ends_while_the_contention_lasts() {
    let mut harness = policy(&[]);
    let mut last_ns = None;
    for _ in 0..120 {
        for request in second(&mut harness, &holder_and_waiters()) {
            if let Action::CpuQuota(_) = request.action {
                let gap = last_ns.map_or(0, |last| harness.now_ns() - last);
                assert!(gap < u64::from(request.lease_ms) * MS / 2, "{gap}");
                last_ns = Some(harness.now_ns());
            }
        }
    }
    assert!(harness.now_ns() - last_ns.expect("asked") < 5 * SECOND);
}

/// The throttled holder: it still calls, but hardly anyone waits.
fn tamed() -> Vec<Load> {
    let mut loads: Vec<Load> = (0..5)
        .map(|n| (Proc::new(200 + n, SERVICE + u64::from(n)), 100, 30, 25))
        .collect();
    loads.push((Proc::new(HOLDER, BATCH), 2, 100, 95));
    loads
}

#[test]
fn a_throttle_that_works_is_kept_up_and_not_for_ever() {
    let mut harness = policy(&[]);
    assert_eq!(
        throttles(&seconds(&mut harness, 3, &holder_and_waiters())),
        1
    );
    assert!(
        throttles(&seconds(&mut harness, 28, &tamed())) >= 7,
        "kept up"
    );
    seconds(&mut harness, 4, &tamed());
    assert_eq!(seconds(&mut harness, 60, &tamed()), [], "let go");
}

#[test]
fn relapses_are_held_longer_up_to_a_limit() {
    let mut harness = policy(&[]);
    let mut held = Vec::new();
    for _ in 0..6 {
        seconds(&mut harness, 3, &holder_and_waiters());
        let mut count = 0;
        while throttles(&seconds(&mut harness, 5, &tamed())) > 0 {
            count += 1;
        }
        held.push(count);
    }
    assert!(held.windows(2).all(|pair| pair[0] <= pair[1]), "{held:?}");
    assert!(held[1] >= held[0] * 2 - 1 && held[5] == held[4], "{held:?}");
    // After a long calm the next episode starts from the beginning.
    seconds(&mut harness, 70, &tamed());
    seconds(&mut harness, 3, &holder_and_waiters());
    let mut count = 0;
    while throttles(&seconds(&mut harness, 5, &tamed())) > 0 {
        count += 1;
    }
    assert_eq!(count, held[0]);
}

#[test]
fn a_culprit_that_stops_is_let_go_soon() {
    let mut harness = policy(&[]);
    assert_eq!(
        throttles(&seconds(&mut harness, 3, &holder_and_waiters())),
        1
    );
    let without: Vec<Load> = tamed()
        .into_iter()
        .filter(|load| load.0.id.pid != HOLDER)
        .collect();
    assert!(throttles(&seconds(&mut harness, 5, &without)) <= 1);
    assert_eq!(seconds(&mut harness, 60, &without), []);
}

#[test]
fn a_culprit_that_ends_is_let_go_at_once() {
    let mut harness = policy(&[]);
    assert_eq!(
        throttles(&seconds(&mut harness, 3, &holder_and_waiters())),
        1
    );
    harness.push(Proc::new(HOLDER, BATCH).exit(0));
    assert_eq!(harness.deliver(), []);
    assert_eq!(seconds(&mut harness, 60, &waiters(0)), []);
    // One with the same pid that started later is someone else.
    let mut harness = policy(&[]);
    seconds(&mut harness, 3, &holder_and_waiters());
    let mut later = Proc::new(HOLDER, BATCH);
    later.id.start_ns += 1;
    harness.push(later.exit(0));
    harness.deliver();
    assert!(throttles(&seconds(&mut harness, 5, &tamed())) >= 1);
}

#[test]
fn a_second_culprit_takes_over() {
    let mut harness = policy(&[]);
    seconds(&mut harness, 3, &holder_and_waiters());
    let second_holder: Load = (Proc::new(300, 77), 18, 940, 920);
    let mut loads = waiters(5);
    loads.push(second_holder);
    let requests = seconds(&mut harness, 4, &loads);
    assert!(
        requests
            .iter()
            .any(|request| request.target == Target::Workload(77)
                && request.action == Action::CpuQuota(100))
    );
}

#[test]
fn a_reload_neither_forgets_nor_repeats() {
    let mut harness = policy(&[]);
    assert_eq!(seconds(&mut harness, 3, &holder_and_waiters()).len(), 2);
    harness.reload().expect("its own state");
    let after = seconds(&mut harness, 10, &holder_and_waiters());
    assert!(
        after.iter().all(|request| request.action != Action::Alert),
        "{after:#?}"
    );
    assert!(throttles(&after) >= 2, "renewed");
    let state = harness.policy().checkpoint();
    for cut in 1..state.len() {
        assert!(harness.restore(2, &state[..cut]).is_err(), "cut at {cut}");
    }
    assert!(harness.restore(3, &state).is_err());
    assert_eq!(harness.restore(2, &[]), Ok(()));
}
