//! HTTPS as clients meet it, over real sockets.

use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::routing::get;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use shoal_cluster::identity::server::{HostNames, self_signed_api, to_pem};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::api::serve::{Bounds, SocketLimits};
use crate::config::{ApiTls, Flags, TlsFlags, TlsMode};
use crate::tasks::{self, TaskKind};
use crate::upstream::http_client::{self, Reach, Trust};

/// A served API; `folder` holds its identity and files.
struct Served {
    folder: tempfile::TempDir,
    identity: Arc<Identity>,
    address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

fn config(folder: &Path, tls: TlsFlags) -> Config {
    let flags =
        Flags { data_dir: Some(folder.to_owned()), name: Some("abcd".into()), tls, ..Flags::default() };
    Config::load(flags, &[]).unwrap()
}

async fn serve() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::create_mesh(&folder.path().join("identity"), "first").unwrap());
    let config = config(folder.path(), TlsFlags { tls: Some(TlsMode::On), ..TlsFlags::default() });
    let tls = Tls::new(&config, &identity).unwrap().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/", get(async || "hello"));
    let bounds = Bounds { sockets: SocketLimits::default(), drain: std::time::Duration::from_secs(1) };
    let server = crate::api::serve::tcp(listener, Some(tls), app, bounds, CancellationToken::new());
    let server = AbortOnDropHandle::new(tasks::spawn(TaskKind::Api, server));
    Served { folder, identity, address, _server: server }
}

async fn get_by(trust: Trust, url: String) -> Result<(http::Version, String), reqwest::Error> {
    let client = http_client::build_trusting(Reach::Lan, &trust).unwrap();
    let answer = client.get(url).send().await?;
    Ok((answer.version(), answer.text().await?))
}

#[tokio::test]
async fn who_trusts_the_mesh_is_served_by_every_name_of_the_host() {
    let served = serve().await;
    let roots = served.identity.roots_der().to_vec();
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("https://{host}:{}/", served.address.port());
        let answer = get_by(Trust::Only(roots.clone()), url).await.unwrap();
        assert_eq!(answer, (http::Version::HTTP_2, "hello".to_owned()));
    }
    let bundle = std::fs::read(bundle_file(served.folder.path())).unwrap();
    let listed: Vec<_> =
        rustls::pki_types::pem::PemObject::pem_slice_iter(&bundle).map(Result::unwrap).collect();
    let url = format!("https://{}/", served.address);
    get_by(Trust::Only(listed), url).await.unwrap();
}

#[tokio::test]
async fn who_does_not_trust_the_mesh_sends_nothing() {
    let served = serve().await;
    let error = get_by(Trust::default(), format!("https://{}/", served.address)).await.unwrap_err();
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
}

#[tokio::test]
async fn a_client_of_http_1_is_served_over_tls_1_2_and_1_3() {
    let served = serve().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(served.identity.roots_der().iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(served.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("hello"), "{text}");
    }
}

/// Believes everything and knows only the given schemes.
#[derive(Debug)]
struct Knows(Vec<SignatureScheme>);

impl ServerCertVerifier for Knows {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[tokio::test]
async fn a_client_without_ed25519_gets_a_certificate_that_it_can_at_least_read() {
    let served = serve().await;
    let browser = vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];
    let other = vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];
    for (schemes, certificates) in [(browser, 1), (other, 2)] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Knows(schemes)))
            .with_no_client_auth();
        let stream = TcpStream::connect(served.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap().len(), certificates);
    }
}

#[tokio::test]
async fn plain_http_is_told_what_the_port_speaks() {
    let served = serve().await;
    let client = http_client::build(Reach::Lan).unwrap();
    let big = "x".repeat(1 << 20);
    for body in ["", big.as_str()] {
        let request = client.post(format!("http://{}/v1/chat/completions", served.address));
        let answer = request.body(body.to_owned()).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        assert_eq!(answer.headers()[NODE_HEADER], "abcd");
        let body: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(body["error"]["code"], "https_required");
        assert!(body["error"]["message"].as_str().unwrap().contains("https://"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_shakes_hands_is_let_go() {
    let served = serve().await;
    for first in [&b""[..], &[HANDSHAKE_RECORD]] {
        let began = tokio::time::Instant::now();
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        silent.write_all(first).await.unwrap();
        let mut byte = [0];
        assert_eq!(silent.read(&mut byte).await.unwrap_or(0), 0);
        assert!(began.elapsed() >= HANDSHAKE_WAIT);
    }
}

/// A certificate that nobody else signed, for `name`, in two files.
fn own_pair(folder: &Path, name: &str) -> TlsFlags {
    let host = HostNames { names: [name.to_owned()].into(), ..HostNames::default() };
    let made = self_signed_api(&host, std::time::SystemTime::now()).unwrap();
    let (cert, key) = (folder.join("api.pem"), folder.join("api.key"));
    std::fs::write(&cert, to_pem(&made.chain)).unwrap();
    let pem = data_encoding::BASE64.encode(made.key.secret_pkcs8_der());
    std::fs::write(&key, format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n")).unwrap();
    TlsFlags { tls: None, tls_cert: Some(cert), tls_key: Some(key) }
}

#[tokio::test(start_paused = true)]
async fn a_renewed_certificate_of_the_users_own_is_shown_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::create_mesh(&folder.path().join("identity"), "first").unwrap());
    let config = config(folder.path(), own_pair(folder.path(), "one.example.org"));
    assert!(matches!(config.tls, ApiTls::Own { .. }), "on loopback as well");
    let shown = Shown::new(&config, &identity).unwrap().unwrap();
    let before = chain_of(&shown);
    own_pair(folder.path(), "two.example.org");
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::File::options()
        .append(true)
        .open(folder.path().join("api.key"))
        .and_then(|file| file.set_modified(later))
        .unwrap();
    let stop = CancellationToken::new();
    let (_, ()) = tokio::join!(shown.keep_fresh(stop.clone()), async {
        tokio::time::sleep(Duration::from_secs(90)).await;
        stop.cancel();
    });
    assert_ne!(chain_of(&shown), before);
}

#[test]
fn a_router_that_may_not_issue_yet_shows_a_certificate_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("identity");
    drop(Identity::create_mesh(&dir, "first").unwrap());
    let aside = folder.path().join("aside");
    std::fs::rename(dir.join("issuer.crt"), &aside).unwrap();
    let identity = Arc::new(Identity::load(&dir).unwrap().unwrap());
    assert!(!identity.can_issue());
    let config = config(folder.path(), TlsFlags { tls: Some(TlsMode::On), ..TlsFlags::default() });
    let shown = Shown::new(&config, &identity).unwrap().unwrap();
    assert_eq!(chain_of(&shown).len(), 1, "signed by itself alone");
}

#[test]
fn files_that_are_no_pair_are_refused_by_name_and_cause() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::create_mesh(&folder.path().join("identity"), "first").unwrap());
    let other = tempfile::tempdir().unwrap();
    let (good, foreign) = (own_pair(folder.path(), "a.example.org"), own_pair(other.path(), "b.example.org"));
    let (cert, key) = (good.tls_cert.unwrap(), good.tls_key.unwrap());
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let locked = write(
        "locked.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let empty = write("empty", "");
    let broken = write("broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (cert, key, cause) in [
        (folder.path().join("gone"), key.clone(), "cannot read the certificate"),
        (cert.clone(), folder.path().join("gone"), "cannot read the key"),
        (empty.clone(), key.clone(), "holds no certificate"),
        (broken, key.clone(), "damaged certificate"),
        (key.clone(), cert.clone(), "holds no certificate"),
        (cert.clone(), cert.clone(), "holds no private key"),
        (cert.clone(), locked, "encrypted key"),
        (cert, foreign.tls_key.unwrap(), "not the key of the certificate"),
    ] {
        let flags = TlsFlags { tls: None, tls_cert: Some(cert), tls_key: Some(key) };
        let error = Tls::new(&config(folder.path(), flags), &identity).err().unwrap().to_string();
        assert!(error.contains(cause), "{error} lacks {cause}");
    }
}

fn chain_of(shown: &Shown) -> Vec<CertificateDer<'static>> {
    shown.now().cert.clone()
}
