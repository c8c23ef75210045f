//! `shoal config`: look at the configuration, and make one of another router's.

use std::io::{Read, Write};
use std::path::Path;

use super::args::{ConfigCommand, ImportFrom};
use super::exit::{CliError, Exit};
use super::show;
use crate::config::{Config, FileConfig, Flags};
use crate::import::{self, Imported};

/// Largest file that is read, bytes; real ones have a few hundred lines.
const MAX_FILE: u64 = 1 << 20;

/// Runs a command.
pub(super) fn run(command: ConfigCommand, env: &[(String, String)]) -> Result<(), CliError> {
    match command {
        ConfigCommand::Check { config } => {
            load_config(Flags { config, ..Flags::default() }, env)?;
            show::line("the configuration is right");
        }
        ConfigCommand::Show { config } => {
            let config = load_config(Flags { config, ..Flags::default() }, env)?;
            show::line(format!("{config:#?}"));
        }
        ConfigCommand::Schema => {
            let text = toml::to_string_pretty(&FileConfig::sample()).map_err(CliError::failure)?;
            show::line(text);
        }
        ConfigCommand::Import { from, file, out } => {
            let text = read(&file)?;
            let imported = match from {
                ImportFrom::Litellm => import::from_litellm(&text, env),
            };
            let imported = imported.map_err(|e| CliError::failure(format!("{}: {e}", file.display())))?;
            match out {
                None => show::line(imported.text.trim_end()),
                Some(out) => write(&out, &imported)?,
            }
        }
    }
    Ok(())
}

/// Reads and checks the configuration of a node.
pub(super) fn load_config(flags: Flags, env: &[(String, String)]) -> Result<Config, CliError> {
    Config::load(flags, env).map_err(|e| CliError::new(Exit::Usage, e.to_string()))
}

fn read(file: &Path) -> Result<String, CliError> {
    let failed = |e: std::io::Error| CliError::failure(format!("cannot read {}: {e}", file.display()));
    let mut text = String::new();
    match file == Path::new("-") {
        true => std::io::stdin().lock().take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?,
        false => {
            let open = std::fs::File::open(file).map_err(failed)?;
            open.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?
        }
    };
    if text.len() as u64 > MAX_FILE {
        return Err(CliError::failure(format!(
            "{} is larger than 1 MiB: that is no configuration",
            file.display()
        )));
    }
    Ok(text)
}

fn write(out: &Path, imported: &Imported) -> Result<(), CliError> {
    let failed = |e: std::io::Error| {
        let exists = e.kind() == std::io::ErrorKind::AlreadyExists;
        let next = if exists { "; move it away, or choose another with --out" } else { "" };
        CliError::failure(format!("cannot write {}: {e}{next}", out.display()))
    };
    let mut file = std::fs::File::create_new(out).map_err(failed)?;
    file.write_all(imported.text.as_bytes()).map_err(failed)?;
    let shown = out.display();
    show::line(format!(
        "wrote {shown}: {} devices, {} providers, {} aliases, {} notes in its comments",
        imported.devices, imported.providers, imported.aliases, imported.notes
    ));
    if !imported.variables.is_empty() {
        show::line(format!("keys come from {}", imported.variables.join(", ")));
    }
    show::line(format!("next: read the notes, then `shoal config check --config {shown}`"));
    Ok(())
}
