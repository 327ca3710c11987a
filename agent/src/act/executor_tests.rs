//! Over a fake cgroup tree: directories and files without a kernel behind them. What the kernel
//! does with the values is in `tests/tests/act_live.rs`.
#![allow(clippy::unwrap_used)]
use super::*;
use palisade_core::EffectId;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

struct Fake {
    root: tempfile::TempDir,
    version: Version,
}

impl Fake {
    fn new(version: Version) -> Self {
        let fake = Self {
            root: tempfile::tempdir().unwrap(),
            version,
        };
        fs::create_dir_all(fake.dir()).unwrap();
        let files: &[(&str, &str)] = match version {
            Version::V1 => &[
                ("cgroup.procs", ""),
                ("cpu.cfs_quota_us", "-1\n"),
                ("cpu.cfs_period_us", "100000\n"),
                ("cpu.shares", "1024\n"),
            ],
            Version::V2 => &[
                ("cgroup.procs", ""),
                ("cgroup.controllers", "cpu\n"),
                ("cgroup.events", "populated 1\nfrozen 1\n"),
                ("cgroup.freeze", "0\n"),
                ("cpu.max", "max 100000\n"),
                ("cpu.weight", "100\n"),
            ],
        };
        for (name, text) in files {
            fake.put(name, text);
        }
        fake
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("cg/ml/a")
    }

    fn put(&self, file: &str, text: &str) {
        fs::write(self.dir().join(file), text).unwrap();
    }

    fn get(&self, file: &str) -> String {
        fs::read_to_string(self.dir().join(file))
            .unwrap()
            .trim()
            .to_owned()
    }

    fn quota(&self) -> String {
        match self.version {
            Version::V1 => format!(
                "{} {}",
                self.get("cpu.cfs_quota_us"),
                self.get("cpu.cfs_period_us")
            ),
            Version::V2 => self.get("cpu.max"),
        }
    }

    fn set_quota(&self, quota: &str) {
        match self.version {
            Version::V1 => {
                let (quota, period) = quota.split_once(' ').unwrap();
                self.put("cpu.cfs_quota_us", quota);
                self.put("cpu.cfs_period_us", period);
            }
            Version::V2 => self.put("cpu.max", quota),
        }
    }

    fn unlimited(&self) -> &'static str {
        match self.version {
            Version::V1 => "-1 100000",
            Version::V2 => "max 100000",
        }
    }

    fn layout(&self) -> Layout {
        let mount = self.root.path().join("cg");
        match self.version {
            Version::V1 => Layout {
                flavour: Flavour::V1,
                id_root: mount.clone(),
                controllers: BTreeMap::from([("cpu".to_owned(), mount)]),
                unified: None,
            },
            Version::V2 => Layout {
                flavour: Flavour::V2,
                id_root: mount.clone(),
                controllers: BTreeMap::new(),
                unified: Some(mount),
            },
        }
    }

    fn journal_dir(&self) -> PathBuf {
        self.root.path().join("journal")
    }

    fn executor(&self) -> Executor {
        self.executor_with(ExecutorOptions::default())
    }

    fn executor_with(&self, options: ExecutorOptions) -> Executor {
        let (journal, _) = Journal::open(&self.journal_dir()).unwrap();
        Executor::new(self.layout(), journal, options)
    }

    fn lease(&self, knob: Knob, value: u32) -> Lease {
        Lease {
            id: LeaseId(1),
            workload: self.layout().workload_id("/ml/a").unwrap(),
            cgroup: "/ml/a".to_owned(),
            knob,
            value,
            owners: vec!["p".to_owned()],
            until_ns: u64::MAX,
        }
    }

    fn act(&self, executor: &mut Executor, knob: Knob, value: u32) -> ActOutcome {
        let lease = self.lease(knob, value);
        let action = match knob {
            Knob::CpuQuota => Action::CpuQuota(value),
            Knob::CpuWeight => Action::CpuWeight(value),
            Knob::Freeze => Action::Freeze,
        };
        executor
            .perform(&Effect::Act {
                id: EffectId(1),
                decision: 1,
                policy: "p".to_owned(),
                target: Target::Workload(lease.workload),
                workload: Some(lease.workload),
                cgroup: Some(lease.cgroup.clone()),
                action,
                lease: Some(lease),
            })
            .unwrap()
    }

    fn undo(&self, executor: &mut Executor, knob: Knob) -> ActOutcome {
        executor
            .perform(&Effect::Undo {
                id: EffectId(2),
                lease: self.lease(knob, 0),
                why: "expired".to_owned(),
            })
            .unwrap()
    }
}

fn observed(outcome: ActOutcome) -> String {
    match outcome {
        ActOutcome::Done { observed, .. } => observed,
        other => panic!("{other:?}"),
    }
}

fn both(check: impl Fn(&Fake)) {
    for version in [Version::V1, Version::V2] {
        check(&Fake::new(version));
    }
}

#[test]
fn a_quota_is_set_read_back_and_undone() {
    both(|fake| {
        let mut executor = fake.executor();
        match fake.act(&mut executor, Knob::CpuQuota, 200) {
            ActOutcome::Done { observed, original } => {
                assert!(observed.contains("20000"), "{observed}");
                assert!(original.unwrap().contains("100000"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fake.quota(), "20000 100000");
        assert_eq!(executor.journal().entries().len(), 1);
        observed(fake.undo(&mut executor, Knob::CpuQuota));
        assert_eq!(fake.quota(), fake.unlimited());
        assert!(executor.journal().entries().is_empty());
        let again = observed(fake.undo(&mut executor, Knob::CpuQuota));
        assert!(again.contains("nothing of ours"), "{again}");
    });
}

#[test]
fn a_weight_is_set_in_the_files_own_units() {
    both(|fake| {
        let mut executor = fake.executor();
        observed(fake.act(&mut executor, Knob::CpuWeight, 50));
        match fake.version {
            Version::V1 => assert_eq!(fake.get("cpu.shares"), "512"),
            Version::V2 => assert_eq!(fake.get("cpu.weight"), "50"),
        }
        observed(fake.undo(&mut executor, Knob::CpuWeight));
        match fake.version {
            Version::V1 => assert_eq!(fake.get("cpu.shares"), "1024"),
            Version::V2 => assert_eq!(fake.get("cpu.weight"), "100"),
        }
    });
}

#[test]
fn tightening_and_loosening_keep_the_first_original() {
    both(|fake| {
        fake.set_quota("80000 50000");
        let mut executor = fake.executor();
        for (permille, quota) in [
            (500, "50000 100000"),
            (100, "10000 100000"),
            (900, "90000 100000"),
        ] {
            observed(fake.act(&mut executor, Knob::CpuQuota, permille));
            assert_eq!(fake.quota(), quota);
        }
        observed(fake.undo(&mut executor, Knob::CpuQuota));
        assert_eq!(fake.quota(), "80000 50000");
    });
}

#[test]
fn loosening_never_goes_past_what_was_found() {
    both(|fake| {
        fake.set_quota("30000 100000");
        let mut executor = fake.executor();
        observed(fake.act(&mut executor, Knob::CpuQuota, 100));
        observed(fake.act(&mut executor, Knob::CpuQuota, 900));
        assert_eq!(fake.quota(), "30000 100000");
        assert!(executor.journal().entries().is_empty());
    });
}

#[test]
fn a_stricter_value_of_somebody_else_is_left_alone() {
    both(|fake| {
        fake.set_quota("10000 100000");
        let mut executor = fake.executor();
        let text = observed(fake.act(&mut executor, Knob::CpuQuota, 200));
        assert!(text.contains("left alone"), "{text}");
        assert_eq!(fake.quota(), "10000 100000");
        observed(fake.undo(&mut executor, Knob::CpuQuota));
        assert_eq!(fake.quota(), "10000 100000");
    });
}

#[test]
fn a_foreign_change_is_left_alone_on_undo() {
    both(|fake| {
        let mut executor = fake.executor();
        observed(fake.act(&mut executor, Knob::CpuQuota, 200));
        fake.set_quota("70000 100000");
        match fake.undo(&mut executor, Knob::CpuQuota) {
            ActOutcome::ForeignChange { found } => assert!(found.contains("70000"), "{found}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(fake.quota(), "70000 100000");
        assert!(executor.journal().entries().is_empty());
    });
}

#[test]
fn a_foreign_change_before_a_second_act_is_reported_and_left_alone() {
    both(|fake| {
        let mut executor = fake.executor();
        observed(fake.act(&mut executor, Knob::CpuQuota, 200));
        fake.set_quota("70000 100000");
        for _ in 0..2 {
            match fake.act(&mut executor, Knob::CpuQuota, 100) {
                ActOutcome::ForeignChange { found } => assert!(found.contains("70000"), "{found}"),
                other => panic!("{other:?}"),
            }
        }
        let undo = fake.undo(&mut executor, Knob::CpuQuota);
        assert!(matches!(undo, ActOutcome::ForeignChange { .. }), "{undo:?}");
        assert_eq!(fake.quota(), "70000 100000");
        assert!(executor.journal().entries().is_empty());
    });
}

#[test]
fn another_inode_or_no_directory_is_gone() {
    both(|fake| {
        let mut executor = fake.executor();
        let lease = Lease {
            workload: WorkloadId(1),
            ..fake.lease(Knob::CpuQuota, 200)
        };
        assert_eq!(
            executor.contain(&lease, Knob::CpuQuota, 200),
            ActOutcome::Gone
        );
        observed(fake.act(&mut executor, Knob::CpuQuota, 200));
        fs::remove_dir_all(fake.dir()).unwrap();
        assert_eq!(executor.undo(&lease, "expired"), ActOutcome::Gone);
        assert!(executor.journal().entries().is_empty());
    });
}

#[test]
fn a_missing_controller_says_what_to_do() {
    let fake = Fake::new(Version::V2);
    fs::remove_file(fake.dir().join("cpu.max")).unwrap();
    let mut executor = fake.executor();
    match fake.act(&mut executor, Knob::CpuQuota, 200) {
        ActOutcome::Failed { error } => {
            assert!(error.contains("echo +cpu > "), "{error}");
            assert!(error.contains("cg/ml/cgroup.subtree_control"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(executor.journal().entries().is_empty());
}

#[test]
fn unreadable_values_and_impossible_asks_fail() {
    both(|fake| {
        let mut executor = fake.executor();
        let zero = fake.act(&mut executor, Knob::CpuQuota, 0);
        assert!(matches!(zero, ActOutcome::Failed { .. }), "{zero:?}");
        fake.put("cpu.max", "what");
        fake.put("cpu.cfs_quota_us", "what");
        let garbage = fake.act(&mut executor, Knob::CpuQuota, 200);
        assert!(matches!(garbage, ActOutcome::Failed { .. }), "{garbage:?}");
    });
}

#[test]
fn nothing_is_squeezed_inside_a_driver_call() {
    both(|fake| {
        let left = Arc::new(AtomicU32::new(u32::MAX));
        let calls = Arc::clone(&left);
        let mut executor = fake.executor_with(ExecutorOptions {
            in_driver_call: Box::new(move |_| calls.fetch_sub(1, Ordering::Relaxed) > 0),
            driver_call_wait: Duration::from_millis(20),
            ..ExecutorOptions::default()
        });
        let outcome = fake.act(&mut executor, Knob::CpuQuota, 200);
        assert_eq!(outcome, ActOutcome::InDriverCall);
        assert_eq!(fake.quota(), fake.unlimited());
        assert!(executor.journal().entries().is_empty());
        // A weight takes no time away from a call.
        observed(fake.act(&mut executor, Knob::CpuWeight, 50));
        observed(fake.undo(&mut executor, Knob::CpuWeight));
        left.store(3, Ordering::Relaxed);
        observed(fake.act(&mut executor, Knob::CpuQuota, 200));
        assert_eq!(fake.quota(), "20000 100000");
    });
}

#[test]
fn without_a_journal_nothing_is_done() {
    both(|fake| {
        let mut executor = fake.executor();
        // A journal that must be rewritten and cannot be: its folder is gone.
        for _ in 0..3000 {
            executor
                .journal
                .undone(LeaseId(9), &"x".repeat(100))
                .unwrap();
            if fs::metadata(fake.journal_dir().join("leases.journal"))
                .unwrap()
                .len()
                > 256 << 10
            {
                break;
            }
        }
        fs::remove_dir_all(fake.journal_dir()).unwrap();
        match fake.act(&mut executor, Knob::CpuQuota, 200) {
            ActOutcome::Failed { error } => assert!(error.contains("not done"), "{error}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(fake.quota(), fake.unlimited());
    });
}

#[test]
fn a_crash_between_intent_and_the_end_of_the_write_is_undone() {
    // v1 has two files: every state in between must be recognised as ours.
    for found in ["20000 50000", "80000 100000", "20000 100000", "80000 50000"] {
        let fake = Fake::new(Version::V1);
        fake.set_quota("80000 50000");
        let mut executor = fake.executor();
        observed(fake.act(&mut executor, Knob::CpuQuota, 200));
        drop(executor);
        fake.set_quota(found);
        let (released, _) = crate::act::release_all(&fake.journal_dir()).unwrap();
        assert_eq!(released.len(), 1);
        assert!(
            matches!(released[0].outcome, ActOutcome::Done { .. }),
            "{found}"
        );
        assert_eq!(fake.quota(), "80000 50000");
    }
}

#[test]
fn a_freeze_is_asked_for_and_thawed() {
    let fake = Fake::new(Version::V2);
    let mut executor = fake.executor();
    observed(fake.act(&mut executor, Knob::Freeze, 1));
    assert_eq!(fake.get("cgroup.freeze"), "1");
    fake.put("cgroup.events", "populated 1\nfrozen 0\n");
    observed(fake.undo(&mut executor, Knob::Freeze));
    assert_eq!(fake.get("cgroup.freeze"), "0");
}

#[test]
fn a_freeze_that_does_not_come_about_is_thawed_again() {
    let fake = Fake::new(Version::V2);
    fake.put("cgroup.events", "populated 1\nfrozen 0\n");
    let mut executor = fake.executor_with(ExecutorOptions {
        freeze_wait: Duration::from_millis(20),
        ..ExecutorOptions::default()
    });
    match fake.act(&mut executor, Knob::Freeze, 1) {
        ActOutcome::Failed { error } => assert!(error.contains("not frozen"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(fake.get("cgroup.freeze"), "0");
    assert!(executor.journal().entries().is_empty());
}

#[test]
fn records_and_renewals_have_no_outcome() {
    let fake = Fake::new(Version::V2);
    let mut executor = fake.executor();
    assert_eq!(
        executor.perform(&Effect::Renew {
            lease: LeaseId(5),
            until_ns: 7
        }),
        None
    );
    assert!(Path::new(&fake.journal_dir()).exists());
}
