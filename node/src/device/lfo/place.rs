//! Where a phone is and how it is spoken to: `lfo+http://host:5555` or `lfo+tcp://host:6000`.

use reqwest::Url;

/// Port of LFO's HTTP bridge.
const HTTP_PORT: u16 = 5555;

/// Port on which LFO's app itself listens.
const TCP_PORT: u16 = 6000;

/// Model name unless the URL says another: the one that LFO's clients know.
const MODEL: &str = "lfo-local-functiongemma";

/// Context of the app's model, in tokens, unless the URL says another.
const CONTEXT: u32 = 2048;

/// Longest model name taken from a URL.
const MAX_MODEL_NAME: usize = 128;

/// How a phone is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// `POST /completion` of LFO's bridge.
    Http,
    /// One JSON line each way on a connection of its own, as LFO's app takes it.
    Tcp,
}

/// A phone's address, and what it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// How it is spoken to.
    pub wire: Wire,
    /// Host and port, an IPv6 address in brackets.
    pub authority: String,
    /// Served model name, `?model=` in the URL. Default `lfo-local-functiongemma`.
    pub model: String,
    /// Context length in tokens, `?context=` in the URL. Default 2048.
    pub context: u32,
}

/// A URL that names no phone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the address of a phone; write lfo+http://HOST:5555 or lfo+tcp://HOST:6000")]
pub struct NotAPlace(String);

impl Place {
    /// True if the text has one of the two schemes, whether the rest of it fits or not.
    pub fn is_meant(url: &str) -> bool {
        url.starts_with("lfo+http://") || url.starts_with("lfo+tcp://")
    }

    /// Reads a URL such as `lfo+tcp://192.168.1.30:6000?model=gemma-3-1b&context=4096`.
    ///
    /// # Errors
    /// Another scheme, no host, a path, or a parameter that is not known.
    pub fn parse(text: &str) -> Result<Self, NotAPlace> {
        let wrong = || NotAPlace(text.to_owned());
        let url: Url = text.parse().map_err(|_| wrong())?;
        let (wire, port) = match url.scheme() {
            "lfo+http" => (Wire::Http, HTTP_PORT),
            "lfo+tcp" => (Wire::Tcp, TCP_PORT),
            _ => return Err(wrong()),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        if !matches!(url.path(), "" | "/") || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong());
        }
        let mut place = Self {
            wire,
            authority: format!("{host}:{}", url.port().unwrap_or(port)),
            model: MODEL.to_owned(),
            context: CONTEXT,
        };
        for (key, value) in url.query_pairs() {
            match &*key {
                "model" if valid_name(&value) => place.model = value.into_owned(),
                "context" => place.context = value.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?,
                _ => return Err(wrong()),
            }
        }
        Ok(place)
    }

    /// Name for people.
    pub fn name(&self) -> String {
        let scheme = match self.wire {
            Wire::Http => "lfo+http",
            Wire::Tcp => "lfo+tcp",
        };
        format!("{scheme}://{}", self.authority)
    }
}

fn valid_name(name: &str) -> bool {
    (1..=MAX_MODEL_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_schemes_have_their_port_and_model() {
        let place = Place::parse("lfo+http://192.168.1.30").unwrap();
        assert_eq!((place.wire, place.authority.as_str()), (Wire::Http, "192.168.1.30:5555"));
        assert_eq!((place.model.as_str(), place.context), ("lfo-local-functiongemma", 2048));
        let place = Place::parse("lfo+tcp://[fd00::7]?model=gemma-3-1b&context=4096").unwrap();
        assert_eq!((place.wire, place.authority.as_str()), (Wire::Tcp, "[fd00::7]:6000"));
        assert_eq!((place.model.as_str(), place.context), ("gemma-3-1b", 4096));
        assert_eq!(place.name(), "lfo+tcp://[fd00::7]:6000");
    }

    #[test]
    fn what_names_no_phone_is_refused_with_an_example() {
        for bad in [
            "http://192.168.1.30:5555",
            "lfo+udp://192.168.1.30",
            "lfo+tcp://",
            "lfo+tcp://host:6000/completion",
            "lfo+tcp://user@host",
            "lfo+tcp://host:99999",
            "lfo+tcp://host?model=",
            "lfo+tcp://host?model=a%20b",
            "lfo+tcp://host?context=0",
            "lfo+tcp://host?modell=x",
        ] {
            let error = Place::parse(bad).unwrap_err().to_string();
            assert!(error.contains("lfo+tcp://HOST:6000"), "{bad}: {error}");
        }
    }
}
