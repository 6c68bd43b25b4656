//! What is damaged is said, and repaired where that is certain.

use super::*;

fn sample(kind: NewKind) -> Vec<u8> {
    let memory = new(kind, 9 * u64::from(BLOCK), BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &[3; 2 * BLOCK as usize]);
    image.commit().unwrap();
    memory.bytes()
}

fn first_bytes(memory: &Arc<Memory>) -> Vec<u8> {
    read(&Image::open(memory.clone(), Access::ReadOnly).unwrap(), &**memory, 0, 2 * u64::from(BLOCK))
}

fn repaired(bytes: Vec<u8>) -> Arc<Memory> {
    let memory = Arc::new(Memory::of(bytes));
    let found = check(&*memory).unwrap();
    assert!(!found.is_good() && found.is_repairable);
    assert_eq!(memory.writes(), 0);
    assert_eq!(repair(&*memory).unwrap(), found);
    assert_eq!(check(&*memory).unwrap(), Report::default());
    memory
}

#[test]
fn a_damaged_footer_is_said_when_reading_and_repaired_from_its_copy() {
    let mut bytes = sample(NewKind::Dynamic);
    let end = bytes.len();
    bytes[end - 100] ^= 1;
    let image = Image::open(Arc::new(Memory::of(bytes.clone())), Access::ReadOnly).unwrap();
    assert_eq!(image.info().footers, FooterState::EndDamaged);
    let memory = repaired(bytes);
    assert_eq!(first_bytes(&memory), [3; 2 * BLOCK as usize]);
}

#[test]
fn a_damaged_copy_is_repaired_from_the_footer() {
    let mut bytes = sample(NewKind::Dynamic);
    bytes[100] ^= 1;
    let memory = repaired(bytes.clone());
    assert_eq!(memory.bytes()[..512], sample(NewKind::Dynamic)[..512]);
    // Opening for writing does the same: the copy is needed when the file grows.
    let memory = Arc::new(Memory::of(bytes));
    assert_eq!(open(&memory).info().footers, FooterState::CopyDamaged);
    assert_eq!(check(&*memory).unwrap(), Report::default());
}

#[test]
fn a_footer_of_511_bytes_is_read_and_repaired() {
    for kind in [NewKind::Fixed, NewKind::Dynamic] {
        let mut bytes = sample(kind);
        bytes.pop();
        let memory = Arc::new(Memory::of(bytes.clone()));
        assert_eq!(Image::open(memory.clone(), Access::ReadOnly).unwrap().info().footers, FooterState::Short);
        assert!(matches!(Image::open(memory, Access::ReadWrite), Err(OpenError::ShortFooter(_))));
        let memory = repaired(bytes);
        assert_eq!(first_bytes(&memory), [3; 2 * BLOCK as usize]);
    }
}

#[test]
fn the_footer_of_a_fixed_disk_is_found_inside_a_longer_file() {
    let mut bytes = sample(NewKind::Fixed);
    let good = bytes.clone();
    bytes.resize(bytes.len() + (3 << 20), 0);
    assert!(matches!(Image::open(Arc::new(Memory::of(bytes.clone())), Access::ReadWrite), Err(OpenError::NotVhd { .. })));
    assert_eq!(repaired(bytes).bytes(), good);
}

#[test]
fn a_block_that_the_files_end_cuts_keeps_what_is_there() {
    let mut bytes = sample(NewKind::Dynamic);
    // The footer and half of the last block's data.
    bytes.truncate(bytes.len() - 512 - BLOCK as usize / 2);
    let memory = Arc::new(Memory::of(bytes.clone()));
    assert!(matches!(Image::open(memory, Access::ReadWrite), Err(OpenError::Damaged(_))));
    let memory = repaired(bytes);
    let half = BLOCK as usize / 2;
    assert_eq!(first_bytes(&memory), [vec![3; 3 * half], vec![0; half]].concat());
}

#[test]
fn a_header_that_is_lost_is_not_repaired() {
    let mut bytes = sample(NewKind::Dynamic);
    bytes[600] ^= 1;
    let memory = Arc::new(Memory::of(bytes));
    assert!(!check(&*memory).unwrap().is_repairable);
    assert!(matches!(repair(&*memory), Err(RepairError::Lost(Damage { structure: "header", offset: 512, .. }))));
    assert_eq!(memory.writes(), 0);
}

#[test]
fn a_guests_first_sector_does_not_make_a_fixed_disk_another() {
    let mut bytes = sample(NewKind::Fixed);
    let forged = sample(NewKind::Dynamic);
    bytes[..forged.len().min(4096)].copy_from_slice(&forged[..forged.len().min(4096)]);
    // The footer at the end counts, whatever a guest wrote.
    assert_eq!(open(&Arc::new(Memory::of(bytes.clone()))).info().kind, Kind::Fixed);
    // A crash left the file longer than its footer says.
    bytes.resize(bytes.len() + (2 << 20), 0);
    let memory = Arc::new(Memory::of(bytes));
    let error = Image::open(memory.clone(), Access::ReadWrite).unwrap_err();
    assert!(error.to_string().contains("truncate -s 37376"), "{error}");
    assert!(matches!(repair(&*memory), Err(RepairError::Doubtful(_))));
    let report = check(&*memory).unwrap();
    assert!(!report.is_good() && !report.is_repairable);
    assert_eq!(memory.writes(), 0);
}
