use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_core::io::peft::{Labels, load, save};
use peft_core::testing::golden::{Case, examples as golden_examples};
use peft_core::testing::tolerances::{REFERENCE, SAME_FUNCTION};
use peft_core::testing::{assert_close, base, batch, device, difference, examples, randomized, states};
use peft_core::train::{Probe, TrainConfig, Trainer};
use peft_core::view::{tensors, trainable};
use peft_core::{
    AnyMethod, AnyTuner, Architecture, Base, Head, LanguageModel, Method, Part, Shape, Source, Trained, Tuner, Wanted,
};
use peft_reparam::{BiasMode, LaplaceLora, LaplaceLoraConfig, Lora, LoraConfig, Prediction};

use super::bases;

fn lora() -> LoraConfig {
    LoraConfig::new(2).with_alpha(3.0)
}

fn config() -> LaplaceLoraConfig {
    LaplaceLoraConfig::of(&lora()).unwrap().with_directions(4).with_prediction(Prediction::Linearized, 300)
}

/// T5's examples are of words.
fn head(base: &Base) -> Head {
    match base.shape().architecture {
        Architecture::T5(_) => Head::LanguageModel(LanguageModel {}),
        _ => Head::classifier(base, 2, 7),
    }
}

fn source(config: &LoraConfig, base: &Base) -> Source {
    let lora = randomized(&config.init(base, 5).unwrap(), 5);
    let trained = Trained::new(AnyTuner::new(lora), head(base)).unwrap();
    Source { name: "finished".into(), config: config.clone().into(), trained }
}

fn fitted(config: &LaplaceLoraConfig, base: &Base) -> LaplaceLora {
    let fresh = config.init_from(base, 0, &[source(&lora(), base)]).unwrap();
    fresh.fitted(base, Probe::new(&head(base), &examples(base))).unwrap()
}

fn roberta() -> Base {
    base("roberta-tiny", &device())
}

fn logits<T: Tuner>(tuner: &T, base: &Base) -> Tensor<3> {
    let trained = Trained::new(tuner.clone(), head(base)).unwrap();
    trained.valid().logits(base, &batch(base)).unwrap()
}

#[test]
fn its_mean_is_the_lora() {
    for base in bases() {
        let (of, tuner) = (source(&lora(), &base), fitted(&config(), &base));
        let plain = of.tuner::<LoraConfig>().unwrap();
        assert_eq!(states(&tuner, &base).into_data(), states(plain, &base).into_data());
        let own = tensors(&tuner);
        for (name, data) in tensors(plain) {
            assert_eq!(own[&name.replace("factors.", "sites.")], data, "{name}");
        }
        assert!(tuner.variance() > 0.0 && trainable(&tuner) == 0);
    }
}

#[test]
fn without_a_variance_it_is_the_lora() {
    let base = roberta();
    let (of, tuner) = (source(&lora(), &base), fitted(&config(), &base));
    let plain = logits(of.tuner::<LoraConfig>().unwrap(), &base);
    assert_eq!(logits(&tuner.clone().with_variance(0.0), &base).into_data(), plain.clone().into_data());
    let probabilities = |logits: Tensor<3>| burn::tensor::activation::softmax(logits, 2);
    for prediction in [Prediction::Linearized, Prediction::Sampled] {
        let tuner = fitted(&config().with_prediction(prediction, 3), &base);
        let near = probabilities(logits(&tuner.clone().with_variance(1e-12), &base));
        assert_close(near, probabilities(plain.clone()), SAME_FUNCTION, "a prior of next to nothing");
        let far =
            difference(&probabilities(logits(&tuner, &base)).into_data(), &probabilities(plain.clone()).into_data());
        assert!(far > 10.0 * SAME_FUNCTION.0, "{prediction:?}: the posterior does nothing");
    }
}

/// A run finds the posterior, moves nothing, and begins with the head of the LoRA.
#[test]
fn a_run_finds_the_posterior_and_moves_nothing() {
    let (base, folder) = (roberta(), tempfile::tempdir().unwrap());
    let of = source(&lora(), &base);
    let method = AnyMethod::from(config()).from_sources([of.clone()]);
    let own = method.head(&Wanted { outputs: Some(2), words: None }, &base, 0).unwrap().unwrap();
    assert_eq!(tensors(&own), tensors(&head(&base)));
    let start = Trained::new(method.init(&base, 0).unwrap(), own).unwrap();
    let settings = TrainConfig { weight_decay: 0.1, ..TrainConfig::new(1e-2).with_batch_size(2).with_steps(4) };
    let trained = Trainer::new(settings).run(&base, start, &examples(&base), None, &mut ()).unwrap();
    assert_eq!(tensors(&trained.head), tensors(&head(&base)));
    let expected = fitted(&config(), &base);
    assert_eq!(tensors(&trained.tuner), tensors(&expected));
    let path = folder.path().join("adapter");
    save(&path, &method, &trained, base.shape(), &Labels::default(), &[]).unwrap();
    let (loaded_config, loaded) = load::<LaplaceLoraConfig>(&path, &base).unwrap();
    assert_eq!(tensors(&loaded.tuner), tensors(&expected));
    assert_eq!(logits(&loaded.tuner, &base).into_data(), logits(&expected, &base).into_data());
    assert_eq!(loaded_config.fitted_on, Some(format!("{:016x}", base.weights_fingerprint())));
    let other = Base::random(base.shape().clone(), 1, &device());
    let message = load::<LaplaceLoraConfig>(&path, &other).unwrap_err().to_string();
    assert!(
        message.contains("fitted_on") && message.contains("another")
            || message.contains("the base that it was found on"),
        "{message}"
    );
}

#[test]
fn predictions_are_those_of_a_derivation_in_float64() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/laplace-lora");
    let case = Case::open(dir.clone(), "roberta-classify");
    let (lora, trained) = case.load::<LoraConfig>();
    let config = LaplaceLoraConfig::of(&lora).unwrap().with_directions(6).with_prediction(Prediction::Linearized, 200);
    let (data, head) = (golden_examples(&dir.join("inputs.safetensors")), trained.head.clone());
    let source = Source { name: "adapter".into(), config: lora.into(), trained: trained.erased() };
    let tuner = config.init_from(&case.base, 0, &[source]).unwrap();
    let tuner = tuner.fitted(&case.base, Probe::new(&head, &data)).unwrap();
    let expected: f64 = case.expected("variance").iter::<f64>().sum();
    assert!((tuner.variance() / expected - 1.0).abs() <= f64::from(REFERENCE.0), "{} for {expected}", tuner.variance());
    case.check_logits_of(&Trained::new(tuner, head).unwrap());
}

#[test]
fn counts_are_nothing_and_bad_sources_are_named() {
    let base = roberta();
    assert_eq!(LaplaceLoraConfig::new(8).count(&Shape::named("roberta-base").unwrap()).unwrap(), 0);
    let told = |config: LaplaceLoraConfig, sources: &[Source]| {
        config.init_from(&base, 0, sources).map(drop).unwrap_err().to_string()
    };
    let one = source(&lora(), &base);
    for (config, sources, words) in [
        (config(), vec![], "sources: 0 "),
        (config(), vec![one.clone(), one.clone()], "sources: 2 "),
        (LaplaceLoraConfig::new(3).with_alpha(3.0), vec![one.clone()], "sources: finished "),
        (config().with_alpha(4.0), vec![one.clone()], "sources: finished "),
        (config().with_sites(Part::Query), vec![one.clone()], "sources: finished "),
        (config().with_directions(0), vec![one.clone()], "n_kfac: 0 "),
        (config().with_prediction(Prediction::Sampled, 0), vec![one.clone()], "samples: 0 "),
        (config(), vec![source(&lora().with_rslora(), &base)], "and nothing else"),
        (config(), vec![source(&lora().with_bias(BiasMode::All), &base)], "and nothing else"),
    ] {
        let message = told(config, &sources);
        assert!(message.contains(words), "{words} is not in: {message}");
    }
    // Of words there is no covariance.
    let words = Trained::new(fitted(&config(), &base), Head::LanguageModel(LanguageModel {})).unwrap();
    let message = words.valid().logits(&base, &batch(&base)).map(drop).unwrap_err().to_string();
    assert!(message.contains("prediction: linearized") && message.contains("sampled"), "{message}");
    // A LoRA that was never trained has B = 0, and A alone says nothing of the loss.
    let fresh: Lora = lora().init(&base, 0).unwrap();
    let idle = Source { trained: Trained::new(AnyTuner::new(fresh), head(&base)).unwrap(), ..one };
    let start = config().init_from(&base, 0, &[idle]).unwrap();
    assert!(start.fitted(&base, Probe::new(&head(&base), &[])).is_err());
    let nothing = TensorData::new(vec![0f32], [1]);
    assert_eq!(tensors(&config().init_from(&base, 0, &[source(&lora(), &base)]).unwrap())["variance"], nothing);
}
