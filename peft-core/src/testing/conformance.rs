//! The conformance suite: twelve properties that every method has, or names as skipped with a reason, which is checked too.

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Tensor, TensorData};

use super::tolerances::{MERGED, SAME_FUNCTION, Tolerance};
use super::{base, batch, device, difference, examples, fixtures::SHAPES, randomized};
use crate::generate::{GenerateConfig, Prompt, generate};
use crate::random::Random;
use crate::train::{Checkpoints, Observer, Optim, StepReport, TrainConfig, Trainer};
use crate::view::{Visit, tensors, trainable, visit};
use crate::{
    AnyMethod, AnyTuner, Bare, Base, Batch, Example, Head, Hidden, Label, LanguageModel, Source, Trained, Tuner, io,
};

/// Generates one test for each property, on every architecture:
///
/// - C1 the model is unchanged at init
/// - C2 the number of trainable elements is the closed form's
/// - C3 merged equals unmerged, on a random state
/// - C4 what is saved is loaded bit for bit, each tensor under a key of its own
/// - C5 every tensor of the method gets a gradient, the base none, and the base's bits stay
/// - C6 composition with the bare base on either side changes nothing
/// - C7 a sequence's result does not depend on the batch and the padding
/// - C8 a seed decides every bit
/// - C9 a few steps lower the loss
/// - C10 two backends agree, where another than flex is compiled in
/// - C11 a text is generated alike with and without what is kept of earlier tokens, on T5 and LLaMA
/// - C12 a run of the trainer that is killed and taken up, with other threads, ends with the same bits, which are saved and loaded
///
/// `conformance!(config)`, or `conformance!(config, skip(C3: "prompts do not merge"))`. A skipped property must really fail on every
/// architecture; what fails on some only names these, `skip(C3 on DECODERS: "T5 and LLaMA have no biases")`, and must hold on the
/// others. A method that some architectures cannot have is put to the test on others with
/// `only(ENCODERS: "the reason")`; it must then refuse to start elsewhere. One that starts from finished adapters is given
/// `from(sources)`, a function that makes them for a base.
#[macro_export]
macro_rules! conformance {
    // Encoders write no texts: C11 would assert nothing.
    ($config:expr $(, from($sources:ident))?, only(ENCODERS: $why:literal) $(, skip($($skips:tt)*))?) => {
        $crate::conformance!(@tests $config, [$($sources as fn(&$crate::Base) -> Vec<$crate::Source>)?],
            [(ENCODERS.as_slice(), $why)], [$($($skips)*)?], c1 c2 c3 c4 c5 c6 c7 c8 c9 c12);
    };
    ($config:expr $(, from($sources:ident))? $(, only($shapes:ident: $why:literal))? $(, skip($($skips:tt)*))?) => {
        $crate::conformance!(@tests $config, [$($sources as fn(&$crate::Base) -> Vec<$crate::Source>)?],
            [$(($shapes.as_slice(), $why))?], [$($($skips)*)?], c1 c2 c3 c4 c5 c6 c7 c8 c9 c11 c12);
    };
    (@tests $config:expr, $sources:tt, $only:tt, $skips:tt, $($check:ident)*) => {
        mod conformance {
            use super::*;
            $($crate::conformance!(@test $check, $config, $sources, $only, $skips);)*
            $crate::on_two_backends!($config, $sources, $only, $skips);
        }
    };
    (@test $check:ident, $config:expr, $sources:tt, $only:tt,
        [$($skipped:ident $(on $failing:ident)?: $reason:literal),*]) => {
        #[test]
        fn $check() {
            let skips = [$($crate::testing::conformance::Skip {
                check: stringify!($skipped),
                on: None$(.or(Some($failing.as_slice())))?,
                reason: $reason,
            }),*];
            $crate::testing::conformance::check(
                stringify!($check), $crate::testing::conformance::$check, &$crate::AnyMethod::from($config), &$sources, &$only, &skips);
        }
    };
}

/// C10 of [`conformance!`], where there is a second backend to compare with flex.
#[cfg(any(feature = "cpu", feature = "wgpu", feature = "vulkan", feature = "cuda", feature = "tch"))]
#[doc(hidden)]
#[macro_export]
macro_rules! on_two_backends {
    ($config:expr, $sources:tt, $only:tt, $skips:tt) => {
        $crate::conformance!(@test c10, $config, $sources, $only, $skips);
    };
}

/// C10 of [`conformance!`]: with one backend there is nothing to compare.
#[cfg(not(any(feature = "cpu", feature = "wgpu", feature = "vulkan", feature = "cuda", feature = "tch")))]
#[doc(hidden)]
#[macro_export]
macro_rules! on_two_backends {
    ($config:expr, $sources:tt, $only:tt, $skips:tt) => {};
}

/// A property that a method does not have.
#[derive(Clone, Copy, Debug)]
pub struct Skip<'a> {
    /// Its name, `C3`.
    pub check: &'a str,
    /// The architectures on which it fails, if not on all.
    pub on: Option<&'a [&'a str]>,
    /// Why.
    pub reason: &'a str,
}

/// What a check finds: nothing, or a fault.
pub type Finding = Result<(), String>;

/// Runs a check on every architecture that it asserts something of, or `only` on some. Where it is skipped it must fail.
///
/// # Panics
/// If a check fails, or passes where it is skipped, or asserts nothing, or if the method starts where it cannot be.
pub fn check(
    name: &str,
    check: fn(&AnyMethod, &Base) -> Finding,
    config: &AnyMethod,
    sources: &[fn(&Base) -> Vec<Source>],
    only: &[(&[&str], &str)],
    skips: &[Skip<'_>],
) {
    let skip = skips.iter().find(|skip| skip.check.eq_ignore_ascii_case(name));
    let (mut asserted, mut wrong) = (false, vec![]);
    for shape in SHAPES {
        let base = base(shape, &device());
        let config = &sources.iter().fold(config.clone(), |config, of| config.from_sources(of(&base)));
        if let Some((_, reason)) = only.iter().find(|(shapes, _)| !shapes.contains(&shape)) {
            assert!(config.init(&base, 0).is_err(), "{} starts on {shape} ({reason})", config.name());
            continue;
        }
        // Only a model that writes has anything to keep.
        if name == "c11" && !base.shape().pre_norm() {
            continue;
        }
        asserted = true;
        match (skip.filter(|skip| skip.on.is_none_or(|on| on.contains(&shape))), check(config, &base)) {
            (None, Ok(())) | (Some(_), Err(_)) => {}
            (None, Err(fault)) => wrong.push(format!("on {shape}: {fault}")),
            (Some(skip), Ok(())) => wrong.push(format!("on {shape} it is skipped ({}) but passes", skip.reason)),
        }
    }
    assert!(asserted, "{name} of {} asserts nothing on any model", config.name());
    assert!(wrong.is_empty(), "{name} of {}: {}", config.name(), wrong.join("; "));
}

/// As [`assert_close`](super::assert_close): where numbers are larger than 1, the tolerance is a part of the largest.
fn within(a: &TensorData, b: &TensorData, tolerance: Tolerance, what: &str) -> Finding {
    let largest = b.iter::<f32>().map(f32::abs).fold(1.0, f32::max);
    let found = difference(a, b);
    if found <= tolerance.0 * largest { Ok(()) } else { Err(format!("{what}: the largest difference is {found}")) }
}

fn equal(a: &TensorData, b: &TensorData, what: &str) -> Finding {
    if a.as_bytes() == b.as_bytes() {
        Ok(())
    } else {
        Err(format!("{what}: bits differ, the largest difference is {}", difference(a, b)))
    }
}

fn states(hidden: Hidden) -> TensorData {
    hidden.states.into_data()
}

fn run(tuner: &impl Tuner, base: &Base, batch: &Batch) -> Result<TensorData, String> {
    tuner.run(base, batch).map(states).map_err(|e| e.to_string())
}

fn init(config: &AnyMethod, base: &Base) -> Result<AnyTuner, String> {
    config.init(base, 3).map_err(|e| e.to_string())
}

fn random(config: &AnyMethod, base: &Base) -> Result<AnyTuner, String> {
    Ok(randomized(&init(config, base)?, 5))
}

/// A loss without symmetries: everything that a head sees times fixed random weights, a mean over the batch.
pub fn loss(hidden: Hidden) -> Tensor<1> {
    let weigh = |x: Tensor<3>, name| {
        let weights = Random::new(13, name).normal_tensor(x.dims(), 1.0, &x.device().inner());
        (x * weights).mean()
    };
    let pooled = hidden.pooled.map(|p| weigh(p.unsqueeze_dim(1), "pooled"));
    let seen = weigh(hidden.states, "states") + weigh(hidden.words.dense().unsqueeze(), "words");
    pooled.map_or(seen.clone(), |p| p + seen)
}

fn gradients<T: Tuner>(loss: Tensor<1>, tuner: &T) -> Result<GradientsParams, String> {
    if !loss.is_autodiff() {
        return Err("the loss depends on nothing that is trained".into());
    }
    Ok(GradientsParams::from_grads(loss.backward(), tuner))
}

/// C1: the model is unchanged at init.
pub fn c1(config: &AnyMethod, base: &Base) -> Finding {
    let (tuner, batch) = (init(config, base)?, batch(base));
    let bare = run(&Bare {}, base, &batch)?;
    equal(&run(&tuner.valid(), base, &batch)?, &bare, "plain")?;
    within(&run(&tuner, base, &batch)?, &bare, SAME_FUNCTION, "tracked")
}

/// C2: the number of trainable elements is the closed form's.
pub fn c2(config: &AnyMethod, base: &Base) -> Finding {
    let (found, expected) = (trainable(&init(config, base)?), config.count(base.shape()).map_err(|e| e.to_string())?);
    if found == expected { Ok(()) } else { Err(format!("{found} elements, the closed form says {expected}")) }
}

/// C3: merged equals unmerged, on a random state; the base itself keeps its bits.
pub fn c3(config: &AnyMethod, base: &Base) -> Finding {
    let (tuner, batch) = (random(config, base)?.valid(), batch(base));
    let (before, bare) = (base.fingerprint(), run(&Bare {}, base, &batch)?);
    let unmerged = run(&tuner, base, &batch)?;
    let merged = config.merged(&tuner, base).ok_or("the method has no weight-space form")?;
    within(&run(&Bare {}, &merged, &batch)?, &unmerged, MERGED, "merged")?;
    if difference(&bare, &unmerged) <= MERGED.0 {
        return Err("the random state does not change the model: nothing was tested".into());
    }
    if base.fingerprint() == before { Ok(()) } else { Err("merging changed the original base".into()) }
}

/// Whether an adapter that was loaded is that which was saved.
fn same_logits(saved: &Trained<AnyTuner>, loaded: &Trained<AnyTuner>, base: &Base) -> Finding {
    let batch = batch(base);
    let logits = |t: &Trained<AnyTuner>| t.valid().logits(base, &batch).map(Tensor::into_data);
    let (saved, loaded) = (logits(saved).map_err(|e| e.to_string())?, logits(loaded).map_err(|e| e.to_string())?);
    // libtorch rounds a sigmoid by the place of a number in a thread's share. Of the files every bit is compared.
    match std::env::var("PEFT_DEVICE").as_deref() {
        Err(_) | Ok("flex") => equal(&saved, &loaded, "logits of the loaded adapter"),
        Ok(_) => within(&saved, &loaded, SAME_FUNCTION, "logits of the loaded adapter"),
    }
}

/// C4: what is saved is loaded bit for bit, as an adapter directory and as a record of burn's.
pub fn c4(config: &AnyMethod, base: &Base) -> Finding {
    let text = |e: crate::Error| e.to_string();
    let trained = Trained::new(random(config, base)?, Head::classifier(base, 3, 3)).map_err(text)?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = folder.path().join("adapter");
    io::peft::save(&path, config, &trained, base.shape(), &io::peft::Labels::default(), &[]).map_err(text)?;
    let (loaded_config, loaded) = io::peft::load_as(config, &path, base).map_err(text)?;
    let (saved, read) = (tensors(&config.to_saved(trained.tuner.clone())), tensors(&loaded.tuner));
    if let Some((name, _)) = saved.iter().find(|(name, data)| read.get(*name) != Some(data)) {
        return Err(format!("{name} is loaded with other values"));
    }
    same_logits(&trained, &loaded, base)?;
    io::peft::save(
        &folder.path().join("again"),
        &loaded_config,
        &loaded,
        base.shape(),
        &io::peft::Labels::default(),
        &[],
    )
    .map_err(text)?;
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let read = |dir: &str| std::fs::read(folder.path().join(dir).join(file)).map_err(|e| e.to_string());
        if read("adapter")? != read("again")? {
            return Err(format!("{file} written again has other bytes"));
        }
    }
    let bytes = trained.clone().into_record().into_bytes().map_err(|e| format!("{e:?}"))?;
    let record = burn::store::ModuleRecord::from_bytes(bytes).map_err(|e| format!("{e:?}"))?;
    let fresh = Trained::new(init(config, base)?, Head::classifier(base, 3, 9)).map_err(text)?;
    let restored = fresh.try_load_record(record).map_err(|e| format!("{e:?}"))?;
    if tensors(&restored) == tensors(&trained) { Ok(()) } else { Err("the record restores other values".into()) }
}

/// C5: every trained tensor of the method gets a gradient, the base none, and the base's bits stay.
pub fn c5(config: &AnyMethod, base: &Base) -> Finding {
    struct Gradients(GradientsParams, Vec<String>, usize);
    impl Visit for Gradients {
        fn tensor<const D: usize>(&mut self, name: &str, id: burn::module::ParamId, tensor: Tensor<D>) {
            if !tensor.is_require_grad() {
                return;
            }
            self.2 += 1;
            match self.0.get::<D>(id).map(|g| g.abs().max().into_scalar::<f32>()) {
                Some(largest) if largest > 0.0 && largest.is_finite() => {}
                other => self.1.push(format!("{name}: {other:?}")),
            }
        }
    }
    let (tuner, batch, before) = (random(config, base)?, batch(base), base.fingerprint());
    let hidden = tuner.run(base, &batch).map_err(|e| e.to_string())?;
    let gradients = gradients(loss(hidden), &tuner)?;
    let registered = gradients.len();
    let mut visitor = Gradients(gradients, vec![], 0);
    visit(&tuner, &mut visitor);
    if !visitor.1.is_empty() {
        return Err(format!("without a gradient: {}", visitor.1.join(", ")));
    }
    if registered != visitor.2 {
        return Err(format!("{registered} gradients for {} tensors", visitor.2));
    }
    let tracked = base.shape().places().into_iter().any(|p| match p.slot {
        crate::Slot::Weight => base.weight(p.site).dense().is_autodiff(),
        slot => base.vector(p.site, slot).is_autodiff(),
    });
    if !tracked && base.fingerprint() == before { Ok(()) } else { Err("the base is tracked or has changed".into()) }
}

/// C6: composition with the bare base on either side changes nothing.
pub fn c6(config: &AnyMethod, base: &Base) -> Finding {
    let (tuner, batch) = (random(config, base)?.valid(), batch(base));
    let adapter = tuner.as_adapter().ok_or("the method's tuner is no adapter")?;
    let alone = run(&tuner, base, &batch)?;
    let beside = |bare_outside: bool| {
        let mut found = Err(String::new());
        adapter.open_any(&batch, &mut |hooks| {
            let hidden = if bare_outside {
                base.forward(&batch, &(Bare {}, hooks))
            } else {
                base.forward(&batch, &(hooks, Bare {}))
            };
            found = hidden.map(states).map_err(|e| e.to_string());
        });
        found
    };
    equal(&beside(false)?, &alone, "(A, bare)")?;
    equal(&beside(true)?, &alone, "(bare, A)")
}

/// C7: a sequence's result does not depend on the batch and the padding.
pub fn c7(config: &AnyMethod, base: &Base) -> Finding {
    let (tuner, examples) = (random(config, base)?.valid(), examples(base));
    let whole = tuner.run(base, &batch(base)).map_err(|e| e.to_string())?;
    for (i, example) in examples.iter().enumerate() {
        let one = base.batch(&[example]).map_err(|e| e.to_string())?;
        let alone = tuner.run(base, &one).map_err(|e| e.to_string())?.states;
        let [_, rows, hidden] = alone.dims();
        let same = whole.states.clone().slice([i..i + 1, 0..rows, 0..hidden]);
        within(&alone.into_data(), &same.into_data(), SAME_FUNCTION, &format!("sequence {i} alone"))?;
    }
    Ok(())
}

/// C8: a seed decides every bit.
pub fn c8(config: &AnyMethod, base: &Base) -> Finding {
    let trained = || -> Result<_, String> {
        let trained = Trained::new(init(config, base)?, Head::classifier(base, 2, 3)).map_err(|e| e.to_string())?;
        Ok(trained.into_record().into_bytes().map_err(|e| format!("{e:?}"))?.to_vec())
    };
    if trained()? == trained()? { Ok(()) } else { Err("two starts from one seed differ".into()) }
}

/// C9: a few AdamW steps lower the loss.
pub fn c9(config: &AnyMethod, base: &Base) -> Finding {
    let (mut tuner, batch) = (random(config, base)?, batch(base));
    let mut optim = Optim::new(AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0).build());
    let mut losses = vec![];
    for _ in 0..6 {
        let loss = loss(tuner.run(base, &batch).map_err(|e| e.to_string())?);
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = gradients(loss, &tuner)?;
        tuner = optim.step(tuner, gradients, |_| 1e-2);
    }
    if losses[5] < losses[0] { Ok(()) } else { Err(format!("losses {losses:?}")) }
}

/// C10: the device under test agrees with flex; if it is flex, another one that is compiled in does.
pub fn c10(config: &AnyMethod, here: &Base) -> Finding {
    #[cfg(feature = "flex")]
    {
        let flex = burn::tensor::Device::flex();
        let shape = SHAPES.iter().find(|s| crate::Shape::named(s).is_ok_and(|s| s == *here.shape()));
        let shape = shape.ok_or("a base of another shape")?;
        let here = match *here.device() == flex {
            false => here.clone(),
            true => {
                let name = crate::available().into_iter().find(|name| *name != "flex").ok_or("flex alone")?;
                base(shape, &crate::device(&name.replace('N', "0")).map_err(|e| e.to_string())?)
            }
        };
        let flex = base(shape, &flex);
        let there = run(&random(config, &flex)?.valid(), &flex, &batch(&flex))?;
        let found = run(&random(config, &here)?.valid(), &here, &batch(&here))?;
        println!("largest difference to flex: {:e}", difference(&found, &there));
        within(&found, &there, super::tolerances::TWO_BACKENDS, "flex and this device")
    }
    #[cfg(not(feature = "flex"))]
    Err(format!("flex is not compiled in beside {:?}, to compare {config:?} with", here.device()))
}

/// C11: a text is generated alike with and without what is kept of earlier tokens, greedily and by beams.
pub fn c11(config: &AnyMethod, base: &Base) -> Finding {
    let text = |e: crate::Error| e.to_string();
    let prompt = |example: Example| Prompt { ids: example.ids, task: example.task };
    let prompts: Vec<Prompt> = examples(base).into_iter().map(prompt).collect();
    let trained = Trained::new(random(config, base)?, Head::LanguageModel(LanguageModel {})).map_err(text)?;
    for num_beams in [1, 3] {
        let ids = |use_cache| {
            let config = GenerateConfig { use_cache, ..GenerateConfig::new(7).with_beams(num_beams) };
            generate(base, &trained, &prompts, &config, |_, _| Ok(())).map_err(text)
        };
        let (kept, again) = (ids(true)?, ids(false)?);
        if kept != again {
            return Err(format!("{num_beams} beams: {kept:?} with a cache, {again:?} without"));
        }
    }
    Ok(())
}

/// Stops a run after a step, as a kill would.
struct Kill(usize);

impl Observer for Kill {
    fn step(&mut self, report: &StepReport) -> crate::Result<()> {
        match report.step > self.0 {
            true => Err(crate::Error::config("run", "killed", "to go on")),
            false => Ok(()),
        }
    }
}

/// C12: a run of the trainer with all that the method does in it (its phases, loss, penalty, finish), dropout, accumulation and weight
/// decay ends with the same bits when it is killed and taken up with other threads; what it ends with is saved and loaded.
pub fn c12(config: &AnyMethod, base: &Base) -> Finding {
    let text = |e: crate::Error| e.to_string();
    let data: Vec<Example> = examples(base).into_iter().cycle().take(8).collect();
    let head = match data[0].label {
        Some(Label::Words(_)) => Head::LanguageModel(LanguageModel {}),
        _ => Head::classifier(base, 2, 3),
    };
    let start = || -> crate::Result<_> { Trained::new(config.init(base, 3)?, head.clone()) };
    if trainable(&start().map_err(text)?) == 0 {
        // A bare base under a head that holds nothing.
        return Ok(());
    }
    let settings = TrainConfig {
        gradient_accumulation_steps: 2,
        weight_decay: 0.1,
        dropout: Some(0.1),
        micro_rows: 12,
        threads: 1,
        ..TrainConfig::new(1e-2).with_batch_size(2).with_steps(6)
    };
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let run = |threads: usize, kill: Option<usize>| -> crate::Result<Trained<AnyTuner>> {
        let dir = folder.path().join("checkpoints");
        let mut trainer = Trainer::new(TrainConfig { threads, ..settings.clone() });
        if threads > 1 {
            let resume = dir.exists();
            trainer = trainer.with_checkpoints(Checkpoints { dir, every: Some(1), resume });
        }
        trainer.run(base, start()?, &data, None, &mut Kill(kill.unwrap_or(usize::MAX)))
    };
    let whole = run(1, None).map_err(text)?;
    for kill in [1, 3, 4] {
        if run(2, Some(kill)).is_ok() {
            return Err(format!("the run was not killed after step {kill}"));
        }
    }
    let taken_up = run(2, None).map_err(text)?;
    if tensors(&taken_up) != tensors(&whole) {
        return Err("a run that was killed ends with other bits".into());
    }
    let path = folder.path().join("adapter");
    io::peft::save(&path, config, &taken_up, base.shape(), &io::peft::Labels::default(), &[]).map_err(text)?;
    let (config, loaded) = io::peft::load_as(config, &path, base).map_err(text)?;
    same_logits(&taken_up, &loaded, base)?;
    let (saved, read) = (tensors(&config.to_saved(taken_up.tuner)), tensors(&loaded.tuner));
    match saved.iter().find(|(name, data)| read.get(*name) != Some(data)) {
        Some((name, _)) => Err(format!("{name} is loaded with other values than the run ended with")),
        None => Ok(()),
    }
}
