//! `iops=N,bandwidth=SIZE`, with bursts: how much a disk may do, as parts of `--disk` and alone. `receive=SIZE,transmit=SIZE`: how much a
//! network card may carry.

use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

use vmm::config::{BurstConfig, DiskLimits, NetLimits, RateConfig};

use super::{OptionError, Parts};
use crate::size::ByteSize;

/// The form of limits.
pub const LIMITS_FORM: &str = "none|[iops=N[,iops-burst=N]][,bandwidth=SIZE[,bandwidth-burst=SIZE]][,burst-seconds=N]";

/// How long a burst lasts unless it is said.
const BURST_SECONDS: NonZeroU32 = NonZeroU32::new(60).unwrap();

/// Limits as they are written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsOption(pub DiskLimits);

impl FromStr for LimitsOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<LimitsOption, OptionError> {
        if text == "none" {
            return Ok(LimitsOption(DiskLimits::default()));
        }
        let mut parts = Parts::new(text, LIMITS_FORM)?;
        let limits = limits(&mut parts)?;
        parts.finish()?;
        Ok(LimitsOption(limits))
    }
}

/// Takes the parts out that limit a disk.
pub(super) fn limits(parts: &mut Parts) -> Result<DiskLimits, OptionError> {
    let seconds: Option<NonZeroU32> = parts.number("burst-seconds")?;
    let iops = (parts.number("iops")?, parts.number("iops-burst")?);
    let bandwidth = (bytes(parts, "bandwidth")?, bytes(parts, "bandwidth-burst")?);
    if seconds.is_some() && iops.1.or(bandwidth.1).is_none() {
        return Err(parts.wrong("burst-seconds", "there is no burst; give iops-burst or bandwidth-burst, too"));
    }
    let seconds = seconds.unwrap_or(BURST_SECONDS);
    Ok(DiskLimits {
        iops: rate(parts, iops, seconds, ["iops", "iops-burst"])?,
        bandwidth: rate(parts, bandwidth, seconds, ["bandwidth", "bandwidth-burst"])?,
    })
}

/// The form of limits of a network card.
pub const NET_LIMITS_FORM: &str =
    "none|[receive=SIZE[,receive-burst=SIZE]][,transmit=SIZE[,transmit-burst=SIZE]][,burst-seconds=N]";

/// Limits of a network card as they are written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetLimitsOption(pub NetLimits);

impl FromStr for NetLimitsOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<NetLimitsOption, OptionError> {
        if text == "none" {
            return Ok(NetLimitsOption(NetLimits::default()));
        }
        let mut parts = Parts::new(text, NET_LIMITS_FORM)?;
        let seconds: Option<NonZeroU32> = parts.number("burst-seconds")?;
        let receive = (bytes(&mut parts, "receive")?, bytes(&mut parts, "receive-burst")?);
        let transmit = (bytes(&mut parts, "transmit")?, bytes(&mut parts, "transmit-burst")?);
        if seconds.is_some() && receive.1.or(transmit.1).is_none() {
            return Err(parts.wrong("burst-seconds", "there is no burst; give receive-burst or transmit-burst, too"));
        }
        let seconds = seconds.unwrap_or(BURST_SECONDS);
        let limits = NetLimits {
            receive: rate(&parts, receive, seconds, ["receive", "receive-burst"])?,
            transmit: rate(&parts, transmit, seconds, ["transmit", "transmit-burst"])?,
        };
        parts.finish()?;
        Ok(NetLimitsOption(limits))
    }
}

/// A rate with the burst above it.
fn rate(
    parts: &Parts,
    (per_second, burst): (Option<NonZeroU64>, Option<NonZeroU64>),
    seconds: NonZeroU32,
    names: [&str; 2],
) -> Result<Option<RateConfig>, OptionError> {
    match (per_second, burst) {
        (None, Some(_)) => Err(parts.wrong(names[1], format!("there is no rate to burst above; give {}, too", names[0]))),
        (Some(rate), Some(burst)) if burst <= rate => Err(parts.wrong(names[1], format!("it must be more than {}", names[0]))),
        (None, None) => Ok(None),
        (Some(per_second), burst) => {
            Ok(Some(RateConfig { per_second, burst: burst.map(|per_second| BurstConfig { per_second, seconds }) }))
        }
    }
}

fn bytes(parts: &mut Parts, name: &str) -> Result<Option<NonZeroU64>, OptionError> {
    let Some(ByteSize(bytes)) = parts.value(name)? else { return Ok(None) };
    NonZeroU64::new(bytes)
        .map(Some)
        .ok_or_else(|| parts.wrong(name, "a device that may do nothing is of no use; leave it out for no limit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u64, burst: Option<(u64, u32)>) -> Option<RateConfig> {
        let number = |number| NonZeroU64::new(number).unwrap();
        let burst = burst.map(|(per_second, seconds)| BurstConfig {
            per_second: number(per_second),
            seconds: NonZeroU32::new(seconds).unwrap(),
        });
        Some(RateConfig { per_second: number(per_second), burst })
    }

    fn parse(text: &str) -> Result<DiskLimits, OptionError> {
        text.parse().map(|LimitsOption(limits)| limits)
    }

    #[test]
    fn every_part_arrives() {
        assert_eq!(parse("none"), Ok(DiskLimits::default()));
        assert_eq!(parse("iops=500"), Ok(DiskLimits { iops: rate(500, None), bandwidth: None }));
        assert_eq!(
            parse("bandwidth=10M,bandwidth-burst=50M,iops-burst=3000,iops=500,burst-seconds=600"),
            Ok(DiskLimits { iops: rate(500, Some((3000, 600))), bandwidth: rate(10 << 20, Some((50 << 20, 600))) })
        );
        let net: NetLimitsOption = "receive=1M,transmit=2M,transmit-burst=3M,burst-seconds=5".parse().unwrap();
        assert_eq!(net.0, NetLimits { receive: rate(1 << 20, None), transmit: rate(2 << 20, Some((3 << 20, 5))) });
        assert_eq!("none".parse(), Ok(NetLimitsOption(NetLimits::default())));
        assert_eq!(parse("iops=1,iops-burst=2"), Ok(DiskLimits { iops: rate(1, Some((2, 60))), bandwidth: None }));
    }

    #[test]
    fn mistakes_name_the_part_and_show_the_form() {
        let cases = [
            ("", "there is no part ''"),
            ("iops=0", "'0' is no number that can be used"),
            ("bandwidth=0", "may do nothing"),
            ("bandwidth=5", "'5' has no unit"),
            ("iops-burst=5", "give iops, too"),
            ("iops=5,iops-burst=5", "it must be more than iops"),
            ("iops=5,burst-seconds=5", "there is no burst"),
            ("iops=5,bandwidth-burst=5M", "give bandwidth, too"),
            ("iops=5,none", "there is no part 'none'"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with(LIMITS_FORM), "{text}: {error}");
        }
    }
}
