//! The operator's settings, typed.

use std::collections::BTreeMap;

/// One value of a setting.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// A whole number.
    Integer(i64),
    /// Any finite number.
    Number(f64),
    /// Text.
    Text(String),
    /// Yes or no.
    Flag(bool),
}

impl Setting {
    fn kind(&self) -> &'static str {
        match self {
            Setting::Integer(_) => "an integer",
            Setting::Number(_) => "a number",
            Setting::Text(_) => "text",
            Setting::Flag(_) => "a flag",
        }
    }
}

impl From<i64> for Setting {
    fn from(value: i64) -> Self {
        Setting::Integer(value)
    }
}

impl From<f64> for Setting {
    fn from(value: f64) -> Self {
        Setting::Number(value)
    }
}

impl From<&str> for Setting {
    fn from(value: &str) -> Self {
        Setting::Text(value.to_owned())
    }
}

impl From<bool> for Setting {
    fn from(value: bool) -> Self {
        Setting::Flag(value)
    }
}

/// Every setting of the policy's manifest, by name.
///
/// The getters return the message for the operator as their error, so that
/// [`crate::Policy::init`] can use `?` on them.
///
/// ```
/// use palisade_policy_sdk::{Setting, Settings};
/// let settings: Settings = [("window_ms".to_owned(), Setting::Integer(1000))].into_iter().collect();
/// assert_eq!(settings.duration_ms("window_ms"), Ok(1_000_000_000));
/// assert!(settings.flag("window_ms").unwrap_err().contains("a flag"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings(BTreeMap<String, Setting>);

impl FromIterator<(String, Setting)> for Settings {
    fn from_iter<I: IntoIterator<Item = (String, Setting)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl Settings {
    /// A whole number.
    pub fn integer(&self, name: &str) -> Result<i64, String> {
        match self.get(name)? {
            Setting::Integer(value) => Ok(*value),
            other => Err(wrong(name, "an integer", other)),
        }
    }

    /// A whole number in a range, both ends included, as any smaller integer type.
    pub fn integer_in<T>(&self, name: &str, range: std::ops::RangeInclusive<T>) -> Result<T, String>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let value = self.integer(name)?;
        T::try_from(value)
            .ok()
            .filter(|value| range.contains(value))
            .ok_or_else(|| {
                format!(
                    "`{name}` is {value}, must be {} to {}",
                    range.start(),
                    range.end()
                )
            })
    }

    /// A finite number; an integer will do.
    pub fn number(&self, name: &str) -> Result<f64, String> {
        match self.get(name)? {
            Setting::Number(value) if value.is_finite() => Ok(*value),
            Setting::Number(value) => Err(format!("`{name}` is {value}, must be finite")),
            Setting::Integer(value) => Ok(*value as f64),
            other => Err(wrong(name, "a number", other)),
        }
    }

    /// A number in a range, both ends included.
    pub fn number_in(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<f64, String> {
        let value = self.number(name)?;
        if range.contains(&value) {
            return Ok(value);
        }
        Err(format!(
            "`{name}` is {value}, must be {} to {}",
            range.start(),
            range.end()
        ))
    }

    /// Text.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        match self.get(name)? {
            Setting::Text(value) => Ok(value),
            other => Err(wrong(name, "text", other)),
        }
    }

    /// Text that names one of several choices.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, String> {
        let value = self.text(name)?;
        choices
            .iter()
            .find(|(word, _)| *word == value)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                format!(
                    "`{name}` is \"{value}\", must be one of {}",
                    words.join(", ")
                )
            })
    }

    /// Yes or no.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        match self.get(name)? {
            Setting::Flag(value) => Ok(*value),
            other => Err(wrong(name, "a flag", other)),
        }
    }

    /// A time given in whole milliseconds, at least 1, as nanoseconds.
    pub fn duration_ms(&self, name: &str) -> Result<u64, String> {
        const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;
        self.integer_in(name, 1..=YEAR_MS).map(|ms| ms * 1_000_000)
    }

    fn get(&self, name: &str) -> Result<&Setting, String> {
        self.0
            .get(name)
            .ok_or_else(|| format!("`{name}` is missing: is it in the manifest?"))
    }
}

fn wrong(name: &str, wanted: &str, got: &Setting) -> String {
    format!("`{name}` is {}, must be {wanted}", got.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        [
            ("i", Setting::from(7)),
            ("n", Setting::from(0.5)),
            ("nan", Setting::from(f64::NAN)),
            ("t", Setting::from("quota")),
            ("f", Setting::from(true)),
            ("neg", Setting::from(-1)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    #[test]
    fn getters_convert_and_explain() {
        let settings = settings();
        assert_eq!(settings.integer_in::<u32>("i", 1..=7), Ok(7));
        assert_eq!(
            settings.integer_in::<u32>("i", 1..=6).unwrap_err(),
            "`i` is 7, must be 1 to 6"
        );
        assert!(settings.integer_in::<u32>("neg", 0..=6).is_err());
        assert_eq!(settings.number("i"), Ok(7.0));
        assert_eq!(settings.number_in("n", 0.0..=1.0), Ok(0.5));
        assert!(settings.number("nan").is_err());
        assert_eq!(settings.flag("f"), Ok(true));
        assert_eq!(settings.choice("t", &[("alert", 1), ("quota", 2)]), Ok(2));
        assert!(
            settings
                .choice("t", &[("alert", 1)])
                .unwrap_err()
                .contains("one of alert")
        );
        assert_eq!(
            settings.text("i").unwrap_err(),
            "`i` is an integer, must be text"
        );
        assert!(settings.integer("none").unwrap_err().contains("missing"));
        assert!(settings.duration_ms("neg").is_err());
    }
}
