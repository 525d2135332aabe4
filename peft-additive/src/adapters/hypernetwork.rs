//! Networks that make adapters of embeddings.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, activation};
use peft_core::random::Random;
use peft_core::{Affine, Norm};

use super::bottleneck::{Activation, Bottleneck};

/// The standard deviation that linear maps start with.
const START: f64 = 1e-2;
/// Epsilon of the normalization of what adapters are generated from.
const EPS: f64 = 1e-6;
/// Epsilon of the normalization behind an adapter.
const POST_EPS: f64 = 1e-5;

/// What makes the adapters of a stack.
#[derive(Module, Debug)]
pub struct Hypernetwork {
    /// Embeddings of the layers, `[layers, e]`.
    pub(super) layers: Param<Tensor<2>>,
    /// Embeddings of the kinds of sub-layers, `[2, e]`.
    kinds: Param<Tensor<2>>,
    /// `[3 e, h]`.
    inner: Affine,
    /// `[h, p]`.
    outer: Affine,
    /// `[p]`.
    norm: Norm,
    /// `[p, m d]` and `[p, m]`.
    down: Generator,
    /// `[p, d m]` and `[p, d]`.
    up: Generator,
    /// `[p, d]` both.
    post: Generator,
}

/// What makes a matrix (or a gain) and its bias.
#[derive(Module, Debug)]
pub struct Generator {
    weight: Affine,
    bias: Affine,
}

/// An adapter as it is generated.
#[derive(Module, Debug)]
pub struct Generated {
    bottleneck: Bottleneck,
    /// Behind the maps, `[d]` both.
    norm: Norm,
}

impl Hypernetwork {
    /// For so many layers and kinds of sub-layers, of adapters between `d` and `m`, from embeddings of `e` numbers, which become `p`
    /// through `h`.
    pub(super) fn init(
        [layers, kinds]: [usize; 2],
        [d, m]: [usize; 2],
        [e, h, p]: [usize; 3],
        seed: u64,
        name: &str,
        device: &Device,
    ) -> Self {
        let random = |leaf: &str| Random::new(seed, &format!("hyperformer.{name}.{leaf}"));
        let table = |leaf, rows| Param::from_tensor(random(leaf).normal_tensor([rows, e], 1.0, device));
        let affine = |leaf: &str, dims| Affine::init(dims, START, random(leaf), device);
        let generator = |leaf, weight, bias| Generator {
            weight: affine(&format!("{leaf}.weight"), [p, weight]),
            bias: affine(&format!("{leaf}.bias"), [p, bias]),
        };
        let vector = |value: f64| Param::from_tensor(Tensor::full([p], value, device));
        Hypernetwork {
            layers: table("layers", layers),
            kinds: table("kinds", kinds),
            inner: affine("inner", [3 * e, h]),
            outer: affine("outer", [h, p]),
            norm: Norm { gain: vector(1.0), bias: vector(0.0) },
            down: generator("down", m * d, m),
            up: generator("up", d * m, d),
            post: generator("post", d, d),
        }
    }

    /// The adapter in a layer for a task's embedding `[1, e]`.
    pub(super) fn generate(&self, task: Tensor<2>, layer: usize, kind: usize) -> Generated {
        let row = |table: &Param<Tensor<2>>, i| table.val().narrow(0, i, 1);
        let embedding = Tensor::cat(vec![task, row(&self.layers, layer), row(&self.kinds, kind)], 1);
        let inner = activation::relu(self.inner.forward(embedding));
        let input = self.norm.forward(self.outer.forward(inner), EPS);
        let vector = |from: &Affine| from.forward(input.clone()).squeeze_dim::<1>(0);
        // Generated row by row of the transposed matrix, as the reference's linear maps hold it.
        let affine = |from: &Generator| {
            let bias = vector(&from.bias);
            let (values, columns) = (vector(&from.weight), bias.dims()[0]);
            let rows = values.dims()[0] / columns;
            Affine { weight: computed(values.reshape([columns, rows]).transpose()), bias: computed(bias) }
        };
        Generated {
            bottleneck: Bottleneck { norm: None, down: affine(&self.down), up: affine(&self.up) },
            norm: Norm { gain: computed(vector(&self.post.weight)), bias: computed(vector(&self.post.bias)) },
        }
    }
}

/// Not a leaf: gradients flow into what it was computed from.
fn computed<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), tensor)
}

impl Generated {
    /// LN(act(u Wd + bd) Wu + bu).
    pub(super) fn forward(&self, u: Tensor<3>, act: Activation) -> Tensor<3> {
        self.norm.forward(self.bottleneck.forward(u, act), POST_EPS)
    }
}
