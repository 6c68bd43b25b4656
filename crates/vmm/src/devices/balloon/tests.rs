// A list of one range is meant.
#![allow(clippy::single_range_in_vec_init)]

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::discard::discard;
use super::pages::{BALLOON_PAGE, Pages};
use super::queue::REQUEST_PAGES;
use super::*;
use crate::devices::hostile;
use crate::virtio::testing::{Buffer, Harness};
use crate::virtio::{GuestMemory, RestoreError, VirtioDevice};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const REPORTING: usize = 4;
const F_STATS: u64 = 1 << 1;
const F_POISON: u64 = 1 << 4;
const F_REPORTING: u64 = 1 << 5;
const ALL: u64 = F_STATS | F_POISON | F_REPORTING;

const REQUEST: u64 = 4 << 20;
const DATA: u64 = 8 << 20;
const HUGE: u64 = 2 << 20;

fn idle(config: BalloonConfig) -> (Harness<Balloon>, BalloonHandle) {
    let balloon = Balloon::new(config).unwrap();
    let handle = balloon.handle();
    (Harness::new(balloon), handle)
}

fn active(config: BalloonConfig, features: u64) -> (Harness<Balloon>, BalloonHandle) {
    let (mut harness, handle) = idle(config);
    harness.memory.write_slice(&vec![0xaa; 8 << 20], GuestAddress(DATA)).unwrap();
    clean(&harness.memory);
    harness.activate(features).unwrap();
    (harness, handle)
}

fn clean(memory: &GuestMemory) {
    memory.iter().for_each(|region| drop(get_bitmap(region).get_and_reset()));
}

fn get_bitmap(region: &vm_memory::GuestRegionMmap<vm_memory::bitmap::AtomicBitmap>) -> &vm_memory::bitmap::AtomicBitmap {
    std::ops::Deref::deref(region).bitmap()
}

fn is_dirty(memory: &GuestMemory, address: u64) -> bool {
    let region = memory.find_region(GuestAddress(address)).unwrap();
    GuestMemoryRegion::bitmap(region).dirty_at((address - region.start_addr().0) as usize)
}

fn send_pages(harness: &mut Harness<Balloon>, queue: usize, pages: &[u32]) {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    harness.memory.write_slice(&bytes, GuestAddress(REQUEST)).unwrap();
    let used = harness.exchange(queue, &[Buffer { address: REQUEST, length: bytes.len() as u32, device_writes: false }]);
    assert_eq!(used.length, 0);
}

fn send_report(harness: &mut Harness<Balloon>, queue: usize, ranges: &[(u64, u32)]) {
    let chain: Vec<_> = ranges.iter().map(|&(address, length)| Buffer { address, length, device_writes: true }).collect();
    harness.exchange(queue, &chain);
}

/// Whether the page is filled with this byte.
fn page_is(memory: &GuestMemory, address: u64, byte: u8) -> bool {
    let mut page = [0; BALLOON_PAGE as usize];
    memory.read_slice(&mut page, GuestAddress(address)).unwrap();
    page.iter().all(|b| *b == byte)
}

fn page(address: u64) -> u32 {
    (address / BALLOON_PAGE) as u32
}

#[test]
fn inflated_pages_are_zero_and_dirty_and_others_are_not_touched() {
    let (mut harness, handle) = active(BalloonConfig::default(), 0);
    send_pages(&mut harness, INFLATE, &[page(DATA) + 2, page(DATA) + 1, page(DATA) + 9]);
    for n in 0..16 {
        let taken = matches!(n, 1 | 2 | 9);
        let address = DATA + n * BALLOON_PAGE;
        assert!(page_is(&harness.memory, address, if taken { 0 } else { 0xaa }), "page {n}");
        assert_eq!(is_dirty(&harness.memory, address), taken, "page {n}");
    }
    assert_eq!(handle.info().discarded_bytes, 3 * BALLOON_PAGE);
    assert_eq!((handle.info().ignored, handle.info().failed), (0, 0));
}

#[test]
fn a_page_given_twice_is_taken_once_until_it_is_deflated() {
    let (mut harness, handle) = active(BalloonConfig::default(), 0);
    let address = DATA + 5 * BALLOON_PAGE;
    send_pages(&mut harness, INFLATE, &[page(address), page(address)]);
    harness.memory.write_obj(7u8, GuestAddress(address)).unwrap();
    send_pages(&mut harness, INFLATE, &[page(address)]);
    assert_eq!(handle.info().ignored, 2);
    assert_eq!(
        harness.memory.read_obj::<u8>(GuestAddress(address)).unwrap(),
        7,
        "it is in use although the driver said otherwise"
    );
    send_pages(&mut harness, DEFLATE, &[page(address), 77]);
    send_pages(&mut harness, INFLATE, &[page(address)]);
    assert!(page_is(&harness.memory, address, 0));
    assert_eq!(handle.info().ignored, 2);
}

#[test]
fn pages_outside_of_memory_and_protected_ones_are_ignored_and_counted() {
    let protected = vec![DATA + 0x2000..DATA + 0x3800];
    let (mut harness, handle) = active(BalloonConfig { protected, ..BalloonConfig::default() }, ALL);
    let at = page(DATA);
    send_pages(&mut harness, INFLATE, &[u32::MAX, page(16 << 20), at + 2, at + 3, at + 4]);
    assert_eq!(handle.info().ignored, 4);
    assert!(page_is(&harness.memory, DATA + 0x2000, 0xaa) && page_is(&harness.memory, DATA + 0x3000, 0xaa));
    assert!(page_is(&harness.memory, DATA + 0x4000, 0));
    send_report(&mut harness, REPORTING, &[(DATA, 0x2001), (DATA + 0x37ff, 0x1000), (u64::MAX, 2), ((16 << 20) - 4096, 8192)]);
    assert_eq!(handle.info().ignored, 8);
    assert!(page_is(&harness.memory, DATA, 0xaa));
    send_report(&mut harness, REPORTING, &[(DATA, 0x2000)]);
    assert!(page_is(&harness.memory, DATA, 0));
}

#[test]
fn a_request_beyond_its_bound_is_cut() {
    let (mut harness, handle) = active(BalloonConfig::default(), 0);
    send_pages(&mut harness, INFLATE, &vec![page(DATA); REQUEST_PAGES + 10]);
    assert_eq!(handle.info().ignored, REQUEST_PAGES as u64 - 1 + 10);
    assert_eq!(handle.info().discarded_bytes, BALLOON_PAGE);
}

#[test]
fn huge_pages_go_only_when_all_of_them_is_in_the_balloon() {
    let (mut harness, handle) = active(BalloonConfig { page_size: HUGE, ..BalloonConfig::default() }, ALL);
    let pages: Vec<u32> = (0..512).map(|n| page(DATA) + n).collect();
    send_pages(&mut harness, INFLATE, &pages[1..]);
    assert!(page_is(&harness.memory, DATA + 4096, 0xaa));
    harness.pause_and_resume();
    send_pages(&mut harness, DEFLATE, &[page(DATA) + 7]);
    send_pages(&mut harness, INFLATE, &[page(DATA)]);
    assert_eq!(handle.info().discarded_bytes, 0);
    send_pages(&mut harness, INFLATE, &[page(DATA) + 7]);
    assert_eq!(handle.info().discarded_bytes, HUGE);
    assert!(page_is(&harness.memory, DATA, 0) && page_is(&harness.memory, DATA + HUGE, 0xaa));
    // Of a report only the whole huge page in its middle.
    send_report(&mut harness, REPORTING, &[(DATA + HUGE + 4096, (2 * HUGE) as u32)]);
    assert_eq!(handle.info().discarded_bytes, 2 * HUGE);
    assert!(page_is(&harness.memory, DATA + HUGE + 4096, 0xaa) && page_is(&harness.memory, DATA + 2 * HUGE, 0));
}

#[test]
fn reported_pages_keep_a_poison_pattern() {
    for (features, poison, discarded) in
        [(ALL, 0u32, true), (ALL, 0xaaaa_aaaa, false), (F_REPORTING | F_STATS, 0xaaaa_aaaa, true)]
    {
        let (mut harness, _) = idle(BalloonConfig::default());
        harness.memory.write_slice(&[0xaa; 8192], GuestAddress(DATA)).unwrap();
        harness.device.write_config(12, &poison.to_le_bytes());
        harness.activate(features).unwrap();
        send_report(&mut harness, REPORTING, &[(DATA, 8192)]);
        assert_eq!(page_is(&harness.memory, DATA, 0), discarded, "{features:#x} {poison:#x}");
    }
}

#[test]
fn reports_are_found_where_a_driver_numbers_queues_without_gaps() {
    for (features, queue) in [(F_REPORTING | F_STATS, 3), (F_REPORTING, 2)] {
        let (mut harness, handle) = idle(BalloonConfig::default());
        let queues = (0..=queue as u16).map(|n| (n, harness.queues[usize::from(n)].device_queue())).collect();
        harness.activate_with(features, queues).unwrap();
        send_report(&mut harness, queue, &[(DATA, 8192)]);
        assert_eq!(handle.info().discarded_bytes, 8192);
        assert_eq!(harness.device.quiesce().len(), queue + 1);
    }
}

#[test]
fn target_and_actual_size_pass_through_the_configuration() {
    let (mut harness, handle) = active(BalloonConfig::default(), 0);
    handle.set_target_pages(0x1_0203);
    handle.set_target_pages(0x1_0203);
    assert_eq!(harness.interrupt.config_changes(), 1);
    let mut space = [0xee; 24];
    harness.device.read_config(0, &mut space);
    assert_eq!(space[..20], [3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
    harness.device.write_config(0, &[9; 6]);
    assert_eq!(handle.info().actual_pages, 0x0909);
    assert_eq!(handle.info().target_pages, 0x1_0203, "not the driver's to write");
    harness.device.quiesce();
    harness.device.reset();
    assert_eq!((handle.info().actual_pages, handle.info().target_pages), (0, 0x1_0203));
}

fn offer_stats(harness: &mut Harness<Balloon>, entries: &[(u16, u64)]) {
    let mut bytes = Vec::new();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.push(1);
    harness.memory.write_slice(&bytes, GuestAddress(REQUEST)).unwrap();
    harness.queues[STATS].push(&[Buffer { address: REQUEST, length: bytes.len() as u32, device_writes: false }]);
    harness.queues[STATS].kick();
}

fn wait_stats(harness: &Harness<Balloon>, handle: &BalloonHandle, updates: u64) -> BalloonStats {
    harness.interrupt.wait_until("no statistics", || handle.stats().is_some_and(|stats| stats.updates >= updates));
    handle.stats().unwrap()
}

#[test]
fn statistics_come_when_asked_for_through_pauses() {
    let (mut harness, handle) = active(BalloonConfig::default(), ALL);
    assert_eq!(handle.stats(), None);
    offer_stats(&mut harness, &[(4, 1000), (999, 5), (6, 2000)]);
    let stats = wait_stats(&harness, &handle, 1);
    assert_eq!(
        (stats.get(Stat::FreeMemory), stats.get(Stat::AvailableMemory), stats.get(Stat::SwapIn)),
        (Some(1000), Some(2000), None)
    );
    assert_eq!(harness.queues[STATS].pop_used(), None, "the device keeps the buffer");
    for round in 0..10 {
        harness.pause_and_resume();
        let updates = wait_stats(&harness, &handle, 2 + 2 * round).updates;
        handle.request_stats();
        harness.wait_used(STATS);
        offer_stats(&mut harness, &[(4, round)]);
        assert_eq!(wait_stats(&harness, &handle, updates + 1).get(Stat::FreeMemory), Some(round));
    }
}

#[test]
fn the_state_makes_a_round_trip_and_garbage_is_refused() {
    let (mut harness, handle) = active(BalloonConfig::default(), ALL);
    handle.set_target_pages(100);
    harness.device.write_config(4, &50u32.to_le_bytes());
    harness.device.write_config(12, &7u32.to_le_bytes());
    harness.device.quiesce();
    let saved = harness.device.save();
    let mut restored = Balloon::new(BalloonConfig::default()).unwrap();
    restored.restore(&saved).unwrap();
    assert_eq!(restored.save(), saved);
    assert_eq!((restored.handle().info().target_pages, restored.handle().info().actual_pages), (100, 50));
    assert!(matches!(restored.restore(&[0xff; 7]), Err(RestoreError::Malformed { .. })));
    assert_eq!(restored.save(), saved);
}

#[test]
fn rings_that_cannot_be_followed_fail_the_device() {
    for queue in [INFLATE, DEFLATE, STATS, REPORTING] {
        hostile::impossible_ring(idle(BalloonConfig::default()).0, ALL, queue);
    }
}

/// Two regions on one file, the second starting in the middle of a huge page of it.
fn file_memory() -> (std::fs::File, Arc<GuestMemory>) {
    // SAFETY: the name is a valid C string; the returned descriptor is new and belongs to nobody else.
    let file: std::fs::File =
        unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(8 << 20).unwrap();
    let part = |start| Some(FileOffset::new(file.try_clone().unwrap(), start));
    let ranges = [(GuestAddress(0), 3 << 20, part(0)), (GuestAddress(16 << 20), 5 << 20, part(3 << 20))];
    let memory = GuestMemory::from_ranges_with_files(ranges).unwrap();
    memory.write_slice(&vec![1; 3 << 20], GuestAddress(0)).unwrap();
    memory.write_slice(&vec![1; 5 << 20], GuestAddress(16 << 20)).unwrap();
    clean(&memory);
    (file, Arc::new(memory))
}

#[test]
fn pages_of_a_file_are_given_back_to_the_host() {
    let (file, memory) = file_memory();
    let full = file.metadata().unwrap().blocks();
    assert_eq!(full * 512, 8 << 20);
    assert_eq!(discard(&memory, 4096, 8192, 4096).unwrap(), 8192);
    assert_eq!((full - file.metadata().unwrap().blocks()) * 512, 8192);
    assert!(page_is(&memory, 4096, 0) && page_is(&memory, 8192, 0) && page_is(&memory, 0, 1) && page_is(&memory, 12288, 1));
    assert!(is_dirty(&memory, 4096) && is_dirty(&memory, 8192) && !is_dirty(&memory, 0) && !is_dirty(&memory, 12288));
    // Partial pages stay, the hole between the regions is skipped.
    assert_eq!(discard(&memory, 1, 4095, 4096).unwrap(), 0);
    assert_eq!(discard(&memory, (3 << 20) - 4097, (13 << 20) + 4097 + 100, 4096).unwrap(), 4096);
    assert_eq!(discard(&memory, 1 << 40, u64::MAX, 4096).unwrap(), 0);
}

#[test]
fn huge_pages_are_those_of_the_file() {
    let (_file, memory) = file_memory();
    // The region at 16 MiB starts 1 MiB into a huge page of the file.
    assert_eq!(discard(&memory, 16 << 20, HUGE, HUGE).unwrap(), 0);
    assert_eq!(discard(&memory, 17 << 20, HUGE, HUGE).unwrap(), HUGE);
    assert!(page_is(&memory, 17 << 20, 0) && page_is(&memory, (17 << 20) - 4096, 1) && page_is(&memory, 19 << 20, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn hostile_chains_are_survived(rounds in hostile::rounds(), huge in any::<bool>()) {
        let page_size = if huge { HUGE } else { 4096 };
        // What the device must not touch is protected here: a balloon may otherwise take any page.
        let config = BalloonConfig { page_size, protected: vec![0..4 << 20], ..BalloonConfig::default() };
        hostile::attack(&mut idle(config).0, ALL, &rounds);
    }

    /// The set of pages is a set.
    #[test]
    fn pages_are_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..3000), 1..500)) {
        let mut pages = Pages::default();
        let mut model = std::collections::BTreeSet::new();
        for (insert, page) in steps {
            if insert { prop_assert_eq!(pages.insert(page), model.insert(page)) } else { prop_assert_eq!(pages.remove(page), model.remove(&page)) }
            let first = page / 4 * 4;
            prop_assert_eq!(pages.contains_host_page(page, 16384), (first..first + 4).all(|page| model.contains(&page)));
        }
    }

    /// Any sequence of requests leaves exactly those pages as they were that are not (or no longer) taken.
    #[test]
    fn memory_is_what_a_model_says(requests in prop::collection::vec((any::<bool>(), prop::collection::vec(0u32..64, 1..40)), 1..12)) {
        let (mut harness, _) = active(BalloonConfig::default(), 0);
        let mut zero = [false; 64];
        for (is_inflate, pages) in requests {
            let numbers: Vec<u32> = pages.iter().map(|n| page(DATA) + n).collect();
            send_pages(&mut harness, if is_inflate { INFLATE } else { DEFLATE }, &numbers);
            if is_inflate { pages.iter().for_each(|n| zero[*n as usize] = true) }
            harness.pause_and_resume();
        }
        for (n, zero) in (0..).zip(zero) {
            let byte = if zero { 0 } else { 0xaa };
            prop_assert!(page_is(&harness.memory, DATA + n * BALLOON_PAGE, byte));
        }
    }
}
