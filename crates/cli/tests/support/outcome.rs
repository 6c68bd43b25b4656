//! What comes of a command line.

use std::process::Output;

/// What one printed that had to be done.
pub fn done(line: &str, output: Output) -> String {
    assert!(output.status.success(), "maru {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Why one was refused that had to be.
pub fn refused(line: &str, output: Output) -> String {
    assert!(!output.status.success(), "maru {line}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}
