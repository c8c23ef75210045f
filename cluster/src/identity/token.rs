//! The text that lets a machine into a mesh.
//!
//! `mj1_` and base64url of: version, role, mesh id, pin of the root, token id, secret, issuer, expiry and
//! the addresses to dial, then four bytes of checksum (the head of a SHA-256), so that a token that lost
//! characters in a chat window is told apart from one that is refused.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;

use super::certificates::sha256;
use crate::ids::{ID_LEN, MeshId, NodeId, Role};

/// First characters of every token.
pub const PREFIX: &str = "mj1_";
/// Layout that this program writes and reads.
const VERSION: u8 = 1;
/// Bytes of checksum at the end.
const CHECKSUM: usize = 4;
/// Most addresses in one token: the text must stay short enough to copy by hand or as a QR code.
pub const SEED_LIMIT: usize = 8;
/// Longest text that is looked at.
const TEXT_LIMIT: usize = 1024;

/// Text that is not a usable join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Does not begin like a token.
    #[error("this is not a join token; it should begin with mj1_. Make one with `shoal token create`")]
    NotAToken,
    /// Characters are missing or changed.
    #[error("the token is truncated or mistyped; copy it again, whole")]
    Damaged,
    /// Made by a newer program.
    #[error("the token was made by a newer version of Shoal; update this machine first")]
    Newer,
}

/// A join token, with its secret. [`fmt::Display`] gives the text to hand over; `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What the joiner becomes.
    pub role: Role,
    /// Mesh that it joins.
    pub mesh_id: MeshId,
    /// SHA-256 of the root's public key info.
    pub ca_pin: [u8; 32],
    /// Name of the token in its issuer's book.
    pub token_id: [u8; 8],
    /// Proof of possession; the book keeps only its SHA-256.
    pub secret: [u8; 32],
    /// Node that made the token and alone can redeem it.
    pub issuer: NodeId,
    /// End of validity, seconds since the Unix epoch.
    pub expires_unix_s: u64,
    /// Mesh addresses to dial, best first; at most [`SEED_LIMIT`] are written.
    pub seeds: Vec<SocketAddr>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("role", &self.role)
            .field("mesh_id", &self.mesh_id)
            .field("token_id", &data_encoding::HEXLOWER.encode(&self.token_id))
            .field("issuer", &self.issuer)
            .field("expires_unix_s", &self.expires_unix_s)
            .field("seeds", &self.seeds)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION, self.role as u8];
        bytes.extend_from_slice(&self.mesh_id.0);
        bytes.extend_from_slice(&self.ca_pin);
        bytes.extend_from_slice(&self.token_id);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(self.issuer.as_str().as_bytes());
        bytes.extend_from_slice(&self.expires_unix_s.to_be_bytes());
        let seeds = &self.seeds[..self.seeds.len().min(SEED_LIMIT)];
        bytes.push(seeds.len() as u8);
        for seed in seeds {
            match seed.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&seed.port().to_be_bytes());
        }
        let checksum = sha256(&bytes);
        bytes.extend_from_slice(&checksum[..CHECKSUM]);
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or_else(|| unknown_prefix(text))?;
        if body.len() > TEXT_LIMIT {
            return Err(InvalidToken::Damaged);
        }
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| InvalidToken::Damaged)?;
        let split = bytes.len().checked_sub(CHECKSUM).ok_or(InvalidToken::Damaged)?;
        let (content, checksum) = bytes.split_at(split);
        if sha256(content)[..CHECKSUM] != *checksum {
            return Err(InvalidToken::Damaged);
        }
        parse(content)
    }
}

/// `mj2_…` is a later layout; anything else is no token.
fn unknown_prefix(text: &str) -> InvalidToken {
    let later = text
        .strip_prefix("mj")
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(number, _)| number.parse::<u32>().is_ok_and(|n| n > 1));
    if later { InvalidToken::Newer } else { InvalidToken::NotAToken }
}

fn parse(content: &[u8]) -> Result<JoinToken, InvalidToken> {
    let mut rest = Reader(content);
    if rest.byte()? != VERSION {
        return Err(InvalidToken::Newer);
    }
    let role = match rest.byte()? {
        byte if byte == Role::Router as u8 => Role::Router,
        byte if byte == Role::Device as u8 => Role::Device,
        _ => return Err(InvalidToken::Newer),
    };
    let mesh_id = MeshId(rest.array()?);
    let ca_pin = rest.array()?;
    let token_id = rest.array()?;
    let secret = rest.array()?;
    let issuer: [u8; ID_LEN] = rest.array()?;
    let issuer =
        std::str::from_utf8(&issuer).ok().and_then(|text| text.parse().ok()).ok_or(InvalidToken::Damaged)?;
    let expires_unix_s = u64::from_be_bytes(rest.array()?);
    let count = usize::from(rest.byte()?);
    let mut seeds = Vec::with_capacity(count.min(SEED_LIMIT));
    for _ in 0..count {
        let ip = match rest.byte()? {
            4 => IpAddr::from(rest.array::<4>()?),
            6 => IpAddr::from(rest.array::<16>()?),
            _ => return Err(InvalidToken::Newer),
        };
        seeds.push(SocketAddr::new(ip, u16::from_be_bytes(rest.array()?)));
    }
    if !rest.0.is_empty() {
        return Err(InvalidToken::Newer);
    }
    Ok(JoinToken { role, mesh_id, ca_pin, token_id, secret, issuer, expires_unix_s, seeds })
}

/// Takes fields off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], InvalidToken> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(InvalidToken::Damaged)?;
        self.0 = tail;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, InvalidToken> {
        Ok(self.array::<1>()?[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            role: Role::Device,
            mesh_id: MeshId([1; 16]),
            ca_pin: [2; 32],
            token_id: [3; 8],
            secret: [0xAB; 32],
            issuer: NodeId::from_spki(b"issuer"),
            expires_unix_s: 1_900_000_000,
            seeds: vec!["192.0.2.7:7411".parse().unwrap(), "[2001:db8::1]:7411".parse().unwrap()],
        }
    }

    #[test]
    fn text_round_trip_also_with_blanks_around() {
        let token = token();
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!("  {token}\n").parse::<JoinToken>().unwrap(), token);
    }

    #[test]
    fn each_kind_of_bad_text_says_what_is_wrong() {
        let good = token().to_string();
        let check = |text: &str, expected| assert_eq!(text.parse::<JoinToken>(), Err(expected), "{text}");
        check("", InvalidToken::NotAToken);
        check("sk-shoal-abc", InvalidToken::NotAToken);
        check("mj1_", InvalidToken::Damaged);
        check(&good[..good.len() - 5], InvalidToken::Damaged);
        check(&format!("{PREFIX}{}", "A".repeat(TEXT_LIMIT + 1)), InvalidToken::Damaged);
        check("mj2_abcdef", InvalidToken::Newer);
        let mut newer = vec![VERSION + 1, 9, 9];
        let checksum = sha256(&newer);
        newer.extend_from_slice(&checksum[..CHECKSUM]);
        check(&format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&newer)), InvalidToken::Newer);
    }

    #[test]
    fn every_single_mistyped_character_is_noticed() {
        let good = token().to_string();
        for at in PREFIX.len()..good.len() {
            let mut text = good.clone().into_bytes();
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text.parse::<JoinToken>(), Err(InvalidToken::Damaged), "at {at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(mj1_)?[A-Za-z0-9_-]{0,400}") {
            let _ = text.parse::<JoinToken>();
        }

        #[test]
        fn no_content_with_a_right_checksum_panics(mut bytes: Vec<u8>, versioned: bool) {
            if versioned && !bytes.is_empty() {
                bytes[0] = VERSION;
            }
            let checksum = sha256(&bytes);
            bytes.extend_from_slice(&checksum[..CHECKSUM]);
            let text = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes));
            if let Ok(token) = text.parse::<JoinToken>() {
                proptest::prop_assert_eq!(token.to_string(), text);
            }
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
        assert!(shown.contains("Device"));
    }

    #[test]
    fn only_the_first_seeds_are_written() {
        let mut long = token();
        long.seeds = vec!["192.0.2.7:7411".parse().unwrap(); SEED_LIMIT + 3];
        assert_eq!(long.to_string().parse::<JoinToken>().unwrap().seeds.len(), SEED_LIMIT);
    }
}
