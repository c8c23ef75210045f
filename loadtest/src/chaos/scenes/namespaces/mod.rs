//! Two routers and a phone in network namespaces of their own: a partition of the kernel's, a translation that is
//! forgotten, and an address that changes under a running answer. Where namespaces may not be made, the proxies' scenes
//! (`partition`, `flapping_phone`) show the same from user space.

mod net;

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use self::net::{Door, N1, N2, Net, PHONE, Party};
use super::super::{
    Context,
    load::{self, Ask, End, Sample},
    mesh::{SHARED, printed_key},
    node::Api,
    process::{Process, Scratch},
    row::Row,
    wait::{PATIENCE, until},
};
use crate::{http_client, tasks};

/// Ports within the namespaces; nobody else is there.
const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const ENGINE: &str = "127.0.0.1:9000";
const MESH_PORT: u16 = 7411;
/// Name of the device.
const NAME: &str = "phone";
/// Streams under way while the phone's network changes.
const STREAMS: usize = 4;

/// What runs. Processes end before their namespaces go.
struct World {
    api: Api,
    urls: [String; 2],
    processes: Vec<Process>,
    _doors: [Door; 2],
    net: Net,
    folder: Scratch,
}

/// Plays the three.
pub(super) async fn play(context: &Context, row: &mut Row) -> Result<()> {
    let net = match Net::build() {
        Ok(net) => net,
        Err(error) => {
            row.skipped = Some(format!(
                "no network namespaces can be made here ({error:#}); run as root, with iproute2 and nft"
            ));
            return Ok(());
        }
    };
    let world = World::start(context, net).await?;
    let mut samples = partition(context, &world, row).await?;
    samples.extend(new_mapping(context, &world, row).await?);
    samples.extend(new_address(context, &world, row).await?);
    row.most("wrong answers", load::count(&samples, End::Forbidden), 0);
    let panicked = world.processes.iter().filter(|one| one.text().contains("panicked at")).count();
    row.most("panics", panicked, 0);
    for (what, count) in load::failures(&samples) {
        row.note(format!("{count} x {what}"));
    }
    Ok(())
}

impl World {
    async fn start(context: &Context, net: Net) -> Result<Self> {
        let folder = Scratch::make()?;
        let doors = [Door::open(&net.name(Party::N1), API)?, Door::open(&net.name(Party::N2), API)?];
        let urls = [0, 1].map(|at: usize| format!("http://{}", doors[at].addr));
        let api = Api { http: http_client::build(PATIENCE)?, key: String::new() };
        let mut world = Self { api, urls, processes: Vec::new(), _doors: doors, net, folder };
        let token = |role: &str| world.folder.path().join(format!("{role}.token")).display().to_string();
        let (device, router) = (token("device"), token("router"));
        let writes = [format!("device:{device}:4"), format!("router:{router}:4")];
        let first = ["up", "--write-token", &writes[0], "--write-token", &writes[1]];
        world.router(context, Party::N1, N1, &first)?;
        let (key, _) =
            until("an API key printed", PATIENCE, async || printed_key(&world.processes[0].text())).await?;
        world.api.key = key;
        until("tokens written", PATIENCE, async || {
            [&device, &router].iter().all(|place| Path::new(place).is_file()).then_some(())
        })
        .await?;
        world.router(context, Party::N2, N2, &["join", &format!("@{router}")])?;
        let this = std::env::current_exe().context("finding this program")?;
        world.run(
            Party::Phone,
            "engine",
            &this,
            &[
                "stub",
                "device",
                "--listen",
                ENGINE,
                "--kind",
                "llama.cpp",
                "--model",
                SHARED,
                "--slots",
                "64",
            ],
        )?;
        let engine = format!("http://{ENGINE}");
        world.run(Party::Phone, NAME, &context.bin, &["join", &format!("@{device}"), "--engine", &engine])?;
        for url in &world.urls {
            until("both routers and the phone", PATIENCE, async || {
                let linked = world.api.devices(url, true).await?.iter().any(|one| one == NAME);
                (linked && world.api.alive(url).await?.len() == 2 && world.serves(url).await).then_some(())
            })
            .await?;
        }
        Ok(world)
    }

    fn router(&mut self, context: &Context, party: Party, at: &str, command: &[&str]) -> Result<()> {
        let (mesh, advertised) = (format!("0.0.0.0:{MESH_PORT}"), format!("{at}:{MESH_PORT}"));
        let name = if party == Party::N1 { "n1" } else { "n2" };
        let listen = API.to_string();
        let more = ["--listen", &listen, "--mesh", &mesh, "--advertise", &advertised, "--no-detect"];
        self.run(party, name, &context.bin, &[command, &more].concat())
    }

    /// Starts a program in a namespace; `ip netns exec` becomes the program, so that its process id is the program's.
    fn run(&mut self, party: Party, name: &str, bin: &Path, args: &[&str]) -> Result<()> {
        let folder = self.folder.path().join(name);
        let data = folder.join("data").display().to_string();
        let (namespace, bin) = (self.net.name(party), bin.canonicalize()?.display().to_string());
        let mut words = vec!["netns", "exec", &namespace, &bin];
        words.extend(args);
        if args[0] != "stub" {
            words.extend(["--data-dir", &data, "--name", name, "--follow-stdin"]);
        }
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        self.processes.push(Process::start(Path::new("ip"), &folder, &words, &[])?);
        Ok(())
    }

    async fn serves(&self, url: &str) -> bool {
        load::ask(&self.api, url, &Ask::new(SHARED, "n=2", false)).await.end() == End::Complete
    }

    /// Streams over both routers, each some seconds long; they speak when this returns.
    async fn streams(&self) -> Result<Vec<tokio::task::JoinHandle<Sample>>> {
        let tasks: Vec<_> = (0..STREAMS)
            .map(|at| {
                let (api, url) = (self.api.clone(), self.urls[at % 2].clone());
                let request = Ask::new(SHARED, "n=120 itl=50", true);
                tasks::spawn_named("asked", async move { load::ask(&api, &url, &request).await })
            })
            .collect();
        until("all streams under way", PATIENCE, async || {
            let mut flying = 0;
            for url in &self.urls {
                let status = self.api.get(url, "/shoal/v1/status").await?;
                flying += status["requests"]["in_flight"].as_u64()?;
            }
            (flying >= STREAMS as u64).then_some(())
        })
        .await?;
        Ok(tasks)
    }

    /// Time until both routers have an answer of the phone, each over its own link.
    async fn linked_again(&self) -> Result<Duration> {
        let began = Instant::now();
        for url in &self.urls {
            until("the phone answers again", PATIENCE, async || self.serves(url).await.then_some(())).await?;
        }
        Ok(began.elapsed())
    }
}

async fn finish(tasks: Vec<tokio::task::JoinHandle<Sample>>) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for task in tasks {
        samples.push(task.await.context("a request's task ended early")?);
    }
    Ok(samples)
}

/// The kernel lets nothing pass between the routers; the phone is linked to both.
async fn partition(context: &Context, world: &World, row: &mut Row) -> Result<Vec<Sample>> {
    world.net.part(true)?;
    let cut = Instant::now();
    for url in &world.urls {
        until("each side sees itself alone", PATIENCE, async || {
            (world.api.alive(url).await?.len() == 1).then_some(())
        })
        .await?;
    }
    row.time("each side sees itself alone", cut.elapsed(), Duration::from_secs(5));
    let (mut samples, length) = (Vec::new(), context.secs(3, 60));
    let began = Instant::now();
    while began.elapsed() < length || samples.len() < 20 {
        for url in &world.urls {
            samples.push(load::ask(&world.api, url, &Ask::new(SHARED, "n=3", true)).await);
        }
    }
    let failed = samples.len() - load::count(&samples, End::Complete);
    world.net.part(false)?;
    let healed = Instant::now();
    for url in &world.urls {
        until("both live again", PATIENCE, async || (world.api.alive(url).await?.len() == 2).then_some(()))
            .await?;
    }
    row.time("live set right after the heal", healed.elapsed(), Duration::from_secs(5));
    row.most("failed requests at either side", failed, 0);
    Ok(samples)
}

/// The gateway forgets the phone's ports while it speaks.
async fn new_mapping(context: &Context, world: &World, row: &mut Row) -> Result<Vec<Sample>> {
    let (rounds, mut samples, mut back) = (context.pick(1, 10), Vec::new(), Duration::ZERO);
    for _ in 0..rounds {
        let tasks = world.streams().await?;
        let before = world.net.mapped_ports();
        world.net.forget_mappings()?;
        back = back.max(world.linked_again().await?);
        until("other ports at the gateway", PATIENCE, async || {
            let now = world.net.mapped_ports();
            (!before.is_empty() && !now.is_empty() && now.is_disjoint(&before)).then_some(())
        })
        .await?;
        samples.extend(finish(tasks).await?);
    }
    row.least(
        "streams that survive a forgotten translation",
        load::count(&samples, End::Complete),
        samples.len(),
    );
    row.time("the phone answers after it", back, Duration::from_secs(2));
    Ok(samples)
}

/// The phone gets another address while it speaks.
async fn new_address(context: &Context, world: &World, row: &mut Row) -> Result<Vec<Sample>> {
    let (rounds, mut samples, mut back) = (context.pick(1, 10), Vec::new(), Duration::ZERO);
    for round in 0..rounds {
        let tasks = world.streams().await?;
        world.net.move_phone(PHONE[round % 2], PHONE[(round + 1) % 2])?;
        back = back.max(world.linked_again().await?);
        samples.extend(finish(tasks).await?);
    }
    let survived = load::count(&samples, End::Complete);
    row.note(format!("another address: {survived} of {} streams survived", samples.len()));
    row.time("the phone answers after another address", back, Duration::from_secs(2));
    row.least(
        "streams that survived it or said that they did not",
        survived + load::count(&samples, End::Error),
        samples.len(),
    );
    Ok(samples)
}
