//! Labels as texts, on T5.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData, activation};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device};
use peft_core::{Bare, Base, Head, Label, LanguageModel, Text, Trained, Verbalizer};

const IDS: [&[u32]; 3] = [&[5, 9, 1], &[7, 1], &[3, 8, 4, 1]];

fn texts(values: [Option<f32>; 3]) -> Vec<Text> {
    IDS.into_iter().zip(values).map(|(ids, value)| Text { ids: ids.to_vec(), value }).collect()
}

fn trained(head: Head) -> Trained<Bare> {
    Trained::new(Bare {}, head).unwrap().valid()
}

fn verbalizer(values: [Option<f32>; 3]) -> Trained<Bare> {
    trained(Head::Verbalizer(Verbalizer::new(texts(values)).unwrap()))
}

/// The log-likelihood of each text after each of the examples, by the head for words alone: `[examples][texts]`.
fn likelihoods(base: &Base) -> Vec<Vec<f32>> {
    let words = trained(Head::LanguageModel(LanguageModel {}));
    let one = |example: &peft_core::Example, ids: &[u32]| {
        let label = Label::Words(ids.iter().map(|id| *id as i32).collect());
        let example = peft_core::Example { label: Some(label), ..example.clone() };
        let logits = words.logits(base, &base.batch(&[&example]).unwrap()).unwrap();
        let likelihoods: Vec<f32> = activation::log_softmax(logits, 2).into_data().iter().collect();
        let vocab = base.shape().vocab;
        ids.iter().enumerate().map(|(row, id)| likelihoods[row * vocab + *id as usize]).sum()
    };
    let examples = peft_core::testing::examples(base);
    examples.iter().map(|example| IDS.iter().map(|ids| one(example, ids)).collect()).collect()
}

#[test]
fn logits_are_the_likelihoods_of_the_texts() {
    let base = base("t5-tiny", &device());
    let (found, wanted) = (verbalizer([None; 3]).logits(&base, &batch(&base)).unwrap(), likelihoods(&base));
    let wanted = Tensor::from_data(TensorData::new(wanted.concat(), [wanted.len(), 1, 3]), base.device());
    assert_close(found, wanted, SAME_FUNCTION, "likelihoods");
}

#[test]
fn the_loss_is_that_of_the_words_of_the_labels() {
    let base = base("t5-tiny", &device());
    let (batch, all) = (batch(&base), likelihoods(&base));
    let classes: Vec<Label> = (0..all.len()).map(|i| Label::Class((2 * i + 1) % 3)).collect();
    let loss = |trained: Trained<Bare>, labels: &[Label]| {
        trained.loss(&base, &batch, &labels.iter().collect::<Vec<_>>()).unwrap()
    };
    let wanted: f32 = all.iter().enumerate().map(|(i, texts)| -texts[(2 * i + 1) % 3]).sum();
    let wanted = Tensor::<1>::from_floats([wanted], base.device());
    assert_close(loss(verbalizer([None; 3]), &classes), wanted.clone(), SAME_FUNCTION, "classes");
    // The nearest value counts.
    let values: Vec<Label> = (0..all.len()).map(|i| Label::Value([0.9, 2.4, -7.0][(2 * i + 1) % 3])).collect();
    let found = loss(verbalizer([Some(1.0), Some(2.0), Some(-3.0)]), &values);
    assert_close(found, wanted, SAME_FUNCTION, "values");
}

#[test]
fn the_value_is_that_of_the_likeliest_text() {
    let base = base("t5-tiny", &device());
    let values = [1.0, 2.0, -3.0];
    let found = verbalizer(values.map(Some)).logits(&base, &batch(&base)).unwrap();
    assert_eq!(found.dims(), [5, 1, 1]);
    let best = |texts: &Vec<f32>| values[(0..3).max_by(|a, b| texts[*a].total_cmp(&texts[*b])).unwrap()];
    assert_eq!(
        found.into_data().iter::<f32>().collect::<Vec<_>>(),
        likelihoods(&base).iter().map(best).collect::<Vec<_>>()
    );
}

#[test]
fn texts_that_cannot_be_told_apart_are_refused() {
    let error = |texts| Verbalizer::new(texts).unwrap_err().to_string();
    assert!(error(texts([Some(1.0), None, None])).contains("1 values for 3 texts"));
    assert!(error(texts([None; 3])[..1].to_vec()).contains("at least two"));
    assert!(error([texts([None; 3]), texts([None; 3])].concat()).contains("[5, 9, 1] twice"));
    let base = base("t5-tiny", &device());
    let loss = verbalizer([None; 3]).loss(&base, &batch(&base), &[&Label::Class(3)].repeat(5));
    assert!(loss.unwrap_err().to_string().contains("a class from 0 to 2"));
}
