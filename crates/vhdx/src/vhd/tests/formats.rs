//! What is in the file, byte by byte, and what an image says about itself.

use super::super::footer::Footer;
use super::super::header::Header;
use super::*;

#[test]
fn a_footer_has_the_bytes_of_the_specification() {
    let memory = new(NewKind::Fixed, 3 << 20, BLOCK_SIZE);
    let bytes = memory.bytes();
    assert_eq!(bytes.len(), (3 << 20) + 512);
    let footer = &bytes[3 << 20..];
    assert_eq!(&footer[..8], b"conectix");
    assert_eq!(footer[8..12], [0, 0, 0, 2]);
    assert_eq!(footer[16..24], [0xff; 8]);
    assert_eq!(footer[48..56], (3u64 << 20).to_be_bytes());
    assert_eq!(footer[60..64], [0, 0, 0, 2]);
    assert_eq!(&footer[68..84], b"0123456789abcdef");
    let sum: u32 = footer[..64].iter().chain(&footer[68..]).map(|byte| u32::from(*byte)).sum();
    assert_eq!(footer[64..68], (!sum).to_be_bytes());
}

#[test]
fn the_geometry_is_that_of_the_specification() {
    let geometry = |size| Footer::new(Kind::Fixed, size, UniqueId::default(), Timestamp(0), 0).geometry();
    assert_eq!(geometry(3 << 20), (90, 4, 17));
    assert_eq!(geometry(1 << 30), (2080, 16, 63));
    assert_eq!(geometry(MAX_SIZE), (65_535, 16, 255));
}

#[test]
fn an_image_says_what_it_was_made_with() {
    let memory = new(NewKind::Differencing(parent()), 100 << 20, BLOCK_SIZE);
    let image = open(&memory);
    write(&image, &*memory, 0, &[1; 512]);
    let info = image.info();
    assert_eq!((info.kind, info.size, info.id), (Kind::Differencing, 100 << 20, UniqueId(*b"0123456789abcdef")));
    assert_eq!((info.created, info.creator.as_str(), info.footers), (Timestamp(800_000_000), "win", FooterState::Good));
    assert_eq!((info.block_size, info.allocated_blocks), (Some(BLOCK_SIZE), Some(1)));
    assert_eq!(info.parent, Some(parent()));
    assert_eq!(info.id.to_string(), "30313233-3435-3637-3839-616263646566");
}

#[test]
fn the_parents_names_are_utf16_in_two_byte_orders() {
    let bytes = new(NewKind::Differencing(parent()), 100 << 20, BLOCK_SIZE).bytes();
    assert_eq!(bytes[512 + 64..][..4], [0, b'p', 0, 0xe8]);
    let header = Header::parse(&super::super::bytes::array(&bytes, 512)).unwrap();
    let relative = header.locators().next().unwrap();
    assert_eq!(&relative.code, b"W2ru");
    assert_eq!(bytes[relative.offset as usize..][..6], [b'.', 0, b'\\', 0, b'p', 0]);
}

#[test]
fn another_parent_is_found_after_opening_again() {
    let memory = new(NewKind::Differencing(parent()), 100 << 20, BLOCK_SIZE);
    let other = ParentName { id: UniqueId([9; 16]), name: "other".into(), absolute_path: None, ..parent() };
    let image = open(&memory);
    write(&image, &*memory, 512, &[1; 512]);
    image.set_parent(other.clone()).unwrap();
    write(&image, &*memory, 50 << 20, &[2; 512]);
    image.commit().unwrap();
    let image = open(&memory);
    assert_eq!(image.info().parent, Some(other));
    assert_eq!(read(&image, &*memory, 50 << 20, 1024), [[2; 512], [PARENT; 512]].concat());
}

#[test]
fn a_name_that_does_not_fit_is_refused() {
    let memory = Memory::default();
    let long = ParentName { name: "x".repeat(257), ..parent() };
    let error = create(&memory, &options(NewKind::Differencing(long), 1 << 20, BLOCK_SIZE)).unwrap_err();
    assert!(matches!(error, CreateError::Parent(ParentError::Name { what: "name", units: 257, most: 256 })), "{error}");
    assert_eq!(memory.writes(), 0);
}

#[test]
fn sizes_that_the_format_does_not_have_are_refused() {
    for size in [0, 511, MAX_SIZE + 512] {
        assert!(matches!(create(&Memory::default(), &options(NewKind::Dynamic, size, BLOCK_SIZE)), Err(CreateError::Size(_))));
    }
    for block in [0, 512, 3 << 20, 512 << 20] {
        let made = create(&Memory::default(), &options(NewKind::Dynamic, 1 << 30, block));
        assert!(matches!(made, Err(CreateError::BlockSize(_))));
    }
    assert!(matches!(create(&Memory::of(vec![1]), &options(NewKind::Dynamic, 512, BLOCK_SIZE)), Err(CreateError::NotEmpty(1))));
}

#[test]
fn the_largest_disk_can_be_made_and_written_at_its_end() {
    let file = Arc::new(tempfile::tempfile().unwrap());
    create(&*file, &options(NewKind::Dynamic, MAX_SIZE, BLOCK_SIZE)).unwrap();
    let image = Image::open(file.clone(), Access::ReadWrite).unwrap();
    write(&image, &*file, MAX_SIZE - 512, &[6; 512]);
    image.commit().unwrap();
    let image = Image::open(file.clone(), Access::ReadOnly).unwrap();
    assert_eq!(read(&image, &*file, MAX_SIZE - 1024, 1024), [[0; 512], [6; 512]].concat());
}

#[test]
fn a_blocks_data_is_aligned_to_pages() {
    let memory = new(NewKind::Dynamic, 100 << 20, BLOCK_SIZE);
    let image = open(&memory);
    for block in 0..4 {
        let mut extents = Vec::new();
        let ticket = image.map_write(block << 21, 512, &mut extents).unwrap();
        image.complete(ticket);
        assert!(matches!(extents[..], [Extent { length: 512, place: Place::File(offset) }] if offset % 4096 == 0), "{extents:?}");
    }
}
