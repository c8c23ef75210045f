//! Where things live by default on each platform.

use std::path::PathBuf;

use super::lookup;

/// Returns `$XDG_DATA_HOME/shoal`, or the platform's equivalent.
pub fn default_data_dir(env: &[(String, String)]) -> PathBuf {
    if let Some(dir) = lookup(env, "XDG_DATA_HOME") {
        return PathBuf::from(dir).join("shoal");
    }
    let home = || lookup(env, "HOME").map(PathBuf::from);
    if cfg!(target_os = "macos")
        && let Some(home) = home()
    {
        return home.join("Library/Application Support/shoal");
    }
    if cfg!(windows)
        && let Some(dir) = lookup(env, "LOCALAPPDATA")
    {
        return PathBuf::from(dir).join("shoal");
    }
    match home() {
        Some(home) => home.join(".local/share/shoal"),
        None => PathBuf::from("/var/lib/shoal"),
    }
}

/// Returns the files that are looked for when no `--config` is given, first match wins.
pub fn default_config_files(env: &[(String, String)]) -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("shoal.toml")];
    if let Some(dir) = lookup(env, "XDG_CONFIG_HOME") {
        files.push(PathBuf::from(dir).join("shoal/shoal.toml"));
    } else if let Some(home) = lookup(env, "HOME") {
        files.push(PathBuf::from(home).join(".config/shoal/shoal.toml"));
    }
    files.push(PathBuf::from("/etc/shoal/shoal.toml"));
    files
}
