//! `--cpus N[,max=M]...`.

use std::str::FromStr;

use vmm::cpu::{CpuConfig, Topology};

use super::{OptionError, Parts};

/// The form of the number and arrangement of vCPUs.
pub const CPUS_FORM: &str = "N[,max=M][,threads=T][,sockets=S]";

/// vCPUs as they are written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOption(pub CpuConfig);

impl FromStr for CpuOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<CpuOption, OptionError> {
        let (count, mut parts) = Parts::with_head(text, "the number of vCPUs", CPUS_FORM)?;
        let count = count.parse().map_err(|_| parts.wrong("N", format!("'{count}' is no number")))?;
        let config = CpuConfig {
            count,
            max: parts.number("max")?.unwrap_or(0),
            threads_per_core: parts.number("threads")?.unwrap_or(1),
            sockets: parts.number("sockets")?.unwrap_or(1),
            features: None,
        };
        // What the host allows is the monitor's to say.
        Topology::new(&config, u32::MAX, u32::MAX).map_err(|error| parts.wrong(text, error.to_string()))?;
        parts.finish()?;
        Ok(CpuOption(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_enough_and_every_part_arrives() {
        let config = |count, max, threads_per_core, sockets| {
            Ok(CpuOption(CpuConfig { count, max, threads_per_core, sockets, features: None }))
        };
        assert_eq!("3".parse(), config(3, 0, 1, 1));
        assert_eq!("2,sockets=2,threads=2,max=8".parse(), config(2, 8, 2, 2));
    }

    #[test]
    fn mistakes_name_the_part_and_show_the_form() {
        let cases = [
            ("", "the number of vCPUs is missing"),
            ("two", "'two' is no number"),
            ("0", "at least one vCPU"),
            ("4,max=2", "at most 2 vCPUs allowed, but 4"),
            ("3,threads=2", "cannot be spread"),
            ("4,threads=4", "cannot be spread"),
            ("2,max=x", "max: 'x' is no number"),
            ("2,cores=2", "there is no part 'cores'"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<CpuOption>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with(CPUS_FORM), "{text}: {error}");
        }
    }
}
