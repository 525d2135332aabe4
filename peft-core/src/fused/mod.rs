//! Operations of several steps as one on flex, with a backward of their own: no step between is stored, and a pass over memory does what
//! several would. Each is a file that knows slices of numbers; what burn must know of them is here, once.
//!
//! The operations of other backends, and the oracle of the tests, are those that burn composes: whoever calls one of these has both
//! ([`is_for`]). `PEFT_FUSED=off` in the environment turns all of them off.

mod attention;
mod dropout;
mod gelu;
mod norm;
mod rotary;
mod silu;
#[cfg(all(test, feature = "testing"))]
mod tests;

use std::cell::Cell;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension, ops::FloatTensorOps};
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};

pub(crate) use attention::attention;
pub(crate) use dropout::dropout;
pub(crate) use gelu::gelu;
pub(crate) use norm::{layer_norm, rms_norm};
pub(crate) use rotary::turned;
pub(crate) use silu::gated;

/// A tensor of flex.
type Numbers = FloatTensor<Flex>;

/// An operation on tensors of flex.
trait Operation: Debug + Send + Sync + 'static {
    /// The result. What backward needs is put into `kept`, if it comes.
    fn forward(&self, inputs: Vec<Numbers>, kept: Option<&mut Vec<Numbers>>) -> Numbers;

    /// The gradients of the inputs that are wanted, in their order, from that of the result.
    fn backward(&self, kept: Vec<Numbers>, dy: Numbers, wanted: &[bool]) -> Vec<Numbers>;
}

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Does some work, as far as it is on this thread, by operations that burn composes.
#[cfg(feature = "testing")]
pub fn composed<T>(work: impl FnOnce() -> T) -> T {
    let before = COMPOSED.replace(true);
    let result = work();
    COMPOSED.set(before);
    result
}

/// Whether a tensor's operations are those of this module.
pub(crate) fn is_for<const D: usize>(x: &Tensor<D>) -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os("PEFT_FUSED").is_none_or(|value| value != "off"))
        && !COMPOSED.get()
        && x.dtype() == DType::F32
        && x.device().without_autodiff() == Device::flex()
        && x.shape().num_elements() > 0
}

/// The result of an operation of one to four tensors of any ranks.
fn apply<const D: usize>(inputs: Vec<FloatTensor<Dispatch>>, operation: impl Operation) -> Tensor<D> {
    let (mut inputs, operation) = (inputs.into_iter(), Arc::new(operation));
    Tensor::from_dispatch(match (inputs.next(), inputs.next(), inputs.next(), inputs.next()) {
        (Some(a), Some(b), Some(c), Some(d)) => Dispatch::of_four(a, b, c, d, operation),
        (Some(a), Some(b), Some(c), None) => Dispatch::of_three(a, b, c, operation),
        (Some(a), Some(b), ..) => Dispatch::of_two(a, b, operation),
        (a, ..) => Dispatch::of_one(a.expect("an input"), operation),
    })
}

/// Does something to the numbers of a tensor, row by row, in its own memory if nothing else holds it.
fn change(x: Numbers, work: impl FnOnce(&mut [f32])) -> Numbers {
    let mut data = x.into_data();
    work(data.as_mut_slice().expect("numbers of f32"));
    Flex::float_from_data(data, &Default::default())
}

/// A tensor of the same shape.
fn like(x: &Numbers, numbers: Vec<f32>) -> Numbers {
    tensor(numbers, x.shape())
}

/// A tensor of these numbers.
fn tensor(numbers: Vec<f32>, shape: impl Into<Shape>) -> Numbers {
    Flex::float_from_data(TensorData::new(numbers, shape), &Default::default())
}

/// The gradients that are wanted of some.
fn among<const N: usize>(gradients: [Numbers; N], wanted: &[bool]) -> Vec<Numbers> {
    gradients.into_iter().zip(wanted).filter_map(|(gradient, wanted)| wanted.then_some(gradient)).collect()
}

/// Operations by the number of their inputs, as the macro wants them.
#[backend_extension(Flex, Autodiff)]
trait Fused: Backend {
    fn of_one(a: FloatTensor<Self>, operation: Arc<dyn Operation>) -> FloatTensor<Self>;

    fn of_two(a: FloatTensor<Self>, b: FloatTensor<Self>, operation: Arc<dyn Operation>) -> FloatTensor<Self>;

    fn of_three(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        operation: Arc<dyn Operation>,
    ) -> FloatTensor<Self>;

    fn of_four(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        operation: Arc<dyn Operation>,
    ) -> FloatTensor<Self>;
}

/// Defines them by one function of all inputs.
macro_rules! by_all_inputs {
    ($of:expr) => {
        fn of_one(a: FloatTensor<Self>, operation: Arc<dyn Operation>) -> FloatTensor<Self> {
            ($of)([a], operation)
        }

        fn of_two(a: FloatTensor<Self>, b: FloatTensor<Self>, operation: Arc<dyn Operation>) -> FloatTensor<Self> {
            ($of)([a, b], operation)
        }

        fn of_three(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            c: FloatTensor<Self>,
            operation: Arc<dyn Operation>,
        ) -> FloatTensor<Self> {
            ($of)([a, b, c], operation)
        }

        fn of_four(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            c: FloatTensor<Self>,
            d: FloatTensor<Self>,
            operation: Arc<dyn Operation>,
        ) -> FloatTensor<Self> {
            ($of)([a, b, c, d], operation)
        }
    };
}

impl Fused for Flex {
    by_all_inputs!(plain);
}

fn plain<const N: usize>(inputs: [Numbers; N], operation: Arc<dyn Operation>) -> Numbers {
    operation.forward(inputs.into(), None)
}

impl<B: Inner, C: CheckpointStrategy> Fused for Autodiff<B, C> {
    by_all_inputs!(tracked::<B, C, _>);
}

/// What the graph asks of the backend below it.
trait Inner: Backend {
    fn forward(
        operation: &dyn Operation,
        inputs: Vec<FloatTensor<Self>>,
        kept: Option<&mut Vec<FloatTensor<Self>>>,
    ) -> FloatTensor<Self>;

    fn backward(
        operation: &dyn Operation,
        kept: Vec<FloatTensor<Self>>,
        dy: FloatTensor<Self>,
        wanted: &[bool],
    ) -> Vec<FloatTensor<Self>>;
}

impl Inner for Flex {
    fn forward(operation: &dyn Operation, inputs: Vec<Numbers>, kept: Option<&mut Vec<Numbers>>) -> Numbers {
        operation.forward(inputs, kept)
    }

    fn backward(operation: &dyn Operation, kept: Vec<Numbers>, dy: Numbers, wanted: &[bool]) -> Vec<Numbers> {
        operation.backward(kept, dy, wanted)
    }
}

/// The result of an operation in the graph.
fn tracked<B: Inner, C: CheckpointStrategy, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    operation: Arc<dyn Operation>,
) -> FloatTensor<Autodiff<B, C>> {
    let (inputs, nodes): (Vec<_>, Vec<_>) = inputs.into_iter().map(|x| x.into_parts()).unzip();
    let nodes: [_; N] = nodes.try_into().expect("as many as there are inputs");
    match Step::<N>.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let mut kept = vec![];
            let y = B::forward(&*operation, inputs, Some(&mut kept));
            prep.finish((kept, operation), y)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::forward(&*operation, inputs, None)),
    }
}

/// The step back through an operation.
#[derive(Debug)]
struct Step<const N: usize>;

impl<B: Inner, const N: usize> Backward<B, N> for Step<N> {
    type State = (Vec<FloatTensor<B>>, Arc<dyn Operation>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (dy, (kept, operation)) = (grads.consume::<B>(&ops.node), ops.state);
        let wanted: Vec<bool> = ops.parents.iter().map(Option::is_some).collect();
        let gradients = B::backward(&*operation, kept, dy, &wanted);
        for (parent, gradient) in ops.parents.into_iter().flatten().zip(gradients) {
            grads.register::<B>(parent.id, gradient);
        }
    }
}
