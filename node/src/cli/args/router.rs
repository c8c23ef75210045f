//! `shoal router …`: what was learnt, looked at and carried about.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ClientArgs;

/// `shoal router …`
#[derive(Debug, Clone, Subcommand)]
pub enum RouterCommand {
    /// Say what another policy, or a pack, would have earned on this node's judged decisions.
    Eval(RouterEvalArgs),
    /// Show how far the models' confidence can be trusted: what was said of answers, and how many were good.
    Calibration(RouterCalibrationArgs),
    /// Make a pack of judged answers: this node's own, or JSON lines.
    Train(RouterTrainArgs),
    /// Write what the mesh has learnt to a pack, signed by this node.
    Export(RouterExportArgs),
    /// Check a pack, show what it would have earned here, and adopt it.
    Import(RouterImportArgs),
}

/// `shoal router calibration`
#[derive(Debug, Clone, Args)]
pub struct RouterCalibrationArgs {
    /// One model only, as the tables name it.
    #[arg(long)]
    pub model: Option<String>,
    /// The bins of each domain, too.
    #[arg(long)]
    pub domains: bool,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `shoal router eval`
#[derive(Debug, Clone, Args)]
pub struct RouterEvalArgs {
    /// Policy: thompson (what a node does), greedy, blind, random, fixed:MODEL.
    #[arg(long, default_value = "thompson")]
    pub policy: crate::evaluate::Choice,
    /// Pack that the policy would begin with, in the place of the present one.
    #[arg(long, value_name = "FILE")]
    pub pack: Option<PathBuf>,
    /// Decisions of the last 7d, 12h, …
    #[arg(long, default_value = "7d")]
    pub since: String,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `shoal router train`
#[derive(Debug, Clone, Args)]
pub struct RouterTrainArgs {
    /// `history` (this node's judged answers) or a file of JSON lines; repeat for several files.
    #[arg(long, required = true, value_name = "history|FILE.jsonl")]
    pub from: Vec<String>,
    /// Order of the models in lines with `y`; X.models.json beside X.jsonl is found by itself.
    #[arg(long, value_name = "FILE")]
    pub models: Option<PathBuf>,
    /// Where to write the pack.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Name of the pack.
    #[arg(long, default_value = "trained")]
    pub name: String,
    /// Licence of the files, in their order; kept in the pack.
    #[arg(long = "licence")]
    pub licences: Vec<String>,
    /// Keep sums by size of model only, none of single models.
    #[arg(long)]
    pub classes_only: bool,
    /// Do not sign: equal inputs then give equal bytes on every machine.
    #[arg(long)]
    pub unsigned: bool,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `shoal router export`
#[derive(Debug, Clone, Args)]
pub struct RouterExportArgs {
    /// Where to write the pack.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Name of the pack [default: the node's name].
    #[arg(long)]
    pub name: Option<String>,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `shoal router import`
#[derive(Debug, Clone, Args)]
pub struct RouterImportArgs {
    /// The pack.
    #[arg(required_unless_present = "remove", conflicts_with = "remove")]
    pub file: Option<PathBuf>,
    /// Public key that must have signed it, hexadecimal; not needed for a pack of this mesh.
    #[arg(long, value_name = "HEX")]
    pub key: Option<String>,
    /// Adopt it although nobody is known to stand behind it.
    #[arg(long)]
    pub allow_unsigned: bool,
    /// Adopt it without asking.
    #[arg(long)]
    pub yes: bool,
    /// Remove the adopted pack.
    #[arg(long)]
    pub remove: bool,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}
