//! Which tests run in a guest, and the script that runs them there.

use crate::process::{cargo, root};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What is not named `…_live` and yet meets the kernel, with filters of test names; no filter: all. The demo,
/// `signals_fire`, `controls` and `example` are not among them and run by name only: what they claim are times, or rest
/// on times that loads keep, and emulation keeps none. Nor is the test of `footprint` that needs the stock policies: on an
/// emulated processor that is busy their compilation takes longer than an agent waits for it.
const ALSO: &[(&str, &[&str])] = &[
    ("replay", &[]),
    ("footprint", &["computed_memory_of_a_map_that_grows"]),
    ("palisade", &["sensors::", "identity::"]),
];

/// What a change must pass, on slow machines without KVM.
const CI: &[(&str, &[&str])] = &[
    ("vm_live", &[]),
    ("sensors_live", &[]),
    // That the agent as a whole starts, tells what it is attached to, and acts.
    (
        "agent_live",
        &["the_log_begins_with_where", "a_throttle_is_real"],
    ),
    ("palisade", &["sensors::offsets"]),
];

/// A program of tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestBinary {
    /// Name of the file in `tests/tests`, or of the library.
    pub name: String,
    /// Where cargo put it.
    pub program: PathBuf,
    /// Filters of test names; none: all of them.
    pub filters: Vec<String>,
}

/// The workspace's test programs, built if they are not.
pub fn built() -> Result<Vec<TestBinary>> {
    // As `./x test` builds them, so that nothing is compiled twice.
    let output = cargo()
        .args([
            "test",
            "--locked",
            "--workspace",
            "--no-run",
            "--message-format=json",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not build: run cargo test --workspace --no-run");
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(test_binary)
        .collect())
}

/// One of cargo's messages, if it is about a test program of an integration test or of a library.
fn test_binary(message: &str) -> Option<TestBinary> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let kind = message["target"]["kind"].get(0)?.as_str()?;
    let is_test = message["profile"]["test"].as_bool()?;
    (is_test && matches!(kind, "test" | "lib")).then_some(())?;
    Some(TestBinary {
        name: message["target"]["name"].as_str()?.to_owned(),
        program: message["executable"].as_str()?.into(),
        filters: Vec::new(),
    })
}

/// Of the built ones those that are meant: words that name a program choose it, others filter tests.
pub fn select(built: &[TestBinary], ci: bool, words: &[String]) -> Vec<TestBinary> {
    let named = |name: &str| words.iter().any(|word| word == name);
    let filters: Vec<String> = words
        .iter()
        .filter(|word| !built.iter().any(|test| test.name == **word))
        .cloned()
        .collect();
    let any_named = built.iter().any(|test| named(&test.name));
    built
        .iter()
        .filter_map(|test| {
            let table = if ci { CI } else { ALSO };
            let row = table.iter().find(|(name, _)| *name == test.name);
            let chosen = if any_named {
                named(&test.name)
            } else {
                row.is_some() || (!ci && test.name.ends_with("_live"))
            };
            let filters = match row {
                Some((_, own)) if filters.is_empty() && !named(&test.name) => {
                    own.iter().map(|&filter| filter.to_owned()).collect()
                }
                _ => filters.clone(),
            };
            chosen.then(|| TestBinary {
                filters,
                ..test.clone()
            })
        })
        .collect()
}

/// The script that a guest runs: every program, one test at a time, as `./x test` does. `xid_module` is the
/// kernel module of the tests that was built for the kernel.
pub fn job(kernel: &str, xid_module: Option<&Path>, tests: &[TestBinary]) -> String {
    let root = root();
    let mut lines = vec![
        format!("export PALISADE_VM={kernel} PALISADE_BUILT=1 RUST_BACKTRACE=1"),
        format!(
            "export PALISADE_GUESTS={}",
            quoted(&root.join("target/policies/guests"))
        ),
        format!("cd {} || exit 92", quoted(&root.join("tests"))),
        "code=0".to_owned(),
    ];
    if std::env::var_os("PALISADE_SOAK").is_some() {
        lines.push("export PALISADE_SOAK=1".to_owned());
    }
    if let Some(module) = xid_module {
        lines.push(format!("export PALISADE_XID_MODULE={}", quoted(module)));
    }
    for test in tests {
        lines.push(format!("echo 'GUEST runs {}'", test.name));
        let mut line = quoted(&test.program);
        line += " --nocapture --test-threads=1";
        for filter in &test.filters {
            line += " ";
            line += &quoted(filter.as_ref());
        }
        lines.push(line + " || code=1");
    }
    lines.push("exit $code".to_owned());
    lines.join("\n") + "\n"
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str) -> TestBinary {
        TestBinary {
            name: name.into(),
            program: format!("/b/{name}-1").into(),
            filters: Vec::new(),
        }
    }

    fn chosen(ci: bool, words: &[&str]) -> Vec<String> {
        let built = [
            "act_live",
            "agent_live",
            "audit",
            "controls",
            "demo",
            "footprint",
            "palisade",
            "sensors_live",
            "signals_fire",
            "vm_live",
        ]
        .map(test);
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        select(&built, ci, &words)
            .into_iter()
            .map(|test| [vec![test.name], test.filters].concat().join(" "))
            .collect()
    }

    #[test]
    fn live_tests_run_unless_others_are_named() {
        assert_eq!(
            chosen(false, &[]),
            [
                "act_live",
                "agent_live",
                "footprint computed_memory_of_a_map_that_grows",
                "palisade sensors:: identity::",
                "sensors_live",
                "vm_live"
            ]
        );
        assert_eq!(chosen(false, &["audit", "chain"]), ["audit chain"]);
        assert_eq!(chosen(false, &["palisade"]), ["palisade"]);
        assert_eq!(chosen(false, &["signals_fire"]), ["signals_fire"]);
        assert_eq!(
            chosen(true, &[]),
            [
                "agent_live the_log_begins_with_where a_throttle_is_real",
                "palisade sensors::offsets",
                "sensors_live",
                "vm_live"
            ]
        );
        assert_eq!(
            chosen(false, &["gpu"]),
            [
                "act_live gpu",
                "agent_live gpu",
                "footprint gpu",
                "palisade gpu",
                "sensors_live gpu",
                "vm_live gpu"
            ]
        );
    }

    #[test]
    fn only_test_programs_are_taken_from_cargos_messages() {
        let message = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"act_live"}},"profile":{{"test":{test}}},"executable":"/b/act_live-1"}}"#
            )
        };
        assert_eq!(test_binary(&message("test", true)), Some(test("act_live")));
        assert_eq!(test_binary(&message("bin", true)), None);
        assert_eq!(test_binary(&message("lib", false)), None);
        assert_eq!(test_binary("warning: unused"), None);
    }

    #[test]
    fn the_job_quotes_what_it_is_given() {
        let mut one = test("act_live");
        one.filters = vec!["it's".into()];
        let job = job("6.1", Some("/m.ko".as_ref()), &[one]);
        assert!(
            job.contains("export PALISADE_XID_MODULE='/m.ko'\n"),
            "{job}"
        );
        assert!(
            job.contains(r"'/b/act_live-1' --nocapture --test-threads=1 'it'\''s' || code=1"),
            "{job}"
        );
    }
}
