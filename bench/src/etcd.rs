//! Where etcd is, and where it and its clients can be without meeting those of others.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Where `scripts/install-deps` has put its programs.
pub fn programs() -> PathBuf {
    let build = std::env::var_os("MARU_BUILD_DIR").map(PathBuf::from);
    build.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../build")).join("etcd/usr/bin")
}

/// An address of the loopback network that is this process's own, so that no port has to be looked for.
pub fn own_address() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, a + 1, b, c)
}
