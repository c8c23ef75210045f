//! The mesh under test: routers that dial each other through proxies, devices with stub engines, one provider.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    node::{Api, Device, Node},
    process::{Process, Scratch, free_tcp, free_udp},
    proxy::{Links, TcpProxy, UdpProxy},
    wait::{PATIENCE, until},
};
use crate::{
    http_client,
    stub::{self, Kind, Options, Stub},
};

/// Model that every device serves.
pub(super) const SHARED: &str = "stub-a";
/// Model of the first router's own engine, which others reach through that router alone.
pub(super) const OWN: &str = "stub-own";
/// The provider's model.
pub(super) const CLOUD: &str = "cloud/gpt-stub";
/// In every prompt that must not leave; counted in what the provider is sent.
pub(super) const CANARY: &str = "canary-9f3a-stays-here";
/// In prompts that may leave: shows that a leak would be seen.
pub(super) const CONTROL: &str = "control-51d7-may-leave";
/// The provider's key; never to be seen anywhere but in its requests.
const PROVIDER_KEY: &str = "sk-chaos-provider";
/// Requests that an engine serves at once; above what a scene asks for, unless it is about that.
const SLOTS: usize = 64;
/// Cap on one request, its stream included.
const REQUEST_CAP: Duration = Duration::from_secs(120);
/// Uses of each join token.
const USES: u32 = 32;

/// What to build.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) bin: PathBuf,
    /// Another program for every second router and device.
    pub(super) other_bin: Option<PathBuf>,
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) devices: usize,
    /// Slots of the first router's own engine.
    pub(super) own_slots: usize,
    /// Lines of the first router's configuration beside the provider.
    pub(super) more_config: String,
}

impl Shape {
    /// The program of a router or device, by its place.
    pub(super) fn bin_of(&self, at: usize) -> &PathBuf {
        self.other_bin.as_ref().filter(|_| !at.is_multiple_of(2)).unwrap_or(&self.bin)
    }
}

/// A running mesh; everything of it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) shape: Shape,
    pub(super) links: Arc<Links>,
    pub(super) api: Api,
    pub(super) nodes: Vec<Node>,
    pub(super) devices: Vec<Device>,
    /// The first router's own engine.
    pub(super) own: Stub,
    _own_engine: TcpProxy,
    pub(super) cloud: Stub,
    pub(super) cloud_line: TcpProxy,
    pub(super) folder: Scratch,
}

impl Mesh {
    /// Starts everything and waits until every router sees all of it.
    pub(super) async fn start(shape: Shape) -> Result<Self> {
        let folder = Scratch::make()?;
        let links = Arc::new(Links::new(shape.seed));
        let mut http = Api { http: http_client::build(REQUEST_CAP)?, key: String::new() };
        let own = stub(OWN, Kind::LlamaCpp, shape.own_slots, None).await?;
        let own_engine = TcpProxy::start(links.clone(), "n1", "own", own.address(), Vec::new()).await?;
        let cloud = stub("gpt-stub", Kind::Openai, SLOTS, Some(PROVIDER_KEY)).await?;
        let needles = vec![CANARY.to_owned(), CONTROL.to_owned()];
        let cloud_line = TcpProxy::start(links.clone(), "n1", "cloud", cloud.address(), needles).await?;

        let place = |role: &str| folder.path().join(format!("{role}.token"));
        let config = folder.path().join("shoal.toml");
        std::fs::write(folder.path().join("key"), PROVIDER_KEY)?;
        std::fs::write(
            &config,
            format!(
                "version = 1\n{}\n[[providers]]\nname = \"cloud\"\nbase_url = \"{}/v1\"\nkey_file = \"{}\"\nmodels = [\"gpt-stub\"]\nbudget = \"1usd/day\"\n[[prices]]\nprovider = \"cloud\"\nmodel = \"gpt-stub\"\ninput = 1.0\noutput = 2.0\n",
                shape.more_config,
                cloud_line.url(),
                folder.path().join("key").display(),
            ),
        )?;
        let mut first = vec!["--config".to_owned(), config.display().to_string()];
        first.extend(["--device".to_owned(), own_engine.url()]);
        for role in ["device", "router"] {
            first.extend(["--write-token".to_owned(), format!("{role}:{}:{USES}", place(role).display())]);
        }
        let mut nodes = vec![node(&links, &folder, "n1", "up", first).await?];
        nodes[0].start(&shape.bin, None)?;
        nodes[0].ready(&http.http).await?;
        let (key, _) = until("an API key printed", PATIENCE, async || printed_key(&nodes[0].text())).await?;
        http.key = key;
        until("tokens written", PATIENCE, async || {
            ["device", "router"].iter().all(|role| place(role).is_file()).then_some(())
        })
        .await?;

        let mut mesh = Self {
            shape,
            links,
            api: http,
            nodes,
            devices: Vec::new(),
            own,
            _own_engine: own_engine,
            cloud,
            cloud_line,
            folder,
        };
        let (router, device) = (mesh.token("router"), mesh.token("device"));
        for at in 1..mesh.shape.nodes {
            let mut node =
                node(&mesh.links, &mesh.folder, &format!("n{}", at + 1), "join", Vec::new()).await?;
            node.start(mesh.shape.bin_of(at), Some(&router))?;
            mesh.nodes.push(node);
        }
        for at in 0..mesh.shape.devices {
            let stub = stub(SHARED, Kind::LlamaCpp, SLOTS, None).await?;
            let mut device_ = mesh.device(&format!("d{}", at + 1), stub).await?;
            device_.start(mesh.shape.bin_of(at), Some(&device))?;
            mesh.devices.push(device_);
        }
        mesh.whole().await?;
        Ok(mesh)
    }

    /// Starts one more device, with an engine of another kind and other models.
    pub(super) async fn add_device(&mut self, name: &str, kind: Kind, models: &[&str]) -> Result<()> {
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        let options = Options { models, kind, slots: SLOTS, ..stub::Options::default() };
        let stub = Stub::start(options).await.context("starting a stub")?;
        let mut device = self.device(name, stub).await?;
        device.start(&self.shape.bin, Some(&self.token("device")))?;
        self.devices.push(device);
        Ok(())
    }

    /// Starts a device's agent alone, for an engine elsewhere; it ends with its guard.
    pub(super) fn add_agent(&self, name: &str, engine: &str) -> Result<Process> {
        let (folder, port) = (self.folder.path().join(name), free_udp()?);
        self.links.name(port, name);
        let mut args = vec!["join".to_owned(), self.token("device")];
        args.extend(device_args(name, &folder, Some(port), engine));
        Process::start(&self.shape.bin, &folder, &args, &[])
    }

    /// The join token of a role, as `join` takes it.
    fn token(&self, role: &str) -> String {
        format!("@{}", self.folder.path().join(format!("{role}.token")).display())
    }

    async fn device(&self, name: &str, stub: Stub) -> Result<Device> {
        let place = format!("{name}-engine");
        let engine = TcpProxy::start(self.links.clone(), name, &place, stub.address(), Vec::new()).await?;
        let folder = self.folder.path().join(name);
        let port = free_udp()?;
        self.links.name(port, name);
        let args = device_args(name, &folder, Some(port), &engine.url());
        Ok(Device { name: name.to_owned(), folder, process: None, args, env: Vec::new(), stub, engine })
    }

    /// Waits until every running router sees every running one, all running devices, and both local models.
    pub(super) async fn whole(&mut self) -> Result<()> {
        let names: Vec<String> = self.nodes.iter().filter(|n| n.is_up()).map(|n| n.name.clone()).collect();
        let devices: Vec<&str> =
            self.devices.iter().filter(|d| d.process.is_some()).map(|d| d.name.as_str()).collect();
        for node in self.nodes.iter_mut().filter(|node| node.is_up()) {
            node.ready(&self.api.http).await?;
        }
        for node in self.nodes.iter().filter(|node| node.is_up()) {
            let (api, url) = (&self.api, &node.url);
            let what = format!("{} sees {names:?} and {devices:?}", node.name);
            let ready = until(&what, PATIENCE, async || {
                let seen = api.devices(url, false).await?;
                let models = api.get(url, "/v1/models").await?;
                let lists =
                    |id: &str| models["data"].as_array().is_some_and(|all| all.iter().any(|m| m["id"] == id));
                let whole = api.alive(url).await? == names
                    && devices.iter().all(|device| seen.iter().any(|one| one == device))
                    && (devices.is_empty() || lists(SHARED))
                    && (!names.contains(&"n1".to_owned()) || lists(OWN));
                whole.then_some(())
            });
            ready.await?;
        }
        self.note_generations().await;
        Ok(())
    }

    /// Remembers the generation of each router as the mesh sees it.
    async fn note_generations(&mut self) {
        let Some(from) = self.nodes.iter().find(|node| node.is_up()).map(|node| node.url.clone()) else {
            return;
        };
        let Some(view) = self.api.get(&from, "/shoal/v1/nodes").await else { return };
        for seen in view["nodes"].as_array().into_iter().flatten() {
            let node = self.nodes.iter_mut().find(|node| seen["name"] == node.name.as_str());
            if let (Some(node), Some(generation)) = (node, seen["generation"].as_u64())
                && node.generations.last() != Some(&generation)
            {
                node.generations.push(generation);
            }
        }
    }

    /// Starts a router or device again that was ended.
    pub(super) async fn resume_node(&mut self, at: usize) -> Result<Duration> {
        let bin = self.shape.bin_of(at).clone();
        self.nodes[at].start(&bin, None)?;
        self.nodes[at].ready(&self.api.http).await
    }

    pub(super) fn resume_device(&mut self, at: usize) -> Result<()> {
        let bin = self.shape.bin_of(at).clone();
        self.devices[at].start(&bin, None)
    }

    /// Base URLs of the running routers.
    pub(super) fn urls(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| node.is_up()).map(|node| node.url.clone()).collect()
    }

    /// Every stub that serves models of the mesh, by the name under which answers tell it.
    pub(super) fn stubs(&self) -> impl Iterator<Item = (&str, &Stub)> {
        let devices = self.devices.iter().map(|device| (device.name.as_str(), &device.stub));
        devices.chain([("own", &self.own)])
    }

    /// Ends all processes at once, devices first.
    pub(super) fn close(mut self) {
        self.devices.iter_mut().for_each(Device::kill);
        self.nodes.iter_mut().for_each(Node::kill);
    }
}

/// Arguments of a device agent after `join` and its token.
pub(super) fn device_args(name: &str, folder: &Path, mesh: Option<SocketAddr>, engine: &str) -> Vec<String> {
    let data = folder.join("data").display().to_string();
    let mut args: Vec<String> =
        ["--data-dir", &data, "--name", name, "--engine", engine, "--follow-stdin"].map(str::to_owned).into();
    if let Some(port) = mesh {
        args.extend(["--mesh".to_owned(), port.to_string()]);
    }
    args
}

/// A stub on a free port.
pub(super) async fn stub(model: &str, kind: Kind, slots: usize, key: Option<&str>) -> Result<Stub> {
    let options = Options {
        models: vec![model.to_owned()],
        kind,
        slots,
        key: key.map(str::to_owned),
        ..stub::Options::default()
    };
    Stub::start(options).await.context("starting a stub")
}

/// A router with its proxy, not started yet.
pub(super) async fn node(
    links: &Arc<Links>,
    scratch: &Scratch,
    name: &str,
    command: &'static str,
    more: Vec<String>,
) -> Result<Node> {
    let (listen, mesh) = (free_tcp()?, free_udp()?);
    links.name(mesh, name);
    let proxy = UdpProxy::start(links.clone(), name, mesh).await?;
    let folder = scratch.path().join(name);
    let mut args: Vec<String> = [
        ("--data-dir", folder.join("data").display().to_string()),
        ("--listen", listen.to_string()),
        ("--mesh", mesh.to_string()),
        ("--advertise", proxy.addr().to_string()),
        ("--name", name.to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    args.extend(["--no-detect".to_owned(), "--follow-stdin".to_owned()]);
    args.extend(more);
    Ok(Node {
        name: name.to_owned(),
        folder,
        url: format!("http://{listen}"),
        mesh,
        proxy,
        process: None,
        args,
        command,
        env: Vec::new(),
        generations: Vec::new(),
    })
}

/// The API key in what a first start prints.
pub(super) fn printed_key(text: &str) -> Option<String> {
    let at = text.find("sk-shoal-")?;
    let key: String =
        text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    Some(key)
}
