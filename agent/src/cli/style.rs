//! Small things that every command's output needs.
//!
//! Invariants: colour only on a terminal, and never with `NO_COLOR`; names that came from
//! processes, files or policies are shown with their control characters escaped, so that they
//! can neither move the cursor nor forge a line. Nothing here reads more than the environment.

use std::fmt::Write as _;
use std::io::IsTerminal;

/// How to print on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Colours are wanted.
    pub colour: bool,
    /// Columns of the terminal; `usize::MAX` where output is piped.
    pub width: usize,
}

/// The few colours in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Wrong, refused, failed.
    Red,
    /// Right, done.
    Green,
    /// Worth a look.
    Yellow,
    /// Names.
    Cyan,
    /// Less important.
    Dim,
    /// Headings.
    Bold,
}

impl Style {
    /// For standard output as it is.
    pub fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let width = if terminal {
            terminal_width()
        } else {
            usize::MAX
        };
        Self {
            terminal,
            colour: terminal && !no_colour,
            width,
        }
    }

    /// Without colour or limit, as for a pipe.
    pub const PLAIN: Self = Self {
        terminal: false,
        colour: false,
        width: usize::MAX,
    };

    /// `text` in a colour, where colours are wanted.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Cyan => 36,
            Colour::Dim => 2,
            Colour::Bold => 1,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    columns
        .or_else(|| {
            rustix::termios::tcgetwinsize(std::io::stdout())
                .ok()
                .map(|w| w.ws_col as usize)
        })
        .filter(|columns| *columns >= 20)
        .unwrap_or(100)
}

/// `text` with control characters (and those that change the direction of writing) escaped.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hostile = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if hostile && (c as u32) < 256 => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if hostile => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// `text` cut to `width` columns, with an ellipsis where it was cut. Wide characters count two.
pub fn truncate(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        if used + char_columns(c) + 1 > width {
            break;
        }
        used += char_columns(c);
        out.push(c);
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// Columns that `text` takes on a terminal (colour codes not included).
pub fn columns(text: &str) -> usize {
    text.chars().map(char_columns).sum()
}

fn char_columns(c: char) -> usize {
    match c as u32 {
        0x300..=0x36f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Rows laid out in columns, the last one cut to the terminal's width.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<(String, Option<Colour>)>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        let row = headings
            .iter()
            .map(|h| ((*h).to_owned(), Some(Colour::Bold)))
            .collect();
        Self { rows: vec![row] }
    }

    /// Adds a row; each cell is escaped.
    pub fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = (S, Option<Colour>)>) {
        let cells = cells
            .into_iter()
            .map(|(text, colour)| (escape(text.as_ref()), colour));
        self.rows.push(cells.collect());
    }

    /// The table as lines.
    pub fn render(&self, style: Style) -> String {
        // No column but the last takes more than this.
        const WIDEST: usize = 40;
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..count)
            .map(|i| {
                self.rows
                    .iter()
                    .filter_map(|r| r.get(i))
                    .map(|c| columns(&c.0))
                    .max()
            })
            .map(|widest| {
                widest
                    .unwrap_or(0)
                    .min(if style.terminal { WIDEST } else { usize::MAX })
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut left = style.width;
            let mut line = String::new();
            for (i, (text, colour)) in row.iter().enumerate() {
                let last = i + 1 == row.len();
                let text = truncate(text, if last { left } else { widths[i].min(left) });
                let used = columns(&text);
                line.push_str(&colour.map_or_else(|| text.clone(), |c| style.paint(c, &text)));
                if !last {
                    let pad = widths[i].saturating_sub(used) + 2;
                    line.push_str(&" ".repeat(pad));
                    left = left.saturating_sub(used + pad);
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// A span of time in words: "350 ms", "12 s", "5 min", "3 h", "2 d".
pub fn span(ns: u64) -> String {
    const S: u64 = 1_000_000_000;
    match ns {
        0..1_000_000 => format!("{} µs", ns / 1000),
        1_000_000..S => format!("{} ms", ns / 1_000_000),
        _ => match ns / S {
            s @ 0..120 => format!("{s} s"),
            s @ 120..7200 => format!("{} min", s / 60),
            s @ 7200..172_800 => format!("{} h", s / 3600),
            s => format!("{} d", s / 86_400),
        },
    }
}

/// How long before `now_ns` something was: "5 min ago".
pub fn ago(then_ns: u64, now_ns: u64) -> String {
    match now_ns.checked_sub(then_ns) {
        Some(0..1_000_000_000) => "just now".into(),
        Some(ns) => format!("{} ago", span(ns)),
        None => format!("in {}", span(then_ns - now_ns)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_cannot_touch_the_terminal() {
        assert_eq!(
            escape("a\u{1b}[2Jb\nc\u{7f}\u{9b}"),
            "a\\x1b[2Jb\\nc\\x7f\\x9b"
        );
        assert_eq!(escape("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(escape("größe 模型"), "größe 模型");
    }

    #[test]
    fn text_is_cut_by_columns_not_by_bytes() {
        assert_eq!(truncate("größe", 5), "größe");
        assert_eq!(truncate("größer", 5), "größ…");
        assert_eq!(truncate("模型模型", 5), "模型…");
        assert_eq!(truncate("abc", 0), "");
    }

    #[test]
    fn table_fits_its_terminal_and_is_whole_in_a_pipe() {
        let mut table = Table::new(&["A", "B"]);
        table.row([
            ("x\ty", None),
            ("a long last cell that does not fit", Some(Colour::Red)),
        ]);
        let narrow = Style {
            terminal: true,
            colour: false,
            width: 20,
        };
        assert!(table.render(narrow).lines().all(|l| columns(l) <= 20));
        assert_eq!(
            table.render(Style::PLAIN),
            "A     B\nx\\ty  a long last cell that does not fit\n"
        );
        let coloured = Style {
            colour: true,
            ..narrow
        };
        assert!(table.render(coloured).contains("\u{1b}[31m"));
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(span(350_000_000), "350 ms");
        assert_eq!(ago(0, 300_000_000_000), "5 min ago");
        assert_eq!(ago(5, 5), "just now");
        assert_eq!(ago(3_000_000_000, 0), "in 3 s");
    }
}
