//! The definition block: PCI with its slots, vCPUs, the event device, and what sits on I/O ports.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Add, AddressSpace, AddressSpaceCacheable, And, Arg, BufferData, Device, EISAName, Equal, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Index, Interrupt, LessThan, Local, Memory32Fixed, Method, MethodCall,
    Mutex, Name, NotEqual, Notify, ONE, ONES, OpRegion, OpRegionSpace, Package, Path, Release, ResourceTemplate, Return, Scope,
    Store, ToString, Uuid, While, ZERO,
};

use super::controller::{
    CPU_EJECT, CPU_LEAVING, CPU_NEW, EVENT_CPU, EVENT_GENERATION, EVENT_PCI, EVENT_POWER_BUTTON, NAME_BYTES, SIZE, SLEEP_TYPE_S5,
};
use super::{AcpiConfig, Encoded, bytes};
use crate::devices::{pvpanic, rtc, serial, vmgenid};
use crate::memory::layout::{ACPI_IRQ, ACPI_PORT, ECAM_SIZE, ECAM_START, PCI_WINDOW_32, VM_GENERATION_ID};
use crate::pci::SLOTS;

/// Present, enabled, shown, working (ACPI 6.5 §6.3.7).
const STATUS_OK: u8 = 0xf;

/// What system software and PCI devices tell each other (PCI Firmware 3.3 §4.6).
const DSM_PCI: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
/// Its function for the name of a device (§4.6.7).
const DSM_NAME: u8 = 7;

/// Everything behind the table's header.
pub fn definition_block(config: &AcpiConfig) -> Vec<u8> {
    let s5 = name("_S5_", &Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]));
    let mut children = registers();
    children.extend([root_bridge(config), motherboard(), cpus(config), event_device(), power_button()]);
    let scope = encode(&Scope::new("\\_SB_".into(), refs(&children)));
    let ports = [
        encode(&serial::acpi_device()),
        encode(&rtc::acpi_device()),
        encode(&pvpanic::acpi_device()),
        encode(&vmgenid::acpi_device(VM_GENERATION_ID)),
    ];
    [s5, scope].into_iter().chain(ports).flat_map(|part| part.0).collect()
}

// The library's nodes borrow their children; what is built in steps is encoded step by step.

fn encode(aml: &dyn Aml) -> Encoded {
    Encoded(bytes(aml))
}

fn refs(children: &[Encoded]) -> Vec<&dyn Aml> {
    children.iter().map(|child| child as &dyn Aml).collect()
}

fn path(name: &str) -> Path {
    Path::new(name)
}

fn name(name: &str, value: &dyn Aml) -> Encoded {
    encode(&Name::new(name.into(), value))
}

fn device(name: &str, children: &[Encoded]) -> Encoded {
    encode(&Device::new(name.into(), refs(children)))
}

/// A serialized method.
fn method(name: &str, arguments: u8, children: &[Encoded]) -> Encoded {
    encode(&Method::new(name.into(), arguments, true, refs(children)))
}

fn when_bit(value: &dyn Aml, mask: u32, then: &[Encoded]) -> Encoded {
    encode(&If::new(&And::new(&ZERO, value, &mask), refs(then)))
}

fn notify(object: &str, code: u8) -> Encoded {
    encode(&Notify::new(&path(object), &code))
}

/// The controller's registers as fields.
fn registers() -> Vec<Encoded> {
    let region = OpRegion::new("ACPR".into(), OpRegionSpace::SystemIO, &(ACPI_PORT as u32), &(SIZE as u32));
    let register = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    let fields = Field::new(
        "ACPR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Reserved(32),
            register(b"EVTS"),
            register(b"CSEL"),
            register(b"CFLG"),
            register(b"PADD"),
            register(b"PDEL"),
            register(b"PEJC"),
            register(b"NSEL"),
            register(b"NNUM"),
            FieldEntry::Named(*b"NAME", NAME_BYTES as usize * 8),
        ],
    );
    vec![encode(&region), encode(&fields), encode(&Mutex::new("CLCK".into(), 0))]
}

fn slot_name(slot: usize) -> String {
    format!("S{slot:03}")
}

fn root_bridge(config: &AcpiConfig) -> Encoded {
    let (window_32, length_32) = PCI_WINDOW_32;
    let (window_64, length_64) = config.pci_window_64;
    let kind = AddressSpaceCacheable::NotCacheable;
    let resources = encode(&ResourceTemplate::new(vec![
        &AddressSpace::new_bus_number(0u16, 0u16),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::new_io(0u16, 0xcf7u16, None),
        &AddressSpace::new_io(0xd00u16, 0xffffu16, None),
        &AddressSpace::new_memory(kind, true, window_32 as u32, (window_32 + length_32 - 1) as u32, None),
        &AddressSpace::new_memory(kind, true, window_64, window_64 + length_64 - 1, None),
    ]));
    let mut children = vec![
        name("_HID", &EISAName::new("PNP0A08")),
        name("_CID", &EISAName::new("PNP0A03")),
        name("_SEG", &ZERO),
        name("_BBN", &ZERO),
        name("_UID", &ZERO),
        name("_CRS", &resources),
    ];
    children.push(slot_names());
    // PSCN tells the system about each slot that changed. Notification 1: look for a new device; 3: eject was asked for.
    let mut scan = vec![encode(&Store::new(&Local(0), &path("PADD"))), encode(&Store::new(&Local(1), &path("PDEL")))];
    for slot in 1..SLOTS {
        let slot_device = slot_name(slot);
        let eject = encode(&Store::new(&path("PEJC"), &(1u32 << slot)));
        let ask = encode(&MethodCall::new("SDSM".into(), vec![&(slot as u8), &Arg(0), &Arg(2)]));
        children.push(device(
            &slot_device,
            &[
                name("_SUN", &(slot as u8)),
                name("_ADR", &((slot as u32) << 16)),
                method("_EJ0", 1, &[eject]),
                method("_DSM", 4, &[encode(&Return::new(&ask))]),
            ],
        ));
        scan.push(when_bit(&Local(0), 1 << slot, &[notify(&slot_device, 1)]));
        scan.push(when_bit(&Local(1), 1 << slot, &[notify(&slot_device, 3)]));
    }
    children.push(method("PSCN", 0, &scan));
    device("PCI0", &children)
}

/// SDSM(slot, kind, function): what `_DSM` of a slot answers. Of all functions there is the one for a name, if the device has one: a number and
/// a text. The registers are asked each time, so that it is right for devices that were plugged in later, too.
fn slot_names() -> Encoded {
    let give = |value: &dyn Aml| encode(&Return::new(value));
    let (pair, text) = (Local(0), Local(1));
    let functions = give(&BufferData::new(vec![1 | 1 << DSM_NAME]));
    let answer = [
        encode(&Store::new(&pair, &Package::new(vec![&ZERO, &ZERO]))),
        encode(&Store::new(&Index::new(&ZERO, &pair, &ZERO), &path("NNUM"))),
        encode(&Store::new(&text, &path("NAME"))),
        encode(&Store::new(&Index::new(&ZERO, &pair, &ONE), &ToString::new(&ZERO, &text, &ONES))),
        give(&pair),
    ];
    let named = [
        encode(&If::new(&Equal::new(&Arg(2), &ZERO), vec![&functions])),
        encode(&If::new(&Equal::new(&Arg(2), &DSM_NAME), refs(&answer))),
    ];
    let has_name = encode(&If::new(&NotEqual::new(&path("NNUM"), &ZERO), refs(&named)));
    let select = encode(&Store::new(&path("NSEL"), &Arg(0)));
    let known = encode(&If::new(&Equal::new(&Arg(1), &Uuid::new(DSM_PCI)), vec![&select, &has_name]));
    method("SDSM", 3, &[known, give(&BufferData::new(vec![0]))])
}

/// Linux trusts the configuration space only where a motherboard resource reserves it.
fn motherboard() -> Encoded {
    let ecam = encode(&ResourceTemplate::new(vec![&Memory32Fixed::new(true, ECAM_START as u32, ECAM_SIZE as u32)]));
    device("MBRD", &[name("_HID", &EISAName::new("PNP0C02")), name("_UID", &ZERO), name("_CRS", &ecam)])
}

fn cpu_name(index: u32) -> String {
    format!("C{index:03X}")
}

fn cpus(config: &AcpiConfig) -> Encoded {
    let max = config.topology.max;
    let lock = || encode(&Acquire::new("CLCK".into(), 0xffff));
    let unlock = || encode(&Release::new("CLCK".into()));
    // CSTA(index): 0xf where the vCPU is present, else 0.
    let status = method(
        "CSTA",
        1,
        &[
            lock(),
            encode(&Store::new(&path("CSEL"), &Arg(0))),
            encode(&Store::new(&Local(0), &ZERO)),
            when_bit(&path("CFLG"), 1, &[encode(&Store::new(&Local(0), &STATUS_OK))]),
            unlock(),
            encode(&Return::new(&Local(0))),
        ],
    );
    // CEJC(index): the system is done with the vCPU.
    let eject =
        [lock(), encode(&Store::new(&path("CSEL"), &Arg(0))), encode(&Store::new(&path("CFLG"), &(CPU_EJECT as u8))), unlock()];
    // CTFY(index, code): Notify takes a name, so each vCPU has its line.
    let tell: Vec<Encoded> = (0..max)
        .map(|index| {
            let (cpu, code) = (path(&cpu_name(index)), Arg(1));
            let notify = Notify::new(&cpu, &code);
            encode(&If::new(&Equal::new(&Arg(0), &(index as u8)), vec![&notify]))
        })
        .collect();
    // CSCN finds the vCPUs that are new or should go, and tells the system. Notification 1: look for a new device; 3: eject was asked for.
    let told = |flag: u32, code: u8| {
        let clear = encode(&Store::new(&path("CFLG"), &(flag as u8)));
        let tell = encode(&MethodCall::new("CTFY".into(), vec![&Local(0), &code]));
        when_bit(&path("CFLG"), flag, &[clear, tell])
    };
    let each = [
        encode(&Store::new(&path("CSEL"), &Local(0))),
        told(CPU_NEW, 1),
        told(CPU_LEAVING, 3),
        encode(&Add::new(&Local(0), &Local(0), &1u8)),
    ];
    let scan = method(
        "CSCN",
        0,
        &[
            lock(),
            encode(&Store::new(&Local(0), &ZERO)),
            encode(&While::new(&LessThan::new(&Local(0), &max), refs(&each))),
            unlock(),
        ],
    );
    let mut children = vec![
        name("_HID", &"ACPI0010"),
        name("_CID", &EISAName::new("PNP0A05")),
        status,
        method("CEJC", 1, &eject),
        method("CTFY", 2, &tell),
        scan,
    ];
    for index in 0..max {
        // The same entry as in the MADT (ACPI 6.5 §6.2.11): type, length, uid, APIC id, flags.
        let entry = vec![0, 8, index as u8, config.topology.apic_id(index) as u8, 1, 0, 0, 0];
        let status = encode(&Return::new(&MethodCall::new("CSTA".into(), vec![&(index as u8)])));
        let eject = encode(&MethodCall::new("CEJC".into(), vec![&(index as u8)]));
        children.push(device(
            &cpu_name(index),
            &[
                name("_HID", &"ACPI0007"),
                name("_UID", &(index as u8)),
                method("_STA", 0, &[status]),
                method("_EJ0", 1, &[eject]),
                name("_MAT", &BufferData::new(entry)),
            ],
        ));
    }
    device("CPUS", &children)
}

/// The generic event device (ACPI 6.5 §5.6.9): reads what happened and passes it on.
fn event_device() -> Encoded {
    let interrupt = encode(&ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, ACPI_IRQ)]));
    let call = |method: &str| encode(&MethodCall::new(method.into(), vec![]));
    let on_event = method(
        "_EVT",
        1,
        &[
            encode(&Store::new(&Local(0), &path("EVTS"))),
            when_bit(&Local(0), EVENT_CPU, &[call("\\_SB_.CPUS.CSCN")]),
            when_bit(&Local(0), EVENT_PCI, &[call("\\_SB_.PCI0.PSCN")]),
            when_bit(&Local(0), EVENT_POWER_BUTTON, &[notify("\\_SB_.PWRB", 0x80)]),
            when_bit(&Local(0), EVENT_GENERATION, &[notify(vmgenid::DEVICE_PATH, 0x80)]),
        ],
    );
    device("GED_", &[name("_HID", &"ACPI0013"), name("_UID", &ZERO), name("_CRS", &interrupt), on_event])
}

fn power_button() -> Encoded {
    device("PWRB", &[name("_HID", &EISAName::new("PNP0C0C")), name("_UID", &ZERO)])
}
