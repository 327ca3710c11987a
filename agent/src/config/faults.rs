//! Everything that is wrong with a configuration file, told together.
//!
//! Invariant: a fault says where (file, line, column), what is wrong and, wherever there is an
//! answer, what would be right.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Line, from 1; 0 if the fault is about the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0 if the fault is about the file as a whole.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

/// Why a configuration was refused: at least one fault, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The configuration file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            write_fault(f, "error", &self.file, fault)?;
        }
        let count = self.faults.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{}: {count} fault{plural}", self.file.display())
    }
}

/// Something that is not wrong but that the operator should know. Shown like a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The configuration file, if there is one.
    pub file: Option<PathBuf>,
    /// Where and what.
    pub fault: Fault,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or(Path::new("(defaults)"));
        let mut text = String::new();
        write_fault(&mut text, "warning", file, &self.fault)?;
        f.write_str(text.trim_end())
    }
}

fn write_fault(out: &mut impl fmt::Write, kind: &str, file: &Path, fault: &Fault) -> fmt::Result {
    write!(out, "{kind}: {}", file.display())?;
    if fault.line > 0 {
        write!(out, ":{}:{}", fault.line, fault.column)?;
    }
    writeln!(out, ": {}", fault.message)?;
    if let Some(help) = &fault.help {
        writeln!(out, "  help: {help}")?;
    }
    Ok(())
}

/// Collects faults and warnings while a document is read.
#[derive(Debug)]
pub(super) struct Faults<'a> {
    text: &'a str,
    /// Lines on which the document is not even TOML: what else is found there is a consequence.
    broken_lines: Vec<usize>,
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            broken_lines: Vec::new(),
            faults: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Notes what keeps the text from being TOML.
    pub(super) fn syntax(&mut self, error: &toml::de::Error) {
        let (line, column) = self.position(&error.span().unwrap_or(0..0));
        self.broken_lines.push(line);
        let span = error.span().unwrap_or(0..0);
        let (message, help) = if error.message().contains("duplicate key") {
            let key = self.text.get(span).unwrap_or("a key").trim();
            (
                format!("`{key}` is given twice"),
                Some("a name may be given once; remove or rename one of the two".to_owned()),
            )
        } else {
            (format!("not valid TOML: {}", error.message().trim()), None)
        };
        self.faults.push(Fault {
            line,
            column,
            message,
            help,
        });
    }

    pub(super) fn add(&mut self, span: &Range<usize>, message: String, help: Option<String>) {
        let fault = self.fault(span, message, help);
        if !self.broken_lines.contains(&fault.line) {
            self.faults.push(fault);
        }
    }

    pub(super) fn warn(&mut self, span: &Range<usize>, message: String, help: Option<String>) {
        let fault = self.fault(span, message, help);
        self.warnings.push(fault);
    }

    /// Line and column, from 1, of a span's start.
    pub(super) fn position(&self, span: &Range<usize>) -> (usize, usize) {
        let bytes = self.text.as_bytes();
        let before = &bytes[..span.start.min(bytes.len())];
        let line = before.split(|byte| *byte == b'\n').count();
        let start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        // Every byte of UTF-8 but the continuations begins a character.
        let column = before[start..]
            .iter()
            .filter(|byte| (**byte & 0xc0) != 0x80)
            .count()
            + 1;
        (line, column)
    }

    fn fault(&self, span: &Range<usize>, message: String, help: Option<String>) -> Fault {
        let (line, column) = self.position(span);
        Fault {
            line,
            column,
            message,
            help,
        }
    }
}

/// The candidate that `word` was probably meant to be.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let word = word.to_lowercase();
    // A third of the letters may be wrong; more is a guess that misleads.
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= limit || (word.len() >= 4 && candidate.starts_with(&word))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance with transposition of neighbours counted once.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_near() {
        let keys = ["cgroups", "all", "window", "model-suffixes"];
        assert_eq!(nearest("cgroup", keys), Some("cgroups"));
        assert_eq!(nearest("widnow", keys), Some("window"));
        assert_eq!(nearest("model", keys), Some("model-suffixes"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
    }

    #[test]
    fn positions_count_characters_from_one() {
        let faults = Faults::new("a = 1\nβ = 2\n");
        assert_eq!(faults.position(&(0..1)), (1, 1));
        assert_eq!(faults.position(&(6..8)), (2, 1));
        assert_eq!(faults.position(&(9..10)), (2, 3));
        assert_eq!(faults.position(&(900..901)), (3, 1));
    }
}
