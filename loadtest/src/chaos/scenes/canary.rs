//! What must not leave: searched in everything that the provider was sent and that the mesh left behind.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::json;

use super::super::{
    Context, Samples,
    load::{self, Ask, End},
    mesh::{CANARY, CLOUD, CONTROL, Mesh, SHARED},
    row::Row,
};

/// Largest file that is searched, bytes; a log of a scene is far smaller.
const MAX_FILE: u64 = 64 << 20;

/// Asks for what would leave if it could, under refusing engines, and then searches.
pub(super) async fn search(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let control_before = mesh.cloud_line.seen(CONTROL);
    let (mut samples, mut denied) = (Vec::new(), 0);
    let url = |mesh: &Mesh, at: usize| mesh.nodes[at % mesh.nodes.len()].url.clone();
    for at in 0..context.pick(30, 2_000) {
        // By name, by choice, and as what a broken device would escalate to.
        let (model, script) = match at % 4 {
            0 => (CLOUD, "n=2"),
            1 => ("auto", "n=2"),
            2 => ("auto:best", "n=2 err=500"),
            _ => (SHARED, "n=20 cut=2"),
        };
        let request = Ask { restricted: true, ..Ask::new(model, script, at % 2 == 0) };
        let sample = load::ask(&mesh.api, &url(mesh, at), &request).await;
        denied += usize::from(model == CLOUD && sample.end() == End::Error);
        samples.push(sample);
    }
    // The same words without the class do leave: a leak would have been seen.
    let text = format!("{CONTROL} please [[stub n=2]]");
    let body = json!({"model": CLOUD, "messages": [{"role": "user", "content": text}]});
    let sent = mesh
        .api
        .http
        .post(format!("{}/v1/chat/completions", mesh.nodes[0].url))
        .bearer_auth(&mesh.api.key)
        .json(&body);
    let status = sent.send().await?.status();
    if mesh.cloud_line.seen(CONTROL) <= control_before {
        bail!(
            "the control was not seen at the provider (status {status}), so a leak would not be seen either"
        );
    }
    let asked = context.restricted + samples.len();
    let mut files = Vec::new();
    collect(mesh.folder.path(), &mut files);
    let mut holding = Vec::new();
    for file in &files {
        if std::fs::metadata(file).is_ok_and(|meta| meta.len() <= MAX_FILE)
            && std::fs::read(file).is_ok_and(|bytes| holds(&bytes, CANARY.as_bytes()))
        {
            holding.push(file.display().to_string());
        }
    }
    row.note(format!(
        "{asked} restricted requests over all scenes; {} files of the mesh searched",
        files.len()
    ));
    for file in holding.iter().take(3) {
        row.note(format!("the canary is in {file}"));
    }
    row.least("restricted requests under faults", asked, context.pick(25, 10_000));
    row.most(
        "canaries sent to the provider",
        usize::try_from(mesh.cloud_line.seen(CANARY)).unwrap_or(usize::MAX),
        0,
    );
    row.most("files (logs, data) that hold a canary", holding.len(), 0);
    row.least("requests for the provider's model refused", denied, samples.len().div_ceil(4));
    Ok(samples)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            // Sockets hold nothing.
            _ => {}
        }
    }
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
