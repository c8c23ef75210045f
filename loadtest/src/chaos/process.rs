//! Programs under test: started with a clean environment, ended by their own process id, never by a name.
//!
//! A program ends when its guard is dropped, and also when this process dies by any means: it holds the other end
//! of the program's standard input, which the program follows (`--follow-stdin`).

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Bytes of a program's output that are shown when it fails.
const SHOWN_OUTPUT: usize = 2_000;

/// A running program.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    output: PathBuf,
    ended: bool,
}

impl Process {
    /// Starts a program that writes to `output.log` in `folder`.
    pub(super) fn start(
        bin: &Path,
        folder: &Path,
        args: &[String],
        env: &[(String, String)],
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let output = folder.join("output.log");
        let log = File::options().create(true).append(true).open(&output)?;
        let child = command(bin, args, env)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}; name the program with --bin", bin.display()))?;
        Ok(Self { child, output, ended: false })
    }

    /// Process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written.
    pub(super) fn text(&self) -> String {
        std::fs::read(&self.output)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Fails with the end of its output when it has ended.
    pub(super) fn must_live(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.ended = true;
            let text = self.text();
            let at = text.char_indices().rev().nth(SHOWN_OUTPUT).map_or(0, |(at, _)| at);
            bail!("{} ended with {status}:\n{}", self.output.display(), &text[at..]);
        }
        Ok(())
    }

    /// Sends a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, signal).context("sending a signal")
    }

    /// Ends it at once, as a crash does.
    pub(super) fn kill(&mut self) {
        if !self.ended {
            // It may have ended by itself; either way it is awaited, so that no zombie stays.
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.ended = true;
        }
    }

    /// Asks it to end (SIGTERM) and waits; kills it after `within`.
    pub(super) async fn stop(&mut self, within: Duration) -> Result<bool> {
        if self.ended {
            return Ok(true);
        }
        self.signal(Signal::TERM)?;
        let until = Instant::now() + within;
        while Instant::now() < until {
            if self.child.try_wait()?.is_some() {
                self.ended = true;
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.kill();
        Ok(false)
    }

    /// Open descriptors.
    pub(super) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Resident memory, MiB.
    pub(super) fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib =
            line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse::<f64>().ok());
        kib.unwrap_or(0.0) / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped process does not read its standard input; killing works on it, too.
        self.kill();
    }
}

/// A program with a clean environment and these variables.
fn command(bin: &Path, args: &[String], env: &[(String, String)]) -> Command {
    let mut command = Command::new(bin);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_none_or(is_foreign) {
            command.env_remove(name);
        }
    }
    command.args(args).env("NO_COLOR", "1").envs(env.iter().map(|(name, value)| (name, value)));
    command
}

/// Runs a program to its end and returns what it wrote to its standard output, whatever its exit code.
pub(super) async fn output(
    bin: &Path,
    args: &[String],
    env: &[(String, String)],
    within: Duration,
) -> Result<String> {
    let mut command = tokio::process::Command::from(command(bin, args, env));
    let run = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(within, run).await.with_context(|| format!("{args:?} did not end"))??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Variables that would set up a node behind the test's back.
fn is_foreign(name: &str) -> bool {
    ["SHOAL_", "ANDROID_", "LFO_"].iter().any(|start| name.starts_with(start))
        || name.contains("_API_KEY")
        || matches!(name, "MAX_LOCAL_TOKENS" | "PORT")
}

/// A TCP port of loopback that was free a moment ago.
pub(super) fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The same for UDP.
pub(super) fn free_udp() -> Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

/// A folder that is removed with its guard.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes a folder of its own in the system's place for temporary files; its path is short, since sockets lie in it.
    pub(super) fn make() -> Result<Self> {
        let base = std::env::temp_dir();
        for attempt in 0..100_u32 {
            let folder = base.join(format!("chaos-{}-{attempt}", std::process::id()));
            match std::fs::create_dir(&folder) {
                Ok(()) => return Ok(Self(folder)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context("making a folder for the mesh"),
            }
        }
        bail!("no free name for a folder in {}", base.display())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is the system's to clear: it lies among its temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_ended_in_order_at_once_and_with_its_guard() {
        let folder = Scratch::make().unwrap();
        let sleep = || Process::start(Path::new("sleep"), folder.path(), &["60".to_owned()], &[]).unwrap();
        let mut one = sleep();
        one.must_live().unwrap();
        assert!(one.descriptors() > 0);
        assert!(one.stop(Duration::from_secs(10)).await.unwrap());
        assert!(one.must_live().is_err());
        let mut two = sleep();
        two.signal(Signal::STOP).unwrap();
        two.kill();
        let three = sleep();
        let alive = PathBuf::from(format!("/proc/{}", three.pid()));
        assert!(alive.exists());
        drop(three);
        assert!(!alive.exists());
        let place = folder.path().to_owned();
        drop(folder);
        assert!(!place.exists());
    }
}
