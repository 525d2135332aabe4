//! How the next point is proposed.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::front::{Pair, expected_improvement, front, hypervolume, normal_scores};
use super::gp::Process;
use super::{Point, Space};
use crate::random::Random;
use crate::{Error, Result};

/// A way to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Any points.
    Random,
    /// AutoPEFT's, Bayesian optimization: random points, then those that are expected to push the front out farthest, by a Gaussian process
    /// of the scores.
    Bayes,
    /// S4's, in stages: one choice after the other, in their order, each by the mean score of random samples with each of its values.
    Greedy,
    /// Successive halving (Jamieson and Talwalkar, 2016): many random points with a ninth of the training, the best third of them with a
    /// third, the best third of these with all of it.
    Halving,
}

impl FromStr for Strategy {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "random" => Ok(Strategy::Random),
            "bayes" => Ok(Strategy::Bayes),
            "greedy" => Ok(Strategy::Greedy),
            "halving" => Ok(Strategy::Halving),
            _ => Err(Error::config("strategy", name, "random, bayes, greedy or halving")),
        }
    }
}

/// A point that is to be tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The point.
    pub point: Point,
    /// With which share of the training.
    pub effort: f64,
}

/// What came of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// What was tried.
    pub proposal: Proposal,
    /// The score, the more the better; none while it runs, or if it failed.
    pub score: Option<f64>,
    /// How many numbers it trains.
    pub numbers: usize,
}

/// A search of a space.
pub struct Search<'a> {
    /// What is chosen from.
    pub space: &'a Space,
    /// How.
    pub strategy: Strategy,
    /// How many points are tried.
    pub budget: usize,
    /// Decides every random number.
    pub seed: u64,
    /// How many numbers a point trains; nothing for a point that cannot be.
    pub numbers: &'a dyn Fn(&Point) -> Option<usize>,
}

/// How many points a local search looks at, and from how many it starts.
const LOOKS: usize = 1000;
const STARTS: usize = 10;

/// How many points in a row may be impossible.
const MISSES: usize = 100_000;

impl Search<'_> {
    /// What to try next, given what was tried, and is, in its order: a function of that and of the settings. None once the budget or the
    /// space is used up.
    pub fn next(&self, trials: &[Trial]) -> Option<Proposal> {
        if trials.len() >= self.budget {
            return None;
        }
        let mut random = Random::new(self.seed, &format!("trial {}", trials.len()));
        let whole = |point| Proposal { point, effort: 1.0 };
        match self.strategy {
            Strategy::Random => self.untried(trials, 1.0, &mut random).map(whole),
            Strategy::Bayes => self.likely(trials, &mut random).map(whole),
            Strategy::Greedy => self.staged(trials, &mut random).map(whole),
            Strategy::Halving => self.promoted(trials, &mut random),
        }
    }

    /// Which trials with all of the training are on the front.
    pub fn front(trials: &[Trial]) -> Vec<usize> {
        let whole: Vec<usize> = (0..trials.len()).filter(|i| trials[*i].pair().is_some()).collect();
        let pairs: Vec<Pair> = whole.iter().filter_map(|i| trials[*i].pair()).collect();
        front(&pairs).into_iter().map(|i| whole[i]).collect()
    }

    /// The area of the front: sizes by their logarithms, above the worst score and below the largest size there is.
    pub fn hypervolume(trials: &[Trial]) -> f64 {
        let pairs: Vec<Pair> = trials.iter().filter_map(Trial::pair).collect();
        hypervolume(&pairs, reference(&pairs))
    }

    /// A random point that was not tried with this effort yet.
    fn untried(&self, trials: &[Trial], effort: f64, random: &mut Random) -> Option<Point> {
        let tried = tried(trials, effort);
        let size = self.space.size();
        let start = random.below(size);
        // From there on, so that the last ones are found too.
        let points = (0..size.min(MISSES)).map(|step| self.space.point((start + step) % size));
        points.filter(|point| !tried.contains(point)).find(|point| (self.numbers)(point).is_some())
    }

    /// The first quarter at random, then where the front is expected to grow most.
    fn likely(&self, trials: &[Trial], random: &mut Random) -> Option<Point> {
        let known: Vec<(&Trial, Pair)> = trials.iter().filter_map(|trial| Some((trial, trial.pair()?))).collect();
        if trials.len() < (self.budget / 4).max(4) || known.len() < 2 {
            return self.untried(trials, 1.0, random);
        }
        let scores = normal_scores(&known.iter().map(|(_, pair)| pair.0).collect::<Vec<_>>());
        let inputs: Vec<Vec<f64>> = known.iter().map(|(trial, _)| self.space.features(&trial.proposal.point)).collect();
        let process = Process::fit(&inputs, &scores);
        // The front as the process models it, in the same scores.
        let pairs: Vec<Pair> = scores.iter().zip(&known).map(|(score, (_, pair))| (*score, pair.1)).collect();
        let reference = reference(&pairs);
        let tried = tried(trials, 1.0);
        let worth = |point: &Point| {
            let size = logarithm((self.numbers)(point)?);
            // Larger than any so far is worth something if it is better.
            let reference = (reference.0, reference.1.max(size + 1e-3));
            let gain = expected_improvement(&pairs, reference, process.at(&self.space.features(point)), size);
            (!tried.contains(point)).then_some(gain)
        };
        let best = Search::front(trials).into_iter().map(|i| trials[i].proposal.point.clone());
        let mut starts: Vec<Point> = best.take(STARTS).collect();
        starts.extend((0..STARTS).filter_map(|_| self.untried(trials, 1.0, random)));
        let (mut looks, mut found): (usize, Option<(f64, Point)>) = (0, None);
        for mut point in starts {
            let mut value = worth(&point).unwrap_or(f64::NEG_INFINITY);
            loop {
                if value.is_finite() && found.as_ref().is_none_or(|(best, _)| value > *best) {
                    found = Some((value, point.clone()));
                }
                let neighbours = self.space.neighbours(&point);
                looks += neighbours.len();
                let worths = neighbours.into_iter().filter_map(|next| Some((worth(&next)?, next)));
                let next = worths.reduce(|a, b| if b.0 > a.0 { b } else { a });
                match next.filter(|(next, _)| *next > value && looks < LOOKS) {
                    Some((next, other)) => (value, point) = (next, other),
                    None => break,
                }
            }
        }
        match found {
            Some((gain, point)) if gain > 0.0 => Some(point),
            // Nothing near is expected to help.
            _ => self.untried(trials, 1.0, random),
        }
    }

    /// Stages of the same number of trials: the kind, then each choice. A trial has what the stages before have chosen, a value of its
    /// stage in turn, and random values of the later ones.
    fn staged(&self, trials: &[Trial], random: &mut Random) -> Option<Point> {
        let kinds = self.space.choices();
        let stages = usize::from(kinds.len() > 1) + kinds.iter().map(Vec::len).max().unwrap_or_default();
        let each = (self.budget / stages.max(1)).max(1);
        let samples = |stage: usize| trials.iter().skip(stage * each).take(each);
        let chosen = |stage: usize, values: usize, of: &dyn Fn(&Point) -> Option<usize>| {
            let mean = |value: usize| {
                let scores: Vec<f64> = samples(stage)
                    .filter(|trial| of(&trial.proposal.point) == Some(value))
                    .filter_map(|trial| trial.score)
                    .collect();
                if scores.is_empty() { f64::NEG_INFINITY } else { scores.iter().sum::<f64>() / scores.len() as f64 }
            };
            // Of equal ones the first.
            (0..values).rev().max_by(|a, b| mean(*a).total_cmp(&mean(*b))).unwrap_or_default()
        };
        let (now, turn) = (trials.len() / each, trials.len() % each);
        let mut value = |stage: usize, values: usize, of: &dyn Fn(&Point) -> Option<usize>| match stage.cmp(&now) {
            std::cmp::Ordering::Less => chosen(stage, values, of),
            std::cmp::Ordering::Equal => turn % values,
            std::cmp::Ordering::Greater => random.below(values),
        };
        let tried = tried(trials, 1.0);
        // What the stages leave may have been tried, and chance may give it again.
        for _ in 0..100 {
            let first = usize::from(kinds.len() > 1);
            let kind = if first == 1 { value(0, kinds.len(), &|point| Some(point.kind)) } else { 0 };
            let place = |(i, values): (usize, &usize)| {
                value(first + i, *values, &|point| (point.kind == kind).then(|| point.places[i]))
            };
            let point = Point { kind, places: kinds[kind].iter().enumerate().map(place).collect() };
            if !tried.contains(&point) && (self.numbers)(&point).is_some() {
                return Some(point);
            }
        }
        self.untried(trials, 1.0, random)
    }

    /// How many trials have a ninth, a third and all of the training.
    fn rungs(&self) -> [usize; 3] {
        let [most, some] = [9, 3].map(|share| (self.budget as u128 * share / 13) as usize);
        [most, some, self.budget - most - some]
    }

    fn promoted(&self, trials: &[Trial], random: &mut Random) -> Option<Proposal> {
        let effort = |rung: usize| 3f64.powi(rung as i32 - 2);
        let better = |a: &&Trial, b: &&Trial| a.score.partial_cmp(&b.score).unwrap_or(std::cmp::Ordering::Equal);
        // A space with fewer points than a rung has them all in it.
        self.rungs().into_iter().enumerate().find_map(|(rung, size)| {
            let tried = tried(trials, effort(rung));
            if tried.len() >= size {
                return None;
            }
            let lower = trials.iter().filter(|trial| rung > 0 && trial.proposal.effort == effort(rung - 1));
            let open = lower.filter(|trial| trial.score.is_some() && !tried.contains(&trial.proposal.point));
            // Of equal ones the first.
            let best = open.rev().max_by(better).map(|trial| trial.proposal.point.clone());
            let point = best.or_else(|| self.untried(trials, effort(rung), random))?;
            Some(Proposal { point, effort: effort(rung) })
        })
    }
}

impl Trial {
    /// Score and size, of a trial with all of the training.
    fn pair(&self) -> Option<Pair> {
        (self.proposal.effort == 1.0).then_some((self.score?, logarithm(self.numbers)))
    }
}

/// Sizes go over several powers of ten.
fn logarithm(numbers: usize) -> f64 {
    (1.0 + numbers as f64).log10()
}

/// Just worse than all.
fn reference(pairs: &[Pair]) -> Pair {
    let worst = pairs.iter().map(|pair| pair.0).fold(f64::INFINITY, f64::min);
    let largest = pairs.iter().map(|pair| pair.1).fold(f64::NEG_INFINITY, f64::max);
    (worst, largest + 1e-3)
}

fn tried(trials: &[Trial], effort: f64) -> BTreeSet<&Point> {
    trials.iter().filter(|trial| trial.proposal.effort == effort).map(|trial| &trial.proposal.point).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn space() -> Space {
        let parts = json!({"serial": [0, 1, 3, 6, 12], "parallel": [0, 6, 12, 24, 96], "prefix": [0, 1, 2, 5]});
        let autopeft = json!({"method": "autopeft", "choices": parts, "subsets": {"layers": [0, 1, 2, 3]}});
        Space::new(&json!([autopeft, {"method": "lora", "choices": {"r": [1, 2, 4, 8, 16]}}])).unwrap()
    }

    /// What a point trains, with some that cannot be.
    fn numbers(space: &Space, point: &Point) -> Option<usize> {
        let settings = space.settings(point);
        let of = |key: &str| settings.get(key).and_then(|value| value.as_u64()).unwrap_or_default() as usize;
        let layers = settings.get("layers").and_then(|value| Some(value.as_array()?.len()));
        let count = match layers {
            Some(layers) => layers * (48 * of("serial") + 48 * of("parallel") + 48 * of("prefix")),
            None => 192 * of("r"),
        };
        (of("serial") != 6).then_some(count)
    }

    /// The more the better, but with less and less use, and the second layer of no use.
    fn score(space: &Space, point: &Point, effort: f64) -> f64 {
        let settings = space.settings(point);
        let of = |key: &str| settings.get(key).and_then(|value| value.as_f64()).unwrap_or_default();
        let used = settings.get("layers").and_then(|value| value.as_array());
        let used = used.map_or(1, |layers| layers.iter().filter(|layer| **layer != json!(1)).count()) as f64;
        let strength = used * (of("serial").sqrt() + 0.3 * of("parallel").sqrt() - 0.5 * of("prefix")) + of("r").sqrt();
        0.5 + 0.3 * (strength / 4.0).tanh() - 0.05 * (1.0 - effort)
    }

    fn run(strategy: Strategy, budget: usize, seed: u64) -> Vec<Trial> {
        let space = space();
        let numbers = |point: &Point| numbers(&space, point);
        let search = Search { space: &space, strategy, budget, seed, numbers: &numbers };
        let mut trials = vec![];
        while let Some(proposal) = search.next(&trials) {
            let score = Some(score(&space, &proposal.point, proposal.effort));
            let numbers = numbers(&proposal.point).unwrap();
            trials.push(Trial { proposal, score, numbers });
        }
        trials
    }

    const ALL: [Strategy; 4] = [Strategy::Random, Strategy::Bayes, Strategy::Greedy, Strategy::Halving];

    #[test]
    fn nothing_is_tried_twice_and_a_seed_decides_all() {
        for strategy in ALL {
            let trials = run(strategy, 39, 5);
            assert_eq!(trials.len(), 39);
            assert_eq!(trials, run(strategy, 39, 5));
            assert_ne!(trials, run(strategy, 39, 6));
            for (i, trial) in trials.iter().enumerate() {
                assert!(trials[..i].iter().all(|other| other.proposal != trial.proposal), "{strategy:?}: {trial:?}");
            }
        }
    }

    #[test]
    fn a_space_that_is_used_up_ends_the_search() {
        let space = Space::new(&json!({"choices": {"a": [1, 2, 3], "b": [1, 2]}})).unwrap();
        // Halving has all five with a ninth of the training, then those that its budget has room for.
        let most = ALL.map(|strategy| (strategy, usize::MAX, if strategy == Strategy::Halving { 15 } else { 5 }));
        let some = ALL.map(|strategy| (strategy, 20, if strategy == Strategy::Halving { 12 } else { 5 }));
        for (strategy, budget, expected) in most.into_iter().chain(some) {
            let numbers = |point: &Point| (point.places != [2, 1]).then(|| 1 + point.places[0]);
            let search = Search { space: &space, strategy, budget, seed: 1, numbers: &numbers };
            let mut trials = vec![];
            while let Some(proposal) = search.next(&trials) {
                let numbers = numbers(&proposal.point).unwrap();
                trials.push(Trial { score: Some(proposal.point.places[1] as f64), proposal, numbers });
            }
            assert_eq!(trials.len(), expected, "{strategy:?} {budget}");
        }
    }

    #[test]
    fn halving_gives_the_best_third_more() {
        let trials = run(Strategy::Halving, 39, 2);
        let of = |effort: f64| trials.iter().filter(|trial| trial.proposal.effort == effort).collect::<Vec<_>>();
        let rungs = [1.0 / 9.0, 1.0 / 3.0, 1.0].map(of);
        assert_eq!(rungs.each_ref().map(Vec::len), [27, 9, 3]);
        for pair in rungs.windows(2) {
            let is_up = |trial: &&&Trial| pair[1].iter().any(|up| up.proposal.point == trial.proposal.point);
            let (up, down): (Vec<&&Trial>, Vec<&&Trial>) = pair[0].iter().partition(|trial| is_up(trial));
            assert_eq!(up.len(), pair[1].len());
            let least = up.iter().filter_map(|trial| trial.score).fold(f64::INFINITY, f64::min);
            assert!(down.iter().filter_map(|trial| trial.score).all(|score| score <= least));
        }
    }

    /// The last trial of a stage shows what the stages before it have chosen.
    #[test]
    fn greedy_keeps_the_value_with_the_best_mean() {
        let space = Space::new(&json!({"choices": {"a": [0, 1, 2], "b": [0, 1, 2, 3]}})).unwrap();
        let value = |point: &Point| [0.0, 2.0, 1.0][point.places[0]] + [0.0, 0.1, 0.3, 0.2][point.places[1]];
        let numbers = |_: &Point| Some(1);
        let search = Search { space: &space, strategy: Strategy::Greedy, budget: 8, seed: 1, numbers: &numbers };
        let mut trials = vec![];
        while let Some(proposal) = search.next(&trials) {
            trials.push(Trial { score: Some(value(&proposal.point)), proposal, numbers: 1 });
        }
        let firsts: Vec<usize> = trials[..4].iter().map(|trial| trial.proposal.point.places[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 0]);
        let second = trials[4..].iter().filter(|trial| trial.proposal.point.places[0] == 1);
        assert!(second.count() >= 3, "{trials:?}");
        let best = trials.iter().max_by(|a, b| a.score.partial_cmp(&b.score).unwrap()).unwrap();
        assert_eq!(best.proposal.point.places, [1, 2]);
    }

    /// Over seeds, with the same number of trials; the area counted from the same corner.
    #[test]
    fn bayes_finds_a_larger_front_than_chance() {
        let area = |strategy: Strategy, seed: u64| {
            let pairs: Vec<Pair> = run(strategy, 40, seed).iter().filter_map(Trial::pair).collect();
            hypervolume(&pairs, (0.5, 5.0))
        };
        let wins = (0..10).filter(|seed| area(Strategy::Bayes, *seed) > area(Strategy::Random, *seed)).count();
        assert!(wins >= 8, "{wins} of 10");
    }

    /// What runs elsewhere, or failed, is not tried again, and has no score.
    #[test]
    fn trials_without_a_score_are_passed_over() {
        let space = space();
        let numbers = |point: &Point| numbers(&space, point);
        for strategy in ALL {
            let search = Search { space: &space, strategy, budget: 20, seed: 4, numbers: &numbers };
            let mut trials: Vec<Trial> = vec![];
            while let Some(proposal) = search.next(&trials) {
                assert!(trials.iter().all(|trial| trial.proposal != proposal));
                let score = (trials.len() % 3 != 1).then(|| score(&space, &proposal.point, proposal.effort));
                let numbers = numbers(&proposal.point).unwrap();
                trials.push(Trial { proposal, score, numbers });
            }
            assert_eq!(trials.len(), 20);
            assert!(Search::front(&trials).into_iter().all(|i| trials[i].score.is_some()));
        }
    }
}
