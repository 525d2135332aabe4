//! Packed matrices in a base: products with them and gradients are those of the decoded matrix.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use peft_core::random::Random;
use peft_core::testing::fixtures::SHAPES;
use peft_core::testing::tolerances::{BF16_PRODUCT, SAME_FUNCTION, SAME_GRADIENT};
use peft_core::testing::{assert_close, base, device, states};
use peft_core::{Bare, Base, Compute, Packed, Place, Weight};
use peft_quant::bitsandbytes::Quantized;
use peft_quant::{Codec, Cost, Grouped, Matrix, Packing, Scheme, is_packed, quantized};
use safetensors::Dtype;

use crate::common::assert_error;

const SCHEMES: [&str; 5] = ["nf4", "nf4-double", "fp4", "fp4-double", "int8"];

fn draw(name: &str, count: usize, std: f64) -> Vec<f32> {
    let mut random = Random::new(5, name);
    (0..count).map(|_| (std * random.normal()) as f32).collect()
}

fn pack(scheme: &str, dims: [usize; 2], dtype: Dtype) -> Quantized {
    // Sums of as many products as there are inputs stay near 1.
    let values = draw("w", dims[0] * dims[1], 1. / (dims[1] as f64).sqrt());
    scheme.parse::<Scheme>().unwrap().pack(&values, dims, dtype).unwrap()
}

/// The matrix decoded at once, as burn's own operations have it.
fn decoded(codec: &impl Codec, device: &Device) -> Tensor<2> {
    let dims = codec.dims();
    Tensor::<2>::from_data(TensorData::new(codec.rows(0..dims[0]), [dims[0], dims[1]]), device).transpose()
}

fn check(codec: impl Codec, what: &str) {
    let device = device();
    let dense = decoded(&codec, &device);
    let [inputs, outputs] = dense.dims();
    let packed: Arc<dyn Packed> = Matrix::packed(codec, &device).unwrap();
    assert_eq!(packed.dims(), [inputs, outputs]);
    let packed = Weight::Packed(packed);
    packed.dense().into_data().assert_eq(&dense.clone().into_data(), true);
    // Up to five rows go through other loops than more.
    for tokens in [2, 5] {
        check_products(&packed, &dense, tokens, what);
    }
}

fn check_products(packed: &Weight, dense: &Tensor<2>, tokens: usize, what: &str) {
    let ([inputs, outputs], device) = (dense.dims(), device());
    let tensor = |name: &str, dims: [usize; 3]| {
        Tensor::<3>::from_data(TensorData::new(draw(name, dims.iter().product(), 1.), dims), &device)
    };
    let (x, c) = (tensor("x", [2, tokens, inputs]), tensor("c", [2, tokens, outputs]));
    let bias = Tensor::<1>::from_data(TensorData::new(draw("b", outputs, 1.), [outputs]), &device);
    for bias in [None, Some(bias)] {
        let run = |w: &Weight, x: Tensor<3>| w.linear(x, bias.clone());
        let plain = run(packed, x.clone());
        assert!(!plain.is_autodiff());
        assert_close(plain, run(&Weight::Dense(dense.clone()), x.clone()), SAME_FUNCTION, what);
        let gradient = |w: &Weight| {
            // Not one block in memory, as the heads of an attention leave it.
            let leaf = Tensor::from_inner(x.clone().swap_dims(0, 1)).require_grad();
            let y = run(w, leaf.clone().swap_dims(0, 1));
            let gradient = leaf.grad(&(y.clone() * c.clone()).sum().backward()).unwrap();
            (y.inner(), gradient)
        };
        let ((y, dx), (expected, expected_dx)) = (gradient(packed), gradient(&Weight::Dense(dense.clone())));
        assert_close(y, expected, SAME_FUNCTION, what);
        let largest = expected_dx.clone().abs().max().into_scalar::<f32>();
        assert_close(dx / largest, expected_dx / largest, SAME_GRADIENT, what);
    }
}

#[test]
fn products_and_gradients_are_those_of_the_decoded_matrix() {
    for scheme in SCHEMES {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            check(pack(scheme, [37, 52], dtype), &format!("{scheme} {dtype}"));
        }
    }
    for bits in [2, 3, 4, 8] {
        let values = draw("w", 21 * 96, 0.1);
        check(Grouped::encode(&values, [21, 96], bits, 32, false).unwrap(), &format!("{bits} bits"));
    }
}

/// What a product asks for, wherever it begins and ends.
#[test]
fn tiles_are_parts_of_the_rows() {
    let codecs = SCHEMES.map(|scheme| Box::new(pack(scheme, [8, 672], Dtype::BF16)) as Box<dyn Codec>);
    let mut grouped =
        [2, 3, 4, 8].map(|bits| Grouped::encode(&draw("w", 8 * 672, 0.1), [8, 672], bits, 96, false).unwrap());
    // Groups that are not consecutive inputs.
    let mut words = grouped[2].to_words(Packing::GptqV2).unwrap();
    words.g_idx = Some((0..672).map(|input| input * 5 % 7).collect());
    grouped[0] = Grouped::from_words([8, 672], 4, 96, Packing::GptqV2, &words).unwrap();
    assert!(grouped[0].groups().is_some());
    for codec in codecs.into_iter().chain(grouped.map(|codec| Box::new(codec) as Box<dyn Codec>)) {
        let all = codec.rows(0..8);
        for columns in [0..672, 64..320, 0..1, 671..672, 37..613, 96..101] {
            let mut tile = vec![f32::NAN; 3 * columns.len()];
            codec.tile(2..5, columns.clone(), &mut tile);
            let expected: Vec<f32> = (2..5).flat_map(|row| all[row * 672..][columns.clone()].to_vec()).collect();
            assert_eq!(tile, expected, "{} {columns:?}", codec.kind());
        }
    }
}

/// In bf16 products are off by the rounding of their factors, and gradients too; of dense matrices as of packed ones.
#[test]
fn products_in_bf16_are_near_and_no_others() {
    let device = device();
    let codec = pack("nf4-double", [130, 300], Dtype::F32);
    let dense = Weight::Dense(decoded(&codec, &device));
    let packed = Weight::Packed(Matrix::packed(codec, &device).unwrap());
    let tensor = |name: &str, dims: [usize; 3]| {
        Tensor::<3>::from_data(TensorData::new(draw(name, dims.iter().product(), 1.), dims), &device)
    };
    let (x, c) = (tensor("x", [2, 5, 300]), tensor("c", [2, 5, 130]) / (130f32).sqrt());
    let run = |w: &Weight, compute: Compute| {
        let leaf = Tensor::from_inner(x.clone()).require_grad();
        let y = w.linear_in(compute, leaf.clone(), None);
        let gradient = leaf.grad(&(y.clone() * c.clone()).sum().backward()).unwrap();
        [y.inner(), gradient * (300f32).sqrt()]
    };
    let exact = run(&dense, Compute::F32);
    let [dense, packed] = [dense, packed].map(|w| run(&w, Compute::Bf16));
    for ((exact, dense), packed) in exact.into_iter().zip(dense).zip(packed) {
        packed.clone().into_data().assert_eq(&dense.into_data(), true);
        assert_close(packed.clone(), exact.clone(), BF16_PRODUCT, "bf16");
        let off = (packed - exact).abs().max().into_scalar::<f32>();
        assert!(off > SAME_FUNCTION.0, "{off}: nothing is rounded");
    }
}

#[test]
fn products_of_several_panels_are_those_of_one() {
    // Sixteen outputs a panel, the last of which has eight.
    check(pack("nf4-double", [40, 1 << 16], Dtype::F32), "three panels");
}

/// bitsandbytes decodes to the type that the model had.
#[test]
fn weights_are_decoded_to_the_type_that_they_had() {
    let rows = |dtype| pack("nf4", [8, 64], dtype).rows(2..5);
    let (wide, half) = (rows(Dtype::F32), rows(Dtype::BF16));
    assert_ne!(wide, half);
    assert_eq!(wide.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<_>>(), half);
}

/// What packing does to the matrix at a place.
fn cost(base: &Base, place: &Place, scheme: &str) -> Cost {
    let values: Vec<f32> = base.tensor_data(place).iter::<f32>().collect();
    let packed = scheme.parse::<Scheme>().unwrap().pack(&values, [place.dims[1], place.dims[0]], Dtype::F32).unwrap();
    Cost::of(place.module(), &values, &packed)
}

#[test]
fn a_base_is_packed_but_for_tables_normalizations_and_what_transformers_leaves() {
    for shape in SHAPES {
        let dense = base(shape, &device());
        let left = dense.shape().linears().iter().filter(|(_, path)| path.ends_with(".wo")).count();
        assert_eq!(left > 0, shape == "t5-tiny");
        for scheme in SCHEMES {
            let packed = quantized(&dense, scheme.parse().unwrap()).unwrap();
            let stays = |packed: bool| {
                let shape = dense.shape();
                shape.places().into_iter().filter(move |place| is_packed(shape, place) == packed).collect::<Vec<_>>()
            };
            assert_eq!(stays(true).len(), dense.shape().linears().len() - left, "{shape} {scheme}");
            for place in stays(false) {
                assert_eq!(packed.tensor_data(&place), dense.tensor_data(&place), "{shape} {scheme} {place:?}");
            }
            for place in stays(true) {
                assert!(matches!(packed.weight(place.site), Weight::Packed(_)));
                let cost = cost(&dense, &place, scheme);
                let most = if scheme == "int8" { 0.02 } else { 0.15 };
                assert!(cost.error > 0. && cost.error < most, "{shape} {scheme}: {cost:?}");
                assert!(cost.bytes < place.count() * 5 / 4, "{cost:?}");
            }
            assert_ne!(packed.fingerprint(), dense.fingerprint());
            // What is packed stays, and what was decoded is packed to the same.
            let again = quantized(&packed, scheme.parse().unwrap()).unwrap();
            assert_eq!(again.fingerprint(), packed.fingerprint());
            let decoded = packed
                .shape()
                .places()
                .iter()
                .filter(|place| is_packed(dense.shape(), place))
                .fold(packed.clone(), |base, place| {
                    base.clone().with_weight(place.site, Weight::Dense(base.weight(place.site).dense()))
                });
            assert_eq!(decoded.fingerprint(), packed.fingerprint());
            let run = |base| states(&Bare {}, base);
            assert_close(run(&packed), run(&decoded), SAME_FUNCTION, scheme);
            if scheme.starts_with("nf4") && !scheme.ends_with("double") {
                let packed_again = quantized(&decoded, scheme.parse().unwrap()).unwrap();
                assert_eq!(packed_again.fingerprint(), packed.fingerprint());
                assert!(stays(true).iter().all(|place| cost(&decoded, place, scheme).error == 0.));
            }
        }
    }
}

#[test]
fn what_cannot_be_packed_is_refused() {
    assert_error("nf5".parse::<Scheme>(), &["scheme: nf5", "nf4, fp4, nf4-double"]);
    let base = base("llama-tiny", &device());
    let (site, path) = base.shape().linears()[3].clone();
    let w = base.weight(site).dense();
    let bad = base.clone().with_weight(site, Weight::Dense(w.clone().mask_fill(w.greater_elem(0.5), f32::NAN)));
    assert_error(quantized(&bad, Scheme::Int8).map(drop), &[&path, "weights, element", "NaN"]);
    let shape = |dims: Vec<usize>| {
        peft_quant::FourBit::encode(&draw("w", 64, 1.), &dims, peft_quant::Codebook::Nf4, 64).unwrap()
    };
    assert_error(Matrix::packed(shape(vec![4, 4, 4]), &device()), &["shape: [4, 4, 4]", "a matrix"]);
}
