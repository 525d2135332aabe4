//! Structural pruning: a narrower network out of the most important units of a backbone.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Int, Tensor, TensorData};
use peft_core::train::Probe;
use peft_core::{Base, Part, Place, Replaced, Result, Shape, Site, Slot, Stack, slot_name};

/// Linear maps that read the same rows, or a normalization, in the order in which a backbone runs them.
fn groups(shape: &Shape) -> Vec<Vec<Site>> {
    use Part::*;
    let attention = [vec![Query, Key, Value], vec![Output]];
    let crossed = [vec![CrossQuery, CrossKey, CrossValue], vec![CrossOutput]];
    let feed_forward = [vec![Gate, Up], vec![Down]];
    let normed = |norm: Part, maps: [Vec<Part>; 2]| {
        let mut groups = maps.to_vec();
        groups.insert(if shape.pre_norm() { 0 } else { 2 }, vec![norm]);
        groups
    };
    let layer =
        [normed(NormAttention, attention), normed(NormCrossAttention, crossed), normed(NormFeedForward, feed_forward)]
            .concat();
    let places: BTreeSet<Site> = shape.places().into_iter().map(|place| place.site).collect();
    let at = |stack, layer, parts: &[Part]| -> Vec<Site> {
        let sites = parts.iter().map(|part| Site { stack, layer, part: *part });
        sites.filter(|site| places.contains(site)).collect()
    };
    let stack = |(stack, layers): (Stack, usize)| {
        let layers = (0..layers).flat_map(|i| layer.iter().map(move |parts| (i, parts)));
        let mut groups: Vec<Vec<Site>> = layers.map(|(i, parts)| at(stack, i, parts)).collect();
        groups.push(at(stack, 0, &[NormFinal]));
        groups
    };
    shape.stacks().into_iter().flat_map(stack).filter(|group| !group.is_empty()).collect()
}

/// The most important units of a backbone, as a network of the shape `side`. From the columns of the word table on, each linear map
/// keeps the rows that the one before it kept as columns, and the columns with the largest sums of `importance`, which is
/// multiplied over maps that read the same; vectors follow. That a residual joins different units is left to training.
pub(super) fn pruned(
    base: &Base,
    side: &Shape,
    importance: impl Fn(Site) -> Tensor<2>,
) -> BTreeMap<(Site, Slot), TensorData> {
    let places: BTreeSet<(Site, Slot)> = base.shape().places().into_iter().map(|p| (p.site, p.slot)).collect();
    let index = |units: &[usize]| -> Tensor<1, Int> {
        let index: Vec<i32> = units.iter().map(|unit| *unit as i32).collect();
        Tensor::from_data(TensorData::new(index, [units.len()]), base.device())
    };
    let mut kept = BTreeMap::new();
    let keep_vectors = |site: Site, units: &[usize], kept: &mut BTreeMap<(Site, Slot), TensorData>| {
        for slot in [Slot::Gain, Slot::Bias].into_iter().filter(|slot| places.contains(&(site, *slot))) {
            kept.insert((site, slot), base.vector(site, slot).select(0, index(units)).into_data());
        }
    };
    let mut units = largest(importance(base.shape().words()), side.hidden);
    for group in groups(base.shape()) {
        let first = group[0];
        if !places.contains(&(first, Slot::Weight)) {
            keep_vectors(first, &units, &mut kept);
            continue;
        }
        let rows = index(&units);
        let width = |site: &Site| base.shape().linear_dims(*site)[1];
        // Heads of keys and values that several of queries share are fewer, and choose apart.
        for maps in group.chunk_by(|a, b| width(a) == width(b)) {
            let together = maps.iter().map(|site| importance(*site).select(0, rows.clone())).reduce(|a, b| a * b);
            let Some(together) = together else { continue };
            let columns = largest(together, side.linear_dims(maps[0])[1]);
            for site in maps {
                let weight = base.weight(*site).dense().select(0, rows.clone()).select(1, index(&columns));
                kept.insert((*site, Slot::Weight), weight.into_data());
                keep_vectors(*site, &columns, &mut kept);
            }
            if maps[0] == first {
                units = columns;
            }
        }
    }
    // There are as many heads as in the backbone, each with its own biases.
    for (site, slot) in places.into_iter().filter(|(site, _)| site.part == Part::RelativePositions) {
        kept.insert((site, slot), base.weight(site).dense().into_data());
    }
    kept
}

/// The columns with the largest sums, this many, in their order.
fn largest(importance: Tensor<2>, n: usize) -> Vec<usize> {
    let sums: Vec<f32> = importance.sum_dim(0).into_data().iter::<f32>().collect();
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by(|a, b| sums[*b].total_cmp(&sums[*a]));
    order.truncate(n);
    order.sort_unstable();
    order
}

/// The squared gradients of the loss on so many random samples, one by one, summed.
pub(super) fn fisher(base: &Base, data: Probe<'_>, samples: usize) -> Result<BTreeMap<Site, Tensor<2>>> {
    let mut places = base.shape().places();
    places.retain(|place| place.slot == Slot::Weight);
    let tensor = |place: &Place| Tensor::from_inner(base.weight(place.site).dense());
    let matrices = Replaced::new(&places, tensor, |_| unreachable!("only matrices are left"));
    let mut squares = data.fisher(&matrices, base, &data.draw(samples))?;
    let matrix = |Place { site, slot, dims, .. }: Place| {
        let squares = squares.remove(&slot_name(site, slot)).unwrap_or_default();
        (site, Tensor::from_data(TensorData::new(squares, dims), base.device()))
    };
    Ok(places.into_iter().map(matrix).collect())
}

#[cfg(test)]
mod tests {
    use peft_core::random::Random;
    use peft_core::testing::tolerances::FINITE_DIFFERENCE;
    use peft_core::testing::{base, device, examples};
    use peft_core::train::TrainConfig;
    use peft_core::{Bare, Copies, Example, Head, Trained, Weight};

    use super::*;
    use crate::others::lst::side_shape;

    /// Numbers of a matrix in f64, row by row.
    fn rows(matrix: Tensor<2>) -> Vec<Vec<f64>> {
        let columns = matrix.dims()[1];
        let values: Vec<f64> = matrix.into_data().iter::<f32>().map(f64::from).collect();
        values.chunks(columns).map(<[f64]>::to_vec).collect()
    }

    /// The chain of choices by its definition, through all layers of all stacks, over models of each kind, of which a LLaMA's keys have
    /// fewer heads than its queries. Nothing else is kept.
    #[test]
    fn pruning_keeps_the_most_important_units() {
        use Part::*;
        let top = |sums: Vec<f64>, n: usize| {
            let rank = |unit: usize| sums.iter().filter(|other| **other > sums[unit]).count();
            (0..sums.len()).filter(|unit| rank(*unit) < n).collect::<Vec<_>>()
        };
        // The maps that choose together, in the order of the forward; a normalization follows the units in front of it.
        let attention = [vec![Query, Key, Value], vec![Output]];
        let post = [&attention[..], &[vec![NormAttention], vec![Up], vec![Down], vec![NormFeedForward]]].concat();
        let pre = [&[vec![NormAttention]], &attention[..], &[vec![NormFeedForward], vec![Up], vec![Down]]].concat();
        let crossed = [vec![NormCrossAttention], vec![CrossQuery, CrossKey, CrossValue], vec![CrossOutput]];
        let decoder = [&pre[..3], &crossed[..], &pre[3..]].concat();
        let few = [vec![Key, Value], vec![Query], vec![Output], vec![NormFeedForward], vec![Gate, Up], vec![Down]];
        let llama = [&[vec![NormAttention]], &few[..]].concat();
        for (name, chains) in [
            ("roberta-tiny", vec![&post]),
            ("bert-tiny", vec![&post]),
            ("t5-tiny", vec![&pre, &decoder]),
            ("llama-tiny", vec![&llama]),
        ] {
            let base = base(name, &device());
            let side = side_shape(base.shape(), 2);
            let importance = |site: Site| {
                let dims = base.weight(site).dense().dims();
                Random::new(5, &site.to_string()).uniform_tensor(dims, 0.1, 1.0, base.device())
            };
            let numbers = |data: TensorData| data.iter::<f32>().map(f64::from).collect::<Vec<_>>();
            let places: BTreeSet<_> = base.shape().places().into_iter().map(|place| (place.site, place.slot)).collect();
            let follow = |site: Site, units: &[usize]| {
                let slots = [Slot::Gain, Slot::Bias].into_iter().filter(|slot| places.contains(&(site, *slot)));
                let cut = |slot| {
                    let all = numbers(base.vector(site, slot).into_data());
                    ((site, slot), units.iter().map(|unit| all[*unit]).collect::<Vec<_>>())
                };
                slots.map(cut).collect::<Vec<_>>()
            };
            let words = rows(importance(base.shape().words()));
            let mut units = top((0..24).map(|j| words.iter().map(|row| row[j]).sum()).collect(), side.hidden);
            let mut expected = BTreeMap::new();
            for ((stack, layers), chain) in base.shape().stacks().into_iter().zip(chains) {
                for (layer, parts) in (0..layers).flat_map(|layer| chain.iter().map(move |parts| (layer, parts))) {
                    let sites: Vec<Site> = parts.iter().map(|part| Site { stack, layer, part: *part }).collect();
                    if !places.contains(&(sites[0], Slot::Weight)) {
                        expected.extend(follow(sites[0], &units));
                        continue;
                    }
                    let all: Vec<_> = sites.iter().map(|site| rows(importance(*site))).collect();
                    let sum =
                        |j: usize| units.iter().map(|i| all.iter().map(|rows| rows[*i][j]).product::<f64>()).sum();
                    let columns = top((0..all[0][0].len()).map(sum).collect(), side.linear_dims(sites[0])[1]);
                    for site in sites {
                        let weight = rows(base.weight(site).dense());
                        let cut = units.iter().flat_map(|i| columns.iter().map(|j| weight[*i][*j])).collect();
                        expected.insert((site, Slot::Weight), cut);
                        expected.extend(follow(site, &columns));
                    }
                    if parts[0] != Key {
                        units = columns;
                    }
                }
                expected.extend(follow(Site { stack, layer: 0, part: NormFinal }, &units));
                let table = (Site { stack, layer: 0, part: RelativePositions }, Slot::Weight);
                if places.contains(&table) {
                    expected.insert(table, numbers(base.weight(table.0).dense().into_data()));
                }
            }
            let kept = pruned(&base, &side, importance);
            assert_eq!(kept.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
            for (place, found) in kept {
                assert_eq!(numbers(found), expected[&place], "{place:?} of {name}");
            }
            let full = pruned(&base, base.shape(), importance);
            let same = |((site, slot), data): (&(Site, Slot), &TensorData)| {
                *slot != Slot::Weight || *data == base.weight(*site).dense().into_data()
            };
            assert!(full.iter().all(same), "{name}");
        }
    }

    /// Against central differences of each sample's loss.
    #[test]
    fn fisher_is_the_sum_of_squared_gradients() {
        let base = base("roberta-tiny", &device());
        let (examples, head, run) =
            (examples(&base), Head::classifier(&base, 2, 3), TrainConfig::default().with_seed(4));
        let probe = Probe::new(&head, &examples).with_run(&run);
        let (squares, drawn) = (fisher(&base, probe, 3).unwrap(), probe.draw(3));
        assert!(drawn != [0, 1, 2] && drawn != Probe::new(&head, &examples).draw(3), "{drawn:?}");
        let loss = |base: &Base, example: &Example| {
            let trained = Trained { tuner: Bare {}, head: head.clone(), copies: Copies::default() };
            let loss =
                trained.loss(base, &base.batch(&[example]).unwrap(), &[example.label.as_ref().unwrap()]).unwrap();
            f64::from(loss.into_scalar::<f32>())
        };
        for site in [Site::encoder(0, Part::Key), Site::encoder(2, Part::Down)] {
            let found = rows(squares[&site].clone());
            let (row, column) = (0..24)
                .flat_map(|i| (0..24).map(move |j| (i, j)))
                .max_by(|a, b| found[a.0][a.1].total_cmp(&found[b.0][b.1]))
                .unwrap();
            let weight = base.weight(site).dense();
            let moved = |by: f32| {
                let old = weight.clone().slice([row..row + 1, column..column + 1]);
                base.clone().with_weight(
                    site,
                    Weight::Dense(weight.clone().slice_assign([row..row + 1, column..column + 1], old + by)),
                )
            };
            let h = 1e-2;
            let [low, high] = [moved(-h), moved(h)];
            let slope = |example| (loss(&high, example) - loss(&low, example)) / (2.0 * f64::from(h));
            let expected: f64 = drawn.iter().map(|i| slope(&examples[*i]).powi(2)).sum();
            let error = (found[row][column] - expected).abs() / expected;
            assert!(error <= f64::from(FINITE_DIFFERENCE.0), "{site}: {} against {expected}", found[row][column]);
        }
    }
}
