//! `--auto-start`.

use std::str::FromStr;

use super::{OptionError, Parts};

/// The form of it.
pub const AUTO_START_FORM: &str = "never|always|if-it-ran[,delay=SECONDS][,order=N]";

/// When a VM is started with its host, as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoStartOption(pub api::AutoStart);

impl FromStr for AutoStartOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<AutoStartOption, OptionError> {
        let (policy, mut parts) = Parts::with_head(text, "when", AUTO_START_FORM)?;
        let policy = match policy.as_str() {
            "never" => api::AutoStartPolicy::Never,
            "always" => api::AutoStartPolicy::Always,
            "if-it-ran" => api::AutoStartPolicy::IfItRan,
            other => return Err(parts.wrong("when", format!("'{other}' is none of never, always, if-it-ran"))),
        };
        let delay_seconds = parts.number("delay")?.unwrap_or_default();
        let order = parts.number("order")?.unwrap_or_default();
        parts.finish()?;
        Ok(AutoStartOption(api::AutoStart { policy, delay_seconds, order }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_arrives() {
        let option: AutoStartOption = "if-it-ran,delay=5,order=2".parse().unwrap();
        let expected = api::AutoStart { policy: api::AutoStartPolicy::IfItRan, delay_seconds: 5, order: 2 };
        assert_eq!(option.0, expected);
        assert!("sometimes".parse::<AutoStartOption>().unwrap_err().to_string().contains("the form is never|"));
    }
}
