//! Rows out of a snapshot: their order, their names, and the plain table of `--once`.

use super::columns::{self, COLUMNS, Sort};
use crate::cli::style::{Style, Table, escape};
use crate::metrics::{Absent, DeviceMetrics, Snapshot, WorkloadMetrics};
use std::cmp::Ordering;
use std::fmt::Write as _;

/// Digits of a container's id that are shown.
const ID_DIGITS: usize = 12;
/// Absent signals that are listed, at most.
pub(super) const FOOTNOTES: usize = 3;

/// Workloads in order: numbers descending with the absent ones last, names ascending; `reverse`
/// turns that round, but for the absent ones.
pub(super) fn order(snapshot: &Snapshot, sort: Sort, reverse: bool) -> Vec<&WorkloadMetrics> {
    let mut rows: Vec<&WorkloadMetrics> = snapshot.workloads.iter().collect();
    rows.sort_by(|a, b| {
        let turn = |order: Ordering| if reverse { order.reverse() } else { order };
        let by_name = || name(a).cmp(&name(b));
        let Some(metric) = sort.metric() else {
            return turn(by_name());
        };
        match (a.values.get(metric), b.values.get(metric)) {
            (Some(a), Some(b)) => turn(b.total_cmp(&a)).then_with(by_name),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => by_name(),
        }
    });
    rows
}

/// What a workload is called: its container, else its cgroup.
pub(super) fn name(workload: &WorkloadMetrics) -> String {
    if let Some(container) = &workload.container {
        let is_id = container.len() > ID_DIGITS && container.bytes().all(|b| b.is_ascii_hexdigit());
        return escape(if is_id {
            &container[..ID_DIGITS]
        } else {
            container
        });
    }
    match workload.cgroup.as_str() {
        "" if workload.workload == 0 => "(host)".to_owned(),
        "" => format!("(cgroup {})", workload.workload),
        "/" => "/ (root)".to_owned(),
        path => escape(path),
    }
}

/// One line about a device.
pub(super) fn device(device: &DeviceMetrics, snapshot: &Snapshot) -> String {
    let class = if device.name.is_empty() {
        format!("class {}", device.class)
    } else {
        escape(&device.name)
    };
    let mut line = format!("device {class}: {} user(s)", device.users);
    if let Some(busy) = device.busy {
        let _ = write!(line, ", {busy:.2} s of calls a second");
    }
    if let Some(contention) = device.contention {
        let _ = write!(line, ", contention {:.0} %", contention * 100.0);
    }
    if let Some(culprit) = &device.culprit {
        let workload = snapshot
            .workloads
            .iter()
            .find(|workload| workload.workload == culprit.workload);
        let whose = workload.map(|w| format!(" of {}", name(w)));
        let _ = write!(
            line,
            ", held longest by pid {}{} ({})",
            culprit.pid,
            whose.unwrap_or_default(),
            columns::seconds(culprit.hold_s)
        );
    }
    line
}

/// One line about a signal that is not to be had.
pub(super) fn footnote(absent: &Absent) -> String {
    let why = if absent.why.is_empty() {
        "nothing to attach to"
    } else {
        &absent.why
    };
    format!(
        "– {}: {} is not to be had here: {}",
        absent.metrics.join(", "),
        escape(&absent.kind),
        escape(why)
    )
}

/// All that `--once` prints.
pub(super) fn table(snapshot: &Snapshot, sort: Sort, style: Style) -> String {
    let mut headings = vec!["WORKLOAD"];
    headings.extend(COLUMNS.iter().map(|column| column.heading));
    let mut table = Table::new(&headings);
    for workload in order(snapshot, sort, false) {
        let numbers = COLUMNS
            .iter()
            .map(|column| columns::show(column.metric, &workload.values));
        let cells: Vec<String> = [name(workload)].into_iter().chain(numbers).collect();
        table.row(cells.into_iter().map(|cell| (cell, None)));
    }
    let mut out = table.render(style);
    for known in &snapshot.devices {
        let _ = writeln!(out, "{}", device(known, snapshot));
    }
    for absent in &snapshot.absent {
        let _ = writeln!(out, "{}", footnote(absent));
    }
    let _ = writeln!(
        out,
        "over {} s; – is too little to say, or not to be had",
        snapshot.window_s
    );
    out
}
