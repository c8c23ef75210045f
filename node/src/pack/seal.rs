//! Who signed a pack, and whether that is somebody to listen to.
//!
//! The signature is checked against the key in the file when the file is read; whose key that is, is a second
//! question. A router's certificates travel along, so that members of the same mesh need no key by hand. Anybody
//! else's key must be named: a stranger's pack moves where requests go, and so who is paid.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use shoal_cluster::identity::certificates::leaf_facts;
use shoal_cluster::identity::{Identity, signature_is_valid};
use shoal_cluster::ids::Role;
use shoal_proto::PackFile;

use super::Error;

/// First bytes of every signed message, so that the signature is good for nothing else.
const DOMAIN_TAG: &[u8] = b"shoal router pack v1\0";

/// Most bytes of certificates: two of some 600.
const MAX_CHAIN_BYTES: usize = 8 * 1024;

/// Who signed; the signature fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Ed25519 public key.
    pub public_key: [u8; 32],
    /// Certificates of the router, leaf first; empty where another tool signed.
    chain: Vec<Vec<u8>>,
}

/// As whose pack it may be adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// A router of this mesh signed it: its node id.
    OwnMesh(String),
    /// The key that the operator named signed it.
    NamedKey,
    /// The operator takes it without knowing whose it is.
    Unproven,
}

impl Trust {
    /// Returns the word under which it is shown and kept.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::OwnMesh(_) => "own_mesh",
            Self::NamedKey => "named_key",
            Self::Unproven => "unproven",
        }
    }
}

/// Why a pack is not adopted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody signed it.
    #[error("nobody signed this pack; if you know where it comes from, adopt it with --allow-unsigned")]
    Unsigned,
    /// A stranger signed it.
    #[error(
        "the pack is signed by a key that is not of this mesh ({0}); compare it with what its maker published, then adopt it with --key {0}"
    )]
    Stranger(String),
    /// Not the key that was named.
    #[error(
        "the pack is signed by {signed}, not by the key that was named; ask its maker which key is right"
    )]
    OtherKey {
        /// The key in the file.
        signed: String,
    },
}

impl Seal {
    /// Reads who signed a file; `None` if nobody did.
    ///
    /// # Errors
    /// [`Error::BadSignature`] if the signature does not fit, [`Error::NotAPack`] for fields of impossible lengths.
    pub(super) fn of(file: &PackFile) -> Result<Option<Self>, Error> {
        if file.signature.is_empty() && file.public_key.is_empty() && file.chain.is_empty() {
            return Ok(None);
        }
        let public_key: [u8; 32] = file.public_key.as_slice().try_into().map_err(|_| Error::BadSignature)?;
        if file.chain.iter().map(Vec::len).sum::<usize>() > MAX_CHAIN_BYTES {
            return Err(Error::NotAPack);
        }
        if !signature_is_valid(&public_key, &message(&file.body), &file.signature) {
            return Err(Error::BadSignature);
        }
        Ok(Some(Self { public_key, chain: file.chain.clone() }))
    }

    /// Returns the key in hexadecimal, as `--key` takes it.
    pub fn key_text(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.public_key)
    }

    /// Returns the router of this mesh that signed, if one did.
    fn member(&self, identity: &Identity, now: SystemTime) -> Option<String> {
        let chain: Vec<CertificateDer<'_>> =
            self.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let facts = identity.verify_chain(&chain, now).ok()?;
        let is_signer = facts.public_key == self.public_key && facts.peer.role == Role::Router;
        is_signer.then(|| facts.peer.id.to_string())
    }
}

/// Decides whether a pack may be adopted.
///
/// # Errors
/// The [`Refusal`], which names the option that would allow it.
pub fn trust(
    seal: Option<&Seal>,
    identity: &Identity,
    named_key: Option<&[u8]>,
    allow_unproven: bool,
    now: SystemTime,
) -> Result<Trust, Refusal> {
    let Some(seal) = seal else {
        // A key that was named is a demand, not a wish.
        return if allow_unproven && named_key.is_none() {
            Ok(Trust::Unproven)
        } else {
            Err(Refusal::Unsigned)
        };
    };
    if let Some(key) = named_key {
        return match key == seal.public_key {
            true => Ok(Trust::NamedKey),
            false => Err(Refusal::OtherKey { signed: seal.key_text() }),
        };
    }
    match seal.member(identity, now) {
        Some(id) => Ok(Trust::OwnMesh(id)),
        None if allow_unproven => Ok(Trust::Unproven),
        None => Err(Refusal::Stranger(seal.key_text())),
    }
}

/// Signs a file as this router.
pub(super) fn sign(identity: &Identity, mut file: PackFile) -> PackFile {
    file.chain = identity.chain_der().iter().map(|der| der.to_vec()).collect();
    file.public_key = identity
        .chain_der()
        .first()
        .and_then(|leaf| leaf_facts(leaf).ok())
        .map(|facts| facts.public_key)
        .unwrap_or_default();
    file.signature = identity.sign(&message(&file.body));
    file
}

fn message(body: &[u8]) -> Vec<u8> {
    [DOMAIN_TAG, body].concat()
}

#[cfg(test)]
mod tests {
    use super::super::{Header, RouterPack};
    use super::*;
    use prost::Message;
    use shoal_cluster::sim::issue_identity;
    use shoal_routing::Pack;

    fn signed(identity: &Identity) -> Vec<u8> {
        RouterPack::write_signed(&Header::default(), &Pack::default(), identity)
    }

    fn seal_of(bytes: &[u8]) -> Option<Seal> {
        RouterPack::read(bytes).unwrap().seal
    }

    #[test]
    fn own_routers_are_trusted_strangers_need_their_key_and_devices_do_not_count() {
        let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
        let first = Identity::create_mesh(folders[0].path(), "one").unwrap();
        let second = issue_identity(&first, Role::Router, folders[1].path()).unwrap();
        let device = issue_identity(&first, Role::Device, folders[2].path()).unwrap();
        let stranger = Identity::create_mesh(folders[3].path(), "other").unwrap();
        let now = SystemTime::now();
        let decide =
            |bytes: &[u8], key: Option<&[u8]>, allow| trust(seal_of(bytes).as_ref(), &first, key, allow, now);
        let member = signed(&second);
        assert_eq!(decide(&member, None, false), Ok(Trust::OwnMesh(second.node_id().to_string())));
        assert!(matches!(decide(&signed(&device), None, false), Err(Refusal::Stranger(_))));
        let foreign = signed(&stranger);
        let key = seal_of(&foreign).unwrap().public_key;
        assert!(matches!(decide(&foreign, None, false), Err(Refusal::Stranger(_))));
        assert_eq!(decide(&foreign, Some(&key), false), Ok(Trust::NamedKey));
        assert_eq!(decide(&foreign, None, true), Ok(Trust::Unproven));
        assert!(matches!(decide(&member, Some(&key), true), Err(Refusal::OtherKey { .. })));
        let bare = RouterPack::write(&Header::default(), &Pack::default());
        assert_eq!(decide(&bare, None, false), Err(Refusal::Unsigned));
        assert_eq!(decide(&bare, None, true), Ok(Trust::Unproven));
        assert_eq!(decide(&bare, Some(&key), true), Err(Refusal::Unsigned));
    }

    #[test]
    fn a_borrowed_chain_makes_nobody_a_member() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let first = Identity::create_mesh(folders[0].path(), "one").unwrap();
        let stranger = Identity::create_mesh(folders[1].path(), "other").unwrap();
        let mut seal = seal_of(&signed(&stranger)).unwrap();
        seal.chain = seal_of(&signed(&first)).unwrap().chain;
        let decided = trust(Some(&seal), &first, None, false, SystemTime::now());
        assert!(matches!(decided, Err(Refusal::Stranger(_))));
    }

    #[test]
    fn whatever_is_changed_breaks_the_seal() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::create_mesh(folder.path(), "one").unwrap();
        let bytes = signed(&identity);
        let file = PackFile::decode(&bytes[super::super::format::MAGIC.len()..]).unwrap();
        let changes: [fn(&mut PackFile); 4] = [
            |file| file.body.extend([0x10, 1]),
            |file| file.signature[3] ^= 1,
            |file| file.public_key[3] ^= 1,
            |file| file.signature.clear(),
        ];
        for change in changes {
            let mut file = file.clone();
            change(&mut file);
            assert_eq!(Seal::of(&file), Err(Error::BadSignature));
        }
    }
}
