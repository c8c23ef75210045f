//! A full disk: a router goes on serving, and keeps what it promised to keep.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::super::{
    Context,
    load::{self, Ask, End},
    mesh::{self, OWN},
    node::Api,
    process::Scratch,
    proxy::{Links, TcpProxy},
    row::Row,
    wait::{PATIENCE, until},
};
use crate::{http_client, stub::Kind};

/// Size of the disk: room for an identity and an empty store, and for little more.
const DISK: &str = "size=4m,mode=0700";

/// A small file system in memory; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Result<Self, rustix::io::Errno> {
        let options = std::ffi::CString::new(DISK).unwrap_or_default();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(Self(at.to_owned()))
    }

    /// Takes every byte that is left.
    fn fill(&self) -> Result<u64> {
        let mut file = std::fs::File::create(self.0.join("filler"))?;
        let (mut written, block) = (0, [0_u8; 4096]);
        while let Ok(size) = file.write(&block) {
            if size == 0 {
                break;
            }
            written += size as u64;
        }
        Ok(written)
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detached at once, and gone when its last file is closed.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// One router on a small disk that fills up while it serves.
pub(super) async fn full(context: &Context, row: &mut Row) -> Result<()> {
    let scratch = Scratch::make()?;
    let data = scratch.path().join("n1").join("data");
    std::fs::create_dir_all(&data)?;
    let disk = match Disk::mount(&data) {
        Ok(disk) => disk,
        Err(error) => {
            row.skipped = Some(format!("no small file system can be mounted here ({error}); run as root"));
            return Ok(());
        }
    };
    let links = Arc::new(Links::new(context.seed));
    let stub = mesh::stub(OWN, Kind::LlamaCpp, 8, None).await?;
    let engine = TcpProxy::start(links.clone(), "n1", "own", stub.address(), Vec::new()).await?;
    let more = vec!["--device".to_owned(), engine.url()];
    let mut node = mesh::node(&links, &scratch, "n1", "up", more).await?;
    let mut api = Api { http: http_client::build(PATIENCE)?, key: String::new() };
    node.start(&context.bin, None)?;
    node.ready(&api.http).await?;
    let (key, _) = until("an API key printed", PATIENCE, async || mesh::printed_key(&node.text())).await?;
    api.key = key;
    let url = node.url.clone();
    until("its model", PATIENCE, async || served(&api, &url).await.then_some(())).await?;
    let identity = api.get(&url, "/shoal/v1/status").await.context("its status")?["node"]["id"].clone();

    let filled = disk.fill()?;
    if filled == 0 {
        bail!("the disk was full before it was filled, so nothing was shown");
    }
    let (mut failed, count) = (0, context.pick(40, 1_000));
    for at in 0..count {
        let sample = load::ask(&api, &url, &Ask::new(OWN, "n=3", at % 2 == 0)).await;
        failed += usize::from(sample.end() != End::Complete);
    }
    // A restart on the full disk: damaged or lost statistics are no reason to refuse.
    let clean = node.stop(Duration::from_secs(20)).await?;
    let kills = context.pick(3, 50);
    let mut refused = 0;
    for _ in 0..kills {
        node.start(&context.bin, None)?;
        match node.ready(&api.http).await {
            Ok(_) => {
                // Killed in the midst of whatever it writes.
                let _ = load::ask(&api, &url, &Ask::new(OWN, "n=1", false)).await;
                node.kill();
            }
            Err(error) => {
                refused += 1;
                row.note(format!("{error:#}"));
                node.kill();
            }
        }
    }
    disk.free()?;
    node.start(&context.bin, None)?;
    node.ready(&api.http).await?;
    until("served after it", PATIENCE, async || served(&api, &url).await.then_some(())).await?;
    let after = api.get(&url, "/shoal/v1/status").await.context("its status")?["node"]["id"].clone();
    row.note(format!("{} KiB were left and taken; {kills} kills on the full disk", filled / 1024));
    row.most("failed requests on a full disk", failed, 0);
    row.least("ended by itself on a full disk", usize::from(clean), 1);
    row.most("starts refused on a full disk", refused, 0);
    row.least("identity and API key kept", usize::from(identity == after), 1);
    row.most("panics", usize::from(node.text().contains("panicked at")), 0);
    node.kill();
    Ok(())
}

async fn served(api: &Api, url: &str) -> bool {
    load::ask(api, url, &Ask::new(OWN, "n=1", false)).await.end() == End::Complete
}
