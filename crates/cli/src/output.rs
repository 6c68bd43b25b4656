//! What commands print.

use std::io::{self, Write};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::yaml::to_yaml;

/// `-o`: for people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

impl Output {
    /// Something in this form; `text` is it for people.
    pub fn render(self, value: &impl Serialize, text: impl FnOnce() -> String) -> serde_json::Result<String> {
        Ok(match self {
            Output::Text => text(),
            Output::Json => serde_json::to_string_pretty(value)? + "\n",
            Output::Yaml => to_yaml(&serde_json::to_value(value)?),
        })
    }

    /// One of many, whose end is not known: a line, or a YAML document.
    pub fn render_next(self, value: &impl Serialize, text: impl FnOnce() -> String) -> serde_json::Result<String> {
        Ok(match self {
            Output::Text => text() + "\n",
            Output::Json => serde_json::to_string(value)? + "\n",
            Output::Yaml => format!("---\n{}", to_yaml(&serde_json::to_value(value)?)),
        })
    }
}

/// Writes to standard output. (`print!` would panic when the reader has gone.)
pub fn print(text: &str) -> io::Result<()> {
    print_bytes(text.as_bytes())
}

/// The same, with what may be no text.
pub fn print_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Columns of the terminal that standard output is; `None` if it is none.
pub fn terminal_width() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills in one winsize, which lives through the call.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

/// A bar on standard error, if that is a terminal, for something of so many bytes.
pub fn new_bar(total: u64) -> ProgressBar {
    // A template that cannot be read would be found by the first test that shows a bar.
    let style = ProgressStyle::with_template("{percent:>3} % [{bar:40}] {binary_bytes} of {binary_total_bytes}, {eta} left");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
