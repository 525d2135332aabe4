//! Products with dense frozen matrices on flex, where they are not the tensor library's own: in bf16, those that are cut for more threads
//! than the library has (its product has the same bits at any number of them), and those in training, whose backward is ours. The weight is
//! frozen, so that backward is one more such product, dx = dy W^T.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, ops::FloatTensorOps};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::kernels::{self, Dense, Kernel};
use crate::{Compute, threads};

/// `x W` for a frozen W `[in, out]`, if it is for this operation. One that is trained is not: it has a gradient too.
pub(crate) fn product(compute: Compute, x: &Tensor<3>, w: &Tensor<2>) -> Option<Tensor<3>> {
    let ours = w.device() == Device::flex() && !w.is_autodiff() && [x.dtype(), w.dtype()] == [DType::F32; 2];
    if !ours || compute == Compute::F32 && !threads::are_spread() && !x.is_autodiff() {
        return None;
    }
    let [batch, tokens, inputs] = x.dims();
    let (x, outputs) = (x.clone().reshape([batch * tokens, inputs]).into_dispatch(), w.dims()[1]);
    let y = <Dispatch as DenseProduct>::dense_product(x, w.clone().into_dispatch(), compute, false);
    Some(Tensor::<2>::from_dispatch(y).reshape([batch, tokens, outputs]))
}

#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
trait DenseProduct: Backend {
    /// `x W` for x `[rows, in]`, or `x W^T` for x `[rows, out]`.
    fn dense_product(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: Compute,
        transposed: bool,
    ) -> FloatTensor<Self>;
}

impl DenseProduct for Flex {
    fn dense_product(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: Compute,
        transposed: bool,
    ) -> FloatTensor<Self> {
        let (rows, device, [inputs, outputs]) = (x.shape()[0], x.device(), w.shape().dims());
        if compute == Compute::F32 && transposed && rows >= kernels::FEWEST && w.is_contiguous() {
            let (x, w, mut y) = (x.to_contiguous(), w.to_contiguous(), vec![0.; rows * inputs]);
            let w = Dense { numbers: w.storage(), columns: outputs };
            kernels::product_turned(Kernel::best(), x.storage(), &w, &mut y);
            return Self::float_from_data(TensorData::new(y, [rows, inputs]), &device);
        }
        if compute == Compute::F32 {
            let w = if transposed { Self::float_transpose(w) } else { w };
            return threads::on_all(|| Self::float_matmul(x, w));
        }
        let (x, w, width) = (x.to_contiguous(), w.to_contiguous(), if transposed { inputs } else { outputs });
        let mut y = vec![0.; rows * width];
        let w = Dense { numbers: w.storage(), columns: outputs };
        kernels::product(Kernel::best(), compute, x.storage(), &w, transposed, &mut y);
        Self::float_from_data(TensorData::new(y, [rows, width]), &device)
    }
}

impl<B: DenseProduct, C: CheckpointStrategy> DenseProduct for Autodiff<B, C> {
    fn dense_product(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: Compute,
        transposed: bool,
    ) -> FloatTensor<Self> {
        let ((x, node), (w, _)) = (x.into_parts(), w.into_parts());
        let y = B::dense_product(x, w.clone(), compute, transposed);
        match Product.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((w, compute, transposed), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// The step back through a product.
#[derive(Debug)]
struct Product;

impl<B: DenseProduct> Backward<B, 1> for Product {
    type State = (FloatTensor<B>, Compute, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (w, compute, transposed) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::dense_product(dy, w, compute, !transposed));
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use std::sync::Arc;

    use rayon::ThreadPoolBuilder;

    use super::*;
    use crate::random::Random;

    #[test]
    fn the_librarys_product_has_the_same_bits_on_all_threads() {
        let mut random = Random::new(7, "frozen");
        // More than the library multiplies on one thread.
        let [rows, inputs, outputs] = [270, 300, 310];
        let mut draw = |count: usize| (0..count).map(|_| random.normal() as f32).collect::<Vec<_>>();
        let x = TensorData::new(draw(rows * inputs), [1, rows, inputs]);
        let w = TensorData::new(draw(inputs * outputs), [inputs, outputs]);
        let (x, w) = (Tensor::<3>::from_data(x, &Device::flex()), Tensor::<2>::from_data(w, &Device::flex()));
        assert!(product(Compute::F32, &x, &w).is_none());
        let tracked = Tensor::from_inner(x.clone()).require_grad();
        let on = |threads| {
            let pool = Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
            threads::spread(Some(pool), || {
                let y = product(Compute::F32, &tracked, &w).unwrap();
                let gradient = tracked.grad(&(y.clone() * y.clone()).sum().backward()).unwrap();
                (y.inner().into_data(), gradient.into_data())
            })
        };
        let one = on(1);
        assert_eq!(one.0, crate::ops::linear(x, w.clone(), None).into_data());
        assert!([2, 3, 5].iter().all(|threads| on(*threads) == one));
    }
}
