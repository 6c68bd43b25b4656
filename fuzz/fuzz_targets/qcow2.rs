#![no_main]

// The reader of qcow2 may fail an assertion, which `import` catches; libFuzzer's own hook would end the process before that.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |data: &[u8]| {
    disk::fuzz::qcow2(data);
});
