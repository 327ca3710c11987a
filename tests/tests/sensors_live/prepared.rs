//! Verified first and attached later: what was prepared is a guess, what counts is what is asked for then.

use crate::{opens::execute, support::*};
use palisade::sensors::Sensors;
use palisade_abi::{Kind, kind};
use std::path::Path;

#[test]
fn what_is_attached_is_what_was_asked_for_and_not_what_was_prepared() {
    let Some(object) = object("what_is_attached_is_what_was_asked_for_and_not_what_was_prepared")
    else {
        return;
    };
    let (prepared, inside) = (Cgroup::new(), Cgroup::new());
    let work = || {
        let device = ptmx();
        let answers: i32 = (0..10).map(|_| ask_window_size(&device)).sum();
        answers + i32::from(!execute(Path::new("/bin/true")))
    };
    let (child, other) = (Child::new(work), Child::new(work));
    inside.take(child.pid);
    prepared.take(other.pid);
    let guess = options(&[&prepared], &[Kind::Exec, Kind::SampleMaps]);
    let mut sensors = Sensors::prepare(object, guess).expect("sensors");
    let attached = |sensors: &Sensors| -> Vec<String> {
        let hooks = sensors.report().hooks.into_iter();
        let attached = hooks.filter(|hook| hook.attached.is_some());
        attached.map(|hook| hook.name).collect()
    };
    assert_eq!(attached(&sensors), [""; 0], "nothing is sensed yet");
    let wanted = [Kind::SampleGpu, Kind::GpuExit];
    let attach = sensors.attach(&scope(&[&inside]), bits(&wanted));
    attach.expect("attached");
    sensors.require_all().expect("all of it");
    assert_eq!(attached(&sensors), ["process exit", "driver call"]);

    let watch = Watch::of(sensors);
    let pid = child.pid.as_raw() as u32;
    assert_eq!((child.run(), other.run()), (0, 0));
    let seen = watch.stop();
    seen.assert_none_lost();
    let calls = seen.of(kind::GPU_EXIT).map(|it| it.header.pid);
    assert_eq!(calls.collect::<Vec<_>>(), [pid; 10]);
    assert_eq!(seen.count(kind::EXEC), 0);
}
