//! The block layer of a VM.
