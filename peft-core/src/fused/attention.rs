//! Attention, which keeps two numbers for each row of queries instead of its scores, its probabilities and their mask.

use burn::backend::{Flex, TensorMetadata, ops::FloatTensorOps};
use burn::tensor::{Tensor, TensorData};

use super::{Numbers, Operation, apply, tensor};
use crate::kernels::Kernel;
use crate::kernels::attention::{Attention, Gradients, Heads, Sizes};
use crate::ops::{Drops, attention};

/// See [`context`](attention::Attention::context).
pub(crate) fn attention(a: attention::Attention, scaled: bool, drops: Option<Drops>) -> Tensor<4> {
    let ([batch, heads, rows, width], [_, key_heads, keys, _]) = (a.query.dims(), a.key.dims());
    let sizes = Sizes { batch, heads, key_heads, rows, keys, width };
    // Masks of other operations have booleans of one byte.
    let padding = a.mask.padding.as_ref().map(|padding| padding.clone().into_data().convert::<bool>());
    let bias = a.mask.bias_of(keys).map(Tensor::into_dispatch);
    let scale = if scaled { 1.0 / (width as f32).sqrt() } else { 1.0 };
    let attend = Attend { sizes, scale, padding, causal: a.mask.causal, drops };
    let inputs = [a.query, a.key, a.value].map(Tensor::into_dispatch);
    apply(inputs.into_iter().chain(bias).collect(), attend)
}

#[derive(Debug)]
struct Attend {
    sizes: Sizes,
    scale: f32,
    padding: Option<TensorData>,
    causal: Option<usize>,
    drops: Option<Drops>,
}

impl Attend {
    fn on<'a>(&'a self, inputs: &'a [Numbers]) -> Attention<'a> {
        Attention {
            sizes: self.sizes,
            query: heads(&inputs[0]),
            key: heads(&inputs[1]),
            value: heads(&inputs[2]),
            bias: inputs.get(3).map(|bias| bias.storage()),
            scale: self.scale,
            padding: self.padding.as_ref().map(|padding| padding.as_slice().expect("a mask")),
            causal: self.causal,
            drops: self.drops.as_ref(),
        }
    }
}

impl Operation for Attend {
    fn forward(&self, inputs: Vec<Numbers>, kept: Option<&mut Vec<Numbers>>) -> Numbers {
        let inputs: Vec<Numbers> = inputs
            .into_iter()
            .enumerate()
            .map(|(i, x)| if i < 3 { rows_together(x) } else { x.to_contiguous() })
            .collect();
        let Sizes { batch, heads, rows, width, .. } = self.sizes;
        let mut y = vec![0.0; batch * rows * heads * width];
        let mut softmax = vec![0.0; 2 * heads * batch * rows];
        self.on(&inputs).forward(Kernel::best(), &mut y, &mut softmax);
        if let Some(kept) = kept {
            kept.push(tensor(softmax, [heads, batch, rows, 2]));
            kept.extend(inputs);
        }
        as_heads(y, [batch, rows, heads, width])
    }

    fn backward(&self, mut kept: Vec<Numbers>, dy: Numbers, wanted: &[bool]) -> Vec<Numbers> {
        let (softmax, dy) = (kept.remove(0), rows_together(dy));
        let Sizes { batch, heads: all, key_heads, rows, keys, width } = self.sizes;
        let dims = [[batch, rows, all, width], [batch, keys, key_heads, width], [batch, keys, key_heads, width]];
        let zeros = |i: usize, count: usize| wanted.get(i).is_some_and(|wanted| *wanted).then(|| vec![0.0; count]);
        let [mut query, mut key, mut value] = [0, 1, 2].map(|i| zeros(i, dims[i].iter().product()));
        let mut bias = zeros(3, all * rows * keys);
        let gradients = Gradients {
            query: query.as_deref_mut(),
            key: key.as_deref_mut(),
            value: value.as_deref_mut(),
            bias: bias.as_deref_mut(),
        };
        self.on(&kept).backward(Kernel::best(), heads(&dy), softmax.storage(), gradients);
        let inputs = [query, key, value].into_iter().zip(dims);
        let inputs = inputs.filter_map(|(gradient, dims)| Some(as_heads(gradient?, dims)));
        inputs.chain(bias.map(|bias| tensor(bias, [1, all, rows, keys]))).collect()
    }
}

/// The tensor, copied if the numbers of its rows do not lie one after the other.
fn rows_together(x: Numbers) -> Numbers {
    let (shape, strides) = (x.shape(), x.layout().strides());
    let together = strides[3] == 1 || shape[3] == 1;
    if together && strides.iter().all(|stride| *stride >= 0) { x } else { x.to_contiguous() }
}

fn heads(x: &Numbers) -> Heads<'_> {
    let strides = x.layout().strides();
    let strides = [0, 1, 2].map(|i| strides[i].unsigned_abs());
    Heads { numbers: x.storage(), start: x.layout().start_offset(), strides }
}

/// `[batch, heads, rows, width]` of what lies as `[batch, rows, heads, width]`.
fn as_heads(numbers: Vec<f32>, dims: [usize; 4]) -> Numbers {
    Flex::float_swap_dims(tensor(numbers, dims), 1, 2)
}
