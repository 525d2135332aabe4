use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData, activation};
use peft_additive::{SlotInit, Warp, WarpConfig};
use peft_core::data::Dataset;
use peft_core::testing::golden::{Case, model};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, examples, fixtures::ENCODERS, randomized};
use peft_core::train::{TrainConfig, Trainer};
use peft_core::view::{tensors, trainable};
use peft_core::{AnyMethod, Bare, Base, Example, Head, Method, Trained, Wanted, random::Random};
use proptest::prelude::*;

use super::bottleneck::values;

const MASK: u32 = 7;

fn bases() -> Vec<Base> {
    ENCODERS.iter().map(|shape| base(shape, &device())).collect()
}

#[test]
fn equals_the_derivation_of_warp() {
    for (case, base) in [("warp", "roberta-mlm"), ("warp-bert", "bert-mlm")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        Case::open(dir, base).check_method::<WarpConfig>();
    }
}

/// A model's head for masked words, at random.
fn words(base: &Base, seed: u64) -> Head {
    randomized(&Head::masked_lm(base, seed), seed).valid()
}

/// The vectors of so many classes.
fn own_head(config: &WarpConfig, base: &Base, words: &Head, outputs: usize) -> Head {
    let wanted = Wanted { outputs: Some(outputs), words: Some(words) };
    config.head(&wanted, base, 1, &[]).unwrap().unwrap()
}

/// What a text is made of, each piece with its type.
type Pieces<'a> = Vec<(&'a [u32], u32)>;

/// The logits of the classes at the mask, `[classes]`.
fn classes(config: &WarpConfig, base: &Base, head: &Head, example: &Example) -> Tensor<1> {
    let warp = config.init(base, 1).unwrap();
    let head = own_head(config, base, head, config.verbalizers.len());
    let trained = Trained::new(warp, head).unwrap();
    trained.valid().logits(base, &base.batch(&[example]).unwrap()).unwrap().reshape([config.verbalizers.len()])
}

/// Those of the model itself for these words at a token of a text.
fn at_token(base: &Base, head: &Head, example: &Example, token: usize, words: &[usize]) -> Tensor<1> {
    let trained = Trained::new(Bare {}, head.clone()).unwrap();
    let logits = trained.valid().logits(base, &base.batch(&[example]).unwrap()).unwrap();
    let all: Vec<f32> = logits.narrow(1, token, 1).into_data().iter().collect();
    let of: Vec<f32> = words.iter().map(|word| all[*word]).collect();
    Tensor::from_data(TensorData::new(of, [words.len()]), base.device())
}

/// Two texts and the special tokens around them, of types 0 and 1 on a BERT.
fn two_texts(base: &Base, seed: u64, [a, b]: [usize; 2]) -> ([Vec<u32>; 2], Example) {
    let mut random = Random::new(seed, "texts");
    let mut text = |n: usize| (0..n).map(|_| (10 + random.below(base.shape().vocab - 10)) as u32).collect::<Vec<_>>();
    let texts = [text(a), text(b)];
    let ids = [&[4][..], &texts[0], &[2], &texts[1], &[2]].concat();
    let types = (base.shape().types > 1).then(|| (0..ids.len()).map(|i| u32::from(i > a + 1)).collect());
    (texts, Example { ids, types, ..Default::default() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn a_template_of_words_is_that_text(seed: u64, a in 1..5usize, b in 1..5usize) {
        for base in bases() {
            let (head, verbalizers) = (words(&base, seed), [11, 30, 52]);
            let ([first, second], example) = two_texts(&base, seed, [a, b]);
            let w = [61u32, 62, 63, 64];
            let config = |template: &str, n: usize| {
                let config = WarpConfig::new(template).with_mask(MASK as usize);
                config.with_words(w[..n].iter().map(|id| *id as usize)).with_verbalizers(verbalizers)
            };
            // What the text is, piece by piece, and which piece is of the second type.
            let texts: [(WarpConfig, Pieces<'_>); 3] = [
                (
                    config("1 {text} 1 <mask> 1 {pair} 1", 4),
                    vec![(&[4], 0), (&w[..1], 0), (&first, 0), (&w[1..2], 0), (&[MASK], 0), (&w[2..3], 0), (&[2], 0),
                         (&second, 1), (&w[3..], 0), (&[2], 1)],
                ),
                (
                    config("<mask> 2 {text}", 2),
                    vec![(&[4], 0), (&[MASK], 0), (&w[..2], 0), (&first, 0), (&[2], 0), (&second, 1), (&[2], 1)],
                ),
                (
                    config("{text} {pair} 3 <mask>", 3),
                    vec![(&[4], 0), (&first, 0), (&[2], 0), (&second, 1), (&w[..3], 0), (&[MASK], 0), (&[2], 1)],
                ),
            ];
            for (config, pieces) in texts {
                let ids: Vec<u32> = pieces.iter().flat_map(|(ids, _)| ids.to_vec()).collect();
                let kinds = pieces.iter().flat_map(|(ids, kind)| vec![*kind; ids.len()]).collect();
                let token = ids.iter().position(|id| *id == MASK).unwrap();
                let types = example.types.as_ref().map(|_| kinds);
                let hard = Example { ids, types, ..Default::default() };
                let expected = at_token(&base, &head, &hard, token, &verbalizers);
                assert_close(classes(&config, &base, &head, &example), expected, SAME_FUNCTION, &config.template);
            }
        }
    }

    /// The mask's word in a text is a word, wherever it stands.
    #[test]
    fn words_of_a_text_are_no_slots(seed: u64, at in 1..4usize) {
        for base in bases() {
            let head = words(&base, seed);
            let (_, mut example) = two_texts(&base, seed, [4, 1]);
            example.ids[at] = MASK;
            let config = WarpConfig::new("{text} <mask> 1").with_mask(MASK as usize).with_words([61]);
            let config = config.with_verbalizers([11, 30]);
            let mut hard = example.clone();
            let end = hard.ids.len() - 1;
            hard.ids.splice(end..end, [MASK, 61]);
            hard.types.as_mut().into_iter().for_each(|types| drop(types.splice(end..end, [0, 0])));
            let expected = at_token(&base, &head, &hard, end, &[11, 30]);
            assert_close(classes(&config, &base, &head, &example), expected, SAME_FUNCTION, "a mask of the text");
        }
    }

    #[test]
    fn a_vector_for_all_classes_changes_nothing(seed: u64) {
        for base in bases() {
            let config = WarpConfig::new("1 {text} <mask>").with_mask(MASK as usize).with_verbalizers([11, 30, 52]);
            let Head::AtMask(own) = own_head(&config, &base, &words(&base, seed), 3) else {
                unreachable!("the head of WARP")
            };
            let warp: Warp = randomized(&config.init(&base, 1).unwrap(), seed);
            let probabilities = |head: Head| {
                let trained = Trained::new(warp.clone(), head).unwrap();
                activation::softmax(trained.valid().logits(&base, &batch(&base)).unwrap(), 2)
            };
            let moved = {
                let mut head = own.clone();
                let all: Tensor<2> = Random::new(seed, "all").normal_tensor([24, 1], 0.3, base.device());
                head.out.weight = head.out.weight.map(|weight| Tensor::from_inner(weight.inner() + all).require_grad());
                head
            };
            assert_close(probabilities(Head::AtMask(moved)), probabilities(Head::AtMask(own)), SAME_FUNCTION, "all");
        }
    }
}

/// Slots that are drawn have the table's mean and spread; a class without a word is drawn as torch starts a linear map.
#[test]
fn starts_are_those_of_the_reference() {
    let base = base("roberta-tiny", &device());
    let table = values(&base.weight(base.shape().words()).dense().into_data());
    let moments = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
    };
    let config = WarpConfig { slot_init: SlotInit::Random, ..WarpConfig::new("30 {text} <mask>").with_mask(5) };
    let drawn = values(&tensors(&config.init(&base, 1).unwrap())["slots"]);
    let ((mean, spread), (of_mean, of_spread)) = (moments(&drawn), moments(&table));
    assert!(
        (mean - of_mean).abs() < 0.2 * of_spread && (0.85..1.15).contains(&(spread / of_spread)),
        "{mean} {spread}"
    );
    let masks = values(&tensors(&WarpConfig::new("2 {text} <mask>").with_mask(5).init(&base, 1).unwrap())["slots"]);
    assert_eq!(masks, table[5 * 24..6 * 24].repeat(2));
    let Head::AtMask(head) = own_head(&config, &base, &words(&base, 1), 40) else { unreachable!() };
    let vectors = values(&head.out.weight.val().into_data());
    let bound = 1.0 / 24f64.sqrt();
    assert!(vectors.iter().all(|x| x.abs() <= bound) && vectors.iter().any(|x| x.abs() > 0.9 * bound));
}

/// From a model for masked words to a directory and back: only slots and vectors are trained.
#[test]
fn a_run_trains_slots_and_vectors() {
    for name in ["roberta-mlm", "bert-mlm"] {
        let model = model(name);
        let texts = examples(&base("bert-tiny", &device())).into_iter();
        let texts = texts.map(|text| Example { types: None, task: 0, ..text }).collect();
        let data = Dataset { examples: texts, classes: vec!["no".into(), "yes".into()], ..Dataset::default() };
        let config = WarpConfig::new("2 {text} <mask> 1").with_mask(MASK as usize).with_verbalizers([11, 30]);
        let trainer = Trainer::new(TrainConfig::new(1e-2).with_steps(3));
        let method = AnyMethod::new(config.clone());
        let start = trainer.start(&model, &method, &data).unwrap();
        assert_eq!(trainable(&start), 3 * 24 + config.head_count(model.base.shape(), 2));
        let tuned = trainer.fit(&model, config, &data).unwrap();
        let Head::AtMask(head) = &tuned.trained.head else { panic!("{name}: another head") };
        let Head::AtMask(first) = &start.head else { panic!("{name}: another head") };
        assert_eq!(tensors(&head.dense), tensors(&first.dense));
        assert_ne!(tensors(&head.out), tensors(&first.out));
        assert_ne!(tensors(&tuned.trained.tuner), tensors(&start.tuner));
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("adapter");
        tuned.save(&dir).unwrap();
        let (_, loaded) = peft_core::io::peft::load::<WarpConfig>(&dir, &tuned.base).unwrap();
        assert_eq!(tensors(&loaded.erased()), tensors(&tuned.trained));
        assert_eq!(trainable(&peft_core::io::peft::load::<WarpConfig>(&dir, &tuned.base).unwrap().1.head), 2 * 25);
    }
}
