//! Engines: which run here, which were named and do not answer, and which anybody on the network could use.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Url;
use shoal_cluster::advertise::interfaces;
use tokio::net::TcpStream;

use super::check::Check;
use crate::config::Config;
use crate::device::detect::{self, Cache, EngineKind, Found, ProbeError};
use crate::device::engine::{Engine, EngineStatus};
use crate::device::lfo::{Phone, Place};
use crate::upstream::http_client;

/// Longest wait for a connection to this very machine.
const CONNECT_WAIT: Duration = Duration::from_millis(500);

/// Longest wait for a phone that was named: its own probe takes two seconds.
const PHONE_WAIT: Duration = Duration::from_secs(3);

/// An engine that was looked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    /// Where.
    pub(super) url: String,
    /// What is there.
    pub(super) found: Result<Found, String>,
    /// The user named it, so its absence matters.
    pub(super) named: bool,
    /// Other addresses of this machine on which it answers, too.
    pub(super) exposed: Vec<IpAddr>,
}

/// Looks on loopback and at the engines that the configuration names.
pub(super) async fn find(config: &Config) -> Vec<Seen> {
    let named: Vec<&str> = config.devices.iter().map(|device| device.url.as_str()).collect();
    let named_urls: Vec<Url> = named.iter().filter_map(|url| url.parse().ok()).collect();
    let is_named = |place: &Url| named_urls.iter().any(|url| url.port_or_known_default() == place.port());
    let looked = named.iter().map(|url| look(url, true));
    let places = detect::loopback_places().filter(|place| !is_named(place));
    let places: Vec<Url> = if config.detect { places.collect() } else { Vec::new() };
    let around = places.iter().map(|place| look(place.as_str(), false));
    let (looked, around) = tokio::join!(join_all(looked), join_all(around));
    looked.into_iter().chain(around).filter(|seen| seen.named || seen.found.is_ok()).collect()
}

async fn look(url: &str, named: bool) -> Seen {
    let seen = |found| Seen { url: url.trim_end_matches('/').to_owned(), found, named, exposed: Vec::new() };
    if let Ok(place) = Place::parse(url) {
        return seen(phone(place).await);
    }
    let Ok(base) = url.parse::<Url>() else { return seen(Err("is not a URL".into())) };
    let Ok(client) = http_client::build(http_client::Reach::of(&base)) else {
        return seen(Err("cannot be asked: no HTTP client could be built".into()));
    };
    let found = detect::probe(&client, &base, None, &mut Cache::default()).await;
    let mut seen = seen(found.map_err(|error: ProbeError| error.to_string()));
    let local = matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    if let (Ok(_), true, Some(port)) = (&seen.found, local, base.port_or_known_default()) {
        seen.exposed = exposed(port).await;
    }
    seen
}

async fn phone(place: Place) -> Result<Found, String> {
    let shutdown = tokio_util::sync::CancellationToken::new();
    let name = place.name();
    let started = Phone::new(place).start(shutdown.clone()).map_err(|error| error.to_string())?;
    let Engine { mut status, .. } = started;
    let told = status.wait_for(|status| status.slots > 0 || status.problem.is_some());
    let told =
        tokio::time::timeout(PHONE_WAIT, told).await.ok().and_then(Result::ok).map(|status| status.clone());
    shutdown.cancel();
    match told {
        Some(EngineStatus { models, slots, problem: None, .. }) => {
            Ok(Found { kind: EngineKind::Lfo, models, slots, load: Default::default() })
        }
        Some(EngineStatus { problem: Some(problem), .. }) => {
            Err(problem.strip_prefix(&name).unwrap_or(&problem).trim().to_owned())
        }
        None => Err("did not answer in time".into()),
    }
}

/// Returns the addresses beyond loopback on which this machine takes connections to `port`.
async fn exposed(port: u16) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> =
        interfaces().into_iter().map(|i| i.ip).filter(|ip| !ip.is_loopback()).collect();
    // A link-local address needs a scope that is not known here.
    ips.retain(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    let tries = ips.into_iter().map(|ip| async move {
        let connected = tokio::time::timeout(CONNECT_WAIT, TcpStream::connect((ip, port))).await;
        connected.is_ok_and(|connected| connected.is_ok()).then_some(ip)
    });
    join_all(tries).await.into_iter().flatten().collect()
}

/// Judges the engines, a line for each, or one that there is none.
pub(super) fn check(config: &Config, seen: &[Seen]) -> Vec<Check> {
    let mut checks: Vec<Check> = seen.iter().map(judge).collect();
    if !seen.iter().any(|seen| seen.found.is_ok()) {
        checks.push(if config.embedded {
            Check::ok("engines", "the embedded engine alone")
        } else {
            Check::warn(
                "engines",
                "no engine runs on this machine",
                "start one (Ollama, llama.cpp, LM Studio), or `shoal up --embedded`, or add a device: `shoal token create`",
            )
        });
    }
    checks
}

fn judge(seen: &Seen) -> Check {
    const NAME: &str = "engine";
    let url = &seen.url;
    let found = match &seen.found {
        Ok(found) => found,
        Err(problem) => {
            let next = "start it, or take it out of the configuration";
            return Check::warn(NAME, format!("{url} {problem}"), next);
        }
    };
    let kind = found.kind.as_str();
    let models = match found.models.len() {
        0 => return Check::warn(NAME, format!("{kind} at {url} has no model"), no_model(found.kind)),
        1 => "1 model".to_owned(),
        n => format!("{n} models"),
    };
    if seen.exposed.is_empty() {
        return Check::ok(NAME, format!("{kind} at {url} with {models}"));
    }
    let ips: Vec<String> = seen.exposed.iter().map(ToString::to_string).collect();
    Check::warn(
        NAME,
        format!(
            "{kind} at {url} with {models} also listens on {}: anybody on that network can use it without a key",
            ips.join(", ")
        ),
        match found.kind {
            EngineKind::Ollama => "start it with OLLAMA_HOST=127.0.0.1; the mesh needs no more",
            _ => "let it listen on 127.0.0.1; the mesh needs no more",
        },
    )
}

fn no_model(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::Ollama => "`ollama pull MODEL`",
        _ => "load a model in it",
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::ModelInfo;

    use super::super::check::Verdict;
    use super::*;
    use crate::config::Flags;
    use crate::device::testing;

    fn ollama(models: usize, exposed: &[&str]) -> Seen {
        let model = |n| ModelInfo { id: format!("m{n}"), ..ModelInfo::default() };
        Seen {
            url: "http://127.0.0.1:11434".into(),
            found: Ok(Found {
                kind: EngineKind::Ollama,
                models: (0..models).map(model).collect(),
                slots: 1,
                load: Default::default(),
            }),
            named: false,
            exposed: exposed.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_engine_open_to_the_network_is_told() {
        assert_eq!(judge(&ollama(2, &[])).verdict, Verdict::Ok);
        let open = judge(&ollama(2, &["192.168.1.5"]));
        assert!(open.verdict == Verdict::Warn && open.cause.contains("192.168.1.5"), "{open:?}");
        assert!(open.next.unwrap().contains("OLLAMA_HOST=127.0.0.1"));
        assert_eq!(judge(&ollama(0, &[])).verdict, Verdict::Warn);
    }

    #[test]
    fn no_engine_is_fine_only_with_the_embedded_one() {
        let config = Config::load(Flags::default(), &[]).unwrap();
        assert_eq!(check(&config, &[])[0].verdict, Verdict::Warn);
        assert_eq!(check(&Config { embedded: true, ..config }, &[])[0].verdict, Verdict::Ok);
    }

    #[tokio::test]
    async fn what_was_named_and_is_away_is_told() {
        let nowhere = testing::nowhere().await;
        let phone = format!("lfo+tcp://127.0.0.1:{}", nowhere.port().unwrap());
        let flags = Flags { devices: vec![nowhere.to_string(), phone], no_detect: true, ..Flags::default() };
        let config = Config::load(flags, &[]).unwrap();
        let seen = find(&config).await;
        assert_eq!(seen.len(), 2);
        for check in check(&config, &seen).iter().take(2) {
            assert!(check.verdict == Verdict::Warn && check.cause.contains("does not answer"), "{check:?}");
            assert_eq!(check.cause.matches("127.0.0.1").count(), 1, "{check:?}");
        }
    }
}
