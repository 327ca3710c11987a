//! `--name value` pairs of the benchmarks' command lines.

use anyhow::{Context, Result, bail};
use std::str::FromStr;

/// What was given on the command line.
#[derive(Clone, Debug)]
pub struct Arguments {
    given: Vec<(String, String)>,
    usage: &'static str,
}

impl Arguments {
    /// Those of this process, all of which must be among `known` (without dashes).
    pub fn of_process(known: &[&str], usage: &'static str) -> Result<Self> {
        Self::parse(std::env::args().skip(1), known, usage)
    }

    fn parse(
        words: impl Iterator<Item = String>,
        known: &[&str],
        usage: &'static str,
    ) -> Result<Self> {
        let mut given = Vec::new();
        let mut words = words;
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--").filter(|name| known.contains(name)) else {
                bail!("'{word}' is unknown\nusage: {usage}");
            };
            let Some(value) = words.next() else {
                bail!("--{name} needs a value\nusage: {usage}");
            };
            given.push((name.to_owned(), value));
        }
        Ok(Self { given, usage })
    }

    /// The value of that name, or the default.
    pub fn value<T>(&self, name: &str, default: T) -> Result<T>
    where
        T: FromStr,
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        match self.text(name) {
            Some(text) => text
                .parse()
                .with_context(|| format!("--{name} {text}\nusage: {}", self.usage)),
            None => Ok(default),
        }
    }

    /// The value of that name as it was written.
    pub fn text(&self, name: &str) -> Option<&str> {
        let mut found = self.given.iter().filter(|(given, _)| given == name);
        found.next_back().map(|(_, value)| value.as_str())
    }

    /// Whether a comma-separated list holds `item`; without a list everything is in it.
    pub fn lists(&self, name: &str, item: &str) -> bool {
        self.text(name)
            .is_none_or(|list| list.split(',').any(|word| word == item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lists_and_faults() {
        let parse = |line: &str| {
            Arguments::parse(
                line.split_whitespace().map(str::to_owned),
                &["minutes", "variants"],
                "usage",
            )
        };
        let given = parse("--minutes 3 --variants none,palisade --minutes 4").expect("good");
        assert_eq!(given.value("minutes", 1.0).expect("a number"), 4.0);
        assert!(given.lists("variants", "none") && !given.lists("variants", "perf"));
        assert!(parse("").expect("good").lists("variants", "perf"));
        assert!(parse("--minutes").is_err());
        assert!(parse("--hours 3").is_err());
        assert!(
            parse("--minutes x")
                .expect("read later")
                .value("minutes", 1.0)
                .is_err()
        );
    }
}
