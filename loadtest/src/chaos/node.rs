//! A router and a device of the mesh under test, and what a client asks a router.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use reqwest::Client;
use rustix::process::Signal;
use serde_json::Value;

use super::{
    process::Process,
    proxy::{TcpProxy, UdpProxy},
    wait::{PATIENCE, until},
};
use crate::stub::Stub;

/// Longest wait for a view of a node; one that is stopped answers nothing.
const VIEW_WAIT: Duration = Duration::from_secs(5);

/// A router node: its process, and the proxy at which all others dial it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    /// Base URL of its API.
    pub(super) url: String,
    /// Its own mesh port, from which it dials.
    pub(super) mesh: SocketAddr,
    pub(super) proxy: UdpProxy,
    pub(super) process: Option<Process>,
    /// Arguments after the command's name, without the first start's token.
    pub(super) args: Vec<String>,
    /// `up` or `join`.
    pub(super) command: &'static str,
    pub(super) env: Vec<(String, String)>,
    /// Generations that the mesh has seen of it, in the order of its starts.
    pub(super) generations: Vec<u64>,
}

impl Node {
    /// Starts the process, with a join token the first time.
    pub(super) fn start(&mut self, bin: &Path, token: Option<&str>) -> Result<()> {
        let mut args = vec![self.command.to_owned()];
        args.extend(token.map(str::to_owned));
        args.extend(self.args.iter().cloned());
        self.process = Some(Process::start(bin, &self.folder, &args, &self.env)?);
        Ok(())
    }

    pub(super) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM; true when it ended by itself.
    pub(super) async fn stop(&mut self, within: Duration) -> Result<bool> {
        match self.process.take() {
            Some(mut process) => process.stop(within).await,
            None => Ok(true),
        }
    }

    /// Waits until it answers that it is ready.
    pub(super) async fn ready(&mut self, client: &Client) -> Result<Duration> {
        let url = format!("{}/readyz", self.url);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            self.process.as_mut().context("a stopped node cannot become ready")?.must_live()?;
            let answer = client.get(&url).timeout(VIEW_WAIT).send().await;
            if answer.is_ok_and(|answer| answer.status() == 200) {
                return Ok(started.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("{} was not ready within {} s", self.name, PATIENCE.as_secs())
    }

    /// What a node writes to the terminal.
    pub(super) fn text(&self) -> String {
        std::fs::read(self.folder.join("output.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

/// A device: its agent, and its engine behind a proxy of its own.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) process: Option<Process>,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) stub: Stub,
    pub(super) engine: TcpProxy,
}

impl Device {
    pub(super) fn start(&mut self, bin: &Path, token: Option<&str>) -> Result<()> {
        let mut args = vec!["join".to_owned()];
        args.extend(token.map(str::to_owned));
        args.extend(self.args.iter().cloned());
        self.process = Some(Process::start(bin, &self.folder, &args, &self.env)?);
        Ok(())
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the device runs")?.signal(signal)
    }
}

/// A client of the API, cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Api {
    pub(super) http: Client,
    pub(super) key: String,
}

impl Api {
    /// A JSON view, or `None` when the node does not answer it.
    pub(super) async fn get(&self, url: &str, path: &str) -> Option<Value> {
        let request = self.http.get(format!("{url}{path}")).bearer_auth(&self.key).timeout(VIEW_WAIT);
        let answer = request.send().await.ok()?;
        if answer.status() != 200 { None } else { answer.json().await.ok() }
    }

    /// Names of the nodes that this one takes for alive.
    pub(super) async fn alive(&self, url: &str) -> Option<Vec<String>> {
        let view = self.get(url, "/shoal/v1/nodes").await?;
        let nodes = view["nodes"].as_array()?.iter().filter(|node| node["alive"] == true);
        let mut names: Vec<String> =
            nodes.filter_map(|node| node["name"].as_str()).map(str::to_owned).collect();
        names.sort();
        Some(names)
    }

    /// Names of the devices that this node sees; with `direct`, those linked to it.
    pub(super) async fn devices(&self, url: &str, direct: bool) -> Option<Vec<String>> {
        let view = self.get(url, "/shoal/v1/devices").await?;
        let devices = view["devices"].as_array()?.iter().filter(|one| !direct || one["direct"] == true);
        Some(devices.filter_map(|one| one["name"].as_str()).map(str::to_owned).collect())
    }

    /// One sample of the node's metrics, summed over its labels that contain `label`; `None` without an answer.
    pub(super) async fn metric(&self, url: &str, name: &str, label: &str) -> Option<f64> {
        let request = self.http.get(format!("{url}/metrics")).bearer_auth(&self.key).timeout(VIEW_WAIT);
        let text = request.send().await.ok()?.text().await.ok()?;
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (series_name, labels) = series.split_once('{').unwrap_or((series, ""));
            if series_name == name && labels.contains(label) {
                sum += value.parse::<f64>().unwrap_or(0.0);
            }
        }
        Some(sum)
    }

    /// Waits until nothing is in progress at a node.
    pub(super) async fn idle(&self, url: &str, within: Duration) -> Result<Duration> {
        let what = format!("nothing in flight at {url}");
        let look = async || {
            let status = self.get(url, "/shoal/v1/status").await?;
            (status["requests"]["in_flight"] == 0).then_some(())
        };
        Ok(until(&what, within, look).await?.1)
    }
}
