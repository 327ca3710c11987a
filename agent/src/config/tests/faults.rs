//! Configurations that are wrong: every fault is told with its line and what would be right.
//!
//! Invariant: a row names every fault of its document, so that one too many fails as well.

use super::*;

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
            &[(
                2,
                "no key `zzz`",
                "keys are: cgroups, containers, executables, gpu-users, all, window",
            )],
        ),
        (
            "[sensors]\navoid = [\"kprobe\", \"kprobes\"]\ncuda-library = \"libcuda.so.1\"",
            &[
                (2, "called \"kprobes\"", "tp_btf, raw_tp, fexit"),
                (3, "not an absolute path", "begin it with `/`"),
            ],
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
            "[watch]\nall = true\ngpu-users = true",
            &[(2, "both a choice of what to watch", "keep one")],
        ),
        (
            "[watch]\nexecutables = [\"vllm\"]\ncontainers = [\"4f\", \"a/b/c\"]",
            &[
                (2, "\"vllm\", which cannot be watched", "whole path"),
                (3, "\"4f\" is not the beginning", "at least 4"),
                (3, "\"a/b/c\" is not the beginning", "at least 4"),
            ],
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
