//! How the guest's ACPI finds the panic notifier.

use acpi_tables::aml::{Device, IO, Name, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

use super::{PORT, PORTS};

struct PvpanicAml;

impl Aml for PvpanicAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "\\_SB_.PEVT".into(),
            vec![
                // The name that guests know, of the machine that had the device first.
                &Name::new("_HID".into(), &"QEMU0001"),
                // Present, enabled, working, and not shown to users.
                &Name::new("_STA".into(), &0x0bu8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(PORT, PORT, 1, PORTS as u8)])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The device `\_SB.PEVT`, for the root of a definition block.
pub fn acpi_device() -> impl Aml {
    PvpanicAml
}
