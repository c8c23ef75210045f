//! The table of routing, on outcomes made up so that the answer is known.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use shoal_loadtest::table::{self, Options};

/// A local model that knows rivers and fails at sums, and a dear one that knows both.
fn write_set(folder: &Path, name: &str) {
    let models = json!({ "models": ["small-3b", "gpt-4"], "local": [0], "cloud": [1] });
    std::fs::write(folder.join(format!("{name}.models.json")), models.to_string()).unwrap();
    let file = File::create(folder.join(format!("{name}.jsonl.gz"))).unwrap();
    let mut packed = GzEncoder::new(file, Compression::fast());
    for number in 0..1_500u32 {
        let sum = number % 2 == 0;
        let prompt = if sum {
            format!(
                "Solve for x: {number} x^2 + {} x = {}, and give the larger root.",
                number + 3,
                number * 7
            )
        } else {
            format!("Which river of country number {number} is the longest one, and where does it rise?")
        };
        let right = u32::from(!sum && number % 20 != 1);
        let row = json!({
            "id": number.to_string(), "domain": format!("d{}", number / 2 % 7), "prompt": prompt, "in_tok": 40,
            "out_tok": [20, 20], "y": [right, u32::from(number % 25 != 3)], "cost_uusd": [5.0, 40.0 * 10.0 + 20.0 * 30.0],
        });
        writeln!(packed, "{row}").unwrap();
    }
    packed.finish().unwrap();
}

fn play(splits: u32) -> (String, Value) {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("routing");
    std::fs::create_dir(&folder).unwrap();
    ["routellm_mmlu", "mmlupro12"].iter().for_each(|name| write_set(&folder, name));
    let table = table::play(&Options { data: data.path().to_owned(), splits, seed: 3 }).unwrap();
    (table.to_string(), table.json())
}

#[test]
fn a_node_beats_the_mix_at_its_cost_and_leaks_nothing() {
    let (text, json) = play(1);
    let policies = json["sets"][0]["policies"].as_array().unwrap();
    let of = |name: &str| policies.iter().find(|line| line["policy"] == name).unwrap();
    let number = |name: &str, field: &str| of(name)[field].as_f64().unwrap();
    let restricted = number("always cloud", "restricted");
    assert!(restricted > 10.0 && number("always cloud", "restricted_leaked") == restricted);
    assert_eq!(number("always local", "restricted_leaked"), 0.0);
    assert!(number("keyword rules", "restricted_leaked") + number("oracle", "restricted_leaked") > 0.0);
    for ours in ["ours, auto", "ours, auto:cheap", "ours, auto:best"] {
        assert_eq!(number(ours, "restricted_leaked"), 0.0);
    }
    // Half of the prompts need the cloud: at their cost, sending the right half is worth 20 points more than a lot.
    let cheap = of("ours, auto:cheap");
    assert!((0.3..0.7).contains(&cheap["cost_share"].as_f64().unwrap()), "{cheap}");
    assert!(cheap["points_above_best_fixed_mix_unrestricted"][0].as_f64().unwrap() > 15.0, "{cheap}");
    assert!(number("oracle", "accuracy") >= cheap["accuracy"].as_f64().unwrap());
    assert!((number("always cloud", "usd_per_1000") - 1.0).abs() < 1e-9);
    let ceiling = &json["sets"][0]["ceiling"];
    let (local, most) = (ceiling["local"].as_f64().unwrap(), ceiling["most"].as_f64().unwrap());
    assert!((most - local - 0.143).abs() < 1e-3, "{ceiling}");
    assert!(text.contains("Two models: at most 59.3 % at 14.3 % calls"), "{text}");
}

#[test]
fn the_same_seed_prints_the_same_table() {
    assert_eq!(play(2).0, play(2).0);
}

#[test]
fn missing_data_is_named() {
    let nowhere = Options { data: "/nonexistent".into(), splits: 1, seed: 0 };
    let error = format!("{:#}", table::play(&nowhere).unwrap_err());
    assert!(error.contains("/nonexistent/routing/routellm_mmlu.models.json"), "{error}");
}
