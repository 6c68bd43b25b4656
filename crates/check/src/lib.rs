//! What this machine can do as a host.
