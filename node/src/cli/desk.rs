//! Where `shoal router …` works: at the node that runs, over its admin socket, or on its data directory while none does.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use reqwest::Method;
use serde_json::Value;
use shoal_cluster::identity::Identity;

use super::args::ClientArgs;
use super::client::{NodeClient, home};
use super::exit::{CliError, Exit};
use super::{show, up};
use crate::config::{Config, Flags, process_env};
use crate::feedback;
use crate::node::lock_data_dir;
use crate::pack;
use crate::pack::desk::{Desk, Error, Eval, Export, Import};
use crate::store::Store;

/// The place of one command.
pub(super) enum Place {
    /// A node that runs on this machine.
    Node(NodeClient),
    /// The data of one that does not, locked so that none starts meanwhile.
    Data(Box<Desk>, #[expect(dead_code, reason = "held for its lock")] File),
}

impl Place {
    /// Finds the place. Says on standard output that it works on files, unless the output is for programs.
    ///
    /// # Errors
    /// No node runs, and there is no data of one either; or the node is another machine's.
    pub(super) fn find(args: &ClientArgs) -> Result<Self, CliError> {
        let dir = home(args);
        // Whoever holds the lock runs: with the file in hand nobody does, whatever socket a dead one left.
        let is_data = args.url.is_none() && dir.join("shoal.db").is_file();
        let lock = if is_data { lock_data_dir(&dir).ok() } else { None };
        let Some(lock) = lock else {
            let node = NodeClient::find(args)?;
            node.require_admin()?;
            return Ok(Self::Node(node));
        };
        let desk = open(&dir)?;
        if !args.json {
            show::line(format!("no node runs here; on the files of {}", dir.display()));
        }
        Ok(Self::Data(Box::new(desk), lock))
    }

    pub(super) async fn export(&self, wish: Export) -> Result<Value, CliError> {
        match self {
            Self::Node(node) => post(node, "/admin/v1/router/export", &wish).await,
            Self::Data(desk, _) => desk.export(wish).map_err(failed),
        }
    }

    pub(super) async fn eval(&self, wish: Eval) -> Result<Value, CliError> {
        match self {
            Self::Node(node) => post(node, "/admin/v1/router/eval", &wish).await,
            Self::Data(desk, _) => desk.eval(&wish).map_err(failed),
        }
    }

    pub(super) async fn import(&self, wish: &Import) -> Result<Value, CliError> {
        match self {
            Self::Node(node) => post(node, "/admin/v1/router/pack", wish).await,
            Self::Data(desk, _) => desk.import(wish).map(|(shown, _)| shown).map_err(failed),
        }
    }

    pub(super) async fn remove(&self) -> Result<Value, CliError> {
        match self {
            Self::Node(node) => node.json(Method::DELETE, "/admin/v1/router/pack", None).await,
            Self::Data(desk, _) => desk.remove().map(|(shown, _)| shown).map_err(failed),
        }
    }
}

async fn post(node: &NodeClient, path: &str, wish: &impl serde::Serialize) -> Result<Value, CliError> {
    let body = serde_json::to_value(wish).map_err(CliError::failure)?;
    node.json(Method::POST, path, Some(body)).await
}

fn failed(error: Error) -> CliError {
    let exit = match error {
        Error::Untrusted(_) => Exit::NotAllowed,
        Error::NothingLearnt
        | Error::Unusable(_)
        | Error::Invalid { .. }
        | Error::NotAdopted
        | Error::Store(_) => Exit::Failure,
    };
    CliError::new(exit, error.to_string())
}

/// Opens a node's data as the node itself would: own sums, what others told, the adopted pack. Nothing is written.
fn open(dir: &Path) -> Result<Desk, CliError> {
    let flags = Flags { data_dir: Some(dir.to_owned()), ..Flags::default() };
    let config = Config::load(flags, &process_env()).map_err(CliError::failure)?;
    let identity = Identity::load(&up::identity_dir(dir)).map_err(CliError::failure)?.ok_or_else(|| {
        CliError::failure(format!(
            "{} belongs to no mesh yet; start a node there once with `shoal up`",
            dir.display()
        ))
    })?;
    let store = Store::open(dir).map_err(CliError::failure)?;
    let shipped = config.router.shipped_pack;
    let priors = pack::at_start(&store, shipped).map_err(CliError::failure)?;
    // The start number only marks what is published, and nothing is.
    let (service, handle) =
        feedback::Service::new(identity.node_id().as_str(), 0, store.clone()).map_err(CliError::failure)?;
    let _service = service.with_priors(Arc::new(priors));
    Ok(Desk {
        store,
        data_dir: dir.to_owned(),
        identity: Arc::new(identity),
        name: config.name,
        shipped,
        learnt: handle.learnt(),
    })
}
