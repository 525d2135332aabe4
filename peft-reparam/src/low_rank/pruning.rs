//! What LoRAPrune takes away: importances by the gradients of the factors, groups of numbers, the share that goes, and the smaller model.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use peft_core::transfer::{read, send};
use peft_core::{Base, Error, Part, Place, Result, Shape, Site, SiteMap, Slot, Weight};

use super::pair::Pair;

/// The sub-layer whose heads or channels a linear map makes or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The sub-layer.
    pub block: Site,
    /// Whether the map makes them.
    pub outputs: bool,
}

impl Group {
    /// Of a linear map in a layer.
    pub(super) fn of(site: Site) -> Option<Group> {
        let (part, outputs) = match site.part {
            Part::Query | Part::Key | Part::Value => (Part::SelfAttention, true),
            Part::CrossQuery | Part::CrossKey | Part::CrossValue => (Part::CrossAttention, true),
            Part::Gate | Part::Up => (Part::FeedForward, true),
            Part::Output => (Part::SelfAttention, false),
            Part::CrossOutput => (Part::CrossAttention, false),
            Part::Down => (Part::FeedForward, false),
            _ => return None,
        };
        Some(Group { block: Site { part, ..site }, outputs })
    }
}

/// How many groups a sub-layer has: heads that share keys and values are one.
pub(super) fn count(shape: &Shape, block: Site) -> usize {
    if block.part == Part::FeedForward { shape.intermediate } else { shape.kv_heads() }
}

/// The linear map under whose name files hold a mask: of a sub-layer the one that is never missing, of a map itself.
pub(super) fn first(site: Site) -> Site {
    let part = match site.part {
        Part::SelfAttention => Part::Value,
        Part::CrossAttention => Part::CrossValue,
        Part::FeedForward => Part::Up,
        part => part,
    };
    Site { part, ..site }
}

/// |(dA B + A dB - dA dB) (W + s A B)|, `[in, out]`.
pub(super) fn importance(pair: &Pair, [da, db]: [Tensor<2>; 2], w: &Weight) -> Tensor<2> {
    let [a, b] = [&pair.a, &pair.b].map(|x| x.clone().without_autodiff());
    let change = da.clone().matmul(b) + (a - da).matmul(db);
    (change * pair.onto(w).without_autodiff()).abs()
}

/// The importances in the form of the masks, of those of the numbers at each site: of a group the sums over its numbers, each matrix's over
/// their norm.
pub(super) fn importances(
    numbers: impl Iterator<Item = (Site, Tensor<2>)>,
    masks: &SiteMap<Param<Tensor<2>>>,
    structured: bool,
) -> BTreeMap<Site, Tensor<2>> {
    let mut sums = BTreeMap::<Site, Tensor<2>>::new();
    for (site, numbers) in numbers {
        let (block, found) = match Group::of(site) {
            _ if !structured => (site, numbers),
            None => continue,
            Some(Group { block, outputs }) => {
                let Some(mask) = masks.get(block) else { continue };
                let groups = mask.dims()[0];
                let sums = numbers.sum_dim(usize::from(!outputs));
                let width = sums.shape().num_elements();
                let sums = sums.reshape([groups, width / groups]).sum_dim(1);
                let norm = sums.clone().powi_scalar(2).sum().sqrt() + 1e-8;
                (block, sums / norm.unsqueeze())
            }
        };
        let sum = sums.remove(&block).map_or(found.clone(), |sum| sum + found);
        sums.insert(block, sum);
    }
    sums
}

/// The part of the whole ratio that is to be gone after a step, counted from 0, of so many, where a choice is due: from 0 behind the first
/// share of the steps along a cubic to 1 before the last.
pub(super) fn share(step: usize, steps: usize, [warmup, cooldown]: [f64; 2], every: usize) -> Option<f64> {
    let (first, last) = (warmup * steps as f64, ((1.0 - cooldown) * steps as f64 + 1e-9).floor() as usize);
    let last = last.min(steps.saturating_sub(1));
    let due = step == last || (step < last && step as f64 > first && step.is_multiple_of(every));
    let left = || 1.0 - (step as f64 - first) / (last as f64 - first);
    due.then(|| if step == last { 1.0 } else { 1.0 - left().powi(3) })
}

/// A mask without the least important share of all, of which those that are gone already are the least; of equal ones the first go.
pub(super) fn keep(mask: &Tensor<2>, importance: &Tensor<2>, share: f64) -> Tensor<2> {
    let left: Vec<f32> = read(mask.clone().without_autodiff() * importance.clone().without_autodiff()).iter().collect();
    let gone: Vec<f32> = read(mask.clone()).iter().collect();
    let mut order: Vec<usize> = (0..left.len()).collect();
    order.sort_by(|i, j| (gone[*i], left[*i]).partial_cmp(&(gone[*j], left[*j])).unwrap_or(std::cmp::Ordering::Equal));
    let mut kept = vec![1f32; left.len()];
    order.iter().take((share * left.len() as f64 + 1e-9) as usize).for_each(|i| kept[*i] = 0.0);
    send(TensorData::new(kept, mask.dims()), &mask.device())
}

/// A model of which what is masked is cut out: it must be as many channels and heads in each layer, and of heads no table.
pub(super) fn compacted(base: &Base, masks: &SiteMap<Param<Tensor<2>>>) -> Result<Base> {
    let shape = base.shape();
    let left: BTreeMap<Site, Vec<usize>> = masks
        .iter()
        .map(|(block, mask)| {
            (
                block,
                mask.val().into_data().iter::<f32>().enumerate().filter(|(_, m)| *m != 0.0).map(|(i, _)| i).collect(),
            )
        })
        .collect();
    let same = |part: Part, all: usize| {
        let blocks = shape.sites(part);
        let counts: Vec<usize> = blocks.iter().map(|block| left.get(block).map_or(all, Vec::len)).collect();
        match counts.iter().all(|count| *count == counts[0]) {
            true => Ok(counts.first().copied().unwrap_or(all)),
            false => Err(Error::config(
                "masks",
                format!("{counts:?} of {part:?} left"),
                "as many in each layer (spare_layers: false)",
            )),
        }
    };
    let (channels, heads) =
        (same(Part::FeedForward, shape.intermediate)?, same(Part::SelfAttention, shape.kv_heads())?);
    let crossed = same(Part::CrossAttention, shape.kv_heads())?;
    let mut small = Shape { intermediate: channels, ..shape.clone() };
    if heads < shape.kv_heads() || crossed < shape.kv_heads() {
        let Some(architecture) = shape.architecture.with_kv_heads(heads) else {
            let expected = "none but on LLaMA: others have as many heads as their width or a table says";
            return Err(Error::config("masks", format!("{heads} of {} heads left", shape.kv_heads()), expected));
        };
        (small.heads, small.architecture) = (shape.heads / shape.kv_heads() * heads, architecture);
    }
    Base::new(small, base.device(), |place| {
        let whole = shape.places().into_iter().find(|old| old.name == place.name).unwrap_or_else(|| place.clone());
        Ok(cut(base.tensor_data(&whole), &whole, shape, &left))
    })
}

/// A tensor as files hold it, `[out, in]`, without what is gone.
fn cut(data: TensorData, place: &Place, shape: &Shape, left: &BTreeMap<Site, Vec<usize>>) -> TensorData {
    let Some((group, left)) = Group::of(place.site).and_then(|group| Some((group, left.get(&group.block)?))) else {
        return data;
    };
    if !group.outputs && place.slot == Slot::Bias {
        return data;
    }
    let (dims, groups) = (place.file_dims(), count(shape, group.block));
    let [rows, columns] = [dims[0], dims.get(1).copied().unwrap_or(1)];
    let numbers: Vec<f32> = data.iter().collect();
    let of = |width: usize| -> Vec<usize> {
        left.iter().flat_map(|g| g * (width / groups)..(g + 1) * (width / groups)).collect()
    };
    let (rows, columns_left) =
        if group.outputs { (of(rows), (0..columns).collect()) } else { ((0..rows).collect(), of(columns)) };
    let values: Vec<f32> =
        rows.iter().flat_map(|i| columns_left.iter().map(|j| numbers[i * columns + j]).collect::<Vec<_>>()).collect();
    match dims.len() {
        1 => TensorData::new(values, [rows.len()]),
        _ => TensorData::new(values, [rows.len(), columns_left.len()]),
    }
}

#[cfg(test)]
mod tests {
    use peft_core::random::Random;
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{assert_close, device};
    use proptest::prelude::*;

    use super::super::pair::untrained;
    use super::*;

    fn normal(seed: u64, name: &str, dims: [usize; 2]) -> Tensor<2> {
        Random::new(seed, name).normal_tensor(dims, 1.0, &device())
    }

    proptest! {
        #[test]
        fn the_criterion_is_the_change_by_a_step_of_gradient_descent(seed: u64, scale in 0.1..4.0f64) {
            let draw = |name, dims| normal(seed, name, dims);
            let (a, b, w) = (draw("a", [5, 2]), draw("b", [2, 4]), draw("w", [5, 4]));
            let (da, db) = (draw("da", [5, 2]), draw("db", [2, 4]));
            let pair = Pair { a: a.clone(), b: b.clone(), scale };
            let found = importance(&pair, [da.clone(), db.clone()], &Weight::Dense(w.clone()));
            let change = a.clone().matmul(b.clone()) - (a.clone() - da).matmul(b.clone() - db);
            assert_close(found, (change * (w + a.matmul(b) * scale)).abs(), SAME_FUNCTION, "importance");
        }

        #[test]
        fn a_matrix_counts_whatever_its_size(seed: u64, by in 0.01..100.0f64) {
            let at = |part| Site::encoder(0, part);
            let block = at(Part::FeedForward);
            let masks: SiteMap<_> = [(block, untrained(Tensor::ones([6, 1], &device().autodiff())))].into_iter().collect();
            let of = |by: f64| {
                let up = normal(seed, "up", [3, 6]).abs() * by;
                let numbers = [(at(Part::Up), up), (at(Part::Down), normal(seed, "down", [6, 3]).abs())];
                importances(numbers.into_iter(), &masks, true).remove(&block).unwrap()
            };
            assert_close(of(by), of(1.0), SAME_FUNCTION, "the importances of channels");
            let sums = |x: Tensor<2>, dim| x.sum_dim(dim).reshape([6, 1]);
            let unit = |x: Tensor<2>| x.clone() / x.powi_scalar(2).sum().sqrt().unsqueeze();
            let expected = unit(sums(normal(seed, "up", [3, 6]).abs(), 0)) + unit(sums(normal(seed, "down", [6, 3]).abs(), 1));
            assert_close(of(1.0), expected, SAME_FUNCTION, "the sums of channels");
        }
    }
}
