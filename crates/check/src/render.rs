//! The report for people: grouped, aligned, short.

use std::fmt::Write;

use crate::report::{Item, Report, Status, Verdict};

/// Whether the text may contain terminal colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// Plain text.
    Never,
    /// ANSI colours.
    Always,
}

/// Columns of the status word and the gap after it.
const STATUS_WIDTH: usize = 9;
/// Below this nothing can be aligned; longer words then stick out.
const NARROWEST: usize = 60;

impl Report {
    /// The report as text, at most `width` columns wide (80 where that is not known), ending in a newline.
    pub fn render_text(&self, color: Color, width: usize) -> String {
        let width = width.max(NARROWEST);
        let mut out = String::new();
        let verdict = match self.verdict {
            Verdict::Ready => paint(color, "1;32", "READY"),
            Verdict::Degraded => paint(color, "1;33", "DEGRADED"),
            Verdict::LabOnly => paint(color, "1;31", "LAB ONLY"),
        };
        line(&mut out, &verdict);
        for part in wrap(&self.summary, width - 2) {
            line(&mut out, &format!("  {part}"));
        }
        if let Some(next) = &self.next {
            labelled(&mut out, color, 2, "next", next, width);
        }

        let title_width = self.items.iter().map(|item| item.title.chars().count()).max().unwrap_or(0);
        let mut group = None;
        for item in &self.items {
            if group != Some(item.group) {
                group = Some(item.group);
                line(&mut out, "");
                line(&mut out, &paint(color, "1", item.group.title()));
            }
            render_item(&mut out, color, item, title_width, width);
        }
        out
    }
}

fn render_item(out: &mut String, color: Color, item: &Item, title_width: usize, width: usize) {
    let (word, code) = match item.status {
        Status::Ok => ("ok", "32"),
        Status::Warn => ("warn", "33"),
        Status::Missing => ("missing", "31"),
        Status::Info => ("info", "2"),
    };
    // Padded before painting: colour codes take no columns.
    let word = paint(color, code, &format!("{word:<width$}", width = STATUS_WIDTH - 2));
    let indent = 2 + STATUS_WIDTH + title_width + 2;
    let mut parts = wrap(&item.found, width.saturating_sub(indent).max(20)).into_iter();
    let title = format!("{:<title_width$}", item.title);
    line(out, &format!("  {word}  {title}  {}", parts.next().unwrap_or_default()));
    for part in parts {
        line(out, &format!("{:indent$}{part}", ""));
    }
    if let Some(cost) = &item.cost {
        labelled(out, color, 2 + STATUS_WIDTH, "cost", cost, width);
    }
    if let Some(fix) = &item.fix {
        labelled(out, color, 2 + STATUS_WIDTH, "fix", fix, width);
    }
}

/// `label  text`, the text wrapped beside its label.
fn labelled(out: &mut String, color: Color, indent: usize, label: &str, text: &str, width: usize) {
    let label_width = 6;
    let mut first = true;
    for part in wrap(text, width.saturating_sub(indent + label_width).max(20)) {
        let label = if first { label } else { "" };
        let label = paint(color, "2", &format!("{label:<label_width$}"));
        line(out, &format!("{:indent$}{label}{part}", ""));
        first = false;
    }
}

fn paint(color: Color, code: &str, text: &str) -> String {
    match color {
        Color::Never => text.to_owned(),
        Color::Always => format!("\x1b[{code}m{text}\x1b[0m"),
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", text.trim_end());
}

/// Breaks at spaces into lines of at most `width` characters; a longer word gets a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last().map_or(0, |line| line.chars().count());
        if last > 0 && last + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn wrapping_keeps_every_word_and_the_width(words in proptest::collection::vec("[a-zµ]{1,20}", 0..40), width in 20usize..100) {
            let text = words.join(" ");
            let lines = wrap(&text, width);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
            prop_assert_eq!(lines.join(" "), text);
        }
    }
}
