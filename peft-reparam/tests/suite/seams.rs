//! What a method may do beside its forward, through methods that do it: a loss of its own, phases, tensors that come while it trains.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{device, difference};
use peft_core::train::{Checkpoints, Observer, Optim, Phase, Probe, Procedure, Run, StepReport, TrainConfig, Trainer};
use peft_core::view::{shapes, tensors};
use peft_core::{
    Adapter, AnyTuner, Bare, Base, Batch, Error, Example, Head, Hooks, Label, Many, Method, Part, Readout, Result,
    Trained, Tuner, Within, random::Random, testing,
};
use peft_reparam::{IntrinsicSaidConfig, Lora, LoraConfig};

fn base() -> Base {
    testing::base("roberta-tiny", &device())
}

fn data() -> Vec<Example> {
    let mut random = Random::new(4, "data");
    let example = |i: usize| {
        let ids = (0..4 + i % 9).map(|_| (4 + random.below(90)) as u32).collect();
        Example { ids, label: Some(Label::Class(i % 2)), ..Default::default() }
    };
    (0..12).map(example).collect()
}

fn settings() -> TrainConfig {
    TrainConfig { micro_rows: 12, ..TrainConfig::new(1e-2).with_batch_size(12).with_steps(7) }
}

fn lora(base: &Base) -> Lora {
    LoraConfig::new(3).init(base, 0).unwrap()
}

fn trained<T: Tuner>(tuner: T, base: &Base) -> Trained<T> {
    Trained::new(tuner, Head::classifier(base, 2, 0)).unwrap()
}

/// What each step told.
#[derive(Default)]
struct Told {
    stop: Option<usize>,
    steps: Vec<(Option<&'static str>, f64)>,
}

impl Observer for Told {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.steps.push((report.phase, report.learning_rate));
        match self.stop {
            Some(stop) if report.step > stop => Err(Error::config("run", "stopped", "to go on")),
            _ => Ok(()),
        }
    }
}

/// A run that is killed after each of its steps ends as one that is not.
fn killed_everywhere<T: Procedure>(start: impl Fn(&Base) -> T) -> Result<Trained<T>> {
    let (base, data, folder) = (base(), data(), tempfile::tempdir().unwrap());
    let run = |dir: Option<&Path>, stop: Option<usize>| {
        let mut trainer = Trainer::new(settings());
        if let Some(dir) = dir {
            let resume = dir.exists();
            trainer = trainer.with_checkpoints(Checkpoints { dir: dir.into(), every: Some(1), resume });
        }
        trainer.run(&base, trained(start(&base), &base), &data, None, &mut Told { stop, ..Default::default() })
    };
    let whole = run(None, None)?;
    let dir = folder.path().join("checkpoints");
    for stop in 1..7 {
        let error = run(Some(&dir), Some(stop)).unwrap_err();
        if !error.to_string().contains("stopped") {
            return Err(error);
        }
    }
    assert_eq!(tensors(&run(Some(&dir), None)?), tensors(&whole));
    Ok(whole)
}

/// LoRA that also keeps its logits small.
#[derive(Module, Debug)]
struct Small {
    lora: Lora,
}

impl Adapter for Small {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.lora.open(batch, f)
    }
}

impl Procedure for Small {
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        let logits = self.logits(readout)?;
        Ok(Some(readout.loss(logits.clone())? + logits.powi_scalar(2).sum()))
    }
}

#[test]
fn a_method_has_its_own_loss() {
    let (base, data) = (base(), data());
    let examples: Vec<&Example> = data.iter().collect();
    let labels: Vec<&Label> = data.iter().filter_map(|example| example.label.as_ref()).collect();
    let batch = base.batch(&examples).unwrap();
    let start = trained(Small { lora: lora(&base) }, &base);
    let logits = start.logits(&base, &batch).unwrap();
    let plain = start.loss(&base, &batch, &labels).unwrap().into_scalar::<f32>();
    let expected = (plain + logits.powi_scalar(2).sum().into_scalar::<f32>()) / 12.0;
    for micro_rows in [12, 1000] {
        let settings = TrainConfig { micro_rows, dropout: Some(0.0), ..settings() };
        let report = Run::new(&settings, base.clone(), start.clone()).unwrap().step(&data).unwrap();
        assert!((report.loss as f32 - expected).abs() <= SAME_FUNCTION.0, "{} and {expected}", report.loss);
    }
    let end = |weighted: bool| {
        let trainer = Trainer::new(TrainConfig { learning_rate: 3e-2, ..settings().with_steps(30) });
        let start = || Small { lora: lora(&base) };
        let size = |logits: Tensor<3>| logits.powi_scalar(2).mean().into_scalar::<f32>();
        match weighted {
            true => size(
                trainer
                    .run(&base, trained(start(), &base), &data, None, &mut ())
                    .unwrap()
                    .logits(&base, &batch)
                    .unwrap(),
            ),
            false => {
                let run = trainer.run(&base, trained(start().lora, &base), &data, None, &mut ()).unwrap();
                size(run.logits(&base, &batch).unwrap())
            }
        }
    };
    assert!(end(true) < 0.5 * end(false), "{} and {}", end(true), end(false));
}

/// With all that it is composed with in place, whichever is the outer one.
#[test]
fn a_composition_keeps_the_loss_of_its_part() {
    let (base, data) = (base(), data());
    let batch = base.batch(&data.iter().collect::<Vec<_>>()).unwrap();
    let labels: Vec<&Label> = data.iter().filter_map(|example| example.label.as_ref()).collect();
    let random = |seed: u64, part: Part| {
        let config = LoraConfig { target_modules: part.into(), ..LoraConfig::new(3) };
        testing::randomized(&config.init(&base, seed).unwrap(), seed)
    };
    let (lora, other) = (random(1, Part::Query), random(2, Part::Value));
    let small = || AnyTuner::new(Small { lora: lora.clone() });
    let loss =
        |tuner: AnyTuner| trained(tuner, &base).objective(&base, &batch, &labels).map(|loss| loss.into_scalar::<f32>());
    let expected = |tuner: AnyTuner| {
        let trained = trained(tuner, &base);
        let squares = trained.logits(&base, &batch).unwrap().powi_scalar(2).sum();
        (trained.loss(&base, &batch, &labels).unwrap() + squares).into_scalar::<f32>()
    };
    let both = expected(AnyTuner::new((lora.clone(), other.clone())));
    assert!((both - expected(AnyTuner::new(lora.clone()))).abs() > 10.0 * SAME_FUNCTION.0);
    let (own, layers) = (|| Small { lora: lora.clone() }, base.shape().layers);
    for tuner in [
        AnyTuner::new((own(), other.clone())),
        AnyTuner::new((other.clone(), own())),
        AnyTuner::new((Bare {}, (other.clone(), own()))),
        AnyTuner::new(Many::new(vec![AnyTuner::new(other.clone()), small(), AnyTuner::new(Bare {})]).unwrap()),
        AnyTuner::new((Within::new(other.clone(), 0..layers), Within::new(own(), 0..layers))),
    ] {
        let found = loss(tuner).unwrap();
        assert!((found - both).abs() <= SAME_FUNCTION.0 * both, "{found} and {both}");
    }
    let within = expected(AnyTuner::new((other.clone(), Within::new(lora.clone(), 1..2))));
    let found = loss(AnyTuner::new((other.clone(), Within::new(own(), 1..2)))).unwrap();
    assert!((found - within).abs() <= SAME_FUNCTION.0 * within, "{found} and {within}");
    assert!((within - both).abs() > 10.0 * SAME_FUNCTION.0);
    let refused = loss(AnyTuner::new((own(), Small { lora: other.clone() }))).unwrap_err().to_string();
    assert!(refused.contains("losses of their own of Small and Small"), "{refused}");
}

/// LoRA in two phases: all of it, and from its start again a fifth as fast.
#[derive(Module, Debug)]
struct Rewound {
    lora: Lora,
    start: Lora,
}

impl Rewound {
    fn new(base: &Base) -> Self {
        let start = LoraConfig::new(3).init(base, 1).unwrap();
        Rewound { lora: lora(base), start: testing::randomized(&start, 9).no_grad() }
    }
}

impl Adapter for Rewound {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.lora.open(batch, f)
    }
}

impl Procedure for Rewound {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        let phase = |name, steps, rate| Phase { name, steps, rate };
        vec![phase("all", 3, 1.0), phase("again", steps - 3, 0.2)]
    }

    fn prepare(self, _base: &Base, data: Probe<'_>) -> Result<Self> {
        if data.phase() == 0 {
            return Ok(self);
        }
        let lora = peft_core::view::with_values(self.lora, &tensors(&self.start))?;
        Ok(Rewound { lora, ..self })
    }
}

#[test]
fn a_method_trains_in_phases() {
    killed_everywhere(Rewound::new).unwrap();
    let (base, data, mut told) = (base(), data(), Told::default());
    let start = Rewound::new(&base);
    Trainer::new(settings()).run(&base, trained(start.clone(), &base), &data, None, &mut told).unwrap();
    let rates = |steps: usize, rate: f64| (0..steps).map(move |step| rate * (1.0 - step as f64 / steps as f64));
    let expected =
        rates(3, 1e-2).map(|rate| (Some("all"), rate)).chain(rates(4, 2e-3).map(|rate| (Some("again"), rate)));
    for ((phase, rate), (wanted, right)) in told.steps.iter().zip(expected) {
        assert_eq!(*phase, wanted);
        assert!((rate - right).abs() < 1e-12, "{rate} and {right}");
    }
    // The second phase is a run of its own from there, but for its samples and dropout.
    let mut run = Run::new(&settings(), base.clone(), trained(start.clone(), &base)).unwrap();
    for _ in 0..3 {
        run.step(&data).unwrap();
    }
    assert!(!run.optim.save(&run.trained).tensors.is_empty());
    assert_ne!(tensors(&run.trained.tuner.lora), tensors(&start.start));
    // Of one step, at a rate of nearly nothing, the start is all that is left.
    run.step(&data).unwrap();
    let values = |lora: &Lora| tensors(lora).into_values().collect::<Vec<_>>();
    for (found, start) in values(&run.trained.tuner.lora).iter().zip(values(&start.start)) {
        assert!(difference(found, &start) <= 2.1e-3);
    }
    let short = Trainer::new(settings().with_steps(3));
    let message = short.run(&base, trained(start, &base), &data, None, &mut ()).unwrap_err().to_string();
    assert!(message.contains("steps: 3 of all, 0 of again") && message.contains("3 in all"), "{message}");
}

/// LoRA with numbers beside it, one more after each of the first steps.
#[derive(Module, Debug)]
struct Growing {
    lora: Lora,
    more: Vec<Param<Tensor<1>>>,
    #[module(skip)]
    knows: bool,
}

impl Growing {
    fn grown(mut self, count: usize) -> Self {
        let device = device().autodiff();
        self.more.resize_with(count, || Param::from_tensor(Tensor::ones([2], &device)));
        self
    }
}

impl Adapter for Growing {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.lora.open(batch, f)
    }
}

impl Procedure for Growing {
    fn resumed(self, _base: &Base, _phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let count = shapes.keys().filter(|name| name.starts_with("more.")).count();
        Ok(if self.knows { self.grown(count) } else { self })
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        self.more.iter().map(|more| more.val().powi_scalar(2).sum()).reduce(|a, b| a + b)
    }

    fn after_step(self, _base: &Base, _optim: &mut Optim, _before: &Self, step: usize) -> Result<Self> {
        Ok(self.grown(step.min(3)))
    }
}

#[test]
fn tensors_come_while_a_method_trains() {
    let growing = |knows| move |base: &Base| Growing { lora: lora(base), more: vec![], knows };
    let whole = killed_everywhere(growing(true)).unwrap();
    // Each has moved for as many steps as it has been there.
    let moved = [0, 1, 2].map(|i| 1.0 - whole.tuner.more[i].val().into_data().iter::<f32>().next().unwrap());
    assert!(moved[0] > moved[1] && moved[1] > moved[2] && moved[2] > 0.0, "{moved:?}");
    let base = base();
    let mut run = Run::new(&settings(), base.clone(), trained(growing(true)(&base), &base)).unwrap();
    for step in 1..5 {
        run.step(&data()).unwrap();
        let names: Vec<String> = shapes(&run.trained.tuner.more).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), step.min(3));
    }
    // One that has not is told which tensor it lacks, instead of losing it.
    let message = killed_everywhere(growing(false)).unwrap_err().to_string();
    assert!(message.contains("trained.safetensors") && message.contains("tuner.more.0"), "{message}");
}

/// Asks which sample each row of its batch is.
#[derive(Module, Debug)]
struct Asks {}

impl Adapter for Asks {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        if let Some(noise) = &batch.noise {
            assert_eq!(noise.samples.len(), batch.dims()[0], "each row of a batch is a sample");
        }
        f(&())
    }
}

impl Procedure for Asks {}

#[test]
fn noise_names_each_row_of_what_a_view_opens_on() {
    let (base, data) = (base(), data());
    let said = IntrinsicSaidConfig::new(80).init(&base, 0).unwrap();
    let mut run = Run::new(&settings(), base.clone(), trained((Asks {}, said), &base)).unwrap();
    run.step(&data).unwrap();
}
