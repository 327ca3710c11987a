//! The watched cgroups and containers, which come and go with their services, each time with another id: followed in
//! one place, for the agent and for recordings, on a thread of its own.
//!
//! Invariants:
//! - Nobody waits for a look: the whole tree of cgroups may have to be walked.
//! - Containers are only looked for when a cgroup was made or removed since the last look, or, where the kernel does not
//!   tell that, every [`BLIND_EVERY`]; and never so often that it takes more than a hundredth of a CPU.

use super::{named, options};
use crate::config::Config;
use crate::identity::{ScopeRoots, container, layout::Layout};
use crate::sensors::{Scope, WatchedProcesses};
use anyhow::Result;
use inotify::{Inotify, WatchMask};
use palisade_core::WorkloadId;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the watched cgroups are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often containers are looked for where no change was told: without inotify, with more cgroups than it may
/// watch, and in case a change was missed.
const BLIND_EVERY: Duration = Duration::from_secs(5);
const SURE_EVERY: Duration = Duration::from_mins(1);
/// A walk is followed by a rest of so many times its length.
const REST: u32 = 100;

/// What the sensors and people are to be told.
#[derive(Debug)]
pub(super) struct Change {
    pub scope: Scope,
    pub pressure: Vec<(WorkloadId, PathBuf)>,
    /// Containers that came or ended, in words.
    pub news: Vec<String>,
    /// Roots that went or came anew, in words.
    pub warnings: Vec<String>,
}

/// Follows them until it is dropped.
#[derive(Debug)]
pub(super) struct Follower {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Looks from now on, and tells `hear` what is there now and whatever changes; the sensors were started with
    /// `loaded`. Where the whole host is watched there is nothing to follow.
    pub(super) fn start(
        config: &Config,
        layout: &Layout,
        loaded: Scope,
        mut hear: impl FnMut(Change) + Send + 'static,
    ) -> Result<Self> {
        let Some(mut roots) = Roots::new(config, layout) else {
            return Ok(Self {
                stop: None,
                thread: None,
            });
        };
        let (stop, stopped) = channel::<()>();
        let thread = named("roots", move || {
            hear(roots.begin(&loaded));
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                if let Some(change) = roots.look() {
                    hear(change);
                }
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Whether it has ended by itself, by a fault.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

/// What is followed, and what was there at the last look.
struct Roots {
    layout: Layout,
    processes: WatchedProcesses,
    roots: Vec<String>,
    prefixes: Vec<String>,
    tree: Tree,
    known: Vec<Option<WorkloadId>>,
    containers: BTreeMap<WorkloadId, String>,
}

impl Roots {
    fn new(config: &Config, layout: &Layout) -> Option<Self> {
        let ScopeRoots::Below(roots) = &config.watch.scope else {
            return None;
        };
        Some(Self {
            layout: layout.clone(),
            processes: config.watch.processes.clone(),
            roots: roots.clone(),
            prefixes: config.watch.containers.clone(),
            tree: Tree::default(),
            known: Vec::new(),
            containers: BTreeMap::new(),
        })
    }

    /// The first look: a root may have gone, or come anew, since the sensors were started with `loaded`.
    fn begin(&mut self, loaded: &Scope) -> Change {
        self.known = self.ids();
        self.containers = self.tree.walk(&self.layout, &self.prefixes);
        let was = |id| matches!(loaded, Scope::CgroupsAnd(ids, _) if ids.contains(&id));
        let roots = self.roots.iter().zip(&self.known);
        let warnings = roots.filter(|(_, now)| !now.is_some_and(was));
        let warnings = warnings.map(|(root, now)| moved(root, *now)).collect();
        let containers = self.containers.iter();
        let news = containers.map(|(id, cgroup)| came(*id, cgroup)).collect();
        Change {
            news,
            warnings,
            ..self.change()
        }
    }

    /// What changed since the last look.
    fn look(&mut self) -> Option<Change> {
        let known = self.ids();
        let containers = if !self.prefixes.is_empty() && self.tree.may_have_changed() {
            self.tree.walk(&self.layout, &self.prefixes)
        } else {
            self.containers.clone()
        };
        if known == self.known && containers == self.containers {
            return None;
        }
        let (mut news, mut warnings) = (Vec::new(), Vec::new());
        for (id, cgroup) in &containers {
            if !self.containers.contains_key(id) {
                news.push(came(*id, cgroup));
            }
        }
        for (id, cgroup) in &self.containers {
            if !containers.contains_key(id) {
                news.push(format!(
                    "the container's cgroup {cgroup}, workload {}, is gone",
                    id.0
                ));
            }
        }
        for ((root, before), after) in self.roots.iter().zip(&self.known).zip(&known) {
            if before != after {
                warnings.push(moved(root, *after));
            }
        }
        (self.known, self.containers) = (known, containers);
        Some(Change {
            news,
            warnings,
            ..self.change()
        })
    }

    fn ids(&self) -> Vec<Option<WorkloadId>> {
        let id = |root: &String| self.layout.workload_id(root).ok();
        self.roots.iter().map(id).collect()
    }

    fn change(&self) -> Change {
        let roots = self.roots.iter().zip(&self.known);
        let roots = roots.filter_map(|(root, id)| Some(((*id)?, root.clone())));
        let containers = self.containers.iter();
        let cgroups: Vec<_> = roots
            .chain(containers.map(|(id, cgroup)| (*id, cgroup.clone())))
            .collect();
        Change {
            scope: options::scope_of(&cgroups, &self.processes),
            pressure: options::pressure_of(&cgroups, &self.layout),
            news: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

fn came(id: WorkloadId, cgroup: &str) -> String {
    format!(
        "the container's cgroup {cgroup} is watched, as workload {}",
        id.0
    )
}

fn moved(root: &str, now: Option<WorkloadId>) -> String {
    match now {
        None => {
            format!("the watched cgroup {root} is gone; it is watched again when it comes back")
        }
        Some(id) => format!(
            "the watched cgroup {root} is there anew, as workload {}",
            id.0
        ),
    }
}

/// The tree of cgroups, and whether it is still the one that was walked last.
#[derive(Default)]
struct Tree {
    /// Of every cgroup in which a container may come. `None`: changes are not told.
    watch: Option<Inotify>,
    walked: Option<Instant>,
    /// When the next walk may be.
    rested: Option<Instant>,
}

impl Tree {
    /// The containers in it. Each cgroup is watched before it is read: none that comes meanwhile is missed.
    fn walk(&mut self, layout: &Layout, prefixes: &[String]) -> BTreeMap<WorkloadId, String> {
        let begun = Instant::now();
        self.walked = Some(begun);
        if prefixes.is_empty() {
            return BTreeMap::new();
        }
        // Anew: the kernel may have dropped watches together with their cgroups.
        self.watch = Inotify::init().ok();
        let mut all = true;
        let mut watch = |dir: &Path| {
            let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
            if let Some(inotify) = &self.watch
                && let Err(error) = inotify.watches().add(dir, mask)
            {
                // One that is gone meanwhile was told of by the one above it.
                all &= error.kind() == std::io::ErrorKind::NotFound;
            }
        };
        let found = container::find(layout, prefixes, &mut watch);
        if !all {
            self.watch = None;
        }
        self.rested = Instant::now().checked_add(begun.elapsed() * REST);
        found.into_iter().collect()
    }

    /// Whether a cgroup came or went since the last walk, or may have.
    fn may_have_changed(&mut self) -> bool {
        let Some(walked) = self.walked else {
            return true;
        };
        if self.rested.is_some_and(|rested| Instant::now() < rested) {
            return false;
        }
        let Some(watch) = &mut self.watch else {
            return walked.elapsed() >= BLIND_EVERY;
        };
        let mut room = [0; 4096];
        match watch.read_events(&mut room) {
            Ok(mut events) => events.next().is_some(),
            // No news; anything else is worth a look.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                walked.elapsed() >= SURE_EVERY
            }
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::identity::layout::Flavour;
    use std::fs;

    const ID: &str = "3f4b8c0e5d6a7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708";

    /// Ordinary folders in the place of cgroups: they have inodes, and come and go like those.
    fn roots(tree: &Path, roots: &[&str]) -> Roots {
        Roots {
            layout: Layout {
                flavour: Flavour::V2,
                id_root: tree.to_owned(),
                controllers: BTreeMap::new(),
                unified: Some(tree.to_owned()),
            },
            processes: WatchedProcesses::default(),
            roots: roots.iter().map(|root| (*root).to_owned()).collect(),
            prefixes: vec![ID[..12].to_owned()],
            tree: Tree::default(),
            known: Vec::new(),
            containers: BTreeMap::new(),
        }
    }

    /// The first look, where nothing happened since the sensors were started.
    fn begin(roots: &mut Roots) -> Change {
        let ids = roots.ids().into_iter().flatten().collect();
        roots.begin(&Scope::CgroupsAnd(ids, WatchedProcesses::default()))
    }

    /// A look after the tree has had its rest.
    fn look(roots: &mut Roots) -> Option<Change> {
        let rested = roots.tree.rested.unwrap();
        std::thread::sleep(rested.saturating_duration_since(Instant::now()));
        roots.look()
    }

    fn cgroups(change: &Change) -> usize {
        match &change.scope {
            Scope::CgroupsAnd(ids, _) => ids.len(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn roots_and_containers_that_come_and_go_are_told_once() {
        let tree = tempfile::tempdir().unwrap();
        let pod = tree.path().join("system.slice/docker");
        fs::create_dir_all(&pod).unwrap();
        fs::create_dir(tree.path().join("ai")).unwrap();
        let mut roots = roots(tree.path(), &["/ai"]);
        let first = begin(&mut roots);
        assert_eq!(cgroups(&first), 1);
        assert!(first.news.is_empty() && first.warnings.is_empty());
        assert!(look(&mut roots).is_none());

        let container = pod.join(ID);
        fs::create_dir(&container).unwrap();
        let change = look(&mut roots).unwrap();
        assert_eq!((cgroups(&change), change.pressure.len()), (2, 2));
        assert!(
            change.news[0].contains("the container's cgroup"),
            "{change:?}"
        );
        assert!(look(&mut roots).is_none());

        fs::remove_dir(&container).unwrap();
        fs::remove_dir(tree.path().join("ai")).unwrap();
        let change = look(&mut roots).unwrap();
        assert_eq!(cgroups(&change), 0);
        assert!(change.warnings[0].contains("is gone"), "{change:?}");
        assert!(change.news[0].contains(ID), "{change:?}");
        assert!(change.news[0].ends_with("is gone"), "{change:?}");
        assert!(look(&mut roots).is_none());
    }

    #[test]
    fn what_came_or_went_before_the_first_look_is_told_there() {
        let tree = tempfile::tempdir().unwrap();
        for cgroup in ["stays", "goes", "again", "docker"] {
            fs::create_dir(tree.path().join(cgroup)).unwrap();
        }
        fs::create_dir(tree.path().join("docker").join(ID)).unwrap();
        let mut roots = roots(tree.path(), &["/stays", "/goes", "/again"]);
        let loaded = roots.ids().into_iter().flatten().collect();
        let loaded = Scope::CgroupsAnd(loaded, WatchedProcesses::default());
        // Made before the others go: another inode for sure.
        fs::create_dir(tree.path().join("new")).unwrap();
        fs::remove_dir(tree.path().join("goes")).unwrap();
        fs::rename(tree.path().join("new"), tree.path().join("again")).unwrap();
        let change = roots.begin(&loaded);
        assert_eq!(cgroups(&change), 3);
        let [goes, again] = &change.warnings[..] else {
            panic!("{change:?}")
        };
        assert!(goes.contains("/goes is gone"), "{goes}");
        assert!(again.contains("/again is there anew"), "{again}");
        assert!(change.news[0].contains("is watched"), "{change:?}");
        assert!(look(&mut roots).is_none(), "told once");

        fs::create_dir(tree.path().join("goes")).unwrap();
        let change = look(&mut roots).unwrap();
        assert!(change.warnings[0].contains("/goes is there anew"));
    }

    #[test]
    fn the_tree_is_walked_only_after_a_change_in_it() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("lxc")).unwrap();
        let mut roots = roots(tree.path(), &[]);
        begin(&mut roots);
        let walked = roots.tree.walked;
        look(&mut roots);
        assert_eq!(roots.tree.walked, walked, "nothing came");
        // In a cgroup that itself is new.
        fs::create_dir(tree.path().join("docker")).unwrap();
        assert!(look(&mut roots).is_none());
        assert!(roots.tree.walked > walked);
        fs::create_dir(tree.path().join("docker").join(ID)).unwrap();
        assert_eq!(cgroups(&look(&mut roots).unwrap()), 1);
        // What happens inside of the container is nobody's business.
        let walked = roots.tree.walked;
        fs::create_dir(tree.path().join("docker").join(ID).join("init")).unwrap();
        look(&mut roots);
        assert_eq!(roots.tree.walked, walked);
    }

    #[test]
    fn without_news_of_changes_containers_are_looked_for_now_and_then() {
        let mut tree = Tree::default();
        assert!(tree.may_have_changed());
        tree.walked = Instant::now().checked_sub(BLIND_EVERY / 2);
        assert!(!tree.may_have_changed());
        tree.walked = Instant::now().checked_sub(BLIND_EVERY);
        assert!(tree.may_have_changed());
        tree.rested = Instant::now().checked_add(BLIND_EVERY);
        assert!(!tree.may_have_changed(), "the walk took long");
    }
}
