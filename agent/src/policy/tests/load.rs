//! Every way to refuse a policy, with the words that help.

use super::super::{LoadError, check, inspect};
use super::guest::{self, GOOD, Guest};
use super::*;

/// Checks `bytes` as a policy named "p".
fn refused(bytes: &[u8], change: impl FnOnce(&mut PolicySource)) -> LoadError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    std::fs::write(&path, bytes).unwrap();
    let mut source = source("p", &path);
    change(&mut source);
    check(&source).expect_err("it should be refused")
}

fn refused_guest(guest: Guest) -> LoadError {
    refused(&guest.build(), |_| ())
}

#[track_caller]
fn says(error: &LoadError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_good_policy_is_taken_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    std::fs::write(&path, GOOD.build()).unwrap();
    let manifest = check(&source("p", &path)).unwrap();
    assert_eq!(manifest, inspect(&path).unwrap());
    assert_eq!(
        (manifest.name.as_str(), manifest.version.as_str()),
        ("counter", "1.0.0")
    );
}

#[test]
fn a_manifest_in_the_core_module_is_found() {
    let module = guest::with_manifest(GOOD.module(), GOOD.manifest().as_bytes());
    let wasm = guest::component(
        module,
        include_str!("../../../../policy-sdk/wit/policy.wit"),
        "policy",
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    std::fs::write(&path, wasm).unwrap();
    assert_eq!(inspect(&path).unwrap().name, "counter");
}

#[test]
fn files_that_are_not_there_or_too_large() {
    let missing = check(&source("p", Path::new("/nowhere/p.wasm"))).unwrap_err();
    assert!(matches!(missing, LoadError::Read { .. }));
    says(&missing, &["/nowhere/p.wasm", "No such file"]);
    let folder = tempfile::tempdir().unwrap();
    let not_a_file = check(&source("p", folder.path())).unwrap_err();
    assert!(matches!(not_a_file, LoadError::NotAFile { .. }));
    let large = refused(&GOOD.build(), |source| source.limits.file_bytes = 100);
    assert!(matches!(large, LoadError::TooLarge { limit: 100, .. }));
}

#[test]
fn files_that_are_not_components() {
    assert!(matches!(
        refused(b"#!/bin/sh", |_| ()),
        LoadError::NotWasm { .. }
    ));
    assert!(matches!(refused(b"", |_| ()), LoadError::NotWasm { .. }));
    let core = refused(&GOOD.module(), |_| ());
    assert!(matches!(core, LoadError::CoreModule { .. }));
    says(&core, &["palisade policy build", "./x build"]);
    let mut torn = GOOD.build();
    torn.truncate(torn.len() / 2);
    assert!(matches!(
        refused(&torn, |_| ()),
        LoadError::Malformed { .. }
    ));
    let mut bent = GOOD.build();
    // In the code of the core module.
    let at = bent
        .windows(8)
        .position(|bytes| bytes == b"on-batch")
        .unwrap();
    bent[at + 200..at + 260].fill(0xff);
    assert!(matches!(
        refused(&bent, |_| ()),
        LoadError::Malformed { .. }
    ));
}

#[test]
fn manifests_that_are_missing_or_faulty() {
    let none = refused(&GOOD.bare(), |_| ());
    assert!(matches!(none, LoadError::NoManifest { .. }));
    let faulty = refused_guest(Guest {
        version: "one",
        policy: "powers = [\"all\"]",
        ..GOOD
    });
    let LoadError::Manifest { faults, .. } = &faulty else {
        panic!("{faulty}")
    };
    assert_eq!(faults.len(), 2);
    says(
        &faulty,
        &[
            "\"one\"",
            "\"all\"",
            "alert, throttle, freeze, signal, kill",
        ],
    );
    let two = guest::with_manifest(GOOD.build(), b"other");
    says(&refused(&two, |_| ()), &["two different manifests"]);
}

#[test]
fn a_newer_abi_is_said_to_be_that_even_if_the_manifest_is_newer_too() {
    let newer = refused_guest(Guest {
        policy: "abi = 1000\nnovelty = true",
        ..GOOD
    });
    assert!(
        matches!(
            newer,
            LoadError::Abi {
                policy: 1000,
                agent: palisade_abi::ABI_VERSION,
                ..
            }
        ),
        "{newer}"
    );
}

#[test]
fn powers_beyond_the_grant_name_both() {
    let error = refused_guest(Guest {
        policy: "powers = [\"alert\", \"kill\"]",
        ..GOOD
    });
    assert!(matches!(error, LoadError::Power { .. }));
    says(&error, &["`kill`", "`throttle`", "[policies.p]"]);
}

#[test]
fn settings_that_do_not_fit_name_each() {
    let guest = Guest {
        tables: "[settings.window]\ntype = \"integer\"\ndefault = 5\nmax = 9\nunit = \"ms\"",
        ..GOOD
    };
    let error = refused(&guest.build(), |source| {
        source.settings = toml::from_str("window = 10\nwindwo = 1").unwrap();
    });
    assert!(matches!(error, LoadError::Settings { .. }));
    says(&error, &["window = 10", "at most 9 (ms)", "windwo"]);
}

#[test]
fn components_for_other_worlds_are_told_what_is_missing_and_foreign() {
    let wit = "package other:thing;
        interface door { open: func(); }
        world thing { import door; export run: func(); }";
    let module = wat::parse_str(
        r#"(module (import "other:thing/door" "open" (func)) (func (export "run") (call 0)))"#,
    );
    let wasm = guest::component(module.unwrap(), wit, "thing");
    let wasm = guest::with_manifest(wasm, GOOD.manifest().as_bytes());
    let error = refused(&wasm, |_| ());
    assert!(matches!(error, LoadError::World { .. }));
    says(
        &error,
        &[
            "imports other:thing/door",
            "init, on-batch",
            "it exports run instead",
        ],
    );
}

#[test]
fn a_function_of_another_type_is_no_policy() {
    let wit = "package other:thing;
        world thing {
            export init: func();
            export on-batch: func();
            export on-tick: func();
            export checkpoint: func();
            export restore: func();
        }";
    let module = wat::parse_str(
        r#"(module (func (export "init")) (func (export "on-batch")) (func (export "on-tick"))
            (func (export "checkpoint")) (func (export "restore")))"#,
    );
    let wasm = guest::component(module.unwrap(), wit, "thing");
    let error = refused(
        &guest::with_manifest(wasm, GOOD.manifest().as_bytes()),
        |_| (),
    );
    assert!(matches!(error, LoadError::World { .. }), "{error}");
}

#[test]
fn policies_that_do_not_start() {
    let no = refused_guest(Guest {
        init: "(return (call $no))",
        ..GOOD
    });
    assert!(matches!(no, LoadError::Init { .. }));
    says(&no, &["policy p refused to start: counted"]);
    for (init, word) in [
        (guest::TRAP, "trap"),
        (guest::SPIN, "deadline"),
        ("(drop (memory.grow (i32.const 1000)))", "memory"),
    ] {
        let error = refused_guest(Guest { init, ..GOOD });
        assert!(matches!(error, LoadError::Init { .. }));
        says(&error, &[word]);
    }
    let small = refused(&GOOD.build(), |source| source.limits.memory_bytes = 65536);
    assert!(matches!(small, LoadError::Instantiate { .. }), "{small}");
}

#[test]
fn loaded_together_they_start_in_their_order_all_or_none() {
    let bed = Bed::new();
    let names = ["c", "a", "d", "b", "e"];
    for name in names {
        bed.write(name, &GOOD.build());
    }
    bed.write("bad", b"no policy");
    bed.write("worse", b"neither");
    let all = |names: &[&str]| {
        let sources = names.iter().map(|name| bed.source(name)).collect();
        bed.engine.load_all(sources)
    };
    let (name, error) = all(&["c", "bad", "a", "worse"]).unwrap_err();
    assert_eq!(name, "bad", "the first in their order");
    assert!(matches!(error, LoadError::NotWasm { .. }), "{error}");
    let (name, error) = all(&["c", "a", "c"]).unwrap_err();
    assert_eq!(name, "c");
    assert!(matches!(error, LoadError::AlreadyLoaded { .. }), "{error}");
    assert!(bed.engine.status().is_empty(), "none of them runs");
    let loaded = all(&names).unwrap();
    assert!(loaded.iter().map(|policy| &policy.name).eq(names));
    assert!(all(&["a"]).is_err(), "it runs");
    assert!(all(&[]).unwrap().is_empty());
    let told = bed.finish().into_iter().filter_map(|event| match event {
        PolicyEvent::Loaded { policy, .. } => Some(policy.name),
        _ => None,
    });
    assert!(told.eq(names));
}

#[test]
fn names_are_unique_and_must_exist() {
    let bed = Bed::new();
    bed.load("p", &GOOD.build());
    let twice = bed.engine.load(bed.source("p")).unwrap_err();
    assert!(matches!(twice, LoadError::AlreadyLoaded { .. }));
    assert!(matches!(
        bed.engine.reload("q"),
        Err(LoadError::Unknown { .. })
    ));
    assert!(matches!(
        bed.engine.unload("q"),
        Err(LoadError::Unknown { .. })
    ));
    bed.engine.unload("p").unwrap();
    assert!(bed.engine.status().is_empty());
    assert!(matches!(
        bed.finish().last(),
        Some(PolicyEvent::Unloaded { .. })
    ));
}
