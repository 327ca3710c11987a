//! The path of an executed program comes with its record, also when the process is gone by then.

use super::*;

#[test]
fn each_exec_has_the_path_that_was_told_with_it() {
    let Some(layout) = layout("each_exec_has_the_path_that_was_told_with_it") else {
        return;
    };
    let tables = tables(layout);
    let gone = ProcessId {
        pid: 1 << 30,
        start_ns: 5,
    };
    let exec = |process, time_ns| Record::new(header(process, 0, time_ns), Exec::default());
    let exe = |process| tables.process(process).and_then(|info| info.exe);
    // Two executions of one process may be told before the record of the first one.
    let (first, second) = (exec(gone, 10), exec(gone, 20));
    tables.executed(&first, "/bin/first");
    tables.executed(&second, "/bin/second");
    tables.observe(&[first]);
    assert_eq!(exe(gone).as_deref(), Some("/bin/first"));
    tables.observe(&[second]);
    assert_eq!(exe(gone).as_deref(), Some("/bin/second"));
    // Told once; nothing is made up for the next one.
    tables.observe(&[exec(gone, 30)]);
    assert_eq!(exe(gone), None);

    // An end alone is completed from /proc where the process is still there.
    let child = Own::sleeper();
    let here = id_of(&tables, child.pid());
    let whole = std::fs::read_link(format!("/proc/{}/exe", child.pid())).unwrap();
    for (process, expected) in [(here, whole.to_str()), (gone, Some("…/bin/sleep"))] {
        let record = exec(process, 40);
        tables.executed(&record, "…/bin/sleep");
        tables.observe(&[record]);
        assert_eq!(exe(process).as_deref(), expected);
    }
}
