//! Packages of another Debian suite, fetched with a configuration of apt's that is private to a folder.
//!
//! Invariant: only the suite differs from the machine's own sources. Archive, key and whatever else apt is
//! told (proxies, certificates) are taken from there.

use crate::process::{output, step};
use crate::setup::Missing;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// apt for one suite.
pub struct Apt {
    folder: PathBuf,
    suite: &'static str,
}

impl Apt {
    /// Lists and settings live in `folder`; fetches the lists.
    pub fn new(folder: PathBuf, suite: &'static str) -> Result<Self> {
        let own = own_source().ok_or_else(|| {
            Missing::new(format!(
                "no source of this machine's apt names a Debian archive, from which the kernel of Debian {suite} \
                 could be had; add one below /etc/apt/sources.list.d, then run ./x vm again"
            ))
        })?;
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(folder.join("suite.sources"), own.for_suite(suite))?;
        let this = Self { folder, suite };
        step(
            &format!("package lists of Debian {suite}"),
            this.command("apt-get").arg("update"),
        )
        .map_err(|error| this.missing(&format!("its package lists ({error})")))?;
        Ok(this)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc::sourcelist={folder}/suite.sources"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferences=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            "Acquire::Languages=none".into(),
            // Or a list that could not be fetched would be a warning.
            "APT::Update::Error-Mode=any".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            // Root would become a user who may not write here.
            "APT::Sandbox::User=root".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn missing(&self, what: &str) -> Missing {
        Missing::new(format!(
            "the kernel of Debian {} cannot be had: {what}; see whether apt-get update works here, then run ./x vm again",
            self.suite
        ))
    }

    /// The packages that make up the suite's default kernel: what its name depends on, and so on. In newer
    /// suites image, modules and files about them are packages of their own.
    pub fn kernel_packages(&self) -> Result<Vec<String>> {
        self.packages_of("image")
    }

    /// The packages with which modules for that kernel are built.
    pub fn header_packages(&self) -> Result<Vec<String>> {
        self.packages_of("headers")
    }

    fn packages_of(&self, part: &str) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        let mut open = vec![format!("linux-{part}-{}", debian_architecture())];
        while let Some(package) = open.pop() {
            let depends = output(self.command("apt-cache").args(["depends", &package]))
                .ok_or_else(|| self.missing(&format!("no package {package}")))?;
            for name in kernel_dependencies(&depends) {
                if found.insert(name.to_owned()) {
                    open.push(name.to_owned());
                }
            }
        }
        if found.is_empty() {
            return Err(self.missing("its package names no kernel").into());
        }
        Ok(found.into_iter().collect())
    }

    /// Downloads packages into a folder.
    pub fn download(&self, packages: &[String], into: &Path) -> Result<()> {
        fs::create_dir_all(into)?;
        let mut command = self.command("apt-get");
        command.arg("download").args(packages).current_dir(into);
        step(&format!("download {}", packages.join(" ")), &mut command)
            .map_err(|error| self.missing(&error.to_string()))?;
        Ok(())
    }
}

fn debian_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Of `apt-cache depends`: the packages of one kernel version.
fn kernel_dependencies(depends: &str) -> impl Iterator<Item = &str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| {
            ["image", "binary", "modules", "base", "headers", "kbuild"]
                .iter()
                .any(|part| {
                    name.strip_prefix(&format!("linux-{part}-"))
                        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
                })
        })
}

/// A source of the machine's.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    /// Other settings, as lines of the deb822 form.
    settings: Vec<String>,
}

impl Source {
    fn for_suite(&self, suite: &str) -> String {
        let mut lines = vec![
            "Types: deb".to_owned(),
            format!("URIs: {}", self.uri),
            format!("Suites: {suite}"),
            "Components: main".to_owned(),
        ];
        lines.extend(self.settings.iter().cloned());
        lines.join("\n") + "\n"
    }
}

/// The machine's source of the Debian archive.
fn own_source() -> Option<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten();
    files.extend(parts.flatten().map(|entry| entry.path()));
    files.sort();
    files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        match file.extension()?.to_str()? {
            "sources" => from_stanzas(&text),
            "list" => from_lines(&text),
            _ => None,
        }
    })
}

/// The archive itself, not its security updates and not somebody else's packages.
fn is_debian(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian")
}

/// The deb822 form: stanzas of `Name: value`, with continued values.
fn from_stanzas(text: &str) -> Option<Source> {
    let text = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n");
    text.split("\n\n").find_map(|stanza| {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines() {
            match (
                line.starts_with([' ', '\t']),
                fields.last_mut(),
                line.split_once(':'),
            ) {
                (true, Some((_, value)), _) => {
                    value.push('\n');
                    value.push_str(line);
                }
                (false, _, Some((name, value))) => {
                    fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
                _ => {}
            }
        }
        let field = |name: &str| {
            fields
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value)
        };
        if field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) {
            return None;
        }
        let uri = field("uris")?
            .split_whitespace()
            .find(|uri| is_debian(uri))?;
        field("types")?
            .split_whitespace()
            .find(|kind| *kind == "deb")?;
        let settings = fields
            .iter()
            .filter(|(name, _)| {
                !matches!(
                    name.as_str(),
                    "types" | "uris" | "suites" | "components" | "enabled" | "architectures"
                )
            })
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        Some(Source {
            uri: uri.to_owned(),
            settings,
        })
    })
}

/// The older form: `deb [option=value …] URI suite component…`.
fn from_lines(text: &str) -> Option<Source> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let uri = rest
            .split_whitespace()
            .next()
            .filter(|uri| is_debian(uri))?;
        let settings = options
            .split_whitespace()
            .filter_map(|option| option.split_once('='))
            .filter(|(name, _)| *name != "arch")
            .map(|(name, value)| format!("{name}: {}", value.replace(',', " ")))
            .collect();
        Some(Source {
            uri: uri.to_owned(),
            settings,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_suite_of_a_stanza_is_changed() {
        let text = "# of the image\nTypes: deb\nURIs: http://other.example/packages\nSuites: stable\n\n\
                    Types: deb\n# archive\nURIs: http://archive.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main contrib\nSigned-By:\n -----BEGIN\n .\n -----END\n\n\
                    Types: deb\nURIs: http://archive.example/debian-security\nSuites: bookworm-security\n";
        let source = from_stanzas(text).expect("the archive");
        assert_eq!(
            source.for_suite("sid"),
            "Types: deb\nURIs: http://archive.example/debian\nSuites: sid\nComponents: main\n\
             signed-by: \n -----BEGIN\n .\n -----END\n"
        );
    }

    #[test]
    fn lines_of_the_older_form_are_understood() {
        let text = "deb http://archive.example/debian-security bookworm-security main\n\
                    #deb http://no.example/debian sid main\n\
                    deb [arch=amd64 signed-by=/a/key.gpg] http://archive.example/debian/ bookworm main\n";
        let source = from_lines(text).expect("the archive");
        assert_eq!(source.uri, "http://archive.example/debian/");
        assert_eq!(source.settings, ["signed-by: /a/key.gpg"]);
        assert_eq!(
            from_lines("deb http://archive.example/ubuntu noble main"),
            None
        );
    }

    #[test]
    fn a_kernel_is_several_packages() {
        let text = "linux-image-7.2.13-amd64\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: kmod\n  \
                    Depends: linux-binary-7.2.13-amd64\n  Depends: linux-modules-7.2.13-amd64\n  Depends: linux-base-amd64\n";
        let found: Vec<&str> = kernel_dependencies(text).collect();
        assert_eq!(
            found,
            ["linux-binary-7.2.13-amd64", "linux-modules-7.2.13-amd64"]
        );
    }
}
