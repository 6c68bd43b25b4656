//! One virtual host.
use std::time::{Duration, Instant};

use lab::Lab;

#[test]
fn a_host_is_ready_within_ten_seconds_and_has_kvm() {
    let start = Instant::now();
    let lab = Lab::new().start().unwrap();
    println!("one host ready after {:?}", start.elapsed());
    println!("{}", lab.host(0).serial_tail());
    let out = lab.host(0).exec(["sh", "-c", "ls -l /dev/kvm; lsmod; ip addr; free; dmesg | tail -5; ps"]).unwrap();
    println!("{} {}", out.text(), out.error_text());
    assert!(start.elapsed() < Duration::from_secs(60));
}
