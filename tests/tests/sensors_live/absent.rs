//! What cannot be had is told: once after each change of what is wanted.

use crate::support::*;
use palisade::sensors::{SensorOptions, Sensors, kind_names};
use palisade_abi::{Absent, Kind, kind};

#[test]
fn a_kind_that_cannot_be_had_is_told_after_each_change_of_what_is_wanted() {
    let Some(object) =
        object("a_kind_that_cannot_be_had_is_told_after_each_change_of_what_is_wanted")
    else {
        return;
    };
    let inside = Cgroup::new();
    // There is no such library, whatever else is installed here.
    let sensors = Sensors::load(
        object,
        SensorOptions {
            cuda_library: Some("/nonexistent/libcuda.so.1".into()),
            ..options(&[&inside], &[Kind::SampleCuda, Kind::Exec, Kind::Absent])
        },
    )
    .expect("the rest can be had");
    let report = sensors.report();
    assert_eq!(kind_names(report.absent()), ["sample-cuda"]);
    let signals = report.signals();
    let cuda = signals.iter().find(|signal| signal.signal == "sample-cuda");
    assert!(cuda.is_some_and(|signal| {
        !signal.available && signal.hooks.iter().any(|hook| !hook.failed.is_empty())
    }));
    let brief = report.brief();
    assert_eq!(brief.absent, ["sample-cuda"]);
    assert!(brief.hooks["process exec"].is_some());

    let watch = Watch::of(sensors);
    watch.settle();
    watch.settle();
    for kinds in [
        // As after the load of another policy: told again.
        &[Kind::SampleCuda, Kind::Exec, Kind::Absent][..],
        // Nobody wants it any more: told once, and not again.
        &[Kind::Exec, Kind::Absent],
        &[Kind::Exec, Kind::Absent],
    ] {
        watch.handle.set_kinds(bits(kinds));
        watch.settle();
        watch.settle();
    }
    let seen = watch.stop();
    let told: Vec<u64> = seen
        .bodies::<Absent>(kind::ABSENT)
        .iter()
        .map(|absent| absent.kinds)
        .collect();
    let cuda = Kind::SampleCuda.bit();
    assert_eq!(told, [cuda, cuda, 0]);
}
