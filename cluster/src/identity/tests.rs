//! Making, reading and mistreating identities.

use std::fs;
use std::time::Duration;

use super::*;

fn mesh() -> (tempfile::TempDir, Identity) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::create_mesh(folder.path(), "first").unwrap();
    (folder, identity)
}

#[test]
fn a_new_mesh_is_read_back_whole() {
    let (folder, made) = mesh();
    let read = Identity::load(folder.path()).unwrap().unwrap();
    assert_eq!(read.peer(), made.peer());
    assert_eq!(read.role(), Role::Router);
    assert_eq!(read.mesh_id(), made.mesh_id());
    assert_eq!(read.ca_pin(), made.ca_pin());
    assert_eq!(read.chain_der(), made.chain_der());
    assert_eq!(read.expires(), made.expires());
    assert!(read.holds_root() && read.can_issue());
    let facts = made.verify_chain(read.chain_der(), SystemTime::now()).unwrap();
    assert!(signature_is_valid(&facts.public_key, b"words", &read.sign(b"words")));
    assert!(!signature_is_valid(&facts.public_key, b"other words", &read.sign(b"words")));
    assert_eq!(read.derived_secret("a"), made.derived_secret("a"));
    assert_ne!(read.derived_secret("a"), made.derived_secret("b"));
}

#[test]
fn an_empty_folder_or_an_unfinished_join_holds_no_identity() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Identity::load(folder.path()).unwrap().is_none());
    key_for_join(folder.path()).unwrap();
    assert!(Identity::load(folder.path()).unwrap().is_none());
}

#[test]
fn a_second_mesh_in_one_folder_is_refused() {
    let (folder, _) = mesh();
    assert!(matches!(Identity::create_mesh(folder.path(), "again"), Err(Error::Exists(_))));
}

#[test]
fn damage_names_the_file_and_the_way_out() {
    for file in [NODE_KEY, NODE_CHAIN, CA_BUNDLE, ISSUER_KEY, ISSUER_CERTIFICATE, ROOT_KEY] {
        let (folder, _) = mesh();
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        let said = Identity::load(folder.path()).unwrap_err().to_string();
        assert!(said.contains(file), "{file}: {said}");
        assert!(said.contains("new token"), "{file}: {said}");
    }
    for file in [NODE_KEY, CA_BUNDLE, ISSUER_KEY] {
        let (folder, _) = mesh();
        fs::remove_file(folder.path().join(file)).unwrap();
        let said = Identity::load(folder.path()).unwrap_err().to_string();
        assert!(said.contains(file) && said.contains("missing"), "{file}: {said}");
    }
}

#[test]
fn another_nodes_key_is_damage() {
    let ((folder, _), (other, _)) = (mesh(), mesh());
    fs::copy(other.path().join(NODE_KEY), folder.path().join(NODE_KEY)).unwrap();
    assert!(matches!(Identity::load(folder.path()), Err(Error::Damaged { .. })));
}

#[test]
fn chains_of_another_mesh_and_of_another_time_are_refused() {
    let ((_a, ours), (_b, theirs)) = (mesh(), mesh());
    let now = SystemTime::now();
    assert!(matches!(ours.verify_chain(theirs.chain_der(), now), Err(CertificateError::Untrusted(_))));
    assert_eq!(ours.verify_chain(&[], now), Err(CertificateError::Missing));
    let late = ours.expires() + Duration::from_secs(1);
    assert!(matches!(ours.verify_chain(ours.chain_der(), late), Err(CertificateError::Untrusted(_))));
    let early = now - Duration::from_secs(14 * 3600);
    assert!(ours.verify_chain(ours.chain_der(), early).is_ok(), "a slow clock must be tolerated");
}

#[test]
fn an_issuing_certificate_is_no_identity_and_issues_no_other() {
    let (_folder, root) = mesh();
    let now = SystemTime::now();
    assert!(root.verify_chain(&root.chain_der()[1..], now).is_err(), "an authority passed as a leaf");

    let (key, request) = root.request_issuer().unwrap();
    let issuer = Authority { certificate: root.sign_issuer(&request, root.node_id(), now).unwrap(), key };
    let (second_key, second_request) = root.request_issuer().unwrap();
    let second = Authority {
        certificate: issuer.sign_issuer(&second_request, root.node_id(), now).unwrap(),
        key: second_key,
    };
    let (_, csr) = root.request_issuer().unwrap();
    let (_, leaf) = second.sign_leaf(&csr, root.mesh_id(), Role::Router, "", now).unwrap();
    let chain = [leaf, second.certificate, issuer.certificate];
    assert!(matches!(root.verify_chain(&chain, now), Err(CertificateError::Untrusted(_))));
}

#[test]
fn a_joined_router_gains_an_issuer_at_run_time_and_keeps_it() {
    let (_folder, root) = mesh();
    let now = SystemTime::now();
    let home = tempfile::tempdir().unwrap();
    let (key, csr) = key_for_join(home.path()).unwrap();
    let (peer, chain) = root.issue(&csr, Role::Router, "second", now).unwrap();
    let joined = Identity::establish(home.path(), key, chain, root.roots_der().to_vec()).unwrap();
    assert_eq!(joined.peer(), &peer);
    assert!(!joined.can_issue() && !joined.holds_root());
    assert!(matches!(joined.issue(&csr, Role::Device, "", now), Err(Error::CannotIssue)));
    assert!(matches!(joined.sign_issuer(&csr, root.node_id(), now), Err(Error::NotRootHolder)));

    let (key, request) = joined.request_issuer().unwrap();
    joined.install_issuer(key, root.sign_issuer(&request, joined.node_id(), now).unwrap()).unwrap();
    let again = Identity::load(home.path()).unwrap().unwrap();
    assert!(again.can_issue());
    let (device, chain) = again.issue(&csr, Role::Device, "phone", now).unwrap();
    assert_eq!(root.verify_chain(&chain, now).unwrap().peer, device);
}

#[test]
fn a_foreign_issuer_is_not_installed() {
    let ((_a, ours), (_b, theirs)) = (mesh(), mesh());
    let (key, request) = ours.request_issuer().unwrap();
    let foreign = theirs.sign_issuer(&request, ours.node_id(), SystemTime::now()).unwrap();
    assert!(matches!(ours.install_issuer(key, foreign), Err(Error::Certificate(_))));
}
