//! `palisade::act` on the running kernel: real cgroups, real signals, a real `kill -9` of an agent.
//!
//! Each test makes its own cgroups and children and removes them, also when it fails. Nothing
//! asserts how fast this machine is: durations are printed, bounds are generous. The one exception is
//! what the keeper promises.
#![allow(clippy::unwrap_used)]

#[path = "act_live/keeper.rs"]
mod keeper;
#[path = "act_live/support.rs"]
mod support;

use palisade::identity::layout::{Flavour, Layout};
use palisade_core::{ActOutcome, Action, Knob, ProcessId, Target};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};
use support::*;

/// CPU time of `pid` per wall-clock time over `window`, thousandths.
fn share(pid: u32, window: Duration) -> u64 {
    let start = Instant::now();
    let before = cpu_ticks(pid).unwrap();
    sleep(window);
    let used_ms =
        (cpu_ticks(pid).unwrap() - before) * 1000 / rustix::param::clock_ticks_per_second();
    used_ms * 1000 / start.elapsed().as_millis() as u64
}

#[test]
fn a_quota_cuts_cpu_time_and_its_undo_gives_it_back() {
    let Some(layout) = layout_for("a_quota_cuts_cpu_time_and_its_undo_gives_it_back", &["cpu"])
    else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let mut group = Group::new(&layout, &["id"]);
    let pid = group.burn();
    let mut executor = executor(&layout, journal.path());
    let before = share(pid, Duration::from_millis(500));
    let quota = lease(&layout, &group, Knob::CpuQuota, 50);
    observed(contain(&mut executor, &quota));
    assert_eq!(group.quota(), "5000 100000");
    let during = share(pid, Duration::from_secs(2));
    // 5 %, and what is left of a period at the edges, and rounding to ticks.
    assert!(
        during <= 75,
        "{during} thousandths of a CPU in spite of a quota of 50"
    );
    observed(undo(&mut executor, &quota));
    assert_eq!(group.quota(), "-1 100000");
    let mut after = 0;
    until("more CPU time after the undo", || {
        after = share(pid, Duration::from_millis(300));
        after > 150
    });
    eprintln!("MEASURED share of a CPU: {before} ‰ before, {during} ‰ under 50 ‰, {after} ‰ after");
}

#[test]
fn a_quota_below_the_kernels_minimum_is_taken() {
    let Some(layout) = layout_for("a_quota_below_the_kernels_minimum_is_taken", &["cpu"]) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let group = Group::new(&layout, &["id"]);
    let mut executor = executor(&layout, journal.path());
    let mut took = Vec::new();
    for (permille, quota) in [(1, "1000 1000000"), (3, "1000 333333"), (9, "1000 111111")] {
        let asked = lease(&layout, &group, Knob::CpuQuota, permille);
        let start = Instant::now();
        observed(contain(&mut executor, &asked));
        took.push(start.elapsed());
        assert_eq!(group.quota(), quota);
        observed(undo(&mut executor, &asked));
        assert_eq!(group.quota(), "-1 100000");
    }
    eprintln!("MEASURED effect to quota read back: {took:?}");
}

#[test]
fn a_quota_that_the_kernel_refuses_changes_nothing() {
    let test = "a_quota_that_the_kernel_refuses_changes_nothing";
    let Some(layout) = layout_for(test, &["cpu"]) else {
        return;
    };
    if layout.flavour == Flavour::V2 {
        eprintln!("SKIPPED {test}: v2 takes a quota below a child's");
        return;
    }
    let journal = tempfile::tempdir().unwrap();
    let group = Group::new(&layout, &["id"]);
    let child = group.child_group("child");
    fs::write(child.file("cpu.cfs_quota_us"), "50000").unwrap();
    let mut executor = executor(&layout, journal.path());
    let quota = lease(&layout, &group, Knob::CpuQuota, 200);
    let error = failure(contain(&mut executor, &quota));
    assert!(error.contains("below a child's"), "{error}");
    assert_eq!(group.quota(), "-1 100000");
    assert!(executor.journal().entries().is_empty());
}

#[test]
fn a_missing_cpu_controller_is_explained() {
    let test = "a_missing_cpu_controller_is_explained";
    let Some(layout) = layout_for(test, &["unified"]) else {
        return;
    };
    let v2 = v2_only(&layout);
    let journal = tempfile::tempdir().unwrap();
    let group = Group::new(&v2, &["id"]);
    // The group enables nothing for its children, so they have no cpu.max on any host.
    let inner = group.child_group("inner");
    let mut executor = executor(&v2, journal.path());
    let quota = lease(&v2, &inner, Knob::CpuQuota, 200);
    let error = failure(contain(&mut executor, &quota));
    assert!(error.contains("echo +cpu > "), "{error}");
}

#[test]
fn a_weight_is_set_and_undone() {
    let Some(layout) = layout_for("a_weight_is_set_and_undone", &["cpu"]) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let group = Group::new(&layout, &["id"]);
    let mut executor = executor(&layout, journal.path());
    let (file, default) = if group.file("cpu.shares").exists() {
        ("cpu.shares", "1024")
    } else {
        ("cpu.weight", "100")
    };
    let asked = lease(&layout, &group, Knob::CpuWeight, 50);
    observed(contain(&mut executor, &asked));
    let half = default.parse::<u32>().unwrap() / 2;
    assert_eq!(group.read(file), half.to_string());
    observed(undo(&mut executor, &asked));
    assert_eq!(group.read(file), default);
}

#[test]
fn a_foreign_change_is_left_alone() {
    let Some(layout) = layout_for("a_foreign_change_is_left_alone", &["cpu"]) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let group = Group::new(&layout, &["id"]);
    let mut executor = executor(&layout, journal.path());
    let quota = lease(&layout, &group, Knob::CpuQuota, 200);
    observed(contain(&mut executor, &quota));
    group.set_quota_us(70_000);
    let outcome = undo(&mut executor, &quota);
    assert!(
        matches!(outcome, ActOutcome::ForeignChange { .. }),
        "{outcome:?}"
    );
    assert_eq!(group.quota(), "70000 100000");
}

#[test]
fn a_cgroup_made_again_under_the_same_name_is_not_touched() {
    let Some(layout) = layout_for(
        "a_cgroup_made_again_under_the_same_name_is_not_touched",
        &["cpu"],
    ) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let group = Group::new(&layout, &["id"]);
    let mut executor = executor(&layout, journal.path());
    let quota = lease(&layout, &group, Knob::CpuQuota, 200);
    observed(contain(&mut executor, &quota));
    fs::remove_dir(&group.dirs[0]).unwrap();
    fs::create_dir(&group.dirs[0]).unwrap();
    group.set_quota_us(20_000);
    assert_eq!(undo(&mut executor, &quota), ActOutcome::Gone);
    assert_eq!(contain(&mut executor, &quota), ActOutcome::Gone);
    assert_eq!(group.quota(), "20000 100000");
}

/// Freezes, sees the burner stand still, thaws, sees it run.
fn freeze_and_thaw(layout: &Layout, keys: &[&str]) {
    let journal = tempfile::tempdir().unwrap();
    let mut group = Group::new(layout, keys);
    let pid = group.burn();
    until("the burner's start", || cpu_ticks(pid).unwrap() > 0);
    let mut executor = executor(layout, journal.path());
    let freeze = lease(layout, &group, Knob::Freeze, 1);
    observed(contain(&mut executor, &freeze));
    let still = cpu_ticks(pid).unwrap();
    sleep(Duration::from_millis(300));
    assert_eq!(cpu_ticks(pid).unwrap(), still, "it ran while frozen");
    observed(undo(&mut executor, &freeze));
    until("running again", || cpu_ticks(pid).unwrap() > still);
}

#[test]
fn a_v2_cgroup_is_frozen_and_thawed() {
    if let Some(layout) = layout_for("a_v2_cgroup_is_frozen_and_thawed", &["unified"]) {
        freeze_and_thaw(&v2_only(&layout), &["id"]);
    }
}

#[test]
fn a_v1_workload_is_frozen_through_its_freezer_cgroup() {
    let test = "a_v1_workload_is_frozen_through_its_freezer_cgroup";
    if let Some(layout) = layout_for(test, &["cpu", "freezer"]) {
        freeze_and_thaw(&layout, &["id", "freezer"]);
    }
}

#[test]
fn a_hybrid_workload_is_frozen_through_the_v2_tree() {
    let test = "a_hybrid_workload_is_frozen_through_the_v2_tree";
    if let Some(layout) = layout_for(test, &["freezer", "unified"]) {
        freeze_and_thaw(&layout, &["id", ""]);
    }
}

#[test]
fn a_freezer_shared_with_strangers_is_refused() {
    let test = "a_freezer_shared_with_strangers_is_refused";
    let Some(layout) = layout_for(test, &["cpu", "freezer"]) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let mut executor = executor(&layout, journal.path());
    // Both processes of the workload are in the freezer's root, then one of a stranger is with them.
    let mut alone = Group::new(&layout, &["id"]);
    alone.run("sleep 1000");
    let freeze = lease(&layout, &alone, Knob::Freeze, 1);
    let error = failure(contain(&mut executor, &freeze));
    assert!(error.contains("only the root in common"), "{error}");
    let mut shared = Group::new(&layout, &["freezer"]);
    let stranger = shared.run("sleep 1000");
    for pid in alone.members() {
        fs::write(shared.file("cgroup.procs"), pid.to_string()).unwrap();
    }
    let error = failure(contain(&mut executor, &freeze));
    assert!(
        error.contains(&format!("holds process {stranger}")),
        "{error}"
    );
    assert_eq!(shared.read("freezer.state"), "THAWED");
}

/// A workload with a few generations of processes that keep forking.
const FORKING: &str = "for i in 1 2 3; do (while :; do sleep 0.01; done) & done; wait";

fn kill_all(layout: &Layout, keys: &[&str]) {
    let journal = tempfile::tempdir().unwrap();
    let mut group = Group::new(layout, keys);
    group.run(FORKING);
    until("the workload's start", || group.members().len() >= 4);
    let mut executor = executor(layout, journal.path());
    let workload = layout.workload_id(&group.path).unwrap();
    let outcome = act(
        &mut executor,
        Target::Workload(workload),
        Some(workload),
        &group.path,
        Action::Kill,
        None,
    );
    eprintln!("MEASURED kill in {keys:?}: {}", observed(outcome));
    assert!(group.members().is_empty());
    assert_eq!(
        group.child().wait().unwrap().code(),
        None,
        "it ended by itself"
    );
}

#[test]
fn a_v2_workload_is_killed_whole() {
    if let Some(layout) = layout_for("a_v2_workload_is_killed_whole", &["unified"]) {
        kill_all(&v2_only(&layout), &["id"]);
    }
}

#[test]
fn a_v1_workload_is_killed_whole_with_and_without_a_freezer() {
    let test = "a_v1_workload_is_killed_whole_with_and_without_a_freezer";
    if let Some(layout) = layout_for(test, &["cpu", "freezer"]) {
        kill_all(&layout, &["id", "freezer"]);
        kill_all(&layout, &["id"]);
    }
}

#[test]
fn a_frozen_v1_workload_is_killed() {
    let Some(layout) = layout_for("a_frozen_v1_workload_is_killed", &["cpu", "freezer"]) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let mut group = Group::new(&layout, &["id", "freezer"]);
    group.burn();
    let mut executor = executor(&layout, journal.path());
    let freeze = lease(&layout, &group, Knob::Freeze, 1);
    observed(contain(&mut executor, &freeze));
    let target = Target::Workload(freeze.workload);
    let (workload, path) = (Some(freeze.workload), group.path.clone());
    observed(act(
        &mut executor,
        target,
        workload,
        &path,
        Action::Kill,
        None,
    ));
    assert!(group.members().is_empty());
    observed(undo(&mut executor, &freeze));
}

#[test]
fn sigterm_goes_to_the_meant_process_only() {
    let Some(layout) = layout_for("sigterm_goes_to_the_meant_process_only", &["cpu"]) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let mut group = Group::new(&layout, &["id"]);
    let pid = group.burn();
    let path = group.path.clone();
    let mut executor = executor(&layout, journal.path());
    let workload = layout.workload_id(&path).unwrap();
    let who = identity(pid);
    let mut terminate = |process, workload| {
        act(
            &mut executor,
            Target::Process(process),
            Some(workload),
            &path,
            Action::Terminate,
            None,
        )
    };
    // A later process with the same pid, as it looks from the past.
    let earlier = ProcessId {
        start_ns: who.start_ns - 1_000_000_000,
        ..who
    };
    assert_eq!(terminate(earlier, workload), ActOutcome::Gone);
    let root = layout.workload_id("/").unwrap();
    let error = failure(terminate(who, root));
    assert!(error.contains("moved"), "{error}");
    let error = failure(terminate(identity(std::process::id()), root));
    assert!(error.contains("the agent"), "{error}");
    assert_eq!(group.child().try_wait().unwrap(), None, "it was signalled");
    let text = observed(terminate(who, workload));
    assert!(text.contains("process gone"), "{text}");
    group.child().wait().unwrap();
    assert_eq!(terminate(who, workload), ActOutcome::Gone);
}

#[test]
fn our_own_cgroup_and_the_root_are_not_killed() {
    let Some(layout) = layout_for("our_own_cgroup_and_the_root_are_not_killed", &["cpu"]) else {
        return;
    };
    let journal = tempfile::tempdir().unwrap();
    let mut executor = executor(&layout, journal.path());
    for cgroup in [
        "/".to_owned(),
        layout.cgroup_of_pid(std::process::id()).unwrap(),
    ] {
        let workload = layout.workload_id(&cgroup).unwrap();
        let target = Target::Workload(workload);
        failure(act(
            &mut executor,
            target,
            Some(workload),
            &cgroup,
            Action::Kill,
            None,
        ));
    }
}
