//! How the guest's ACPI finds the generation ID.

use acpi_tables::aml::{Device, Name, Package};
use acpi_tables::{Aml, AmlSink};

/// The device's path, for the `Notify` (with value 0x80) after a change.
pub const DEVICE_PATH: &str = "\\_SB_.VGEN";

struct VmGenerationIdAml {
    address: u64,
}

impl Aml for VmGenerationIdAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (low, high) = (self.address as u32, (self.address >> 32) as u32);
        Device::new(
            DEVICE_PATH.into(),
            vec![
                &Name::new("_HID".into(), &"MARU0001"),
                // Drivers go by this name.
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The device `\_SB.VGEN` for an ID at this guest address, for the root of a definition block.
pub fn acpi_device(address: u64) -> impl Aml {
    VmGenerationIdAml { address }
}
