//! A compiler that does anything but compile. Played by a shell script; what it is to do lies in a file beside it.

use super::super::engine;
use super::guest::GOOD;
use super::{Bed, EngineOptions, Numbers, SECOND};
use crate::policy::{Engine, LoadError, NoLookup};
use rustix::process::{Pid, test_kill_process};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Longer than a script needs that does not sleep, on a loaded host.
const WAIT: Duration = Duration::from_secs(20);

/// An engine whose compiler does what [`Bed::play`] says.
fn bed(wait: Duration) -> Bed {
    let mut bed = Bed::new();
    let folder = bed.folder.path().display().to_string();
    let script = format!("#!/bin/sh\necho $$ >{folder}/pid\n. {folder}/play\n");
    // Not by this process: another test's child would hold the file open, and it could not be executed.
    let write = format!("cat >{folder}/compiler && chmod +x {folder}/compiler");
    let code = Command::new("sh")
        .args(["-c", &format!("printf '%s' \"$1\" | {{ {write}; }}"), "sh"])
        .arg(script)
        .status();
    assert!(code.unwrap().success());
    let (sender, events) = channel();
    let options = EngineOptions {
        compiler: Some(bed.folder.path().join("compiler")),
        compiler_wait: wait,
        ..Default::default()
    };
    bed.engine = Engine::new(options, Arc::new(NoLookup), sender).unwrap();
    bed.events = events;
    bed
}

impl Bed {
    fn play(&self, script: &str) {
        std::fs::write(self.folder.path().join("play"), script).unwrap();
    }

    /// Answers with what the real one would.
    fn play_well(&self, wasm: &[u8]) {
        let code = self.folder.path().join("code");
        std::fs::write(&code, engine::compile(wasm).unwrap()).unwrap();
        self.play(&format!("cat >/dev/null; cat {}", code.display()));
    }

    /// The compiler's process id, as soon as it runs.
    fn compiler(&self) -> Pid {
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            let text = std::fs::read_to_string(self.folder.path().join("pid"));
            let pid = text.ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                return pid;
            }
            assert!(Instant::now() < end, "no compiler");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A reload with such a compiler is refused with `why`, promptly; no process stays, and the old version runs on.
fn refused(wait: Duration, script: &str, why: &str) {
    let mut bed = bed(wait);
    let wasm = GOOD.build();
    bed.play_well(&wasm);
    bed.load("p.wasm", &wasm);
    bed.play(script);
    let begun = Instant::now();
    let error = bed.engine.reload("p.wasm").unwrap_err();
    assert!(begun.elapsed() < wait + WAIT, "{:?}", begun.elapsed());
    assert!(matches!(error, LoadError::Compiler { .. }), "{error:?}");
    let text = error.to_string();
    let file = bed.folder.path().join("p.wasm").display().to_string();
    assert!(text.contains(&file) && text.contains(why), "{text}");
    assert!(
        test_kill_process(bed.compiler()).is_err(),
        "neither runs nor waits to be buried"
    );
    bed.publish(&Numbers::default().batch(10, SECOND));
    bed.until_count("p.wasm", 10);
    let status = &bed.engine.status()[0];
    assert_eq!((status.generation, status.running_generation), (2, 1));
    assert_eq!(status.last_error.as_deref(), Some(text.as_str()));
}

#[test]
fn a_compiler_that_sleeps_is_killed() {
    let wait = Duration::from_secs(1);
    refused(wait, "exec sleep 1000", "had not ended after 1 s");
    let closed = "exec sleep 1000 <&- >&-";
    refused(wait, closed, "had not ended after 1 s");
}

#[test]
fn a_compiler_that_answers_without_end_is_killed() {
    refused(WAIT, "exec cat /dev/zero", "more than 134217728 bytes");
}

#[test]
fn a_compiler_that_dies_is_told_with_its_signal() {
    refused(WAIT, "kill -KILL $$", "signal: 9");
}

#[test]
fn a_compiler_that_fails_or_answers_nonsense_is_told() {
    refused(WAIT, "echo nonsense; exit 77", "exit status: 77");
    refused(WAIT, "echo nonsense", "answer is not code");
    refused(WAIT, "exit 0", "answer is not code");
    refused(
        WAIT,
        "echo RLIMIT_AS: no; exit 4",
        "could not begin: RLIMIT_AS: no",
    );
}

#[test]
fn a_process_that_a_compiler_leaves_behind_keeps_nobody_waiting() {
    refused(WAIT, "sleep 2 & kill -KILL $$", "signal: 9");
}

#[test]
fn a_compiler_does_not_hold_up_the_end() {
    let bed = bed(Duration::from_mins(10));
    bed.play("exec sleep 1000");
    bed.write("p.wasm", &GOOD.build());
    let (engine, source) = (bed.engine.clone(), bed.source("p.wasm"));
    let loading = std::thread::spawn(move || engine.load(source));
    let pid = bed.compiler();
    let begun = Instant::now();
    bed.engine.shutdown();
    assert!(begun.elapsed() < WAIT, "{:?}", begun.elapsed());
    let error = loading.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("the agent stops"), "{error}");
    assert!(test_kill_process(pid).is_err());
}
