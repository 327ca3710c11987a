//! The terminal while `top` runs: taken, and given back however this ends.
//!
//! Invariants: signals that end the process are taken in and answered after the terminal is given back,
//! with their usual effect; a panic gives it back first; asking happens on a thread of its own, so that a slow
//! agent never holds up a key.

use super::app::{Action, App, Page};
use super::draw::draw;
use super::{ask, read};
use crate::cli::Paths;
use crate::metrics::Snapshot;
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// How long a key or a signal may go unnoticed.
const TURN: Duration = Duration::from_millis(100);

/// Numbers, or why there are none.
type Answer = Result<Snapshot, String>;

/// Runs until a key or a signal ends it.
pub(super) fn run(mut app: App, paths: &Paths) -> Result<()> {
    let ending: SigSet = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ]
    .into_iter()
    .collect();
    // Before the other thread starts, which inherits it.
    ending.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&ending, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot take in signals")?;
    let (questions, answers) = asker(paths.clone())?;
    // This also lets a panic give the terminal back before it is told.
    let mut terminal = ratatui::try_init().context("cannot take the terminal")?;
    let result = show(&mut app, &mut terminal, &signals, &questions, &answers);
    let restored = ratatui::try_restore().context("cannot give the terminal back; run: reset");
    if let Some(signal) = result? {
        ending.thread_unblock().context("cannot unblock signals")?;
        raise(signal).context("cannot end by a signal")?;
    }
    restored
}

/// A thread that asks the agent whenever it is told to. It ends with its questions.
fn asker(paths: Paths) -> Result<(Sender<()>, Receiver<Answer>)> {
    let (questions, asked) = channel();
    let (answer, answers) = channel();
    std::thread::Builder::new()
        .name("top-ask".to_owned())
        .spawn(move || {
            while asked.recv().is_ok() {
                let said = ask(&paths).and_then(read);
                if answer
                    .send(said.map_err(|error| format!("{error:#}")))
                    .is_err()
                {
                    return;
                }
            }
        })
        .context("cannot start the thread 'top-ask'")?;
    Ok((questions, answers))
}

/// Draws and listens; returns the signal that ended it, if one did.
fn show(
    app: &mut App,
    terminal: &mut DefaultTerminal,
    signals: &SignalFd,
    questions: &Sender<()>,
    answers: &Receiver<Answer>,
) -> Result<Option<Signal>> {
    let mut asked = Instant::now();
    let mut waiting = false;
    let mut stale = true;
    loop {
        if stale {
            let mut page = Page::default();
            terminal
                .draw(|frame| page = draw(frame, app))
                .context("cannot draw")?;
            app.drawn(page);
        }
        stale = false;
        if !waiting && asked.elapsed() >= app.interval() {
            questions
                .send(())
                .context("the thread 'top-ask' has ended")?;
            (waiting, asked) = (true, Instant::now());
        }
        let next = app.interval().saturating_sub(asked.elapsed());
        let turn = if waiting { TURN } else { next.min(TURN) };
        if event::poll(turn).context("cannot read keys")? {
            match event::read().context("cannot read keys")? {
                Event::Key(key) => app.act(Action::of(key)),
                Event::Resize(..) => {}
                _ => continue,
            }
            stale = true;
        }
        if app.over {
            return Ok(None);
        }
        if let Some(info) = signals.read_signal().context("cannot take in signals")? {
            let signal = i32::try_from(info.ssi_signo).ok();
            let signal = signal.and_then(|number| Signal::try_from(number).ok());
            return Ok(signal.or(Some(Signal::SIGTERM)));
        }
        match answers.try_recv() {
            Ok(answer) => {
                app.answer(answer);
                (waiting, stale) = (false, true);
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => anyhow::bail!("the thread 'top-ask' has ended"),
        }
    }
}
