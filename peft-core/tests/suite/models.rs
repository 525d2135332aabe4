//! The backbone against transformers, and the facts that the design stands on.

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_core::loss::{IGNORED, targets};
use peft_core::random::{Noise, Random};
use peft_core::testing::{assert_close, difference, golden, tolerances::REFERENCE};
use peft_core::{Bare, Base, Batch, Head, Label, Shape, Trained, Tuner, io::Pretrained, load::Checkpoint, testing};

fn expected(model: &str, name: &str) -> TensorData {
    let file = Checkpoint::open_file(&golden::model_dir(model).join("expected.safetensors")).unwrap();
    file.read_f32(name, file.shape(name).unwrap()).unwrap()
}

/// Compares the rows of real tokens; the reference computes those of padding too.
fn check(model: &str, files: &str) {
    let Pretrained { base, head, .. } = golden::model(files);
    let examples = golden::examples(&golden::model_dir(model).join("inputs.safetensors"));
    let batch = Batch::new(&examples, base.shape().pad, base.device()).unwrap();
    let hidden = Bare {}.run(&base, &batch).unwrap();
    let compare = |found: Tensor<3>, name: &str| {
        let found_width = found.dims()[2];
        let wanted = expected(model, name);
        let wanted: Tensor<3> = match found.dims()[1] {
            1 => Tensor::<2>::from_data(wanted, base.device()).unsqueeze_dim(1),
            _ => Tensor::from_data(wanted, base.device()),
        };
        for (i, example) in examples.iter().enumerate() {
            let rows = example.ids.len().min(found.dims()[1]);
            let cut = |t: &Tensor<3>| t.clone().slice([i..i + 1, 0..rows, 0..found_width]);
            assert_close(cut(&found), cut(&wanted), REFERENCE, &format!("{files}: {name} of sequence {i}"));
        }
    };
    compare(hidden.states, "hidden");
    let head = head.unwrap();
    assert_eq!(matches!(head, Head::States(_)), model == "bert-bare", "{model}");
    let name = if model == "bert-bare" { "hidden" } else { "logits" };
    let trained = Trained::new(Bare {}, head).unwrap().valid();
    compare(trained.logits(&base, &batch).unwrap(), name);
}

#[test]
fn logits_equal_those_of_transformers() {
    for model in [
        "roberta-classify",
        "roberta-regress",
        "roberta-mlm",
        "roberta-tokens",
        "roberta-answers",
        "bert-classify",
        "bert-mlm",
        "bert-tokens",
        "bert-answers",
        "bert-bare",
    ] {
        check(model, model);
    }
}

#[test]
fn the_loss_of_masked_words_is_that_of_their_rows() {
    let Pretrained { base, head, .. } = golden::model("roberta-mlm");
    let examples = golden::examples(&golden::model_dir("roberta-mlm").join("inputs.safetensors"));
    let batch = Batch::new(&examples, base.shape().pad, base.device()).unwrap();
    let trained = Trained::new(Bare {}, head.unwrap()).unwrap().valid();
    let logits = trained.logits(&base, &batch).unwrap();
    // Every second token of each sequence; none of the first one.
    let word = |i: usize, token: usize| if i == 0 || token % 2 == 1 { IGNORED } else { (5 + 3 * token) as i32 };
    let labels: Vec<Label> = (0..examples.len())
        .map(|i| Label::Words((0..examples[i].ids.len()).map(|token| word(i, token)).collect()))
        .collect();
    let (mut expected, mut count) = (0.0, 0);
    for i in 1..examples.len() {
        for token in (0..examples[i].ids.len()).step_by(2) {
            let row: Vec<f64> =
                logits.clone().slice([i..i + 1, token..token + 1]).into_data().iter::<f32>().map(f64::from).collect();
            expected += row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[word(i, token) as usize];
            count += 1;
        }
    }
    let labels: Vec<&Label> = labels.iter().collect();
    let found = f64::from(trained.loss(&base, &batch, &labels).unwrap().into_scalar::<f32>());
    assert!((found / expected - 1.0).abs() < f64::from(REFERENCE.0), "{found} {expected}");
    assert_eq!(targets(labels.iter().copied(), 0), count);
    let none = Label::Words(vec![IGNORED; 2].into());
    assert_eq!(trained.loss(&base, &batch, &[&none]).unwrap().into_scalar::<f32>(), 0.0);
    for wrong in [Label::Words(vec![97].into()), Label::Words(vec![1; 99].into()), Label::Class(0)] {
        assert!(trained.loss(&base, &batch, &[&wrong]).unwrap_err().to_string().contains("label"));
    }
}

#[test]
fn every_form_of_checkpoint_loads() {
    check("roberta-classify", "roberta-classify-sharded");
    check("roberta-classify", "roberta-classify-bin");
    check("bert-classify", "bert-old-names");
}

/// The first test of the design: a plain tensor is a constant to an autodiff one, whatever is computed with both.
#[test]
fn a_frozen_plain_tensor_costs_no_gradient() {
    let plain = testing::device();
    let w = Random::new(0, "w").normal_tensor([5, 7], 1.0, &plain);
    let a = Param::from_tensor(Random::new(0, "a").normal_tensor([3, 5], 1.0, &plain.clone().autodiff()));
    let y = a.val().matmul(w.clone());
    assert!(y.is_autodiff() && !w.is_autodiff() && !w.matmul(Tensor::ones([7, 2], &plain)).is_autodiff());
    let gradients = GradientsParams::from_grads((y.clone() * y).sum().backward(), &a);
    assert_eq!(gradients.len(), 1);
    // d/dA sum((A W)^2) = 2 A W W^T
    let w = Random::new(0, "w").normal_tensor([5, 7], 1.0, &plain);
    let expected = a.val().inner().matmul(w.clone()).matmul(w.transpose()) * 2.0;
    let found = gradients.get::<2>(a.id).unwrap();
    assert!(!found.is_autodiff());
    assert!(difference(&found.into_data(), &expected.into_data()) < REFERENCE.0);
}

/// Each dropout of a model acts while training, and only there; all of it is a function of the seed.
#[test]
fn every_dropout_acts() {
    let device = testing::device();
    let loss = |change: &dyn Fn(&mut Shape), seed: Option<u64>| {
        let mut shape = Shape::named("roberta-tiny").unwrap().with_dropout(0.0);
        change(&mut shape);
        let base = Base::random(shape, 0, &device);
        let examples = testing::examples(&base);
        let examples: Vec<_> = examples.iter().collect();
        let batch = base.batch(&examples).unwrap();
        let batch = match seed {
            Some(seed) => batch.with_noise(Noise { seed, step: 0, samples: (0..examples.len() as u32).collect() }),
            None => batch,
        };
        let labels: Vec<&Label> = examples.iter().filter_map(|example| example.label.as_ref()).collect();
        let trained = Trained::new(Bare {}, Head::classifier(&base, 2, 0)).unwrap().valid();
        trained.loss(&base, &batch, &labels).unwrap().into_scalar::<f32>()
    };
    let none = loss(&|_| {}, None);
    assert_eq!(loss(&|_| {}, Some(1)), none);
    let places: [fn(&mut Shape); 3] =
        [|shape| shape.dropout = 0.5, |shape| shape.attention_dropout = 0.5, |shape| shape.classifier_dropout = 0.5];
    for (i, place) in places.into_iter().enumerate() {
        assert_eq!(loss(&place, None), none, "place {i} outside training");
        let (a, b) = (loss(&place, Some(1)), loss(&place, Some(2)));
        assert!(a != none && b != none && a != b, "place {i}: {none} {a} {b}");
        assert_eq!(loss(&place, Some(1)), a);
    }
}
