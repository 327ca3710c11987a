//! Work on several policies at the same time.
//!
//! Invariant: all threads have ended when the work is done.

use super::registry::STACK_BYTES;
use std::thread;

/// Policies that are compiled at the same time, at most: the host has a service to run. Each takes some 60 MiB
/// meanwhile.
pub(super) const AT_ONCE: usize = 4;

/// What `work` makes of each item, in their order; as many at a time as there are CPUs, up to [`AT_ONCE`].
pub(super) fn at_the_same_time<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let at_once = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(AT_ONCE);
    let mut results = Vec::with_capacity(items.len());
    for some in items.chunks(at_once) {
        thread::scope(|scope| {
            let mut started = Vec::new();
            for item in some {
                let builder = thread::Builder::new().name("policy-load".to_owned());
                let thread = builder.stack_size(STACK_BYTES);
                started.push((item, thread.spawn_scoped(scope, || work(item))));
            }
            results.extend(started.into_iter().map(|(item, thread)| {
                match thread {
                    Ok(thread) => thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    // The system has no thread left.
                    Err(_) => work(item),
                }
            }));
        });
    }
    results
}
