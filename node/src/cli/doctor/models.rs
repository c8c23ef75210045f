//! Model files of the embedded engine: are there any, and are they what their name says.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::check::Check;
use crate::config::Config;

/// Smallest GGUF file that can hold a model's header.
const HEADER: usize = 24;

/// Versions of the format that the engine reads.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;

/// A model file, or why it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelFile {
    path: PathBuf,
    problem: Option<String>,
}

/// Looks at the file that the configuration names and at those in the data directory.
pub(super) fn find(config: &Config, dir: &Path) -> Vec<ModelFile> {
    let mut paths: Vec<PathBuf> = config.model_file.iter().cloned().collect();
    let listed = std::fs::read_dir(dir.join("models")).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = listed.map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")));
    found.sort();
    paths.extend(found);
    paths.into_iter().map(|path| ModelFile { problem: problem_of(&path), path }).collect()
}

fn problem_of(path: &Path) -> Option<String> {
    let mut head = [0; HEADER];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Some("is cut short".into()),
        Err(error) => Some(format!("cannot be read: {error}")),
        Ok(()) => judge(&head).err(),
    }
}

/// Magic, version, number of tensors and of metadata entries, little-endian.
fn judge(head: &[u8; HEADER]) -> Result<(), String> {
    let number =
        |at: usize, len: usize| head[at..at + len].iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    if &head[..4] != b"GGUF" {
        return Err("is no GGUF file".into());
    }
    let version = number(4, 4) as u32;
    if !VERSIONS.contains(&version) {
        return Err(format!("has version {version} of the format, which the engine does not read"));
    }
    if number(8, 8) == 0 || number(16, 8) == 0 {
        return Err("holds no model".into());
    }
    Ok(())
}

pub(super) fn check(config: &Config, files: &[ModelFile]) -> Check {
    const NAME: &str = "models";
    let bad: Vec<String> = files
        .iter()
        .filter_map(|file| Some(format!("{} {}", file.path.display(), file.problem.as_ref()?)))
        .collect();
    if !bad.is_empty() {
        let next = "remove the file, and fetch it again with `shoal pull`";
        return Check::bad(NAME, bad.join("; "), next);
    }
    if !files.is_empty() {
        let names: Vec<_> = files.iter().filter_map(|file| file.path.file_name()?.to_str()).collect();
        return Check::ok(NAME, names.join(", "));
    }
    if config.embedded {
        let next = "`shoal pull smollm2-135m-instruct`, or wait for the first start to fetch one";
        return Check::warn(NAME, "no model file for the embedded engine yet", next);
    }
    Check::ok(NAME, "no model file, and none is needed unless the embedded engine runs")
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;
    use crate::config::Flags;

    fn gguf(version: u32, tensors: u64) -> Vec<u8> {
        let mut head = b"GGUF".to_vec();
        head.extend(version.to_le_bytes());
        head.extend(tensors.to_le_bytes());
        head.extend(5_u64.to_le_bytes());
        head
    }

    #[test]
    fn files_are_known_by_their_header() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("models");
        std::fs::create_dir(&folder).unwrap();
        let config = Config::load(Flags { embedded: true, ..Flags::default() }, &[]).unwrap();
        assert_eq!(check(&config, &find(&config, dir.path())).verdict, Verdict::Warn);
        std::fs::write(folder.join("good.gguf"), gguf(3, 7)).unwrap();
        std::fs::write(folder.join("notes.txt"), "x").unwrap();
        let found = check(&config, &find(&config, dir.path()));
        assert_eq!((found.verdict, found.cause.as_str()), (Verdict::Ok, "good.gguf"));
        for (content, words) in [
            (gguf(3, 7)[..9].to_vec(), "cut short"),
            (b"<!doctype html><html><head></head>".to_vec(), "no GGUF file"),
            (gguf(9, 7), "version 9"),
            (gguf(3, 0), "holds no model"),
        ] {
            std::fs::write(folder.join("other.gguf"), content).unwrap();
            let found = check(&config, &find(&config, dir.path()));
            assert!(found.verdict == Verdict::Bad && found.cause.contains(words), "{found:?}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(Flags::default(), &[]).unwrap();
        assert_eq!(check(&config, &find(&config, dir.path())).verdict, Verdict::Ok);
        config.model_file = Some(dir.path().join("gone.gguf"));
        assert_eq!(check(&config, &find(&config, dir.path())).verdict, Verdict::Bad);
    }
}
