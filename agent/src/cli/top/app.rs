//! What the screen shows and what keys do to it: state without a terminal.
//!
//! Invariant: a key changes this state and nothing else; drawing reads it.

use super::columns::Sort;
use super::rows;
use crate::metrics::{Snapshot, WorkloadMetrics};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::time::Duration;

/// The intervals that `+` and `-` choose from, seconds.
const INTERVALS: &[f64] = &[0.25, 0.5, 1.0, 2.0, 5.0, 10.0];

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    Pause,
    SortRight,
    SortLeft,
    Reverse,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Open,
    Back,
    Help,
    Slower,
    Faster,
    Nothing,
}

impl Action {
    /// The meaning of a key.
    pub(super) fn of(key: KeyEvent) -> Self {
        if key.kind == KeyEventKind::Release {
            return Action::Nothing;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => Action::Quit,
            _ if control => Action::Nothing,
            KeyCode::Char('q') => Action::Quit,
            KeyCode::Char('p' | ' ') => Action::Pause,
            KeyCode::Char('>' | 'l') | KeyCode::Right | KeyCode::Tab => Action::SortRight,
            KeyCode::Char('<' | 'h') | KeyCode::Left | KeyCode::BackTab => Action::SortLeft,
            KeyCode::Char('r') => Action::Reverse,
            KeyCode::Char('k') | KeyCode::Up => Action::Up,
            KeyCode::Char('j') | KeyCode::Down => Action::Down,
            KeyCode::PageUp => Action::PageUp,
            KeyCode::PageDown => Action::PageDown,
            KeyCode::Char('g') | KeyCode::Home => Action::First,
            KeyCode::Char('G') | KeyCode::End => Action::Last,
            KeyCode::Enter => Action::Open,
            KeyCode::Esc | KeyCode::Backspace => Action::Back,
            KeyCode::Char('?') | KeyCode::F(1) => Action::Help,
            KeyCode::Char('+') => Action::Slower,
            KeyCode::Char('-') => Action::Faster,
            _ => Action::Nothing,
        }
    }
}

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// All workloads.
    Table,
    /// The selected one.
    Detail,
    /// What the keys do.
    Help,
}

/// How much there was to show in the last picture, and how much of it there was room for, in lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub lines: usize,
    pub room: usize,
}

impl Page {
    /// The first line of the last page.
    pub(super) fn end(self) -> usize {
        self.lines.saturating_sub(self.room)
    }
}

/// The state.
#[derive(Debug)]
pub(super) struct App {
    pub snapshot: Snapshot,
    /// The last answer was none.
    pub error: Option<String>,
    pub paused: bool,
    pub sort: Sort,
    pub reverse: bool,
    pub view: View,
    /// Workload that is selected; the first row's if it is gone.
    pub selected: Option<u64>,
    /// First line that is shown of the details or the help.
    pub scroll: usize,
    page: Page,
    pub interval_s: f64,
    pub over: bool,
}

impl App {
    pub(super) fn new(sort: Sort, interval_s: f64, snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            error: None,
            paused: false,
            sort,
            reverse: false,
            view: View::Table,
            selected: None,
            scroll: 0,
            page: Page::default(),
            interval_s,
            over: false,
        }
    }

    /// Time between two looks.
    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.interval_s)
    }

    /// Takes an answer. While paused it is let go: asking on keeps the agent's sums going.
    pub(super) fn answer(&mut self, answer: Result<Snapshot, String>) {
        match answer {
            Ok(snapshot) => {
                self.error = None;
                if !self.paused {
                    self.snapshot = snapshot;
                }
            }
            Err(error) => self.error = Some(error),
        }
    }

    /// The picture was drawn: what there was in it.
    pub(super) fn drawn(&mut self, page: Page) {
        self.page = page;
        if self.view != View::Table {
            self.scroll = self.scroll.min(page.end());
        }
    }

    /// The rows in order.
    pub(super) fn rows(&self) -> Vec<&WorkloadMetrics> {
        rows::order(&self.snapshot, self.sort, self.reverse)
    }

    /// The selected row's place.
    pub(super) fn place(&self) -> usize {
        let selected = self.selected;
        self.rows()
            .iter()
            .position(|row| Some(row.workload) == selected)
            .unwrap_or(0)
    }

    /// The selected workload.
    pub(super) fn chosen(&self) -> Option<&WorkloadMetrics> {
        self.rows().get(self.place()).copied()
    }

    /// Does what a key means.
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Quit => self.over = true,
            Action::Pause => self.paused = !self.paused,
            Action::SortRight => self.sort = self.sort.step(1),
            Action::SortLeft => self.sort = self.sort.step(-1),
            Action::Reverse => self.reverse = !self.reverse,
            Action::Up => self.go(|place, _| place.saturating_sub(1)),
            Action::Down => self.go(|place, _| place + 1),
            // A line of the page before stays in sight.
            Action::PageUp => {
                let page = self.page.room.saturating_sub(1).max(1);
                self.go(|place, _| place.saturating_sub(page));
            }
            Action::PageDown => {
                let page = self.page.room.saturating_sub(1).max(1);
                self.go(|place, _| place + page);
            }
            Action::First => self.go(|_, _| 0),
            Action::Last => self.go(|_, last| last),
            Action::Open => self.show(View::Detail),
            Action::Back => match self.view {
                View::Table => self.over = true,
                View::Detail | View::Help => self.show(View::Table),
            },
            Action::Help if self.view == View::Help => self.show(View::Table),
            Action::Help => self.show(View::Help),
            Action::Slower => {
                let slower = INTERVALS.iter().find(|i| **i > self.interval_s);
                self.interval_s = slower.copied().unwrap_or(self.interval_s);
            }
            Action::Faster => {
                let faster = INTERVALS.iter().rev().find(|i| **i < self.interval_s);
                self.interval_s = faster.copied().unwrap_or(self.interval_s);
            }
            Action::Nothing => {}
        }
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.scroll = 0;
    }

    /// Selects another row, or scrolls where there are none: `to` is given the place and the last one there is.
    fn go(&mut self, to: impl Fn(usize, usize) -> usize) {
        if self.view != View::Table {
            let last = self.page.end();
            self.scroll = to(self.scroll, last).min(last);
            return;
        }
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let place = to(self.place(), last).min(last);
        self.selected = rows.get(place).map(|row| row.workload);
    }
}
