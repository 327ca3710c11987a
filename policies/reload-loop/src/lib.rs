//! Finds services that load the same model again and again, and asks to slow them down.
//!
//! A reload loop (a crash loop behind a supervisor, a cache that is too small, a loader that is
//! called per request) costs memory bandwidth, page cache and disk for everyone on the host.
//!
//! # What it sees
//! `MODEL_OPEN` gives the size of a model file (one by its ending or by its size, so hashed names of hub
//! caches too), `MODEL_MAP` the bytes that a process mapped of it, `SAMPLE_READS` those that it read, from
//! the page cache or past it (`O_DIRECT`). One *load* is
//! - maps of one process that add up to the file (`whole_ratio` of it), or
//! - reads of one process that do, if it opened the file since its last load. A database that opens
//!   its index once and reads here and there loads it once.
//!
//! An opening without either is no load. Loads of the same process within `min_gap_ms` count once (some
//! loaders map a file twice, or check its sum before). A file whose opening was not seen has no known
//! size and is left alone. Not seen: reads with io_uring, `sendfile` or `splice` (`docs/signals.md`);
//! `count_opens` takes the openings instead. Workers that each read a part of the file make no load.
//!
//! # When it is a loop
//! For one workload and one file of at least `min_file_mib`, within `horizon_ms`:
//! - *epochs*: `epochs` or more loads, each at least `min_gap_ms` after the one before, and
//! - *churn*: `epochs` or more loads for each process that used the file at the same time.
//!
//! The first leaves out workers that start together. The second leaves out workers that start
//! one after the other, and a rolling restart: there every process loads once or twice. In a
//! crash loop the processes follow each other, so that all loads count for one.
//!
//! # What it asks for
//! One alert an episode, which names the file, and a lower CPU weight or a CPU ceiling on the
//! workload (`rung`) under a lease, renewed as long as loads come at about the pace they had.
//! All files of a workload share one episode: a model in ten parts is one loop.
#![deny(unsafe_code)]

mod history;
#[cfg(test)]
mod tests;

use history::{File, FileId, Loop, Rules, Way};
use palisade_policy_sdk::abi::{Exit, Header, ModelFile, SampleReads};
use palisade_policy_sdk::host::{self, printable};
use palisade_policy_sdk::state::{Reader, Writer};
use palisade_policy_sdk::{
    AbsentKinds, BoundedMap, Kind, Level, MS, Policy, ProcessId, Record, Request, Requests,
    Settings, Target,
};

/// Files remembered, over all workloads.
const MAX_FILES: usize = 256;
/// Processes whose exit is listened to. Hosts that compile see thousands of others.
const MAX_READERS: usize = 2048;
/// Workloads with an episode at a time.
const MAX_EPISODES: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rung {
    Alert,
    Weight,
    Quota,
}

/// The settings, checked. Times in nanoseconds.
#[derive(Clone, Debug)]
struct Options {
    rung: Rung,
    epochs: usize,
    rules: Rules,
    min_bytes: u64,
    count_opens: bool,
    weight: u32,
    quota: u32,
    lease_ms: u32,
}

/// What goes on in one workload.
#[derive(Clone, Copy, Debug)]
struct Episode {
    /// The loop as last seen, and when.
    found: Loop,
    loaded_ns: u64,
    since_ns: u64,
    asked_ns: u64,
}

/// The policy.
#[derive(Debug)]
pub struct ReloadLoop {
    options: Options,
    files: BoundedMap<FileId, File>,
    /// Processes that some file may know.
    readers: BoundedMap<ProcessId, ()>,
    episodes: BoundedMap<u64, Episode>,
    absent: AbsentKinds,
}

impl Policy for ReloadLoop {
    fn init(settings: &Settings) -> Result<Self, String> {
        let rungs = [
            ("alert", Rung::Alert),
            ("weight", Rung::Weight),
            ("quota", Rung::Quota),
        ];
        let options = Options {
            rung: settings.choice("rung", &rungs)?,
            epochs: settings.integer_in("epochs", 2..=50)?,
            rules: Rules {
                gap_ns: settings.duration_ms("min_gap_ms")?,
                horizon_ns: settings.duration_ms("horizon_ms")?,
                whole: settings.number_in("whole_ratio", 0.1..=1.0)?,
            },
            min_bytes: settings.integer_in("min_file_mib", 0..=1_u64 << 20)? << 20,
            count_opens: settings.flag("count_opens")?,
            weight: settings.integer_in("weight", 1..=10_000)?,
            quota: settings.integer_in("quota_permille", 1..=100_000)?,
            lease_ms: settings.integer_in("lease_ms", 100..=3_600_000)?,
        };
        let rules = &options.rules;
        if rules.gap_ns.saturating_mul(options.epochs as u64 - 1) >= rules.horizon_ns {
            return Err(format!(
                "{} loads `min_gap_ms` apart do not fit into `horizon_ms`",
                options.epochs
            ));
        }
        Ok(Self {
            options,
            files: BoundedMap::new(MAX_FILES),
            readers: BoundedMap::new(MAX_READERS),
            episodes: BoundedMap::new(MAX_EPISODES),
            absent: AbsentKinds::default(),
        })
    }

    fn on_batch(&mut self, now_ns: u64, records: &[Record], out: &mut Requests) {
        for record in records {
            let header = &record.header;
            if let Some(body) = record.get::<ModelFile>() {
                if record.kind() == Some(Kind::ModelOpen) {
                    self.opened(header, &body, now_ns, out);
                } else {
                    let id = file_id(header, body.device, body.inode);
                    self.came_in(header, id, Way::Map, body.bytes, now_ns, out);
                }
            } else if let Some(body) = record.get::<SampleReads>() {
                let id = file_id(header, body.device, body.inode);
                self.came_in(header, id, Way::Read, body.bytes, now_ns, out);
            } else if record.get::<Exit>().is_some() {
                self.exited(ProcessId::from(header), now_ns);
            } else if self.absent.update(record) {
                self.tell_absent();
            }
        }
        self.age(now_ns, out);
    }

    fn on_tick(&mut self, now_ns: u64, out: &mut Requests) {
        self.age(now_ns, out);
    }

    /// Loads and episodes: a loop is slow, and a reload must not make it start from nothing.
    fn checkpoint(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_unstable_by_key(|(id, _)| **id);
        out.list(files.into_iter(), |out, (id, file)| {
            id.write(out);
            file.write(out);
        });
        let mut episodes: Vec<_> = self.episodes.iter().collect();
        episodes.sort_unstable_by_key(|(workload, _)| **workload);
        out.list(episodes.into_iter(), |out, (workload, episode)| {
            out.u64(*workload);
            episode.found.write(out);
            out.u64(episode.loaded_ns);
            out.u64(episode.since_ns);
            out.u64(episode.asked_ns);
        });
        out.into_bytes()
    }

    fn restore(&mut self, state_version: u32, state: &[u8]) -> Result<(), String> {
        if state.is_empty() {
            return Ok(());
        }
        if !(1..=2).contains(&state_version) {
            return Err(format!("state version {state_version} is unknown"));
        }
        self.read(&mut Reader::new(state), state_version)
            .ok_or_else(|| "the state is damaged".to_owned())
    }
}

impl ReloadLoop {
    fn opened(&mut self, header: &Header, body: &ModelFile, now_ns: u64, out: &mut Requests) {
        if body.bytes < self.options.min_bytes.max(1) {
            return;
        }
        let process = ProcessId::from(header);
        let id = file_id(header, body.device, body.inode);
        self.files
            .get_or_insert_with(id, File::default)
            .opened(process, body.bytes);
        self.readers.get_or_insert_with(process, || ());
        if self.options.count_opens {
            self.came_in(header, id, Way::Map, body.bytes, now_ns, out);
        }
    }

    fn came_in(
        &mut self,
        header: &Header,
        id: FileId,
        way: Way,
        bytes: u64,
        now_ns: u64,
        out: &mut Requests,
    ) {
        let options = &self.options;
        let Some(file) = self.files.get_mut(&id) else {
            return;
        };
        let time_ns = header.time_ns.min(now_ns);
        let process = ProcessId::from(header);
        self.readers.get_or_insert_with(process, || ());
        if !file.came_in(process, way, bytes, time_ns, &options.rules) {
            return;
        }
        let Some(found) = file.find_loop(id, process, options.epochs, options.rules.gap_ns) else {
            return;
        };
        if let Some(episode) = self.episodes.get_mut(&id.workload) {
            *episode = Episode {
                found,
                loaded_ns: now_ns,
                ..*episode
            };
            return;
        }
        let episode = Episode {
            found,
            loaded_ns: now_ns,
            since_ns: now_ns,
            asked_ns: now_ns,
        };
        self.episodes.get_or_insert_with(id.workload, || episode);
        out.push(explain(Request::alert(target(&found)), &episode, now_ns));
        ask(options, &episode, now_ns, out);
    }

    fn exited(&mut self, process: ProcessId, now_ns: u64) {
        if self.readers.remove(&process).is_some() {
            for (_, file) in self.files.iter_mut() {
                file.exited(process, now_ns);
            }
        }
    }

    fn tell_absent(&self) {
        for (kind, unseen) in [
            (Kind::ModelOpen, "no reload is noticed"),
            (Kind::ModelMap, "loaders that map are not noticed"),
            (Kind::SampleReads, "loaders that read are not noticed"),
        ] {
            if self.absent.has(kind) {
                let kind = kind.name();
                host::log(Level::Warn, &format!("{kind} cannot be had here: {unseen}"));
            }
        }
    }

    /// Renews and ends what is due.
    fn age(&mut self, now_ns: u64, out: &mut Requests) {
        for (_, file) in self.files.iter_mut() {
            file.age(now_ns);
        }
        let options = &self.options;
        let mut due = Vec::new();
        self.episodes.retain(|_, episode| {
            // A throttled loop is slower: allow it twice its pace.
            let rules = &options.rules;
            let patience = episode.found.gap_ns.max(rules.gap_ns).saturating_mul(2);
            if now_ns.saturating_sub(episode.loaded_ns) > patience.min(rules.horizon_ns) {
                return false;
            }
            let pace_ns = u64::from(options.lease_ms) * MS / 3;
            if now_ns.saturating_sub(episode.asked_ns) >= pace_ns {
                episode.asked_ns = now_ns;
                due.push(*episode);
            }
            true
        });
        due.sort_unstable_by_key(|episode| episode.found.file);
        for episode in due {
            ask(options, &episode, now_ns, out);
        }
    }

    fn read(&mut self, from: &mut Reader<'_>, version: u32) -> Option<()> {
        let files = from.list(MAX_FILES, |from| {
            Some((FileId::read(from)?, File::read(from, version)?))
        })?;
        let episodes = from.list(MAX_EPISODES, |from| {
            let workload = from.u64()?;
            let episode = Episode {
                found: Loop::read(from)?,
                loaded_ns: from.u64()?,
                since_ns: from.u64()?,
                asked_ns: from.u64()?,
            };
            Some((workload, episode))
        })?;
        if !from.is_at_end() {
            return None;
        }
        for (id, file) in files {
            for process in file.users() {
                self.readers.get_or_insert_with(process, || ());
            }
            self.files.get_or_insert_with(id, || file);
        }
        for (workload, episode) in episodes {
            self.episodes.get_or_insert_with(workload, || episode);
        }
        Some(())
    }
}

fn file_id(header: &Header, device: u32, inode: u64) -> FileId {
    FileId {
        workload: header.workload,
        device,
        inode,
    }
}

fn target(found: &Loop) -> Target {
    match found.file.workload {
        0 => Target::Process(found.process),
        workload => Target::Workload(workload),
    }
}

/// Asks for the containment, or for more of it. A workload that is not known is not contained.
fn ask(options: &Options, episode: &Episode, now_ns: u64, out: &mut Requests) {
    let target = target(&episode.found);
    let request = match (options.rung, target) {
        (Rung::Alert, _) | (_, Target::Process(_)) => return,
        (Rung::Weight, _) => Request::cpu_weight(target, options.weight),
        (Rung::Quota, _) => Request::cpu_quota(target, options.quota),
    };
    out.push(explain(request.lease_ms(options.lease_ms), episode, now_ns));
}

fn explain(request: Request, episode: &Episode, now_ns: u64) -> Request {
    let Loop {
        file,
        process,
        size,
        loads,
        epochs,
        slots,
        span_ns,
        gap_ns,
    } = episode.found;
    let path = host::file_path(file.device, file.inode).map_or_else(
        || {
            format!(
                "file {}:{} inode {}",
                file.device >> 20,
                file.device & 0xf_ffff,
                file.inode
            )
        },
        |path| printable(&path, 200),
    );
    let place = match host::workload_of(file.workload) {
        Some(info) => printable(&info.cgroup, 128),
        None if file.workload == 0 => format!("Process {}", process.pid),
        None => format!("Workload {}", file.workload),
    };
    let churn = f64::from(loads) / f64::from(slots.max(1));
    let seconds = |ns: u64| ns as f64 / 1e9;
    request
        .reason(format!(
            "{place} loads {path} again and again: {loads} times in {:.0} s, {churn:.1} for \
             each process that uses it at a time",
            seconds(span_ns),
        ))
        .evidence("loads at least min_gap apart", f64::from(epochs), "count")
        .evidence("loads", f64::from(loads), "count")
        .evidence("churn", churn, "loads per process")
        .evidence("processes at a time", f64::from(slots), "count")
        .evidence("file size", size as f64, "bytes")
        .evidence("loaded in all", size as f64 * f64::from(loads), "bytes")
        .evidence("span", seconds(span_ns), "s")
        .evidence("last gap", seconds(gap_ns), "s")
        .evidence(
            "since",
            seconds(now_ns.saturating_sub(episode.since_ns)),
            "s",
        )
}

palisade_policy_sdk::policy!(ReloadLoop, "policy.toml");
