//! What methods share that train a part of the numbers: how the others are held.

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use peft_core::Replaced;
use peft_core::view::{Rewrite, Visit, view, visit};

/// Trains only those tensors whose names `moves` takes.
pub fn train_only(full: &Replaced, moves: impl Fn(&str) -> bool) -> Replaced {
    struct Freeze<F>(F);
    impl<F: Fn(&str) -> bool> Rewrite for Freeze<F> {
        fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
            if (self.0)(name) { tensor } else { tensor.set_require_grad(false) }
        }
    }
    view(full, &mut Freeze(moves))
}

/// The gradients with zeros where a mask has them. What has no mask is trained as a whole.
pub fn mask_gradients(full: &Replaced, masks: &Replaced, gradients: GradientsParams) -> GradientsParams {
    struct Mask<'a>(&'a Replaced, GradientsParams);
    impl Visit for Mask<'_> {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
            let Some(mask) = self.0.get::<D>(name) else { return };
            if let Some(gradient) = self.1.remove::<D>(id) {
                self.1.register(id, gradient.mask_fill(mask.without_autodiff().equal_elem(0.0), 0.0));
            }
        }
    }
    let mut mask = Mask(masks, gradients);
    visit(full, &mut mask);
    mask.1
}
