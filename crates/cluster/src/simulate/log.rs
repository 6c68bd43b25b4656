//! What happened, for people.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// Lines with their time, or nothing at all.
#[derive(Default)]
pub(super) struct Log {
    lines: Option<String>,
}

impl Log {
    pub(super) fn kept() -> Log {
        Log { lines: Some(String::new()) }
    }

    pub(super) fn line(&mut self, now: Duration, who: impl Display, what: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            let (seconds, millis) = (now.as_secs(), now.subsec_millis());
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{seconds:>5}.{millis:03}  {who:<8} {}", what());
        }
    }

    pub(super) fn text(self) -> String {
        self.lines.unwrap_or_default()
    }
}
