//! A disk is an array of bytes.

use proptest::prelude::*;

use super::*;

const SIZE: u64 = 33 * 512 + 40 * BLOCK as u64;

#[derive(Clone, Debug)]
enum Operation {
    Write { first: u64, count: u64, value: u8 },
    Zero { first: u64, count: u64 },
    Commit,
    Reopen,
    Resize(u64),
    Parent,
}

fn operation() -> impl Strategy<Value = Operation> {
    let range = || (0..SIZE / 512, prop_oneof![1..9u64, 1..100u64]);
    prop_oneof![
        6 => (range(), 1..=255u8).prop_map(|((first, count), value)| Operation::Write { first, count, value }),
        3 => range().prop_map(|(first, count)| Operation::Zero { first, count }),
        2 => range().prop_map(|(first, count)| Operation::Zero { first: first & !7, count: (count + 7) & !7 }),
        3 => Just(Operation::Commit),
        1 => Just(Operation::Reopen),
        1 => (1..2 * SIZE / 512).prop_map(|sectors| Operation::Resize(sectors * 512)),
        1 => Just(Operation::Parent),
    ]
}

fn kind() -> impl Strategy<Value = NewKind> {
    prop_oneof![Just(NewKind::Fixed), Just(NewKind::Dynamic), Just(NewKind::Differencing(parent()))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_an_array_of_bytes(kind in kind(), block in prop_oneof![Just(BLOCK), Just(4 * BLOCK)],
                                   operations in prop::collection::vec(operation(), 1..60)) {
        let differencing = matches!(kind, NewKind::Differencing(_));
        let memory = new(kind, SIZE, block);
        let mut image = open(&memory);
        let mut model = vec![if differencing { PARENT } else { 0 }; SIZE as usize];
        for operation in operations {
            let sectors = model.len() as u64 / 512;
            let clip = |first: u64, count: u64| {
                let first = first.min(sectors);
                (first * 512, count.min(sectors - first) * 512)
            };
            match operation {
                Operation::Write { first, count, value } => {
                    let (offset, length) = clip(first, count);
                    model[offset as usize..][..length as usize].fill(value);
                    write(&image, &*memory, offset, &vec![value; length as usize]);
                }
                Operation::Zero { first, count } => {
                    let (offset, length) = clip(first, count);
                    model[offset as usize..][..length as usize].fill(0);
                    zero(&image, &*memory, offset, length);
                }
                Operation::Commit => {
                    image.commit().unwrap();
                    // Space that was waiting comes back with a second one at the latest.
                    image.commit().unwrap();
                    prop_assert!(image.is_clean());
                }
                Operation::Reopen => {
                    image.commit().unwrap();
                    drop(image);
                    prop_assert_eq!(check(&*memory).unwrap(), Report::default());
                    image = open(&memory);
                }
                Operation::Resize(size) if !differencing => {
                    image.resize(size).unwrap();
                    model.resize(size as usize, 0);
                }
                Operation::Parent if differencing => image.set_parent(parent()).unwrap(),
                Operation::Resize(_) | Operation::Parent => {}
            }
            prop_assert!(read(&image, &*memory, 0, model.len() as u64) == model);
        }
    }
}
