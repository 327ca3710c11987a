//! The columns: which metric, how it is headed, how a number is shown, what to sort by.
//!
//! Invariant: no cell is wider than [`WIDTH`]; an absent number is `–`, never 0.

use crate::metrics::{Metric, Values};

/// Columns of the terminal that a number takes.
pub(super) const WIDTH: usize = 8;

/// A column of numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub heading: &'static str,
    pub metric: Metric,
}

/// From the left; what does not fit the terminal is left out from the right.
pub(super) const COLUMNS: &[Column] = &[
    column("CPU", Metric::Cpu),
    column("RUNQ99", Metric::RunqP99),
    column("REQ/S", Metric::Requests),
    column("TTFB99", Metric::FirstByteP99),
    column("PREEMPT", Metric::SwitchesInvoluntary),
    column("PRE/REQ", Metric::SwitchesPerInference),
    column("GPU", Metric::GpuTime),
    column("CALL99", Metric::GpuCallP99),
    column("CONTEND", Metric::GpuContention),
    column("RELOADS", Metric::ModelReloads),
    column("FAULT/S", Metric::PageFaults),
    column("MEM PSI", Metric::PressureMemory),
    column("RECLAIM", Metric::ReclaimStall),
    column("SYSCALL", Metric::Syscalls),
    column("SYS/REQ", Metric::SyscallsPerInference),
    column("XNODE", Metric::MigrationsCross),
    column("LOAD", Metric::ModelLoadTime),
];

const fn column(heading: &'static str, metric: Metric) -> Column {
    Column { heading, metric }
}

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// By name, ascending.
    Name,
    /// By a column's number, descending; an index into [`COLUMNS`].
    Column(usize),
}

impl Sort {
    /// From the command line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "name" {
            return Ok(Sort::Name);
        }
        let ids = || COLUMNS.iter().map(|column| column.metric.info().id);
        ids()
            .position(|id| id == text)
            .map(Sort::Column)
            .ok_or_else(|| {
                let ids: Vec<_> = ids().collect();
                format!("columns are: name, {}", ids.join(", "))
            })
    }

    /// The next one to the right or left, round the ends.
    pub(super) fn step(self, by: isize) -> Self {
        let all = COLUMNS.len() + 1;
        let at = match self {
            Sort::Name => 0,
            Sort::Column(index) => index + 1,
        };
        match (at as isize + by).rem_euclid(all as isize) as usize {
            0 => Sort::Name,
            at => Sort::Column(at - 1),
        }
    }

    /// The metric; none for the name.
    pub(super) fn metric(self) -> Option<Metric> {
        match self {
            Sort::Name => None,
            Sort::Column(index) => COLUMNS.get(index).map(|column| column.metric),
        }
    }

    /// For the title.
    pub(super) fn name(self) -> &'static str {
        self.metric().map_or("name", |metric| metric.info().id)
    }
}

/// A number as people read it.
pub(super) fn show(metric: Metric, values: &Values) -> String {
    let Some(value) = values.get(metric) else {
        return "–".to_owned();
    };
    match metric.info().unit {
        "s" => seconds(value),
        "1" => format!("{:.*} %", usize::from(value < 0.1), value * 100.0),
        "s/s" => format!("{value:.2}"),
        "{load}" if value < 1e3 => format!("{value:.1}"),
        _ => count(value),
    }
}

/// A time: `350 µs`, `1.2 ms`, `2.5 s`, `30 min`, `24 h`.
pub(super) fn seconds(value: f64) -> String {
    match value {
        v if v < 1e-3 => format!("{:.0} µs", v * 1e6),
        v if v < 1.0 => format!("{} ms", three(v * 1e3)),
        v if v < 600.0 => format!("{} s", three(v)),
        v if v < 36_000.0 => format!("{:.0} min", v / 60.0),
        v => format!("{} h", count(v / 3600.0)),
    }
}

/// A count: `0.5`, `120`, `3.4k`, `12M`.
pub(super) fn count(value: f64) -> String {
    match value {
        v if v < 1e3 => three(v),
        v if v < 1e6 => format!("{}k", three(v / 1e3)),
        v if v < 1e9 => format!("{}M", three(v / 1e6)),
        v if v < 1e12 => format!("{}G", three(v / 1e9)),
        v => format!("{v:.0e}"),
    }
}

/// At most three digits that matter, and none behind the point of a whole number.
fn three(value: f64) -> String {
    if value >= 99.95 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value >= 0.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
