//! The whole suite on one backend: every deterministic case, the merged ones, and as many random ones as asked for.

use natten_core::Backend;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::case::Case;
use crate::features::feature_cases;
use crate::golden::golden;
use crate::linear::linear_cases;
use crate::merge::{merge_cases, run_merge_case};
use crate::natten::natten_cases;
use crate::outcome::{Outcome, Report, Status};
use crate::programs::program_cases;
use crate::run::run_case;
use crate::special::special_cases;
use crate::strategies::{random_cases, random_programs};
use crate::unfused::{softmax_cases, unfused_cases};

/// The most simpler cases that are tried after a random one failed.
const MAX_SHRINKS: usize = 500;

/// What of the suite to run. The default is everything, and 64 random cases.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Only the cases whose name contains this. Random cases are named `random-` and their number, every second one
    /// `random-program-` and its number.
    pub filter: Option<String>,
    /// Random cases.
    pub random: usize,
    /// What random cases are drawn from.
    pub seed: u64,
    /// Only one of so many parts of the suite: its number, from 0, and how many there are. All parts together are the
    /// whole, for processes that run beside each other.
    pub part: (u64, u64),
}

impl Default for Options {
    fn default() -> Self {
        Self { filter: None, random: 64, seed: 0, part: (0, 1) }
    }
}

impl Options {
    /// Only the cases whose name contains `part`.
    #[must_use]
    pub fn filter(self, part: impl Into<String>) -> Self {
        Self { filter: Some(part.into()), ..self }
    }

    /// So many random cases.
    #[must_use]
    pub const fn random(mut self, cases: usize) -> Self {
        self.random = cases;
        self
    }

    /// Random cases drawn from another seed.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Only part `number`, from 0, of `parts`.
    #[must_use]
    pub const fn part(mut self, number: u64, parts: u64) -> Self {
        self.part = (number, parts);
        self
    }

    fn keeps(&self, name: &str) -> bool {
        // By a hash of the name, so that a part holds cases of every kind.
        let hash = name
            .bytes()
            .fold(5381u64, |hash, byte| hash.wrapping_mul(33).wrapping_add(u64::from(byte)) ^ (hash >> 29));
        hash % self.part.1.max(1) == self.part.0
            && self.filter.as_deref().is_none_or(|part| name.contains(part))
    }
}

/// Every deterministic case: golden, NATTEN's, features, special values, programs, linear attention, the unfused pair.
/// Names are unique, and start with `golden`, `natten`, `feature`, `special`, `program`, `linear` or `unfused`.
pub fn cases() -> Vec<Case> {
    let golden = golden().into_iter().map(|golden| golden.case);
    let softmax = golden.chain(natten_cases()).chain(feature_cases()).chain(special_cases());
    let softmax = softmax.chain(softmax_cases()).chain(unfused_cases());
    softmax.chain(program_cases()).chain(linear_cases()).collect()
}

/// Runs the suite. `progress` sees every outcome as it comes. A random case that fails is made as simple as it can be
/// while it still fails, and it is the simplest whose outcome is reported.
pub fn run_all(backend: &dyn Backend, options: &Options, progress: &mut dyn FnMut(&Outcome)) -> Report {
    let mut outcomes = Vec::new();
    let mut report = |outcome: Outcome| {
        progress(&outcome);
        outcomes.push(outcome);
    };
    for case in cases().iter().filter(|case| options.keeps(&case.name)) {
        report(run_case(backend, case));
    }
    for case in merge_cases().iter().filter(|case| options.keeps(&case.name)) {
        report(run_merge_case(backend, case));
    }
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&options.seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for number in 0..options.random {
        // Drawn whether it runs or not, so that a number names the same case under every filter.
        let case = match number % 2 {
            0 => random_cases(number).boxed(),
            _ => random_programs(number).boxed(),
        };
        let tree = case.new_tree(&mut runner).expect("no strategy of these rejects what it drew");
        if options.keeps(&tree.current().name) {
            report(run_random(backend, tree));
        }
    }
    Report::new(backend.device().backend, outcomes)
}

fn run_random(backend: &dyn Backend, mut tree: impl ValueTree<Value = Case>) -> Outcome {
    let mut simplest = run_case(backend, &tree.current());
    let mut more = simplest.status() == Status::Failed && tree.simplify();
    for _ in 0..MAX_SHRINKS {
        if !more {
            break;
        }
        let outcome = run_case(backend, &tree.current());
        more = if outcome.status() == Status::Failed {
            simplest = outcome;
            tree.simplify()
        } else {
            tree.complicate()
        };
    }
    simplest
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use natten_core::DType;

    use super::*;

    #[test]
    fn parts_are_the_whole() {
        let all = cases();
        let parts: Vec<Options> = (0..5).map(|number| Options::default().part(number, 5)).collect();
        for case in &all {
            assert_eq!(parts.iter().filter(|part| part.keeps(&case.name)).count(), 1, "{}", case.name);
        }
        for part in parts {
            let kept = all.iter().filter(|case| part.keeps(&case.name)).count();
            assert!(kept * 10 > all.len(), "{part:?}: {kept}");
        }
    }

    #[test]
    fn names_are_unique() {
        let all = cases();
        let names: BTreeSet<&str> = all.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c) || c == '_'))
        );
    }

    #[test]
    fn every_tuple_and_every_dtype_of_every_rank_is_there() {
        let all = natten_cases();
        for number in (1..=46).chain([49, 52]) {
            let name = format!("natten-{number}-");
            assert!(all.iter().any(|case| case.name.starts_with(&name)), "{name}");
        }
        for dtype in DType::FLOATS {
            for rank in 1..=3 {
                let fits = |c: &Case| c.problem.dtype() == dtype && c.problem.neighborhood().rank() == rank;
                assert!(all.iter().any(fits), "{dtype} {rank}");
            }
        }
    }
}
