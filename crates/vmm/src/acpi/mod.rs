//! ACPI: the tables that tell the guest what machine it runs on, and the controller behind them.
//!
//! The machine is "hardware-reduced" (ACPI 6.5 §4.1): no power-management timer, no SCI, no legacy interrupt controller to
//! probe. Power button, hot add and removal are events of a generic event device.

pub mod controller;
mod dsdt;

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::cpu::Topology;
use crate::memory::layout::{ACPI_END, ACPI_PORT, ACPI_START, ECAM_START, IO_APIC, LOCAL_APIC};
use crate::virtio::GuestMemory;

const OEM_ID: [u8; 6] = *b"MARU  ";
const OEM_TABLE: [u8; 8] = *b"MARUVM  ";
/// Raised with each change of the tables.
const OEM_REVISION: u32 = 2;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They do not fit.
    #[error("the ACPI tables need {needed} bytes, there is room for {room}; use fewer vCPUs")]
    TooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        room: u64,
    },
    /// Guest memory could not be written.
    #[error("writing the ACPI tables")]
    Memory(#[from] GuestMemoryError),
}

/// What the tables describe.
pub struct AcpiConfig<'a> {
    /// The arrangement of all vCPUs.
    pub topology: &'a Topology,
    /// How many of them are there from the start.
    pub present_cpus: u32,
    /// The 64-bit window for PCI devices: start and length.
    pub pci_window_64: (u64, u64),
}

/// Writes all tables to guest memory.
pub fn write_tables(config: &AcpiConfig, guest: &GuestMemory) -> Result<(), AcpiError> {
    let mut writer = Writer { guest, next: ACPI_START + Rsdp::len() as u64 };
    let dsdt = writer.table(&dsdt(config))?;
    let tables = [writer.table(&fadt(dsdt))?, writer.table(&madt(config))?, writer.table(&mcfg())?];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE, OEM_REVISION);
    tables.iter().for_each(|&address| xsdt.add_entry(address));
    let xsdt = writer.table(&xsdt)?;
    guest.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(ACPI_START))?;
    Ok(())
}

struct Writer<'a> {
    guest: &'a GuestMemory,
    next: u64,
}

impl Writer<'_> {
    fn table(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let bytes = bytes(table);
        let address = self.next.next_multiple_of(16);
        self.next = address + bytes.len() as u64;
        if self.next > ACPI_END {
            return Err(AcpiError::TooLarge { needed: self.next - ACPI_START, room: ACPI_END - ACPI_START });
        }
        self.guest.write_slice(&bytes, GuestAddress(address))?;
        Ok(address)
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// AML that is already encoded.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn dsdt(config: &AcpiConfig) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE, OEM_REVISION);
    table.append_slice(&dsdt::definition_block(config));
    table.update_checksum();
    table
}

fn fadt(dsdt: u64) -> impl Aml {
    let register = |offset: u64| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, ACPI_PORT + offset);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Wbinvd);
    fadt.sleep_control_reg = register(controller::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(controller::SLEEP_STATUS);
    fadt.reset_reg = register(controller::RESET);
    fadt.reset_value = controller::RESET_VALUE;
    // No VGA (bit 2); a keyboard controller is not there either (bit 1 clear).
    fadt.iapc_boot_arch = (1 << 2).into();
    fadt.finalize()
}

fn madt(config: &AcpiConfig) -> MADT {
    let mut madt = MADT::new(OEM_ID, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC as u32));
    for index in 0..config.topology.max {
        let status = if index < config.present_cpus { EnabledStatus::Enabled } else { EnabledStatus::DisabledOnlineCapable };
        // Ids up to 254 fit this form; the topology has no larger ones.
        madt.add_structure(ProcessorLocalApic::new(index as u8, config.topology.apic_id(index) as u8, status));
    }
    madt.add_structure(IoApic::new(0, IO_APIC as u32, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(topology: &Topology) -> AcpiConfig<'_> {
        AcpiConfig { topology, present_cpus: 1, pci_window_64: (64 << 30, 64 << 30) }
    }

    #[test]
    fn the_tables_of_the_largest_machine_fit_and_have_right_checksums() {
        let guest = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let topology = Topology { max: 254, threads: 1, cores: 254, sockets: 1 };
        write_tables(&config(&topology), &guest).unwrap();
        let xsdt: u64 = guest.read_obj(GuestAddress(ACPI_START + 24)).unwrap();
        let mut tables = vec![xsdt];
        for index in 0..3 {
            tables.push(guest.read_obj(GuestAddress(xsdt + 36 + index * 8)).unwrap());
        }
        for table in tables {
            let length: u32 = guest.read_obj(GuestAddress(table + 4)).unwrap();
            let mut bytes = vec![0; length as usize];
            guest.read_slice(&mut bytes, GuestAddress(table)).unwrap();
            assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "{:?}", &bytes[..4]);
        }
    }
}
