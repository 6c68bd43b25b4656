//! Disks that fail or crawl.

use serde_json::json;

use super::error::HostError;
use super::machine::Host;

/// What a failing disk does. Requests that fail do so with an I/O error.
///
/// Only [`DiskFault::NextFlush`] fails a flush: QEMU flushes a disk before it changes what is under it, so one whose
/// flushes always fail could never heal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// Neither reading nor writing works.
    All,
    /// Only reading works.
    Writes,
    /// Only writing works.
    Reads,
    /// One flush fails; everything else works.
    NextFlush,
}

impl DiskFault {
    fn kinds(self) -> &'static [&'static str] {
        match self {
            DiskFault::All => &["read", "write", "write-zeroes", "discard"],
            DiskFault::Writes => &["write", "write-zeroes", "discard"],
            DiskFault::Reads => &["read"],
            DiskFault::NextFlush => &["flush"],
        }
    }
}

impl Host {
    /// Makes disk `n` of the host fail, from the next request on until [`Host::heal_disk`] or the end of power. Other
    /// hosts that share the disk do not notice.
    ///
    /// # Errors
    /// When the host has no power or no such disk.
    pub fn fail_disk(&self, n: usize, fault: DiskFault) -> Result<(), HostError> {
        self.heal_disk(n)?;
        let once = fault == DiskFault::NextFlush;
        let error = |kind| json!({ "event": "none", "iotype": kind, "errno": libc::EIO, "once": once });
        let errors: Vec<_> = fault.kinds().iter().map(error).collect();
        let node = json!({
            "driver": "blkdebug", "node-name": format!("disk{n}-fault"), "image": format!("disk{n}-file"), "inject-error": errors,
        });
        self.control("blockdev-add", node)?;
        self.put_disk_on(n, &format!("disk{n}-fault"))
    }

    /// Ends what [`Host::fail_disk`] began.
    ///
    /// # Errors
    /// When the host has no power or no such disk.
    pub fn heal_disk(&self, n: usize) -> Result<(), HostError> {
        self.need_on()?;
        let file = format!("disk{n}-file");
        // The flush that QEMU does first may meet the one error that was still waiting for the host's.
        self.put_disk_on(n, &file).or_else(|_| self.put_disk_on(n, &file))?;
        let nodes = self.control("query-named-block-nodes", json!({ "flat": true }))?;
        let fault = format!("disk{n}-fault");
        if nodes.as_array().is_some_and(|nodes| nodes.iter().any(|node| node["node-name"] == fault.as_str())) {
            self.control("blockdev-del", json!({ "node-name": fault }))?;
        }
        Ok(())
    }

    /// Limits what disk `n` of the host carries, or ends the limit.
    ///
    /// # Errors
    /// When the host has no power or no such disk.
    pub fn limit_disk(&self, n: usize, bytes_per_second: Option<u64>) -> Result<(), HostError> {
        self.need_on()?;
        let limits = json!({ "bps-total": bytes_per_second.unwrap_or(0) });
        let path = format!("/objects/disk{n}-limit");
        self.control("qom-set", json!({ "path": path, "property": "limits", "value": limits })).map(|_| ())
    }

    fn put_disk_on(&self, n: usize, file: &str) -> Result<(), HostError> {
        let group = format!("disk{n}-limit");
        let node = json!({ "driver": "throttle", "node-name": format!("disk{n}"), "throttle-group": group, "file": file });
        self.control("blockdev-reopen", json!({ "options": [node] })).map(|_| ())
    }
}
