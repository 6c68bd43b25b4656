//! `--memory SIZE[,hotplug=SIZE][,hugepages]`.

use std::str::FromStr;

use vmm::memory::{BLOCK, MemoryConfig};

use super::{OptionError, Parts};
use crate::size::ByteSize;

/// The form of the amount of memory.
pub const MEMORY_FORM: &str = "SIZE[,hotplug=SIZE][,hugepages]";

/// The least that a VM can have.
const SMALLEST: u64 = 64 << 20;

/// Memory as it is written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOption(pub MemoryConfig);

impl FromStr for MemoryOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<MemoryOption, OptionError> {
        let (size, mut parts) = Parts::with_head(text, "the size", MEMORY_FORM)?;
        let ByteSize(size) = size.parse().map_err(|error: crate::size::SizeError| parts.wrong("SIZE", error.to_string()))?;
        let hotplug = parts.value::<ByteSize>("hotplug")?.map_or(0, |size| size.0);
        let huge_pages = parts.flag("hugepages")?;
        if size < SMALLEST {
            return Err(parts.wrong("SIZE", "a VM needs at least 64M"));
        }
        for (part, bytes) in [("SIZE", size), ("hotplug", hotplug)] {
            if !bytes.is_multiple_of(BLOCK) {
                return Err(parts.wrong(part, "it must be a multiple of 2M"));
            }
        }
        parts.finish()?;
        Ok(MemoryOption(MemoryConfig { size, hotplug_size: hotplug, huge_pages }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_enough_and_every_part_arrives() {
        let config = |size, hotplug_size, huge_pages| Ok(MemoryOption(MemoryConfig { size, hotplug_size, huge_pages }));
        assert_eq!("512M".parse(), config(512 << 20, 0, false));
        assert_eq!("1G,hugepages,hotplug=2G".parse(), config(1 << 30, 2 << 30, true));
    }

    #[test]
    fn mistakes_name_the_part_and_show_the_form() {
        let cases = [
            ("", "the size is missing"),
            ("512", "'512' has no unit"),
            ("32M", "at least 64M"),
            ("65M", "SIZE: it must be a multiple of 2M"),
            ("64M,hotplug=1M", "hotplug: it must be a multiple of 2M"),
            ("64M,hotplug=", "hotplug: it needs a value"),
            ("64M,hotplug=2X", "'2X' is no size"),
            ("64M,hugepages=yes", "it takes no value"),
            ("64M,shared", "there is no part 'shared'"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<MemoryOption>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with(MEMORY_FORM), "{text}: {error}");
        }
    }
}
