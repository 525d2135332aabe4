//! Masks over the matrices of an adapter.

use std::collections::BTreeMap;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use peft_core::ModuleMap;
use peft_core::train::largest;
use peft_core::view::{Visit, shapes, visit};

/// Matrices by name.
pub(crate) type Matrices = ModuleMap<String, Param<Tensor<2>>>;

/// A matrix as it is, a vector as a row.
pub(crate) fn matrix<const D: usize>(tensor: Tensor<D>) -> Tensor<2> {
    let columns = tensor.dims()[D - 1];
    let rows = tensor.shape().num_elements() / columns;
    tensor.reshape([rows, columns])
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

/// Those of them that are matrices.
pub(crate) fn matrices<M: Module>(module: &M) -> BTreeMap<String, Tensor<2>> {
    let ranks: BTreeMap<String, Vec<usize>> = shapes(module).into_iter().collect();
    tensors(module).into_iter().filter(|(name, _)| ranks[name].len() == 2).collect()
}

/// A plain mask of zeros and ones.
pub(crate) fn mask(kept: &[bool], like: &Tensor<2>) -> Tensor<2> {
    let values: Vec<f32> = kept.iter().map(|kept| f32::from(*kept)).collect();
    Tensor::from_data(TensorData::new(values, like.dims()), &like.device().inner())
}

/// The mask of the `k` numbers of the largest size; of equal ones those that come first.
pub(crate) fn mask_of_largest(matrix: &Tensor<2>, k: usize) -> Tensor<2> {
    let sizes = matrix.clone().without_autodiff().into_data().iter::<f32>().map(f32::abs).collect();
    let kept = largest(&BTreeMap::from([(String::new(), sizes)]), k);
    mask(&kept[""], matrix)
}
