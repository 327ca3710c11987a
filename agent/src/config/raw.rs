//! Reads a TOML document key by key, so that all its faults come to light in one pass.
//!
//! Invariant: every key of the document is either asked for by name or reported as unknown when
//! its section is finished. (Derived deserialisers stop at the first fault; this does not.)
//! Dashes and underscores in key names are the same. This file knows no key and no default.

use super::faults::{Faults, nearest};
use super::units::{self, UnitError};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where in the text something stands, in bytes.
pub(super) type Span = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// One table of the document.
#[derive(Debug)]
pub(super) struct Section<'a> {
    table: &'a DeTable<'a>,
    /// As a person would call it: `[watch]`, `the file`.
    name: String,
    /// Where it begins.
    pub(super) span: Span,
    asked: Vec<&'static str>,
}

fn same_key(written: &str, key: &str) -> bool {
    written.len() == key.len()
        && written
            .bytes()
            .zip(key.bytes())
            .all(|(w, k)| w == k || (w == b'_' && k == b'-'))
}

impl<'a> Section<'a> {
    pub(super) fn new(table: &'a DeTable<'a>, name: String, span: Span) -> Self {
        Self {
            table,
            name,
            span,
            asked: Vec::new(),
        }
    }

    /// The value of a key, whatever its type. The first of two spellings counts; the second is
    /// reported.
    pub(super) fn value(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
    ) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.push(key);
        let mut found = self
            .table
            .iter()
            .filter(|(written, _)| same_key(written.get_ref(), key));
        let first = found.next().map(|(_, value)| value);
        for (again, _) in found {
            faults.add(
                &again.span(),
                format!("`{key}` is given twice in {}", self.name),
                Some("dashes and underscores are the same; remove one".to_owned()),
            );
        }
        first
    }

    /// Whether a key is there, of whatever type.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table
            .keys()
            .any(|written| same_key(written.get_ref(), key))
    }

    fn wrong_type(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        wanted: &str,
        faults: &mut Faults<'_>,
    ) {
        let kind = value.get_ref().type_str();
        let article = if matches!(kind.as_bytes().first(), Some(b'a' | b'i')) {
            "an"
        } else {
            "a"
        };
        faults.add(
            &value.span(),
            format!("`{key}` in {} is {article} {kind}", self.name),
            Some(format!("it must be {wanted}")),
        );
    }

    pub(super) fn text(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
    ) -> Option<Located<String>> {
        let value = self.value(key, faults)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, value, "a string in quotes", faults);
            return None;
        };
        if text.is_empty() || text.contains('\0') {
            faults.add(
                &value.span(),
                format!("`{key}` in {} is empty or holds a NUL", self.name),
                Some("leave the key out to get the default".to_owned()),
            );
            return None;
        }
        Some(Located {
            value: text.to_owned(),
            span: value.span(),
        })
    }

    pub(super) fn flag(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
    ) -> Option<Located<bool>> {
        let value = self.value(key, faults)?;
        let Some(flag) = value.get_ref().as_bool() else {
            self.wrong_type(key, value, "true or false, without quotes", faults);
            return None;
        };
        Some(Located {
            value: flag,
            span: value.span(),
        })
    }

    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        faults: &mut Faults<'_>,
    ) -> Option<Located<u64>> {
        let value = self.value(key, faults)?;
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(number) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, &wanted, faults);
            return None;
        };
        let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
        self.ranged(key, value, parsed, &range, number, &wanted, faults)
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
        faults: &mut Faults<'_>,
    ) -> Option<Located<f64>> {
        let value = self.value(key, faults)?;
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        let (parsed, written) = match value.get_ref() {
            DeValue::Float(float) => (float.as_str().parse().ok(), float.to_string()),
            DeValue::Integer(int) => (
                i64::from_str_radix(int.as_str(), int.radix())
                    .ok()
                    .map(|int| int as f64),
                int.to_string(),
            ),
            _ => {
                self.wrong_type(key, value, &wanted, faults);
                return None;
            }
        };
        self.ranged(key, value, parsed, &range, written, &wanted, faults)
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        faults: &mut Faults<'_>,
    ) -> Option<Located<Duration>> {
        self.with_unit(
            key,
            units::duration,
            units::show_duration,
            range,
            "100ms",
            faults,
        )
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        faults: &mut Faults<'_>,
    ) -> Option<Located<u64>> {
        self.with_unit(key, units::size, units::show_size, range, "4MiB", faults)
    }

    fn with_unit<T: PartialOrd + Copy>(
        &mut self,
        key: &'static str,
        parse: fn(&str) -> Result<T, UnitError>,
        show: fn(T) -> String,
        range: RangeInclusive<T>,
        example: &str,
        faults: &mut Faults<'_>,
    ) -> Option<Located<T>> {
        let value = self.value(key, faults)?;
        let Some(text) = value.get_ref().as_str() else {
            let wanted = format!("a string with a unit, like \"{example}\"");
            self.wrong_type(key, value, &wanted, faults);
            return None;
        };
        match parse(text) {
            Ok(parsed) => {
                let wanted = format!("from {} to {}", show(*range.start()), show(*range.end()));
                self.ranged(key, value, Some(parsed), &range, text, &wanted, faults)
            }
            Err(error) => {
                faults.add(
                    &value.span(),
                    format!("`{key}` in {}: {}", self.name, error.message),
                    Some(error.help),
                );
                None
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // one call site a type; a struct would only rename them
    fn ranged<T: PartialOrd>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        parsed: Option<T>,
        range: &RangeInclusive<T>,
        written: impl Display,
        wanted: &str,
        faults: &mut Faults<'_>,
    ) -> Option<Located<T>> {
        let parsed = parsed.filter(|parsed| range.contains(parsed));
        if parsed.is_none() {
            faults.add(
                &value.span(),
                format!("`{key}` in {} is out of range: {written}", self.name),
                Some(format!("it must be {wanted}")),
            );
        }
        Some(Located {
            value: parsed?,
            span: value.span(),
        })
    }

    /// One word out of a closed list.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
        faults: &mut Faults<'_>,
    ) -> Option<Located<T>> {
        let text = self.text(key, faults)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text.value) {
            return Some(Located {
                value: *choice,
                span: text.span,
            });
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let list = names.join(", ");
        let help = nearest(&text.value, names).map_or_else(
            || format!("one of: {list}"),
            |near| format!("did you mean \"{near}\"? (one of: {list})"),
        );
        faults.add(
            &text.span,
            format!("`{key}` in {} cannot be \"{}\"", self.name, text.value),
            Some(help),
        );
        None
    }

    /// A list of strings; `None` if the key is absent or not a list.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        max: usize,
        faults: &mut Faults<'_>,
    ) -> Option<Vec<Located<String>>> {
        let value = self.value(key, faults)?;
        let wanted = "a list of strings, like [\"a\", \"b\"]";
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(key, value, wanted, faults);
            return None;
        };
        if list.len() > max {
            faults.add(
                &value.span(),
                format!("`{key}` in {} has {} entries", self.name, list.len()),
                Some(format!("at most {max} are possible")),
            );
        }
        let mut texts = Vec::new();
        for item in list.iter().take(max) {
            match item.get_ref().as_str() {
                Some(text) if !text.is_empty() && !text.contains('\0') => texts.push(Located {
                    value: text.to_owned(),
                    span: item.span(),
                }),
                Some(_) => faults.add(
                    &item.span(),
                    format!(
                        "an entry of `{key}` in {} is empty or holds a NUL",
                        self.name
                    ),
                    Some("remove it".to_owned()),
                ),
                None => self.wrong_type(key, item, wanted, faults),
            }
        }
        Some(texts)
    }

    /// A table below this one.
    pub(super) fn section(
        &mut self,
        key: &'static str,
        name: &str,
        faults: &mut Faults<'_>,
    ) -> Option<Section<'a>> {
        let value = self.value(key, faults)?;
        if let Some(table) = value.get_ref().as_table() {
            return Some(Section::new(table, name.to_owned(), value.span()));
        }
        self.wrong_type(key, value, &format!("a table: {name}"), faults);
        None
    }

    /// All entries of a table of named tables, in the order of the file.
    pub(super) fn entries(self) -> Vec<(Located<String>, &'a Spanned<DeValue<'a>>)> {
        let mut entries: Vec<_> = self
            .table
            .iter()
            .map(|(key, value)| {
                let key = Located {
                    value: key.get_ref().to_string(),
                    span: key.span(),
                };
                (key, value)
            })
            .collect();
        entries.sort_by_key(|(key, _)| key.span.start);
        entries
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self, faults: &mut Faults<'_>) {
        for key in self.table.keys() {
            let written: &str = key.get_ref();
            if self.asked.iter().any(|asked| same_key(written, asked)) {
                continue;
            }
            let dashed = written.replace('_', "-");
            let help = nearest(&dashed, self.asked.iter().copied()).map_or_else(
                || format!("keys are: {}", self.asked.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            faults.add(
                &key.span(),
                format!("{} has no key `{written}`", self.name),
                Some(help),
            );
        }
    }
}

/// The same value without its places. Integers beyond 64 bits become faults.
pub(super) fn plain(value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(int) => {
            let parsed = i64::from_str_radix(int.as_str(), int.radix());
            toml::Value::Integer(parsed.unwrap_or_else(|_| {
                faults.add(
                    &value.span(),
                    format!("{int} does not fit into 64 bits"),
                    Some("use a smaller number".to_owned()),
                );
                0
            }))
        }
        DeValue::Float(float) => toml::Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => toml::Value::Boolean(*flag),
        DeValue::Datetime(date) => toml::Value::Datetime(*date),
        DeValue::Array(list) => {
            toml::Value::Array(list.iter().map(|item| plain(item, faults)).collect())
        }
        DeValue::Table(table) => toml::Value::Table(plain_table(table, faults).0),
    }
}

/// The same table without its places, and the line of each key.
pub(super) fn plain_table(
    table: &DeTable<'_>,
    faults: &mut Faults<'_>,
) -> (toml::Table, BTreeMap<String, usize>) {
    let mut values = toml::Table::new();
    let mut lines = BTreeMap::new();
    for (key, value) in table {
        let name = key.get_ref().to_string();
        lines.insert(name.clone(), faults.position(&key.span()).0);
        values.insert(name, plain(value, faults));
    }
    (values, lines)
}
