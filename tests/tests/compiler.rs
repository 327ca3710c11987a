//! The process that compiles policies: how it stands in for the agent when memory is short, and for whom it works.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade_tests::{PATIENCE, binaries};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn compiler() -> Command {
    let mut command = Command::new(binaries().join("palisade"));
    command.arg("compile");
    command
}

/// One that waits for its file, and is as ready as it gets.
fn waiting() -> Child {
    let mut child = compiler()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while !limits(&child).contains("Max core file size        0                    0 ")
        || !limits(&child).contains("Max address space         2147483648           2147483648 ")
    {
        let limits = limits(&child);
        if Instant::now() >= end {
            // Ours, by handle.
            let _ = child.kill();
            let _ = child.wait();
            panic!("{limits}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn limits(child: &Child) -> String {
    fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap()
}

#[test]
fn the_compiler_is_the_first_to_go_when_memory_is_short() {
    let mut child = waiting();
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id()));
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(score.unwrap().trim(), "1000");
    assert_eq!(output.status.code(), Some(3), "no file is no policy");
}

#[test]
fn the_compiler_ends_with_whoever_started_it() {
    let (sender, receiver) = mpsc::channel();
    // A signal at the parent's death is one at the death of the thread that started it.
    let parent = std::thread::spawn(move || sender.send(waiting()).unwrap());
    let mut child = receiver.recv().unwrap();
    parent.join().unwrap();
    // With its standard input open it would wait for ever.
    let input = child.stdin.take();
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            break child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(Instant::now() < end, "it was still there");
    assert_eq!(status.signal(), Some(9));
    drop(input);
}

#[test]
fn nobody_reads_and_it_does_not_begin() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = compiler()
        .stdin(Stdio::piped())
        .stdout(writer)
        .spawn()
        .unwrap();
    let input = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(input);
}

#[test]
fn people_are_shown_the_command_for_people() {
    let says = |output: std::process::Output| {
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("palisade policy check FILE"), "{text}");
    };
    says(compiler().arg("my.wasm").output().unwrap());
    says(compiler().arg("--help").output().unwrap());
    let terminal = nix::pty::openpty(None, None).unwrap();
    says(compiler().stdin(terminal.slave).output().unwrap());
    drop(terminal.master);
}
