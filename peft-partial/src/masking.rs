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

#[cfg(test)]
mod tests {
    use peft_core::testing::{base, device, golden::named};
    use peft_core::view::{tensors, trainable};
    use peft_core::{Method, random::Random};

    use super::*;
    use crate::FullConfig;

    /// Random gradients of all tensors.
    fn gradients(full: &Replaced) -> GradientsParams {
        struct Fill(GradientsParams);
        impl Visit for Fill {
            fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, t: Tensor<D>) {
                self.0.register(id, Random::new(1, name).normal_tensor(t.dims(), 1.0, &t.device().inner()));
            }
        }
        let mut fill = Fill(GradientsParams::new());
        visit(full, &mut fill);
        fill.0
    }

    #[test]
    fn gradients_are_zero_where_the_mask_is() {
        struct Half;
        impl Rewrite for Half {
            fn tensor<const D: usize>(&mut self, _: &str, tensor: Tensor<D>) -> Tensor<D> {
                tensor.clamp_min(0.0)
            }
        }
        let base = base("roberta-tiny", &device());
        let full = FullConfig::default().init(&base, 0).unwrap();
        let masks = view(&full, &mut Half);
        let (before, after) =
            (named(&full, &gradients(&full)), named(&full, &mask_gradients(&full, &masks, gradients(&full))));
        for (name, mask) in tensors(&masks) {
            let [before, after] = [&before, &after].map(|all| all[&name].iter::<f32>().collect::<Vec<_>>());
            let masked = before.iter().zip(mask.iter::<f32>()).map(|(g, m)| if m == 0.0 { 0.0 } else { *g });
            assert_eq!(after, masked.collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn only_what_moves_is_trained() {
        let base = base("roberta-tiny", &device());
        let full = FullConfig::default().init(&base, 0).unwrap();
        let biases: usize =
            tensors(&full).iter().filter(|(name, _)| name.starts_with("biases.")).map(|(_, t)| t.num_elements()).sum();
        assert_eq!(trainable(&train_only(&full, |name| name.starts_with("biases."))), biases);
    }
}
