//! The training loop, driven with LoRA: equal bits at any number of threads, resumed in the middle, and faults caught.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::store::ModuleRecord;
use burn::tensor::{Tensor, TensorData};
use peft_core::data::Dataset;
use peft_core::io::Pretrained;
use peft_core::train::{Checkpoints, Run, Schedule, TrainConfig, Trainer, Workers, predict};
use peft_core::view::tensors;
use peft_core::{
    Adapter, AnyMethod, Bare, Base, Batch, Compute, Error, Example, Head, Hooks, Label, LanguageModel, Method, Part,
    Procedure, Result, Site, Slot, Trained, testing,
};
use peft_reparam::{AdaLora, AdaLoraConfig, Lora, LoraConfig};

fn base() -> Base {
    testing::base("roberta-tiny", &testing::device())
}

/// Forty sequences whose class is whether a token below 50 comes first.
fn data() -> Vec<Example> {
    let mut random = peft_core::random::Random::new(1, "data");
    let example = |i: usize| {
        let mut ids: Vec<u32> = (0..4 + i % 9).map(|_| (4 + random.below(90)) as u32).collect();
        ids[0] = if i.is_multiple_of(2) { 5 } else { 90 };
        Example { ids, label: Some(Label::Class(i % 2)), ..Default::default() }
    };
    (0..40).map(example).collect()
}

fn start(base: &Base) -> Trained<Lora> {
    let lora = LoraConfig { lora_dropout: 0.1, ..LoraConfig::new(3) }.init(base, 0).unwrap();
    Trained::new(lora, Head::classifier(base, 2, 0)).unwrap()
}

fn config() -> TrainConfig {
    TrainConfig { micro_rows: 20, dropout: Some(0.1), ..TrainConfig::new(1e-2).with_batch_size(16).with_steps(6) }
}

fn run<T: Procedure>(config: TrainConfig, base: &Base, trained: Trained<T>) -> Result<Trained<T>> {
    Trainer::new(config).run(base, trained, &data(), None, &mut ())
}

#[test]
fn the_adapter_has_the_same_bits_at_any_number_of_threads() {
    let base = base();
    let trained = |base: &Base, threads, micro_rows| {
        let trained = run(TrainConfig { threads, micro_rows, ..config() }, base, start(base)).unwrap();
        trained.into_record().into_bytes().unwrap().to_vec()
    };
    let one = trained(&base, 1, 20);
    // Of more rows there is one piece, whose products are cut for all threads.
    let computed = [Compute::F32, Compute::Bf16].map(|compute| (base.clone().with_compute(compute), 1000));
    for (base, rows) in [(base.clone(), 20)].into_iter().chain(computed) {
        let one = trained(&base, 1, rows);
        for threads in [2, 5] {
            assert!(one == trained(&base, threads, rows), "{threads} threads, {rows} rows, {}", base.compute());
        }
    }
    assert!(trained(&base.clone().with_compute(Compute::Bf16), 1, 20) != one, "nothing is rounded");
    let other_seed = run(TrainConfig { seed: 1, ..config() }, &base, start(&base)).unwrap();
    assert!(one != other_seed.into_record().into_bytes().unwrap().to_vec(), "the seed does nothing");
}

/// AdaLoRA has a penalty and takes ranks away after steps.
#[test]
fn a_forgotten_type_changes_no_bit_and_no_name() {
    let base = base();
    let config = TrainConfig { threads: 2, ..config() };
    let method = AdaLoraConfig::new(4, 2).with_schedule(1, 1, 1).with_penalty(0.5).with_dropout(0.1);
    let head = Head::classifier(&base, 2, 0);
    let known = Trained::new(method.init(&base, 0).unwrap(), head.clone()).unwrap();
    let forgotten = Trained::new(AnyMethod::from(method.clone()).init(&base, 0).unwrap(), head).unwrap();
    assert_eq!(forgotten.tuner.downcast_ref::<AdaLora>().map(tensors), Some(tensors(&known.tuner)));
    assert!(forgotten.tuner.downcast_ref::<Lora>().is_none());
    let known = run(config.clone(), &base, known).unwrap();
    let forgotten = run(config, &base, forgotten).unwrap();
    assert_eq!(tensors(&known), tensors(&forgotten));
    let bytes = |record: ModuleRecord| record.into_bytes().unwrap().to_vec();
    let learned = method.learned(&known.tuner, base.shape());
    assert_ne!(learned, method, "no rank was taken away");
    assert_eq!(AnyMethod::from(method).learned(&forgotten.tuner, base.shape()), learned.into());
    assert!(bytes(known.into_record()) == bytes(forgotten.into_record()));
}

#[test]
fn a_run_taken_up_in_the_middle_ends_with_the_same_bits() {
    let (base, data) = (base(), data());
    let whole = run(config(), &base, start(&base)).unwrap();
    let mut first = Run::new(&config(), base.clone(), start(&base)).unwrap();
    for _ in 0..3 {
        first.step(&data).unwrap();
    }
    let record = first.trained.clone().into_record().into_bytes().unwrap();
    let state = first.optim.save(&first.trained);

    let record = burn::store::ModuleRecord::from_bytes(record).unwrap();
    let trained = start(&base).try_load_record(record).unwrap();
    let mut second = Run::new(&config(), base, trained).unwrap();
    second.optim = second.optim.load(&second.trained, state, second.base.device());
    second.step = 3;
    for _ in 0..3 {
        second.step(&data).unwrap();
    }
    assert_eq!(tensors(&second.trained), tensors(&whole));
}

#[test]
fn the_dropout_of_the_settings_is_that_of_the_head_too() {
    let (base, data) = (base(), data());
    let loss = |seed| {
        let settings = TrainConfig { dropout: Some(0.0), seed, shuffle: false, ..config() };
        let trained = Trained::new(peft_core::Bare {}, Head::classifier(&base, 2, 0)).unwrap();
        Run::new(&settings, base.clone(), trained).unwrap().step(&data).unwrap().loss
    };
    assert_eq!(loss(0), loss(1));
}

#[test]
fn a_step_without_a_learning_rate_moves_nothing_and_is_no_fault() {
    let base = base();
    let settings = TrainConfig { warmup_steps: 1, ..config().with_steps(2) };
    assert!(run(settings, &base, start(&base)).is_ok());
}

/// The first step of AdamW by its formula, p - lr (g' / (|g'| + eps) + decay p), with a large eps so that the size of the
/// clipped gradient g' = g min(1, limit / |all g|) shows.
#[test]
fn a_step_clips_decays_and_follows_the_rule() {
    let (base, data) = (base(), data());
    let (limit, decay, eps, rate) = (0.02, 0.3, 0.5, 0.01);
    let plain = TrainConfig { shuffle: false, dropout: Some(0.0), ..config() };
    let settings = TrainConfig { max_grad_norm: limit, weight_decay: decay, adam_epsilon: eps, ..plain };
    let settings = TrainConfig { lr_scheduler_type: Schedule::Constant, learning_rate: rate, ..settings };
    let lora = LoraConfig::new(3).init(&base, 0).unwrap();
    let trained = Trained::new(testing::randomized(&lora, 5), Head::classifier(&base, 2, 0)).unwrap();

    let examples: Vec<&Example> = data[..16].iter().collect();
    let labels: Vec<&Label> = examples.iter().filter_map(|example| example.label.as_ref()).collect();
    let batch = base.batch(&examples).unwrap();
    let loss = trained.loss(&base, &batch, &labels).unwrap() / 16.0;
    let gradients = testing::golden::named(&trained, &GradientsParams::from_grads(loss.backward(), &trained));
    let norm = gradients.values().flat_map(|g| g.iter::<f32>()).map(|g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 2.0 * limit, "{norm} is to be clipped");

    let mut run = Run::new(&settings, base, trained.clone()).unwrap();
    let report = run.step(&data).unwrap();
    assert!((report.grad_norm / norm - 1.0).abs() < f64::from(testing::tolerances::SAME_FUNCTION.0));
    let before = tensors(&trained);
    for (name, after) in tensors(&run.trained) {
        let step = |(p, g): (f32, f32)| {
            let (p, g) = (f64::from(p), f64::from(g) * limit / norm);
            (p - rate * (g / (g.abs() + eps) + decay * p)) as f32
        };
        let expected: Vec<f32> = before[&name].iter::<f32>().zip(gradients[&name].iter::<f32>()).map(step).collect();
        let difference = testing::difference(&after, &TensorData::new(expected, after.shape().to_vec()));
        assert!(difference < testing::tolerances::SAME_FUNCTION.0, "{name}: {difference}");
    }
}

#[test]
fn micro_batches_have_the_gradients_of_the_whole_batch() {
    let (base, data) = (base(), data());
    let step = |micro_rows| {
        let mut run = Run::new(&TrainConfig { micro_rows, ..config() }, base.clone(), start(&base)).unwrap();
        let report = run.step(&data).unwrap();
        (report.loss, report.grad_norm)
    };
    let ((loss, norm), (whole_loss, whole_norm)) = (step(20), step(100_000));
    let tolerance = f64::from(testing::tolerances::SAME_FUNCTION.0);
    assert!((loss - whole_loss).abs() < tolerance && (norm / whole_norm - 1.0).abs() < tolerance);
}

#[test]
fn the_program_of_the_readme() {
    let model = Pretrained { config: serde_json::json!({}), ..Pretrained::of(base()) };
    let data = Dataset { examples: data(), classes: vec!["low".into(), "high".into()], ..Dataset::default() };
    let folder = tempfile::tempdir().unwrap();
    let settings = TrainConfig { dropout: Some(0.0), ..TrainConfig::new(1e-2).with_epochs(8).with_batch_size(8) };
    let tuned = Trainer::new(settings).fit(&model, LoraConfig::new(4).with_alpha(8.0), &data).unwrap();
    let metrics = tuned.evaluate(&data).unwrap();
    assert!(metrics.get("accuracy").unwrap() > 0.9, "{metrics}");
    tuned.save(folder.path().join("adapter")).unwrap();
    assert!(tuned.save(folder.path().join("adapter")).unwrap_err().to_string().contains("new or empty"));
    // The same before the first step, for who says where the result will go.
    let started = std::time::Instant::now();
    let again = Trainer::new(TrainConfig::new(1e-2).with_steps(1_000_000)).with_output(folder.path().join("adapter"));
    let error = again.fit(&model, LoraConfig::new(4), &data).unwrap_err().to_string();
    assert!(error.contains("new or empty") && started.elapsed().as_secs() < 60, "{error}");
    let merged = tuned.merge(&data.examples, 1e-3).unwrap();
    assert!(merged.difference > 0.0);
    merged.save(folder.path().join("merged")).unwrap();
    let too_strict = tuned.merge(&data.examples, 1e-12).unwrap_err().to_string();
    assert!(too_strict.contains("merged equals unmerged"), "{too_strict}");
}

/// Whether logits have grown or shrunk.
#[test]
fn a_merge_is_judged_by_the_size_of_the_difference() {
    let model = Pretrained::of(base());
    let data = Dataset { examples: data(), classes: vec!["low".into(), "high".into()], ..Dataset::default() };
    let tuned = Trainer::new(config()).fit(&model, LoraConfig::new(4), &data).unwrap();
    let workers = Workers::new(1).unwrap();
    let [mut grown, mut shrunk] = [0; 2];
    for example in data.examples.iter().map(std::slice::from_ref) {
        let merged = tuned.merge(example, 1.0).unwrap();
        let bare = Trained::new(Bare {}, merged.head.clone()).unwrap();
        let (before, after) =
            (tuned.predict(example).unwrap(), predict(&merged.base, &bare, example, &workers).unwrap());
        let differences: Vec<f32> = after[0].values.iter().zip(&before[0].values).map(|(a, b)| a - b).collect();
        let largest = differences.iter().map(|x| x.abs()).fold(0.0, f32::max);
        assert_eq!(merged.difference, largest);
        assert!(tuned.merge(example, largest).is_ok());
        assert_eq!(tuned.merge(example, largest / 2.0).is_ok(), largest == 0.0);
        grown += usize::from(largest > 0.0 && differences.iter().all(|x| *x >= 0.0));
        shrunk += usize::from(largest > 0.0 && differences.iter().all(|x| *x <= 0.0));
    }
    assert!(grown > 0 && shrunk > 0, "{grown} {shrunk}");
}

#[test]
fn bad_numbers_stop_a_run() {
    let (base, mut data) = (base(), data());
    let site = Site::encoder(0, Part::Query);
    let broken = base.clone().with_vector(site, Slot::Bias, Tensor::full([24], f32::NAN, base.device()));
    let message = run(config(), &broken, start(&base)).unwrap_err().to_string();
    assert!(message.contains("step 1") && message.contains("loss is NaN"), "{message}");
    data[3].label = None;
    let message = Trainer::new(config()).run(&base, start(&base), &data, None, &mut ()).unwrap_err().to_string();
    assert!(message.contains("label"), "{message}");
    let message = Trainer::new(config()).run(&base, start(&base), &[], None, &mut ()).unwrap_err().to_string();
    assert!(message.contains("no examples"), "{message}");
}

/// A method with a tensor that nothing uses.
#[derive(Module, Debug)]
struct Faulty {
    lora: Lora,
    unused: Option<Param<Tensor<1>>>,
}

impl Adapter for Faulty {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        self.lora.open(batch, f)
    }
}

impl Procedure for Faulty {}

#[test]
fn planted_faults_are_caught_at_the_end() {
    let base = base();
    let device = base.device().clone().autodiff();
    let fault = |unused: bool| {
        let lora = LoraConfig::new(3).init(&base, 0).unwrap();
        let unused = unused.then(|| Param::from_tensor(Tensor::ones([3], &device)));
        run(config(), &base, Trained::new(Faulty { lora, unused }, Head::classifier(&base, 2, 0)).unwrap())
    };
    assert!(fault(false).is_ok());
    let unmoved = fault(true).unwrap_err();
    assert!(matches!(unmoved, Error::Check { .. }) && unmoved.to_string().contains("tuner.unused"), "{unmoved}");
}

/// The result is there beside the fault, and so are the checkpoints.
#[test]
fn a_finished_run_is_kept_whatever_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("checkpoints");
    let base = base();
    let unused = Param::from_tensor(Tensor::ones([3], &base.device().clone().autodiff()));
    let tuner = Faulty { lora: LoraConfig::new(3).init(&base, 0).unwrap(), unused: Some(unused) };
    let trained = Trained::new(tuner, Head::classifier(&base, 2, 0)).unwrap();
    let trainer = Trainer::new(config()).with_checkpoints(Checkpoints { dir: dir.clone(), every: None, resume: false });
    let error = trainer.run(&base, trained, &data(), None, &mut ()).unwrap_err().to_string();
    assert!(error.contains("tuner.unused has no gradient"), "{error}");
    assert!(dir.join("step-6").join("trained.safetensors").exists());
}

/// A decoder whose texts have one word attends to one word: what its query is makes no difference.
#[test]
fn a_gradient_of_zero_is_said_and_no_fault() {
    let base = testing::base("t5-tiny", &testing::device());
    let words = |i: usize| Label::Words([5 + (i % 2) as i32].into());
    let data: Vec<_> =
        data().into_iter().enumerate().map(|(i, example)| Example { label: Some(words(i)), ..example }).collect();
    let lora = LoraConfig::new(2).init(&base, 0).unwrap();
    let trained = Trained::new(lora, Head::LanguageModel(LanguageModel {})).unwrap();
    let train = || Trainer::new(config()).run(&base, trained, &data, None, &mut ()).unwrap();
    let (_, told) = testing::warnings(train);
    let [line] = &told[..] else { panic!("{told:?}") };
    assert!(line.contains("decoder.0.query") && line.contains("gradient is zero"), "{line}");
    assert!(!line.contains("encoder") && !line.contains("value"), "{line}");
}

#[test]
fn a_parameter_in_two_places_is_refused() {
    let base = base();
    let lora = LoraConfig::new(3).init(&base, 0).unwrap();
    let error = Trained::new((lora.clone(), lora), Head::classifier(&base, 2, 0)).unwrap_err().to_string();
    assert!(error.contains("the same parameter as"), "{error}");
}
