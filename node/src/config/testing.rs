//! What tests of settings share.

use super::{Config, check_file};

/// Reads `text` as a configuration file; the error is as a person sees it.
pub(super) fn checked(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shoal.toml");
    std::fs::write(&path, format!("version = 1\n{text}")).unwrap();
    check_file(&path, &[]).map_err(|e| e.to_string())
}
