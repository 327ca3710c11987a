//! Every signal: what it is attached to, and why not to something better.

use super::{Colour, Style};
use crate::cli::style::Table;
use crate::sensors::SignalReport;

/// One line a hook, for people; the verifier's words are in `--json`.
pub(super) fn table(signals: &[SignalReport], style: Style) -> String {
    let mut table = Table::new(&["signal", "", "hook", "attached to", "but not to"]);
    for signal in signals {
        let (mark, colour) = if signal.available {
            ("ok", Colour::Green)
        } else {
            ("ABSENT", Colour::Yellow)
        };
        for (index, hook) in signal.hooks.iter().enumerate() {
            let first = |text: &str| {
                if index == 0 {
                    text.to_owned()
                } else {
                    String::new()
                }
            };
            let failed: Vec<String> = hook
                .failed
                .iter()
                .map(|(place, why)| format!("{place}: {}", why.lines().next().unwrap_or_default()))
                .collect();
            table.row([
                (first(signal.signal), None),
                (first(mark), Some(colour)),
                (hook.hook.clone(), None),
                (
                    hook.attached.clone().unwrap_or_else(|| "-".to_owned()),
                    None,
                ),
                (failed.join("; "), None),
            ]);
        }
    }
    table.render(style)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::SignalHook;

    #[test]
    fn the_rung_and_what_is_above_it_stand_in_one_line() {
        let hook = |hook: &str, attached: Option<&str>| SignalHook {
            hook: hook.into(),
            attached: attached.map(str::to_owned),
            failed: vec![("tp_btf:x".into(), "refused\nlog".into())],
        };
        let signals = [
            SignalReport {
                signal: "sample-sched",
                available: true,
                hooks: vec![
                    hook("switch", Some("raw_tp:x")),
                    hook("wake", Some("raw_tp:y")),
                ],
            },
            SignalReport {
                signal: "gpu-error",
                available: false,
                hooks: vec![hook("xid", None)],
            },
        ];
        let text = table(&signals, Style::PLAIN);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "sample-sched",
                "ok",
                "switch",
                "raw_tp:x",
                "tp_btf:x:",
                "refused"
            ]
        );
        assert_eq!(lines[2], ["wake", "raw_tp:y", "tp_btf:x:", "refused"]);
        assert_eq!(
            lines[3],
            ["gpu-error", "ABSENT", "xid", "-", "tp_btf:x:", "refused"]
        );
    }
}
