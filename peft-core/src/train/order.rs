//! Which samples a step takes.

use std::collections::BTreeMap;

use super::TrainConfig;
use crate::random::Random;

/// Which samples a step takes: a function of the settings, the lengths and tasks of the samples and the step alone.
pub(super) struct Order {
    config: TrainConfig,
    lengths: Vec<usize>,
    /// The samples of each task that has any.
    tasks: Vec<Vec<usize>>,
    /// The last epoch that was asked for, and its order.
    epoch: Option<(usize, Vec<usize>)>,
}

impl Order {
    /// Of samples of these lengths and tasks.
    pub(super) fn new(config: &TrainConfig, samples: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let (lengths, of): (Vec<usize>, Vec<usize>) = samples.into_iter().unzip();
        let mut tasks = BTreeMap::<usize, Vec<usize>>::new();
        of.into_iter().enumerate().for_each(|(sample, task)| tasks.entry(task).or_default().push(sample));
        Order { config: config.clone(), lengths, tasks: tasks.into_values().collect(), epoch: None }
    }

    /// The samples of a step, counted from 0. Without shuffling batches go round the data.
    pub(super) fn samples(&mut self, step: usize) -> Vec<usize> {
        let (count, size) = (self.lengths.len(), self.config.sequences());
        if let Some(temperature) = self.config.task_temperature {
            let batches = 0..self.config.gradient_accumulation_steps;
            return batches.flat_map(|batch| self.of_one_task(temperature, step, batch)).collect();
        }
        if !self.config.shuffle {
            return (0..size).map(|i| (step * size + i) % count).collect();
        }
        let steps = self.config.epoch(count);
        let (epoch, first) = (step / steps, step % steps * size);
        let order = match self.epoch.take() {
            Some((drawn, order)) if drawn == epoch => order,
            _ => self.draw(epoch),
        };
        let samples = order[first..count.min(first + size)].to_vec();
        self.epoch = Some((epoch, order));
        samples
    }

    /// One of a step's batches, from a task that is drawn by the number of its samples.
    fn of_one_task(&self, temperature: f64, step: usize, batch: usize) -> Vec<usize> {
        let mut random = Random::new(self.config.seed, &format!("tasks of batch {batch} of step {step}"));
        let most = self.tasks.iter().map(Vec::len).max().unwrap_or(1) as f64;
        let weight = |task: &Vec<usize>| (task.len() as f64 / most).powf(1.0 / temperature);
        let mut left = random.unit() * self.tasks.iter().map(weight).sum::<f64>();
        let drawn = self.tasks.iter().find(|task| {
            left -= weight(task);
            left < 0.0
        });
        // Rounding may leave something behind the last.
        let Some(task) = drawn.or(self.tasks.last()) else { return vec![] };
        (0..self.config.batch_size).map(|_| task[random.below(task.len())]).collect()
    }

    /// The order of an epoch. Grouped by length as in transformers: groups of 50 batches (fewer where the data is small),
    /// each sorted from long to short.
    fn draw(&self, epoch: usize) -> Vec<usize> {
        let random = Random::new(self.config.seed, &format!("order of epoch {epoch}"));
        let mut order = random.permutation(self.lengths.len());
        if self.config.group_by_length {
            let batch = self.config.batch_size;
            let batches = (order.len() / batch.saturating_mul(4)).clamp(1, 50);
            for group in order.chunks_mut(batch.saturating_mul(batches)) {
                group.sort_by_key(|sample| std::cmp::Reverse(self.lengths[*sample]));
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tolerances::STANDARD_ERRORS;

    #[test]
    fn an_epoch_visits_every_sample_once() {
        let config = TrainConfig::new(1e-3).with_batch_size(4);
        let mut order = Order::new(&config, [(1, 0); 10]);
        let mut seen: Vec<usize> = (0..3).flat_map(|step| order.samples(step)).collect();
        let second: Vec<usize> = (3..6).flat_map(|step| order.samples(step)).collect();
        assert_ne!(seen, second);
        // What was drawn before changes nothing.
        assert_eq!(order.samples(1), seen[4..8]);
        seen.sort();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        let in_order = TrainConfig { shuffle: false, ..config.clone() };
        assert_eq!(Order::new(&in_order, [(1, 0); 10]).samples(2), [8, 9, 0, 1]);
        let accumulated = TrainConfig { gradient_accumulation_steps: 2, ..config };
        assert_eq!(Order::new(&accumulated, [(1, 0); 10]).samples(0), [order.samples(0), order.samples(1)].concat());
        assert_eq!(accumulated.steps(10), 6);
    }

    #[test]
    fn batches_grouped_by_length_are_of_like_length() {
        let config = TrainConfig { group_by_length: true, ..TrainConfig::new(1e-3).with_batch_size(4) };
        let lengths: Vec<usize> = (0..64).map(|i| 1 + i * 7 % 31).collect();
        let spread = |config: &TrainConfig| {
            let mut order = Order::new(config, lengths.iter().map(|length| (*length, 0)));
            let batches: Vec<Vec<usize>> = (0..16).map(|step| order.samples(step)).collect();
            let mut all = batches.concat();
            all.sort();
            assert_eq!(all, (0..64).collect::<Vec<_>>());
            let range = |batch: &Vec<usize>| {
                let lengths = batch.iter().map(|i| lengths[*i]);
                lengths.clone().max().unwrap() - lengths.min().unwrap()
            };
            batches.iter().map(range).sum::<usize>()
        };
        let shuffled = TrainConfig { group_by_length: false, ..config.clone() };
        assert!(spread(&config) * 2 < spread(&shuffled));
    }

    /// Three tasks of 90, 9 and 1 samples, mixed in the data.
    fn tasks() -> Vec<(usize, usize)> {
        (0..100).map(|i| (1, if i % 10 == 3 { 1 + usize::from(i == 53) } else { 0 })).collect()
    }

    #[test]
    fn tasks_are_drawn_by_their_sizes_to_a_power() {
        let (tasks, steps) = (tasks(), 4000);
        for temperature in [1.0, 3.0, 10.0] {
            let config = TrainConfig::new(1e-3).with_batch_size(4).with_task_temperature(temperature).with_seed(5);
            let config = TrainConfig { gradient_accumulation_steps: 2, ..config };
            let mut order = Order::new(&config, tasks.clone());
            let (mut batches, mut samples) = ([0; 3], [0; 100]);
            for step in 0..steps {
                for batch in order.samples(step).chunks(4) {
                    let task = tasks[batch[0]].1;
                    assert!(batch.len() == 4 && batch.iter().all(|sample| tasks[*sample].1 == task), "{batch:?}");
                    batches[task] += 1;
                    batch.iter().for_each(|sample| samples[*sample] += 1);
                }
            }
            let weights = [90f64, 9.0, 1.0].map(|size| size.powf(1.0 / temperature));
            let p = weights.map(|weight| weight / weights.iter().sum::<f64>());
            let near = |found: usize, draws: usize, p: f64| {
                let (draws, error) = (draws as f64, found as f64 - draws as f64 * p);
                error.abs() <= f64::from(STANDARD_ERRORS.0) * (draws * p * (1.0 - p)).sqrt()
            };
            assert!((0..3).all(|task| near(batches[task], 2 * steps, p[task])), "{temperature}: {batches:?}, {p:?}");
            // Each sample of a task as often as another.
            let of_largest = (0..100).filter(|sample| tasks[*sample].1 == 0);
            assert!(
                of_largest.into_iter().all(|sample| near(samples[sample], 4 * batches[0], 1.0 / 90.0)),
                "{samples:?}"
            );
        }
    }

    #[test]
    fn batches_of_tasks_are_functions_of_seed_and_step() {
        let config = TrainConfig::new(1e-3).with_batch_size(6).with_task_temperature(2.0);
        let mut order = Order::new(&config, tasks());
        let forth: Vec<Vec<usize>> = (0..8).map(|step| order.samples(step)).collect();
        let mut back: Vec<Vec<usize>> = (0..8).rev().map(|step| Order::new(&config, tasks()).samples(step)).collect();
        back.reverse();
        assert_eq!(forth, back);
        assert_ne!(forth[0], Order::new(&config.with_seed(1), tasks()).samples(0));
        assert!((1..8).all(|step| forth[step] != forth[0]));
    }
}
