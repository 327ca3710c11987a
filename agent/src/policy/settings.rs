//! The operator's settings, held against a policy's schema.
//!
//! Invariant: a policy sees every setting of its schema, of the right type and in range, and no
//! other.

use super::bindings::palisade::policy::types as wit;
use super::manifest::{Manifest, SettingType};
use serde::Serialize;
use std::fmt;

/// Bytes of a text setting.
const TEXT_BYTES: usize = 64 * 1024;

/// A value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Setting {
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Number(f64),
    /// A string.
    Text(String),
    /// True or false.
    Flag(bool),
}

/// Settings as given to a policy, in order of their names.
pub type Settings = Vec<(String, Setting)>;

impl Setting {
    /// `value` as a setting of type `kind`; `None` if it is of another type. A whole number will
    /// do where a number is wanted.
    pub fn from_toml(kind: SettingType, value: &toml::Value) -> Option<Self> {
        match (kind, value) {
            (SettingType::Integer, toml::Value::Integer(value)) => Some(Self::Integer(*value)),
            (SettingType::Number, toml::Value::Integer(value)) => Some(Self::Number(*value as f64)),
            (SettingType::Number, toml::Value::Float(value)) if value.is_finite() => {
                Some(Self::Number(*value))
            }
            (SettingType::Text, toml::Value::String(value)) => Some(Self::Text(value.clone())),
            (SettingType::Flag, toml::Value::Boolean(value)) => Some(Self::Flag(*value)),
            _ => None,
        }
    }

    /// Whether it is a smaller number than `other`, of the same type.
    pub fn less(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Integer(one), Self::Integer(other)) => one < other,
            (Self::Number(one), Self::Number(other)) => one < other,
            _ => false,
        }
    }

    pub(super) fn to_wit(&self) -> wit::Setting {
        match self {
            Self::Integer(value) => wit::Setting::Integer(*value),
            Self::Number(value) => wit::Setting::Number(*value),
            Self::Text(value) => wit::Setting::Text(value.clone()),
            Self::Flag(value) => wit::Setting::Flag(*value),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Flag(value) => value.fmt(f),
        }
    }
}

/// Every setting of the schema: the operator's value, else the default.
///
/// # Errors
/// All faults, each naming the setting and what would be right.
pub fn resolve(manifest: &Manifest, given: &toml::Table) -> Result<Settings, Vec<String>> {
    let mut faults: Vec<String> = given
        .keys()
        .filter(|name| !manifest.settings.contains_key(*name))
        .map(|name| {
            let known: Vec<_> = manifest.settings.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "no settings".to_owned()
            } else {
                known.join(", ")
            };
            format!("{name}: there is no such setting; the policy has {known}")
        })
        .collect();
    let mut settings = Settings::new();
    for (name, schema) in &manifest.settings {
        let Some(value) = given.get(name) else {
            settings.push((name.clone(), schema.default.clone()));
            continue;
        };
        match Setting::from_toml(schema.kind, value) {
            Some(Setting::Text(text)) if text.len() > TEXT_BYTES => {
                faults.push(format!("{name}: longer than {TEXT_BYTES} bytes"));
            }
            Some(setting) if schema.in_range(&setting) => settings.push((name.clone(), setting)),
            Some(setting) => {
                faults.push(format!(
                    "{name} = {setting} is out of range: it is {}",
                    schema.wanted()
                ));
            }
            None => faults.push(format!(
                "{name} is {} here: it should be {}",
                with_article(value.type_str()),
                schema.wanted()
            )),
        }
    }
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(faults)
    }
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i', 'o']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn manifest() -> Manifest {
        let text = r#"
            [policy]
            name = "x"
            version = "1.0.0"
            abi = 1
            [subscribe]
            kinds = []
            [settings.window]
            type = "integer"
            default = 100
            min = 10
            unit = "ms"
            [settings.share]
            type = "number"
            default = 0.5
            max = 1
            [settings.label]
            type = "text"
            default = "a"
            [settings.strict]
            type = "flag"
            default = false
        "#;
        Manifest::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn defaults_fill_what_is_not_given() {
        let given = toml::from_str("window = 20\nshare = 1").unwrap();
        let settings = resolve(&manifest(), &given).unwrap();
        let expected = [
            ("label", Setting::Text("a".to_owned())),
            ("share", Setting::Number(1.0)),
            ("strict", Setting::Flag(false)),
            ("window", Setting::Integer(20)),
        ];
        assert_eq!(
            settings,
            expected.map(|(name, value)| (name.to_owned(), value))
        );
    }

    #[test]
    fn every_fault_names_the_setting_and_what_would_be_right() {
        let given = toml::from_str("window = 5\nshare = nan\nstrict = 1\nlable = \"x\"").unwrap();
        let faults = resolve(&manifest(), &given).unwrap_err();
        assert_eq!(
            faults,
            [
                "lable: there is no such setting; the policy has label, share, strict, window",
                "share is a float here: it should be a number of at most 1",
                "strict is an integer here: it should be true or false",
                "window = 5 is out of range: it is an integer of at least 10 (ms)",
            ]
        );
    }
}
