//! What is said of one workload: its numbers, model files, driver commands and processes.

use super::app::App;
use super::columns::{self, COLUMNS, Column, WIDTH};
use super::rows;
use crate::cli::style::escape;
use crate::metrics::{Metric, ProcessMetrics, WorkloadMetrics};
use std::fmt::Write as _;

/// Columns of the table that a process has too.
const PROCESS_COLUMNS: usize = 8;

/// Everything about the selected workload, in lines that are meant for that width.
pub(super) fn lines(app: &App, width: usize) -> Vec<String> {
    let Some(workload) = app.chosen() else {
        return vec!["nothing to show yet".to_owned()];
    };
    let mut lines = vec![
        format!(
            "{} · cgroup {}",
            rows::name(workload),
            escape(&workload.cgroup)
        ),
        String::new(),
    ];
    let numbers: Vec<String> = Metric::ALL
        .iter()
        .filter(|metric| workload.values.get(**metric).is_some())
        .map(|metric| {
            let number = columns::show(*metric, &workload.values);
            format!("{:<24}{number:>9}", metric.info().id)
        })
        .collect();
    let across = (width / 37).max(1);
    lines.extend(numbers.chunks(across).map(|row| row.join("    ")));
    lines.extend(models(workload));
    lines.extend(commands(workload));
    lines.extend(processes(workload, app));
    lines
}

fn models(workload: &WorkloadMetrics) -> Vec<String> {
    let mut lines = Vec::new();
    for model in &workload.models {
        let unnamed = || format!("inode {} on {:#x}", model.inode, model.device);
        let path = model.path.as_deref().map_or_else(unnamed, escape);
        let reloads = model.reloads.map_or("–".to_owned(), |r| format!("{r:.1}"));
        lines.push(format!(
            "model {path}: {}B by {} process(es), {reloads} load(s) each",
            columns::count(model.bytes as f64),
            model.processes
        ));
    }
    titled("", lines)
}

fn commands(workload: &WorkloadMetrics) -> Vec<String> {
    let lines = workload.commands.iter().map(|command| {
        format!(
            "{:<12} {:<28} {:>8} {:>9} {:>9}",
            escape(&command.device),
            escape(&command.name),
            columns::count(command.calls as f64),
            columns::seconds(command.time_s),
            columns::seconds(command.excess_s)
        )
    });
    let head = "DEVICE       DRIVER COMMAND                  CALLS      TIME    EXCESS";
    titled(head, lines.collect())
}

fn processes(workload: &WorkloadMetrics, app: &App) -> Vec<String> {
    let line = |cell: &dyn Fn(&Column) -> String| {
        COLUMNS[..PROCESS_COLUMNS]
            .iter()
            .fold(String::new(), |mut line, column| {
                let _ = write!(line, " {:>WIDTH$}", cell(column));
                line
            })
    };
    let metric = app.sort.metric().unwrap_or(Metric::Cpu);
    let mut processes: Vec<_> = workload.processes.iter().collect();
    processes.sort_by(|a, b| {
        let number = |p: &ProcessMetrics| p.values.get(metric).unwrap_or(-1.0);
        number(b).total_cmp(&number(a)).then(a.pid.cmp(&b.pid))
    });
    let head = line(&|column| column.heading.to_owned());
    let lines = processes.into_iter().map(|process| {
        let numbers = line(&|column| columns::show(column.metric, &process.values));
        format!("{:>10} {:<15}{numbers}", process.pid, escape(&process.comm))
    });
    titled(
        &format!("{:>10} {:<15}{head}", "PID", "NAME"),
        lines.collect(),
    )
}

/// A block with an empty line and a heading before it; nothing without lines.
fn titled(head: &str, lines: Vec<String>) -> Vec<String> {
    if lines.is_empty() {
        return lines;
    }
    let mut all = vec![String::new()];
    if !head.is_empty() {
        all.push(head.to_owned());
    }
    all.extend(lines);
    all
}
