//! What a person sees: one line an event, with its time, who speaks, and a bar for latencies.
//!
//! Must not decide anything. What policies and processes say is escaped.

use crate::cli::style::{Colour, Style, escape};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

/// Cells of the longest bar.
const BAR: f64 = 34.0;
/// Latencies at the bar's ends, milliseconds; the scale between them is logarithmic.
const BAR_FROM_MS: f64 = 0.5;
const BAR_TO_MS: f64 = 100.0;

/// How a line is to feel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Dim,
    Good,
    Bad,
    Loud,
}

/// Where the lines go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    json: bool,
    style: Style,
    /// Every line is marked as replayed.
    replayed: bool,
}

impl Screen {
    /// Standard output; JSON lines if wanted.
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            style: if json {
                Style::PLAIN
            } else {
                Style::of_stdout()
            },
            replayed: false,
        }
    }

    /// The same, with every line marked as replayed.
    pub(super) fn replayed(self) -> Self {
        Self {
            replayed: true,
            ..self
        }
    }

    /// Something happened.
    pub(super) fn event(self, at: Duration, who: &str, tone: Tone, text: &str) {
        let time = format!("{:5.1} s", at.as_secs_f64());
        self.print(
            &format!(
                "{time}  {}  {}",
                self.paint(Tone::Dim, &format!("{who:<14}")),
                self.paint(tone, text)
            ),
            || json!({ "t_s": at.as_secs_f64(), "event": "told", "who": who, "text": text }),
        );
    }

    /// How the service fares. `p99_ms` is drawn as a bar.
    pub(super) fn latency(
        self,
        at: Duration,
        p50_ms: f64,
        p99_ms: f64,
        per_second: f64,
        tone: Tone,
    ) {
        let time = format!("{:5.1} s", at.as_secs_f64());
        let bar = self.paint(tone, &"█".repeat(cells(p99_ms)));
        self.print(
            &format!(
                "{time}  {}  p99 {:>6}  p50 {:>6}  {per_second:4.0}/s  {bar}",
                self.paint(Tone::Dim, &format!("{:<14}", "service")),
                millis(p99_ms),
                millis(p50_ms),
            ),
            || {
                json!({
                    "t_s": at.as_secs_f64(), "event": "latency",
                    "p50_ms": p50_ms, "p99_ms": p99_ms, "per_second": per_second,
                })
            },
        );
    }

    /// A line without a time: headings, quotations.
    pub(super) fn note(self, tone: Tone, text: &str) {
        self.print(
            &self.paint(tone, text),
            || json!({ "event": "note", "text": text }),
        );
    }

    /// Whether a claim held.
    pub(super) fn claim(self, held: bool, what: &str, detail: &str) {
        let (mark, tone) = if held {
            ("✓", Tone::Good)
        } else {
            ("✗", Tone::Bad)
        };
        self.print(
            &format!(
                "  {}  {}",
                self.paint(tone, mark),
                escape(&format!("{what}: {detail}"))
            ),
            || json!({ "event": "claim", "held": held, "claim": what, "detail": detail }),
        );
    }

    fn print(self, text: &str, json: impl FnOnce() -> Value) {
        let line = match (self.json, self.replayed) {
            (true, replayed) => {
                let mut value = json();
                if replayed {
                    value["replayed"] = Value::Bool(true);
                }
                value.to_string()
            }
            (false, true) => format!("replayed | {text}"),
            (false, false) => text.to_owned(),
        };
        // A reader that has gone away must not keep the demo from cleaning up.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }

    fn paint(self, tone: Tone, text: &str) -> String {
        let text = escape(text);
        let colour = match tone {
            Tone::Plain => return text,
            Tone::Dim => Colour::Dim,
            Tone::Good => Colour::Green,
            Tone::Bad => Colour::Red,
            Tone::Loud => Colour::Bold,
        };
        self.style.paint(colour, &text)
    }
}

/// Milliseconds with as many digits as say something.
pub(super) fn millis(ms: f64) -> String {
    if ms < 9.95 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

fn cells(ms: f64) -> usize {
    let part = (ms / BAR_FROM_MS).max(1.0).ln() / (BAR_TO_MS / BAR_FROM_MS).ln();
    (part.min(1.0) * BAR).round().max(1.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_with_latency_and_stay_on_the_line() {
        assert_eq!(cells(0.0), 1);
        assert!(cells(1.0) < cells(5.0) && cells(5.0) < cells(45.0));
        assert_eq!(cells(1e9), BAR as usize);
        assert_eq!(cells(f64::NAN), 1);
    }

    #[test]
    fn milliseconds_have_two_digits_that_matter() {
        assert_eq!(
            (millis(1.04), millis(44.91)),
            ("1.0 ms".into(), "45 ms".into())
        );
    }
}
