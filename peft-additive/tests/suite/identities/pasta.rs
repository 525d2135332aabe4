use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Pasta, PastaConfig};
use peft_core::testing::golden::Case;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, device, fixtures::SHAPES, randomized};
use peft_core::view::{tensors, with_values};
use peft_core::{
    Adapter, Bare, Base, Batch, Example, Frame, Hooks, Method, Next, Part, Sequence, Site, Weight,
    random::{Noise, Random},
};
use proptest::prelude::*;

use super::{real, run};

/// Two ids are special, and two of a sequence's tokens get a vector.
const IDS: [u32; 2] = [7, 9];
/// In rows of four, three, two and no special tokens, one of them behind the end.
const TEXTS: [&[u32]; 4] = [&[7, 5, 9, 9, 12, 7], &[11, 9, 7, 7], &[7, 30, 31, 32, 9], &[5, 6, 8]];

fn config() -> PastaConfig {
    PastaConfig::new().with_special_tokens(IDS, 2)
}

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn random(base: &Base, seed: u64) -> Pasta {
    randomized(&config().init(base, seed).unwrap(), seed).valid()
}

fn texts(base: &Base) -> Batch {
    let examples: Vec<Example> = TEXTS
        .iter()
        .map(|ids| Example {
            ids: ids.to_vec(),
            label: peft_core::testing::examples(base)[0].label.clone(),
            ..Default::default()
        })
        .collect();
    let batch = base.batch(&examples.iter().collect::<Vec<_>>()).unwrap();
    // What is padding may be a special token too.
    let rows: Vec<i32> = TEXTS.iter().flat_map(|ids| (0..6).map(|i| ids.get(i).map_or(7, |id| *id as i32))).collect();
    Batch { ids: Tensor::from_data(TensorData::new(rows, [4, 6]), base.device()), ..batch }
}

/// What goes into each layer.
#[derive(Default)]
struct Tap(RefCell<BTreeMap<Site, Tensor<3>>>);

impl Hooks for Tap {
    fn layer(&self, _frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        self.0.borrow_mut().insert(site, x.hidden.clone());
        next(x)
    }
}

/// What goes into the layers of the method, without it and with it inside.
fn inputs(base: &Base, batch: &Batch, pasta: &Pasta) -> [BTreeMap<Site, Tensor<3>>; 2] {
    let (around, inside) = (Tap::default(), Tap::default());
    pasta.open(batch, |hooks| {
        base.forward(batch, &(&around, (hooks, &inside))).unwrap();
    });
    [around.0.into_inner(), inside.0.into_inner()]
}

#[test]
fn equals_the_derivation_of_pasta() {
    for (case, base) in [("pasta", "roberta-classify"), ("pasta-bert", "bert-classify"), ("pasta-t5", "t5")] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        Case::open(dir, base).check_method::<PastaConfig>();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The j-th special token of a sequence gets the j-th vector, in every layer; what is added is 0 elsewhere.
    #[test]
    fn only_special_tokens_get_a_vector(seed: u64) {
        for base in bases() {
            let (pasta, batch) = (random(&base, seed), texts(&base));
            let own = tensors(&pasta);
            let [before, after] = inputs(&base, &batch, &pasta);
            for (site, before) in before {
                let Some(vectors) = own.get(&format!("vectors.{site}")) else {
                    prop_assert_eq!(after[&site].to_data(), before.into_data());
                    continue;
                };
                let vectors: Vec<f32> = vectors.iter().collect();
                let [before, after] = [&before, &after[&site]].map(|x| x.to_data().iter::<f32>().collect::<Vec<_>>());
                for (row, ids) in TEXTS.iter().enumerate() {
                    let special: Vec<usize> = (0..ids.len()).filter(|i| IDS.contains(&ids[*i])).take(2).collect();
                    for i in 0..6 {
                        let at = |x: &[f32]| x[(row * 6 + i) * 24..][..24].to_vec();
                        match special.iter().position(|place| *place == i) {
                            None => prop_assert_eq!(at(&after), at(&before), "token {} of {}", i, row),
                            Some(j) => {
                                let expected: Vec<f32> = at(&before).iter().zip(&vectors[j * 24..]).map(|(h, e)| h + e).collect();
                                prop_assert_eq!(at(&after), expected, "token {} of {}", i, row);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_special_tokens_it_is_the_base(seed: u64) {
        for base in bases() {
            let batch = texts(&base);
            let bare = run(&Bare {}, &base, &batch).into_data();
            let pasta = random(&base, seed);
            let elsewhere = PastaConfig::new().with_special_tokens([60, 61], 2);
            let elsewhere = with_values(elsewhere.init(&base, 0).unwrap(), &tensors(&pasta)).unwrap();
            prop_assert_eq!(run(&elsewhere, &base, &batch).into_data(), bare.clone());
            let zero = |(name, data): (String, TensorData)| (name, TensorData::zeros::<f32, _>(data.shape().clone()));
            let zeros = with_values(pasta.clone(), &tensors(&pasta).into_iter().map(zero).collect()).unwrap();
            prop_assert_eq!(run(&zeros, &base, &batch).into_data(), bare.clone());
            prop_assert_ne!(run(&pasta, &base, &batch).into_data(), bare);
        }
    }

    #[test]
    fn vectors_act_from_their_layer_on(seed: u64, layer in 0..2usize) {
        for base in bases() {
            let (pasta, batch) = (random(&base, seed), texts(&base));
            let mut values = tensors(&pasta);
            let site = base.shape().sites(Part::Layer)[layer];
            let other = Random::new(seed, "other").normal_tensor::<2>([2, 24], 1.0, base.device());
            values.insert(format!("vectors.{site}"), other.into_data());
            let other = with_values(pasta.clone(), &values).unwrap();
            let [(_, first), (_, second)] = [pasta, other].map(|pasta| {
                let [before, after] = inputs(&base, &batch, &pasta);
                (before, after)
            });
            for (at, states) in first.into_iter().filter(|(at, _)| at.stack == site.stack) {
                prop_assert_eq!(states.into_data() == second[&at].to_data(), at.layer < layer, "{}", at);
            }
        }
    }

    /// All its tokens are special ones.
    #[test]
    fn a_first_layers_vector_is_an_embedding(seed: u64) {
        let base = base("llama-tiny", &device());
        let config = PastaConfig::new().with_special_tokens([7], 3);
        let mut values = tensors(&config.init(&base, seed).unwrap());
        let e: Tensor<1> = Random::new(seed, "e").normal_tensor([24], 1.0, base.device());
        for (name, data) in &mut values {
            let factor = f64::from(name == "vectors.decoder.0.layer");
            *data = (e.clone().unsqueeze::<2>().repeat_dim(0, 3) * factor).into_data();
        }
        let pasta = with_values(config.init(&base, seed).unwrap(), &values).unwrap();
        let words = base.weight(base.shape().words()).dense();
        let row = words.clone().narrow(0, 7, 1) + e.unsqueeze();
        let words = words.slice_assign([7..8, 0..24], row);
        let edited = base.clone().with_weight(base.shape().words(), Weight::Dense(words));
        let batch = texts(&base);
        let [found, expected] = [run(&pasta, &base, &batch), run(&Bare {}, &edited, &batch)].map(|x| real(x, &batch));
        assert_close(found, expected, SAME_FUNCTION, "edited");
    }
}

#[test]
fn dropout_acts_on_the_added_vector() {
    for base in bases().into_iter().map(|base| base.with_dropout(0.5)) {
        let site = base.shape().sites(Part::Layer)[1];
        let (pasta, noise) = (random(&base, 3), Noise { seed: 1, step: 2, samples: (0..4).collect() });
        let batch = texts(&base).with_noise(noise.clone());
        let x: Tensor<3> = Random::new(3, "x").normal_tensor([4, 6, 24], 1.0, base.device());
        let behind = |batch: &Batch| {
            let x = Sequence { hidden: x.clone(), mask: Default::default(), prompt: 0, offset: 0, past: 0 };
            pasta.open(batch, |hooks| hooks.layer(&base.frame(batch, hooks), site, x, &|x| x).hidden)
        };
        let added = behind(&texts(&base)) - x.clone();
        let expected = noise.dropout(added, 0.5, &format!("pasta.{site}"));
        assert_close(behind(&batch) - x.clone(), expected, SAME_FUNCTION, "dropped");
    }
}
