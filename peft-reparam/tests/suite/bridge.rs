//! Our forms on a Transformer of burn's own, which knows nothing of this library.

use std::collections::BTreeMap;

use burn::module::{Lora as BurnLora, Module};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Tensor, TensorData};
use peft_core::random::Random;
use peft_core::testing::tolerances::{FINITE_DIFFERENCE, SAME_FUNCTION};
use peft_core::testing::{device, difference, golden::named, randomized};
use peft_core::train::Optim;
use peft_core::view::{tensors, trainable, trained, with_values};
use peft_reparam::bridge::{Form, KronForm, LoraForm, Reparameterize, SaidForm};

const QUERY: &str = r"mha\.query\.weight";

fn model() -> TransformerEncoder {
    let config = TransformerEncoderConfig::new(12, 20, 3, 2).with_dropout(0.0);
    let model: TransformerEncoder = config.init(&device().autodiff());
    let values = tensors(&model).into_iter().map(|(name, data)| {
        let values = Random::new(1, &name).normal_tensor([data.shape().num_elements()], 0.4, &device()).into_data();
        (name, TensorData::new(values.iter::<f32>().collect(), data.shape().clone()))
    });
    let values: BTreeMap<String, TensorData> = values.collect();
    with_values(model, &values).unwrap()
}

fn output(model: &TransformerEncoder) -> Tensor<3> {
    let input = Random::new(2, "input").normal_tensor([3, 5, 12], 1.0, &device());
    model.forward(TransformerEncoderInput::new(Tensor::from_inner(input)))
}

fn loss(model: &TransformerEncoder) -> Tensor<1> {
    let output = output(model);
    let weights = Random::new(3, "weights").normal_tensor(output.dims(), 1.0, &device());
    (output * weights).mean()
}

fn on<F: Form>(form: F) -> TransformerEncoder {
    Reparameterize::new(form, QUERY, 5).unwrap().apply(model()).unwrap()
}

fn gradients(model: &TransformerEncoder) -> BTreeMap<String, TensorData> {
    named(model, &GradientsParams::from_grads(loss(model).backward(), model))
}

/// At the start nothing changes; the numbers that are trained are those of the forms; a few steps lower the loss and move nothing
/// else.
#[test]
fn forms_start_as_the_module_and_train_alone() {
    fn check<F: Form>(form: F, count: usize) {
        let (before, start) = (tensors(&model()), on(form));
        assert_eq!(output(&start).into_data(), output(&model()).into_data(), "the start is another function");
        assert_eq!(trainable(&start), count);
        let (mut moved, mut optim) = (start.clone(), Optim::new(AdamWConfig::new().with_weight_decay(0.1).build()));
        for _ in 0..5 {
            let gradients = GradientsParams::from_grads(loss(&moved).backward(), &moved);
            moved = optim.step(moved, gradients, |_| 1e-2);
        }
        assert!(loss(&moved).into_scalar::<f32>() < loss(&start).into_scalar::<f32>());
        let after = tensors(&moved);
        assert!(before.iter().all(|(name, data)| after[name] == *data), "something frozen has moved");
        let (own, start) = (trained(&moved), tensors(&start));
        assert!(own.keys().all(|name| after[name] != start[name]), "something has not moved: {own:?}");
    }
    check(LoraForm::new(2, 6.0).unwrap(), 2 * 2 * (12 + 12));
    check(KronForm::new(5, 3, 1.5).unwrap(), 2 * (4 * 3 + 3 * 4));
    check(SaidForm::new(7).unwrap(), 2 * 7);
}

/// With the same factors: the same values and gradients, to the bit.
#[test]
fn lora_is_that_of_burn() {
    let ours = randomized(&on(LoraForm::new(2, 6.0).unwrap()), 4);
    let theirs = model().apply_lora(BurnLora::new(2, 6.0));
    let values = tensors(&ours);
    // Burn's is on every matrix: the others' second factors stay 0.
    let theirs = with_values(theirs, &values).unwrap();
    assert_eq!(output(&ours).into_data(), output(&theirs).into_data());
    assert_ne!(output(&ours).into_data(), output(&model()).into_data());
    let (own, all) = (gradients(&ours), gradients(&theirs));
    assert_eq!(own.len(), 4);
    for (name, gradient) in own {
        assert!(difference(&gradient, &all[&name]) <= SAME_FUNCTION.0, "{name}");
    }
}

/// Each block of the update is an element of A times B.
#[test]
fn a_kronecker_form_is_its_product() {
    let form = KronForm::new(5, 3, 1.5).unwrap();
    let moved = randomized(&on(form), 4);
    let (own, name) = (tensors(&moved), "layers.1.mha.query.weight");
    let numbers = |name: &str| own[name].iter::<f32>().collect::<Vec<_>>();
    let (w, a, b) = (numbers(name), numbers(&format!("{name}.kron.a")), numbers(&format!("{name}.kron.b")));
    assert_eq!([a.len(), b.len()], [4 * 3, 3 * 4]);
    let element = |i: usize, j: usize| w[12 * i + j] + 1.5 * a[3 * (i / 3) + j / 4] * b[4 * (i % 3) + j % 4];
    let expected: Vec<f32> = (0..144).map(|at| element(at / 12, at % 12)).collect();
    let found = moved.layers[1].mha.query.weight.val().into_data();
    assert!(difference(&found, &TensorData::new(expected, [12, 12])) <= SAME_FUNCTION.0);
}

/// The map is linear: the loss along a direction of theta changes as the gradient says, and twice theta is twice the update.
#[test]
fn a_said_form_is_a_linear_map() {
    let moved = randomized(&on(SaidForm::new(7).unwrap()), 4);
    let (own, name) = (tensors(&moved), "layers.0.mha.query.weight");
    let theta: Vec<f32> = own[&format!("{name}.said.theta")].iter().collect();
    let at = |factor: f32| {
        let scaled = theta.iter().map(|x| x * factor).collect::<Vec<_>>();
        let scaled = BTreeMap::from([(format!("{name}.said.theta"), TensorData::new(scaled, [7]))]);
        with_values(moved.clone(), &scaled).unwrap()
    };
    let update = |factor: f32| {
        let weight = at(factor).layers[0].mha.query.weight.val().inner();
        (weight - Tensor::from_data(own[name].clone(), &device())).into_data()
    };
    let doubled: Vec<f32> = update(1.0).iter::<f32>().map(|x| 2.0 * x).collect();
    assert!(difference(&update(2.0), &TensorData::new(doubled, [12, 12])) <= SAME_FUNCTION.0);
    assert!(update(1.0).iter::<f32>().any(|x| x.abs() > 0.01));
    let gradient: f32 =
        gradients(&moved)[&format!("{name}.said.theta")].iter::<f32>().zip(&theta).map(|(g, t)| g * t).sum();
    let h = 1e-2;
    let slope = (loss(&at(1.0 + h)).into_scalar::<f32>() - loss(&at(1.0 - h)).into_scalar::<f32>()) / (2.0 * h);
    assert!((slope - gradient).abs() <= FINITE_DIFFERENCE.0 * slope.abs().max(0.1), "{slope} against {gradient}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let messages = [
        (LoraForm::new(0, 1.0).err(), "rank"),
        (LoraForm::new(2, f64::NAN).err(), "alpha"),
        (KronForm::new(0, 1, 1.0).err(), "rows, columns"),
        (KronForm::new(1, 1, 0.0).err(), "scale"),
        (SaidForm::new(0).err(), "intrinsic_dim"),
        // Before memory is asked for.
        (LoraForm::new(usize::MAX, 4.0).err(), "rank"),
        (SaidForm::new(usize::MAX).err(), "intrinsic_dim"),
        (Reparameterize::new(SaidForm::new(3).unwrap(), "(", 0).err(), "pattern"),
        (Reparameterize::new(SaidForm::new(3).unwrap(), "quer", 0).unwrap().apply(model()).err(), "mha.query.weight"),
    ];
    for (error, word) in messages {
        let message = error.unwrap().to_string();
        assert!(message.contains(word), "{message}");
    }
}

/// A second form on a matrix would leave nothing that is trained; one on others leaves the first as it is.
#[test]
fn a_matrix_takes_one_form() {
    let twice = |pattern| Reparameterize::new(KronForm::new(2, 3, 1.0).unwrap(), pattern, 6).unwrap();
    let first = on(LoraForm::new(2, 4.0).unwrap());
    for pattern in [QUERY, r"mha\.(query|key)\.weight"] {
        let error = twice(pattern).apply(first.clone()).unwrap_err().to_string();
        assert!(error.contains("query.weight has one already"), "{error}");
    }
    let both = twice(r"mha\.key\.weight").apply(first.clone()).unwrap();
    let alone = twice(r"mha\.key\.weight").apply(model()).unwrap();
    assert_eq!(trainable(&both), trainable(&first) + trainable(&alone));
    assert_eq!(output(&both).into_data(), output(&model()).into_data());
    // The factors of a form are matrices too, but none of the module's.
    assert!(twice(r"lora\.a").apply(first).is_err());
}
