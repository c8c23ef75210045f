//! The file format: a first line, then a message whose body is what the signature covers.

use std::collections::BTreeMap;

use prost::Message;
use shoal_proto as proto;
use shoal_routing::bandit::sums::PACKED;
use shoal_routing::embed::table_file;
use shoal_routing::features::DIM;
use shoal_routing::{ClassPriors, Pack, QualitySums, SizeClass};

use super::seal::{self, Seal};
use crate::replication::{clean, statistics};

/// First line of a file.
pub const MAGIC: &[u8] = b"shoal-router-pack\n";

/// The only format that is known.
const FORMAT: u32 = 1;

/// Longest file, in bytes: 40 arms and 8 classes take under 145 kB, the 64 of earlier versions less.
pub const MAX_BYTES: usize = 256 * 1024;

/// Longest name of a pack or a source, characters.
const NAME_CHARS: usize = 96;

/// Most sources that a pack names.
const MAX_SOURCES: usize = 32;

/// Why bytes are not taken for a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another file, or a damaged one.
    #[error("this is no router pack, or a damaged one; make one with `shoal router export --out FILE`")]
    NotAPack,
    /// Over the bound.
    #[error("the pack has {0} bytes; at most {MAX_BYTES} are read: export or train it anew")]
    TooLarge(usize),
    /// A later version wrote it.
    #[error(
        "the pack has format {0}, this program reads format {FORMAT}; update Shoal, or have the pack exported by this version"
    )]
    UnknownFormat(u32),
    /// Its sums are over other features.
    #[error(
        "the pack is over other features than this program's ({0}); sums cannot be converted: train it anew with `shoal router train`"
    )]
    OtherFeatures(&'static str),
    /// Sums that honest counting cannot reach.
    #[error("the sums of the pack are impossible; do not use it, and ask its maker for another")]
    Impossible,
    /// The signature does not fit the bytes.
    #[error(
        "the signature of the pack does not fit: it was changed or damaged after it was signed; fetch it again"
    )]
    BadSignature,
}

/// What a pack says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// When it was made, milliseconds since the Unix epoch; 0 = not said, for packs that can be made again bit by bit.
    pub made_ms: u64,
    /// What it was made from.
    pub sources: Vec<Source>,
    /// SHA-256 of the maker's price list.
    pub prices_sha256: Vec<u8>,
}

/// Where sums come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Name of the set.
    pub name: String,
    /// Its licence; empty for what a mesh learnt itself.
    pub licence: String,
    /// Judged answers taken from it.
    pub rows: u64,
}

/// A pack as it was read; the signature, if there is one, fits.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterPack {
    /// What it says of itself.
    pub header: Header,
    /// Its sums.
    pub pack: Pack,
    /// Who signed it, if anybody.
    pub seal: Option<Seal>,
}

impl RouterPack {
    /// Reads a file.
    ///
    /// # Errors
    /// The [`Error`]; nothing of the bytes may be believed then.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::TooLarge(bytes.len()));
        }
        let message = bytes.strip_prefix(MAGIC).ok_or(Error::NotAPack)?;
        let file = proto::PackFile::decode(message).map_err(|_| Error::NotAPack)?;
        if file.format != FORMAT {
            return Err(Error::UnknownFormat(file.format));
        }
        let seal = Seal::of(&file)?;
        let body = proto::RouterPack::decode(file.body.as_slice()).map_err(|_| Error::NotAPack)?;
        let (header, pack) = from_body(body)?;
        Ok(Self { header, pack, seal })
    }

    /// Writes an unsigned file.
    pub fn write(header: &Header, pack: &Pack) -> Vec<u8> {
        file(proto::PackFile { format: FORMAT, body: body(header, pack), ..proto::PackFile::default() })
    }

    /// Writes a file that `identity` signs.
    pub fn write_signed(
        header: &Header,
        pack: &Pack,
        identity: &shoal_cluster::identity::Identity,
    ) -> Vec<u8> {
        file(seal::sign(
            identity,
            proto::PackFile { format: FORMAT, body: body(header, pack), ..proto::PackFile::default() },
        ))
    }
}

/// Returns the SHA-256 of the table that prompts are embedded with.
fn embedding_sha256() -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, table_file()).as_ref().to_vec()
}

fn file(file: proto::PackFile) -> Vec<u8> {
    [MAGIC, &file.encode_to_vec()].concat()
}

fn body(header: &Header, pack: &Pack) -> Vec<u8> {
    let sources = header.sources.iter().map(|source| proto::PackSource {
        name: source.name.clone(),
        licence: source.licence.clone(),
        rows: source.rows,
    });
    let classes = pack.classes.0.iter().map(|(class, sums)| proto::ClassSums {
        class: class.as_str().to_owned(),
        version: sums.version,
        quality: sums.gram.iter().chain(&sums.reward).map(|number| *number as f32).collect(),
    });
    proto::RouterPack {
        name: header.name.clone(),
        made_unix_ms: header.made_ms,
        sources: sources.collect(),
        features: DIM as u32,
        embedding_sha256: embedding_sha256(),
        prices_sha256: header.prices_sha256.clone(),
        classes: classes.collect(),
        arms: pack.arms.iter().map(|(arm, evidence)| statistics::evidence_to_proto(arm, evidence)).collect(),
        gain_version: 0,
        gain: Vec::new(),
    }
    .encode_to_vec()
}

fn from_body(body: proto::RouterPack) -> Result<(Header, Pack), Error> {
    if body.features as usize != DIM {
        return Err(Error::OtherFeatures("another number of them"));
    }
    if body.embedding_sha256 != embedding_sha256() {
        return Err(Error::OtherFeatures("another embedding table"));
    }
    let classes = body.classes.into_iter().map(class).collect::<Option<BTreeMap<_, _>>>();
    let arms = body.arms.into_iter().map(statistics::evidence_from_proto).collect::<Option<_>>();
    let pack = Pack {
        classes: ClassPriors(classes.ok_or(Error::Impossible)?),
        arms: arms.ok_or(Error::Impossible)?,
    };
    if !pack.is_plausible() {
        return Err(Error::Impossible);
    }
    let sources = body.sources.iter().take(MAX_SOURCES).map(|source| Source {
        name: clean(&source.name, NAME_CHARS),
        licence: clean(&source.licence, NAME_CHARS),
        rows: source.rows,
    });
    let header = Header {
        name: clean(&body.name, NAME_CHARS),
        made_ms: body.made_unix_ms,
        sources: sources.collect(),
        prices_sha256: body.prices_sha256,
    };
    Ok((header, pack))
}

fn class(sums: proto::ClassSums) -> Option<(SizeClass, QualitySums)> {
    let class = SizeClass::of_word(&sums.class)?;
    if sums.quality.len() != PACKED + DIM {
        return None;
    }
    let mut read = QualitySums { version: sums.version, ..QualitySums::default() };
    let places = read.gram.iter_mut().chain(&mut read.reward);
    places.zip(&sums.quality).for_each(|(sum, sent)| *sum = f64::from(*sent));
    Some((class, read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_routing::{ArmEvidence, ArmId, Features, Score};

    fn pack() -> (Header, Pack) {
        let mut evidence = ArmEvidence::default();
        for n in 0..40_u32 {
            evidence.quality.record(&Features::default(), Score::clamped(f64::from(n % 2)));
        }
        let pack = super::super::of_arms([(ArmId::new("llama-3.1-8b", None), evidence)].into());
        let source = Source { name: "mine".into(), licence: "MIT".into(), rows: 40 };
        let header =
            Header { name: "test".into(), made_ms: 5, sources: vec![source], prices_sha256: vec![7; 32] };
        (header, pack)
    }

    /// Writes a file whose body or frame was changed before it was encoded.
    fn changed(change: impl FnOnce(&mut proto::PackFile, &mut proto::RouterPack)) -> Vec<u8> {
        let (header, pack) = pack();
        let mut inner = proto::RouterPack::decode(body(&header, &pack).as_slice()).unwrap();
        let mut frame = proto::PackFile { format: FORMAT, ..proto::PackFile::default() };
        change(&mut frame, &mut inner);
        frame.body = inner.encode_to_vec();
        file(frame)
    }

    #[test]
    fn a_pack_comes_back_as_it_was_written_and_equal_ones_are_equal_bytes() {
        let (header, pack) = pack();
        let bytes = RouterPack::write(&header, &pack);
        assert_eq!(bytes, RouterPack::write(&header, &pack));
        assert_eq!(RouterPack::read(&bytes).unwrap(), RouterPack { header, pack, seal: None });
    }

    #[test]
    fn what_is_not_for_this_program_is_refused_with_the_reason() {
        type Change = fn(&mut proto::PackFile, &mut proto::RouterPack);
        let cases: [(Change, Error); 7] = [
            (|file, _| file.format = 2, Error::UnknownFormat(2)),
            (|_, pack| pack.features = 32, Error::OtherFeatures("another number of them")),
            (|_, pack| pack.embedding_sha256[0] ^= 1, Error::OtherFeatures("another embedding table")),
            (|_, pack| pack.classes[0].class = "gigantic".into(), Error::Impossible),
            (|_, pack| pack.classes[0].quality.truncate(3), Error::Impossible),
            (|_, pack| pack.arms[0].quality[0] = f32::NAN, Error::Impossible),
            (|_, pack| pack.arms[0].quality_version = 1, Error::Impossible),
        ];
        for (change, refusal) in cases {
            assert_eq!(RouterPack::read(&changed(change)).unwrap_err(), refusal);
        }
        assert_eq!(RouterPack::read(b"GGUF"), Err(Error::NotAPack));
        assert_eq!(RouterPack::read(&vec![0; MAX_BYTES + 1]), Err(Error::TooLarge(MAX_BYTES + 1)));
    }

    #[test]
    fn a_name_cannot_steer_a_terminal() {
        let read = RouterPack::read(&changed(|_, pack| pack.name = "a\u{1b}[2J".repeat(99))).unwrap();
        assert!(!read.header.name.contains('\u{1b}') && read.header.name.chars().count() <= NAME_CHARS);
    }

    #[test]
    fn sums_of_a_later_kind_do_not_disturb() {
        let bytes = changed(|_, pack| (pack.gain_version, pack.gain) = (9, vec![1, 2, 3]));
        assert!(RouterPack::read(&bytes).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..3000_usize) {
            let _ = RouterPack::read(&[MAGIC, &bytes].concat());
            let (header, pack) = pack();
            let mut good = RouterPack::write(&header, &pack);
            let at = cut % good.len();
            good[at] = good[at].wrapping_add(1);
            let _ = RouterPack::read(&good);
            good.truncate(at);
            let _ = RouterPack::read(&good);
        }
    }
}
