//! LFO's variables, so that its users switch by changing the command.
//!
//! Any of them (but `PORT` alone) switches on LFO's manners: answers also carry `lfo_metadata`, and prompts above a limit in tokens are
//! not sent to devices in mode `auto`. Shoal's own settings win over `PORT`, which many other programs set too. The
//! auth token is hashed as soon as it is read; its text is not kept.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use ring::digest::{SHA256, digest};

use super::{Error, lookup};
use crate::device::lfo::Place;

/// Longest local prompt unless `MAX_LOCAL_TOKENS` says otherwise; LFO's own.
pub const DEFAULT_MAX_LOCAL_TOKENS: u32 = 1500;

/// Where LFO looks for its bridge.
const DEFAULT_HOST: &str = "127.0.0.1";

/// Port of LFO's bridge, HTTP.
const BRIDGE_PORT: u16 = 5555;

/// Port of LFO's app itself: a raw socket. The bridge's own configuration names it as `ANDROID_PORT`.
const APP_PORT: u16 = 6000;

/// What LFO's variables ask for.
#[derive(Clone, PartialEq, Eq)]
pub struct LfoManners {
    /// URL of the phone, `lfo+http://…` or `lfo+tcp://…`, from `ANDROID_HOST` and `ANDROID_PORT`.
    pub phone: Option<String>,
    /// Longest prompt in tokens that mode `auto` sends to a device, from `MAX_LOCAL_TOKENS`. Default 1500.
    pub max_local_tokens: u32,
    /// SHA-256 of `LFO_AUTH_TOKEN`, accepted as an API key.
    pub auth_sha256: Option<[u8; 32]>,
    /// Address from `PORT`, on loopback.
    pub listen: Option<SocketAddr>,
    seen: Vec<&'static str>,
}

impl fmt::Debug for LfoManners {
    /// Leaves the hash out: a short token could be guessed from it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LfoManners")
            .field("phone", &self.phone)
            .field("max_local_tokens", &self.max_local_tokens)
            .field("auth", &self.auth_sha256.is_some())
            .field("listen", &self.listen)
            .finish()
    }
}

impl LfoManners {
    /// Reads the variables; `None` if not one of them is set.
    ///
    /// # Errors
    /// One of them has a value that makes no sense; the error names it.
    pub fn from_env(env: &[(String, String)]) -> Result<Option<Self>, Error> {
        let mut manners = Self {
            phone: None,
            max_local_tokens: DEFAULT_MAX_LOCAL_TOKENS,
            auth_sha256: None,
            listen: None,
            seen: Vec::new(),
        };
        let names = ["ANDROID_HOST", "ANDROID_PORT", "MAX_LOCAL_TOKENS", "LFO_AUTH_TOKEN", "PORT"];
        for name in names {
            if lookup(env, name).is_some() {
                manners.seen.push(name);
            }
        }
        // `PORT` alone is everybody's: many hosts set it for whatever they start.
        if manners.seen.iter().all(|name| *name == "PORT") {
            return Ok(None);
        }
        manners.phone = phone(env)?;
        if let Some(text) = lookup(env, "MAX_LOCAL_TOKENS") {
            manners.max_local_tokens = number("MAX_LOCAL_TOKENS", text)?;
        }
        if let Some(text) = lookup(env, "PORT") {
            manners.listen = Some((Ipv4Addr::LOCALHOST, number("PORT", text)?).into());
        }
        manners.auth_sha256 = lookup(env, "LFO_AUTH_TOKEN").map(sha256);
        Ok(Some(manners))
    }

    /// Says for each variable that is set what came of it, a line each.
    pub fn announcements(&self, listens: SocketAddr) -> Vec<String> {
        let line = |name: &&'static str| match *name {
            "ANDROID_HOST" | "ANDROID_PORT" => {
                format!("{name}: the phone at {} is a device", self.phone.as_deref().unwrap_or("-"))
            }
            "MAX_LOCAL_TOKENS" => {
                format!("{name}: longest prompt for devices in mode auto is {} tokens", self.max_local_tokens)
            }
            "LFO_AUTH_TOKEN" => format!("{name}: accepted as an API key of this node"),
            _ if self.listen == Some(listens) => format!("{name}: the API is on {listens}"),
            _ => format!("{name}: not used, since the address of the API was set otherwise"),
        };
        // Both variables of the phone say the same thing.
        let mut lines: Vec<String> = self
            .seen
            .iter()
            .filter(|name| **name != "ANDROID_PORT" || !self.seen.contains(&"ANDROID_HOST"))
            .map(line)
            .collect();
        if !self.seen.contains(&"MAX_LOCAL_TOKENS") {
            lines.push(line(&"MAX_LOCAL_TOKENS").replacen("MAX_LOCAL_TOKENS", "LFO's default", 1));
        }
        lines.push("answers also carry lfo_metadata".into());
        lines
    }
}

fn sha256(text: &str) -> [u8; 32] {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn phone(env: &[(String, String)]) -> Result<Option<String>, Error> {
    let (host, port) = (lookup(env, "ANDROID_HOST"), lookup(env, "ANDROID_PORT"));
    if host.is_none() && port.is_none() {
        return Ok(None);
    }
    let host = host.unwrap_or(DEFAULT_HOST).trim();
    let bare_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
    let (host, own_port) = match host.rsplit_once(':') {
        Some((name, digits)) if !bare_v6 && !digits.ends_with(']') => {
            (name, Some(number::<u16>("ANDROID_HOST", digits)?))
        }
        _ => (host, None),
    };
    let port = match (own_port, port) {
        (Some(port), _) => port,
        (None, Some(text)) => number("ANDROID_PORT", text)?,
        (None, None) => BRIDGE_PORT,
    };
    let scheme = if port == APP_PORT { "lfo+tcp" } else { "lfo+http" };
    let url =
        if bare_v6 { format!("{scheme}://[{host}]:{port}") } else { format!("{scheme}://{host}:{port}") };
    let wrong = |_| invalid("ANDROID_HOST", host, "a host name or address such as 192.168.1.30");
    Place::parse(&url).map_err(wrong)?;
    Ok(Some(url))
}

fn number<N: std::str::FromStr + PartialEq + From<u8>>(name: &str, text: &str) -> Result<N, Error> {
    let parsed = text.trim().parse().ok().filter(|n| *n != N::from(0));
    parsed.ok_or_else(|| invalid(name, text, "a number above 0"))
}

fn invalid(name: &str, text: &str, wanted: &str) -> Error {
    Error::Invalid {
        origin: name.to_owned(),
        message: format!("'{text}' is not {wanted}; correct or unset it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Flags};

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> LfoManners {
        LfoManners::from_env(&env(pairs)).unwrap().expect("a variable is set")
    }

    #[test]
    fn nothing_set_changes_nothing() {
        for others in [("HOME", "/x"), ("PORT", ""), ("PORT", "3000"), ("PORT", "http")] {
            assert_eq!(LfoManners::from_env(&env(&[others])).unwrap(), None, "{others:?}");
        }
        let config = Config::load(Flags::default(), &env(&[("HOME", "/nowhere")])).unwrap();
        assert!(config.lfo.is_none() && config.devices.is_empty());
    }

    #[test]
    fn the_phones_variables_name_a_device() {
        for (pairs, url) in [
            (&[("ANDROID_HOST", "192.168.0.50")][..], "lfo+http://192.168.0.50:5555"),
            (&[("ANDROID_HOST", "192.168.0.50"), ("ANDROID_PORT", "6000")], "lfo+tcp://192.168.0.50:6000"),
            (&[("ANDROID_HOST", "pixel:7777"), ("ANDROID_PORT", "6000")], "lfo+http://pixel:7777"),
            (&[("ANDROID_HOST", "fd00::7")], "lfo+http://[fd00::7]:5555"),
            (&[("ANDROID_HOST", "[fd00::7]:6000")], "lfo+tcp://[fd00::7]:6000"),
            (&[("ANDROID_PORT", "5556")], "lfo+http://127.0.0.1:5556"),
        ] {
            assert_eq!(read(pairs).phone.as_deref(), Some(url), "{pairs:?}");
            let config = Config::load(Flags::default(), &env(pairs)).unwrap();
            assert_eq!(config.devices[0].url, url);
        }
    }

    #[test]
    fn limits_port_and_token_are_understood_and_the_token_is_not_kept() {
        let pairs = [("MAX_LOCAL_TOKENS", "900"), ("PORT", "9090"), ("LFO_AUTH_TOKEN", "my-secret-token")];
        let config = Config::load(Flags::default(), &env(&pairs)).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:9090");
        assert!(config.listen_chosen);
        assert!(!format!("{config:?}").contains("my-secret-token"));
        let lfo = config.lfo.unwrap();
        assert_eq!(lfo.max_local_tokens, 900);
        assert_eq!(lfo.auth_sha256, Some(sha256("my-secret-token")));
        assert_eq!(read(&[("LFO_AUTH_TOKEN", "t")]).max_local_tokens, DEFAULT_MAX_LOCAL_TOKENS);
    }

    #[test]
    fn shoals_own_address_wins_over_port() {
        let pairs = [("PORT", "9090"), ("LFO_AUTH_TOKEN", "t"), ("SHOAL_LISTEN", "127.0.0.1:7070")];
        let config = Config::load(Flags::default(), &env(&pairs)).unwrap();
        assert_eq!(config.listen.port(), 7070);
        let lines = config.lfo.unwrap().announcements(config.listen);
        assert!(lines.iter().any(|line| line.starts_with("PORT: not used")), "{lines:?}");
    }

    #[test]
    fn each_variable_is_announced_in_one_line_without_its_secret() {
        let lfo = read(&[
            ("ANDROID_HOST", "pixel"),
            ("ANDROID_PORT", "6000"),
            ("MAX_LOCAL_TOKENS", "900"),
            ("LFO_AUTH_TOKEN", "my-secret-token"),
            ("PORT", "9090"),
        ]);
        let lines = lfo.announcements("127.0.0.1:9090".parse().unwrap());
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(lines[0].contains("lfo+tcp://pixel:6000") && lines[1].contains("900"));
        assert!(lines.iter().all(|line| !line.contains("my-secret-token")));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (name, value) in [
            ("PORT", "0"),
            ("PORT", "http"),
            ("ANDROID_PORT", "99999"),
            ("ANDROID_HOST", "a b"),
            ("ANDROID_HOST", "pixel:x"),
            ("MAX_LOCAL_TOKENS", "-1"),
        ] {
            let error = LfoManners::from_env(&env(&[(name, value), ("LFO_AUTH_TOKEN", "t")]))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(name), "{name}={value}: {error}");
        }
    }
}
