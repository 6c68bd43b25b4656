//! What a file must not say. Damage of any kind is in `fuzz`.

use super::*;

fn sample(kind: NewKind) -> Vec<u8> {
    let memory = new(kind, 9 * u64::from(BLOCK), BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &[3; 2 * BLOCK as usize]);
    write(&image, &*memory, 5 * u64::from(BLOCK) + 512, &[4; 512]);
    image.commit().unwrap();
    memory.bytes()
}

#[test]
fn two_blocks_in_one_place_are_refused() {
    let mut bytes = sample(NewKind::Dynamic);
    bytes.copy_within(1536..1540, 1544);
    let error = Image::open(Arc::new(Memory::of(bytes)), Access::ReadOnly).unwrap_err();
    assert!(error.to_string().contains("two blocks share the place"), "{error}");
}

#[test]
fn a_block_past_the_files_end_is_refused() {
    let mut bytes = sample(NewKind::Dynamic);
    bytes[1544..1548].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
    let error = Image::open(Arc::new(Memory::of(bytes)), Access::ReadOnly).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged(Damage { structure: "block table", offset: 1544, .. })), "{error}");
}

#[test]
fn a_file_of_anything_is_not_a_vhd() {
    for length in [0, 1, 511, 512, 513, 1023, 4096] {
        let memory = Arc::new(Memory::of(vec![7; length]));
        assert!(matches!(Image::open(memory.clone(), Access::ReadWrite), Err(OpenError::NotVhd { .. })));
        assert!(matches!(repair(&*memory), Err(RepairError::NoFooter)));
        assert_eq!(memory.writes(), 0);
    }
}
