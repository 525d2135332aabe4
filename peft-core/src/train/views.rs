//! What a method computes from its tensors once for a step: each piece of a batch is differentiated by leaves of its own in place of
//! the computed tensors, and what the pieces sum up to goes back through the computation once.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

use crate::view::{Visit, visit};

/// The module with a leaf in place of each tensor that is differentiated.
pub(super) fn with_leaves<M: Module>(module: &M) -> M {
    struct Leaves;
    impl ModuleMapper for Leaves {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, mapper) = param.consume();
            match value.is_tracked() {
                true => Param::from_mapped_value(id, Tensor::from_inner(value.inner()).require_grad(), mapper),
                false => Param::from_mapped_value(id, value, mapper),
            }
        }
    }
    module.clone().map(&mut Leaves)
}

/// Takes the gradients of a view's tensors out of others, and gives those of what it was computed from.
pub(super) fn back<M: Module>(view: &M, gradients: &mut GradientsParams) -> Option<Gradients> {
    struct Products<'a>(&'a mut GradientsParams, Option<Tensor<1>>);
    impl Visit for Products<'_> {
        fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, tensor: Tensor<D>) {
            let Some(gradient) = self.0.remove::<D>(id) else { return };
            let product = (tensor * gradient).sum();
            self.1 = Some(self.1.take().map_or(product.clone(), |sum| sum + product));
        }
    }
    let mut products = Products(gradients, None);
    visit(view, &mut products);
    products.1.map(|sum| sum.backward())
}
