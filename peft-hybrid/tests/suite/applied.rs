//! Methods of the partial and the reparameterized branch on modules of burn's own, in a loop of one's own.

use std::collections::BTreeMap;

use burn::module::{Lora as BurnLora, Module};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData, activation};
use peft_core::random::Random;
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION, SAME_GRADIENT};
use peft_core::testing::{base, batch, device, difference, golden::named, randomized};
use peft_core::train::Optim;
use peft_core::view::{shapes, tensors, with_ids_from_names, with_values};
use peft_core::{Applied, Method, On, Part, Site, Slot, Tuner};
use peft_partial::{BitFitConfig, ChildMode, ChildTuningConfig, DiffPruningConfig, LtSftConfig, ThresholdMaskConfig};
use peft_partial::{FishMaskConfig, SBitFitConfig, SamConfig};
use peft_reparam::{
    AdaLoraConfig, DeltaLoraConfig, DyLoraConfig, IncreLoraConfig, IntrinsicSaidConfig, KernelMixConfig,
};
use peft_reparam::{KronaBConfig, KronaConfig, LoraConfig};

/// Two maps with a bend between them.
#[derive(Module, Debug)]
struct Mlp {
    first: Linear,
    second: Linear,
}

trait Model: Module {
    const PATTERN: &'static str;
    fn init(device: &Device) -> Self;
    fn run(&self) -> Tensor<3>;
}

fn input() -> Tensor<3> {
    Tensor::from_inner(Random::new(2, "input").normal_tensor([3, 5, 12], 1.0, &device()))
}

impl Model for Mlp {
    const PATTERN: &'static str = "first|second";
    fn init(device: &Device) -> Self {
        Mlp { first: LinearConfig::new(12, 20).init(device), second: LinearConfig::new(20, 8).init(device) }
    }
    fn run(&self) -> Tensor<3> {
        self.second.forward(activation::gelu(self.first.forward(input())))
    }
}

impl Model for TransformerEncoder {
    const PATTERN: &'static str = r"mha\.(query|value)|pwff\.linear_inner";
    fn init(device: &Device) -> Self {
        TransformerEncoderConfig::new(12, 20, 3, 2).with_dropout(0.0).init(device)
    }
    fn run(&self) -> Tensor<3> {
        self.forward(TransformerEncoderInput::new(input()))
    }
}

fn loss(output: Tensor<3>) -> Tensor<1> {
    let target = Random::new(3, "target").normal_tensor(output.dims(), 1.0, &device());
    (output - Tensor::from_inner(target)).powf_scalar(2.0).mean()
}

fn check_on<M: Model, C: Method>(config: C) {
    let module = M::init(&device().autodiff());
    let frozen = tensors(&module);
    let mut applied = Applied::new(module.clone(), config.clone(), 7).unwrap().start(STEPS).unwrap();
    assert!(applied.trainable() > 0, "{}", C::NAME);
    let first = loss(applied.module().unwrap().run()).into_scalar::<f32>();
    let undecayed = AdamWConfig::new().with_weight_decay(0.0).build();
    let mut optim = Optim::new(AdamWConfig::new().build()).with_undecayed(undecayed);
    for _ in 0..STEPS {
        let loss = loss(applied.draw().unwrap().run());
        applied = applied.step(loss, &mut optim, 5e-3).unwrap();
    }
    let applied = applied.finish().unwrap();
    let output = applied.module().unwrap().run();
    let last = loss(output.clone()).into_scalar::<f32>();
    assert!(last < first, "{}: {first} to {last}", C::NAME);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    applied.save(&path).unwrap();
    let loaded = Applied::<M, C>::load(module, &path).unwrap();
    assert_eq!(loaded.module().unwrap().run().into_data(), output.to_data(), "{}", C::NAME);
    let merged = loaded.merge().unwrap();
    assert!(difference(&merged.run().into_data(), &output.into_data()) <= MERGED.0, "{}", C::NAME);
    let after = tensors(&merged);
    assert_eq!(after.keys().collect::<Vec<_>>(), frozen.keys().collect::<Vec<_>>());
    assert_ne!(after, frozen);
}

const STEPS: usize = 12;

/// Training lowers the loss, what is saved is read back to the bit, and what is merged computes the same.
fn check<C: Method>(config: C) {
    check_on::<TransformerEncoder, C>(config.clone().chosen(TransformerEncoder::PATTERN));
    check_on::<Mlp, C>(config.chosen(Mlp::PATTERN));
}

trait Chosen: Method {
    /// With the modules that it is on, if that is a setting.
    fn chosen(self, pattern: &str) -> Self {
        self.on(pattern).unwrap_or(self)
    }
}
impl<C: Method> Chosen for C {}

macro_rules! applied {
    ($($name:ident: $config:expr;)*) => {$(
        #[test]
        fn $name() {
            check($config);
        }
    )*};
}

applied! {
    lora: LoraConfig::new(2);
    lora_fa: LoraConfig::new(2).with_frozen_a();
    dora: LoraConfig::new(2).with_dora();
    adalora: AdaLoraConfig::new(3, 2);
    dylora: DyLoraConfig::new(3);
    increlora: IncreLoraConfig::new(2);
    delta_lora: DeltaLoraConfig::new(2);
    krona: KronaConfig::new();
    said: IntrinsicSaidConfig::new(50);
    bitfit: BitFitConfig::new();
    child_tuning_f: ChildTuningConfig::new(ChildMode::TaskFree, 0.3);
    diff_pruning: DiffPruningConfig::new(0.5);
    threshold_mask: ThresholdMaskConfig::new(0.05);
    lt_sft: LtSftConfig::new(0.2);
}

/// With the same factors: burn's own LoRA, in values and gradients.
#[test]
fn lora_is_that_of_burn() {
    let module = TransformerEncoder::init(&device().autodiff());
    let config = LoraConfig::new(2).with_alpha(6.0).on(r"mha\.query").unwrap();
    let start = Applied::new(module.clone(), config, 7).unwrap();
    let tuner = randomized(start.tuner(), 4);
    let ours = start.with_tuner(tuner.clone());
    // burn's is on every matrix: the others' second factors stay 0.
    let name = |name: &str| {
        let (site, factor) = name.trim_start_matches("factors.encoder.").split_once(".query.").unwrap();
        format!("layers.{site}.mha.query.weight.lora.{factor}")
    };
    let factors = |of: BTreeMap<String, TensorData>| -> BTreeMap<String, TensorData> {
        of.into_iter().map(|(n, data)| (name(&n), data)).collect()
    };
    let theirs = with_values(module.apply_lora(BurnLora::new(2, 6.0)), &factors(tensors(&tuner))).unwrap();
    let (found, expected) = (ours.module().unwrap().run(), theirs.run());
    assert!(difference(&found.to_data(), &expected.to_data()) <= SAME_FUNCTION.0);
    let own = named(&tuner, &GradientsParams::from_grads(loss(found).backward(), &tuner));
    let all = named(&theirs, &GradientsParams::from_grads(loss(expected).backward(), &theirs));
    assert_eq!(own.len(), 4);
    for (name, gradient) in factors(own) {
        assert!(difference(&gradient, &all[&name]) <= SAME_GRADIENT.0, "{name}");
    }
}

/// Weight decay acts on a matrix of LoRA's and on none of the gates of diff pruning, which say so.
#[test]
fn what_does_not_decay_is_left_alone() {
    /// What one step with weight decay makes otherwise than one without.
    fn decayed<C: Method>(config: C) -> Vec<String> {
        let module = Mlp::init(&device().autodiff());
        let [with, without] = [0.5, 0.0].map(|decay| {
            let start = Applied::new(module.clone(), config.clone().chosen(Mlp::PATTERN), 7).unwrap();
            let mut applied = start.start(1).unwrap();
            let rule = |decay| AdamWConfig::new().with_weight_decay(decay).build();
            let mut optim = Optim::new(rule(decay)).with_undecayed(rule(0.0));
            let loss = loss(applied.draw().unwrap().run());
            tensors(applied.step(loss, &mut optim, 1e-2).unwrap().tuner())
        });
        with.into_iter().filter(|(name, data)| without[name] != *data).map(|(name, _)| name).collect()
    }
    assert!(!decayed(LoraConfig::new(2)).is_empty());
    let gates = decayed(DiffPruningConfig::new(0.5));
    assert!(gates.iter().all(|name| name.starts_with("differences.")), "{gates:?}");
    let start = Applied::new(Mlp::init(&device().autodiff()), DiffPruningConfig::new(0.5), 7).unwrap();
    let mut applied = start.start(1).unwrap();
    let mut optim = Optim::new(AdamWConfig::new().with_weight_decay(0.5).build());
    let loss = loss(applied.draw().unwrap().run());
    let message = applied.step(loss, &mut optim, 1e-2).unwrap_err().to_string();
    assert!(message.contains("gates.") && message.contains("with_undecayed"), "{message}");
}

/// Masks that are chosen by gradients of examples before the first step: the loop that has the examples is not ours.
#[test]
fn what_looks_at_data_first_is_refused() {
    fn check<C: Method>(config: C) {
        let module = TransformerEncoder::init(&device().autodiff());
        let message = Applied::new(module, config, 0).unwrap().start(STEPS).unwrap_err().to_string();
        assert!(message.contains("no example"), "{message}");
    }
    check(ChildTuningConfig::new(ChildMode::TaskDriven, 0.3));
    check(FishMaskConfig::new(0.2));
    check(SamConfig::new(0.2));
    // This one looks behind its first round.
    let mut applied = Applied::new(Mlp::init(&device().autodiff()), SBitFitConfig::new(0.5), 0).unwrap();
    applied = applied.start(STEPS).unwrap();
    let mut optim = Optim::new(AdamWConfig::new().build());
    let error = (0..STEPS).try_fold(applied, |mut applied, _| {
        let loss = loss(applied.draw()?.run());
        applied.step(loss, &mut optim, 5e-3)
    });
    assert!(error.unwrap_err().to_string().contains("no example"));
}

/// One map, by the name that our backbones have for it.
#[derive(Module, Debug)]
struct One {
    query: Linear,
}

/// The same map with the same numbers, in a BERT with the method's hooks and in a module with the method applied: outputs and
/// gradients.
#[test]
fn it_is_what_hooks_do_in_our_backbones() {
    fn check<C: Method>(config: C) {
        let (own, site) = (base("bert-tiny", &device()), Site::encoder(0, Part::Query));
        let on_base = config.on(r"encoder\.layer\.0\.attention\.self\.query").unwrap().init(&own, 3).unwrap();
        let tuner = randomized(&with_ids_from_names(on_base).unwrap(), 4);
        let [inputs, outputs] = own.shape().linear_dims(site);
        let values = BTreeMap::from([
            ("query.weight".to_string(), own.weight(site).dense().into_data()),
            ("query.bias".to_string(), own.vector(site, Slot::Bias).into_data()),
        ]);
        let query = LinearConfig::new(inputs, outputs).init(&device().autodiff());
        let module = with_values(One { query }, &values).unwrap();
        let applied = Applied::new(module, config.on("query").unwrap(), 3).unwrap();
        assert_eq!(shapes(applied.tuner()), shapes(&tuner), "{}", C::NAME);
        let x = Tensor::from_inner(Random::new(5, "x").normal_tensor([3, 5, inputs], 1.0, &device()));
        let next = |x: Tensor<3>| own.weight(site).linear(x, Some(own.vector(site, Slot::Bias)));
        let mut hooked = None;
        tuner.as_adapter().unwrap().open_any(&batch(&own), &mut |hooks| {
            let w = hooks.weight(site, own.weight(site).clone());
            let bias = own.vector(site, Slot::Bias);
            hooked = Some(hooks.linear(site, x.clone(), &|x| w.linear(x, Some(bias.clone()))));
        });
        let (hooked, applied) = (hooked.unwrap(), applied.with_tuner(tuner.clone()));
        let output = applied.module().unwrap().query.forward(x.clone());
        assert!(difference(&output.to_data(), &next(x).into_data()) > 1e-3, "{}: nothing is changed", C::NAME);
        assert!(difference(&output.to_data(), &hooked.to_data()) <= SAME_FUNCTION.0, "{}", C::NAME);
        let weights = Tensor::from_inner(Random::new(6, "w").normal_tensor([3, 5, outputs], 1.0, &device()));
        let gradients =
            |y: Tensor<3>| named(&tuner, &GradientsParams::from_grads((y * weights.clone()).mean().backward(), &tuner));
        let (ours, hooks) = (gradients(output), gradients(hooked));
        assert_eq!(ours.keys().collect::<Vec<_>>(), hooks.keys().collect::<Vec<_>>());
        assert!(!ours.is_empty());
        for (name, gradient) in ours {
            assert!(difference(&gradient, &hooks[&name]) <= SAME_GRADIENT.0, "{}: {name}", C::NAME);
        }
    }
    check(LoraConfig::new(2));
    check(LoraConfig::new(2).with_dora());
    check(LoraConfig::new(2).with_frozen_a());
    check(AdaLoraConfig::new(3, 2));
    check(DyLoraConfig::new(3));
    check(DeltaLoraConfig::new(2));
    check(KronaConfig::new());
}

#[test]
fn counts_are_those_of_the_maps() {
    fn count<C: Method>(config: C) -> usize {
        Applied::new(Mlp::init(&device().autodiff()), config.chosen(Mlp::PATTERN), 0).unwrap().trainable()
    }
    assert_eq!(count(LoraConfig::new(2)), 2 * (12 + 20) + 2 * (20 + 8));
    assert_eq!(count(LoraConfig::new(2).with_frozen_a()), 2 * 20 + 2 * 8);
    assert_eq!(count(DyLoraConfig::new(3)), 3 * (12 + 20) + 3 * (20 + 8));
    assert_eq!(count(IntrinsicSaidConfig::new(50)), 50);
    assert_eq!(count(BitFitConfig::new()), 20 + 8);
}

/// An adapter of a module with other maps is an error by name.
#[test]
fn another_modules_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    let device = device().autodiff();
    Applied::new(Mlp::init(&device), LoraConfig::new(2).chosen(Mlp::PATTERN), 0).unwrap().save(&path).unwrap();
    let wider = Mlp { first: LinearConfig::new(12, 24).init(&device), second: LinearConfig::new(24, 8).init(&device) };
    let message = Applied::<_, LoraConfig>::load(wider, &path).unwrap_err().to_string();
    assert!(message.contains("encoder.0.up") && message.contains("24"), "{message}");
    let other = Applied::<_, LoraConfig>::load(TransformerEncoder::init(&device), &path).unwrap_err().to_string();
    assert!(other.contains("first"), "{other}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mlp = || Mlp::init(&device().autodiff());
    let message = |error: peft_core::Error| error.to_string();
    let none = Applied::new(mlp(), LoraConfig::new(2).on("quer").unwrap(), 0).unwrap_err();
    assert!(message(none).contains("first"));
    let dropped = Applied::new(mlp(), LoraConfig::new(2).with_dropout(0.1).on("first").unwrap(), 0).unwrap_err();
    assert!(message(dropped).contains("dropout"));
    let bitfit = BitFitConfig::new().on("first").unwrap_err();
    assert!(message(bitfit).contains("bitfit"));
    let beside = Applied::new(mlp(), KronaBConfig::new(), 0).unwrap_err();
    assert!(message(beside).contains("krona-b"));
    let maps = |inputs, outputs| LinearConfig::new(inputs, outputs).with_bias(false).init(&device().autodiff());
    let bare = Mlp { first: maps(12, 20), second: maps(20, 8) };
    let added = Applied::new(bare, BitFitConfig::new().with_added(), 0).unwrap_err();
    assert!(message(added).contains("bitfit"));
    let heads = Applied::new(mlp(), KernelMixConfig::new(2, 2), 0).unwrap_err();
    assert!(message(heads).contains("kernel-mix"));
    let lora = mlp().apply_lora(burn::module::Lora::new(2, 2.0));
    let twice = Applied::new(lora, LoraConfig::new(2).on("first").unwrap(), 0).unwrap_err();
    assert!(message(twice).contains("one already"));
    let applied = Applied::new(mlp(), LoraConfig::new(2).on("first").unwrap(), 0).unwrap().start(1).unwrap();
    let loss = loss(applied.module().unwrap().run()) * f32::NAN;
    let nan = applied.step(loss, &mut Optim::new(AdamWConfig::new().build()), 0.1).unwrap_err();
    assert!(message(nan).contains("finite"));
}
