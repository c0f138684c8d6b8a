//! The targets of `fuzz/` with stable Rust: seeds, and mutations of them, for a bounded number of inputs.
//!
//! `ANNALS_FUZZ_INPUTS` is how many inputs each target gets (default: a few seconds' worth);
//! `ANNALS_TEST_SEED` repeats a run.

#[expect(unreachable_pub, reason = "it is a library for fuzz/fuzz_targets")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// How many inputs a target gets by default.
const INPUTS: u64 = 3_000;

/// SplitMix64: the tests need many numbers, not good ones.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Prints the input of a target that panics.
struct Shown<'a>(&'a str, u64, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: ANNALS_TEST_SEED={}: {}", self.0, self.1, self.2.escape_ascii());
        }
    }
}

/// One input: a seed, a seed changed a little, two seeds joined, or choices from a dictionary.
fn input(numbers: &mut Numbers, seeds: &[&str]) -> Vec<u8> {
    let seed = |numbers: &mut Numbers| seeds[numbers.below(seeds.len())].as_bytes().to_vec();
    if numbers.below(2) == 0 {
        let len = 1 + numbers.below(60);
        let mut choices = vec![1];
        choices.extend((0..len).map(|_| numbers.next() as u8));
        return choices;
    }
    let mut data = seed(numbers);
    for _ in 0..numbers.below(5) {
        let at = numbers.below(data.len() + 1);
        match numbers.below(6) {
            0 => data.truncate(at),
            1 => data.insert(at, numbers.next() as u8),
            2 if at < data.len() => data[at] ^= 1 << numbers.below(8),
            3 => {
                let other = seed(numbers);
                let from = numbers.below(other.len() + 1);
                let to = from + numbers.below(other.len() - from + 1);
                data.splice(at..at, other[from..to].iter().copied());
            }
            4 => {
                let to = at + numbers.below(data.len() - at + 1);
                let part = data[at..to].to_vec();
                data.splice(at..at, part);
            }
            _ => {
                let to = at + numbers.below((data.len() - at).min(8) + 1);
                data.drain(at..to);
            }
        }
    }
    data
}

fn run(name: &str, target: fn(&[u8]), seeds: &str) {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let chance = || RandomState::new().build_hasher().finish();
    let seed = number("ANNALS_TEST_SEED").unwrap_or_else(chance);
    let mut numbers = Numbers(seed);
    let seeds: Vec<&str> = seeds.lines().collect();
    assert!(seeds.len() > 20, "{name}: where are the seeds?");
    for seed_text in &seeds {
        let _shown = Shown(name, seed, seed_text.as_bytes());
        target(seed_text.as_bytes());
    }
    for _ in 0..number("ANNALS_FUZZ_INPUTS").unwrap_or(INPUTS) {
        let data = input(&mut numbers, &seeds);
        let _shown = Shown(name, seed, &data);
        target(&data);
    }
}

#[test]
fn filter() {
    run("filter", targets::filter, include_str!("../../fuzz/seeds/filter.txt"));
}

#[test]
fn path() {
    run("path", targets::path, include_str!("../../fuzz/seeds/path.txt"));
}

#[test]
fn patch() {
    run("patch", targets::patch, include_str!("../../fuzz/seeds/patch.txt"));
}

#[test]
fn resource() {
    run("resource", targets::resource, include_str!("../../fuzz/seeds/resource.txt"));
}
