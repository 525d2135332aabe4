//! Layers that are computed again in backward (Chen et al., 2016, arXiv:1604.06174), so that of a forward only the states between layers
//! are kept: what transformers calls gradient checkpointing.
//!
//! A tape goes along with a batch. Forward computes each layer without a graph, by the adapter's tensors without gradients, and puts a
//! leaf in the place of what the layer gives. What lies between layers (embeddings, the last normalization, the head, the loss) is
//! recorded as always. Backward begins with the loss; then the layers are computed again one by one, the last first, each a graph of its
//! own. Where a graph ends in a tensor that another has computed, a leaf stands for it there.
//!
//! A leaf that has a gradient from the graphs before begins with it ([`seeded`]), so that contributions are added in the order of the graphs.
//! Within a layer burn goes back by depth, and a layer alone is not as deep: where a method's tensors take some operations of their own
//! before they meet the states (LoRA's factors), contributions to the states may be added in another order than in one graph, which
//! is another rounding. Where they take none (sequential adapters, prefixes) all bits are the same. What a method computes when it opens is
//! computed anew for each layer.
//!
//! Hooks must not carry a tensor from one layer to another in any other way than through the states: a network that reads the states of
//! layers is a [`Tuner`](crate::Tuner) of its own, which is run without a tape.

use std::fmt::{self, Debug};
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu"))]
use burn::backend::Cube;
#[cfg(feature = "flex")]
use burn::backend::Flex;
#[cfg(feature = "tch")]
use burn::backend::LibTorch;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients as Grads;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

use crate::models::{Beside, family};
use crate::view::{Visit, visit};
use crate::{AnyTuner, Base, Batch, Frame, Hidden, Mask, Result, Sequence, Site};

/// What backward needs of the forwards of a batch. Clones are the same tape.
#[derive(Clone, Default)]
pub struct Tape(Arc<Mutex<Notes>>);

impl Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a tape of {} entries", self.notes().entries.len())
    }
}

#[derive(Default)]
struct Notes {
    /// In the place of what was computed outside of layers. One is gone once nothing will be added to its gradient.
    leaves: Vec<Option<Box<dyn Held>>>,
    /// In the place of what a layer gives.
    outputs: Vec<Option<Leaf<3>>>,
    entries: Vec<Entry>,
    /// The leaves in the place of what tuners had computed before their runs. Several runs may have it of one graph, through which
    /// backward can go only once.
    before: Vec<usize>,
}

enum Entry {
    /// Where leaves were put in the place of tensors: all that reads them comes later.
    Sources(Vec<usize>),
    Segment(Box<Segment>),
}

/// One layer in one run.
struct Segment {
    run: Arc<Run>,
    site: Site,
    x: Sequence,
    beside: Beside,
    output: usize,
}

struct Run {
    tuner: AnyTuner,
    base: Base,
    batch: Batch,
}

/// What a frame does with its layers while a tape is written.
pub(crate) struct Recorder<'a> {
    tape: &'a Tape,
    run: Arc<Run>,
    /// The same forward by tensors without gradients.
    plain: Frame<'a>,
}

impl Tape {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a base with an adapter.
    pub(crate) fn run(&self, tuner: AnyTuner, base: &Base, batch: &Batch) -> Result<Hidden> {
        let batch = Batch { tape: None, ..batch.clone() };
        // What was computed for this run alone (a route, masked tensors) is read by all layers.
        let tuner = self.notes().held_module(tuner);
        let (plain, plain_base) = (without_gradients(tuner.clone()), base.without_gradients());
        let run = Arc::new(Run { tuner, base: base.clone(), batch });
        plain.opened(&run.batch, |hooks| {
            let recorder = Recorder { tape: self, run: run.clone(), plain: plain_base.frame(&run.batch, hooks) };
            run.tuner.opened(&run.batch, |hooks| {
                family::forward(&Frame { recorder: Some(&recorder), ..run.base.frame(&run.batch, hooks) })
            })
        })
    }

    /// The gradients of a module's tensors. The tape is empty then.
    pub(crate) fn backward<M: Module>(&self, loss: Tensor<1>, module: &M) -> GradientsParams {
        let Notes { leaves, outputs, mut entries, before } = take(&mut *self.notes());
        entries.insert(0, Entry::Sources(before));
        let zero = Tensor::<1>::from_inner(Tensor::zeros([1], &loss.device().inner()));
        let mut back = Back { leaves, outputs, module, sum: GradientsParams::new() };
        back.collect(loss.backward());
        drop(loss);
        while let Some(entry) = entries.pop() {
            match entry {
                Entry::Sources(leaves) => {
                    let of = |root, leaf: usize| match back.leaves[leaf].take() {
                        Some(leaf) => leaf.seed_source(root),
                        None => root,
                    };
                    let root = leaves.into_iter().fold(zero.clone(), of);
                    back.step(root);
                }
                Entry::Segment(segment) => {
                    let output = back.outputs[segment.output].take();
                    let Some(gradient) = output.and_then(|output| output.gradient) else { continue };
                    segment.replay(|states| back.step(seeded(zero.clone(), states, gradient)));
                }
            }
        }
        back.sum
    }
}

impl Notes {
    /// A leaf in the place of a tensor that has been computed from tracked ones, and its number.
    fn held<const D: usize>(&mut self, x: Tensor<D>, sources: &mut Vec<usize>) -> Tensor<D> {
        if !x.is_tracked() || x.is_require_grad() {
            return x;
        }
        let leaf = Tensor::from_inner(x.clone().inner()).require_grad();
        sources.push(self.leaves.len());
        self.leaves.push(Some(Box::new(Leaf { leaf: leaf.clone(), source: Some(x), gradient: None })));
        leaf
    }

    fn note_sources(&mut self, sources: Vec<usize>) {
        if !sources.is_empty() {
            self.entries.push(Entry::Sources(sources));
        }
    }

    fn held_module(&mut self, module: AnyTuner) -> AnyTuner {
        struct Hold<'a>(&'a mut Notes, Vec<usize>);
        impl ModuleMapper for Hold<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let (id, value, mapper) = param.consume();
                Param::from_mapped_value(id, self.0.held(value, &mut self.1), mapper)
            }
        }
        let mut hold = Hold(self, vec![]);
        let module = module.map(&mut hold);
        let before = hold.1;
        self.before.extend(before);
        module
    }
}

/// The module by the same values, of which none is tracked.
fn without_gradients(module: AnyTuner) -> AnyTuner {
    struct Without;
    impl ModuleMapper for Without {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, mapper) = param.consume();
            Param::from_mapped_value(id, untracked(value), mapper)
        }
    }
    module.map(&mut Without)
}

/// The same values on the same device, so that operations take the same way.
pub(crate) fn untracked<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.is_tracked() { Tensor::from_inner(x.inner()) } else { x }
}

impl Recorder<'_> {
    /// A leaf in the place of a tensor that several layers, or what is before and behind them, read.
    pub(crate) fn held<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (mut notes, mut sources) = (self.tape.notes(), vec![]);
        let x = notes.held(x, &mut sources);
        notes.note_sources(sources);
        x
    }

    /// Does something by hooks that are opened for it alone: what those of a run compute once may be read in two places only if one
    /// graph reaches both.
    pub(crate) fn apart<R>(&self, frame: &Frame<'_>, f: impl FnOnce(&Frame<'_>) -> R) -> R {
        self.run.tuner.opened(&self.run.batch, |hooks| f(&Frame { hooks, ..*frame }))
    }

    /// Computes a layer without a graph.
    pub(crate) fn layer(&self, site: Site, x: Sequence, beside: &Beside) -> Sequence {
        let x = {
            let (mut notes, mut sources) = (self.tape.notes(), vec![]);
            let hidden = notes.held(x.hidden, &mut sources);
            let bias = x.mask.bias.map(|bias| notes.held(bias, &mut sources));
            notes.note_sources(sources);
            Sequence { hidden, mask: Mask { bias, ..x.mask }, ..x }
        };
        let plain = beside.without_gradients();
        let y = self
            .plain
            .hooks
            .layer(&self.plain, site, x.clone().without_gradients(), &|x| plain.layer(&self.plain, site, x));
        // Without anything that is trained in it or before it, it is a constant.
        if !y.hidden.is_autodiff() {
            return y;
        }
        let (mut notes, bias) = (self.tape.notes(), x.mask.bias.clone());
        let hidden = Tensor::from_inner(y.hidden.inner()).require_grad();
        let (output, beside) = (notes.outputs.len(), beside.clone());
        notes.outputs.push(Some(Leaf { leaf: hidden.clone(), source: None, gradient: None }));
        let segment = Segment { run: self.run.clone(), site, x, beside, output };
        notes.entries.push(Entry::Segment(Box::new(segment)));
        Sequence { hidden, mask: Mask { bias, ..y.mask }, ..y }
    }
}

impl Segment {
    fn replay(self, f: impl FnOnce(Tensor<3>)) {
        let Segment { run, site, x, beside, .. } = self;
        run.tuner.opened(&run.batch, |hooks| {
            let frame = run.base.frame(&run.batch, hooks);
            f(hooks.layer(&frame, site, x, &|x| beside.layer(&frame, site, x)).hidden);
        });
    }
}

/// Backward, graph after graph.
struct Back<'a, M> {
    leaves: Vec<Option<Box<dyn Held>>>,
    outputs: Vec<Option<Leaf<3>>>,
    module: &'a M,
    sum: GradientsParams,
}

impl<M: Module> Back<'_, M> {
    /// Goes back through the graph of this root, whose leaves begin with the gradients that they have.
    fn step(&mut self, root: Tensor<1>) {
        struct Seeds<'a>(&'a mut GradientsParams, Tensor<1>);
        impl Visit for Seeds<'_> {
            fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, tensor: Tensor<D>) {
                if let Some(gradient) = self.0.remove::<D>(id) {
                    self.1 = seeded(self.1.clone(), tensor, gradient);
                }
            }
        }
        let root = self.leaves.iter_mut().flatten().fold(root, |root, leaf| leaf.seed(root));
        let root = self.outputs.iter_mut().flatten().fold(root, |root, leaf| leaf.seed(root));
        let mut seeds = Seeds(&mut self.sum, root);
        visit(self.module, &mut seeds);
        let root = seeds.1;
        if root.is_tracked() {
            self.collect(root.backward());
        }
    }

    fn collect(&mut self, mut gradients: Gradients) {
        self.leaves.iter_mut().flatten().for_each(|leaf| leaf.collect(&mut gradients));
        self.outputs.iter_mut().flatten().for_each(|leaf| leaf.collect(&mut gradients));
        self.sum = GradientsParams::from_grads(gradients, self.module);
    }
}

/// A leaf of any rank, and the gradient that it has so far.
trait Held: Send {
    fn collect(&mut self, gradients: &mut Gradients);
    /// The root of a graph in which the leaf begins with that.
    fn seed(&mut self, root: Tensor<1>) -> Tensor<1>;
    /// The root of the graph that has computed what the leaf stands for.
    fn seed_source(self: Box<Self>, root: Tensor<1>) -> Tensor<1>;
}

struct Leaf<const D: usize> {
    leaf: Tensor<D>,
    source: Option<Tensor<D>>,
    gradient: Option<Tensor<D>>,
}

impl<const D: usize> Held for Leaf<D> {
    fn collect(&mut self, gradients: &mut Gradients) {
        self.gradient = self.leaf.grad_remove(gradients);
    }

    fn seed(&mut self, root: Tensor<1>) -> Tensor<1> {
        match self.gradient.take() {
            Some(gradient) => seeded(root, self.leaf.clone(), gradient),
            None => root,
        }
    }

    fn seed_source(self: Box<Self>, root: Tensor<1>) -> Tensor<1> {
        match (self.source, self.gradient) {
            (Some(source), Some(gradient)) => seeded(root, source, gradient),
            _ => root,
        }
    }
}

/// A root whose step back gives `x` this gradient, before it goes on to `root`.
fn seeded<const D: usize>(root: Tensor<1>, x: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    let (root, gradient) = (root.into_dispatch(), Tensor::from_inner(gradient).into_dispatch());
    Tensor::from_dispatch(<Dispatch as Seeded>::seeded(root, x.into_dispatch(), gradient))
}

/// The operation on each backend: `root`, as far as anything is computed.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu")),
    LibTorch: cfg(feature = "tch"),
    Autodiff
)]
pub(crate) trait Seeded: Backend {
    fn seeded(root: FloatTensor<Self>, x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let _ = (x, gradient);
        root
    }
}

#[cfg(feature = "flex")]
impl Seeded for Flex {}

#[cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu"))]
impl Seeded for Cube {}

#[cfg(feature = "tch")]
impl Seeded for LibTorch {}

impl<B: Backend, C: CheckpointStrategy> Seeded for Autodiff<B, C> {
    fn seeded(root: FloatTensor<Self>, x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((root, before), gradient) = (root.into_parts(), gradient.into_primitive());
        match Seed.prepare::<C>([before, x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(gradient, root),
            OpsKind::UnTracked(prep) => prep.finish(root),
        }
    }
}

/// The step back from a root.
#[derive(Debug)]
struct Seed;

impl<B: Backend> Backward<B, 2> for Seed {
    type State = B::FloatTensorPrimitive;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Grads, _: &mut Checkpointer) {
        let gradient = ops.state;
        binary::<B, _, _>(ops.parents, ops.node, grads, |before| before, |_| gradient);
    }
}
