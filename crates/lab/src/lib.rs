//! Virtual hosts: a data centre on one machine.
