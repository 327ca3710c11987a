//! Drawing: from the state to cells.
//!
//! Invariant: any size of terminal and any snapshot can be drawn; what does not fit is left out.

use super::app::{App, Page, View};
use super::columns::{self, COLUMNS, Sort, WIDTH};
use super::{detail, rows};
use crate::cli::style::{escape, truncate};
use crate::metrics::{GRAPHED, Metric, WorkloadMetrics};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

/// Terminal columns of a workload's name, at least.
const NAME: usize = 16;
/// Terminal columns of the small graphs: a character a second, the newest at the right.
const HISTORY: usize = 24;
/// Lines of the graphs below the table, and the height of the terminal from which they are shown.
const GRAPHS: u16 = 5;
const ROOM_FOR_GRAPHS: u16 = 20;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

const KEYS: &str =
    "q quit · p pause · ←→ sort · r reverse · ↑↓ select · Enter details · +- interval · ? help";
const SCROLL: &str = "↑↓ PgUp PgDn g G scroll · Esc back · q quit";
const HELP: &[&str] = &[
    "q, Ctrl-C     end",
    "p, space      pause; the agent gathers on",
    "← →           sort by another column",
    "r             reverse the order",
    "↑ ↓ g G       select a workload; PgUp, PgDn by pages",
    "Enter         its processes, driver commands and model files; the same keys scroll there",
    "Esc           back",
    "+ -           look less often, more often",
    "?             this page",
    "",
    "CPU      CPUs in use                       GPU      time in driver calls per second",
    "RUNQ99   99th percentile run-queue wait    CONTEND  share of it over the baseline",
    "REQ/S    requests answered                 RELOADS  model loads per process in 10 min",
    "TTFB99   99th percentile to first byte     FAULT/S  page faults",
    "PREEMPT  preemptions per second            MEM PSI  time with a task stalled for memory",
    "PRE/REQ  preemptions per request           RECLAIM  threads stalled in reclaim",
    "SYSCALL  working system calls per second   XNODE    moves to another node per CPU second",
    "SYS/REQ  the same per request              LOAD     time of the latest model load",
    "CALL99   99th percentile of driver calls",
    "",
    "– means too little to say (fewer than 5 requests, waits, calls), or not to be had here.",
    "GPU columns are about the driver, not the compute units. More: docs/metrics.md",
];

/// Draws everything. Answers how much of what there is was shown.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) -> Page {
    let notes = notes(app);
    let devices: Vec<String> = app
        .snapshot
        .devices
        .iter()
        .map(|device| rows::device(device, &app.snapshot))
        .collect();
    let height = frame.area().height;
    let graphs = if app.view == View::Table && height >= ROOM_FOR_GRAPHS {
        GRAPHS
    } else {
        0
    };
    let lines = |count: usize| Constraint::Length(count as u16);
    let areas = Layout::vertical([
        Constraint::Length(1),
        lines(devices.len().min(4)),
        Constraint::Min(1),
        Constraint::Length(graphs),
        lines(notes.len()),
        Constraint::Length(1),
    ])
    .split(frame.area());
    let dim = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(title(app), areas[0]);
    frame.render_widget(Paragraph::new(devices.join("\n")), areas[1]);
    let width = usize::from(areas[2].width);
    let page = match app.view {
        View::Table => table(frame, app, areas[2]),
        View::Detail => scrolled(frame, app, areas[2], &detail::lines(app, width)),
        View::Help => scrolled(frame, app, areas[2], HELP),
    };
    if graphs > 0
        && let Some(chosen) = app.chosen()
    {
        frame.render_widget(large_graphs(chosen, areas[3].width, graphs), areas[3]);
    }
    frame.render_widget(Paragraph::new(notes.join("\n")).style(dim), areas[4]);
    let keys = position(app, page).map_or_else(
        || KEYS.to_owned(),
        |position| format!("{position} · {SCROLL}"),
    );
    frame.render_widget(Paragraph::new(keys).style(dim), areas[5]);
    page
}

/// Lines of which only a part may have room.
fn scrolled(frame: &mut Frame<'_>, app: &App, area: Rect, lines: &[impl AsRef<str>]) -> Page {
    let (width, room) = (usize::from(area.width), usize::from(area.height));
    let page = Page {
        lines: lines.len(),
        room,
    };
    let shown = lines.iter().skip(app.scroll.min(page.end())).take(room);
    let text: Vec<Line<'_>> = shown
        .map(|line| Line::from(truncate(line.as_ref(), width)))
        .collect();
    frame.render_widget(Paragraph::new(text), area);
    page
}

/// Which lines are shown, if that is not all.
fn position(app: &App, page: Page) -> Option<String> {
    if app.view == View::Table || page.end() == 0 {
        return None;
    }
    let first = app.scroll.min(page.end());
    let last = first + page.room;
    Some(format!("lines {}–{last} of {}", first + 1, page.lines))
}

fn title(app: &App) -> Paragraph<'static> {
    let mut text = format!(
        "palisade top · {} workload(s) · over {} s · every {} s · by {} {}",
        app.snapshot.workloads.len(),
        app.snapshot.window_s,
        app.interval_s,
        app.sort.name(),
        if app.reverse { "▲" } else { "▼" }
    );
    if app.snapshot.window_s == 0 {
        text.push_str(" · gathering");
    }
    if app.paused {
        text.push_str(" · PAUSED");
    }
    let mut style = Style::new().add_modifier(Modifier::BOLD);
    if let Some(error) = &app.error {
        text = format!("{} · {text}", escape(error));
        style = style.add_modifier(Modifier::REVERSED);
    }
    Paragraph::new(text).style(style)
}

/// Why something is absent, what was lost, what was left out.
fn notes(app: &App) -> Vec<String> {
    let snapshot = &app.snapshot;
    let mut notes: Vec<String> = snapshot
        .absent
        .iter()
        .take(rows::FOOTNOTES)
        .map(rows::footnote)
        .collect();
    if snapshot.absent.len() > rows::FOOTNOTES {
        notes.push(format!(
            "– and {} more; run: palisade doctor",
            snapshot.absent.len() - rows::FOOTNOTES
        ));
    }
    let lost: u64 = snapshot
        .workloads
        .iter()
        .map(|w| w.lost)
        .fold(0, u64::saturating_add);
    if lost > 0 {
        notes.push(format!(
            "{lost} record(s) were lost in the window: numbers are too low"
        ));
    }
    if snapshot.left_out > 0 {
        notes.push(format!(
            "{} record(s) or rows found no room and are left out",
            snapshot.left_out
        ));
    }
    notes
}

/// How many columns fit, and how wide the name is.
fn fit(width: u16) -> (usize, usize) {
    let width = usize::from(width);
    let left = width.saturating_sub(NAME + HISTORY + 2);
    let columns = (left / (WIDTH + 1)).min(COLUMNS.len());
    let taken = columns * (WIDTH + 1) + HISTORY + 2;
    (columns, width.saturating_sub(taken).clamp(NAME, 60))
}

fn table(frame: &mut Frame<'_>, app: &App, area: Rect) -> Page {
    let (count, name_width) = fit(area.width);
    // The column that is sorted by is always there.
    let mut shown: Vec<usize> = (0..count).collect();
    if let Sort::Column(index) = app.sort
        && index >= count
        && let Some(last) = shown.last_mut()
    {
        *last = index;
    }
    let history = app
        .sort
        .metric()
        .filter(|metric| GRAPHED.contains(metric))
        .unwrap_or(Metric::Cpu);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mark = |sorted: bool| {
        if sorted {
            bold.add_modifier(Modifier::UNDERLINED)
        } else {
            bold
        }
    };
    let head = [Cell::from("WORKLOAD").style(mark(app.sort == Sort::Name))]
        .into_iter()
        .chain(shown.iter().map(|index| {
            right(COLUMNS[*index].heading).style(mark(app.sort == Sort::Column(*index)))
        }))
        .chain([Cell::from(format!("LAST {HISTORY} S: {}", history.info().id)).style(bold)]);
    let rows = app.rows().into_iter().map(|workload| {
        let numbers = shown
            .iter()
            .map(|index| right(columns::show(COLUMNS[*index].metric, &workload.values)));
        let graph = bars(points(workload, history), HISTORY);
        [Cell::from(cut_front(&rows::name(workload), name_width))]
            .into_iter()
            .chain(numbers)
            .chain([Cell::from(graph)])
            .collect::<Row>()
    });
    let widths = [Constraint::Length(name_width as u16)]
        .into_iter()
        .chain(shown.iter().map(|_| Constraint::Length(WIDTH as u16)))
        .chain([Constraint::Length(HISTORY as u16)]);
    let table = Table::new(rows, widths)
        .header(head.collect::<Row>())
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(Some(app.place()));
    frame.render_stateful_widget(table, area, &mut state);
    Page {
        lines: app.snapshot.workloads.len(),
        // Without the heading.
        room: usize::from(area.height).saturating_sub(1),
    }
}

fn right(text: impl Into<Text<'static>>) -> Cell<'static> {
    Cell::from(text.into().alignment(Alignment::Right))
}

/// The end of a name matters most: it loses its front.
fn cut_front(text: &str, width: usize) -> String {
    let reversed: String = text.chars().rev().collect();
    truncate(&reversed, width).chars().rev().collect()
}

fn points(workload: &WorkloadMetrics, metric: Metric) -> &[Option<f32>] {
    workload
        .graphs
        .get(metric.info().id)
        .map_or(&[], Vec::as_slice)
}

/// The last points as bars, the highest of them full; absent ones are blank.
fn bars(points: &[Option<f32>], width: usize) -> String {
    let points = &points[points.len().saturating_sub(width)..];
    let highest = points.iter().flatten().copied().fold(0.0, f32::max);
    let bar = |point: &Option<f32>| match point {
        None => ' ',
        Some(value) if highest > 0.0 && *value > 0.0 => {
            BARS[((value / highest * 8.0).ceil() as usize).clamp(1, 8) - 1]
        }
        Some(_) => BARS[0],
    };
    let blank = width.saturating_sub(points.len());
    std::iter::repeat_n(' ', blank)
        .chain(points.iter().map(bar))
        .collect()
}

/// A line for each of the first graphs of a workload, with its highest value.
fn large_graphs(workload: &WorkloadMetrics, width: u16, lines: u16) -> Paragraph<'static> {
    let head = Line::from(format!("{} · last 60 s", rows::name(workload)));
    let room = usize::from(width).saturating_sub(34).min(60);
    let text = GRAPHED
        .iter()
        .filter(|metric| {
            let some = |point: &Option<f32>| point.is_some_and(|value| value > 0.0);
            points(workload, **metric).iter().any(some)
        })
        .take(usize::from(lines).saturating_sub(1))
        .map(|metric| {
            let points = points(workload, *metric);
            let highest = points.iter().flatten().copied().fold(0.0, f32::max);
            let mut values = crate::metrics::Values::default();
            values.set(*metric, Some(f64::from(highest)));
            let peak = columns::show(*metric, &values);
            Line::from(format!(
                "{:>20} {} {peak} at most",
                metric.info().id,
                bars(points, room)
            ))
        });
    Paragraph::new([head].into_iter().chain(text).collect::<Vec<_>>())
}
