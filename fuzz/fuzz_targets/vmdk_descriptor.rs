#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    disk::fuzz::vmdk_descriptor(data);
});
