//! Byte pair merging of one piece: the pair of the lowest rank first, until none is left.
//!
//! Most pieces are a token as they are. Short ones are merged in an array on the stack, by scanning it; for long ones
//! (text without blanks, which a hostile prompt may be) a heap keeps the work at n log n.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::table::O200K;

/// Bytes of a piece up to which scanning beats a heap.
const SHORT_BYTES: usize = 64;

/// What stands for "these two make no token": later than every rank.
const NEVER: u32 = u32::MAX;

/// Returns the number of tokens of a piece.
pub(super) fn count(piece: &[u8]) -> u32 {
    match piece.len() {
        0 => 0,
        1 => 1,
        _ if O200K.rank(piece).is_some() => 1,
        2..=SHORT_BYTES => count_short(piece),
        _ => count_long(piece),
    }
}

fn rank(bytes: &[u8]) -> u32 {
    O200K.rank(bytes).unwrap_or(NEVER)
}

/// Merges in an array: for each part where it starts and the rank of merging it with the next one.
fn count_short(piece: &[u8]) -> u32 {
    let mut starts: [u8; SHORT_BYTES + 1] = std::array::from_fn(|at| at as u8);
    let mut ranks = [NEVER; SHORT_BYTES];
    let mut parts = piece.len();
    for (slot, pair) in ranks.iter_mut().zip(piece.windows(2)) {
        *slot = rank(pair);
    }
    loop {
        let (at, lowest) = lowest(&ranks[..parts]);
        if lowest == NEVER {
            return parts as u32;
        }
        starts.copy_within(at + 2..=parts, at + 1);
        ranks.copy_within((at + 2).min(parts)..parts, at + 1);
        parts -= 1;
        let joined = |first: usize| {
            let range = |last| usize::from(starts[first])..usize::from(starts[last]);
            if first + 2 <= parts { rank(&piece[range(first + 2)]) } else { NEVER }
        };
        ranks[at] = joined(at);
        if at > 0 {
            ranks[at - 1] = joined(at - 1);
        }
    }
}

/// Returns the first of the lowest ranks.
fn lowest(ranks: &[u32]) -> (usize, u32) {
    ranks.iter().copied().enumerate().fold((0, NEVER), |best, next| if next.1 < best.1 { next } else { best })
}

/// Merges a linked list of parts, the next pair from a heap. Pairs that a merge has made stale are skipped.
fn count_long(piece: &[u8]) -> u32 {
    let len = piece.len();
    // For each part, by its first byte: where the next one and the one before begin. A part that was merged away
    // keeps its neighbours, but not its `rank`.
    let mut next: Vec<usize> = (1..=len).collect();
    let mut before: Vec<usize> = (0..=len).map(|at| at.wrapping_sub(1)).collect();
    let mut ranks: Vec<u32> = piece.windows(2).map(rank).chain([NEVER]).collect();
    let mut heap: BinaryHeap<Reverse<(u32, usize)>> = ranks
        .iter()
        .enumerate()
        .filter(|(_, rank)| **rank != NEVER)
        .map(|(at, rank)| Reverse((*rank, at)))
        .collect();
    let mut parts = len as u32;
    while let Some(Reverse((lowest, at))) = heap.pop() {
        if ranks[at] != lowest {
            continue;
        }
        let gone = next[at];
        next[at] = next[gone];
        before[next[at]] = at;
        ranks[gone] = NEVER;
        parts -= 1;
        let left = before[at];
        for first in [Some(at), (at > 0).then_some(left)].into_iter().flatten() {
            let second = next[first];
            ranks[first] = if second < len { rank(&piece[first..next[second]]) } else { NEVER };
            if ranks[first] != NEVER {
                heap.push(Reverse((ranks[first], first)));
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_merging_agree() {
        let words = [
            "antidisestablishmentarianism",
            "zzzzqqqqxxxx",
            "Донаудампфшиффарт",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ];
        for word in words {
            assert_eq!(count_short(word.as_bytes()), count_long(word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn a_long_piece_is_no_trouble() {
        assert!(count(&b"ab".repeat(100_000)) > 1_000);
    }
}
