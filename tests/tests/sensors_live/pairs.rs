//! Two children in a cgroup each, one of them beside the other or after it.
//!
//! Invariants: both live until all that they did was delivered; what is watched is chosen here, whatever scope the
//! options have.

use crate::support::*;
use palisade::sensors::SensorOptions;

/// What is seen while a stranger, who is not watched, does the same work: nothing is lost, and nothing is the stranger's.
pub fn beside_a_stranger(object: &[u8], options: SensorOptions, work: impl Fn() -> i32) -> Seen {
    let (inside, outside) = (Cgroup::new(), Cgroup::new());
    let (child, stranger) = (Child::new(&work), Child::new(&work));
    inside.take(child.pid);
    outside.take(stranger.pid);
    let (pid, workload) = (child.pid, inside.id());
    let scope = scope(&[&inside]);
    let watch = Watch::new(object, SensorOptions { scope, ..options });
    child.start();
    stranger.start();
    child.wait_done();
    stranger.wait_done();
    watch.settle();
    let handle = watch.handle.clone();
    let seen = watch.stop();
    tell_costs(&handle);
    assert_eq!((child.finish(), stranger.finish()), (0, 0));
    seen.assert_none_lost();
    seen.assert_from(pid, workload);
    seen
}

/// What is seen of two that are watched and work one after the other, their workloads and their exit codes.
pub fn one_after_the_other(
    object: &[u8],
    options: SensorOptions,
    works: [&dyn Fn() -> i32; 2],
) -> (Seen, [u64; 2], [i32; 2]) {
    let (first, second) = (Cgroup::new(), Cgroup::new());
    let children = works.map(Child::new);
    first.take(children[0].pid);
    second.take(children[1].pid);
    let scope = scope(&[&first, &second]);
    let watch = Watch::new(object, SensorOptions { scope, ..options });
    for child in &children {
        child.start();
        child.wait_done();
    }
    let seen = watch.stop();
    let codes = children.map(Child::finish);
    (seen, [first.id(), second.id()], codes)
}
