//! How the guest's ACPI finds the serial port.

use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

use super::{IRQ, PORT, PORTS};

struct SerialAml;

impl Aml for SerialAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let io = IO::new(PORT, PORT, 1, PORTS as u8);
        let interrupt = Interrupt::new(true, true, false, false, IRQ);
        Device::new(
            "\\_SB_.COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &0u8),
                &Name::new("_DDN".into(), &"COM1"),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt, &io])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The device `\_SB.COM1`, for the root of a definition block.
pub fn acpi_device() -> impl Aml {
    SerialAml
}
