//! Packed matrices, and products with them that decode a panel at a time.
//!
//! The product is an operation of our own: burn's would keep what it is given, the decoded matrix, until backward. This one keeps the
//! packed matrix and decodes again. The weight is frozen, so that backward is one more such product, dx = dy W^T. On flex it is one of
//! our own kernels, which decode into the cache.

#![cfg_attr(
    not(any(feature = "flex", feature = "wgpu", feature = "cuda", feature = "cpu", feature = "tch")),
    expect(unused_variables, reason = "without a backend there is nothing to hand them to")
)]

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu"))]
use burn::backend::Cube;
#[cfg(feature = "tch")]
use burn::backend::LibTorch;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
#[cfg(feature = "flex")]
use burn::backend::{Flex, ops::FloatTensorOps};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::Compute;
use crate::codes::Codes;
#[cfg(feature = "flex")]
use crate::kernels::{self, Kernel};
use crate::transfer::{read, send};

/// About so many weights are decoded at a time: 4 MB.
const PANEL: usize = 1 << 20;

/// A packed matrix of a linear map, or a table, whose rows are its outputs. All that is known of it is how to decode the weights of some outputs; who knows its codec finds it by
/// its type.
pub trait Packed: Any + Debug + Send + Sync {
    /// `[in, out]`.
    fn dims(&self) -> [usize; 2];

    /// The name of its codec.
    fn kind(&self) -> String;

    /// The plain device of its base.
    fn device(&self) -> Device;

    /// The weights of some outputs, `[outputs, in]`, the inputs of an output one after the other.
    fn outputs(&self, outputs: Range<usize>) -> Vec<f32>;

    /// The weights that some outputs have for some inputs, output by output. Called for many small tiles from several threads: it is to
    /// decode no more than is asked for, on the thread that asks.
    fn tile(&self, outputs: Range<usize>, inputs: Range<usize>, out: &mut [f32]);

    /// The weights of some outputs as codes, with scale and minimum of each of their blocks, output by output: products of few rows
    /// decode these in registers. None, if they do not lie so; a product then takes tiles.
    fn codes(&self, _outputs: Range<usize>, _scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        None
    }
}

/// The matrix, decoded, `[out, in]`.
pub(crate) fn dense(w: &dyn Packed) -> Tensor<2> {
    let [inputs, outputs] = w.dims();
    Tensor::from_data(TensorData::new(w.outputs(0..outputs), [outputs, inputs]), &w.device())
}

/// The weights of some outputs, `[batch, tokens, in]`, for their numbers `[batch, tokens]`.
pub(crate) fn rows(w: &dyn Packed, outputs: Tensor<2, Int>) -> Tensor<3> {
    let ([batch, tokens], [inputs, _]) = (outputs.dims(), w.dims());
    let mut rows = vec![0.; batch * tokens * inputs];
    for (row, output) in rows.chunks_mut(inputs).zip(read(outputs).iter::<i64>()) {
        w.tile(output as usize..output as usize + 1, 0..inputs, row);
    }
    send(TensorData::new(rows, [batch, tokens, inputs]), &w.device())
}

/// `x W` for x `[batch, tokens, in]`.
pub(crate) fn product(x: Tensor<3>, w: &Arc<dyn Packed>, compute: Compute) -> Tensor<3> {
    let [batch, tokens, inputs] = x.dims();
    let x = x.reshape([batch * tokens, inputs]).into_dispatch();
    let y = Tensor::<2>::from_dispatch(<Dispatch as PackedProduct>::packed_product(x, w.clone(), compute, false));
    y.reshape([batch, tokens, w.dims()[1]])
}

/// The operation on each backend: operations of the backend's own, panel after panel, where it has no kernel.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu")),
    LibTorch: cfg(feature = "tch"),
    Autodiff
)]
pub(crate) trait PackedProduct: Backend {
    /// `x W` for x `[rows, in]`, or `x W^T` for x `[rows, out]`.
    fn packed_product(
        x: FloatTensor<Self>,
        w: Arc<dyn Packed>,
        _compute: Compute,
        transposed: bool,
    ) -> FloatTensor<Self> {
        let ([inputs, outputs], rows, device) = (w.dims(), x.shape()[0], x.device());
        let width = (PANEL / inputs).clamp(1, outputs);
        let products = (0..outputs).step_by(width).map(|first| {
            let of = first..(first + width).min(outputs);
            let panel = TensorData::new(w.outputs(of.clone()), [of.len(), inputs]);
            let panel = Self::float_from_data(panel, &device);
            match transposed {
                false => Self::float_matmul(x.clone(), Self::float_transpose(panel)),
                true => Self::float_matmul(Self::float_slice(x.clone(), &[(0..rows).into(), of.into()]), panel),
            }
        });
        match transposed {
            false => Self::float_cat(products.collect(), 1),
            true => products.reduce(Self::float_add).expect("a matrix has outputs"),
        }
    }
}

#[cfg(feature = "flex")]
impl PackedProduct for Flex {
    fn packed_product(
        x: FloatTensor<Self>,
        w: Arc<dyn Packed>,
        compute: Compute,
        transposed: bool,
    ) -> FloatTensor<Self> {
        let ([inputs, outputs], rows, device) = (w.dims(), x.shape()[0], x.device());
        let width = if transposed { inputs } else { outputs };
        let (x, mut y) = (x.to_contiguous(), vec![0.; rows * width]);
        // Codes lie output by output.
        kernels::product(Kernel::best(), compute, x.storage(), &Outputs(&*w), !transposed, &mut y);
        Self::float_from_data(TensorData::new(y, [rows, width]), &device)
    }
}

/// A packed matrix as it lies, `[out, in]`.
#[cfg(feature = "flex")]
struct Outputs<'a>(&'a dyn Packed);

#[cfg(feature = "flex")]
impl kernels::Tiles for Outputs<'_> {
    fn dims(&self) -> [usize; 2] {
        let [inputs, outputs] = self.0.dims();
        [outputs, inputs]
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        self.0.tile(rows, columns, out);
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        self.0.codes(rows, scales)
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu"))]
impl PackedProduct for Cube {}

#[cfg(feature = "tch")]
impl PackedProduct for LibTorch {}

impl<B: PackedProduct, C: CheckpointStrategy> PackedProduct for Autodiff<B, C> {
    fn packed_product(
        x: FloatTensor<Self>,
        w: Arc<dyn Packed>,
        compute: Compute,
        transposed: bool,
    ) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let y = B::packed_product(x, w.clone(), compute, transposed);
        match Product.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((w, compute, transposed), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// The step back through a product.
#[derive(Debug)]
struct Product;

impl<B: PackedProduct> Backward<B, 1> for Product {
    type State = (Arc<dyn Packed>, Compute, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (w, compute, transposed) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::packed_product(dy, w, compute, !transposed));
    }
}
