//! `palisade demo`: the main job, on this very kernel, in under a minute.
//!
//! Invariants:
//! - The agent is the real one, run as a child with a configuration of its own; the demo neither
//!   sets nor undoes a limit itself.
//! - Every claim is checked against the service's output, the audit log and the kernel's cgroup
//!   files; one that does not hold is named and makes the exit code [`exit::FAILED`].
//! - Nothing stays behind, whatever happens: see [`stage`].

mod case;
mod cgroups;
mod children;
mod claims;
mod replay;
mod screen;
mod script;
mod settings;
mod stage;
mod story;

#[cfg(test)]
mod tests;

use crate::exit;
use anyhow::{Context, Result};
use claims::Claim;
use clap::Args;
use screen::{Screen, Tone};
use settings::POLICIES;
use stage::{Options, Programs, Stage};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names of the workloads and of their cgroups.
const SERVICE: &str = "service";
const HOG: &str = "device-hog";
const LOADER: &str = "reload-loop";

/// Where an installation has its policies.
const INSTALLED_POLICIES: &str = "/usr/lib/palisade/policies";

/// Options of `demo`.
#[derive(Clone, Debug, Default, Args)]
pub struct DemoArgs {
    /// Folder of the policies [default: policies beside the executable, else /usr/lib/palisade/policies].
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Print events and claims as JSON lines.
    #[arg(long)]
    json: bool,
    /// Keep the demo's folder (configuration, audit log, the agent's output) for a look.
    #[arg(long)]
    keep: bool,
    /// Keep the events in this file, as `palisade run --record` does.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// This host does not allow the demo; a recording is shown instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unable(String);

/// Runs the demo: live where this host allows it, else from a recording.
pub fn run(args: &DemoArgs) -> Result<u8> {
    let screen = Screen::new(args.json);
    match live(args, screen) {
        Err(error) if error.is::<Unable>() => {
            screen.note(
                Tone::Loud,
                &format!("This host does not allow the live demo: {error}"),
            );
            screen.note(Tone::Plain, "`palisade doctor` says what to do about it.");
            let policies = policies_folder(args.policies.as_deref())?;
            replay::replay_demo(replay::RECORDING, &policies, screen.replayed())
        }
        other => other,
    }
}

fn live(args: &DemoArgs, screen: Screen) -> Result<u8> {
    let stop = stop_flag()?;
    let programs = Programs::find()?;
    let policies = policies_folder(args.policies.as_deref())?;
    let mut stage = Stage::build(
        programs,
        &policies,
        &POLICIES,
        Options {
            keep: args.keep,
            record: args.record.clone(),
        },
    )?;
    introduce(screen, &stage);

    let mut play = script::Play::new(&mut stage, screen, &stop)?;
    let played = play.perform();
    let ended = play.agent_ends();
    let (case, head) = (play.case, play.head);
    if played.as_ref().is_err_and(anyhow::Error::is::<Unable>) {
        stage.leave();
        return played.map(|()| exit::OK);
    }
    let mut claims = Vec::new();
    // A play that was cut short has its own error; claims about its rest would only hide it.
    if played.is_ok() {
        claims.extend(claims::check(&case));
        claims.push(Claim::new(
            "the agent ended in order",
            ended.map(|()| "exit code 0".into()),
        ));
        story::tell(screen, &stage.audit_dir(), &case);
        claims.push(Claim::new(
            "the audit log is intact",
            story::verify(&stage.audit_dir(), head),
        ));
    }
    let left = stage.leave();
    claims.push(Claim::new(
        "nothing is left behind",
        if left.is_empty() {
            Ok("no cgroup, file or process".into())
        } else {
            Err(left.join(", "))
        },
    ));
    if stop.load(Ordering::Relaxed) {
        return Err(exit::coded(
            exit::FAILED,
            "stopped by a signal; everything was taken away again",
        ));
    }
    conclude(screen, &claims, &case);
    if args.keep {
        screen.note(
            Tone::Plain,
            &format!("Kept for a look: {}", stage.dir().display()),
        );
    }
    played?;
    let failed: Vec<&str> = claims
        .iter()
        .filter(|one| one.result.is_err())
        .map(|one| one.what.as_str())
        .collect();
    if failed.is_empty() {
        return Ok(exit::OK);
    }
    Err(exit::coded(
        exit::FAILED,
        format!("this did not really happen: {}", failed.join("; ")),
    ))
}

fn introduce(screen: Screen, stage: &Stage) {
    screen.note(
        Tone::Loud,
        &format!(
            "Palisade on this kernel: a service and two culprits, all on CPU {}",
            stage.cpu()
        ),
    );
    let note = |who: &str, settings: &[&str]| {
        let text = format!(
            "  shortened for the demo  {who:<15} {}",
            settings.join(", ")
        );
        screen.note(Tone::Dim, &text);
    };
    note("both policies", settings::GRANT);
    for policy in &POLICIES {
        note(policy.name, policy.settings);
    }
}

fn conclude(screen: Screen, claims: &[Claim], case: &case::Case) {
    screen.note(Tone::Loud, &format!("Checked ({})", script::summary(case)));
    for claim in claims {
        match &claim.result {
            Ok(detail) => screen.claim(true, &claim.what, detail),
            Err(detail) => screen.claim(false, &claim.what, detail),
        }
    }
}

/// By option, else beside the executable, else where a package puts them.
fn policies_folder(option: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = option {
        return dir
            .canonicalize()
            .with_context(|| format!("--policies {}", dir.display()));
    }
    let exe = std::env::current_exe().context("own executable")?;
    let here = exe.parent().unwrap_or(Path::new("/"));
    let candidates = [
        here.join("../policies"),
        here.join("policies"),
        INSTALLED_POLICIES.into(),
    ];
    let complete = |dir: &&PathBuf| {
        POLICIES
            .iter()
            .all(|one| dir.join(format!("{}.wasm", one.name)).is_file())
    };
    candidates.iter().find(complete).cloned().with_context(|| {
        let tried: Vec<String> = candidates
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        format!(
            "no policies in {}: build them with ./x build, or name --policies",
            tried.join(", ")
        )
    })
}

/// True once SIGINT, SIGTERM or SIGHUP came: the demo then takes everything away and ends.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("signal handling")?;
    let (mut int, mut term, mut hup) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    // Lives as long as the process: signals may come at any time.
    std::thread::Builder::new()
        .name("demo-signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = int.recv() => (), _ = term.recv() => (), _ = hup.recv() => () }
            });
            set.store(true, Ordering::Relaxed);
        })
        .context("signal handling")?;
    Ok(flag)
}
