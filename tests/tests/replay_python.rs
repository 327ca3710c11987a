//! A recording opens in the tools that people have: pyarrow, and DuckDB where it is installed.
#![allow(clippy::unwrap_used)] // a failed step ends the test

use palisade::batch::Batch;
use palisade::recording::{Entry, Identity, Origin, Writer};
use palisade_abi::{Exit, Header, ModelFile, Record};
use palisade_core::{ProcessId, WorkloadId};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// The columns of a record's 64 bytes.
const RECORD: &str = "time_ns,workload,start_ns,pid,tid,kind,kind_name,flags,cpu,body0,body1,body2";

/// Why there is no pyarrow here, if there is none.
fn no_pyarrow() -> Option<String> {
    let output = Command::new("python3")
        .args(["-c", "import pyarrow.compute"])
        .output();
    match output {
        Err(error) => Some(format!("python3 does not start: {error}")),
        Ok(output) if !output.status.success() => {
            Some("python3 has no pyarrow (pip install pyarrow duckdb)".to_owned())
        }
        Ok(_) => None,
    }
}

fn python(file: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay_python/read.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(file)
        .arg(RECORD)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn record(index: u64) -> Record {
    let header = Header {
        time_ns: 5_000_000_000 + index,
        workload: 7,
        start_ns: u64::MAX,
        pid: 100 + index as u32,
        tid: u32::MAX,
        kind: 0,
        flags: 3,
        cpu: 1,
    };
    if index.is_multiple_of(2) {
        let file = ModelFile {
            inode: 1 << 60,
            bytes: index,
            device: 8,
            fd: 9,
        };
        Record::new(header, file)
    } else {
        Record::new(header, Exit::default())
    }
}

/// What Python should say of a record.
fn row(record: &Record) -> Value {
    let header = &record.header;
    json!([
        header.time_ns,
        header.workload,
        header.start_ns,
        header.pid,
        header.tid,
        header.kind,
        record.kind().unwrap().name(),
        header.flags,
        header.cpu,
        record.body[0],
        record.body[1],
        record.body[2],
    ])
}

#[test]
fn a_recording_opens_in_pyarrow_and_duckdb() {
    if let Some(why) = no_pyarrow() {
        eprintln!("SKIPPED a_recording_opens_in_pyarrow_and_duckdb: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.arrows");
    let origin = Origin {
        agent: "0.1.0".into(),
        abi: palisade_abi::ABI_VERSION,
        boot_id: "b00t".into(),
        kernel: "6.18".into(),
        window_ns: 100_000_000,
        ..Origin::default()
    };
    let mut writer = Writer::create(&path, &origin).unwrap();
    let records: Vec<Record> = (0..10).map(record).collect();
    let identities = [
        Identity::Process {
            process: ProcessId {
                pid: 100,
                start_ns: u64::MAX,
            },
            parent: 1,
            comm: "serve".into(),
            exe: "/usr/bin/serve".into(),
            workload: Some(WorkloadId(7)),
        },
        Identity::Workload {
            workload: WorkloadId(7),
            cgroup: "/ml/ü".into(),
            container: None,
        },
    ];
    for identity in identities {
        writer.write(&Entry::Identity(identity)).unwrap();
    }
    let mut ends = Vec::new();
    for (seq, part) in records.chunks(4).enumerate() {
        let batch = Batch {
            seq: seq as u64,
            now_ns: 6_000_000_000,
            records: part.into(),
            window_end: seq == 2,
        };
        writer.write(&Entry::Batch(batch)).unwrap();
        writer.flush().unwrap();
        ends.push(writer.bytes());
    }
    drop(writer.finish().unwrap());

    let seen = python(&path);
    assert_eq!(seen["metadata"]["palisade.recording"], "3");
    assert_eq!(seen["metadata"]["palisade.boot_id"], "b00t");
    assert_eq!(seen["columns"]["time_ns"], "uint64");
    assert_eq!(
        seen["columns"]["kind_name"],
        "dictionary<values=string, indices=int16, ordered=0>"
    );
    assert_eq!((&seen["chunks"], &seen["rows"]), (&json!(3), &json!(15)));
    assert_eq!(
        seen["entries"],
        json!({ "batch": 3, "process": 1, "record": 10, "workload": 1 })
    );
    let expected: Vec<Value> = records.iter().map(row).collect();
    assert_eq!(seen["records"], json!(expected));
    assert_eq!(seen["paths"], json!(["/usr/bin/serve", "/ml/ü"]));
    match seen.get("duckdb") {
        Some(counts) => assert_eq!(*counts, json!([["exit", 5], ["model-open", 5]])),
        None => eprintln!(
            "SKIPPED a_recording_opens_in_pyarrow_and_duckdb(duckdb): python3 has no duckdb"
        ),
    }

    // Without its end, and cut in the middle of a chunk: the whole chunks before are all read.
    let bytes = std::fs::read(&path).unwrap();
    for (whole, cut) in [(3, ends[2]), (2, ends[2] - 1), (1, ends[0] + 100)] {
        std::fs::write(&path, &bytes[..cut as usize]).unwrap();
        assert_eq!(python(&path)["chunks"], whole, "cut at {cut}");
    }
}
