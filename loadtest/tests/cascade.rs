//! `shoal-loadtest cascade` as a program: its pipe, what it learns, and how it ends.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use serde_json::{Value, json};

struct Pipe {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Pipe {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal-loadtest"))
            .arg("cascade")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.tell(&request.to_string());
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn end(mut self) -> Output {
        drop(self.input.take());
        self.child.wait_with_output().unwrap()
    }
}

/// Writes a set in which the local model 0 is right as often as its peer 1 agrees, and model 2 always.
fn set(folder: &Path) -> [String; 2] {
    let mut rows = String::new();
    for n in 0..400u32 {
        let agrees = n % 2 == 0;
        // Luck that the prompt does not show.
        let luck = n.wrapping_mul(2_654_435_761) >> 16 & 1023;
        let right = u32::from(luck < if agrees { 819 } else { 205 });
        let pred = if agrees { "AAB" } else { "ACB" };
        let row = json!({"id": format!("w{n}"), "prompt": format!("What is {n} + 1?"), "in_tok": 9,
            "y": [right, 0, 1], "out_tok": [20 + n % 7, 1, 1], "pred": pred});
        writeln!(rows, "{row}").unwrap();
    }
    let (models, warm) = (folder.join("x.models.json"), folder.join("warm.jsonl"));
    std::fs::write(&models, r#"{"set":"x","models":["small","peer","large"]}"#).unwrap();
    std::fs::write(&warm, rows).unwrap();
    [models, warm].map(|path| path.to_str().unwrap().to_owned())
}

fn request(id: &str, signals: Value) -> Value {
    json!({"id": id, "prompt": "What is 7 + 1?", "in_tok": 9, "signals": signals})
}

#[test]
fn disagreement_lowers_confidence_and_escalates() {
    let folder = tempfile::tempdir().unwrap();
    let [models, warm] = set(folder.path());
    let mut pipe = Pipe::start(&[
        "--models", &models, "--local", "0", "--strong", "large", "--peers", "1", "--warm", &warm,
    ]);
    let sure = pipe.ask(&request("a", json!({"agreement": 1.0, "out_tok": 22, "valid": true})));
    pipe.tell(r#"{"id":"a"}"#);
    let unsure = pipe.ask(&request("b", json!({"agreement": 0.0, "out_tok": 22, "valid": true})));
    pipe.tell(r#"{"id":"b","y_local":0.0,"y_strong":1.0}"#);
    let unknown = pipe.ask(&request("c", json!({})));
    assert!((sure["confidence"].as_f64().unwrap() - 0.8).abs() < 0.1, "{sure}");
    assert!((unsure["confidence"].as_f64().unwrap() - 0.2).abs() < 0.1, "{unsure}");
    assert!(unsure["gain"].as_f64().unwrap() > sure["gain"].as_f64().unwrap() + 0.4);
    assert_eq!(unsure["escalate"], true);
    assert!(unknown["confidence"].is_null() && unknown["gain"].is_number(), "{unknown}");
    assert_eq!(unknown["id"], "c");
    assert_eq!(pipe.end().status.code(), Some(0));
}

#[test]
fn outcomes_of_the_stream_are_learnt_from() {
    let folder = tempfile::tempdir().unwrap();
    let [models, warm] = set(folder.path());
    let mut pipe =
        Pipe::start(&["--models", &models, "--local", "0", "--strong", "2", "--peers", "1", "--warm", &warm]);
    let signals = json!({"agreement": 1.0, "out_tok": 22, "valid": true});
    let before = pipe.ask(&request("first", signals.clone()))["confidence"].as_f64().unwrap();
    pipe.tell(r#"{"id":"first","y_local":0}"#);
    for n in 0..300 {
        let id = format!("r{n}");
        pipe.ask(&request(&id, signals.clone()));
        pipe.tell(&json!({"id": id, "y_local": 0, "y_strong": 1}).to_string());
    }
    let after = pipe.ask(&request("last", signals))["confidence"].as_f64().unwrap();
    assert!(after < before - 0.3, "{before} {after}");
    assert!(pipe.end().status.success());
}

#[test]
fn a_table_of_probabilities_teaches_and_is_looked_up() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("logits.csv");
    let mut text = "id,m:pmax,m:margin,m:entropy,m:ok,S:ok\n".to_owned();
    for n in 0..300u32 {
        let margin = f64::from(n % 10) / 10.0;
        let ok = u32::from(n / 10 % 10 < n % 10);
        writeln!(text, "t{n},{:.2},{margin},{:.2},{ok},1", 0.5 + margin / 2.0, 1.0 - margin).unwrap();
    }
    std::fs::write(&table, text).unwrap();
    let path = table.to_str().unwrap();
    let mut pipe = Pipe::start(&["--local", "m", "--strong", "S", "--signals", path]);
    let said = pipe.ask(&json!({"id": "x", "signals": {"margin": 0.8, "pmax": 0.9, "entropy": 0.2}}));
    pipe.tell(r#"{"id":"x"}"#);
    assert!((said["confidence"].as_f64().unwrap() - 0.8).abs() < 0.1, "{said}");
    let low = pipe.ask(&json!({"id": "t1"}));
    assert!(low["confidence"].as_f64().unwrap() < 0.25, "{low}");
    assert!(pipe.end().status.success());
}

#[test]
fn what_cannot_be_understood_ends_the_program_with_its_reason() {
    for (line, reason) in [
        ("{", "input line 1"),
        (r#"{"prompt":"hi"}"#, "no id"),
        (r#"{"id":"never asked"}"#, "neither a request"),
        (r#"{"id":"never asked","y_local":1}"#, "neither a request"),
        (r#"{"id":"a","signals":{"margin":"high"}}"#, "input line 1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [models, _] = set(folder.path());
        let mut pipe = Pipe::start(&["--models", &models, "--local", "0", "--strong", "2"]);
        pipe.tell(line);
        let output = pipe.end();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(error.contains(reason), "{line}: {error}");
    }
}

#[test]
fn an_outcome_beyond_its_range_and_an_unknown_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [models, _] = set(folder.path());
    let mut pipe = Pipe::start(&["--models", &models, "--local", "0", "--strong", "2"]);
    pipe.ask(&request("a", json!({})));
    pipe.tell(r#"{"id":"a","y_local":1.5}"#);
    let output = pipe.end();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("y_local"));
    let output = Pipe::start(&["--models", &models, "--local", "7", "--strong", "2"]).end();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 large"));
}
