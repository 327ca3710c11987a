//! Running other programs: quietly with a line of progress, or in the foreground.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The repository's root.
pub fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// The cargo that `./x` chose, or the one on the PATH.
pub fn cargo() -> Command {
    let program = std::env::var_os("PALISADE_CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    clear_cargo_environment(&mut command);
    command
}

/// Takes out what the `cargo run` around xtask sets, which would confuse another cargo.
pub fn clear_cargo_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_")
            || matches!(
                &*text,
                "CARGO" | "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH" | "RUSTUP_TOOLCHAIN"
            )
        {
            command.env_remove(&name);
        }
    }
}

/// What the command prints to standard output, trimmed; `None` if it cannot run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command in the foreground.
pub fn foreground(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}

/// Runs a command with one line of progress; its output is shown only if it fails.
pub fn step(what: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    let mut shown = Duration::ZERO;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(100));
        let elapsed = started.elapsed();
        let due = if terminal {
            Duration::from_millis(500)
        } else {
            Duration::from_secs(30)
        };
        if elapsed.saturating_sub(shown) >= due {
            shown = elapsed;
            if terminal {
                eprint!("\r  … {what} {} s", elapsed.as_secs());
            } else {
                eprintln!("  … {what} {} s", elapsed.as_secs());
            }
            let _ = std::io::stderr().flush();
        }
    };
    let (out, err) = (join(out), join(err));
    let start = if terminal { "\r\x1b[K" } else { "" };
    if status.success() {
        eprintln!(
            "{start}  ✓ {what} ({:.1} s)",
            started.elapsed().as_secs_f64()
        );
        return Ok(());
    }
    eprintln!("{start}  ✗ {what}\n{out}{err}");
    bail!("{what} failed ({status}): {command:?}")
}

type Collector = Option<std::thread::JoinHandle<String>>;

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collector {
    let mut pipe = pipe?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

fn join(collector: Collector) -> String {
    collector
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

/// Runs a command, passes its lines on as they come, and gives each to `see`. A command that says
/// nothing for `patience` hangs: it is ended, with all that it started.
pub fn stream(
    command: &mut Command,
    patience: Duration,
    mut see: impl FnMut(&str),
) -> Result<bool> {
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    // The command holds the pipe's write ends; give up ours so that reading ends with the child.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            if sender.send(line.unwrap_or_default()).is_err() {
                break;
            }
        }
    });
    loop {
        match lines.recv_timeout(patience) {
            Ok(line) => {
                println!("{line}");
                see(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?.success()),
            Err(RecvTimeoutError::Timeout) => {
                for pid in descendants(child.id()) {
                    let _ = output(Command::new("kill").args(["-KILL", &pid.to_string()]));
                }
                let _ = child.kill();
                let _ = child.wait();
                bail!(
                    "nothing was heard for {} minutes, so it was ended: {command:?}",
                    patience.as_secs() / 60
                );
            }
        }
    }
}

/// The processes that `pid` started, and theirs, from /proc.
fn descendants(pid: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            Some((pid, parent.parse().ok()?))
        })
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_passed_on_and_the_result_is_told() {
        let mut seen = Vec::new();
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo one; echo two >&2; exit 3"]);
        let good = stream(&mut shell, Duration::from_mins(1), |line| {
            seen.push(line.to_owned());
        });
        assert!(!good.expect("it ran"));
        assert_eq!(seen, ["one", "two"]);
    }

    #[test]
    fn what_hangs_is_ended_with_its_children() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo $!; wait"]);
        let mut sleeper = String::new();
        let result = stream(&mut shell, Duration::from_millis(300), |line| {
            line.clone_into(&mut sleeper);
        });
        assert!(result.is_err_and(|error| error.to_string().contains("nothing was heard")));
        let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        let running = stat.contains("(sleep)") && !stat.contains(") Z ");
        assert!(!running, "{stat}");
    }
}
