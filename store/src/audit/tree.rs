//! The Merkle tree over the journal (RFC 9162 §2.1): leaf *i* is the chain hash of position *i* + 1.
//!
//! Only the right edge is kept, a hash for each set bit of the size, so a tree of a billion events takes
//! under a kilobyte and grows by one leaf at a time. A proof that one tree is a beginning of another takes
//! as many hashes as the size has digits in binary.

use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

fn leaf(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// A tree that grows to the right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// Roots of the full subtrees, from the largest.
    peaks: Vec<Hash>,
}

impl Tree {
    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, data: &[u8]) {
        let mut hash = leaf(data);
        let mut full = self.size;
        while full & 1 == 1 {
            if let Some(left) = self.peaks.pop() {
                hash = node(&left, &hash);
            }
            full >>= 1;
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Its root; that of an empty tree is the hash of nothing.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return Sha256::digest([]).into() };
        peaks.fold(*last, |right, left| node(left, &right))
    }

    /// The right edge as bytes, for [`Tree::from_edge`].
    pub fn edge(&self) -> Vec<u8> {
        self.peaks.concat()
    }

    /// A tree from its size and right edge; `None` if they do not fit.
    pub fn from_edge(size: u64, edge: &[u8]) -> Option<Tree> {
        let peaks: Vec<Hash> =
            edge.chunks(32).map(Hash::try_from).collect::<std::result::Result<_, _>>().ok()?;
        (peaks.len() == size.count_ones() as usize).then_some(Tree { size, peaks })
    }
}

/// The leaves `from..to` whose subtree roots, in this order, prove that the tree of the first `old` leaves
/// is a beginning of that of the first `new` (RFC 9162 §2.1.4.1). Empty if `old` is 0 or `new`.
pub(crate) fn proof_ranges(old: u64, new: u64) -> Vec<(u64, u64)> {
    fn subproof(old: u64, from: u64, to: u64, whole: bool, out: &mut Vec<(u64, u64)>) {
        let size = to - from;
        if old == size {
            if !whole {
                out.push((from, to));
            }
            return;
        }
        // The largest power of two below the size.
        let left = 1 << (63 - (size - 1).leading_zeros());
        if old <= left {
            subproof(old, from, from + left, whole, out);
            out.push((from + left, to));
        } else {
            subproof(old - left, from + left, to, false, out);
            out.push((from, from + left));
        }
    }
    let mut out = Vec::new();
    if old > 0 && old < new {
        subproof(old, 0, new, true, &mut out);
    }
    out
}

/// Computes the subtree roots of [`proof_ranges`] while the leaves go by once, in order.
pub(crate) struct Prover {
    /// (place in the proof, from, to), by `from`.
    ranges: Vec<(usize, u64, u64)>,
    current: Tree,
    at: u64,
    next: usize,
    proof: Vec<Hash>,
}

impl Prover {
    pub(crate) fn new(old: u64, new: u64) -> Prover {
        let ranges = proof_ranges(old, new).into_iter().enumerate();
        let mut ranges: Vec<_> = ranges.map(|(place, (from, to))| (place, from, to)).collect();
        let proof = vec![[0; 32]; ranges.len()];
        ranges.sort_unstable_by_key(|(_, from, _)| *from);
        Prover { ranges, current: Tree::default(), at: 0, next: 0, proof }
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        let Some((place, from, to)) = self.ranges.get(self.next).copied() else { return };
        if self.at >= from {
            self.current.push(data);
        }
        self.at += 1;
        if self.at == to {
            self.proof[place] = std::mem::take(&mut self.current).root();
            self.next += 1;
        }
    }

    /// The proof; `None` if leaves are missing.
    pub(crate) fn finish(self) -> Option<Vec<Hash>> {
        (self.next == self.ranges.len()).then_some(self.proof)
    }
}

/// Whether `proof` shows that the tree `old` (size and root) is a beginning of the tree `new`
/// (RFC 9162 §2.1.4.2).
pub fn is_beginning(old: (u64, &Hash), new: (u64, &Hash), proof: &[Hash]) -> bool {
    let ((old_size, old_root), (new_size, new_root)) = (old, new);
    if old_size == 0 || old_size == new_size {
        return proof.is_empty() && (old_size == 0 || old_root == new_root);
    }
    if old_size > new_size {
        return false;
    }
    let mut path = proof.iter();
    let start = if old_size.is_power_of_two() { Some(old_root) } else { path.next() };
    let Some(start) = start else { return false };
    let (mut of_old, mut of_new) = (old_size - 1, new_size - 1);
    let shared = of_old.trailing_ones();
    of_old >>= shared;
    of_new >>= shared;
    let (mut old_hash, mut new_hash) = (*start, *start);
    for hash in path {
        if of_new == 0 {
            return false;
        }
        if of_old & 1 == 1 || of_old == of_new {
            old_hash = node(hash, &old_hash);
            new_hash = node(hash, &new_hash);
            while of_old & 1 == 0 && of_old != 0 {
                of_old >>= 1;
                of_new >>= 1;
            }
        } else {
            new_hash = node(&new_hash, hash);
        }
        of_old >>= 1;
        of_new >>= 1;
    }
    of_new == 0 && old_hash == *old_root && new_hash == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: u64) -> Vec<u8> {
        n.to_be_bytes().to_vec()
    }

    /// MTH of RFC 9162 §2.1.1, word for word.
    fn by_the_book(from: u64, to: u64) -> Hash {
        match to - from {
            0 => Sha256::digest([]).into(),
            1 => leaf(&data(from)),
            size => {
                let mut left = 1;
                while left * 2 < size {
                    left *= 2;
                }
                node(&by_the_book(from, from + left), &by_the_book(from + left, to))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_the_rfc_and_survives_storing_the_edge() {
        let mut tree = Tree::default();
        for size in 0..70 {
            assert_eq!(tree.root(), by_the_book(0, size), "{size}");
            assert_eq!(Tree::from_edge(size, &tree.edge()), Some(tree.clone()));
            assert_eq!(Tree::from_edge(size + 1, &tree.edge()).is_some(), {
                (size + 1).count_ones() == size.count_ones()
            });
            tree.push(&data(size));
        }
        assert_eq!(Tree::from_edge(1, &[0; 31]), None);
    }

    #[test]
    fn known_answers() {
        // The empty tree of RFC 6962's test data.
        assert_eq!(
            hex::encode(Tree::default().root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let mut tree = Tree::default();
        tree.push(b"");
        assert_eq!(
            hex::encode(tree.root()),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        tree.push(&[0]);
        assert_eq!(
            hex::encode(tree.root()),
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
        );
    }

    #[test]
    fn every_beginning_can_be_proven_and_nothing_else() {
        let other: Hash = [9; 32];
        for new in 1..40 {
            for old in 0..=new {
                let mut prover = Prover::new(old, new);
                (0..new).for_each(|n| prover.push(&data(n)));
                let proof = prover.finish().unwrap();
                let (before, after) = (by_the_book(0, old), by_the_book(0, new));
                assert!(is_beginning((old, &before), (new, &after), &proof), "{old} of {new}");
                if old > 0 {
                    assert!(!is_beginning((old, &other), (new, &after), &proof), "{old} of {new}");
                    assert!(!is_beginning((old, &before), (new, &other), &proof), "{old} of {new}");
                }
                for at in 0..proof.len() {
                    let mut forged = proof.clone();
                    forged[at] = other;
                    assert!(!is_beginning((old, &before), (new, &after), &forged), "{old} of {new}");
                    let short = [&proof[..at], &proof[at + 1..]].concat();
                    assert!(!is_beginning((old, &before), (new, &after), &short), "{old} of {new}");
                }
                let long = [&proof[..], &[other]].concat();
                assert!(!is_beginning((old, &before), (new, &after), &long), "{old} of {new}");
            }
            assert!(!is_beginning((new + 1, &other), (new, &other), &[]));
        }
    }

    #[test]
    fn a_proof_without_all_leaves_is_none() {
        let mut prover = Prover::new(3, 7);
        (0..6).for_each(|n| prover.push(&data(n)));
        assert_eq!(prover.finish(), None);
    }
}
