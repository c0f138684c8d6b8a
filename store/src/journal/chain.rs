//! Several commits that are carried out in their order under one hold of the counter row, as far as it
//! goes: how a bulk request shares the journal's batches and still comes to what it would have come to one
//! operation after the other (BU-009).
//!
//! Every item was decided before the row was taken, on the guess that the earlier items of its chain pass.
//! The writer checks that guess item by item, and stops where it was wrong: what follows is decided anew by
//! whoever built the chain. It also stops where the client said so (`failOnErrors`), so nothing beyond that
//! point is ever written.

use std::sync::Arc;

use super::{Commit, Receipt, Rejection};

/// What a queue entry of the writer asks for.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// One commit.
    One(Arc<Commit>),
    /// Several, in order.
    Chain(Arc<Chain>),
}

/// What became of a queue entry.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    One(std::result::Result<Receipt, Rejection>),
    /// One outcome for each item that was reached.
    Chain(Vec<Outcome>),
}

impl Work {
    /// Its commits, in order.
    pub(crate) fn commits(&self) -> impl Iterator<Item = &Arc<Commit>> {
        let (one, chain) = match self {
            Work::One(commit) => (Some(commit), None),
            Work::Chain(chain) => (None, Some(chain)),
        };
        let items = chain.into_iter().flat_map(|chain| &chain.items);
        one.into_iter().chain(items.filter_map(|item| match &item.work {
            ItemWork::Commit(commit) => Some(commit),
            ItemWork::Unchanged | ItemWork::Refused => None,
        }))
    }

    /// The commits that an answer says were written now, not by an earlier request.
    pub(crate) fn written<'a>(&'a self, answer: &'a Answer) -> Vec<&'a Arc<Commit>> {
        let is_new = |receipt: &Receipt| !receipt.replayed;
        match (self, answer) {
            (Work::One(commit), Answer::One(Ok(receipt))) if is_new(receipt) => vec![commit],
            (Work::Chain(chain), Answer::Chain(outcomes)) => {
                let reached = chain.items.iter().zip(outcomes);
                let written = reached.filter_map(|(item, outcome)| match (&item.work, outcome) {
                    (ItemWork::Commit(commit), Outcome::Done(receipt)) if is_new(receipt) => Some(commit),
                    _ => None,
                });
                written.collect()
            }
            _ => Vec::new(),
        }
    }

    /// Carries it out with what is known under the counter row.
    pub(crate) fn carry_out(
        &self,
        mut check: impl FnMut(&Arc<Commit>) -> std::result::Result<Receipt, Rejection>,
    ) -> Answer {
        match self {
            Work::One(commit) => Answer::One(check(commit)),
            Work::Chain(chain) => Answer::Chain(chain.walk(check)),
        }
    }
}

/// Operations of one bulk request, in the order in which they are carried out. At least one has a commit.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) items: Vec<Item>,
    /// How many operations may still fail; with the last of them the chain ends.
    pub(crate) refusals_max: usize,
}

/// One operation, or the operations of one reference cycle.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) work: ItemWork,
    /// The item on whose outcome this one was decided: the last one about the same entity.
    pub(crate) basis: Option<usize>,
    /// Items that create what this one refers to.
    pub(crate) needs: Vec<usize>,
    /// How many operations it stands for.
    pub(crate) operations: usize,
    /// Whether another version than expected is the client's error (`If-Match`), or means "decide again".
    pub(crate) conditional: bool,
    /// Whether a value in use means "decide again": an earlier item may have left it with somebody whom this
    /// one brings back (`reactivate-on-create`).
    pub(crate) again_if_taken: bool,
}

/// What is to be done for an item.
#[derive(Debug)]
pub(crate) enum ItemWork {
    Commit(Arc<Commit>),
    /// Decided: it changes nothing.
    Unchanged,
    /// Decided: it may not be. It only counts.
    Refused,
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Done(Receipt),
    Unchanged,
    /// As it was decided.
    Refused,
    /// Under the counter row.
    Rejected(Rejection),
    /// What it refers to was not created.
    Needs(usize),
}

impl Outcome {
    fn has_passed(&self) -> bool {
        matches!(self, Outcome::Done(_) | Outcome::Unchanged)
    }
}

impl Chain {
    /// Goes through the items; the outcomes end where the chain stops.
    pub(crate) fn walk(
        &self,
        mut check: impl FnMut(&Arc<Commit>) -> std::result::Result<Receipt, Rejection>,
    ) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(self.items.len());
        let mut refusals = 0;
        for item in &self.items {
            let passed = |at: &usize| outcomes.get(*at).is_some_and(Outcome::has_passed);
            if item.basis.as_ref().is_some_and(|at| !passed(at)) {
                break;
            }
            let outcome = match (item.needs.iter().find(|at| !passed(at)), &item.work) {
                (Some(missing), _) => Outcome::Needs(*missing),
                (None, ItemWork::Unchanged) => Outcome::Unchanged,
                (None, ItemWork::Refused) => Outcome::Refused,
                (None, ItemWork::Commit(commit)) => match check(commit) {
                    Ok(receipt) => Outcome::Done(receipt),
                    Err(rejection) if rejection.is_stale(item.conditional) => break,
                    Err(rejection) if rejection.is_taken() && item.again_if_taken => break,
                    Err(rejection) => Outcome::Rejected(rejection),
                },
            };
            let replayed = matches!(&outcome, Outcome::Done(receipt) if receipt.replayed);
            if !outcome.has_passed() {
                refusals += item.operations;
            }
            outcomes.push(outcome);
            // An earlier request with the same key gave other ids and left another state.
            if replayed || refusals >= self.refusals_max {
                break;
            }
        }
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use annals_domain::ids::TenantId;
    use uuid::Uuid;

    fn commit(number: u128) -> ItemWork {
        ItemWork::Commit(Arc::new(Commit {
            id: Uuid::from_u128(number),
            tenant: TenantId::new("acme").unwrap(),
            actor: String::new(),
            cause: String::new(),
            writes: Vec::new(),
            secrets: Vec::new(),
            tokens: Vec::new(),
            fingerprint: None,
            definition: None,
            head: None,
        }))
    }

    fn item(work: ItemWork) -> Item {
        Item {
            work,
            basis: None,
            needs: Vec::new(),
            operations: 1,
            conditional: false,
            again_if_taken: false,
        }
    }

    fn receipt() -> Receipt {
        Receipt { first: 0, last: 0, streams: Vec::new(), replayed: false }
    }

    /// Commits 1, 2, … pass, but for those named.
    pub(crate) fn walk(
        items: Vec<Item>,
        refusals_max: usize,
        refused: &[(u128, Rejection)],
    ) -> (String, Vec<u128>) {
        let mut checked = Vec::new();
        let outcomes = Chain { items, refusals_max }.walk(|commit| {
            checked.push(commit.id.as_u128());
            match refused.iter().find(|(number, _)| *number == commit.id.as_u128()) {
                Some((_, rejection)) => Err(rejection.clone()),
                None => Ok(receipt()),
            }
        });
        let letters = outcomes.iter().map(|outcome| match outcome {
            Outcome::Done(_) => 'd',
            Outcome::Unchanged => 'u',
            Outcome::Refused => 'r',
            Outcome::Rejected(_) => 'j',
            Outcome::Needs(_) => 'n',
        });
        (letters.collect(), checked)
    }

    #[test]
    fn a_refused_item_does_not_stop_the_others() {
        let items = vec![item(commit(1)), item(commit(2)), item(ItemWork::Refused), item(commit(3))];
        let refused = [(2, Rejection::Taken { attribute: "userName".to_owned() })];
        assert_eq!(walk(items, usize::MAX, &refused), ("djrd".into(), vec![1, 2, 3]));
    }

    #[test]
    fn nothing_is_checked_beyond_the_last_error_allowed() {
        let items = || vec![item(commit(1)), item(ItemWork::Refused), item(commit(2)), item(commit(3))];
        let refused = [(2, Rejection::Gone)];
        assert_eq!(walk(items(), 1, &refused), ("dr".into(), vec![1]));
        assert_eq!(walk(items(), 2, &refused), ("drj".into(), vec![1, 2]));
        assert_eq!(walk(items(), 3, &refused), ("drjd".into(), vec![1, 2, 3]));
        // A cycle counts as all of its operations.
        let cycle = Item { operations: 2, ..item(commit(2)) };
        assert_eq!(walk(vec![cycle, item(commit(3))], 2, &refused), ("j".into(), vec![2]));
    }

    #[test]
    fn what_refers_to_a_failed_item_fails() {
        let needy = Item { needs: vec![0, 1], ..item(commit(3)) };
        let needier = Item { needs: vec![2], ..item(ItemWork::Unchanged) };
        let items = vec![item(commit(1)), item(commit(2)), needy, needier, item(commit(4))];
        let refused = [(2, Rejection::Gone)];
        assert_eq!(walk(items, usize::MAX, &refused), ("djnnd".into(), vec![1, 2, 4]));
    }

    #[test]
    fn a_wrong_guess_stops_the_chain() {
        // Somebody else moved the version: later items may depend on what this one frees or takes.
        let moved = [(2, Rejection::Moved)];
        let items = || vec![item(commit(1)), item(commit(2)), item(commit(3))];
        assert_eq!(walk(items(), usize::MAX, &moved), ("d".into(), vec![1, 2]));
        // With If-Match it is the client's error.
        let mut conditional = items();
        conditional[1].conditional = true;
        assert_eq!(walk(conditional, usize::MAX, &moved), ("djd".into(), vec![1, 2, 3]));
        // Who has the name may be somebody to bring back.
        let taken = [(2, Rejection::Taken { attribute: "userName".to_owned() })];
        let mut hopeful = items();
        hopeful[1].again_if_taken = true;
        assert_eq!(walk(hopeful, usize::MAX, &taken), ("d".into(), vec![1, 2]));
        // Decided on the state that a refused item would have left.
        for work in [commit(3), ItemWork::Unchanged, ItemWork::Refused] {
            let after = Item { basis: Some(1), ..item(work) };
            let items = vec![item(commit(1)), item(commit(2)), after];
            assert_eq!(walk(items, usize::MAX, &[(2, Rejection::Gone)]).0, "dj");
        }
    }
}
