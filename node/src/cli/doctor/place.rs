//! The data directory: can it be written, who holds it, is there room, and what is in its store.

use std::fs::{File, TryLockError};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use shoal_cluster::Role;

use super::check::Check;

/// Below this the store can soon not be written, which costs keys and history.
const LEAST_FREE: u64 = 200 << 20;

/// The default model has 1.1 GB, and its download needs as much once more before it is put in place.
const MODEL_ROOM: u64 = 2500 << 20;

/// Tries to write where the node would.
pub(super) fn writable(dir: &Path) -> Check {
    const NAME: &str = "data directory";
    let shown = dir.display();
    let next = "correct its owner, or choose another with --data-dir";
    if dir.exists() && !dir.is_dir() {
        return Check::bad(NAME, format!("{shown} is not a directory"), next);
    }
    // A directory that is not there yet is made at the first start, below the nearest that is.
    let Some(existing) = dir.ancestors().find(|place| place.is_dir()) else {
        return Check::bad(NAME, format!("nothing on the way to {shown} exists"), next);
    };
    let trial = existing.join(format!(".shoal-doctor-{}", std::process::id()));
    let written = File::create_new(&trial).and_then(|_| std::fs::remove_file(&trial));
    match written {
        Err(error) => Check::bad(NAME, format!("cannot write to {}: {error}", existing.display()), next),
        Ok(()) if existing == dir => Check::ok(NAME, format!("{shown} can be written")),
        Ok(()) => Check::ok(NAME, format!("{shown} will be made at the first start")),
    }
}

/// Returns the bytes free for us on the disk that `dir` is or will be on; `None` if the system does not say.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let existing = dir.ancestors().find(|place| place.exists())?;
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(existing).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}

pub(super) fn disk(free: Option<u64>) -> Check {
    const NAME: &str = "free disk";
    let Some(free) = free else { return Check::ok(NAME, "this system does not say") };
    let shown = format!("{:.1} GB are free", free as f64 / 1e9);
    if free < LEAST_FREE {
        return Check::bad(
            NAME,
            format!("only {shown}; the store needs room to write"),
            "make room on the disk",
        );
    }
    if free < MODEL_ROOM {
        let next = "make room, or take a small model: `shoal pull smollm2-135m-instruct`";
        return Check::warn(NAME, format!("{shown}, not enough to fetch the default model"), next);
    }
    Check::ok(NAME, shown)
}

/// Returns true if a process holds the data directory's lock; `None` if there is no lock file yet.
pub(super) fn is_held(dir: &Path) -> Option<bool> {
    let file = File::options().write(true).open(dir.join("lock")).ok()?;
    match file.try_lock() {
        // Closing the file lets go of it at once.
        Ok(()) => Some(false),
        Err(TryLockError::WouldBlock) => Some(true),
        Err(TryLockError::Error(_)) => None,
    }
}

pub(super) fn lock(held: Option<bool>, answers: bool, role: Option<Role>) -> Check {
    const NAME: &str = "process";
    match (held, answers, role) {
        (_, true, _) => Check::ok(NAME, "a node runs here and answers"),
        (Some(true), false, Some(Role::Device)) => Check::ok(NAME, "a device runs here"),
        (Some(true), false, _) => Check::bad(
            NAME,
            "a process holds the data directory, but its admin socket does not answer",
            "wait a moment if it just started; else end that process and run `shoal up`",
        ),
        (_, false, Some(Role::Device)) => {
            Check { next: Some("`shoal join` resumes it".into()), ..Check::ok(NAME, "no device runs here") }
        }
        (_, false, _) => {
            Check { next: Some("`shoal up` starts it".into()), ..Check::ok(NAME, "no node runs here") }
        }
    }
}

/// What the store says, read without changing it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StoreFacts {
    /// True if there is a store.
    pub(super) exists: bool,
    /// Why it cannot be read.
    pub(super) problem: Option<String>,
    /// API keys that are valid.
    pub(super) keys: u64,
    /// When its newest request began, milliseconds since the Unix epoch.
    pub(super) newest_ms: Option<u64>,
}

impl StoreFacts {
    pub(super) fn read(dir: &Path) -> Self {
        let path = dir.join("shoal.db");
        if !path.exists() {
            return Self::default();
        }
        let read = || -> rusqlite::Result<Self> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let store = Connection::open_with_flags(&path, flags)?;
            let keys = "SELECT COUNT(*) FROM keys WHERE revoked_ms = 0";
            let newest = "SELECT MAX(started_ms) FROM requests";
            let keys: i64 = store.query_row(keys, [], |row| row.get(0))?;
            let newest: Option<i64> = store.query_row(newest, [], |row| row.get(0))?;
            Ok(Self {
                exists: true,
                problem: None,
                keys: keys.unsigned_abs(),
                newest_ms: newest.and_then(|ms| u64::try_from(ms).ok()),
            })
        };
        read().unwrap_or_else(|error| Self {
            exists: true,
            problem: Some(error.to_string()),
            ..Self::default()
        })
    }
}

/// `open` means that requests are let in without one of our keys.
pub(super) fn keys(store: &StoreFacts, role: Option<Role>, open: bool) -> Check {
    const NAME: &str = "API keys";
    if let Some(problem) = &store.problem {
        let next = "stop the node; at its next start a damaged store is set aside and its keys are saved";
        return Check::bad(NAME, format!("the store cannot be read: {problem}"), next);
    }
    match (store.exists, store.keys) {
        _ if role == Some(Role::Device) => Check::ok(NAME, "a device needs none"),
        (false, _) => Check::ok(NAME, "the first start makes one and shows it"),
        (true, 0) if open => Check::ok(NAME, "none of Shoal's own, and others are accepted"),
        (true, 0) => Check::warn(NAME, "none is valid, so nobody can send a request", "`shoal keys create`"),
        (true, 1) => Check::ok(NAME, "one is valid"),
        (true, n) => Check::ok(NAME, format!("{n} are valid")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;
    use crate::store::{KeyRing, Store};

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable(dir.path()).verdict, Verdict::Ok);
        let later = dir.path().join("a/b");
        let check = writable(&later);
        assert!(check.verdict == Verdict::Ok && check.cause.contains("will be made"), "{check:?}");
        assert!(!later.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(writable(&file).verdict, Verdict::Bad);
        assert!(free_bytes(&later).is_none_or(|free| free > 0));
    }

    #[test]
    fn room_is_judged_by_what_comes_next() {
        for (free, verdict) in [
            (None, Verdict::Ok),
            (Some(0), Verdict::Bad),
            (Some(LEAST_FREE), Verdict::Warn),
            (Some(MODEL_ROOM), Verdict::Ok),
        ] {
            assert_eq!(disk(free).verdict, verdict, "{free:?}");
        }
    }

    #[test]
    fn a_held_lock_without_an_answer_is_bad_for_a_router_only() {
        for (held, answers, role, verdict) in [
            (None, false, None, Verdict::Ok),
            (Some(false), false, Some(Role::Router), Verdict::Ok),
            (Some(true), true, Some(Role::Router), Verdict::Ok),
            (Some(true), false, Some(Role::Router), Verdict::Bad),
            (Some(true), false, Some(Role::Device), Verdict::Ok),
        ] {
            assert_eq!(lock(held, answers, role).verdict, verdict, "{held:?} {answers} {role:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(is_held(dir.path()), None);
        let holder = crate::node::lock_data_dir(dir.path()).unwrap();
        assert_eq!(is_held(dir.path()), Some(true));
        drop(holder);
        assert_eq!(is_held(dir.path()), Some(false));
        assert!(crate::node::lock_data_dir(dir.path()).is_ok(), "the doctor held on to the lock");
    }

    #[test]
    fn valid_keys_are_counted_in_a_store_that_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!StoreFacts::read(dir.path()).exists);
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        assert_eq!(keys(&StoreFacts::read(dir.path()), None, false).verdict, Verdict::Warn);
        let key = ring.create("laptop", false, None).unwrap();
        ring.create("phone", false, None).unwrap();
        ring.revoke(&key.record.id).unwrap();
        let facts = StoreFacts::read(dir.path());
        assert_eq!((facts.keys, &facts.problem, facts.newest_ms), (1, &None, None));
        assert_eq!(keys(&facts, None, false).verdict, Verdict::Ok);
    }

    #[test]
    fn a_damaged_store_is_told_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.db");
        std::fs::write(&path, [7; 4096]).unwrap();
        let facts = StoreFacts::read(dir.path());
        assert_eq!(keys(&facts, None, false).verdict, Verdict::Bad);
        assert_eq!(std::fs::read(&path).unwrap(), [7; 4096]);
    }
}
