//! Masks over the matrices of an adapter.

use std::collections::BTreeMap;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use peft_core::transfer::{read, send};
use peft_core::view::{Visit, shapes, trained, visit};
use peft_core::{AnyMethod, AnyTuner, Error, ModuleMap, Procedure, Result, Tuner};

/// Matrices by name.
pub(crate) type Matrices = ModuleMap<String, Param<Tensor<2>>>;

/// A matrix as it is, a vector as a row.
pub(crate) fn matrix<const D: usize>(tensor: Tensor<D>) -> Tensor<2> {
    let columns = tensor.dims()[D - 1];
    let rows = tensor.shape().num_elements() / columns;
    tensor.reshape([rows, columns])
}

/// The error of a method that a procedure cannot be over.
pub(crate) fn refused(procedure: &str, inner: &AnyMethod, found: impl std::fmt::Display, expected: &str) -> Error {
    Error::config(format!("{procedure} over {}", inner.name()), found, expected)
}

/// Refuses a method that is no adapter, or has not the same matrices all the time, or none that are trained and saved.
pub(crate) fn check_fits(procedure: &str, inner: &AnyMethod, tuner: &AnyTuner) -> Result<()> {
    let refused = |found: &str, expected| Err(refused(procedure, inner, found, expected));
    if tuner.as_adapter().is_none() {
        return refused("a network beside the model", "adapters");
    }
    // How many there are does not depend on the steps.
    if tuner.phases(100).len() > 1 {
        return refused("training in phases", "a method with the same matrices in each step");
    }
    let matrices = matrices(tuner);
    if matrices.is_empty() {
        return refused("no matrix that is trained", "a method with matrices");
    }
    match matrices.keys().find(|name| inner.is_mask(name)) {
        None => Ok(()),
        Some(name) => refused(&format!("{name}, of which files hold a mask"), "matrices that files hold as they are"),
    }
}

/// The tensors of a module by name, tracked where they are.
pub(crate) fn tensors<M: Module>(module: &M) -> BTreeMap<String, Tensor<2>> {
    struct Collect(BTreeMap<String, Tensor<2>>);
    impl Visit for Collect {
        fn tensor<const D: usize>(&mut self, name: &str, _: ParamId, tensor: Tensor<D>) {
            self.0.insert(name.to_string(), matrix(tensor));
        }
    }
    let mut collect = Collect(BTreeMap::new());
    visit(module, &mut collect);
    collect.0
}

/// Those of them that are matrices, trained or not.
pub(crate) fn all_matrices<M: Module>(module: &M) -> BTreeMap<String, Tensor<2>> {
    let ranks: BTreeMap<String, Vec<usize>> = shapes(module).into_iter().collect();
    tensors(module).into_iter().filter(|(name, _)| ranks[name].len() == 2).collect()
}

/// The matrices that are trained.
pub(crate) fn matrices<M: Module>(module: &M) -> BTreeMap<String, Tensor<2>> {
    let trained = trained(module);
    tensors(module).into_iter().filter(|(name, _)| trained.get(name).is_some_and(|dims| dims.len() == 2)).collect()
}

/// The numbers of these.
pub(crate) fn weights<M: Module>(module: &M) -> BTreeMap<String, Vec<f32>> {
    let numbers = |(name, tensor): (String, Tensor<2>)| (name, read(tensor).iter::<f32>().collect());
    matrices(module).into_iter().map(numbers).collect()
}

/// A plain mask of zeros and ones.
pub(crate) fn mask(kept: &[bool], like: &Tensor<2>) -> Tensor<2> {
    let values: Vec<f32> = kept.iter().map(|kept| f32::from(*kept)).collect();
    send(TensorData::new(values, like.dims()), &like.device())
}

/// The mask of the `k` numbers of the largest size; of equal ones those that come first.
pub(crate) fn mask_of_largest(matrix: &Tensor<2>, k: usize) -> Tensor<2> {
    let (dims, n) = (matrix.dims(), matrix.shape().num_elements());
    let sizes = matrix.clone().without_autodiff().abs().reshape([n]);
    if k == 0 {
        return sizes.zeros_like().reshape(dims);
    }
    // On the device, which each step would wait for otherwise.
    let least = sizes.clone().sort_descending(0).narrow(0, k - 1, 1).expand([n]);
    let above = sizes.clone().greater(least.clone()).int();
    let equal = sizes.equal(least).int();
    let left = -above.clone().sum() + k as i64;
    let first = equal.clone().cumsum(0).lower_equal(left.expand([n])).int() * equal;
    (above + first).float().reshape(dims)
}

#[cfg(test)]
mod tests {
    use peft_core::testing::device;
    use peft_core::train::largest;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// With few sizes, so that many are equal.
        #[test]
        fn the_mask_is_that_of_the_largest_in_order(
            (values, k) in prop::collection::vec(-3i8..=3, 1..40).prop_flat_map(|values| {
                let most = values.len();
                (Just(values), 0..=most)
            }),
        ) {
            let numbers: Vec<f32> = values.iter().map(|value| f32::from(*value)).collect();
            let matrix = Tensor::<2>::from_data(TensorData::new(numbers.clone(), [1, numbers.len()]), &device());
            let sizes = numbers.iter().map(|x| x.abs()).collect();
            let kept = largest(&BTreeMap::from([(String::new(), sizes)]), k);
            prop_assert_eq!(mask_of_largest(&matrix, k).into_data(), mask(&kept[""], &matrix).into_data());
        }
    }
}
