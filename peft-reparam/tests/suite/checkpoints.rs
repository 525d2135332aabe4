//! Runs that are stopped and taken up, with LoRA: the same bits, damaged checkpoints skipped, other runs refused.

use std::fs;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use peft_core::data::Dataset;
use peft_core::io::Pretrained;
use peft_core::testing::golden;
use peft_core::train::{
    Checkpoints, Metrics, Observer, Optim, Paging, Procedure, Rule, StepReport, TrainConfig, Trainer,
};
use peft_core::view::tensors;
use peft_core::{
    Adapter, Bare, Base, Batch, Error, Example, Head, Hooks, Label, LanguageModel, Method, Result, Shape, Trained,
    random::Random, testing,
};
use peft_quant::{ADAMW_8BIT, PAGED_ADAMW_8BIT};
use peft_reparam::{Lora, LoraConfig};

fn base() -> Base {
    testing::base("roberta-tiny", &testing::device())
}

fn data(seed: u64) -> Vec<Example> {
    let mut random = Random::new(seed, "data");
    let example = |i: usize| {
        let ids = (0..4 + i % 9).map(|_| (4 + random.below(90)) as u32).collect();
        Example { ids, label: Some(Label::Class(i % 2)), ..Default::default() }
    };
    (0..24).map(example).collect()
}

fn start(base: &Base) -> Trained<Lora> {
    let lora = LoraConfig { lora_dropout: 0.1, ..LoraConfig::new(3) }.init(base, 0).unwrap();
    Trained::new(lora, Head::classifier(base, 2, 0)).unwrap()
}

fn settings() -> TrainConfig {
    let config = TrainConfig::new(1e-2).with_batch_size(8).with_steps(8);
    TrainConfig { gradient_accumulation_steps: 2, group_by_length: true, eval_steps: Some(1), ..config }
}

/// Fails after a step, as a kill would, and remembers what it was told.
#[derive(Default)]
struct Witness {
    stop: Option<usize>,
    started: Option<(usize, Vec<String>)>,
    evaluated: Vec<usize>,
}

impl Observer for Witness {
    fn start(&mut self, done: usize, notes: &[String]) -> Result<()> {
        self.started = Some((done, notes.to_vec()));
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<()> {
        match self.stop {
            Some(stop) if report.step > stop => Err(Error::config("run", "stopped", "to go on")),
            _ => Ok(()),
        }
    }

    fn evaluated(&mut self, step: usize, _: &Metrics) -> Result<()> {
        self.evaluated.push(step);
        Ok(())
    }
}

fn run(settings: &TrainConfig, dir: Option<&Path>, data: &[Example], witness: &mut Witness) -> Result<Trained<Lora>> {
    let base = base();
    let trainer = Trainer::new(settings.clone());
    let trainer = match dir {
        Some(dir) => {
            let resume = dir.exists();
            trainer.with_checkpoints(Checkpoints { dir: dir.to_path_buf(), every: Some(1), resume })
        }
        None => trainer,
    };
    trainer.run(&base, start(&base), data, Some(&data[..6]), witness)
}

#[test]
fn a_run_that_was_stopped_ends_with_the_same_bits() {
    let data = data(1);
    for optim in [Rule::AdamW, Rule::PagedAdamW, Rule::Adafactor, ADAMW_8BIT, PAGED_ADAMW_8BIT] {
        for load_best_model_at_end in [false, true] {
            let paging = Paging { above: 100, ..Paging::default() };
            let settings = TrainConfig { optim, paging, load_best_model_at_end, ..settings() };
            let whole = run(&settings, None, &data, &mut Witness::default()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path().join("checkpoints");
            for stop in [3, 5] {
                run(&settings, Some(&dir), &data, &mut Witness { stop: Some(stop), ..Default::default() }).unwrap_err();
            }
            let mut witness = Witness::default();
            let threads = TrainConfig { threads: 3, ..settings.clone() };
            let taken_up = run(&threads, Some(&dir), &data, &mut witness).unwrap();
            assert_eq!(witness.started, Some((5, vec![])));
            assert_eq!(tensors(&taken_up), tensors(&whole), "{optim:?}");
            // What is done stays until its owner removes it: nothing is lost before the result is written.
            let again =
                run(&settings, Some(&dir), &data, &mut Witness { stop: Some(0), ..Default::default() }).unwrap();
            assert_eq!(tensors(&again), tensors(&whole));
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_skipped_and_named() {
    let (data, folder) = (data(1), tempfile::tempdir().unwrap());
    let dir = folder.path().join("checkpoints");
    let whole = run(&settings(), None, &data, &mut Witness::default()).unwrap();
    for (file, damage) in [("optimizer.safetensors", "cut"), ("state.json", "gone"), ("trained.safetensors", "flip")] {
        run(&settings(), Some(&dir), &data, &mut Witness { stop: Some(4), ..Default::default() }).unwrap_err();
        let path = dir.join("step-4").join(file);
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            "gone" => fs::remove_file(&path).unwrap(),
            "cut" => fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
            _ => {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(&path, bytes).unwrap();
            }
        }
        let mut witness = Witness::default();
        let taken_up = run(&settings(), Some(&dir), &data, &mut witness).unwrap();
        let (done, notes) = witness.started.unwrap();
        assert!(done == 3 && notes.len() == 1 && notes[0].contains(file), "{done} {notes:?}");
        assert_eq!(tensors(&taken_up), tensors(&whole));
        Checkpoints { dir: dir.clone(), every: None, resume: true }.remove().unwrap();
    }
}

#[test]
fn only_the_same_run_is_taken_up() {
    let (mine, folder) = (data(1), tempfile::tempdir().unwrap());
    let dir = folder.path().join("checkpoints");
    let stop = || Witness { stop: Some(2), ..Default::default() };
    run(&settings(), Some(&dir), &mine, &mut stop()).unwrap_err();
    let refused = |settings: TrainConfig, data: &[Example], words: &[&str]| {
        let message = run(&settings, Some(&dir), data, &mut Witness::default()).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    };
    refused(TrainConfig { learning_rate: 2e-2, ..settings() }, &mine, &["state.json", "learning_rate", "0.01", "0.02"]);
    refused(TrainConfig { seed: 1, ..settings() }, &mine, &["state.json", "seed"]);
    let mut other = mine.clone();
    other[23].label = Some(Label::Class(0));
    refused(settings(), &other, &["state.json", "data"]);
    let evaluated = Checkpoints { dir: dir.clone(), every: Some(1), resume: true };
    let trainer = Trainer::new(settings()).with_checkpoints(evaluated);
    let message = trainer.run(&base(), start(&base()), &mine, Some(&mine[..7]), &mut ()).unwrap_err().to_string();
    assert!(["state.json", "evaluation"].iter().all(|word| message.contains(word)), "{message}");
    // The same tensors to start from, but another function of them.
    let model = golden::model("roberta-classify");
    let labelled =
        Dataset { examples: mine.clone(), classes: ["a", "b"].map(String::from).to_vec(), ..Dataset::default() };
    let fit = |alpha: f64, model: &Pretrained, resume: bool| {
        let checkpoints = Checkpoints { dir: folder.path().join("method"), every: Some(1), resume };
        let (trainer, lora) =
            (Trainer::new(settings()).with_checkpoints(checkpoints), LoraConfig::new(2).with_alpha(alpha));
        let start = trainer.start(model, &lora, &labelled)?;
        trainer
            .train(model, lora, start, &labelled, None, &mut Witness { stop: Some(2), ..Default::default() })
            .map(|_| ())
    };
    fit(4.0, &model, false).unwrap_err();
    let message = fit(8.0, &model, true).unwrap_err().to_string();
    assert!(["state.json", "lora_alpha", "4.0", "8.0"].iter().all(|word| message.contains(word)), "{message}");
    let shape = Shape { eps: 0.1, ..model.base.shape().clone() };
    let base_of = |shape| Base::new(shape, model.base.device(), |place| Ok(model.base.tensor_data(place))).unwrap();
    let other = Pretrained { base: base_of(shape), ..golden::model("roberta-classify") };
    let message = fit(4.0, &other, true).unwrap_err().to_string();
    assert!(["state.json", "start"].iter().all(|word| message.contains(word)), "{message}");
    let base = base();
    let again = Checkpoints { dir: dir.clone(), every: Some(1), resume: false };
    let trainer = Trainer::new(settings()).with_checkpoints(again);
    let message = trainer.run(&base, start(&base), &mine, None, &mut ()).unwrap_err().to_string();
    assert!(message.contains("checkpoints") && message.contains("resume from it"), "{message}");
    assert!(dir.join("step-2").exists(), "what was there stays");
}

#[test]
fn a_run_that_gets_no_better_stops_and_the_best_is_kept() {
    let data = data(1);
    let stop = |patience| TrainConfig {
        early_stopping_patience: Some(patience),
        metric_for_best_model: "accuracy".into(),
        learning_rate: 1e-6,
        ..settings()
    };
    let mut witness = Witness::default();
    run(&stop(2), None, &data, &mut witness).unwrap();
    // The first evaluation is the best there is, and two more are no better.
    assert_eq!(witness.evaluated, [1, 2, 3]);
    // Without `load_best_model_at_end` it only stops: the result is the last state.
    let end = |settings: TrainConfig| tensors(&run(&settings, None, &data, &mut Witness::default()).unwrap());
    assert_eq!(end(stop(100)), end(TrainConfig { early_stopping_patience: None, ..stop(1) }));
    let unknown = TrainConfig { metric_for_best_model: "bleu".into(), ..stop(2) };
    let message = run(&unknown, None, &data, &mut Witness::default()).unwrap_err().to_string();
    assert!(["metric_for_best_model", "bleu", "accuracy"].iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn the_last_step_is_evaluated_too() {
    let mut witness = Witness::default();
    run(&TrainConfig { eval_steps: Some(3), ..settings() }, None, &data(1), &mut witness).unwrap();
    assert_eq!(witness.evaluated, [3, 6, 8]);
}

#[test]
fn what_no_run_can_be_is_refused_by_name() {
    let (base, data) = (base(), data(1));
    let refused = |settings: TrainConfig, evaluation: &[Example], words: [&str; 2]| {
        let run = Trainer::new(settings).run(&base, start(&base), &data, Some(evaluation), &mut ());
        let message = run.unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    };
    refused(settings(), &[], ["data", "no examples"]);
    refused(TrainConfig { learning_rate: 0.0, ..settings() }, &data, ["learning_rate", "above 0 in some step"]);
    let drawn = TrainConfig { task_temperature: Some(10.0), group_by_length: false, ..settings() };
    refused(drawn, &data, ["task_temperature", "one task"]);
    let three = [Example { label: Some(Label::Class(2)), ..data[0].clone() }];
    refused(TrainConfig { metric_for_best_model: "f1".into(), ..settings() }, &three, ["metric_for_best_model", "f1"]);
    let nothing = Trained::new(Bare {}, Head::LanguageModel(LanguageModel {})).unwrap();
    let message = Trainer::new(settings()).run(&base, nothing, &data, None, &mut ()).unwrap_err().to_string();
    assert!(message.contains("nothing that is trained"), "{message}");
}

/// LoRA whose fourth step has no loss.
#[derive(Module, Debug)]
struct Fragile {
    inner: Lora,
    extra: Param<Tensor<1>>,
    #[module(skip)]
    steps: usize,
}

impl Adapter for Fragile {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.inner.open(batch, f)
    }
}

impl Procedure for Fragile {
    fn penalty(&self) -> Option<Tensor<1>> {
        Some((self.extra.val() * if self.steps == 3 { f32::NAN } else { 0.1 }).sum())
    }

    fn after_step(self, _base: &Base, _: &mut Optim, _: &Self, step: usize) -> Result<Self> {
        Ok(Fragile { steps: step, ..self })
    }
}

fn fragile(base: &Base) -> Trained<Fragile> {
    let Trained { tuner: inner, head, .. } = start(base);
    let extra = Param::from_tensor(Tensor::ones([2], &base.device().clone().autodiff()));
    Trained::new(Fragile { inner, extra, steps: 0 }, head).unwrap()
}

/// A step that fails takes nothing of what was kept before it.
#[test]
fn the_best_outlives_a_step_that_fails() {
    struct Spoiled(Vec<String>);
    impl Observer for Spoiled {
        fn stopped(&mut self, why: &Error) -> Result<()> {
            self.0.push(why.to_string());
            Ok(())
        }
    }
    let settings = TrainConfig { load_best_model_at_end: true, ..settings() };
    let base = base();
    let data = data(1);
    let mut witness = Spoiled(vec![]);
    let trainer = Trainer::new(settings.clone());
    let kept = trainer.run(&base, fragile(&base), &data, Some(&data[..6]), &mut witness);
    assert!(
        kept.is_ok() && witness.0.len() == 1 && witness.0[0].contains("step 4"),
        "{:?} {:?}",
        kept.err(),
        witness.0
    );
    let unevaluated = TrainConfig { eval_steps: Some(7), ..settings.clone() };
    assert!(Trainer::new(unevaluated).run(&base, fragile(&base), &data, Some(&data[..6]), &mut ()).is_err());
    let last = TrainConfig { load_best_model_at_end: false, ..settings };
    assert!(Trainer::new(last).run(&base, fragile(&base), &data, Some(&data[..6]), &mut ()).is_err());
}

/// Where a step has no loss, checkpoints would lead there again: they are removed. What another error stops can go on, unless there is
/// nothing yet to go on from.
#[test]
fn checkpoints_outlive_only_a_run_that_can_go_on() {
    let (base, data, folder) = (base(), data(1), tempfile::tempdir().unwrap());
    let left = |name: &str, witness: &mut Witness| {
        let dir = folder.path().join(name);
        let checkpoints = Checkpoints { dir: dir.clone(), every: Some(1), resume: false };
        let trainer = Trainer::new(settings()).with_checkpoints(checkpoints);
        let error = trainer.run(&base, fragile(&base), &data, None, witness).map(|_| ()).unwrap_err();
        (matches!(error, Error::Training { .. }), dir.join("step-2").exists(), dir.exists())
    };
    assert_eq!(left("hopeless", &mut Witness::default()), (true, false, false));
    assert_eq!(left("stopped", &mut Witness { stop: Some(2), ..Default::default() }), (false, true, true));
    assert_eq!(left("begun", &mut Witness { stop: Some(0), ..Default::default() }), (false, false, false));
}

/// What the kept state has not moved is no fault where its steps had no learning rate, whatever the steps behind it did.
#[test]
fn the_kept_state_is_judged_by_the_steps_before_it() {
    // Accuracy does not change at such a rate, and of equal states the first is kept.
    let kept = TrainConfig {
        load_best_model_at_end: true,
        metric_for_best_model: "accuracy".into(),
        learning_rate: 1e-6,
        warmup_steps: 1,
        ..settings()
    };
    let data = data(1);
    let end = |settings: &TrainConfig| tensors(&run(settings, None, &data, &mut Witness::default()).unwrap());
    let first = end(&kept);
    assert_eq!(first, tensors(&start(&base())));
    assert_ne!(first, end(&TrainConfig { load_best_model_at_end: false, ..kept }));
}
