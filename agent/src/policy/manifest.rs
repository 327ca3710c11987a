//! A policy's manifest: who it is, what it wants to see, what it wants to do.
//!
//! Invariant: reading it runs nothing of the policy. The text comes from a stranger: every field
//! is bounded and checked, and all faults are reported together.

use super::error::{POWERS, power_name};
use super::settings::Setting;
use palisade_abi::Kind;
use palisade_core::Power;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the custom section that holds the manifest, TOML text.
pub const SECTION: &str = "palisade:manifest";
/// Bytes of a manifest.
const TEXT_BYTES: usize = 64 * 1024;
/// Settings of one policy.
const SETTINGS: usize = 64;
/// Bytes of a name.
const NAME_BYTES: usize = 64;
/// Bytes of a version, a unit.
const WORD_BYTES: usize = 64;
/// Bytes of a description, a help text, a text setting's default.
const PROSE_BYTES: usize = 4096;

/// A manifest that is in order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Manifest {
    /// The policy's own name; the operator may load it under another one.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// Version of the record layout it was built for.
    pub abi: u32,
    /// Version of what `checkpoint` writes.
    pub state_version: u32,
    /// What it does, for people.
    pub description: String,
    /// The kinds it wants to see, by name.
    pub kinds: Vec<String>,
    /// The powers it asks for.
    pub powers: Vec<Power>,
    /// Its settings, by name.
    pub settings: BTreeMap<String, SettingSchema>,
}

/// Type of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SettingType {
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// A string.
    Text,
    /// True or false.
    Flag,
}

impl SettingType {
    /// Name, as in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Text => "text",
            Self::Flag => "flag",
        }
    }
}

/// What a setting may be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SettingSchema {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: SettingType,
    /// Its value if the operator gives none.
    pub default: Setting,
    /// Smallest value of a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Setting>,
    /// Largest value of a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Setting>,
    /// Unit, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What it does, for people.
    pub help: String,
}

impl Manifest {
    /// Bits of [`Kind::bit`] that the policy receives. Losses, and what cannot be had, are
    /// always told.
    pub fn mask(&self) -> u64 {
        let kinds = self.kinds.iter().filter_map(|name| Kind::from_name(name));
        kinds.fold(Kind::Lost.bit() | Kind::Absent.bit(), |mask, kind| {
            mask | kind.bit()
        })
    }

    /// The strongest power asked for.
    pub fn strongest_power(&self) -> Option<Power> {
        self.powers.iter().copied().max()
    }

    /// The ABI version alone, from a manifest that may be newer than this agent.
    pub fn abi_of(text: &[u8]) -> Option<u32> {
        let text = std::str::from_utf8(text.get(..TEXT_BYTES).unwrap_or(text)).ok()?;
        let table: toml::Table = toml::from_str(text.trim_end_matches('\0')).ok()?;
        let abi = table.get("policy")?.get("abi")?.as_integer()?;
        u32::try_from(abi).ok()
    }

    /// Parses and checks the TOML text of a manifest.
    ///
    /// # Errors
    /// All faults, one sentence each.
    pub fn parse(text: &[u8]) -> Result<Self, Vec<String>> {
        if text.len() > TEXT_BYTES {
            return Err(vec![format!(
                "it has {} bytes, at most {TEXT_BYTES} are allowed",
                text.len()
            )]);
        }
        let text =
            std::str::from_utf8(text).map_err(|error| vec![format!("not UTF-8: {error}")])?;
        let raw: Raw = toml::from_str(text.trim_end_matches('\0'))
            .map_err(|error| vec![error.to_string().trim_end().to_owned()])?;
        raw.check()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    policy: RawPolicy,
    subscribe: RawSubscribe,
    #[serde(default)]
    settings: BTreeMap<String, RawSetting>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawPolicy {
    name: String,
    version: String,
    abi: u32,
    #[serde(default = "one")]
    state_version: u32,
    #[serde(default)]
    description: String,
    #[serde(default)]
    powers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSubscribe {
    kinds: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSetting {
    #[serde(rename = "type")]
    kind: SettingType,
    default: toml::Value,
    min: Option<toml::Value>,
    max: Option<toml::Value>,
    unit: Option<String>,
    #[serde(default)]
    help: String,
}

fn one() -> u32 {
    1
}

impl Raw {
    fn check(self) -> Result<Manifest, Vec<String>> {
        let mut faults = Vec::new();
        let policy = self.policy;
        if !is_name(&policy.name) {
            faults.push(format!(
                "policy.name {:?}: use 1 to {NAME_BYTES} lower-case letters, digits, - and _",
                cut(&policy.name)
            ));
        }
        if !is_version(&policy.version) {
            faults.push(format!(
                "policy.version {:?}: use a semantic version like 1.2.3",
                cut(&policy.version)
            ));
        }
        if policy.abi == 0 {
            faults.push("policy.abi is 0: the first version is 1".to_owned());
        }
        if policy.description.len() > PROSE_BYTES {
            faults.push(format!(
                "policy.description is longer than {PROSE_BYTES} bytes"
            ));
        }
        let powers = policy.powers.iter().filter_map(|name| {
            let power = POWERS.into_iter().find(|power| power_name(*power) == name);
            if power.is_none() {
                let all = POWERS.map(power_name).join(", ");
                faults.push(format!("policy.powers: {:?} is none of {all}", cut(name)));
            }
            power
        });
        let powers = powers.collect();
        for name in &self.subscribe.kinds {
            match Kind::from_name(name) {
                Some(Kind::FileName) => faults.push(
                    "subscribe.kinds: \"file-name\" is for the agent alone; subscribe to \
                     \"model-open\" and call `file-path`"
                        .to_owned(),
                ),
                Some(_) => {}
                // A policy for this ABI cannot know more kinds than the agent.
                None => faults.push(format!(
                    "subscribe.kinds: {:?} is none of {}",
                    cut(name),
                    known_kinds()
                )),
            }
        }
        if self.settings.len() > SETTINGS {
            faults.push(format!("more than {SETTINGS} settings"));
        }
        let mut settings = BTreeMap::new();
        for (name, raw) in self.settings.into_iter().take(SETTINGS) {
            match raw.check(&name) {
                Ok(schema) => {
                    settings.insert(name, schema);
                }
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Manifest {
            name: policy.name,
            version: policy.version,
            abi: policy.abi,
            state_version: policy.state_version,
            description: policy.description,
            kinds: self.subscribe.kinds,
            powers,
            settings,
        })
    }
}

impl RawSetting {
    fn check(self, name: &str) -> Result<SettingSchema, String> {
        if !is_name(name) {
            return Err(format!(
                "settings: the name {:?} should be lower-case letters, digits, - and _",
                cut(name)
            ));
        }
        let value = |what: &str, value: &toml::Value| {
            Setting::from_toml(self.kind, value).ok_or_else(|| {
                format!(
                    "settings.{name}.{what} is {}, not {}",
                    value.type_str(),
                    self.kind.name()
                )
            })
        };
        let default = value("default", &self.default)?;
        let min = self.min.as_ref().map(|min| value("min", min)).transpose()?;
        let max = self.max.as_ref().map(|max| value("max", max)).transpose()?;
        let ordered = matches!(self.kind, SettingType::Integer | SettingType::Number);
        if !ordered && (min.is_some() || max.is_some()) {
            return Err(format!(
                "settings.{name}: only integer and number have min and max"
            ));
        }
        let too_long = |text: &str, max| text.len() > max;
        if too_long(&self.help, PROSE_BYTES)
            || self
                .unit
                .as_deref()
                .is_some_and(|unit| too_long(unit, WORD_BYTES))
            || matches!(&default, Setting::Text(text) if too_long(text, PROSE_BYTES))
        {
            return Err(format!(
                "settings.{name}: help, unit or default is too long"
            ));
        }
        let schema = SettingSchema {
            kind: self.kind,
            default,
            min,
            max,
            unit: self.unit,
            help: self.help,
        };
        if !schema.in_range(&schema.default) {
            return Err(format!(
                "settings.{name}: the default is not {}",
                schema.wanted()
            ));
        }
        Ok(schema)
    }
}

impl SettingSchema {
    /// Whether `value` lies between min and max.
    pub fn in_range(&self, value: &Setting) -> bool {
        let not_below = self.min.as_ref().is_none_or(|min| !value.less(min));
        not_below && self.max.as_ref().is_none_or(|max| !max.less(value))
    }

    /// What would be right, in words: "an integer from 1 to 10 (ms)".
    pub fn wanted(&self) -> String {
        let kind = match self.kind {
            SettingType::Integer => "an integer",
            SettingType::Number => "a number",
            SettingType::Text => "a text in quotes",
            SettingType::Flag => "true or false",
        };
        let range = match (&self.min, &self.max) {
            (Some(min), Some(max)) => format!(" from {min} to {max}"),
            (Some(min), None) => format!(" of at least {min}"),
            (None, Some(max)) => format!(" of at most {max}"),
            (None, None) => String::new(),
        };
        let unit = self
            .unit
            .as_ref()
            .map(|unit| format!(" ({unit})"))
            .unwrap_or_default();
        format!("{kind}{range}{unit}")
    }
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    !name.is_empty() && name.len() <= NAME_BYTES && name.chars().all(fits)
}

fn is_version(version: &str) -> bool {
    let (core, rest) = match version.find(['-', '+']) {
        Some(at) => version.split_at(at),
        None => (version, ""),
    };
    let number = |part: &str| {
        !part.is_empty() && part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
    version.len() <= WORD_BYTES
        && core.split('.').count() == 3
        && core.split('.').all(number)
        && rest.len() != 1
        && rest.chars().all(fits)
}

fn known_kinds() -> String {
    let names = Kind::ALL
        .iter()
        .filter(|kind| **kind != Kind::FileName)
        .map(|kind| kind.name());
    names.collect::<Vec<_>>().join(", ")
}

fn cut(text: &str) -> String {
    super::strikes::tidy(text, 80)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const GOOD: &str = r#"
        [policy]
        name = "gpu-contention"
        version = "1.2.3-rc.1"
        abi = 1
        state-version = 2
        powers = ["alert", "throttle"]
        [subscribe]
        kinds = ["sample-gpu", "gpu-exit"]
        [settings.window]
        type = "integer"
        default = 100
        min = 10
        max = 1000
        unit = "ms"
        help = "Length of a window."
        [settings.share]
        type = "number"
        default = 1
    "#;

    #[test]
    fn a_good_manifest_is_read() {
        let manifest = Manifest::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(manifest.state_version, 2);
        assert_eq!(manifest.strongest_power(), Some(Power::Throttle));
        let told = Kind::Lost.bit() | Kind::Absent.bit();
        let mask = Kind::SampleGpu.bit() | Kind::GpuExit.bit() | told;
        assert_eq!(manifest.mask(), mask);
        assert_eq!(manifest.settings["share"].default, Setting::Number(1.0));
        assert_eq!(
            manifest.settings["window"].wanted(),
            "an integer from 10 to 1000 (ms)"
        );
    }

    #[test]
    fn all_faults_are_told_together() {
        let text = GOOD
            .replace("gpu-contention", "GPU contention")
            .replace("1.2.3-rc.1", "1.2")
            .replace("\"throttle\"", "\"throtle\"")
            .replace("\"gpu-exit\"", "\"gpu-exits\"")
            .replace("default = 100", "default = 5");
        let faults = Manifest::parse(text.as_bytes()).unwrap_err();
        assert_eq!(faults.len(), 5, "{faults:#?}");
        assert!(faults[2].contains("throtle"));
        assert!(faults[4].contains("from 10 to 1000"), "{}", faults[4]);
    }

    #[test]
    fn unknown_fields_and_odd_bytes_are_faults() {
        let text = GOOD.replace("state-version", "state_version");
        assert!(Manifest::parse(text.as_bytes()).unwrap_err()[0].contains("state_version"));
        assert!(Manifest::parse(b"\xff\xfe").is_err());
        assert!(Manifest::parse(b"").is_err());
        assert!(Manifest::parse(&vec![b' '; TEXT_BYTES + 1]).is_err());
    }

    #[test]
    fn versions() {
        for good in ["0.1.0", "1.2.3-beta.1+5", "10.0.0+x"] {
            assert!(is_version(good), "{good}");
        }
        for bad in [
            "", "1", "1.2", "1.2.x", "1.2.3-", "v1.2.3", "1.2.3.4", "1.2.3 ",
        ] {
            assert!(!is_version(bad), "{bad}");
        }
    }
}
