//! Whom a loss of records concerns, in a run and in a replay alike.
//!
//! Invariant: who is who and who has ended is everybody's evidence; of other kinds only those are told who receive them.

use palisade_abi::Kind;
use palisade_core::{Input, WorkloadId};

/// The life of processes, to which the identity tables subscribe.
pub(crate) const LIFE: u64 = Kind::Exec.bit() | Kind::Exit.bit() | Kind::Fork.bit();

/// What the core hears of `count` records that were lost: of that workload (0: it is not known whose they were), or of those
/// kinds (0: it is not known which). `all` answers who runs, `of` who receives a record of one of some kinds.
pub(crate) fn told(
    workload: u64,
    count: u64,
    kinds: u64,
    all: impl FnOnce() -> Vec<String>,
    of: impl FnOnce(u64) -> Vec<String>,
) -> Vec<Input> {
    if kinds == 0 {
        let workload = (workload != 0).then_some(WorkloadId(workload));
        return vec![Input::Lost { workload, count }];
    }
    let concerned = if kinds & LIFE == 0 { of(kinds) } else { all() };
    let skipped = |policy| Input::Skipped { policy, count };
    concerned.into_iter().map(skipped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_to_those_whose_evidence_it_is() {
        let heard = |workload, kinds| {
            let all = || vec!["a".to_owned(), "b".to_owned()];
            let of = |kinds| {
                assert_eq!(kinds, Kind::GpuExit.bit());
                vec!["b".to_owned()]
            };
            told(workload, 3, kinds, all, of)
        };
        let skipped = |policy: &str| Input::Skipped {
            policy: policy.to_owned(),
            count: 3,
        };
        let lost = |workload| vec![Input::Lost { workload, count: 3 }];
        assert_eq!(heard(0, 0), lost(None));
        assert_eq!(heard(7, 0), lost(Some(WorkloadId(7))));
        assert_eq!(heard(7, Kind::GpuExit.bit()), [skipped("b")]);
        let with_life = Kind::GpuExit.bit() | Kind::Fork.bit();
        assert_eq!(heard(0, with_life), [skipped("a"), skipped("b")]);
    }
}
