//! The order of carrying out: Tarjan's strongly connected components, without recursion.
//!
//! The operations are visited in the given order, and each component comes out after those it refers to.
//! So the given order is kept, but for what is created early because something before it refers to it.

use std::collections::BTreeSet;

use super::Unit;

const UNSEEN: usize = usize::MAX;

/// The units of operations, given what each one refers to, in the order to carry them out.
pub(super) fn units(needs: &[BTreeSet<usize>]) -> Vec<Unit> {
    let mut tarjan = Tarjan {
        needs: needs.iter().map(|set| set.iter().copied().collect()).collect(),
        seen: vec![UNSEEN; needs.len()],
        low: vec![0; needs.len()],
        open: vec![false; needs.len()],
        stack: Vec::new(),
        count: 0,
        units: Vec::new(),
    };
    for root in 0..needs.len() {
        if tarjan.seen[root] == UNSEEN {
            tarjan.visit(root);
        }
    }
    tarjan.units
}

struct Tarjan {
    needs: Vec<Vec<usize>>,
    /// When an operation was first met.
    seen: Vec<usize>,
    /// The earliest operation on the stack that can be reached from it.
    low: Vec<usize>,
    /// Whether it is on the stack.
    open: Vec<bool>,
    stack: Vec<usize>,
    count: usize,
    units: Vec<Unit>,
}

impl Tarjan {
    fn visit(&mut self, root: usize) {
        // Which operation, and which of its references comes next.
        let mut path = vec![(root, 0)];
        self.enter(root);
        while let Some((at, next)) = path.last_mut() {
            let at = *at;
            match self.needs[at].get(*next).copied() {
                Some(other) => {
                    *next += 1;
                    if self.seen[other] == UNSEEN {
                        self.enter(other);
                        path.push((other, 0));
                    } else if self.open[other] {
                        self.low[at] = self.low[at].min(self.seen[other]);
                    }
                }
                None => {
                    path.pop();
                    if let Some((before, _)) = path.last() {
                        self.low[*before] = self.low[*before].min(self.low[at]);
                    }
                    if self.low[at] == self.seen[at] {
                        self.close(at);
                    }
                }
            }
        }
    }

    fn enter(&mut self, at: usize) {
        self.seen[at] = self.count;
        self.low[at] = self.count;
        self.count += 1;
        self.stack.push(at);
        self.open[at] = true;
    }

    fn close(&mut self, first: usize) {
        let mut operations = Vec::new();
        while let Some(at) = self.stack.pop() {
            self.open[at] = false;
            operations.push(at);
            if at == first {
                break;
            }
        }
        operations.sort_unstable();
        let all: BTreeSet<usize> = operations.iter().flat_map(|at| self.needs[*at].iter().copied()).collect();
        let needs = all.into_iter().filter(|at| operations.binary_search(at).is_err()).collect();
        self.units.push(Unit { operations, needs });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(needs: &[&[usize]]) -> Vec<Vec<usize>> {
        let needs: Vec<BTreeSet<usize>> = needs.iter().map(|n| n.iter().copied().collect()).collect();
        units(&needs).into_iter().map(|unit| unit.operations).collect()
    }

    #[test]
    fn the_given_order_is_kept_but_for_forward_references() {
        assert_eq!(order(&[&[], &[0], &[], &[1, 2]]), [[0], [1], [2], [3]]);
        assert_eq!(order(&[&[2], &[], &[], &[]]), [[2], [0], [1], [3]]);
        // Through others.
        assert_eq!(order(&[&[3], &[], &[], &[2]]), [[2], [3], [0], [1]]);
    }

    #[test]
    fn a_circle_is_one_unit() {
        assert_eq!(order(&[&[1], &[0], &[]]), [vec![0, 1], vec![2]]);
        assert_eq!(order(&[&[2, 3], &[], &[0, 1], &[]]), [vec![1], vec![3], vec![0, 2]]);
        assert_eq!(order(&[&[0]]), [[0]]);
        let needs: Vec<BTreeSet<usize>> =
            [vec![2], vec![], vec![0, 1]].map(|n| n.into_iter().collect()).into();
        assert_eq!(units(&needs)[1], Unit { operations: vec![0, 2], needs: vec![1] });
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let needs: Vec<BTreeSet<usize>> =
            (0..100_000).map(|at| if at == 99_999 { BTreeSet::new() } else { [at + 1].into() }).collect();
        let units = units(&needs);
        assert_eq!(units.len(), 100_000);
        assert_eq!(units[0].operations, [99_999]);
    }
}
