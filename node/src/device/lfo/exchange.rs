//! One question to a phone and its answer, over either wire; every byte of it bounded.

use std::time::Duration;

use http::header;
use reqwest::{Client, Url};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::place::{Place, Wire};
use crate::device::detect::NODE_HEADER;
use crate::upstream::http_client::{self, CONNECT_TIMEOUT_LAN};

/// Largest answer; the longest that the app's model can write has a few tens of kilobytes.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;

/// Longest wait for the answer to a probe: a phone that dozes answers late.
const PROBE_WAIT: Duration = Duration::from_secs(2);

/// Why an exchange gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// No connection.
    Refused,
    /// No answer in time.
    Silent,
    /// The connection ended before the answer did.
    Cut,
    /// More than [`MAX_ANSWER`].
    TooLong,
    /// The bridge answered with an error.
    Status(u16),
    /// A Shoal router listens there.
    ShoalNode,
}

impl Broken {
    /// Reads on after the phone's name.
    pub(super) fn sentence(self) -> String {
        match self {
            Broken::Refused => "does not answer: is the phone awake and LFO's app open?".into(),
            Broken::Silent => "did not answer in time".into(),
            Broken::Cut => "broke off in the middle of its answer".into(),
            Broken::TooLong => format!("answered with more than {} KiB", MAX_ANSWER / 1024),
            Broken::Status(status) => format!("answered with status {status}: does its bridge reach it?"),
            Broken::ShoalNode => {
                "is a Shoal node, not a phone: use `shoal join` to make them one mesh".into()
            }
        }
    }
}

/// The way to one phone.
pub(super) enum Line {
    Http { client: Client, base: Url },
    Tcp { authority: String },
}

impl Line {
    pub(super) fn new(place: &Place) -> Result<Self, http_client::Error> {
        match place.wire {
            Wire::Tcp => Ok(Line::Tcp { authority: place.authority.clone() }),
            Wire::Http => {
                let base: Url = format!("http://{}/", place.authority)
                    .parse()
                    .expect("a host and a port that were parsed make a URL");
                Ok(Line::Http { client: http_client::build(http_client::Reach::of(&base))?, base })
            }
        }
    }

    /// Asks whether anybody is there.
    pub(super) async fn probe(&self) -> Result<(), Broken> {
        let probe = async {
            match self {
                Line::Tcp { authority } => connect(authority).await.map(drop),
                Line::Http { client, base } => {
                    let url = base.join("health").expect("a base and a fixed path make a URL");
                    let response = client.get(url).send().await.map_err(|error| http_broken(&error))?;
                    // Older bridges have no such path; any answer but a server's failure shows a bridge.
                    match response.status().as_u16() {
                        _ if response.headers().contains_key(NODE_HEADER) => Err(Broken::ShoalNode),
                        status @ 500.. => Err(Broken::Status(status)),
                        _ => Ok(()),
                    }
                }
            }
        };
        tokio::time::timeout(PROBE_WAIT, probe).await.map_err(|_| Broken::Silent)?
    }

    /// Sends one request (a line without its end) and returns the JSON of the answer. The caller sets the limit in
    /// time; dropping the future closes the connection.
    pub(super) async fn exchange(&self, line: &[u8]) -> Result<Vec<u8>, Broken> {
        match self {
            Line::Tcp { authority } => by_tcp(authority, line).await,
            Line::Http { client, base } => by_http(client, base, line).await,
        }
    }
}

async fn connect(authority: &str) -> Result<TcpStream, Broken> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT_LAN, TcpStream::connect(authority));
    let socket = connecting.await.map_err(|_| Broken::Refused)?.map_err(|_| Broken::Refused)?;
    // One small write each way: nothing to be gained by waiting.
    let _ = socket.set_nodelay(true);
    Ok(socket)
}

/// The app takes one request a connection and closes it after the answer; one that keeps it open is as good.
async fn by_tcp(authority: &str, line: &[u8]) -> Result<Vec<u8>, Broken> {
    let mut socket = connect(authority).await?;
    let mut whole = Vec::with_capacity(line.len() + 1);
    whole.extend_from_slice(line);
    whole.push(b'\n');
    socket.write_all(&whole).await.map_err(|_| Broken::Cut)?;
    let mut answer = Vec::new();
    loop {
        let before = answer.len();
        // A byte above the cap is read, so that an answer of exactly the cap is told from a longer one.
        let read = (&mut socket).take((MAX_ANSWER + 1 - before) as u64).read_buf(&mut answer).await;
        let read = read.map_err(|_| Broken::Cut)?;
        if let Some(end) = memchr::memchr(b'\n', &answer[before..]) {
            answer.truncate(before + end);
            return Ok(answer);
        }
        if answer.len() > MAX_ANSWER {
            return Err(Broken::TooLong);
        }
        if read == 0 {
            // The bridge, too, takes a last line without an end; whether it is whole JSON shows at once.
            let whole = serde_json::from_slice::<serde::de::IgnoredAny>(&answer).is_ok();
            return if whole { Ok(answer) } else { Err(Broken::Cut) };
        }
    }
}

async fn by_http(client: &Client, base: &Url, body: &[u8]) -> Result<Vec<u8>, Broken> {
    let url = base.join("completion").expect("a base and a fixed path make a URL");
    let request = client.post(url).header(header::CONTENT_TYPE, "application/json").body(body.to_vec());
    let mut response = request.send().await.map_err(|error| http_broken(&error))?;
    if !response.status().is_success() {
        return Err(Broken::Status(response.status().as_u16()));
    }
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| Broken::Cut)? {
        if answer.len() + chunk.len() > MAX_ANSWER {
            return Err(Broken::TooLong);
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}

fn http_broken(error: &reqwest::Error) -> Broken {
    if error.is_connect() { Broken::Refused } else { Broken::Cut }
}
