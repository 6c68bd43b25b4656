//! Where everything lies in the guest's physical address space.
//!
//! ```text
//! 0x0000_0000  low memory: boot data, then free         (up to 0x000a_0000)
//! 0x000d_f000  VM generation ID                         (one page)
//! 0x000e_0000  RSDP and the other ACPI tables           (up to 0x000f_f000)
//! 0x000f_fff0  firmware entry: resets the machine
//! 0x0010_0000  memory, kernel from here                 (up to 3 GiB)
//! 0xc000_0000  PCI: memory windows of devices           (512 MiB)
//! 0xe000_0000  PCI: configuration space (ECAM)          (1 MiB: one bus)
//! 0xfec0_0000  I/O APIC, local APICs, KVM's own pages
//! 0x1_0000_0000 memory above 4 GiB, then memory for hot add, then a 64-bit PCI window
//! ```

/// One page.
pub const PAGE: u64 = 4096;
/// Start of the memory that the PC platform reserves.
pub const RESERVED_START: u64 = 0xa_0000;
/// The page of the VM generation ID.
pub const VM_GENERATION_ID: u64 = 0xd_f000;
/// The ACPI root pointer; the other tables follow it.
pub const ACPI_START: u64 = 0xe_0000;
/// They end here: the last page of the megabyte has the entry of the firmware.
pub const ACPI_END: u64 = 0xf_f000;
/// End of the reserved megabyte.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// Memory below 4 GiB ends here: everything up to 4 GiB is for devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// The 32-bit memory window of PCI devices.
pub const PCI_WINDOW_32: (u64, u64) = (HOLE_START, 0x2000_0000);
/// PCI configuration space, 1 MiB a bus.
pub const ECAM_START: u64 = 0xe000_0000;
/// Length of the configuration space: one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// The I/O APIC.
pub const IO_APIC: u64 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Three pages for KVM on Intel (task state), and one for its identity map.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// The identity map page.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// End of the hole: memory goes on here.
pub const FOUR_GIB: u64 = 1 << 32;
/// Length of the 64-bit PCI window, above all memory.
pub const PCI_WINDOW_64_SIZE: u64 = 64 << 30;

/// ISA interrupt of the first serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Interrupt of the ACPI event device.
pub const ACPI_IRQ: u32 = 9;
/// I/O ports of the ACPI controller.
pub const ACPI_PORT: u64 = 0x600;
/// Message-signalled interrupts use numbers above the I/O APIC's 24 pins.
pub const FIRST_MSI_GSI: u32 = 24;
