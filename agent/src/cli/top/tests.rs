#![allow(clippy::unwrap_used)]

use super::app::{Action, App, Page, View};
use super::columns::{COLUMNS, Sort};
use super::*;
use crate::cli::style::columns as width;
use crate::metrics::{
    Absent, CommandMetrics, Culprit, DeviceMetrics, Metric, ModelMetrics, ProcessMetrics,
    WorkloadMetrics,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

fn workload(id: u64, cgroup: &str, cpu: Option<f64>) -> WorkloadMetrics {
    let mut workload = WorkloadMetrics {
        workload: id,
        cgroup: cgroup.to_owned(),
        ..WorkloadMetrics::default()
    };
    workload.values.set(Metric::Cpu, cpu);
    let points = (0..60).map(|i| (i > 29).then_some(i as f32 / 60.0));
    workload.graphs.insert("cpu".into(), points.collect());
    workload
}

fn snapshot() -> Snapshot {
    let mut busy = workload(2, "/serving/llm", Some(3.25));
    busy.values.set(Metric::RunqP99, Some(0.0123));
    busy.values.set(Metric::SwitchesInvoluntary, Some(12_345.0));
    busy.values.set(Metric::ModelReloads, Some(3.0));
    busy.processes.push(ProcessMetrics {
        pid: 4711,
        comm: "python3\u{1b}[2J".into(),
        ..ProcessMetrics::default()
    });
    busy.commands.push(CommandMetrics {
        device: "nvidia".into(),
        name: "RM_CONTROL".into(),
        calls: 1200,
        time_s: 0.5,
        ..CommandMetrics::default()
    });
    busy.models.push(ModelMetrics {
        path: Some("/models/big.gguf".into()),
        bytes: 6 << 30,
        processes: 1,
        reloads: Some(3.0),
        ..ModelMetrics::default()
    });
    let mut container = workload(3, "/docker/x", Some(0.5));
    container.container = Some("0123456789abcdef".repeat(4));
    Snapshot {
        window_s: 60,
        workloads: vec![workload(1, "/batch", None), busy, container],
        devices: vec![DeviceMetrics {
            name: "nvidia".into(),
            users: 2,
            busy: Some(0.25),
            contention: Some(0.4),
            culprit: Some(Culprit {
                workload: 2,
                pid: 4711,
                hold_s: 1.5,
                ..Culprit::default()
            }),
            ..DeviceMetrics::default()
        }],
        absent: vec![Absent {
            kind: "sample-faults".into(),
            metrics: vec!["page_faults".into()],
            why: "tracepoint: not built in".into(),
        }],
        ..Snapshot::default()
    }
}

fn app() -> App {
    App::new(Sort::Column(0), 1.0, snapshot())
}

/// The screen's lines, without the blanks at their ends.
fn screen(app: &App, columns: u16, lines: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal
        .draw(|frame| {
            draw::draw(frame, app);
        })
        .unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let text: String = (0..columns).map(|x| buffer[(x, y)].symbol()).collect();
        text.trim_end().to_owned()
    };
    (0..lines).map(line).collect()
}

/// The same, and the state knows what was drawn, as when `top` runs.
fn picture(app: &mut App, columns: u16, lines: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    let mut page = Page::default();
    terminal
        .draw(|frame| page = draw::draw(frame, app))
        .unwrap();
    app.drawn(page);
    screen(app, columns, lines)
}

fn find<'a>(lines: &'a [String], part: &str) -> &'a str {
    let line = lines.iter().find(|line| line.contains(part));
    line.unwrap_or_else(|| panic!("no {part:?} in\n{}", lines.join("\n")))
}

#[test]
fn the_table_shows_names_numbers_graphs_devices_and_what_is_absent() {
    let lines = screen(&app(), 120, 30);
    assert!(
        lines[0].starts_with("palisade top · 3 workload(s) · over 60 s · every 1 s · by cpu ▼")
    );
    assert_eq!(
        lines[1],
        "device nvidia: 2 user(s), 0.25 s of calls a second, contention 40 %, held longest by pid 4711 of /serving/llm (1.5 s)"
    );
    let heading = find(&lines, "WORKLOAD");
    assert!(
        heading.contains("RUNQ99") && heading.contains("LAST 24 S: cpu"),
        "{heading}"
    );
    let busy = find(&lines, "/serving/llm  ");
    for part in ["3.25", "12.3 ms", "12.3k", "–", "▇", "█"] {
        assert!(busy.contains(part), "{part}: {busy}");
    }
    // Sorted: absent ones last. A container goes by the short form of its id.
    let place = |part: &str| lines[2..].iter().position(|line| line.starts_with(part));
    assert!(place("/serving/llm") < place("0123456789ab "));
    assert!(place("0123456789ab ") < place("/batch"));
    let note = "– page_faults: sample-faults is not to be had here: tracepoint: not built in";
    assert_eq!(lines[28], note);
    assert!(lines[29].contains("q quit") && lines[29].contains("? help"));
    assert!(find(&lines, "at most").contains("0.98 at most"));
}

#[test]
fn every_size_can_be_drawn_in_every_view() {
    for view in [View::Table, View::Detail, View::Help] {
        for (columns, lines) in [(1, 1), (20, 3), (40, 10), (79, 24), (250, 60)] {
            let mut app = app();
            app.view = view;
            app.sort = Sort::Column(COLUMNS.len() - 1);
            screen(&app, columns, lines);
            app.answer(Ok(Snapshot::default()));
            screen(&app, columns, lines);
        }
    }
}

#[test]
fn a_narrow_terminal_keeps_the_name_and_the_column_that_is_sorted_by() {
    let mut app = app();
    app.sort = Sort::parse("model_load_time").unwrap();
    let lines = screen(&app, 62, 20);
    let heading = find(&lines, "WORKLOAD");
    assert!(
        heading.contains("CPU") && heading.contains("LOAD  "),
        "{heading}"
    );
}

#[test]
fn the_detail_shows_commands_models_and_processes_and_escapes_names() {
    let mut app = app();
    app.act(Action::Open);
    let lines = screen(&app, 120, 40);
    assert!(find(&lines, "RM_CONTROL").contains("1.2k"));
    assert!(find(&lines, "/models/big.gguf").contains("3.0 load(s) each"));
    assert!(find(&lines, "4711 python3").contains("python3\\x1b[2J"));
    assert!(find(&lines, "runq_p99").contains("12.3 ms"));
    app.act(Action::Back);
    assert_eq!((app.view, app.over), (View::Table, false));
}

/// A workload whose 50 processes do not fit.
fn crowded() -> App {
    let mut snapshot = snapshot();
    snapshot.devices.clear();
    snapshot.absent.clear();
    snapshot.workloads[1].processes = (0..50)
        .map(|number| ProcessMetrics {
            pid: 5000 + number,
            comm: "worker".into(),
            ..ProcessMetrics::default()
        })
        .collect();
    App::new(Sort::Column(0), 1.0, snapshot)
}

#[test]
fn the_detail_scrolls_and_says_where_it_is() {
    let mut app = crowded();
    app.act(Action::Open);
    // A line at the top and one at the bottom are not the details'.
    let shown = |app: &mut App| {
        let lines = picture(app, 120, 22);
        (lines[1].clone(), lines[20].clone(), lines[21].clone())
    };
    let whole = detail::lines(&app, 120);
    let count = whole.len();
    assert!(count > 50, "{whole:#?}");
    let (first, last, position) = shown(&mut app);
    assert_eq!(
        (first, last),
        (whole[0].clone(), whole[19].trim_end().to_owned())
    );
    assert!(
        position.starts_with(&format!("lines 1–20 of {count} · ")) && position.contains("PgDn"),
        "{position}"
    );
    for (keys, top) in [
        (&[Action::Down][..], 1),
        (&[Action::Down, Action::Down, Action::Up], 2),
        (&[Action::PageDown], 21),
        (&[Action::PageUp], 2),
        (&[Action::Last], count - 20),
        // Beyond the end there is nothing, and one key leads back.
        (
            &[Action::PageDown, Action::Down, Action::Down, Action::Up],
            count - 21,
        ),
        (&[Action::First, Action::Up, Action::PageUp], 0),
    ] {
        for key in keys {
            app.act(*key);
        }
        let (first, last, position) = shown(&mut app);
        assert_eq!(first, whole[top].trim_end(), "{keys:?}");
        assert_eq!(last, whole[top + 19].trim_end(), "{keys:?}");
        let at = format!("lines {}–{} of {count} ", top + 1, top + 20);
        assert!(position.starts_with(&at), "{keys:?}: {position}");
    }

    // The end stays in sight when there is less, and a taller terminal shows all.
    app.act(Action::Last);
    app.snapshot.workloads[1].processes.truncate(30);
    let (_, last, position) = shown(&mut app);
    assert!(last.contains("5029 worker"), "{last}");
    let less = count - 20;
    assert!(position.starts_with(&format!("lines {}–{less} of {less} ", less - 19)));
    let lines = picture(&mut app, 120, 80);
    assert!(lines[79].starts_with("q quit"), "{}", lines[79]);
    assert_eq!(app.scroll, 0);

    // Another look begins at the top, and the selection is what it was.
    app.act(Action::Last);
    app.act(Action::Back);
    assert_eq!(app.chosen().unwrap().workload, 2);
    app.act(Action::Open);
    assert_eq!(shown(&mut app).0, whole[0]);
}

#[test]
fn the_help_scrolls_where_it_does_not_fit_and_the_table_turns_pages() {
    let mut app = app();
    app.act(Action::Help);
    let lines = picture(&mut app, 80, 10);
    assert!(lines[9].starts_with("lines 1–"), "{lines:#?}");
    app.act(Action::Last);
    let lines = picture(&mut app, 80, 10);
    assert!(lines.iter().any(|line| line.contains("docs/metrics.md")));
    app.act(Action::Back);
    picture(&mut app, 80, 6);
    app.act(Action::PageDown);
    assert_eq!(app.place(), 1);
    app.act(Action::PageUp);
    assert_eq!(app.place(), 0);
}

#[test]
fn keys_mean_what_the_help_says() {
    let control = KeyModifiers::CONTROL;
    let none = KeyModifiers::NONE;
    let table = [
        (KeyCode::Char('q'), none, Action::Quit),
        (KeyCode::Char('c'), control, Action::Quit),
        (KeyCode::Char('q'), control, Action::Nothing),
        (KeyCode::Char('p'), none, Action::Pause),
        (KeyCode::Char(' '), none, Action::Pause),
        (KeyCode::Right, none, Action::SortRight),
        (KeyCode::Left, none, Action::SortLeft),
        (KeyCode::Char('r'), none, Action::Reverse),
        (KeyCode::Up, none, Action::Up),
        (KeyCode::Down, none, Action::Down),
        (KeyCode::PageUp, none, Action::PageUp),
        (KeyCode::PageDown, none, Action::PageDown),
        (KeyCode::Char('G'), KeyModifiers::SHIFT, Action::Last),
        (KeyCode::Char('g'), none, Action::First),
        (KeyCode::Enter, none, Action::Open),
        (KeyCode::Esc, none, Action::Back),
        (KeyCode::Char('?'), none, Action::Help),
        (KeyCode::Char('+'), none, Action::Slower),
        (KeyCode::Char('-'), none, Action::Faster),
        (KeyCode::Char('x'), none, Action::Nothing),
    ];
    for (code, modifiers, action) in table {
        assert_eq!(
            Action::of(KeyEvent::new(code, modifiers)),
            action,
            "{code:?}"
        );
    }
    let mut released = KeyEvent::new(KeyCode::Char('q'), none);
    released.kind = KeyEventKind::Release;
    assert_eq!(Action::of(released), Action::Nothing);
}

#[test]
fn keys_change_what_is_shown() {
    let mut app = app();
    let names = |app: &App| {
        app.rows()
            .iter()
            .map(|row| row.workload)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&app), [2, 3, 1]);
    app.act(Action::Reverse);
    assert_eq!(names(&app), [3, 2, 1]);
    app.act(Action::Reverse);
    app.act(Action::SortLeft);
    assert_eq!(app.sort, Sort::Name);
    assert_eq!(names(&app), [1, 2, 3]);
    app.act(Action::SortLeft);
    assert_eq!(app.sort, Sort::Column(COLUMNS.len() - 1));
    app.act(Action::SortRight);
    app.act(Action::SortRight);
    assert_eq!(app.sort, Sort::Column(0));
    app.act(Action::Down);
    assert_eq!(app.chosen().unwrap().workload, 3);
    app.act(Action::Last);
    app.act(Action::Down);
    assert_eq!(app.chosen().unwrap().workload, 1);
    app.act(Action::First);
    app.act(Action::Up);
    assert_eq!(app.chosen().unwrap().workload, 2);
    for _ in 0..9 {
        app.act(Action::Slower);
    }
    assert_eq!(app.interval_s, 10.0);
    for _ in 0..9 {
        app.act(Action::Faster);
    }
    assert_eq!(app.interval_s, 0.25);
    app.act(Action::Help);
    assert_eq!(app.view, View::Help);
    app.act(Action::Help);
    app.act(Action::Back);
    assert!(app.over);
}

#[test]
fn a_pause_keeps_the_picture_and_an_error_is_told() {
    let mut app = app();
    app.act(Action::Pause);
    app.answer(Ok(Snapshot::default()));
    assert_eq!(app.snapshot.workloads.len(), 3);
    assert!(screen(&app, 120, 10)[0].contains("PAUSED"));
    app.answer(Err("no agent is running".into()));
    assert!(screen(&app, 120, 10)[0].starts_with("no agent is running · "));
    app.act(Action::Pause);
    app.answer(Ok(Snapshot::default()));
    assert!(app.snapshot.workloads.is_empty() && app.error.is_none());
    assert!(screen(&app, 120, 10)[0].contains("gathering"));
}

#[test]
fn the_plain_table_has_every_column_and_the_footnotes() {
    let text = rows::table(&snapshot(), Sort::Column(0), Style::PLAIN);
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        COLUMNS
            .iter()
            .all(|column| lines[0].contains(column.heading))
    );
    assert!(lines[1].starts_with("/serving/llm") && lines[3].starts_with("/batch"));
    assert!(lines[4].starts_with("device nvidia"));
    assert!(lines[5].starts_with("– page_faults"));
    assert!(lines[6].starts_with("over 60 s"));
}

#[test]
fn numbers_fit_their_column() {
    let mut values = crate::metrics::Values::default();
    let table = [
        (Metric::Cpu, 0.126, "0.13"),
        (Metric::RunqP99, 350e-6, "350 µs"),
        (Metric::RunqP99, 0.0012, "1.2 ms"),
        (Metric::RunqP99, 0.5, "500 ms"),
        (Metric::RunqP99, 4.19, "4.2 s"),
        (Metric::ModelLoadTime, 1800.0, "30 min"),
        (Metric::ModelLoadTime, 86_400.0, "24 h"),
        (Metric::GpuContention, 0.4, "40 %"),
        (Metric::GpuContention, 0.004, "0.4 %"),
        (Metric::Syscalls, 0.0, "0"),
        (Metric::Syscalls, 0.25, "0.25"),
        (Metric::Syscalls, 999.0, "999"),
        (Metric::Syscalls, 2_500_000.0, "2.5M"),
        (Metric::Syscalls, 1e18, "1e18"),
    ];
    for (metric, value, text) in table {
        values.set(metric, Some(value));
        assert_eq!(columns::show(metric, &values), text);
    }
    for exponent in -9..15 {
        for metric in [Metric::Syscalls, Metric::RunqP99, Metric::ModelReloads] {
            values.set(metric, Some(9.994 * 10_f64.powi(exponent)));
            let text = columns::show(metric, &values);
            assert!(width(&text) <= columns::WIDTH, "{text}");
        }
    }
    assert!(Sort::parse("nothing").unwrap_err().contains("runq_p99"));
    assert_eq!(seconds("0.5"), Ok(0.5));
    assert!(seconds("0").is_err() && seconds("x").is_err());
}
