//! Integers in groups: that their words are GPTQ's and AWQ's to the bit, and what holds of them for all weights.

use burn::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn::tensor::{Tensor, TensorData};
use half::f16;
use peft_quant::{Grouped, Packing, Words};
use proptest::prelude::*;

use crate::common::{Cases, Stored, assert_error, bits, golden, numbers};

fn words(cases: &Cases, case: &str, packing: &str) -> Option<Words> {
    let read = |part: &str| numbers(cases.bytes(case, part), u32::from_le_bytes);
    let own = |part: &str| cases.with(case, &format!("{packing}.{part}")).contains(case);
    own("qzeros").then(|| Words {
        qweight: read(&if own("qweight") { format!("{packing}.qweight") } else { "qweight".into() }),
        qzeros: read(&format!("{packing}.qzeros")),
        scales: numbers(cases.bytes(case, "scales"), f16::from_le_bytes),
        g_idx: (packing != "awq").then(|| numbers(cases.bytes(case, "g_idx"), i32::from_le_bytes)),
    })
}

#[test]
fn scales_codes_and_words_are_those_of_gptq_and_awq() {
    let file = golden("codecs.safetensors");
    let cases = Cases::open(&file);
    let names = cases.with("grouped", "values");
    assert_eq!(names.len(), 16);
    let mut packings = [0; 3];
    for case in names {
        let kind: Vec<&str> = case.split('.').collect();
        let (width, shape) = (kind[1].parse().unwrap(), cases.shape(&case, "values"));
        let dims = [shape[0], shape[1]];
        let group = numbers(cases.bytes(&case, "group"), i64::from_le_bytes)[0] as usize;
        let expected_values = f16::read(cases.bytes(&case, "decoded"));
        let values = f16::read(cases.bytes(&case, "values"));
        let encoded = Grouped::encode(&values, dims, width, group, kind[2] == "symmetric").unwrap();
        assert_eq!(bits(encoded.scales()), bits(&cases.f32(&case, "scale")), "{case}");
        assert_eq!(encoded.zeros(), cases.f32(&case, "zero"), "{case}");
        for (i, (name, packing)) in
            [("gptq", Packing::Gptq), ("gptq_v2", Packing::GptqV2), ("awq", Packing::Awq)].into_iter().enumerate()
        {
            let Some(expected) = words(&cases, &case, name) else { continue };
            packings[i] += 1;
            let read = Grouped::from_words(dims, width, group, packing, &expected).unwrap();
            assert_eq!(bits(&read.decode::<f16>()), bits(&expected_values), "{case} {name}");
            assert_eq!(read.to_words(packing).unwrap(), expected, "{case} {name}");
            let mut rows = vec![f16::ZERO; 3 * dims[1]];
            read.decode_rows(7..10, &mut rows).unwrap();
            assert_eq!(rows, expected_values[7 * dims[1]..10 * dims[1]], "{case} {name}");
            if kind[2] == "order" {
                assert!(read.groups().is_some(), "{case}");
                assert_error(read.to_words(Packing::Awq), &[if width == 4 { "g_idx" } else { "bits" }]);
            } else {
                assert_eq!(encoded.to_words(packing).unwrap(), expected, "{case} {name}");
            }
        }
    }
    assert_eq!(packings, [12, 16, 3]);
}

fn widths() -> impl Strategy<Value = u32> {
    prop_oneof![Just(2), Just(3), Just(4), Just(8)]
}

/// What rounding adds to an error, relative to the largest magnitude.
const ROUNDING: f32 = 4. * f32::EPSILON;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn an_error_is_at_most_half_a_step(
        w in prop::collection::vec(-2f32..2., 3 * 64), shift in -1f32..1., bits in widths(), group in 0..5u32, symmetric in any::<bool>(),
    ) {
        let w: Vec<f32> = w.iter().map(|w| w + shift).collect();
        let group = 64 >> group;
        let encoded = Grouped::encode(&w, [3, 64], bits, group, symmetric).unwrap();
        let levels = ((1u32 << bits) - 1) as f32;
        for ((w, decoded), scale) in w.chunks(group).zip(encoded.decode::<f32>().chunks(group)).zip(encoded.scales()) {
            for (w, decoded) in w.iter().zip(decoded) {
                prop_assert!((w - decoded).abs() <= scale * (0.5 + levels * ROUNDING), "{w} {decoded} {scale}");
                prop_assert!(*w != 0. || *decoded == 0.);
            }
        }
    }

    #[test]
    fn encoding_what_was_decoded_changes_no_code(w in prop::collection::vec(-2f32..2., 2 * 32), bits in widths()) {
        let once = Grouped::encode(&w, [2, 32], bits, 32, false).unwrap();
        let again = Grouped::encode(&once.decode::<f32>(), [2, 32], bits, 32, false).unwrap();
        prop_assert_eq!(once.codes(), again.codes());
        prop_assert_eq!(once.zeros(), again.zeros());
    }

    #[test]
    fn words_read_back(
        (codes, zeros) in (prop::collection::vec(any::<u32>(), 64 * 3 * 8), prop::collection::vec(any::<u32>(), 2 * 2 * 8)),
        scales in prop::collection::vec(-1f32..1., 2 * 64), bits in widths(), packing in 0..3usize, order in any::<bool>(),
    ) {
        let packing = [Packing::Gptq, Packing::GptqV2, Packing::Awq][packing];
        let bits = if packing == Packing::Awq { 4 } else { bits };
        let b = bits as usize;
        let words = Words {
            qweight: codes[..96 * 64 * b / 32].to_vec(),
            qzeros: zeros[..2 * 64 * b / 32].to_vec(),
            scales: scales.iter().map(|scale| f16::from_f32(*scale)).collect(),
            g_idx: (packing != Packing::Awq).then(|| (0..96).map(|i| if order { i % 2 } else { i / 48 }).collect()),
        };
        let read = Grouped::from_words([64, 96], bits, 48, packing, &words).unwrap();
        prop_assert_eq!(read.to_words(packing).unwrap(), words);
        prop_assert_eq!(read.groups().is_some(), order && packing != Packing::Awq);
    }

    /// QA-LoRA's merge: what is constant in a group goes into the zero points, and nothing else changes.
    #[test]
    fn other_zero_points_shift_groups(w in prop::collection::vec(-2f32..2., 2 * 32), by in -3f32..3.) {
        let before = Grouped::encode(&w, [2, 32], 4, 8, false).unwrap();
        let zeros: Vec<f32> = before.zeros().iter().map(|zero| zero - by).collect();
        let after = before.clone().with_zeros(zeros).unwrap();
        prop_assert_eq!(before.codes(), after.codes());
        let pairs = before.decode::<f32>().into_iter().zip(after.decode::<f32>());
        for (i, (one, other)) in pairs.enumerate() {
            let scale = before.scales()[i / 8];
            prop_assert!((other - one - scale * by).abs() <= scale * 32. * ROUNDING);
        }
    }
}

#[test]
fn what_cannot_be_encoded_or_is_no_matrix_is_refused() {
    let encode = |dims: [usize; 2], bits, group| Grouped::encode(&vec![1f32; 32 * 64], dims, bits, group, false);
    for bits in [0, 1, 5, 6, 7, 16, 32, u32::MAX] {
        assert_error(encode([32, 64], bits, 32), &[&format!("bits: {bits} is not allowed"), "2, 3, 4 or 8"]);
    }
    for group in [0, 3, 65, 128] {
        assert_error(encode([32, 64], 4, group), &["group_size", "a divisor of the 64 inputs"]);
    }
    assert_error(encode([32, 60], 4, 20), &["inputs: 60", "a multiple of 8, which whole words of 4 bits hold"]);
    assert_error(encode([32, 48], 3, 16), &["inputs: 48", "a multiple of 32"]);
    assert_error(encode([32, 32], 4, 32), &["weights: a length of 2048", "1024"]);
    assert_error(encode([0, 64], 4, 32), &["shape"]);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut w = [1f32; 128];
        w[70] = bad;
        assert_error(Grouped::encode(&w, [2, 64], 4, 32, false), &["weights, element 70", "a finite number"]);
    }
    for w in [[-3e38f32, 3e38], [1e-45, 1e-45]] {
        let w: Vec<f32> = w.into_iter().cycle().take(32).collect();
        assert_error(
            Grouped::encode(&w, [1, 32], 8, 32, false),
            &["weights, row 0, group 0: values from", "255 steps"],
        );
    }
    let good = encode([32, 64], 4, 32).unwrap();
    assert_error(good.to_words(Packing::Gptq), &["zero point of output 0, group 0: 0", "an integer from 1 to 16"]);
    let between = good.clone().with_zeros(vec![3.5; 64]).unwrap();
    assert_error(between.to_words(Packing::GptqV2), &["group 0: 3.5 is not allowed", "an integer from 0 to 15"]);
    let words = good.to_words(Packing::GptqV2).unwrap();
    let read = |bits, packing, change: fn(&mut Words)| {
        let mut words = words.clone();
        change(&mut words);
        Grouped::from_words([32, 64], bits, 32, packing, &words)
    };
    read(4, Packing::GptqV2, |_| ()).unwrap();
    assert_error(read(4, Packing::Gptq, |w| _ = w.qweight.pop()), &["qweight: a length of 255", "expected 256"]);
    assert_error(read(4, Packing::Awq, |w| w.qweight.push(0)), &["qweight: a length of 257", "expected 256"]);
    assert_error(read(4, Packing::Gptq, |w| _ = w.qzeros.pop()), &["qzeros: a length of 7", "expected 8"]);
    assert_error(read(4, Packing::Gptq, |w| _ = w.scales.pop()), &["scales: a length of 63", "expected 64"]);
    assert_error(read(4, Packing::Gptq, |w| w.scales[33] = f16::NAN), &["scales, element"]);
    assert_error(read(8, Packing::Awq, |_| ()), &["bits: 8", "4, which is what AWQ packs"]);
    for group in [-1, 2, i32::MIN, i32::MAX] {
        let mut words = words.clone();
        words.g_idx.as_mut().unwrap()[5] = group;
        let result = Grouped::from_words([32, 64], 4, 32, Packing::Gptq, &words);
        assert_error(result, &[&format!("g_idx, element 5: {group}"), "a group below 2"]);
    }
    assert_error(
        read(4, Packing::Gptq, |w| w.g_idx = Some(vec![0])),
        &["g_idx: a length of 1", "64 (one for each input)"],
    );
    let narrow = Grouped::encode(&[1f32; 12 * 8], [12, 8], 4, 8, false).unwrap();
    assert_error(narrow.to_words(Packing::GptqV2), &["outputs: 12", "a multiple of 8"]);
    let large = Grouped::encode(&[1e8f32; 64], [8, 8], 4, 8, false).unwrap();
    assert_error(large.to_words(Packing::GptqV2), &["scale of output 0, group 0: 6666666.5", "at most 65504"]);
    assert_error(good.clone().with_zeros(vec![0.; 63]), &["zeros: a length of 63", "64"]);
    assert_error(good.clone().with_zeros(vec![f32::NAN; 64]), &["zeros, element 0"]);
    assert_error(good.decode_rows(31..33, &mut [0f32; 128]), &["rows: 31..33", "0..32"]);
}

/// Burn decodes what it is given to the same numbers, and what burn quantizes is read as burn decodes it.
#[test]
fn burns_own_tensors_are_read_and_made() {
    let mut random = peft_core::random::Random::new(3, "burn");
    let x: Vec<f32> = (0..32 * 96).map(|_| random.normal() as f32).collect();
    let device = peft_core::testing::device();
    let decoded = |data: TensorData| -> Vec<f32> {
        Tensor::<2>::from_data(data, &device).dequantize().into_data().try_into_vec().unwrap()
    };
    for (bits, group) in [(2, 16), (4, 32), (8, 96), (4, 48)] {
        let packed = Grouped::encode(&x, [32, 96], bits, group, true).unwrap();
        let data = packed.to_burn().unwrap();
        assert_eq!(Grouped::from_burn(&data).unwrap(), packed, "{bits} {group}");
        assert_eq!(decoded(data), packed.decode::<f32>(), "{bits} {group}");
    }
    let tensor = Tensor::<2>::from_data(TensorData::new(x.clone(), [32, 96]), &device);
    for (value, store) in [(QuantValue::Q8S, QuantStore::Native), (QuantValue::Q8F, QuantStore::Native)] {
        for scale in [ScaleDtype::F32, ScaleDtype::F16] {
            let scheme = QuantScheme::default().with_value(value).with_store(store);
            for scheme in [scheme.per_tensor(ScaleDtype::F32), scheme.per_block([32], scale)] {
                let data = tensor.clone().quantize_dynamic(&scheme).into_data();
                let read = Grouped::from_burn(&data).unwrap();
                assert_eq!(read.decode::<f32>(), decoded(data), "{scheme:?}");
            }
        }
    }
}

#[test]
fn what_burn_does_not_hold_is_refused() {
    let x: Vec<f32> = (0..32 * 512).map(|i| i as f32 % 7. - 3.).collect();
    let encode = |bits, group, symmetric| Grouped::encode(&x, [32, 512], bits, group, symmetric).unwrap();
    assert_error(encode(3, 32, true).to_burn(), &["bits: 3", "2, 4 or 8"]);
    assert_error(encode(4, 256, true).to_burn(), &["group_size: 256", "at most 255"]);
    let positive: Vec<f32> = x.iter().map(|x| x + 3.).collect();
    let positive = Grouped::encode(&positive, [32, 512], 4, 32, false).unwrap();
    assert_error(positive.to_burn(), &["zero point: 0", "8: burn's are symmetric"]);
    let read = |data: TensorData| Grouped::from_burn(&data);
    assert_error(read(TensorData::new(x.clone(), [32, 512])), &["type: F32", "a quantized type"]);
    let quantized = |scheme: QuantScheme, shape: &[usize], scales: usize| {
        TensorData::quantized(vec![0i8; shape.iter().product()], shape.to_vec(), scheme, &vec![1.; scales], None)
    };
    let scheme = QuantScheme::default().with_store(QuantStore::Native);
    assert_error(read(quantized(scheme, &[4, 4, 4], 1)), &["shape: [4, 4, 4]", "a matrix"]);
    assert_error(
        read(quantized(scheme.per_block([2, 16], ScaleDtype::F32), &[4, 32], 4)),
        &["block: [2, 16]", "inputs alone"],
    );
    let wide = TensorData::quantized(vec![100i8; 64], [2, 32], scheme.with_value(QuantValue::Q4S), &[1.], None);
    assert_error(read(wide), &["value: 100", "one from -8 to 7"]);
    let infinite = TensorData::quantized(vec![0i8; 64], [2, 32], scheme, &[f32::INFINITY], None);
    assert_error(read(infinite), &["scales, element 0", "inf"]);
    let odd = quantized(scheme.with_value(QuantValue::Q4F), &[2, 12], 1);
    assert_error(read(odd), &["inputs: 12", "a multiple of 8"]);
}
