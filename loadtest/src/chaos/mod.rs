//! `shoal-loadtest chaos`: real routers and devices under faults, and whether they kept their promises.
//!
//! Each scene plays one fault of `docs/faults.md` on a mesh of real processes that dial each other through proxies,
//! with stub engines behind devices. What clients saw (every answer is judged word by word) is set beside what the
//! nodes recorded; what broke an invariant, or missed its figure by more than a busy machine explains, fails the run.
//! Everything is bounded in time and count, listens on loopback only, and ends with this process.

mod invariants;
mod load;
mod matrix;
mod mesh;
mod node;
mod process;
mod proxy;
mod report;
mod row;
mod scenes;
mod wait;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};

pub use self::report::Report;
use self::{
    load::Sample,
    mesh::{Mesh, Shape},
    row::Row,
    scenes::{SCENES, Scene},
};

/// What to play.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `shoal`.
    pub bin: PathBuf,
    /// The long set, with the counts of `docs/faults.md`.
    pub full: bool,
    /// Names or numbers of scenes; empty = all.
    pub only: Vec<String>,
    /// Seed of every chance that is ours.
    pub seed: u64,
    /// Length of the soak, minutes; by default that of the set.
    pub minutes: Option<f64>,
    /// The program `shoal` of the version before, for a mesh of both.
    pub previous: Option<PathBuf>,
}

/// Descriptors: 5,000 clients, and their other ends in a router.
const DESCRIPTORS: u64 = 65_536;
/// Longest time of one scene, quick and full.
const QUICK_CAP: Duration = Duration::from_secs(150);
const FULL_CAP: Duration = Duration::from_secs(1_800);

/// What the scenes of one run share.
struct Stage {
    options: Options,
    mesh: Option<Mesh>,
    /// Restricted requests so far, over all scenes.
    restricted: usize,
}

/// Plays the scenes one after the other and reports them; `told` hears of each row as it ends.
///
/// # Errors
/// When a scene of that name does not exist. What goes wrong in a scene is part of its row.
pub async fn run(options: Options, mut told: impl FnMut(&str)) -> Result<Report> {
    let scenes = chosen(&options.only, options.full)?;
    raise_descriptors();
    let mut stage = Stage { options, mesh: None, restricted: 0 };
    let mut rows = Vec::new();
    for scene in scenes {
        told(&format!("{} {}: {}", scene.number, scene.name, scene.fault));
        let row = stage.play(scene).await;
        for line in report::text(&row) {
            told(&line);
        }
        told(&format!("  {:.1} s", row.took.as_secs_f32()));
        rows.push(row);
    }
    if let Some(mesh) = stage.mesh.take() {
        mesh.close();
    }
    Ok(Report { seed: stage.options.seed, full: stage.options.full, rows })
}

/// Allows as many descriptors as one scene needs clients, here and in what is started from here.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map_or(Some(DESCRIPTORS), |most| Some(most.min(DESCRIPTORS)));
    // Where it may not be raised, the scene with many clients says what it could not open.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The scenes asked for, in the order of the table; without names those of the set.
fn chosen(only: &[String], full: bool) -> Result<Vec<&'static Scene>> {
    for name in only {
        if !SCENES.iter().any(|scene| scene.is_named(name)) {
            let known: Vec<String> =
                SCENES.iter().map(|one| format!("{} {}", one.number, one.name)).collect();
            bail!("no scene is called '{name}'; there are: {}", known.join(", "));
        }
    }
    Ok(SCENES
        .iter()
        .filter(|scene| {
            if only.is_empty() { full || !scene.long } else { only.iter().any(|name| scene.is_named(name)) }
        })
        .collect())
}

impl Stage {
    /// Plays one scene on a whole mesh and checks the invariants after it. A mesh that is not whole any more is
    /// replaced, so that one scene's damage is not told of the next.
    async fn play(&mut self, scene: &'static Scene) -> Row {
        let full = self.options.full;
        let mut row =
            Row { number: scene.number, name: scene.name, fault: scene.fault, full, ..Row::default() };
        let started = Instant::now();
        let context = self.context();
        let cap = scene.cap.map_or(if full { FULL_CAP } else { QUICK_CAP }, |cap| cap(&context));
        match tokio::time::timeout(cap, self.try_play(scene, &mut row)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                row.broken.push(format!("{error:#}"));
                self.mesh = None;
            }
            Err(_) => {
                row.broken.push(format!("did not end within {} s", cap.as_secs()));
                self.mesh = None;
            }
        }
        row.took = started.elapsed();
        row
    }

    fn context(&self) -> Context {
        let Options { bin, full, seed, minutes, previous, only: _ } = self.options.clone();
        Context { bin, full, seed, minutes, previous, restricted: self.restricted }
    }

    async fn try_play(&mut self, scene: &'static Scene, row: &mut Row) -> Result<()> {
        let context = self.context();
        if scene.alone {
            self.mesh = None;
            return Box::pin(scenes::play_alone(scene, &context, row)).await;
        }
        let mut mesh = match self.mesh.take() {
            Some(mesh) => mesh,
            None => Mesh::start(context.shape()).await?,
        };
        let samples = Box::pin(scenes::play(scene, &context, &mut mesh, row)).await?;
        mesh.links.heal();
        mesh.whole().await?;
        self.restricted += samples.iter().filter(|sample| sample.restricted).count();
        let mut broken = invariants::broken(&mesh, &samples).await;
        broken.truncate(10);
        let harmed = !broken.is_empty();
        row.broken.extend(broken);
        if harmed {
            mesh.close();
        } else {
            self.mesh = Some(mesh);
        }
        Ok(())
    }
}

/// What a scene is told.
#[derive(Clone, Debug)]
struct Context {
    bin: PathBuf,
    full: bool,
    seed: u64,
    minutes: Option<f64>,
    previous: Option<PathBuf>,
    /// Requests of class `restricted` in the scenes before.
    restricted: usize,
}

impl Context {
    /// A count or a length: `quick`, or `full` in the long set.
    fn pick<T>(&self, quick: T, full: T) -> T {
        if self.full { full } else { quick }
    }

    fn secs(&self, quick: u64, full: u64) -> Duration {
        Duration::from_secs(self.pick(quick, full))
    }

    /// Three routers and three devices.
    fn shape(&self) -> Shape {
        Shape {
            bin: self.bin.clone(),
            other_bin: None,
            seed: self.seed,
            nodes: 3,
            devices: 3,
            own_slots: 4,
            more_config: String::new(),
        }
    }
}

/// Samples of a scene.
type Samples = Vec<Sample>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_are_chosen_by_name_or_number_and_others_refused() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|text| (*text).to_owned()).collect();
            chosen(&only, true).map(|scenes| scenes.iter().map(|scene| scene.number).collect::<Vec<_>>())
        };
        assert_eq!(names(&["matrix", "1"]).unwrap(), [1, 16]);
        assert_eq!(names(&[]).unwrap().len(), SCENES.len());
        let quick = chosen(&[], false).unwrap();
        assert!(quick.iter().all(|scene| scene.name != "soak") && quick.len() < SCENES.len());
        let error = names(&["none"]).unwrap_err().to_string();
        assert!(error.contains("'none'") && error.contains("partition"), "{error}");
    }

    #[test]
    fn scenes_have_names_and_numbers_of_their_own() {
        let names: std::collections::BTreeSet<_> = SCENES.iter().map(|scene| scene.name).collect();
        let numbers: std::collections::BTreeSet<_> = SCENES.iter().map(|scene| scene.number).collect();
        assert_eq!((names.len(), numbers.len()), (SCENES.len(), SCENES.len()));
    }
}
