//! Packed matrices, and products with them that decode a panel at a time.
//!
//! The product is an operation of our own: burn's would keep what it is given, the decoded matrix, until backward. This one keeps the
//! packed matrix and decodes again. The weight is frozen, so that backward is one more such product, dx = dy W^T.

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
#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "tch")]
use burn::backend::LibTorch;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};

/// About so many weights are decoded at a time: 4 MB.
const PANEL: usize = 1 << 20;

/// A packed matrix of a linear map. All that is known of it is how to decode the weights of some outputs; who knows its codec finds it by
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
}

/// The matrix, decoded, `[in, out]`.
pub(crate) fn dense(w: &dyn Packed) -> Tensor<2> {
    let [inputs, outputs] = w.dims();
    Tensor::<2>::from_data(TensorData::new(w.outputs(0..outputs), [outputs, inputs]), &w.device()).transpose()
}

/// `x W` for x `[batch, tokens, in]`.
pub(crate) fn product(x: Tensor<3>, w: &Arc<dyn Packed>) -> Tensor<3> {
    let [batch, tokens, inputs] = x.dims();
    let x = x.reshape([batch * tokens, inputs]).into_dispatch();
    let y = Tensor::<2>::from_dispatch(<Dispatch as PackedProduct>::packed_product(x, w.clone(), false));
    y.reshape([batch, tokens, w.dims()[1]])
}

/// The operation on each backend: operations of the backend's own, panel after panel.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu")),
    LibTorch: cfg(feature = "tch"),
    Autodiff
)]
pub(crate) trait PackedProduct: Backend {
    /// `x W` for x `[rows, in]`, or `x W^T` for x `[rows, out]`.
    fn packed_product(x: FloatTensor<Self>, w: Arc<dyn Packed>, transposed: bool) -> FloatTensor<Self> {
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
impl PackedProduct for Flex {}

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu"))]
impl PackedProduct for Cube {}

#[cfg(feature = "tch")]
impl PackedProduct for LibTorch {}

impl<B: PackedProduct, C: CheckpointStrategy> PackedProduct for Autodiff<B, C> {
    fn packed_product(x: FloatTensor<Self>, w: Arc<dyn Packed>, transposed: bool) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let y = B::packed_product(x, w.clone(), transposed);
        match Product.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((w, transposed), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// The step back through a product.
#[derive(Debug)]
struct Product;

impl<B: PackedProduct> Backward<B, 1> for Product {
    type State = (Arc<dyn Packed>, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (w, transposed) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::packed_product(dy, w, !transposed));
    }
}
