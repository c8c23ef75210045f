//! Models that Shoal knows by name, and how other names of models are read.

use super::fetch::Download;

/// Address of the model hub; `HF_ENDPOINT` names another one.
pub(super) const HUB: &str = "https://huggingface.co";

/// Index in [`KNOWN`] of the model that is fetched if none is named.
pub const DEFAULT: usize = 0;

/// Index in [`KNOWN`] of the small model that stands in where no hub is reachable.
pub const FALLBACK: usize = 1;

/// A model that has a name.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Name for `--model` and `shoal pull`.
    pub name: &'static str,
    /// Name of its file.
    pub file: &'static str,
    /// `owner/repository` on the hub; `None` if it comes by `pip`.
    pub repository: Option<&'static str>,
    /// SHA-256 in hex. `None`: the file is checked against the size and the SHA-256 that the hub states for it.
    pub sha256: Option<&'static str>,
}

/// All known models, the default one first.
pub const KNOWN: [Known; 5] = [
    Known {
        name: "qwen2.5-1.5b-instruct",
        file: "qwen2.5-1.5b-instruct-q4_k_m.gguf",
        repository: Some("Qwen/Qwen2.5-1.5B-Instruct-GGUF"),
        sha256: None,
    },
    Known {
        name: "smollm2-135m-instruct",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        repository: None,
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    },
    Known {
        name: "qwen2.5-0.5b-instruct",
        file: "qwen2.5-0.5b-instruct-q4_k_m.gguf",
        repository: Some("Qwen/Qwen2.5-0.5B-Instruct-GGUF"),
        sha256: None,
    },
    Known {
        name: "qwen2.5-3b-instruct",
        file: "qwen2.5-3b-instruct-q4_k_m.gguf",
        repository: Some("Qwen/Qwen2.5-3B-Instruct-GGUF"),
        sha256: None,
    },
    Known {
        name: "smollm2-1.7b-instruct",
        file: "smollm2-1.7b-instruct-q4_k_m.gguf",
        repository: Some("HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF"),
        sha256: None,
    },
];

impl Known {
    /// Returns how to download it, or `None` if it comes by `pip`.
    pub(super) fn download(&self, hub: &str) -> Option<Download> {
        let repository = self.repository?;
        Some(Download {
            url: format!("{hub}/{repository}/resolve/main/{}", self.file),
            file: self.file.to_owned(),
            sha256: self.sha256.map(str::to_owned),
        })
    }
}

/// Returns the known model of that name, whatever its case.
pub(super) fn by_name(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name.eq_ignore_ascii_case(name))
}

/// Where a named model comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// Over HTTP.
    Download(Download),
    /// In a Python package.
    Pip,
}

impl Source {
    /// Reads a known name, a URL, or `owner/repository/file.gguf`.
    pub(super) fn parse(name: &str, hub: &str) -> Option<Self> {
        if let Some(known) = by_name(name) {
            return Some(known.download(hub).map_or(Self::Pip, Self::Download));
        }
        if name.starts_with("https://") || name.starts_with("http://") {
            return Download::from_url(name).map(Self::Download);
        }
        let parts: Vec<&str> = name.split('/').collect();
        let [owner, repository, folders @ .., file] = parts.as_slice() else { return None };
        let plain = |part: &&str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if !parts.iter().all(plain) || !file.to_ascii_lowercase().ends_with(".gguf") {
            return None;
        }
        let inner: String = folders.iter().map(|folder| format!("{folder}/")).collect();
        Some(Self::Download(Download {
            url: format!("{hub}/{owner}/{repository}/resolve/main/{inner}{file}"),
            file: (*file).to_owned(),
            sha256: None,
        }))
    }

    /// Returns the name of the file that a model's name leads to.
    pub(super) fn file_of(name: &str, hub: &str) -> String {
        match Self::parse(name, hub) {
            Some(Self::Download(download)) => download.file,
            _ => name.to_owned(),
        }
    }
}
