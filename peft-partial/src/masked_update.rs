//! Some numbers of a base, trained in its place: what the methods share that mask an update.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use peft_core::random::Noise;
use peft_core::train::Probe;
use peft_core::transfer::read;
use peft_core::view::{tensors, with_values};
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Hooks, Key, Merge, Place, Procedure, Replaced, Result, Shape, Site, Slot,
    Weight, slot_name,
};

/// Which numbers of each tensor are trained, by the names of full fine-tuning.
pub type Moving = BTreeMap<String, Vec<bool>>;

/// What chooses the numbers before the first step.
pub trait Choice: Debug + Send + Sync {
    /// Those that the training data ask for: as many as at the start, of the same tensors.
    fn choose(&self, base: &Base, data: Probe<'_>) -> Result<Moving>;
}

/// The numbers that are trained. All others are the frozen base's: no weight decay, momentum or gradient can move them, and an optimizer
/// has states of these alone.
#[derive(Module, Debug)]
pub struct MaskedUpdate {
    /// The numbers, `[k]`: tensor after tensor in the order of the forward, each in the order of its memory.
    values: Param<Tensor<1>>,
    /// The place of each in its tensor, `[k]`: row after row of a matrix `[in, out]`.
    indices: Param<Tensor<1, Int>>,
    /// How many are of each tensor.
    counts: Param<Tensor<1, Int>>,
    /// What full fine-tuning calls the tensors.
    #[module(skip)]
    names: Vec<String>,
    /// None, once the numbers are chosen.
    #[module(skip)]
    choice: Option<Arc<dyn Choice>>,
}

/// The whole part of a share of these tensors' numbers.
pub fn share(key: &str, share: f64, places: &[Place]) -> Result<usize> {
    let whole: usize = places.iter().map(Place::count).sum();
    let count = (share * whole as f64).floor() as usize;
    if count == 0 || share > 1.0 {
        let allowed = format!("above 0 and at most 1, and at least one of {whole} numbers");
        return Err(Error::config(key, share, allowed));
    }
    Ok(count)
}

/// `k` of the numbers of these tensors, evenly spread: a start, until the training data say which of them matter.
pub fn spread(places: &[Place], k: usize) -> Moving {
    let (whole, mut passed) = (places.iter().map(Place::count).sum::<usize>(), 0);
    let mut next = || {
        passed += k;
        let moves = passed >= whole;
        passed -= if moves { whole } else { 0 };
        moves
    };
    places.iter().map(|place| (named(place), (0..place.count()).map(|_| next()).collect())).collect()
}

fn named(place: &Place) -> String {
    slot_name(place.site, place.slot)
}

fn numbers(base: &Base, place: &Place) -> Vec<f32> {
    let data = match place.slot {
        Slot::Weight => base.weight(place.site).dense().into_data(),
        slot => base.vector(place.site, slot).into_data(),
    };
    data.iter::<f32>().collect()
}

impl MaskedUpdate {
    /// Of those numbers of a base that `moving` marks, with the values that they have there, until others are chosen.
    pub fn new(base: &Base, moving: &Moving, choice: Option<Arc<dyn Choice>>) -> Self {
        let (mut names, mut values, mut indices, mut counts) = (vec![], vec![], vec![], vec![]);
        for place in base.shape().places() {
            let Some(moving) = moving.get(&named(&place)) else { continue };
            let before = indices.len();
            for (i, value) in numbers(base, &place).into_iter().enumerate().filter(|(i, _)| moving[*i]) {
                indices.push(i as i32);
                values.push(value);
            }
            counts.push((indices.len() - before) as i32);
            names.push(named(&place));
        }
        let whole = |numbers: Vec<i32>| {
            Param::initialized(ParamId::new(), Tensor::<1, Int>::from_data(&numbers[..], base.device()))
        };
        let values = Param::from_tensor(Tensor::from_data(&values[..], &base.device().clone().autodiff()));
        MaskedUpdate { values, indices: whole(indices), counts: whole(counts), names, choice }
    }

    /// What files call the tensor that records call so.
    pub fn key(name: &str) -> Key {
        Key::plain(format!("base_model.model.{name}"))
    }

    /// One that was read from a file. What no mask has is an error: a count that is not that of the indices, an index past the end of its
    /// tensor, one that does not come after the one before.
    pub fn checked(self, shape: &Shape) -> Result<Self> {
        let [counts, indices] = [&self.counts, &self.indices].map(whole);
        let wrong = |key: &str, found: String, expected: String| Err(Error::config(key, found, expected));
        let (mut rest, places) = (&indices[..], shape.places());
        let masked = self.names.iter().filter_map(|name| places.iter().find(|place| named(place) == *name));
        for (place, count) in masked.zip(&counts) {
            let Some((own, more)) = usize::try_from(*count).ok().and_then(|count| rest.split_at_checked(count)) else {
                return wrong("counts", format!("{count} of {}", place.name), format!("0 to {}", rest.len()));
            };
            let mut least = 0;
            for index in own {
                if !(least..place.count() as i64).contains(index) {
                    let expected = format!("{least} to {} of {}, in rising order", place.count() - 1, place.name);
                    return wrong("indices", index.to_string(), expected);
                }
                least = index + 1;
            }
            rest = more;
        }
        if !rest.is_empty() {
            let counted = indices.len() - rest.len();
            return wrong("counts", format!("{counted} in all"), format!("{}, as there are indices", indices.len()));
        }
        Ok(MaskedUpdate { choice: None, ..self })
    }

    /// Which of the numbers are of each tensor that has some.
    fn ranges(&self) -> Vec<(&str, Range<usize>)> {
        let (mut ranges, mut start) = (vec![], 0);
        for (name, count) in self.names.iter().zip(whole(&self.counts)) {
            let range = start..start + count as usize;
            start = range.end;
            ranges.push((name.as_str(), range));
        }
        ranges.into_iter().filter(|(_, range)| !range.is_empty()).collect()
    }

    /// Those of one tensor: their places, and the numbers.
    fn part(&self, name: &str) -> Option<Part> {
        let range = self.ranges().into_iter().find(|(own, _)| *own == name)?.1;
        Some(Part { indices: self.indices_in(&range), values: self.values.val().slice([range]) })
    }

    /// What puts the numbers into a base.
    pub(crate) fn hooks(&self) -> impl Hooks + use<> {
        let ranges = self.ranges();
        let lengths: Vec<usize> = ranges.iter().map(|(_, range)| range.len()).collect();
        let values = cut(self.values.val(), &lengths);
        let part = |((name, range), values): (&(&str, Range<usize>), _)| {
            (name.to_string(), Part { indices: self.indices_in(range), values })
        };
        Opened(ranges.iter().zip(values).map(part).collect())
    }

    fn indices_in(&self, range: &Range<usize>) -> Tensor<1, Int> {
        self.indices.val().without_autodiff().slice([range.clone()])
    }
}

fn whole(indices: &Param<Tensor<1, Int>>) -> Vec<i64> {
    read(indices.val()).iter::<i64>().collect()
}

/// The trained numbers of one tensor.
struct Part {
    indices: Tensor<1, Int>,
    values: Tensor<1>,
}

impl Part {
    /// A tensor with them in it.
    fn put<const D: usize>(&self, tensor: Tensor<D>) -> Tensor<D> {
        let (dims, flat) = (tensor.dims(), tensor.reshape([-1]));
        let add = |to: Tensor<1>, values| to.scatter(0, self.indices.clone(), values, IndexingUpdateOp::Add);
        // What was there is taken out first: a number that is added to 0 keeps its bits.
        let without = add(flat.clone(), flat.select(0, self.indices.clone()).neg());
        add(without, self.values.clone()).reshape(dims)
    }
}

/// Cuts a vector into pieces of these lengths, by halves: what comes back through a slice is as long as what it was cut from.
fn cut(vector: Tensor<1>, lengths: &[usize]) -> Vec<Tensor<1>> {
    if lengths.len() < 2 {
        return vec![vector];
    }
    let (first, second) = lengths.split_at(lengths.len() / 2);
    let (middle, end): (usize, usize) = (first.iter().sum(), lengths.iter().sum());
    [cut(vector.clone().narrow(0, 0, middle), first), cut(vector.narrow(0, middle, end - middle), second)].concat()
}

/// The parts of all tensors, for one run.
struct Opened(BTreeMap<String, Part>);

impl Hooks for Opened {
    fn weight(&self, site: Site, w: Weight) -> Weight {
        match self.0.get(&slot_name(site, Slot::Weight)) {
            Some(part) => Weight::Dense(part.put(w.dense())),
            None => w,
        }
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        match self.0.get(&slot_name(site, slot)) {
            Some(part) => part.put(v),
            None => v,
        }
    }
}

impl Adapter for MaskedUpdate {
    fn open<R>(&self, _batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&self.hooks())
    }

    fn view(&self, base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Ok(Some(AnyTuner::new(Replaced::by(&self.hooks(), base))))
    }
}

impl Merge for MaskedUpdate {
    fn weight(&self, site: Site, w: &Weight) -> Option<Tensor<2>> {
        Some(self.part(&slot_name(site, Slot::Weight))?.put(w.dense()))
    }

    fn vector(&self, site: Site, slot: Slot, v: &Tensor<1>) -> Option<Tensor<1>> {
        Some(self.part(&slot_name(site, slot))?.put(v.clone()))
    }
}

impl Procedure for MaskedUpdate {
    fn prepare(mut self, base: &Base, data: Probe<'_>) -> Result<Self> {
        let Some(choice) = self.choice.take() else { return Ok(self) };
        with_values(self, &tensors(&MaskedUpdate::new(base, &choice.choose(base, data)?, None)))
    }
}
