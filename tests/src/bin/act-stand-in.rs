//! A stand-in for the agent in `act_live`: holds one quota lease and waits to be killed.
//!
//! `act-stand-in keeper DIR RUN` is the keeper; `act-stand-in agent DIR CGROUP PERMILLE
//! DEADLINE_MS keeper|churn|kill` takes the lease (DEADLINE_MS from now, may be negative), prints
//! `held PID-OF-KEEPER` and obeys lines on its standard input: `stop` (a clean stop that leaves
//! the lease in force), `keeper` (start the keeper again if it is gone; prints its pid). With `churn`
//! it has a keeper too, but obeys nothing: it takes, tightens and undoes leases until it is killed.
//! With `kill` it takes no lease, but starts processes in the cgroup and kills the workload, over and
//! over, until it is killed itself.

use palisade::act::{Executor, ExecutorOptions, Journal, Keeper, keeper};
use palisade::boot_clock::now_ns;
use palisade::identity::layout::Layout;
use palisade_core::{ActOutcome, Action, Effect, EffectId, Knob, Lease, LeaseId, Target};
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|a| a.to_str()) {
        Some(keeper::SUBCOMMAND) => keeper::main(args),
        Some("agent") => match agent(
            &args
                .filter_map(|a| a.into_string().ok())
                .collect::<Vec<_>>(),
        ) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("error {error}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(2),
    }
}

fn agent(args: &[String]) -> Result<(), Box<dyn Error>> {
    let [dir, cgroup, permille, deadline_ms, how] = args else {
        return Err("five arguments".into());
    };
    let layout = Layout::detect()?;
    let (journal, _) = Journal::open(Path::new(dir))?;
    let mut keeper = Keeper::spawn(&journal)?;
    let until_ns = now_ns().saturating_add_signed(deadline_ms.parse::<i64>()? * 1_000_000);
    let workload = layout.workload_id(cgroup)?;
    let permille = permille.parse()?;
    let dirs = [
        Some(layout.id_dir(cgroup)),
        layout.controller_dir("freezer", cgroup),
    ];
    let mut executor = Executor::new(layout, journal, ExecutorOptions::default());
    let mut lease = Lease {
        id: LeaseId(now_ns()),
        workload,
        cgroup: cgroup.clone(),
        knob: Knob::CpuQuota,
        value: permille,
        owners: vec!["stand-in".to_owned()],
        until_ns,
    };
    if how == "kill" {
        println!("held {}", keeper.pid());
        loop {
            kill_one(&mut executor, &lease, dirs.iter().flatten())?;
        }
    }
    hold(&mut executor, &lease)?;
    println!("held {}", keeper.pid());
    if how == "churn" {
        loop {
            churn(&mut executor, &mut lease, permille)?;
        }
    }
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "stop" => break,
            "keeper" => {
                keeper.ensure()?;
                println!("keeper {}", keeper.pid());
            }
            _ => {}
        }
    }
    keeper.dismiss()?;
    println!("stopped");
    Ok(())
}

fn churn(executor: &mut Executor, lease: &mut Lease, permille: u32) -> Result<(), String> {
    for value in [permille / 2, permille] {
        lease.value = value;
        hold(executor, lease)?;
    }
    executor.perform(&Effect::Undo {
        id: EffectId(2),
        lease: lease.clone(),
        why: "churn".to_owned(),
    });
    lease.id = LeaseId(now_ns());
    Ok(())
}

fn kill_one<'a>(
    executor: &mut Executor,
    lease: &Lease,
    dirs: impl Iterator<Item = &'a PathBuf>,
) -> Result<(), Box<dyn Error>> {
    // Ends with us unless it is in the cgroup, where the test finds it.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read go && exec sleep 1000"])
        .stdin(Stdio::piped())
        .spawn()?;
    for dir in dirs {
        std::fs::write(dir.join("cgroup.procs"), child.id().to_string())?;
    }
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "go")?;
    }
    act(executor, lease, Action::Kill, None)?;
    child.wait()?;
    Ok(())
}

fn hold(executor: &mut Executor, lease: &Lease) -> Result<(), String> {
    let action = Action::CpuQuota(lease.value);
    act(executor, lease, action, Some(lease.clone()))
}

fn act(
    executor: &mut Executor,
    on: &Lease,
    action: Action,
    lease: Option<Lease>,
) -> Result<(), String> {
    let outcome = executor.perform(&Effect::Act {
        id: EffectId(1),
        decision: 1,
        policy: "stand-in".to_owned(),
        target: Target::Workload(on.workload),
        workload: Some(on.workload),
        cgroup: Some(on.cgroup.clone()),
        action,
        lease,
    });
    match outcome {
        Some(ActOutcome::Done { .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
