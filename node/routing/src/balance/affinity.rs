//! Which host a session likes best: the same one for every turn and on every router, without anybody remembering it.
//!
//! Weighted rendezvous hashing (Thaler & Ravishankar 1998; the weights as in Schindelhauer & Schomaker 2005): a host
//! that comes or goes moves only its own sessions. The host's cache then holds the conversation so far. Who is liked is
//! not asked at any price: the caller bounds by how much its predicted time may exceed the best one's, as consistent
//! hashing with bounded loads does (Mirrokni, Thorup, Zadimoghaddam 2018).

use crate::ids::UpstreamId;

/// How much longer than the best host's the time of a session's own host may be.
///
/// A cached conversation saves most of the time to read the prompt; 1.25 is the bound of the load in the paper's
/// and in common use.
pub(super) const STAYS_WITHIN: f64 = 1.25;

/// Returns how much a session likes a host of a given time to answer when idle; the highest wins.
///
/// Times count by powers of two: a measurement that wavers must not move the sessions.
pub(super) fn liking(session: u64, upstream: &UpstreamId, idle_ms: f64) -> f64 {
    let class = idle_ms.max(1.0).log2().floor();
    let weight = (-class).exp2();
    // Never 0 nor 1: 53 bits and a half.
    let unit = ((mix(session ^ hash(upstream)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    weight / -unit.ln()
}

/// FNV-1a of a name.
fn hash(upstream: &UpstreamId) -> u64 {
    upstream.kind().bytes().chain(upstream.name().bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input reaches every bit of the output.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn favourite(session: u64, hosts: &[(&str, f64)]) -> usize {
        let liked = |(name, ms): &(&str, f64)| liking(session, &UpstreamId::Device((*name).into()), *ms);
        (0..hosts.len()).max_by(|a, b| liked(&hosts[*a]).total_cmp(&liked(&hosts[*b]))).unwrap()
    }

    #[test]
    fn equals_get_equal_shares_and_a_faster_host_more() {
        let shares = |hosts: &[(&str, f64)]| {
            let mut counts = vec![0; hosts.len()];
            (0..6_000).for_each(|session| counts[favourite(session, hosts)] += 1);
            counts
        };
        let even = shares(&[("a", 100.0), ("b", 110.0), ("c", 120.0)]);
        assert!(even.iter().all(|count| (1_800..2_200).contains(count)), "{even:?}");
        let uneven = shares(&[("a", 100.0), ("b", 400.0)]);
        assert!((4_600..5_000).contains(&uneven[0]), "{uneven:?}");
    }

    #[test]
    fn a_host_that_leaves_moves_only_its_own_sessions() {
        let hosts = [("a", 100.0), ("b", 100.0), ("c", 100.0)];
        for session in 0..1_000 {
            let before = favourite(session, &hosts);
            if before != 2 {
                assert_eq!(favourite(session, &hosts[..2]), before, "{session}");
            }
        }
    }
}
