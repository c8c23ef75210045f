//! Providers added by command, kept in a file that only this user can read, since it holds their keys.

use std::io::Write;
use std::path::Path;

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::budget::Budget;
use super::settings::{Error, FileProvider, ProviderSettings, Source, trimmed};
use crate::upstream::provider::{Api, Kind};

/// File in the data directory.
pub(super) const FILE: &str = "providers.json";

#[derive(Serialize, Deserialize)]
struct Saved {
    name: String,
    kind: Kind,
    base_url: String,
    key: Option<String>,
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    api: Api,
    models: Vec<String>,
    internal_ok: bool,
    budget: Budget,
}

/// Reads what was saved; nothing if nothing was.
///
/// # Errors
/// The file cannot be read or is damaged; it is left as it is.
pub(super) fn read(path: &Path) -> Result<Vec<ProviderSettings>, Error> {
    let wrong = |message: String| Error { provider: FILE.to_owned(), message };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
    };
    // The parser's message could quote the file, and so a key.
    let saved: Vec<Saved> =
        serde_json::from_slice(&text).map_err(|_| wrong("is damaged; move it away".into()))?;
    saved
        .into_iter()
        .map(|saved| {
            let key = saved.key.as_deref().map(|key| trimmed(key, FILE)).transpose().map_err(wrong)?;
            let entry = FileProvider {
                name: saved.name,
                kind: Some(saved.kind),
                base_url: Some(saved.base_url),
                api_version: saved.api_version,
                api: Some(saved.api),
                models: saved.models,
                internal_ok: Some(saved.internal_ok),
                budget: Some(saved.budget),
                ..FileProvider::default()
            };
            Ok(ProviderSettings { key, ..entry.check(&[], Source::Added)? })
        })
        .collect()
}

/// Writes all of them, so that a reader sees the old file or the new one whole.
///
/// # Errors
/// What the system said.
pub(super) fn write<'a>(
    path: &Path,
    providers: impl Iterator<Item = &'a ProviderSettings>,
) -> std::io::Result<()> {
    let saved: Vec<Saved> = providers
        .map(|p| Saved {
            name: p.name.clone(),
            kind: p.kind,
            base_url: p.base.to_string(),
            key: p.key.as_ref().map(|key| key.expose_secret().to_owned()),
            api_version: p.api_version.clone(),
            api: p.api,
            models: p.models.clone(),
            internal_ok: p.internal_ok,
            budget: p.budget,
        })
        .collect();
    let part = path.with_extension("part");
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&part)?;
    file.write_all(&serde_json::to_vec_pretty(&saved)?)?;
    file.sync_all()?;
    std::fs::rename(part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_survives_with_its_key_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(read(&path).unwrap().is_empty());
        let entry = FileProvider {
            name: "own".into(),
            base_url: Some("https://llm.example.com/v1".into()),
            models: vec!["m".into()],
            ..FileProvider::default()
        };
        let mut settings = entry.check(&[], Source::Added).unwrap();
        settings.key = Some("sk-own".to_owned().into());
        write(&path, std::iter::once(&settings)).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back[0].key.as_ref().unwrap().expose_secret(), "sk-own");
        assert_eq!((back[0].name.as_str(), back[0].budget), ("own", settings.budget));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::write(&path, "[{\"key\":\"sk-own\" oops").unwrap();
        assert!(!read(&path).unwrap_err().to_string().contains("sk-own"));
    }
}
