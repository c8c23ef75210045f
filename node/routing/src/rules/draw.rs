//! Weighted picks that can be repeated: the same key gets the same model for as long as that model is there.
//!
//! Weighted rendezvous hashing (Thaler and Ravishankar 1998, with the weights of Schindelhauer and Schomaker 2005):
//! each target draws an exponential variate at its weight from a hash of the key and its name, the smallest wins. So
//! a target that goes away moves only its own keys, and the order of the rest is a fair draw among them.

use super::Target;

/// What keeps a pick the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sticky {
    /// Nothing: each request is drawn anew.
    #[default]
    Off,
    /// The `user` that the body names, else the API key.
    User,
    /// The beginning of the conversation: everything up to the first message of the user.
    Conversation,
    /// The last message of the user.
    Prompt,
    /// The API key.
    Key,
}

impl Sticky {
    /// Returns the word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::User => "user",
            Self::Conversation => "conversation",
            Self::Prompt => "prompt",
            Self::Key => "key",
        }
    }
}

/// Orders targets by a draw at their weights: the first with probability `weight / total`, and so on among the rest.
pub(super) fn order(targets: &[Target], key: u64) -> Vec<Target> {
    let mut drawn: Vec<(f64, &Target)> = targets
        .iter()
        .map(|target| {
            let unit = unit(mix(key ^ hash(target.model.as_bytes())));
            (-unit.ln() / target.weight, target)
        })
        .collect();
    drawn.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    drawn.into_iter().map(|(_, target)| target.clone()).collect()
}

/// Hashes bytes (FNV-1a); the same on every node and in every version.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Spreads every bit over all others: the last step of SplitMix64.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Maps a hash to the open interval from 0 to 1.
fn unit(hash: u64) -> f64 {
    // 53 bits fill a double; half a step keeps 0 out.
    ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(weights: &[(&str, f64)]) -> Vec<Target> {
        weights.iter().map(|(model, weight)| Target { model: (*model).into(), weight: *weight }).collect()
    }

    #[test]
    fn shares_follow_the_weights_and_survive_a_target_that_goes() {
        let all = targets(&[("a", 6.0), ("b", 3.0), ("c", 1.0)]);
        let rest = targets(&[("b", 3.0), ("c", 1.0)]);
        let keys = 20_000u64;
        let mut first = [0u32; 3];
        for key in (0..keys).map(mix) {
            let order = order(&all, key);
            first[all.iter().position(|target| target.model == order[0].model).unwrap()] += 1;
            let without: Vec<_> = order.iter().filter(|target| &*target.model != "a").cloned().collect();
            assert_eq!(without, super::order(&rest, key), "only the keys of the one that went move");
        }
        for (count, share) in first.into_iter().zip([0.6, 0.3, 0.1]) {
            // Four standard deviations of a binomial at this many draws.
            let slack = 4.0 * (share * (1.0 - share) / keys as f64).sqrt();
            assert!(
                (f64::from(count) / keys as f64 - share).abs() < slack,
                "{count} of {keys}, wanted {share}"
            );
        }
    }
}
