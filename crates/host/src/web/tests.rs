//! The document and the routes.

use std::path::Path;

use super::*;

/// Writes the document anew when `MARU_WRITE_OPENAPI` is set.
#[test]
fn the_document_that_is_checked_in_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/openapi.json");
    let current = serde_json::to_string_pretty(&*DOCUMENT).unwrap() + "\n";
    if std::env::var_os("MARU_WRITE_OPENAPI").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    assert!(current.contains("\"name\": \"fields\"") && current.contains("^[!-~]{1,128}$"), "what operations have in common");
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == current, "crates/api/openapi.json is not what the code says: run this test with MARU_WRITE_OPENAPI=1");
}
