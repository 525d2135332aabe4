//! Normalizations of rows, which keep the normalized rows and one number for each.

use burn::tensor::Tensor;

use super::{Numbers, Operation, apply, change, tensor};
use crate::kernels::{Kernel, rows};

/// See [`layer_norm`](crate::ops::layer_norm).
pub(crate) fn layer_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<D> {
    let inputs = vec![x.into_dispatch(), gain.into_dispatch(), bias.into_dispatch()];
    apply(inputs, Normalization { centered: true, eps: eps as f32 })
}

/// See [`rms_norm`](crate::ops::rms_norm).
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, eps: f64) -> Tensor<D> {
    apply(vec![x.into_dispatch(), gain.into_dispatch()], Normalization { centered: false, eps: eps as f32 })
}

#[derive(Debug)]
struct Normalization {
    /// Whether the mean is taken out.
    centered: bool,
    eps: f32,
}

impl Operation for Normalization {
    /// Of rows, a gain and, if there is one, a bias.
    fn forward(&self, inputs: Vec<Numbers>, kept: Option<&mut Vec<Numbers>>) -> Numbers {
        let mut inputs = inputs.into_iter();
        let x = inputs.next().expect("rows");
        let vectors: Vec<Numbers> = inputs.map(|vector| vector.to_contiguous()).collect();
        let (kernel, gain) = (Kernel::best(), vectors[0].storage());
        let mut scales = vec![0.0; x.layout().num_elements() / gain.len()];
        let x = change(x, |x| rows::normalize(kernel, x, gain.len(), self.eps, self.centered, &mut scales));
        if let Some(kept) = kept {
            let count = scales.len();
            kept.extend([x.clone(), tensor(scales, [count]), vectors[0].clone()]);
        }
        change(x, |x| rows::affine(kernel, x, gain, vectors.get(1).map(|bias| bias.storage())))
    }

    fn backward(&self, kept: Vec<Numbers>, dy: Numbers, wanted: &[bool]) -> Vec<Numbers> {
        let [x, scales, gain]: [Numbers; 3] = kept.try_into().expect("as forward keeps them");
        let (kernel, dy, gain) = (Kernel::best(), dy.to_contiguous(), gain.storage::<f32>());
        let summed = |x: Option<&[f32]>| {
            let mut sums = vec![0.0; gain.len()];
            rows::sum_rows(kernel, x, dy.storage(), &mut sums);
            tensor(sums, [gain.len()])
        };
        let of_gain = wanted[1].then(|| summed(Some(x.storage())));
        let of_bias = wanted.get(2).is_some_and(|wanted| *wanted).then(|| summed(None));
        let back = |dy: &mut [f32]| {
            rows::normalize_back(kernel, x.storage(), scales.storage(), gain, self.centered, dy);
        };
        let of_x = wanted[0].then(|| change(dy, back));
        [of_x, of_gain, of_bias].into_iter().flatten().collect()
    }
}
