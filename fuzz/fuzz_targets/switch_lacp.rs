#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    switch::fuzz::lacp(data);
});
