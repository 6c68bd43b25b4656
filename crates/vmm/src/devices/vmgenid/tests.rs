use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::{GuestMemory, RestoreError};

const ADDRESS: u64 = 0xf000;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn stored(memory: &GuestMemory) -> [u8; 16] {
    memory.read_obj(GuestAddress(ADDRESS)).unwrap()
}

#[test]
fn each_vm_has_an_id_of_its_own_in_its_memory() {
    let (memory, id) = (memory(), VmGenerationId::new(ADDRESS).unwrap());
    id.write(&memory).unwrap();
    assert_eq!(stored(&memory), id.id());
    assert_ne!(id.id(), VmGenerationId::new(ADDRESS).unwrap().id());
    assert_eq!(id.address(), ADDRESS);
}

#[test]
fn a_move_keeps_the_id_and_a_start_from_a_saved_state_changes_it() {
    let id = VmGenerationId::new(ADDRESS).unwrap();
    let saved = id.save();
    let mut moved = VmGenerationId::new(ADDRESS).unwrap();
    moved.restore(&saved).unwrap();
    assert_eq!((moved.id(), moved.save()), (id.id(), saved));
    let memory = memory();
    moved.regenerate(&memory).unwrap();
    assert_ne!(moved.id(), id.id());
    assert_eq!(stored(&memory), moved.id());
}

#[test]
fn an_address_outside_of_memory_is_an_error() {
    let mut id = VmGenerationId::new(1 << 20).unwrap();
    assert!(matches!(id.write(&memory()), Err(VmGenerationIdError::Memory { address: 0x10_0000, .. })));
    assert!(id.regenerate(&memory()).is_err());
}

#[test]
fn garbage_and_another_address_are_refused() {
    let mut id = VmGenerationId::new(ADDRESS).unwrap();
    let before = id.save();
    let short = prost::Message::encode_to_vec(&VmGenerationIdState { id: vec![1; 15], address: ADDRESS });
    for garbage in [vec![0xff; 4], vec![], short] {
        assert!(matches!(id.restore(&garbage), Err(RestoreError::Malformed { .. })));
    }
    let elsewhere = VmGenerationId::new(ADDRESS + 4096).unwrap().save();
    assert!(matches!(id.restore(&elsewhere), Err(RestoreError::Mismatch { .. })));
    assert_eq!(id.save(), before);
}

#[test]
fn acpi_points_to_the_address_in_two_halves() {
    let mut aml = Vec::new();
    acpi_tables::Aml::to_aml_bytes(&acpi_device(0x12_3456_7000), &mut aml);
    let contains = |part: &[u8]| aml.windows(part.len()).any(|window| window == part);
    assert!(contains(b"_SB_VGEN") && contains(b"_CID\x0dVM_Gen_Counter\0") && contains(b"_DDN\x0dVM_Gen_Counter\0"));
    assert!(contains(b"ADDR\x12\x09\x02\x0c\x00\x70\x56\x34\x0a\x12"), "{aml:x?}");
}
