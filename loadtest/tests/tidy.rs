//! What a test can check of the house rules: file heads and sizes, import direction, tasks, manifests, paths.
//!
//! Each rule is a function from a file to its complaints, with a test that shows that it complains.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Lines that no file may exceed; long before it, a file holds two ideas.
const MAX_LINES: usize = 700;

/// Packages by folder, deepest first, with what each may import of ours.
const PACKAGES: &[(&str, &str, &[&str])] = &[
    ("node/routing/", "shoal-routing", &[]),
    ("node/embedded/", "shoal-embedded", &[]),
    ("node/", "shoal", &["shoal-routing", "shoal-embedded", "shoal-cluster", "shoal-proto"]),
    ("cluster/", "shoal-cluster", &["shoal-proto"]),
    ("loadtest/", "shoal-loadtest", &["shoal-routing", "shoal-proto"]),
    ("proto/", "shoal-proto", &[]),
    ("fuzz/", "shoal-fuzz", &["shoal", "shoal-routing", "shoal-cluster", "shoal-proto"]),
    ("sim/", "shoal-sim", &["shoal", "shoal-routing", "shoal-cluster", "shoal-proto"]),
];

/// What the pure core must not even be able to name.
const FORBIDDEN_IN_ROUTING: &[&str] = &[
    "tokio",
    "tokio-util",
    "serde",
    "serde_json",
    "prost",
    "tonic",
    "quinn",
    "axum",
    "hyper",
    "reqwest",
    "rusqlite",
    "tracing",
    "futures-util",
    "tower",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package lies in the workspace").to_owned()
}

/// Tracked files by `git ls-files`; where there is no repository (a source archive), a walk of the tree.
fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    if let Ok(output) = listed
        && output.status.success()
    {
        let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
        let files: Vec<String> =
            text.split('\0').filter(|path| root().join(path).is_file()).map(str::to_owned).collect();
        if !files.is_empty() {
            return files;
        }
    }
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files
}

fn walk(folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a readable folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "dist" {
                walk(&path, files);
            }
        } else if let Ok(path) = path.strip_prefix(root()) {
            files.push(path.to_string_lossy().into_owned());
        }
    }
}

fn package_of(path: &str) -> Option<&'static (&'static str, &'static str, &'static [&'static str])> {
    PACKAGES.iter().find(|(folder, _, _)| path.starts_with(folder))
}

/// Numbered lines without their comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()))
}

fn head(_: &str, text: &str) -> Vec<String> {
    if text.starts_with("//!") { Vec::new() } else { vec!["the first line is not a `//!` sentence".into()] }
}

fn size(_: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > MAX_LINES { vec![format!("{lines} lines, the most is {MAX_LINES}")] } else { Vec::new() }
}

fn tasks(path: &str, text: &str) -> Vec<String> {
    if path.ends_with("/tasks.rs") {
        return Vec::new();
    }
    let bare =
        [concat!("tokio::", "spawn("), concat!("tokio::task::", "spawn("), concat!("use tokio::", "spawn;")];
    code_lines(text)
        .filter(|(_, line)| bare.iter().any(|call| line.contains(call)))
        .map(|(at, _)| format!("line {at}: a bare spawn; use the wrapper in tasks.rs"))
        .collect()
}

fn ignored_tests(_: &str, text: &str) -> Vec<String> {
    let ignore = concat!("#[ig", "nore");
    code_lines(text)
        .filter(|(_, line)| line.trim_start().starts_with(ignore))
        .map(|(at, _)| format!("line {at}: an ignored test is no test"))
        .collect()
}

fn imports(path: &str, text: &str) -> Vec<String> {
    let Some((_, own, allowed)) = package_of(path) else { return Vec::new() };
    let mut complaints = Vec::new();
    for (_, other, _) in PACKAGES.iter().filter(|(_, name, _)| name != own && !allowed.contains(name)) {
        // The library of the package `shoal` is called `shoal_node`.
        let krate = if *other == "shoal" { "shoal_node".to_owned() } else { other.replace('-', "_") };
        for (at, line) in code_lines(text) {
            if line.contains(&format!("{krate}::")) || line.contains(&format!("use {krate}")) {
                complaints.push(format!("line {at}: {own} must not import {other}"));
            }
        }
    }
    complaints
}

fn machine_paths(_: &str, text: &str) -> Vec<String> {
    let places =
        [concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/ro", "ot/"), concat!("C:\\", "Users")];
    text.lines()
        .enumerate()
        .filter(|(_, line)| places.iter().any(|place| line.contains(place)))
        .map(|(at, _)| format!("line {}: a path of somebody's machine", at + 1))
        .collect()
}

/// Names in the dependency tables of a manifest; `dev` adds those of tests.
fn dependencies(manifest: &str, dev: bool) -> BTreeSet<String> {
    let (mut names, mut inside) = (BTreeSet::new(), false);
    for line in manifest.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table.ends_with("dependencies") && (dev || !table.ends_with("dev-dependencies"));
        } else if inside && !line.starts_with('#') && !line.is_empty() {
            names.insert(line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned());
        }
    }
    names
}

fn manifest_of_ours(path: &str, text: &str) -> Vec<String> {
    let Some((_, own, allowed)) = package_of(path) else { return Vec::new() };
    let mut complaints = Vec::new();
    for name in dependencies(text, true) {
        if PACKAGES.iter().any(|(_, ours, _)| *ours == name)
            && !allowed.contains(&name.as_str())
            && name != *own
        {
            complaints.push(format!("{own} must not depend on {name}"));
        }
    }
    if *own == "shoal-routing" {
        for name in dependencies(text, false) {
            if FORBIDDEN_IN_ROUTING.contains(&name.as_str()) {
                complaints.push(format!("the pure core must not depend on {name}"));
            }
        }
    }
    complaints
}

fn inherits_lints(_: &str, text: &str) -> Vec<String> {
    let is_package = text.contains("[package]");
    if is_package && !text.replace(' ', "").contains("[lints]\nworkspace=true") {
        return vec!["does not inherit the workspace's lints".into()];
    }
    Vec::new()
}

type Rule = fn(&str, &str) -> Vec<String>;

fn check(ending: &str, rules: &[Rule]) {
    let mut complaints = Vec::new();
    let mut files = 0;
    for path in tracked().into_iter().filter(|path| path.ends_with(ending) && !path.starts_with("fuzz/")) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        files += 1;
        complaints
            .extend(rules.iter().flat_map(|rule| rule(&path, &text)).map(|why| format!("{path}: {why}")));
    }
    assert!(files > 0, "no {ending} files found: the walk is broken");
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn sources_keep_the_house_rules() {
    check(".rs", &[head, size, tasks, ignored_tests, imports, machine_paths]);
}

#[test]
fn manifests_keep_the_dependency_direction() {
    check("Cargo.toml", &[manifest_of_ours, inherits_lints]);
}

#[test]
fn no_page_or_script_names_a_developers_machine() {
    for ending in [".md", ".py", ".toml", ".yml", ".sh"] {
        let some = tracked().iter().any(|path| path.ends_with(ending));
        if some {
            check(ending, &[machine_paths]);
        }
    }
}

#[test]
fn main_is_thin() {
    let main = fs::read_to_string(root().join("node/src/main.rs")).expect("the binary's main");
    assert!(
        main.lines().count() <= 80,
        "node/src/main.rs has {} lines, the most is 80",
        main.lines().count()
    );
}

#[test]
fn each_rule_complains() {
    let one = |rule: Rule, path: &str, text: &str| assert_eq!(rule(path, text).len(), 1, "{path}: {text}");
    let none = |rule: Rule, path: &str, text: &str| {
        assert_eq!(rule(path, text), Vec::<String>::new(), "{path}: {text}")
    };
    one(head, "a.rs", "use std;\n");
    none(head, "a.rs", "//! A file.\n");
    one(size, "a.rs", &"\n".repeat(MAX_LINES + 1));
    none(size, "a.rs", &"\n".repeat(MAX_LINES));
    let spawn = concat!("let t = tokio::", "spawn(x);");
    one(tasks, "node/src/a.rs", spawn);
    none(tasks, "node/src/tasks.rs", spawn);
    none(tasks, "node/src/a.rs", concat!("// tokio::", "spawn(x)"));
    one(ignored_tests, "a.rs", concat!("#[ig", "nore = \"slow\"]"));
    one(imports, "node/routing/src/a.rs", "use shoal_proto::v1;");
    one(imports, "cluster/src/a.rs", "use shoal_routing::Arm;");
    one(imports, "loadtest/src/a.rs", concat!("let x = shoal_", "node::config();"));
    none(imports, "node/src/a.rs", concat!("use shoal_", "cluster::Handle;"));
    one(machine_paths, "a.rs", concat!("let p = \"/ho", "me/ann\";"));
    one(manifest_of_ours, "node/routing/Cargo.toml", "[dependencies]\ntokio = \"1\"\n");
    none(
        manifest_of_ours,
        "node/routing/Cargo.toml",
        "[dependencies]\nthiserror.workspace = true\n[dev-dependencies]\nserde = \"1\"\n",
    );
    one(manifest_of_ours, "cluster/Cargo.toml", "[dev-dependencies]\nshoal-routing.workspace = true\n");
    one(inherits_lints, "x/Cargo.toml", "[package]\nname = \"x\"\n");
}
