//! # Hyperformer++                          family: additive / adapter-based
//! u' = u + LN(act(u Wd + bd) Wu + bu; g, b)     Wd: [d, m], Wu: [m, d], u the output of a sub-layer, before its residual addition
//! [Wd, bd, Wu, bu, g, b] = I G + g0             I: (p,), G: [p, 2 d m + m + 3 d], one G for all layers and sub-layers of a stack
//! I = LN(relu([z_t; l; k] W1 + b1) W2 + b2)     z_t, l, k: (e,) of the task, the layer and the kind of sub-layer, W1: [3 e, h], W2: [h, p]
//! Paper: Karimi Mahabadi et al., 2021, arXiv:2106.04489, section 2.3.   Reference: rabeehk/hyperformer `AdapterLayersOneHyperNetController`
//! Oracle: code rabeehk/hyperformer hyperformer/adapters: `equals_the_reference`
//! Trains: T e, for each stack (L + 2) e + (3 e + 1) h + (h + 1) p + 2 p + (p + 1) (2 d m + m + 3 d), and 2 d per layer normalization.      Merges: no, the non-linearity is in front of the residual.
//! Identities:
//! - I, the generated tensors and u' are what the equations say: `an_adapter_is_what_the_hypernetwork_makes`
//! - the generated adapters of a task are ordinary ones, the same function: `cached_adapters_are_those_that_are_generated`
//! - logits, gradients and ten steps are the official code's: `equals_the_reference`
//! - tasks with the same z are the same function: `tasks_with_one_embedding_are_one_function`
//! - g = b = 0 is the base: `a_normalization_to_nothing_is_the_base`
//! - a layer or a task more costs e numbers: `a_layer_or_a_task_more_costs_an_embedding`
//! - a task trains its own z alone, and all that is shared: `a_task_trains_its_own_embedding_and_what_is_shared`
//! - bu + c is bu: `a_constant_in_the_second_bias_is_normalized_away`
//! - a batch of several tasks is a batch of each: `sequences_of_several_tasks_do_not_meet`, `C7`
//! - so it is cut into micro-batches: `pieces_of_a_batch_keep_their_tasks`
//! - each text is that of its own task, by beams too: `a_text_is_that_of_its_own_task`, `the_next_token_is_that_of_its_own_task`
//!
//! Differs from the paper: a batch may be of several tasks; the loss of a step is the mean over its sequences, whatever their tasks. Which tasks come how often is a matter of the data, or with a temperature (`task_temperature`, 10 in the paper) of their sizes, and then each batch is of one. The dropout at the end of a sub-layer is in front of the adapter, in the code behind it. On T5 the embeddings of the tasks are shared and each stack has a hypernetwork of its own, as in the code, whose names files have; but the embeddings of the tasks are one table there. RoBERTa, BERT and LLaMA are an extension.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use peft_core::transfer::send;
use peft_core::{
    Adapter, AnyTuner, Base, Batch, Error, Frame, Hooks, Key, Method, Next, Part, Place, Procedure, Result, Sequence,
    Shape, Site, SiteMap, Slot, Stack, Tuner, adapter,
    random::{Noise, Random},
    split_name, view,
};
use serde::{Deserialize, Serialize};

use super::bottleneck::{Activation, Norms, check_width, count};
use super::hypernetwork::{Generated, Hypernetwork};

/// The kinds of sub-layers that have an adapter, in the order of their embeddings.
const KINDS: [Part; 2] = [Part::FeedForward, Part::SelfAttention];
/// The most tasks, and the most numbers of an embedding: a file could otherwise ask for any amount of memory.
const MOST: usize = 1024;

/// The configuration of Hyperformer++.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HyperformerConfig {
    /// Number T of tasks.
    pub tasks: usize,
    /// Width m of the adapters' bottleneck; a 32nd of the model's (at least 1), if absent.
    pub bottleneck: Option<usize>,
    /// Length e of the embeddings.
    pub task_embedding_dim: usize,
    /// Width h between the two maps of the embeddings.
    pub task_hidden_dim: usize,
    /// Length p of what the adapters are generated from.
    pub projected_task_embedding_dim: usize,
    /// Between the maps of an adapter.
    pub activation: Activation,
    /// Whether all layer normalizations of the model are trained too.
    pub train_layernorm: bool,
}

impl Default for HyperformerConfig {
    /// The paper's: the eight tasks of GLUE.
    fn default() -> Self {
        HyperformerConfig::new(8)
    }
}

impl HyperformerConfig {
    /// The paper's for this many tasks.
    pub fn new(tasks: usize) -> Self {
        HyperformerConfig {
            tasks,
            bottleneck: None,
            task_embedding_dim: 64,
            task_hidden_dim: 128,
            projected_task_embedding_dim: 64,
            activation: Activation::GeluNew,
            train_layernorm: true,
        }
    }

    /// With a bottleneck of this width.
    pub fn with_bottleneck(mut self, width: usize) -> Self {
        self.bottleneck = Some(width);
        self
    }

    /// With embeddings of `e` numbers, which become `p` through `h`.
    pub fn with_dims(mut self, e: usize, h: usize, p: usize) -> Self {
        (self.task_embedding_dim, self.task_hidden_dim, self.projected_task_embedding_dim) = (e, h, p);
        self
    }

    /// With this non-linearity.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// With the model's layer normalizations trained too, or frozen.
    pub fn with_train_layernorm(mut self, train: bool) -> Self {
        self.train_layernorm = train;
        self
    }

    /// Width of the bottleneck; refuses settings that cannot be.
    fn width(&self, shape: &Shape) -> Result<usize> {
        for (key, value) in [
            ("tasks", self.tasks),
            ("task_embedding_dim", self.task_embedding_dim),
            ("task_hidden_dim", self.task_hidden_dim),
            ("projected_task_embedding_dim", self.projected_task_embedding_dim),
        ] {
            if !(1..=MOST).contains(&value) {
                return Err(Error::config(key, value, format!("1 to {MOST}")));
            }
        }
        let width = self.bottleneck.unwrap_or((shape.hidden / 32).max(1));
        check_width(width, shape)?;
        Ok(width)
    }
}

/// Embeddings of tasks, and what makes adapters of them.
#[derive(Module, Debug)]
pub struct Hyperformer {
    /// `[tasks, e]`.
    tasks: Param<Tensor<2>>,
    /// For each stack, called by its first layer.
    networks: SiteMap<Hypernetwork>,
    norms: Norms,
    #[module(skip)]
    activation: Activation,
}

/// The adapters of one task.
#[derive(Module, Debug)]
pub struct Cached {
    adapters: SiteMap<Generated>,
    norms: Norms,
    #[module(skip)]
    activation: Activation,
}

impl Hyperformer {
    /// The adapters of a task.
    fn generate(&self, task: usize) -> impl Iterator<Item = (Site, Generated)> {
        let task = self.tasks.val().narrow(0, task, 1);
        self.networks.iter().flat_map(move |(stack, network)| {
            let task = task.clone();
            let sites =
                (0..network.layers.val().dims()[0]).flat_map(|layer| (0..KINDS.len()).map(move |kind| (layer, kind)));
            sites.map(move |(layer, kind)| {
                (Site { layer, part: KINDS[kind], ..stack }, network.generate(task.clone(), layer, kind))
            })
        })
    }

    /// The adapters of a task as ordinary ones: the same function on sequences of that task, to the bit, without a hypernetwork. They
    /// can be trained on.
    pub fn cached(&self, task: usize) -> Result<Cached> {
        struct Leaves;
        impl view::Rewrite for Leaves {
            fn tensor<const D: usize>(&mut self, _: &str, tensor: Tensor<D>) -> Tensor<D> {
                Tensor::from_inner(tensor).require_grad()
            }
        }
        self.check_tasks(&[task])?;
        let adapter = |(site, generated)| (site, view::view(&generated, &mut Leaves));
        let adapters = self.valid().generate(task).map(adapter).collect();
        Ok(Cached { adapters, norms: self.norms.clone(), activation: self.activation })
    }
}

impl Method for HyperformerConfig {
    const NAME: &'static str = "hyperformer";
    const PEFT_TYPE: &'static str = "HYPERFORMER";
    type Tuner = Hyperformer;

    fn init(&self, base: &Base, seed: u64) -> Result<Hyperformer> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let dims = [shape.hidden, self.width(shape)?];
        let network = |(stack, layers): (Stack, usize)| {
            let site = Site { stack, layer: 0, part: Part::Layer };
            let sizes = [self.task_embedding_dim, self.task_hidden_dim, self.projected_task_embedding_dim];
            (site, Hypernetwork::init([layers, KINDS.len()], dims, sizes, seed, name(stack), &device))
        };
        let tasks = Random::new(seed, "hyperformer.tasks");
        Ok(Hyperformer {
            tasks: Param::from_tensor(tasks.normal_tensor([self.tasks, self.task_embedding_dim], 1.0, &device)),
            networks: shape.stacks().into_iter().map(network).collect(),
            norms: Norms::new(base, &Norms::places(shape, self.train_layernorm)),
            activation: self.activation,
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let (d, m) = (shape.hidden, self.width(shape)?);
        let (e, h, p) = (self.task_embedding_dim, self.task_hidden_dim, self.projected_task_embedding_dim);
        let shared = 2 * e + (3 * e + 1) * h + (h + 1) * p + 2 * p + (p + 1) * (count(d, m) + 2 * d);
        let networks: usize = shape.stacks().into_iter().map(|(_, layers)| layers * e + shared).sum();
        let norms: usize = Norms::places(shape, self.train_layernorm).iter().map(Place::count).sum();
        Ok(self.tasks * e + networks + norms)
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        if let Some(name) = name.strip_prefix("norms.") {
            return Norms::key(name, shape);
        }
        if name == "tasks" {
            return Key::plain("base_model.model.task_embedding_controller.task_to_embeddings");
        }
        let (_, site, path) = split_name(name);
        let (module, leaf) = path.rsplit_once('.').unwrap_or((path, "table"));
        let path = match module {
            "layers" => "layer_id_embeddings",
            "kinds" => "adapters_block_type",
            "inner" => "task_hypernet.task_embeding_generator.0",
            "outer" => "task_hypernet.task_embeding_generator.2",
            "norm" => "LayerNorm",
            "down.weight" => "down_sampler_hyper_net.weight_generator.0",
            "down.bias" => "down_sampler_hyper_net.bias_generator.0",
            "up.weight" => "up_sampler_hyper_net.weight_generator.0",
            "up.bias" => "up_sampler_hyper_net.bias_generator.0",
            "post.weight" => "post_layernorm_hypernet.weight_generator",
            _ => "post_layernorm_hypernet.bias_generator",
        };
        let word = if leaf == "bias" { "bias" } else { "weight" };
        let name = format!("base_model.model.{}.adapter_layers_hyper_net.{path}.{word}", self::name(site.stack));
        Key { name, transposed: leaf == "weight" }
    }
}

fn name(stack: Stack) -> &'static str {
    match stack {
        Stack::Encoder => "encoder",
        Stack::Decoder => "decoder",
    }
}

/// The adapters of the tasks of one batch.
struct Opened<'a> {
    norms: &'a Norms,
    activation: Activation,
    /// For each task one.
    adapters: BTreeMap<Site, Vec<Generated>>,
    /// The sequences of each task.
    sequences: Vec<Tensor<1, Int>>,
    /// Where each sequence stands among those of the first task, of the second and so on.
    places: Tensor<1, Int>,
}

impl<'a> Opened<'a> {
    /// For the tasks that occur, `generate` gives each one's.
    fn new<I: Iterator<Item = (Site, Generated)>>(
        (norms, activation): (&'a Norms, Activation),
        batch: &Batch,
        generate: impl Fn(usize) -> I,
    ) -> Self {
        let tasks: BTreeSet<usize> = batch.tasks.iter().copied().collect();
        let mut adapters: BTreeMap<Site, Vec<Generated>> = BTreeMap::new();
        for (site, adapter) in tasks.iter().flat_map(|task| generate(*task)) {
            adapters.entry(site).or_default().push(adapter);
        }
        let device = batch.ids.device();
        let index = |of: Vec<usize>| {
            let of: Vec<i32> = of.into_iter().map(|i| i as i32).collect();
            let dims = [of.len()];
            send::<1, Int>(TensorData::new(of, dims), &device)
        };
        let of = |task: &usize| (0..batch.tasks.len()).filter(|i| batch.tasks[*i] == *task).collect::<Vec<_>>();
        let sequences: Vec<Vec<usize>> = tasks.iter().map(of).collect();
        let mut places = vec![0; batch.tasks.len()];
        sequences.iter().flatten().enumerate().for_each(|(place, sequence)| places[*sequence] = place);
        let sequences = sequences.into_iter().map(index).collect();
        Opened { norms, activation, adapters, sequences, places: index(places) }
    }
}

impl Hooks for Opened<'_> {
    fn sublayer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let Some(adapters) = self.adapters.get(&site) else { return next(x) };
        let (output, act) = (next(x), self.activation);
        let added = match &adapters[..] {
            [adapter] => adapter.forward(output.clone(), act),
            _ => {
                let of = |(adapter, sequences): (&Generated, &Tensor<1, Int>)| {
                    adapter.forward(output.clone().select(0, sequences.clone()), act)
                };
                Tensor::cat(adapters.iter().zip(&self.sequences).map(of).collect(), 0).select(0, self.places.clone())
            }
        };
        output + added
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        self.norms.get(site, slot).unwrap_or(v)
    }
}

impl Adapter for Hyperformer {
    /// # Panics
    /// On a task that it does not have.
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened::new((&self.norms, self.activation), batch, |task| self.generate(task)))
    }

    fn view(&self, _base: &Base, _noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        let tasks = (0..self.tasks.val().dims()[0]).map(|task| self.generate(task).collect()).collect();
        Ok(Some(AnyTuner::new(AllTasks { tasks, norms: self.norms.clone(), activation: self.activation })))
    }

    fn tasks(&self) -> Option<usize> {
        Some(self.tasks.val().dims()[0])
    }
}

impl Procedure for Hyperformer {}

/// The adapters of every task, generated once for a step.
#[derive(Module, Debug)]
struct AllTasks {
    tasks: Vec<SiteMap<Generated>>,
    norms: Norms,
    #[module(skip)]
    activation: Activation,
}

impl Adapter for AllTasks {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let of = |task: usize| self.tasks[task].iter().map(|(site, adapter)| (site, adapter.clone()));
        f(&Opened::new((&self.norms, self.activation), batch, of))
    }

    fn tasks(&self) -> Option<usize> {
        Some(self.tasks.len())
    }
}

impl Procedure for AllTasks {}

impl Hooks for Cached {
    fn sublayer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let Some(adapter) = self.adapters.get(site) else { return next(x) };
        let output = next(x);
        output.clone() + adapter.forward(output, self.activation)
    }

    fn vector(&self, site: Site, slot: Slot, v: Tensor<1>) -> Tensor<1> {
        self.norms.get(site, slot).unwrap_or(v)
    }
}

adapter!(Cached);
impl Procedure for Cached {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::golden::Case;

    use super::*;

    /// Small ones of three tasks, of which the suite's sequences are of two.
    fn small() -> HyperformerConfig {
        HyperformerConfig::new(3).with_bottleneck(5).with_dims(4, 6, 7)
    }

    mod trained_norms {
        use super::*;
        peft_core::conformance!(
            small(),
            skip(C1: "near identity only", C3: "the non-linearity stands between the sub-layer and the residual")
        );
    }

    mod frozen_norms {
        use super::*;
        peft_core::conformance!(
            small().with_train_layernorm(false).with_activation(Activation::Swish),
            skip(C1: "near identity only", C3: "the non-linearity stands between the sub-layer and the residual")
        );
    }

    /// The official code's modules around the sub-layers of a T5, four sequences of three tasks.
    #[test]
    fn equals_the_reference() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hyperformer-t5");
        Case::open(dir, "t5").check_method::<HyperformerConfig>();
    }

    #[test]
    fn has_as_many_parameters_as_the_closed_form_says() {
        let [roberta, t5] = ["roberta-base", "t5-base"].map(|name| Shape::named(name).unwrap());
        let frozen = HyperformerConfig::default().with_train_layernorm(false);
        assert_eq!(frozen.count(&roberta).unwrap(), 2_581_976);
        assert_eq!(HyperformerConfig::default().count(&roberta).unwrap(), 2_581_976 + 38_400);
        // Two hypernetworks, the tasks once.
        assert_eq!(frozen.count(&t5).unwrap(), 2 * 2_581_976 - 8 * 64);
    }

    #[test]
    fn a_layer_or_a_task_more_costs_an_embedding() {
        for name in ["roberta-base", "t5-base", "llama-7b"] {
            let shape = Shape::named(name).unwrap();
            let count = |tasks, shape: &Shape| HyperformerConfig::new(tasks).with_train_layernorm(false).count(shape);
            let deeper = Shape { layers: shape.layers + 1, ..shape.clone() };
            let found = count(3, &shape).unwrap();
            assert_eq!([count(4, &shape).unwrap(), count(3, &deeper).unwrap()], [found + 64; 2], "{name}");
        }
    }
}
