//! Other sizes.

use super::*;

#[test]
fn a_disk_that_shrinks_and_grows_has_zeros_in_between() {
    for kind in [NewKind::Fixed, NewKind::Dynamic] {
        let size = 9 * u64::from(BLOCK);
        let memory = new(kind, size, BLOCK);
        let image = open(&memory);
        write(&image, &*memory, 0, &vec![5; size as usize]);
        image.resize(3 * 512).unwrap();
        image.resize(size).unwrap();
        assert_eq!(read(&image, &*memory, 0, 3 * 512), [5; 3 * 512]);
        assert!(read(&image, &*memory, 3 * 512, size - 3 * 512).iter().all(|byte| *byte == 0));
        assert_eq!(check(&*memory).unwrap(), Report::default());
    }
}

#[test]
fn a_table_that_is_too_small_moves() {
    let memory = new(NewKind::Dynamic, u64::from(BLOCK), BLOCK);
    let image = open(&memory);
    write(&image, &*memory, 0, &[5; 512]);
    let size = 1000 * u64::from(BLOCK);
    image.resize(size).unwrap();
    write(&image, &*memory, size - 512, &[6; 512]);
    image.commit().unwrap();
    let image = open(&memory);
    assert_eq!(image.size(), size);
    assert_eq!((read(&image, &*memory, 0, 512), read(&image, &*memory, size - 512, 512)), (vec![5; 512], vec![6; 512]));
}

#[test]
fn a_disk_with_a_parent_keeps_its_size() {
    let image = open(&new(NewKind::Differencing(parent()), 1 << 20, BLOCK));
    assert!(matches!(image.resize(2 << 20), Err(ResizeError::Differencing)));
}

#[test]
fn a_disk_grows_under_requests_and_shrinks_only_without() {
    for kind in [NewKind::Fixed, NewKind::Dynamic] {
        let size = 9 * u64::from(BLOCK);
        let memory = new(kind, size, BLOCK);
        let image = open(&memory);
        let mut extents = Vec::new();
        let writer = image.map_write(0, 512, &mut extents).unwrap();
        // More than 128 blocks, so the table has to move.
        let grown = 200 * u64::from(BLOCK);
        image.resize(grown).unwrap();
        assert!(matches!(image.resize(size), Err(ResizeError::Busy(1))));
        let Place::File(at) = extents[0].place else { panic!("{extents:?}") };
        memory.write_at(at, &[7; 512]).unwrap();
        image.complete(writer);
        write(&image, &*memory, grown - 512, &[8; 512]);
        image.commit().unwrap();
        drop(image);
        let image = open(&memory);
        assert_eq!((image.size(), read(&image, &*memory, 0, 512)), (grown, vec![7; 512]));
        assert_eq!(read(&image, &*memory, grown - 1024, 1024), [[0; 512], [8; 512]].concat());
        image.resize(size).unwrap();
    }
}
