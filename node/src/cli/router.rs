//! `shoal router …`: measures, trains, hands over and adopts what was learnt.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use data_encoding::BASE64;
use serde_json::{Value, json};
use shoal_cluster::identity::Identity;

use super::args::{RouterCommand, RouterEvalArgs, RouterExportArgs, RouterImportArgs, RouterTrainArgs};
use super::client::home;
use super::desk::Place;
use super::exit::{CliError, Exit};
use super::{calibration, parse_duration, show};
use crate::evaluate::MAX_DECISIONS;
use crate::pack::desk::{Eval, Export, Import};
use crate::pack::rows::{self, Row};
use crate::pack::train::{self, Report};
use crate::pack::{self, Header, RouterPack, Source};
use crate::store::{decision_log_at, unix_ms};

pub(super) async fn run(command: RouterCommand) -> Result<(), CliError> {
    match command {
        RouterCommand::Calibration(args) => calibration::show(&args).await,
        RouterCommand::Eval(args) => eval(&args).await,
        RouterCommand::Train(args) => train(&args),
        RouterCommand::Export(args) => export(&args).await,
        RouterCommand::Import(args) => import(&args).await,
    }
}

async fn eval(args: &RouterEvalArgs) -> Result<(), CliError> {
    let since_s = parse_duration(&args.since)?.as_secs();
    let pack = args.pack.as_deref().map(read_file).transpose()?;
    let wish =
        Eval { policy: policy_word(&args.policy), since_s, pack: pack.map(|bytes| BASE64.encode(&bytes)) };
    let v = Place::find(&args.client)?.eval(wish).await?;
    if args.client.json {
        show::json(&v);
    } else {
        let of = args.pack.as_deref().map_or_else(String::new, |path| format!(" with {}", path.display()));
        print_estimate(&v, &format!("{}{of}", policy_word(&args.policy)));
    }
    Ok(())
}

fn policy_word(choice: &crate::evaluate::Choice) -> String {
    use crate::evaluate::Choice;
    match choice {
        Choice::Thompson => "thompson".into(),
        Choice::Greedy => "greedy".into(),
        Choice::Blind => "blind".into(),
        Choice::Random => "random".into(),
        Choice::Fixed(model) => format!("fixed:{model}"),
    }
}

fn train(args: &RouterTrainArgs) -> Result<(), CliError> {
    let from_history = args.from.iter().any(|from| from == "history");
    if from_history && args.from.len() > 1 {
        return Err(CliError::new(Exit::Usage, "--from history stands alone; train files apart from it"));
    }
    let dir = home(&args.client);
    let (rows, sources, made_ms) = if from_history {
        let rows = history_rows(&dir)?;
        let source = Source { name: "history".into(), licence: String::new(), rows: rows.len() as u64 };
        (rows, vec![source], unix_ms())
    } else {
        let (rows, sources) = file_rows(args)?;
        (rows, sources, 0)
    };
    if rows.is_empty() {
        return Err(CliError::failure(
            "there is nothing to train from: no judged answer was found; give feedback (POST /v1/feedback), or train from a file with --from FILE.jsonl",
        ));
    }
    let (packed, report) = train::train(&rows, args.classes_only);
    let header = Header { name: args.name.clone(), made_ms, sources, prices_sha256: pack::prices_sha256() };
    let identity = if args.unsigned {
        None
    } else {
        Identity::load(&super::up::identity_dir(&dir)).map_err(|error| {
            CliError::failure(format!(
                "the identity to sign with cannot be read: {error}; --unsigned goes without"
            ))
        })?
    };
    let bytes = match &identity {
        Some(identity) => RouterPack::write_signed(&header, &packed, identity),
        None => RouterPack::write(&header, &packed),
    };
    write_file(&args.out, &bytes)?;
    if args.client.json {
        show::json(&report_json(&report, &args.out, bytes.len(), identity.is_some()));
    } else {
        print_report(&report);
        let signed = match identity {
            Some(_) => "signed by this machine's node",
            None => "not signed: adopting it needs --allow-unsigned",
        };
        show::line(format!("\n{} ({} bytes), {signed}", args.out.display(), bytes.len()));
        show::line(format!("next: shoal router import {}", args.out.display()));
    }
    Ok(())
}

fn history_rows(dir: &Path) -> Result<Vec<Row>, CliError> {
    let log = decision_log_at(dir, 0, MAX_DECISIONS).map_err(CliError::failure)?;
    let row = |(arm, features, score)| Row { features, scores: [(arm, score)].into() };
    Ok(log.judged.into_iter().map(row).collect())
}

fn file_rows(args: &RouterTrainArgs) -> Result<(Vec<Row>, Vec<Source>), CliError> {
    let (mut all, mut sources) = (Vec::new(), Vec::new());
    for (at, from) in args.from.iter().enumerate() {
        let path = Path::new(from);
        let rows = rows::read(path, args.models.as_deref())?;
        let judged: usize = rows.iter().map(|row| row.scores.len()).sum();
        sources.push(Source {
            name: path.file_stem().map_or_else(|| from.clone(), |stem| stem.to_string_lossy().into_owned()),
            licence: args.licences.get(at).cloned().unwrap_or_default(),
            rows: judged as u64,
        });
        all.extend(rows);
    }
    Ok((all, sources))
}

async fn export(args: &RouterExportArgs) -> Result<(), CliError> {
    let mut v = Place::find(&args.client)?.export(Export { name: args.name.clone() }).await?;
    let bytes = v["pack"].as_str().and_then(|text| BASE64.decode(text.as_bytes()).ok());
    let bytes = bytes.ok_or_else(|| CliError::failure("the node sent no pack; update it to this version"))?;
    write_file(&args.out, &bytes)?;
    if let Some(answer) = v.as_object_mut() {
        answer.remove("pack");
        answer.insert("out".into(), json!(args.out.display().to_string()));
    }
    if args.client.json {
        show::json(&v);
        return Ok(());
    }
    show::line(format!("{} ({} bytes, {} judgements)", args.out.display(), bytes.len(), v["judgements"]));
    show::line(format!("models  {}", show::clean(&show::text(&v, "arms"))));
    show::line(format!("key     {}", show::text(&v, "key")));
    show::line("Another mesh adopts it with: shoal router import FILE --key KEY");
    Ok(())
}

async fn import(args: &RouterImportArgs) -> Result<(), CliError> {
    let place = Place::find(&args.client)?;
    let Some(file) = &args.file else {
        let v = place.remove().await?;
        if args.client.json {
            show::json(&v);
        } else {
            show::line("the adopted pack is removed");
        }
        return Ok(());
    };
    let mut wish = Import {
        pack: BASE64.encode(&read_file(file)?),
        key: args.key.clone(),
        allow_unsigned: args.allow_unsigned,
        adopt: false,
    };
    let v = place.import(&wish).await?;
    if !args.client.json {
        print_pack(&v);
        print_estimate(&v["estimate"], "with the pack");
    }
    if !args.yes && !agreed(args.client.json)? {
        if args.client.json {
            show::json(&v);
        } else {
            show::line("not adopted; adopt it with --yes");
        }
        return Ok(());
    }
    wish.adopt = true;
    let v = place.import(&wish).await?;
    if args.client.json {
        show::json(&v);
    } else {
        show::line("adopted; `shoal router import --remove` takes it back");
    }
    Ok(())
}

/// Asks a person, if one is there.
fn agreed(quiet: bool) -> Result<bool, CliError> {
    let stdin = std::io::stdin();
    let mut stdout = std::io::stdout();
    if quiet || !stdin.is_terminal() || !stdout.is_terminal() {
        return Ok(false);
    }
    stdout.write_all(b"Adopt this pack? [y/N] ").and_then(|()| stdout.flush()).map_err(CliError::failure)?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(CliError::failure)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn read_file(path: &Path) -> Result<Vec<u8>, CliError> {
    let failed =
        |e: &dyn std::fmt::Display| CliError::failure(format!("cannot read {}: {e}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
    if size > pack::MAX_BYTES as u64 {
        return Err(failed(&format!("{size} bytes are no router pack")));
    }
    std::fs::read(path).map_err(|e| failed(&e))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    std::fs::write(path, bytes).map_err(|e| {
        CliError::failure(format!("cannot write {}: {e}; choose another with --out", path.display()))
    })
}

fn report_json(report: &Report, out: &Path, bytes: usize, signed: bool) -> Value {
    let arms = report.arms.iter().map(
        |arm| json!({"arm": arm.arm.as_str(), "n": arm.judged, "mean": arm.mean, "explained": arm.explained}),
    );
    json!({
        "out": out.display().to_string(),
        "bytes": bytes,
        "signed": signed,
        "arms": arms.collect::<Vec<_>>(),
        "held_out": report.compared.map(|compared| json!({
            "prompts": compared.prompts, "chosen": compared.chosen, "best_fixed": compared.best_fixed,
            "gain": compared.chosen - compared.best_fixed, "oracle": compared.oracle,
        })),
    })
}

fn print_report(report: &Report) {
    let rows: Vec<Vec<String>> = report
        .arms
        .iter()
        .map(|arm| {
            vec![
                arm.arm.to_string(),
                arm.judged.to_string(),
                format!("{:.3}", arm.mean),
                arm.explained.map_or("-".into(), |share| format!("{:+.1} %", share * 100.0)),
            ]
        })
        .collect();
    show::table(&["MODEL", "JUDGED", "MEAN", "EXPLAINED BY THE PROMPT"], &rows);
    show::line("");
    match report.compared {
        Some(c) => show::line(format!(
            "held-out fifth, {} prompts: chosen {:.4}, best fixed model {:.4} ({:+.4}), perfect choice {:.4}",
            c.prompts,
            c.chosen,
            c.best_fixed,
            c.chosen - c.best_fixed,
            c.oracle
        )),
        None => show::line(
            "held-out gain: unknown, since no prompt has the scores of all models; `shoal router eval --pack FILE` estimates it on this node's log",
        ),
    }
}

fn print_pack(v: &Value) {
    show::line(format!("pack    {}", show::text(v, "name")));
    for source in v["sources"].as_array().into_iter().flatten() {
        show::line(format!(
            "from    {} ({} judged answers; licence: {})",
            show::text(source, "name"),
            source["rows"],
            show::text(source, "licence")
        ));
    }
    let trust = match v["trust"].as_str() {
        Some("own_mesh") => format!("signed by node {} of this mesh", show::text(v, "signer")),
        Some("named_key") => format!("signed by the key you named, {}", show::text(v, "key")),
        _ => "WARNING: nobody known stands behind this pack; it moves where requests go, and so what you pay"
            .into(),
    };
    show::line(format!("trust   {trust}"));
    for arm in v["arms"].as_array().into_iter().flatten() {
        show::line(format!(
            "model   {}: {:.0} judgements, mean {:.3}",
            show::text(arm, "arm"),
            arm["weight"].as_f64().unwrap_or_default(),
            arm["mean"].as_f64().unwrap_or_default()
        ));
    }
    show::line(format!("sizes   {}", v["classes"].as_array().map_or(0, Vec::len)));
    show::line("");
}

fn print_estimate(v: &Value, what: &str) {
    let left = &v["left_out"];
    show::line(format!(
        "{} judged decisions of this node; left out: {} without a choice, {} taken over by another model, {} incomplete",
        v["decisions"], left["no_choice"], left["taken_over"], left["incomplete"]
    ));
    if v["candidate"].is_null() {
        show::line("too few: there is no judged decision to estimate from");
        return;
    }
    let row = |name: &str, verdict: &Value, unit: &str, key: &str| {
        let estimate = &verdict[unit][key];
        let number = |key: &str| estimate[key].as_f64().map_or("-".into(), |value| format!("{value:+.4}"));
        vec![
            name.to_owned(),
            unit.to_owned(),
            key.replace('_', " "),
            number("value"),
            number("low"),
            number("high"),
        ]
    };
    let mut rows = Vec::new();
    for unit in ["utility", "quality"] {
        rows.push(row("as logged", &v["candidate"], unit, "logged"));
        rows.push(row("present policy", &v["present"], unit, "doubly_robust"));
        for key in ["ips", "snips", "doubly_robust", "gain"] {
            rows.push(row(what, &v["candidate"], unit, key));
        }
    }
    show::table(&["POLICY", "IN", "ESTIMATOR", "MEAN", "95 % FROM", "TO"], &rows);
    show::line(format!(
        "effective sample size {:.0}{}",
        v["candidate"]["effective"].as_f64().unwrap_or_default(),
        if v["too_few"].as_bool() == Some(true) {
            ": too few to act on; the intervals are not to be trusted"
        } else {
            ""
        }
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_reads_back_from_its_word() {
        for word in ["thompson", "greedy", "blind", "random", "fixed:gpt-4o"] {
            assert_eq!(policy_word(&word.parse().unwrap()), word);
        }
    }
}
