//! Looks after the folders that policies' files lie in.
//!
//! Folders, not files: a file that is replaced by a rename is another inode. Both the folder that
//! the path names and the one that it leads to through symbolic links are watched (Kubernetes
//! swaps a link beside the file). An event in a folder only says where to look; whether there is
//! something new is decided by the contents.
//!
//! Invariant: a file is looked at once its folder was left alone for the debounce time, or after
//! [`PATIENCE`] such times if it never is.

use super::registry::Inner;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Debounce times after which a folder that never rests is looked at all the same.
const PATIENCE: u32 = 10;
/// How often to try again to watch a folder that is not there.
const RETRY: Duration = Duration::from_secs(2);

/// Owner of the watching thread; dropping it ends the thread.
pub(super) struct Watcher {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

struct Control {
    wake: OwnedFd,
    stop: AtomicBool,
}

impl Watcher {
    /// Starts to look after the folders of `engine`'s policies.
    pub fn start(engine: &Arc<Inner>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = Arc::new(Control {
            wake,
            stop: AtomicBool::new(false),
        });
        let mut eye = Eye {
            inotify: Inotify::init()?,
            engine: Arc::downgrade(engine),
            debounce: engine.options.debounce,
            folders: HashMap::new(),
            absent: false,
            changed: HashSet::new(),
            events: None,
        };
        // Now, not on the thread: a file that changes after `start` returned is noticed.
        eye.rewatch(&folders(engine));
        let of_thread = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name("policy-watch".to_owned())
            .spawn(move || eye.run(&of_thread))?;
        Ok(Self {
            control,
            thread: Some(thread),
        })
    }

    /// There may be other folders to look after.
    pub fn nudge(&self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.control.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::SeqCst);
        self.nudge();
        if let Some(thread) = self.thread.take()
            // The watching thread itself may be the last to let go of the engine.
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

/// The watching thread's state.
struct Eye {
    inotify: Inotify,
    engine: Weak<Inner>,
    debounce: Duration,
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// A folder could not be watched: try again.
    absent: bool,
    /// Folders with events since the last look.
    changed: HashSet<PathBuf>,
    /// When the first and the last of those were noticed.
    events: Option<(Instant, Instant)>,
}

impl Eye {
    fn run(mut self, control: &Control) {
        while !control.stop.load(Ordering::SeqCst) {
            if self.wait(control).is_err() {
                // Out of memory, or the descriptors are gone: nothing to wait for any more.
                return;
            }
            self.drain();
            let Some(engine) = self.engine.upgrade() else {
                return;
            };
            if control.stop.load(Ordering::SeqCst) {
                return;
            }
            self.rewatch(&folders(&engine));
            if self.events.is_some() && self.rest().is_zero() {
                self.events = None;
                let changed = std::mem::take(&mut self.changed);
                engine.reload_changed(|path| {
                    around(path).iter().any(|folder| changed.contains(folder))
                });
            }
        }
    }

    /// Until there is an event or it is time for something.
    fn wait(&self, control: &Control) -> io::Result<()> {
        let wait = match self.events {
            Some(_) => Some(self.rest()),
            None => self.absent.then_some(RETRY),
        };
        let wait = wait.map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let mut fds = [
            PollFd::new(&self.inotify, PollFlags::IN),
            PollFd::new(&control.wake, PollFlags::IN),
        ];
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut count = [0; 8];
        // Nothing to read is as good.
        let _ = rustix::io::read(&control.wake, &mut count);
        Ok(())
    }

    /// How long to wait before a look at what changed.
    fn rest(&self) -> Duration {
        let Some((first, last)) = self.events else {
            return Duration::ZERO;
        };
        let quiet = self.debounce.saturating_sub(last.elapsed());
        quiet.min((self.debounce * PATIENCE).saturating_sub(first.elapsed()))
    }

    fn noticed(&mut self) {
        let now = Instant::now();
        self.events = Some((self.events.map_or(now, |(first, _)| first), now));
    }

    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        let mut watches = self.inotify.watches();
        // An error is "no more events".
        while let Ok(events) = self.inotify.read_events(&mut buffer) {
            let mut any = false;
            for event in events {
                any = true;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    self.changed.extend(self.folders.values().cloned());
                } else if event
                    .mask
                    .intersects(EventMask::IGNORED | EventMask::MOVE_SELF)
                {
                    // Another folder may have taken its place: `rewatch` finds out.
                    self.folders.remove(&event.wd);
                    // If it was ignored, it is not there any more to be removed.
                    let _ = watches.remove(event.wd);
                } else if let Some(folder) = self.folders.get(&event.wd) {
                    self.changed.insert(folder.clone());
                }
            }
            if !any {
                return;
            }
            self.noticed();
        }
    }

    /// Watches `wanted` and nothing else.
    fn rewatch(&mut self, wanted: &BTreeSet<PathBuf>) {
        let changes = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVE_SELF;
        let mask = changes | WatchMask::ONLYDIR;
        let mut watches = self.inotify.watches();
        self.folders.retain(|watch, folder| {
            let keep = wanted.contains(folder);
            if !keep {
                // It may be gone already.
                let _ = watches.remove(watch.clone());
            }
            keep
        });
        self.absent = false;
        let mut new = false;
        for folder in wanted {
            if self.folders.values().any(|watched| watched == folder) {
                continue;
            }
            match watches.add(folder, mask) {
                Ok(watch) => {
                    self.folders.insert(watch, folder.clone());
                    // What happened before the watch was there is not told.
                    self.changed.insert(folder.clone());
                    new = true;
                }
                Err(_) => self.absent = true,
            }
        }
        if new {
            self.noticed();
        }
    }
}

/// The folders of all policies' files.
fn folders(engine: &Inner) -> BTreeSet<PathBuf> {
    let paths: Vec<_> = engine
        .entries()
        .values()
        .map(|entry| entry.source.path.clone())
        .collect();
    paths.iter().flat_map(|path| around(path)).collect()
}

/// The folder that `path` names and the one that it leads to, both without symbolic links.
fn around(path: &Path) -> Vec<PathBuf> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let named = folder.canonicalize().ok();
    let real = path
        .canonicalize()
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned));
    let mut folders: Vec<_> = named.into_iter().chain(real).collect();
    folders.dedup();
    if folders.is_empty() {
        folders.push(folder.to_owned());
    }
    folders
}
