#![allow(clippy::unwrap_used)]

use super::*;
use crate::identity::ScopeRoots;
use palisade_abi::{ANY_MINOR, DeviceKey};
use palisade_core::{Mode, Power};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A folder with a policy file, and a host whose only cgroup besides the root is /ml.
struct Bench {
    dir: tempfile::TempDir,
    host: Host,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("cgroup/ml/train")).unwrap();
        fs::write(dir.path().join("p.wasm"), b"x").unwrap();
        let mount = dir.path().join("cgroup");
        let mountinfo = format!("1 2 0:9 / {} rw - cgroup2 cgroup2 rw\n", mount.display());
        let host = Host {
            layout: Layout::from_mountinfo(&mountinfo),
            devices: ProcDevices::parse("Character devices:\n 195 nvidia\n 507 nvidia-uvm\n"),
        };
        Self { dir, host }
    }

    fn load(&self, text: &str) -> Result<Config, ConfigErrors> {
        let file = self.dir.path().join("palisade.toml");
        fs::write(&file, text).unwrap();
        Config::load_for(&file, Some(&self.host))
    }

    fn faults(&self, text: &str) -> Vec<Fault> {
        self.load(text).expect_err(text).faults
    }
}

/// Every row: a document, and of each expected fault its line and parts of message and help.
#[test]
fn each_fault_is_told_with_its_line_and_what_would_be_right() {
    let bench = Bench::new();
    type Row<'a> = (&'a str, &'a [(usize, &'a str, &'a str)]);
    let rows: &[Row<'_>] = &[
        (
            "statedir = \"/x\"",
            &[(
                1,
                "the file has no key `statedir`",
                "did you mean `state-dir`?",
            )],
        ),
        (
            "[wacth]\nall = true",
            &[(1, "no key `wacth`", "did you mean `watch`?")],
        ),
        (
            "[watch]\ncgroup = [\"/ml\"]",
            &[(2, "[watch] has no key `cgroup`", "did you mean `cgroups`?")],
        ),
        (
            "[watch]\nzzz = 1",
            &[(2, "no key `zzz`", "keys are: cgroups, all, window")],
        ),
        (
            "state_dir = \"var\"",
            &[(1, "not an absolute path", "begin it with `/`")],
        ),
        (
            "state_dir = \"/a\"\nstate-dir = \"/b\"",
            &[(1, "given twice", "remove one")],
        ),
        (
            "run_dir = 7",
            &[(
                1,
                "`run-dir` in the file is an integer",
                "a string in quotes",
            )],
        ),
        (
            "[watch]\ncgroups = [\"/nope\"]",
            &[(2, "cgroup /nope does not exist in ", "palisade doctor")],
        ),
        (
            "[watch]\ncgroups = [\"ml\"]",
            &[(2, "not the path of a cgroup", "\"/ml\"")],
        ),
        (
            "[watch]\ncgroups = [\"/sys/fs/cgroup/ml\"]",
            &[(2, "not the path of a cgroup", "below the mount point")],
        ),
        (
            "[watch]\ncgroups = [\"/ml/../x\"]",
            &[(2, "not the path of a cgroup", "without `.`")],
        ),
        (
            "[watch]\ncgroups = [\"/ml\", \"/ml/\"]",
            &[(2, "named twice", "remove one")],
        ),
        (
            "[watch]\ncgroups = []",
            &[(1, "names nothing to watch", "all = true")],
        ),
        (
            "[watch]\nall = false",
            &[(2, "names nothing to watch", "cgroups")],
        ),
        (
            "[watch]\ncgroups = [\"/ml\"]\nall = true",
            &[(3, "both `cgroups` and `all", "keep one")],
        ),
        (
            "[watch]\ncgroups = \"/ml\"",
            &[(2, "`cgroups` in [watch] is a string", "a list of strings")],
        ),
        (
            "[watch]\nall = \"yes\"",
            &[(2, "is a string", "without quotes")],
        ),
        (
            "[watch]\nwindow = 100",
            &[(2, "`window` in [watch] is an integer", "like \"100ms\"")],
        ),
        (
            "[watch]\nwindow = \"100\"",
            &[(2, "has no unit", "us, ms, s, m, h")],
        ),
        (
            "[watch]\nwindow = \"100msec\"",
            &[(2, "\"msec\" is not a unit", "write \"100ms\"")],
        ),
        (
            "[watch]\nwindow = \"1ms\"",
            &[(2, "out of range: 1ms", "from 10ms to 10s")],
        ),
        (
            "[watch]\nmodel-min-size = \"4MB\"",
            &[(2, "\"MB\" is not a unit of a size", "write \"4MiB\"")],
        ),
        (
            "[watch]\nmodel-suffixes = [\"a-suffix-that-is-long\"]",
            &[(2, "not a file name suffix", "1 to 15 bytes")],
        ),
        ("watch = 1", &[(1, "is an integer", "a table: [watch]")]),
        (
            "[limits]\nring-buffer = \"5MiB\"",
            &[(2, "not a power of two", "64KiB")],
        ),
        (
            "[limits]\nprocesses = 1",
            &[(2, "out of range: 1", "from 64 to 1000000")],
        ),
        (
            "[limits]\nprocesses = -1",
            &[(2, "out of range: -1", "from 64")],
        ),
        (
            "[budget]\nactions-per-min = 3",
            &[(
                2,
                "no key `actions-per-min`",
                "did you mean `actions-per-minute`?",
            )],
        ),
        (
            "[protect]\nexe = [\"**\"]",
            &[(2, "would protect everything", "examples/palisade.toml")],
        ),
        (
            "[protect]\nunit = [\"sshd\"]",
            &[(2, "not a whole name", "sshd.service")],
        ),
        (
            "[alerts]\nwebhook = \"localhost:80\"",
            &[(2, "not a URL", "http://host")],
        ),
        (
            "[devices]\nname = \"nvidia\"",
            &[(1, "not a list of tables", "[[devices]]")],
        ),
        (
            "[[devices]]\nmajor = 195",
            &[(1, "has no `name`", "name = ")],
        ),
        (
            "[[devices]]\nname = \"nvida\"",
            &[(2, "neither `path` nor `major`", "did you mean \"nvidia\"?")],
        ),
        (
            "[[devices]]\nname = \"x\"\npath = \"/dev/palisade-none\"",
            &[(3, "cannot be watched: No such file", "character device")],
        ),
        (
            "[[devices]]\nname = \"x\"\npath = \"/proc/version\"",
            &[(3, "not a character device", "character device")],
        ),
        (
            "[[devices]]\nname = \"x\"\npath = \"/dev/null\"\nmajor = 1",
            &[(3, "both `path` and `major`", "keep one")],
        ),
        (
            "[[devices]]\nname = \"nvidia\"\nminor = 1",
            &[(3, "`minor` without `major`", "add `major`")],
        ),
        (
            "[[devices]]\nname = \"a\"\nmajor = 1\n[[devices]]\nname = \"a\"\nmajor = 2",
            &[(4, "already on line 1", "of its own")],
        ),
        (
            "[[devices]]\nname = \"a\"\nmajor = 1\n[[devices]]\nname = \"b\"\nmajor = 1",
            &[(4, "the same device as \"a\"", "remove one")],
        ),
        (
            "[policies.p]\npath = \"gone.wasm\"",
            &[(2, "gone.wasm does not exist", "relative to")],
        ),
        (
            "[policies.p]\npath = \"cgroup\"",
            &[(2, "is not a file", ".wasm")],
        ),
        ("[policies.p]", &[(1, "has no `path`", "path = ")]),
        (
            "[policies.\"p q\"]\npath = \"p.wasm\"",
            &[(1, "not a policy's name", "a-z")],
        ),
        (
            "[policies]\np = \"p.wasm\"",
            &[(2, "not a table", "[policies.p]")],
        ),
        (
            "[policies.p]\npath = \"p.wasm\"\nmode = \"enforced\"",
            &[(3, "cannot be \"enforced\"", "did you mean \"enforce\"?")],
        ),
        (
            "[policies.p]\npath = \"p.wasm\"\npower = \"throtle\"",
            &[(3, "cannot be \"throtle\"", "did you mean \"throttle\"?")],
        ),
        (
            "[policies.p]\npath = \"p.wasm\"\npower = \"nuke\"",
            &[(
                3,
                "cannot be \"nuke\"",
                "one of: alert, throttle, freeze, signal, kill",
            )],
        ),
        (
            "[policies.p]\npath = \"p.wasm\"\nmin-quota = 0",
            &[(3, "out of range: 0", "0.001")],
        ),
        (
            "[policies.p]\npath = \"p.wasm\"\nsettings = 3",
            &[(3, "not a table", "settings = {")],
        ),
        (
            "[policies.p]\npath = \"p.wasm\"\nlimits = { memroy = \"4MiB\" }",
            &[(3, "no key `memroy`", "did you mean `memory`?")],
        ),
        (
            "[policies.p]\npath = \"p.wasm\"\n[policies.p]\nmode = \"observe\"",
            &[(3, "`p` is given twice", "given once")],
        ),
        (
            "[watch]\nall = true\nall = true",
            &[(3, "is given twice", "given once")],
        ),
    ];
    for (text, expected) in rows {
        let faults = bench.faults(text);
        assert_eq!(faults.len(), expected.len(), "{text}\n{faults:#?}");
        for (fault, (line, message, help)) in faults.iter().zip(*expected) {
            assert_eq!(fault.line, *line, "{text}\n{fault:?}");
            assert!(fault.message.contains(message), "{text}\n{fault:?}");
            assert!(
                fault.help.as_ref().unwrap().contains(help),
                "{text}\n{fault:?}"
            );
        }
    }
}

#[test]
fn all_faults_come_together_in_the_order_of_the_file() {
    let bench = Bench::new();
    let text = "bogus = 1\nstate_dir = \"rel\"\n[watch]\nwindow = \"9\"\ncgroups = [\"/no\", \"/ml\", \"x\"]\n\
        [[devices]]\nname = \"gpu\"\n[policies.a]\nmode = \"x\"\npower = \"y\"\nzzz = 0\n\
        [budget]\nleases = \"many\"\n";
    let error = bench.load(text).unwrap_err();
    let lines: Vec<usize> = error.faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [1, 2, 4, 5, 5, 7, 8, 9, 10, 11, 13]);
    let shown = error.to_string();
    let file = bench.dir.path().join("palisade.toml");
    assert!(
        shown.contains(&format!(
            "error: {}:4:10: `window` in [watch]: ",
            file.display()
        )),
        "{shown}"
    );
    assert!(shown.contains("\n  help: add one of us, ms"), "{shown}");
    assert!(shown.ends_with("palisade.toml: 11 faults"), "{shown}");
}

#[test]
fn a_file_that_is_not_toml_is_told_with_its_line_and_the_rest_is_read_on() {
    let bench = Bench::new();
    let faults = bench.faults("state_dir = \n[watch]\nwindow = \"7\"\n");
    assert_eq!(faults[0].line, 1, "{faults:#?}");
    assert!(faults[0].message.starts_with("not valid TOML: "));
    assert_eq!(faults.last().unwrap().line, 3);
}

#[test]
fn a_file_that_cannot_be_read_is_one_fault() {
    let error = Config::load(Path::new("/palisade-none/palisade.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "error: /palisade-none/palisade.toml: there is no such file\n  \
         help: name one with --config FILE; examples/palisade.toml is a start\n\
         /palisade-none/palisade.toml: 1 fault"
    );
    assert!(
        Config::load(Path::new("/proc")).unwrap_err().faults[0]
            .message
            .contains("cannot be read")
    );
    let bench = Bench::new();
    let large = format!("# {}\n", "x".repeat(1 << 20));
    assert!(
        bench.faults(&large)[0]
            .message
            .contains("larger than 1 MiB")
    );
    let file = bench.dir.path().join("bytes.toml");
    fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(
        Config::load(&file).unwrap_err().faults[0]
            .message
            .contains("cannot be read")
    );
}

#[test]
fn every_key_arrives() {
    let bench = Bench::new();
    let config = bench
        .load(
            "state_dir = \"/s\"\nrun-dir = \"/r\"\n\
             [watch]\ncgroups = [\"/ml/\", \"/ml//train\"]\nwindow = \"50ms\"\n\
             model-suffixes = [\".gguf\", \"pt\"]\nmodel-min-size = \"1GiB\"\n\
             [[devices]]\nname = \"nvidia\"\nslow = \"250us\"\n\
             [[devices]]\nname = \"tty\"\npath = \"/dev/null\"\n\
             [[devices]]\nname = \"own\"\nmajor = 200\nminor = 3\n\
             [[devices]]\nname = \"kfd\"\n\
             [limits]\nring-buffer = \"1MiB\"\nprocesses = 100\npolicy-memory = \"8MiB\"\n\
             policy-deadline = \"5ms\"\npolicy-queue = 9\npolicy-strikes = 2\npolicy-strike-window = \"2m\"\npolicy-probation = \"10s\"\n\
             [budget]\nactions-per-minute = 7\nleases = 3\nloss-window = \"2s\"\n\
             driver-call-wait = \"1s\"\ndisarmed = true\n\
             [protect]\nexe = [\"/bin/a\"]\nunit = [\"b.service\"]\ncgroup = [\"/c/d/\"]\n\
             [alerts]\nwebhook = \"https://h/p\"\nfile = \"a.jsonl\"\n\
             [policies.p]\npath = \"./p.wasm\"\nmode = \"enforce\"\npower = \"freeze\"\n\
             cooldown = \"1s\"\nactions-per-minute = 2\nmax-lease = \"5s\"\nmin-quota = 0.25\n\
             limits = { queue = 5 }\nsettings = { share = 0.5, n = 3, names = [\"a\"] }\n",
        )
        .unwrap();
    let dir = bench.dir.path();
    assert_eq!(config.paths.socket(), PathBuf::from("/r/control.sock"));
    assert_eq!(config.paths.audit_dir(), PathBuf::from("/s/audit"));
    assert_eq!(config.paths.leases_dir(), PathBuf::from("/r/leases"));
    assert_eq!(
        config.watch,
        Watch {
            scope: ScopeRoots::Below(vec!["/ml".into(), "/ml/train".into()]),
            window: Duration::from_millis(50),
            model_suffixes: vec!["gguf".into(), "pt".into()],
            model_min_bytes: 1 << 30,
        }
    );
    let keys: Vec<_> = config
        .devices
        .iter()
        .map(|class| class.keys.clone())
        .collect();
    let key = |major, minor| DeviceKey { major, minor };
    let present = [key(195, ANY_MINOR), key(1, 3), key(200, 3)];
    // The absent preset keeps its place: the index is the class.
    assert_eq!(keys[..3], present.map(|key| vec![key]));
    assert_eq!(keys[3], []);
    assert_eq!(config.devices[0].slow, Duration::from_micros(250));
    assert_eq!(config.warnings.len(), 1);
    assert!(
        config.warnings[0]
            .to_string()
            .contains("\"kfd\" is not in /proc/devices")
    );
    assert_eq!(config.limits.ring_buffer_bytes, 1 << 20);
    assert_eq!(config.core.max_leases, 3);
    assert_eq!(config.core.loss_window_ms, 2000);
    assert!(config.core.disarmed);
    assert_eq!(config.driver_call_wait, Duration::from_secs(1));
    assert_eq!(config.protect.cgroup, ["/c/d"]);
    assert_eq!(config.alerts.file, Some(dir.join("a.jsonl")));
    let policy = &config.policies[0];
    assert_eq!(policy.path, dir.join("p.wasm"));
    assert_eq!(policy.grant.mode, Mode::Enforce);
    assert_eq!(policy.grant.max_power, Power::Freeze);
    assert_eq!(policy.grant.min_quota_permille, 250);
    assert_eq!(policy.grant.max_lease_ms, 5000);
    assert_eq!(policy.limits.queue_batches, 5);
    assert_eq!(policy.limits.memory_bytes, 8 << 20);
    assert_eq!(policy.settings["share"].as_float(), Some(0.5));
    assert_eq!(policy.setting_lines["n"], policy.line + 9);
    assert_eq!(config.digest.len(), 64);
    assert_eq!(config.source, Some(dir.join("palisade.toml")));
}

#[test]
fn a_new_installation_only_observes() {
    let bench = Bench::new();
    let config = bench.load("[policies.p]\npath = \"p.wasm\"\n").unwrap();
    assert_eq!(config.policies[0].grant, default_grant());
    assert_eq!(config.policies[0].grant.mode, Mode::Observe);
    assert_eq!(config.policies[0].grant.max_power, Power::Alert);
    assert_eq!(config.watch.scope, ScopeRoots::All);
    let names: Vec<_> = config
        .devices
        .iter()
        .map(|class| class.name.as_str())
        .collect();
    assert_eq!(names, ["nvidia", "nvidia-uvm", "drm"]);
    assert!(config.warnings.is_empty());
    let none = Config::default_with(Paths::default());
    assert!(none.policies.is_empty() && none.source.is_none());
    // SHA-256 of nothing.
    assert!(none.digest.starts_with("e3b0c44298fc1c14"));
}

#[test]
fn the_example_has_every_key_and_shows_the_defaults() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/palisade.toml");
    let text = fs::read_to_string(&example).unwrap();
    let bench = Bench::new();
    fs::create_dir(bench.dir.path().join("palisade")).unwrap();
    for name in ["gpu-contention", "reload-loop"] {
        fs::write(bench.dir.path().join(format!("palisade/{name}.wasm")), b"x").unwrap();
    }
    let config = bench.load(&text).unwrap();
    assert_eq!(config.policies.len(), 2);
    // Every commented default, put in force, is the default.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_default(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let spelled = bench.load(&uncommented).unwrap();
    assert_eq!(spelled.paths, Paths::default());
    assert_eq!(spelled.watch, Watch::default());
    assert_eq!(spelled.limits, Limits::default());
    assert_eq!(spelled.core, default_core());
    assert_eq!(spelled.driver_call_wait, DEFAULT_DRIVER_CALL_WAIT);
    assert_eq!(spelled.devices[0].slow, DEFAULT_SLOW_CALL);
    let grant = &spelled.policies[0].grant;
    assert_eq!(
        *grant,
        palisade_core::Grant {
            max_power: Power::Throttle,
            ..default_grant()
        }
    );
}

/// `key = value` whose value is the default: not a second example of a key that is set below or
/// that has no default, and not a section.
fn is_default(line: &str) -> bool {
    let Some((key, _)) = line.split_once(" = ") else {
        return false;
    };
    let no_default = [
        "cgroups", "webhook", "file", "power", "exe", "unit", "memory", "cgroup",
    ];
    !key.contains(' ') && !no_default.contains(&key)
}

#[test]
fn the_folders_are_found_in_a_file_with_other_faults() {
    let bench = Bench::new();
    let file = bench.dir.path().join("c.toml");
    fs::write(
        &file,
        "run_dir = \"/r\"\nbogus = 1\n[policies.p]\npath = \"gone\"\n",
    )
    .unwrap();
    assert_eq!(Paths::load(&file).unwrap().run_dir, PathBuf::from("/r"));
    fs::write(&file, "run_dir = 5\n").unwrap();
    assert_eq!(Paths::load(&file).unwrap_err().faults[0].line, 1);
}

#[test]
fn without_a_host_nothing_outside_the_file_is_looked_for() {
    let bench = Bench::new();
    let file = bench.dir.path().join("c.toml");
    fs::write(
        &file,
        "[watch]\ncgroups = [\"/none\"]\n[policies.p]\npath = \"gone\"\n",
    )
    .unwrap();
    assert!(Config::load_for(&file, None).is_ok());
    assert_eq!(
        Config::load_for(&file, Some(&bench.host))
            .unwrap_err()
            .faults
            .len(),
        2
    );
}

#[test]
fn any_text_is_answered_and_never_a_panic() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/palisade.toml");
    let text: Vec<char> = fs::read_to_string(&example).unwrap().chars().collect();
    let bench = Bench::new();
    let context = sections::Context {
        base: Path::new("/"),
        host: Some(&bench.host),
    };
    let mut state = 7_u64;
    let mut random = |below: usize| {
        // Numerical Recipes' generator: the same texts in every run.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let alphabet: Vec<char> = "[]{}=\"'.,#\n -_0aé\u{1F600}".chars().collect();
    for _ in 0..300 {
        let mut mutant = text.clone();
        for _ in 0..=random(20) {
            let at = random(mutant.len());
            match random(3) {
                0 => drop(mutant.drain(at..(at + random(40)).min(mutant.len()))),
                1 => mutant.insert(at, alphabet[random(alphabet.len())]),
                _ => mutant[at] = alphabet[random(alphabet.len())],
            }
        }
        let mutant: String = mutant.into_iter().collect();
        let mut faults = Faults::new(&mutant);
        with_document(&mutant, &mut faults, |root, faults| {
            sections::document(root, context, faults)
        });
        for fault in &faults.faults {
            assert!(fault.line >= 1 && !fault.message.is_empty());
        }
    }
}
