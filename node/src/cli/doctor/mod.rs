//! `shoal doctor`: what is wrong on this machine, why, and the command that mends it.
//!
//! Works with and without a running node. Each check is a small function from facts to a verdict, and the facts are
//! gathered beside it, so that a verdict can be tested without the trouble it is about. Nothing is changed: the
//! store is opened read-only, a lock is let go at once, and a probe sends nothing that a server would act on.

mod check;
mod clock;
mod engines;
mod live;
mod machine;
mod models;
mod network;
mod place;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;
use shoal_cluster::Identity;

use self::check::{Check, Verdict};
use self::clock::Times;
use self::live::Live;
use super::args::DoctorArgs;
use super::client::{NodeClient, POINTER_FILE};
use super::exit::{CliError, Exit};
use super::show;
use super::up::identity_dir;
use crate::config::{Config, Flags};

/// Runs `shoal doctor`: exit code 0 when nothing is bad, 1 otherwise.
pub(super) async fn run(args: &DoctorArgs, env: &[(String, String)]) -> Result<(), CliError> {
    let flags =
        Flags { config: args.config.clone(), data_dir: args.client.data_dir.clone(), ..Flags::default() };
    let checks = match Config::load(flags, env) {
        Ok(config) => examine(args, config).await,
        Err(error) => {
            let next = "correct it, then `shoal config check`";
            vec![Check::bad("configuration", error.to_string(), next), machine::processor()]
        }
    };
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (bad, warn) = (count(Verdict::Bad), count(Verdict::Warn));
    if args.client.json {
        show::json(&json!({
            "healthy": bad == 0, "bad": bad, "warn": warn, "ok": count(Verdict::Ok), "checks": checks,
        }));
    } else {
        print(&checks, bad, warn);
    }
    if bad == 0 {
        return Ok(());
    }
    Err(CliError::new(Exit::Failure, format!("{bad} of {} checks are bad", checks.len())))
}

async fn examine(args: &DoctorArgs, config: Config) -> Vec<Check> {
    let dir = home_of(&config.data_dir);
    let live = match NodeClient::find(&args.client) {
        Ok(client) => Live::ask(&client).await,
        Err(_) => None,
    };
    let identity = Identity::load(&identity_dir(&dir));
    let role = identity.as_ref().ok().and_then(Option::as_ref).map(Identity::role);
    let store = place::StoreFacts::read(&dir);
    let local_node = live.as_ref().filter(|_| args.client.url.is_none());

    let mut checks = vec![
        Check::ok("configuration", format!("read; the data directory is {}", config.data_dir.display())),
        place::writable(&dir),
        place::disk(place::free_bytes(&dir)),
        place::lock(place::is_held(&dir), local_node.is_some(), role),
        network::api_port(&network::api(&config, local_node).await, config.listen, config.listen_chosen),
        network::api_tls(&config, SystemTime::now()),
        network::mesh_port(&network::mesh(&config, local_node).await, config.mesh_listen, config.mesh_chosen),
        network::interfaces(config.mesh_listen, &shoal_cluster::advertise::interfaces(), &config.advertise),
    ];
    checks.extend(engines::check(&config, &engines::find(&config).await));
    checks.push(models::check(&config, &models::find(&config, &dir)));
    checks.push(place::keys(&store, role, config.no_auth || config.lfo.is_some()));
    let times = Times::gather(identity.as_ref().ok().and_then(Option::as_ref), &store, live.as_ref());
    checks.push(clock::clock(&times));
    checks.push(match &identity {
        Ok(_) => clock::certificate(&times),
        Err(error) => {
            Check::bad("certificate", error.to_string(), "see docs/doctor.md, 'A damaged identity'")
        }
    });
    checks.extend(live::check(live.as_ref()));
    checks.push(machine::processor());
    checks.push(machine::random());
    checks
}

/// Where the node's files are: `shoal dev` leaves a pointer to its first node.
fn home_of(dir: &Path) -> PathBuf {
    if identity_dir(dir).exists() {
        return dir.to_owned();
    }
    let pointed = std::fs::read_to_string(dir.join(POINTER_FILE)).ok().map(|text| PathBuf::from(text.trim()));
    pointed.filter(|elsewhere| elsewhere.is_dir()).unwrap_or_else(|| dir.to_owned())
}

fn print(checks: &[Check], bad: usize, warn: usize) {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let name = format!("{:<4}  {:<width$}", check.verdict.as_str(), check.name);
        show::line(format!("{name}  {}", show::clean(&check.cause)));
        if let Some(next) = &check.next {
            show::line(format!("{:<4}  {:<width$}  -> {}", "", "", show::clean(next)));
        }
    }
    show::line(match (bad, warn) {
        (0, 0) => "nothing is wrong".to_owned(),
        _ => format!("{bad} bad, {warn} worth a look"),
    });
}
