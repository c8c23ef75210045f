//! Responses that are kept are sealed for the API key that asked for them.
//!
//! A node has only hashes of keys on its disk, so whoever reads the disk reads no prompt and no answer: they open with
//! the key's own text, which only comes with the client's next request. That also holds for the node that is asked by
//! another one to hand a response over. Callers without a key have a secret of this run: what they kept ends with it.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};

/// Separates these keys from any other use of a key's text.
const SALT: &[u8] = b"shoal kept response 1";

/// Seals and opens what one caller keeps.
#[derive(Debug, Clone)]
pub(super) struct Seal(Prk);

impl Seal {
    /// Makes the seal of a secret of high entropy: an API key's text.
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(Salt::new(HKDF_SHA256, SALT).extract(secret))
    }

    /// Makes the seal of this run, for callers without a key; `None` if the system gives no random bytes.
    pub(super) fn of_this_run() -> Option<Self> {
        let mut secret = [0_u8; 32];
        SystemRandom::new().fill(&mut secret).ok()?;
        Some(Self::new(&secret))
    }

    /// Seals what is kept under an id. An id is used once: its key then seals one message only, so the nonce is free.
    pub(super) fn close(&self, id: &str, mut plain: Vec<u8>) -> Option<Vec<u8>> {
        self.key(id)?.seal_in_place_append_tag(nonce(), Aad::empty(), &mut plain).ok()?;
        Some(plain)
    }

    /// Opens what was sealed under an id; `None` if it was for another caller, or is damaged.
    pub(super) fn open(&self, id: &str, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let length = self.key(id)?.open_in_place(nonce(), Aad::empty(), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }

    fn key(&self, id: &str) -> Option<LessSafeKey> {
        let info = [id.as_bytes()];
        let key: UnboundKey = self.0.expand(&info, &CHACHA20_POLY1305).ok()?.into();
        Some(LessSafeKey::new(key))
    }
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_and_only_under_the_same_id() {
        let seal = Seal::new(b"sk-shoal-a_secret");
        let sealed = seal.close("resp_1", b"what was said".to_vec()).unwrap();
        assert!(!sealed.windows(4).any(|part| part == b"said"));
        let again = Seal::new(b"sk-shoal-a_secret");
        assert_eq!(again.open("resp_1", sealed.clone()).as_deref(), Some(&b"what was said"[..]));
        assert_eq!(again.open("resp_2", sealed.clone()), None);
        assert_eq!(Seal::new(b"sk-shoal-b_secret").open("resp_1", sealed.clone()), None);
        let mut damaged = sealed;
        damaged[0] ^= 1;
        assert_eq!(again.open("resp_1", damaged), None);
    }

    #[test]
    fn each_run_has_its_own_secret_for_callers_without_a_key() {
        let sealed = Seal::of_this_run().unwrap().close("resp_1", b"x".to_vec()).unwrap();
        assert_eq!(Seal::of_this_run().unwrap().open("resp_1", sealed), None);
    }
}
