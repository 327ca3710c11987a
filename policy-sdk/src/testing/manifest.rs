use crate::{Kind, Record, Setting, Settings};
use toml::{Table, Value};

/// What the harness needs of a manifest. The agent has its own, stricter, reader.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Name of the policy.
    pub name: String,
    /// `state-version`.
    pub state_version: u32,
    /// Powers asked for.
    pub powers: Vec<String>,
    /// Bits of the subscribed kinds.
    pub kinds: u64,
    schema: Table,
}

impl Manifest {
    /// Reads the text of a `policy.toml`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let root: Table = text.parse().map_err(|error| format!("{error}"))?;
        let policy = table(&root, "policy")?;
        let subscribe = table(&root, "subscribe")?;
        let abi = integer(policy, "abi")?;
        if abi > i64::from(palisade_abi::ABI_VERSION) {
            return Err("`abi` is newer than this SDK".to_owned());
        }
        let mut kinds = 0;
        for name in texts(subscribe, "kinds")? {
            let kind = Kind::from_name(&name).ok_or(format!("no kind is named `{name}`"))?;
            if abi < i64::from(kind.since()) {
                return Err(format!("`{name}` needs `abi = {}`", kind.since()));
            }
            kinds |= kind.bit();
        }
        let powers = texts(policy, "powers")?;
        if let Some(odd) = powers.iter().find(|power| {
            !["alert", "throttle", "freeze", "signal", "kill"].contains(&power.as_str())
        }) {
            return Err(format!("no power is named `{odd}`"));
        }
        for key in ["version", "description"] {
            text_of(policy, key)?;
        }
        let schema = root
            .get("settings")
            .and_then(Value::as_table)
            .cloned()
            .unwrap_or_default();
        let manifest = Self {
            name: text_of(policy, "name")?.to_owned(),
            state_version: integer(policy, "state-version")?
                .try_into()
                .map_err(|_| "`state-version` is out of range".to_owned())?,
            powers,
            kinds,
            schema,
        };
        manifest.settings(&[])?;
        Ok(manifest)
    }

    /// Whether the policy gets such records. `LOST` and `ABSENT` reach every policy.
    pub fn subscribes(&self, record: &Record) -> bool {
        record.kind().is_some_and(|kind| {
            matches!(kind, Kind::Lost | Kind::Absent) || self.kinds & kind.bit() != 0
        })
    }

    /// Every setting, the defaults filled in.
    ///
    /// # Errors
    /// A setting that the schema does not know, of another type, or out of range.
    pub fn settings(&self, changed: &[(&str, Setting)]) -> Result<Settings, String> {
        if let Some((name, _)) = changed
            .iter()
            .find(|(name, _)| !self.schema.contains_key(*name))
        {
            return Err(format!("no setting is named `{name}`"));
        }
        self.schema
            .iter()
            .map(|(name, schema)| {
                let schema = schema.as_table().ok_or(format!("`{name}` is no table"))?;
                text_of(schema, "help").map_err(|error| format!("`{name}`: {error}"))?;
                let value = match changed.iter().find(|(other, _)| other == name) {
                    Some((_, value)) => value.clone(),
                    None => default(schema).ok_or(format!("`{name}` has no fitting default"))?,
                };
                check(name, schema, &value)?;
                Ok((name.clone(), value))
            })
            .collect()
    }
}

fn check(name: &str, schema: &Table, value: &Setting) -> Result<(), String> {
    let wanted = text_of(schema, "type")?;
    let number = match (wanted, value) {
        ("integer" | "number", Setting::Integer(value)) => Some(*value as f64),
        ("number", Setting::Number(value)) => Some(*value),
        ("text", Setting::Text(_)) | ("flag", Setting::Flag(_)) => None,
        _ => return Err(format!("`{name}` must be of type {wanted}, is {value:?}")),
    };
    let bound = |key| {
        schema
            .get(key)
            .and_then(|value| value.as_float().or(value.as_integer().map(|v| v as f64)))
    };
    if let Some(number) = number
        && (bound("min").is_some_and(|min| number < min)
            || bound("max").is_some_and(|max| number > max))
    {
        return Err(format!("`{name}` is out of range: {number}"));
    }
    Ok(())
}

fn default(schema: &Table) -> Option<Setting> {
    Some(
        match (schema.get("type")?.as_str()?, schema.get("default")?) {
            ("integer", Value::Integer(value)) => Setting::Integer(*value),
            ("number", Value::Float(value)) => Setting::Number(*value),
            ("number", Value::Integer(value)) => Setting::Number(*value as f64),
            ("text", Value::String(value)) => Setting::Text(value.clone()),
            ("flag", Value::Boolean(value)) => Setting::Flag(*value),
            _ => return None,
        },
    )
}

fn table<'a>(root: &'a Table, key: &str) -> Result<&'a Table, String> {
    root.get(key)
        .and_then(Value::as_table)
        .ok_or(format!("[{key}] is missing"))
}

fn text_of<'a>(table: &'a Table, key: &str) -> Result<&'a str, String> {
    table
        .get(key)
        .and_then(Value::as_str)
        .ok_or(format!("`{key}` is missing or no text"))
}

fn integer(table: &Table, key: &str) -> Result<i64, String> {
    table
        .get(key)
        .and_then(Value::as_integer)
        .ok_or(format!("`{key}` is missing or no integer"))
}

fn texts(table: &Table, key: &str) -> Result<Vec<String>, String> {
    let list = table
        .get(key)
        .and_then(Value::as_array)
        .ok_or(format!("`{key}` is missing or no list"))?;
    list.iter()
        .map(|item| {
            item.as_str()
                .map(str::to_owned)
                .ok_or(format!("`{key}` holds something other than text"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../examples/big-maps.toml");

    #[test]
    fn a_manifest_says_what_is_wrong() {
        let manifest = Manifest::parse(GOOD).unwrap();
        assert_eq!(manifest.kinds, Kind::SampleMaps.bit());
        assert!(manifest.settings(&[("limit_mib", 2.into())]).is_ok());
        for (bad, why) in [
            ([("limit_mib", Setting::Integer(0))], "out of range"),
            (
                [("limit_mib", Setting::Flag(true))],
                "must be of type integer",
            ),
            ([("limit", Setting::Integer(1))], "no setting"),
        ] {
            assert!(manifest.settings(&bad).unwrap_err().contains(why));
        }
        for (from, to, why) in [
            ("sample-maps", "sample-mops", "no kind"),
            ("sample-maps", "sample-runq", "needs `abi = 2`"),
            ("\"alert\"", "\"nuke\"", "no power"),
            ("abi = 1", "abi = 99", "newer"),
            ("default = 1024", "default = 0", "out of range"),
            ("default = 1024", "default = \"x\"", "default"),
            ("[subscribe]", "[subs]", "[subscribe]"),
        ] {
            let error = Manifest::parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
