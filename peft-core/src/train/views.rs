//! What a method computes from its tensors once for a step: each piece of a batch is differentiated by leaves of its own in place of
//! the computed tensors, and what the pieces sum up to goes back through the computation once.

use std::collections::BTreeSet;

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

/// Gives the gradients of what a view was computed from. Those of the view's tensors that are `trained`'s own are taken out of the others;
/// those of computed tensors stay among them, for a method that asks after one by its id.
pub(super) fn back<V: Module, M: Module>(view: &V, trained: &M, gradients: &mut GradientsParams) -> Option<Gradients> {
    struct Ids(BTreeSet<ParamId>);
    impl Visit for Ids {
        fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, _: Tensor<D>) {
            self.0.insert(id);
        }
    }
    struct Products<'a>(&'a mut GradientsParams, BTreeSet<ParamId>, Option<Tensor<1>>);
    impl Visit for Products<'_> {
        fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, tensor: Tensor<D>) {
            let Some(gradient) = self.0.remove::<D>(id) else { return };
            if !self.1.contains(&id) {
                self.0.register(id, gradient.clone());
            }
            let product = (tensor * gradient).sum();
            self.2 = Some(self.2.take().map_or(product.clone(), |sum| sum + product));
        }
    }
    let mut own = Ids(BTreeSet::new());
    visit(trained, &mut own);
    let mut products = Products(gradients, own.0, None);
    visit(view, &mut products);
    products.2.map(|sum| sum.backward())
}
