//! The matrix: every wrong of [`table`], streamed or not, before and after content, with and without another upstream.
//!
//! The stub counts each cell's requests: a fault that was never injected cannot pass for one that was survived.

mod cell;
mod table;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt, stream};

use self::{
    cell::{Cell, Others, Phase},
    table::BEHAVIOURS,
};
use super::{
    Context,
    mesh::{self, device_args},
    node::{Api, Node},
    process::{Process, Scratch},
    proxy::Links,
    row::Row,
    wait::{PATIENCE, until},
};
use crate::{
    http_client,
    stub::{Kind, Options, Stub, faults::Ledger},
};

/// Models by turns: so many that no breaker opens, so few that a device can announce them.
const MODELS: usize = 20;
/// Behaviours played at once: their waits overlap, and two processors are not overrun.
const AT_ONCE: usize = 8;
/// Waits of the routers under test, so that silence is told in seconds.
const WAITS: [(&str, &str); 2] =
    [("SHOAL_LIMITS__FIRST_BYTE_S", "1"), ("SHOAL_LIMITS__BETWEEN_CHUNKS_S", "1")];

/// The mesh of this scene: two devices that serve the models of pairs, and a router's own engine with the others.
struct Rig {
    api: Api,
    nodes: Vec<Node>,
    devices: Vec<Process>,
    stubs: [Stub; 3],
    _scratch: Scratch,
}

async fn engine(others: Others, ledger: &Arc<Ledger>) -> Result<Stub> {
    let models = (0..MODELS).map(|number| others.model(number)).collect();
    let options =
        Options { models, kind: Kind::LlamaCpp, slots: 64, ledger: Arc::clone(ledger), ..Options::default() };
    Ok(Stub::start(options).await?)
}

impl Rig {
    async fn start(context: &Context) -> Result<Self> {
        let scratch = Scratch::make()?;
        let links = Arc::new(Links::new(context.seed));
        let ledger = Arc::new(Ledger::default());
        let stubs = [
            engine(Others::Pair, &ledger).await?,
            engine(Others::Pair, &ledger).await?,
            engine(Others::Solo, &ledger).await?,
        ];
        let place = |role: &str| scratch.path().join(format!("{role}.token"));
        let mut more = vec!["--device".to_owned(), stubs[2].url()];
        for role in ["device", "router"] {
            more.extend(["--write-token".to_owned(), format!("{role}:{}:4", place(role).display())]);
        }
        let mut api = Api { http: http_client::build(PATIENCE)?, key: String::new() };
        let mut first = mesh::node(&links, &scratch, "n1", "up", more).await?;
        first.env = WAITS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        first.start(&context.bin, None)?;
        first.ready(&api.http).await?;
        let (key, _) =
            until("an API key printed", PATIENCE, async || mesh::printed_key(&first.text())).await?;
        api.key = key;
        let token = |role: &str| format!("@{}", place(role).display());
        until("tokens", PATIENCE, async || {
            ["device", "router"].iter().all(|role| place(role).is_file()).then_some(())
        })
        .await?;
        let mut nodes = vec![first];
        if context.full {
            // Once more through a router that has none of the engines itself.
            let mut peer = mesh::node(&links, &scratch, "n2", "join", Vec::new()).await?;
            peer.env.clone_from(&nodes[0].env);
            peer.start(&context.bin, Some(&token("router")))?;
            peer.ready(&api.http).await?;
            nodes.push(peer);
        }
        let mut devices = Vec::new();
        for (name, stub) in ["d1", "d2"].into_iter().zip(&stubs) {
            let folder = scratch.path().join(name);
            let mut args = vec!["join".to_owned(), token("device")];
            args.extend(device_args(name, &folder, None, &stub.url()));
            devices.push(Process::start(&context.bin, Path::new(&folder), &args, &[])?);
        }
        let rig = Self { api, nodes, devices, stubs, _scratch: scratch };
        for node in &rig.nodes {
            until("every model on its hosts", PATIENCE, async || rig.is_whole(&node.url).await.then_some(()))
                .await?;
        }
        Ok(rig)
    }

    /// A model that one host lists is not enough for a pair.
    async fn is_whole(&self, url: &str) -> bool {
        let view = self.api.get(url, "/shoal/v1/devices").await.unwrap_or_default();
        let has = |name: &str| {
            let device =
                view["devices"].as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
            device.and_then(|one| one["models"].as_array()).is_some_and(|models| models.len() == MODELS)
        };
        ["d1", "d2", "n1"].into_iter().all(has)
    }
}

/// Plays all cells.
pub(super) async fn play(context: &Context, row: &mut Row) -> Result<()> {
    let mut rig = Rig::start(context).await?;
    let mut results = Vec::new();
    // Who asks for fewer requests is left alone for a while, and with it everything that it serves: by itself, last.
    for (throttles, at_once) in [(false, AT_ONCE), (true, 1)] {
        let mut turns = Vec::new();
        for (route, node) in rig.nodes.iter().enumerate() {
            let behaviours = BEHAVIOURS.iter().enumerate().filter(|(_, one)| one.throttles == throttles);
            turns.extend(behaviours.map(|(at, one)| (route, node.url.clone(), at % MODELS, one)));
        }
        let played: Vec<Vec<(Cell, Result<(), String>)>> = stream::iter(turns)
            .map(|(route, url, model, behaviour)| {
                let rig = &rig;
                async move { cell::play(&rig.api, &url, (route, model), behaviour, &rig.stubs).await }
            })
            .buffer_unordered(at_once)
            .collect()
            .await;
        results.extend(played.into_iter().flatten());
    }
    report(row, results);
    let (mut open, mut panics) = (0, 0);
    for node in &rig.nodes {
        let status =
            rig.api.get(&node.url, "/shoal/v1/status").await.context("the routers answer after all of it")?;
        open += status["requests"]["in_flight"].as_u64().unwrap_or(99) as usize;
        panics += usize::from(node.text().contains("panicked at"));
    }
    row.most("requests left in flight", open, 0);
    row.most("panics", panics, 0);
    for device in &mut rig.devices {
        device.must_live().context("a device after all of it")?;
    }
    Ok(())
}

fn report(row: &mut Row, results: Vec<(Cell, Result<(), String>)>) {
    let total = results.len();
    let mut by_phase: BTreeMap<&str, usize> = BTreeMap::new();
    for (cell, _) in &results {
        *by_phase
            .entry(match cell.phase {
                Phase::Whole => "not streamed",
                Phase::Before => "before content",
                Phase::After => "after content",
            })
            .or_default() += 1;
    }
    let phases: Vec<String> = by_phase.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    row.note(format!("{} behaviours, {total} cells: {}", BEHAVIOURS.len(), phases.join(", ")));
    let wrong: Vec<String> = results
        .iter()
        .filter_map(|(cell, result)| result.as_ref().err().map(|what| format!("{cell}: {what}")))
        .collect();
    row.least("cells as specified", total - wrong.len(), total);
    row.broken.extend(wrong);
}
