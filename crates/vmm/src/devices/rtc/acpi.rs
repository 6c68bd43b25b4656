//! How the guest's ACPI finds the clock.

use acpi_tables::aml::{Device, EISAName, IO, Name, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

use super::{PORT, PORTS};

struct RtcAml;

impl Aml for RtcAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // No interrupt: there are no alarms and no periodic ticks.
        Device::new(
            "\\_SB_.RTC_".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(PORT, PORT, 1, PORTS as u8)])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The device `\_SB.RTC_`, for the root of a definition block.
pub fn acpi_device() -> impl Aml {
    RtcAml
}
