//! The block layer of a VM: virtual disks and the engine that moves their data.
//!
//! ```text
//!  Disk::open ──▶ Disk (lock held, capacity known) ──▶ Engine::new, one per queue and thread
//!                    │ clones share one state                │ start a request under a tag (no system call)
//!                    │                                       │ wait: one io_uring_enter submits all and sleeps
//!                    ▼                                       ▼
//!        release_lock / take_lock (moves)            next: completed tags, ready descriptors
//! ```
//!
//! Callers speak in offsets of the *virtual disk*. In a raw file or a block device these are offsets of the file. An image
//! ([`Format`]) has tables (crate `vhdx`): the engine asks them where a request's data is, does the reads and writes, in the image's
//! file and in those of its parents, and the commits that make changed tables durable with a flush. All engines of one image
//! share its tables and its commits.
//!
//! # I/O model
//! A [`Disk`] may be used from any thread. An [`Engine`] belongs to the thread that made it, owns one io_uring, and does
//! nothing between calls: whoever owns it waits in it, for disk and for other descriptors alike ([`Engine::watch`]), so that
//! an idle queue costs one sleeping thread, and a request costs two system calls.
//!
//! # Beside the engine
//! Every request passes the disk's gate, which all its engines share. Writes can be held up there ([`Disk::hold_writes`]: a point in
//! time), and are marked in [`dirty`] maps while [`Disk::track`] or [`Disk::open_maps`] has them on. A request that has to wait is parked
//! in its engine, which does everything else meanwhile.
//!
//! A [`mirror`] copies a disk to another one while engines use it, and hands over to it; it lives on a thread of its own.
//!
//! With [`OpenOptions::copy_on_read`] an engine writes what it read from an image's parents to the image itself.
//!
//! [`limits`] decides when a request may start ([`Disk::set_limits`]).
//!
//! The feature `tool`, on by default, is what programs for people have and the monitor is built without: `tool` does what `maru disk`
//! does, `import` reads disks of other platforms, `nbd` makes a disk a block device of this machine.
//!
//! # Errors
//! Opening fails with an [`OpenError`] and locking with a [`LockError`], whose text names the disk, the cause and the way out. A
//! request fails with an [`IoError`], small and comparable, because a device decides on it.

mod buffer;
mod chain;
mod commits;
pub mod dirty;
mod disk;
mod engine;
mod error;
#[cfg(feature = "tool")]
mod export;
mod format;
#[cfg(all(feature = "tool", any(test, feature = "testing")))]
pub mod fuzz;
mod gate;
mod geometry;
mod image;
#[cfg(feature = "tool")]
pub mod import;
mod layer;
pub mod layers;
pub mod limits;
mod lock;
pub mod mirror;
#[cfg(feature = "tool")]
pub mod nbd;
mod put;
mod ranges;
#[cfg(feature = "tool")]
pub mod tool;
mod tracking;
mod wake;
mod zeros;

pub use disk::{Access, Cache, Disk, Locking, OpenOptions, SectorSize};
pub use engine::{Durability, Engine, Event, MAX_DEPTH, Zeroing};
pub use error::{Chain, EngineError, IoError, LockError, OpenError, ResizeError};
pub use format::Format;
pub use gate::Held;
pub use lock::Holder;
pub use tracking::TrackError;

#[cfg(test)]
mod tests;
