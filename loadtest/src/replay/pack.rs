//! Reads a router pack for a replay: the sums only, since who signed it matters to a node and not to a measurement.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use prost::Message;
use shoal_proto::{ArmEvidence as Arm, ClassSums, PackFile, RouterPack};
use shoal_routing::bandit::SizeClass;
use shoal_routing::bandit::sums::PACKED;
use shoal_routing::features::DIM;
use shoal_routing::{ArmEvidence, ArmId, ClassPriors, Pack, QualitySums};

/// First line of a pack file.
const MAGIC: &[u8] = b"shoal-router-pack\n";

/// Reads a pack.
pub(super) fn read(path: &Path) -> Result<Pack> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is no router pack", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Pack> {
    let rest = bytes.strip_prefix(MAGIC).context("the first line is another")?;
    let file = PackFile::decode(rest)?;
    ensure!(file.format == 1, "format {} is not known here", file.format);
    let pack = RouterPack::decode(file.body.as_slice())?;
    ensure!(pack.features as usize == DIM, "it is over {} features, not {DIM}", pack.features);
    let pack = Pack {
        classes: ClassPriors(pack.classes.iter().map(class).collect::<Result<_>>()?),
        arms: pack.arms.iter().map(arm).collect::<Result<_>>()?,
    };
    ensure!(pack.is_plausible(), "its sums are impossible");
    Ok(pack)
}

fn class(sums: &ClassSums) -> Result<(SizeClass, QualitySums)> {
    let class = SizeClass::of_word(&sums.class).with_context(|| format!("size class '{}'", sums.class))?;
    Ok((class, quality(sums.version, &sums.quality)?))
}

fn arm(arm: &Arm) -> Result<(ArmId, ArmEvidence)> {
    let quality = quality(arm.quality_version, &arm.quality)?;
    Ok((ArmId(arm.arm.as_str().into()), ArmEvidence { quality, ..ArmEvidence::default() }))
}

fn quality(version: u64, numbers: &[f32]) -> Result<QualitySums> {
    let mut sums = QualitySums { version, ..QualitySums::default() };
    ensure!(numbers.is_empty() || numbers.len() == PACKED + DIM, "{} numbers", numbers.len());
    let places = sums.gram.iter_mut().chain(&mut sums.reward);
    places.zip(numbers).for_each(|(sum, number)| *sum = f64::from(*number));
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(change: impl FnOnce(&mut RouterPack)) -> Vec<u8> {
        let sums = vec![0.0; PACKED + DIM];
        let class = ClassSums { class: "medium".into(), version: 0, quality: sums };
        let mut pack = RouterPack { features: DIM as u32, classes: vec![class], ..RouterPack::default() };
        change(&mut pack);
        let file = PackFile { format: 1, body: pack.encode_to_vec(), ..PackFile::default() };
        [MAGIC, &file.encode_to_vec()].concat()
    }

    #[test]
    fn a_pack_is_read_and_what_is_none_is_named() {
        assert!(parse(&file(|_| ())).unwrap().classes.0.contains_key(&SizeClass::Medium));
        let wrong: [(&str, Vec<u8>); 4] = [
            ("first line", b"nonsense".to_vec()),
            ("features", file(|pack| pack.features = 7)),
            ("size class", file(|pack| pack.classes[0].class = "gigantic".into())),
            ("impossible", file(|pack| pack.classes[0].quality[0] = -1.0)),
        ];
        for (what, bytes) in wrong {
            let error = format!("{:#}", parse(&bytes).unwrap_err());
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}
