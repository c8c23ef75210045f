//! Who may look: a one-time code from a printed link becomes a session in a cookie.
//!
//! A page is opened by a person with a browser, who has no API key in hand; a link that works once and briefly
//! may safely stand in a terminal. Secrets are kept as hashes, so that a memory dump opens nothing, and compared
//! in constant time, all of them on every try. Nothing is stored: after a restart, `shoal dashboard` prints a new
//! link.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use rand::Rng;
use ring::digest;
use subtle::{Choice, ConstantTimeEq};

/// Life of a printed code.
pub const CODE_LIFE: Duration = Duration::from_secs(600);
/// Life of a session: a working day, then a new link.
pub const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Codes that wait to be used; one more and the oldest is worthless.
const MAX_CODES: usize = 16;
/// Sessions at once; one more and the oldest is logged out.
const MAX_SESSIONS: usize = 32;
/// Bytes of a code and of a session's secret: 128 bits cannot be guessed.
const SECRET_BYTES: usize = 16;

/// Codes and sessions of this node.
#[derive(Debug, Default)]
pub struct Door {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    codes: Vec<Pass>,
    sessions: Vec<Pass>,
}

#[derive(Debug)]
struct Pass {
    hash: [u8; 32],
    ends: Instant,
}

impl Door {
    /// Makes a code that opens one session within [`CODE_LIFE`].
    pub fn new_code(&self, now: Instant) -> String {
        issue(&mut self.lock().codes, MAX_CODES, now, CODE_LIFE)
    }

    /// Takes a code in for a session's secret; `None` if it is wrong, used or too old.
    pub fn redeem(&self, code: &str, now: Instant) -> Option<String> {
        let mut inner = self.lock();
        let place = position(&inner.codes, code, now)?;
        inner.codes.remove(place);
        Some(issue(&mut inner.sessions, MAX_SESSIONS, now, SESSION_LIFE))
    }

    /// Returns true when the secret is that of a session that has not ended.
    pub fn admits(&self, secret: &str, now: Instant) -> bool {
        position(&self.lock().sessions, secret, now).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn issue(passes: &mut Vec<Pass>, most: usize, now: Instant, life: Duration) -> String {
    passes.retain(|p| p.ends > now);
    // The newest are at the end.
    if passes.len() >= most {
        passes.remove(0);
    }
    let mut secret = [0_u8; SECRET_BYTES];
    rand::rng().fill_bytes(&mut secret);
    let text = HEXLOWER.encode(&secret);
    passes.push(Pass { hash: hash(&text), ends: now + life });
    text
}

fn position(passes: &[Pass], text: &str, now: Instant) -> Option<usize> {
    let wanted = hash(text);
    let mut found = None;
    for (index, pass) in passes.iter().enumerate() {
        let same = pass.hash.ct_eq(&wanted) & Choice::from(u8::from(pass.ends > now));
        if same.into() {
            found = Some(index);
        }
    }
    found
}

fn hash(text: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Returns the session cookie's name: browsers share cookies among the ports of a host, so each node has its own.
pub(super) fn cookie_name(node_short: &str) -> String {
    format!("shoal_session_{node_short}")
}

/// Writes the `Set-Cookie` value; `secure` when the node is reached by https.
pub(super) fn cookie(name: &str, secret: &str, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    let max_age = SESSION_LIFE.as_secs();
    format!("{name}={secret}; Path=/dashboard; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}")
}

/// Finds a cookie in the `Cookie` headers.
pub(super) fn from_headers<'a>(headers: &'a http::HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(http::header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_opens_one_session_and_never_a_second() {
        let (door, now) = (Door::default(), Instant::now());
        let code = door.new_code(now);
        assert_eq!(code.len(), 32, "128 bits");
        let secret = door.redeem(&code, now).unwrap();
        assert!(door.redeem(&code, now).is_none());
        assert!(door.admits(&secret, now));
        assert!(!door.admits(&code, now), "a code is no session");
        assert!(!door.admits("", now));
    }

    #[test]
    fn codes_and_sessions_end() {
        let (door, now) = (Door::default(), Instant::now());
        let (used, late) = (door.new_code(now), door.new_code(now));
        let secret = door.redeem(&used, now).unwrap();
        assert!(door.redeem(&late, now + CODE_LIFE).is_none());
        assert!(door.admits(&secret, now + SESSION_LIFE - Duration::from_secs(1)));
        assert!(!door.admits(&secret, now + SESSION_LIFE));
    }

    #[test]
    fn both_are_bounded_and_the_oldest_gives_way() {
        let (door, now) = (Door::default(), Instant::now());
        let codes: Vec<String> = (0..=MAX_CODES).map(|_| door.new_code(now)).collect();
        assert!(door.redeem(&codes[0], now).is_none());
        let first = door.redeem(&codes[1], now).unwrap();
        for _ in 0..MAX_SESSIONS {
            assert!(door.admits(&first, now));
            let code = door.new_code(now);
            door.redeem(&code, now).unwrap();
        }
        assert!(!door.admits(&first, now));
        assert_eq!(door.lock().sessions.len(), MAX_SESSIONS);
    }

    #[test]
    fn the_cookie_is_out_of_reach_of_scripts_and_other_sites() {
        let plain = cookie("s", "x", false);
        for part in ["s=x; ", "; HttpOnly", "; SameSite=Strict", "; Path=/dashboard", "; Max-Age=43200"] {
            assert!(plain.contains(part), "{part} in {plain}");
        }
        assert!(!plain.contains("Secure"));
        assert!(cookie("s", "x", true).ends_with("; Secure"));
    }

    #[test]
    fn the_cookie_is_found_by_its_whole_name() {
        let mut headers = http::HeaderMap::new();
        headers.append("cookie", "a=1; xs=no; s=yes==; s=later".parse().unwrap());
        assert_eq!(from_headers(&headers, "s"), Some("yes=="));
        assert_eq!(from_headers(&headers, "t"), None);
    }
}
