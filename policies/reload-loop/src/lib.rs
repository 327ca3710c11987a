//! Finds services that load the same model again and again, and asks to slow them down.
//!
//! A reload loop (a crash loop behind a supervisor, a cache that is too small, a loader that is
//! called per request) costs memory bandwidth, page cache and disk for everyone on the host.
//!
//! # What it sees
//! `MODEL_OPEN` gives the size of a model file, `MODEL_MAP` the bytes that a process mapped of
//! it. When the maps of one process add up to the whole file, that is one *read*. Reads of the
//! same process within `min_gap_ms` count once (some loaders map the file twice). A file whose
//! opening was not seen has no known size and is left alone. Loaders that read with `O_DIRECT`
//! map nothing; `count_opens` takes their openings instead.
//!
//! # When it is a loop
//! For one workload and one file of at least `min_file_mib`, within `horizon_ms`:
//! - *epochs*: `epochs` or more reads, each at least `min_gap_ms` after the one before, and
//! - *churn*: `epochs` or more reads for each process that used the file at the same time.
//!
//! The first leaves out workers that start together. The second leaves out workers that start
//! one after the other, and a rolling restart: there every process reads once or twice. In a
//! crash loop the processes follow each other, so that all reads count for one.
//!
//! # What it asks for
//! One alert an episode, which names the file, and a lower CPU weight or a CPU ceiling on the
//! workload (`rung`) under a lease, renewed as long as reads come at about the pace they had.
//! All files of a workload share one episode: a model in ten parts is one loop.
#![deny(unsafe_code)]

mod history;
#[cfg(test)]
mod tests;

use history::{File, FileId, Loop};
use palisade_policy_sdk::abi::{Exit, ModelFile};
use palisade_policy_sdk::host::{self, printable};
use palisade_policy_sdk::state::{Reader, Writer};
use palisade_policy_sdk::{
    BoundedMap, Kind, MS, Policy, ProcessId, Record, Request, Requests, Settings, Target,
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
    gap_ns: u64,
    horizon_ns: u64,
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
    read_ns: u64,
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
            gap_ns: settings.duration_ms("min_gap_ms")?,
            horizon_ns: settings.duration_ms("horizon_ms")?,
            min_bytes: settings.integer_in("min_file_mib", 0..=1_u64 << 20)? << 20,
            count_opens: settings.flag("count_opens")?,
            weight: settings.integer_in("weight", 1..=10_000)?,
            quota: settings.integer_in("quota_permille", 1..=100_000)?,
            lease_ms: settings.integer_in("lease_ms", 100..=3_600_000)?,
        };
        if options.gap_ns.saturating_mul(options.epochs as u64 - 1) >= options.horizon_ns {
            return Err(format!(
                "{} reads `min_gap_ms` apart do not fit into `horizon_ms`",
                options.epochs
            ));
        }
        Ok(Self {
            options,
            files: BoundedMap::new(MAX_FILES),
            readers: BoundedMap::new(MAX_READERS),
            episodes: BoundedMap::new(MAX_EPISODES),
        })
    }

    fn on_batch(&mut self, now_ns: u64, records: &[Record], out: &mut Requests) {
        for record in records {
            if let Some(body) = record.get::<ModelFile>() {
                let opened = record.kind() == Some(Kind::ModelOpen);
                self.model(record, &body, opened, now_ns, out);
            } else if record.get::<Exit>().is_some() {
                self.exited(ProcessId::from(&record.header));
            }
        }
        self.age(now_ns, out);
    }

    fn on_tick(&mut self, now_ns: u64, out: &mut Requests) {
        self.age(now_ns, out);
    }

    /// Reads and episodes: a loop is slow, and a reload must not make it start from nothing.
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
            out.u64(episode.read_ns);
            out.u64(episode.since_ns);
            out.u64(episode.asked_ns);
        });
        out.into_bytes()
    }

    fn restore(&mut self, state_version: u32, state: &[u8]) -> Result<(), String> {
        if state.is_empty() {
            return Ok(());
        }
        if state_version != 1 {
            return Err(format!("state version {state_version} is unknown"));
        }
        self.read(&mut Reader::new(state))
            .ok_or_else(|| "the state is damaged".to_owned())
    }
}

impl ReloadLoop {
    fn model(
        &mut self,
        record: &Record,
        body: &ModelFile,
        opened: bool,
        now_ns: u64,
        out: &mut Requests,
    ) {
        let options = &self.options;
        let id = FileId {
            workload: record.header.workload,
            device: body.device,
            inode: body.inode,
        };
        if opened && body.bytes < options.min_bytes.max(1) {
            return;
        }
        let file = if opened {
            let file = self.files.get_or_insert_with(id, File::default);
            file.size = body.bytes;
            file
        } else if let Some(file) = self.files.get_mut(&id) {
            file
        } else {
            return;
        };
        let bytes = match (opened, options.count_opens) {
            (false, _) => body.bytes,
            (true, true) => file.size,
            (true, false) => 0,
        };
        let time_ns = record.header.time_ns.min(now_ns);
        let process = ProcessId::from(&record.header);
        self.readers.get_or_insert_with(process, || ());
        if !file.mapped(process, bytes, time_ns, options.gap_ns, options.horizon_ns) {
            return;
        }
        let Some(found) = file.find_loop(id, process, options.epochs, options.gap_ns) else {
            return;
        };
        if let Some(episode) = self.episodes.get_mut(&id.workload) {
            *episode = Episode {
                found,
                read_ns: now_ns,
                ..*episode
            };
            return;
        }
        let episode = Episode {
            found,
            read_ns: now_ns,
            since_ns: now_ns,
            asked_ns: now_ns,
        };
        self.episodes.get_or_insert_with(id.workload, || episode);
        out.push(explain(Request::alert(target(&found)), &episode, now_ns));
        ask(options, &episode, now_ns, out);
    }

    fn exited(&mut self, process: ProcessId) {
        if self.readers.remove(&process).is_some() {
            for (_, file) in self.files.iter_mut() {
                file.exited(process);
            }
        }
    }

    /// Renews and ends what is due.
    fn age(&mut self, now_ns: u64, out: &mut Requests) {
        let options = &self.options;
        let mut due = Vec::new();
        self.episodes.retain(|_, episode| {
            // A throttled loop is slower: allow it twice its pace.
            let patience = episode.found.gap_ns.max(options.gap_ns).saturating_mul(2);
            if now_ns.saturating_sub(episode.read_ns) > patience.min(options.horizon_ns) {
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

    fn read(&mut self, from: &mut Reader<'_>) -> Option<()> {
        let files = from.list(MAX_FILES, |from| {
            Some((FileId::read(from)?, File::read(from)?))
        })?;
        let episodes = from.list(MAX_EPISODES, |from| {
            let workload = from.u64()?;
            let episode = Episode {
                found: Loop::read(from)?,
                read_ns: from.u64()?,
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
        reads,
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
    let churn = f64::from(reads) / f64::from(slots.max(1));
    let seconds = |ns: u64| ns as f64 / 1e9;
    request
        .reason(format!(
            "{place} loads {path} again and again: {reads} whole reads in {:.0} s, {churn:.1} for \
             each process that uses it at a time",
            seconds(span_ns),
        ))
        .evidence("reads at least min_gap apart", f64::from(epochs), "count")
        .evidence("whole reads", f64::from(reads), "count")
        .evidence("map churn", churn, "reads per process")
        .evidence("processes at a time", f64::from(slots), "count")
        .evidence("file size", size as f64, "bytes")
        .evidence("read in all", size as f64 * f64::from(reads), "bytes")
        .evidence("span", seconds(span_ns), "s")
        .evidence("last gap", seconds(gap_ns), "s")
        .evidence(
            "since",
            seconds(now_ns.saturating_sub(episode.since_ns)),
            "s",
        )
}

palisade_policy_sdk::policy!(ReloadLoop, "policy.toml");
