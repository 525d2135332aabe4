//! NF4 and FP4, the eight-bit maps and double quantization: that they are bitsandbytes' to the bit, and what holds of them for all weights.

use half::{bf16, f16};
use peft_quant::{Blockwise, Codebook, FourBit, Map8, Scales, Search};
use proptest::prelude::*;
use safetensors::Dtype;

use crate::common::{Cases, Stored, assert_error, bits, golden};

fn check_four_bit<E: Stored>(cases: &Cases, case: &str) {
    let name: Vec<&str> = case.split('.').collect();
    let (book, block) = (Codebook::named(name[0]).unwrap(), name[1].parse().unwrap());
    let (values, dims) = (E::read(cases.bytes(case, "values")), cases.shape(case, "values"));
    let encoded = FourBit::encode(&values, &dims, book, block).unwrap();
    assert_eq!(encoded.bytes(), cases.bytes(case, "bytes"), "{case}");
    let encoded = if cases.with(case, "offset").is_empty() {
        assert_eq!(bits(&encoded.scales().decode()), bits(&cases.f32(case, "absmax")), "{case}");
        encoded
    } else {
        let nested = encoded.with_nested_scales().unwrap();
        let Scales::Nested { over, offset } = nested.scales() else { unreachable!() };
        assert_eq!(offset.to_bits(), cases.f32(case, "offset")[0].to_bits(), "{case}");
        assert_eq!(over.codes(), cases.bytes(case, "absmax"), "{case}");
        assert_eq!(bits(over.absmax()), bits(&cases.f32(case, "nested_absmax")), "{case}");
        assert_eq!(bits(&nested.scales().decode()), bits(&cases.f32(case, "scales")), "{case}");
        nested
    };
    let decoded = encoded.decode::<E>();
    assert_eq!(bits(&decoded), bits(&E::read(cases.bytes(case, "decoded"))), "{case}");
    let (from, to) = (dims[0] / 3, dims[0]);
    let row = decoded.len() / dims[0];
    let mut rows = E::zeros((to - from) * row);
    encoded.decode_rows(from..to, &mut rows).unwrap();
    assert_eq!(bits(&rows), bits(&decoded[from * row..]), "{case}");
}

#[test]
fn four_bit_codes_scales_and_values_are_those_of_bitsandbytes() {
    let file = golden("codecs.safetensors");
    let cases = Cases::open(&file);
    let names: Vec<String> = ["nf4", "fp4"].iter().flat_map(|book| cases.with(book, "bytes")).collect();
    assert_eq!(names.len(), 49);
    for case in names {
        match cases.dtype(&case, "values") {
            Dtype::F32 => check_four_bit::<f32>(&cases, &case),
            Dtype::F16 => check_four_bit::<f16>(&cases, &case),
            _ => check_four_bit::<bf16>(&cases, &case),
        }
    }
}

#[test]
fn offsets_are_the_means_of_torch() {
    let file = golden("codecs.safetensors");
    let cases = Cases::open(&file);
    let names = cases.with("mean", "mean");
    assert_eq!(names.len(), 26);
    for case in names {
        let count: u32 = case["mean.".len()..].parse().unwrap();
        let x = (0..count).map(|i| (i * 7919 % 1999) as f32 / 1999.).collect();
        let Scales::Nested { offset, .. } = Scales::Plain(x).nested().unwrap() else { unreachable!() };
        assert_eq!(offset.to_bits(), cases.f32(&case, "mean")[0].to_bits(), "{case}");
    }
}

#[test]
fn eight_bit_codes_scales_and_values_are_those_of_bitsandbytes() {
    let file = golden("codecs.safetensors");
    let cases = Cases::open(&file);
    for (start, map) in [("signed", Map8::signed()), ("unsigned", Map8::unsigned())] {
        let names = cases.with(start, "values");
        assert_eq!(names.len(), 8);
        for case in names {
            for (name, search) in [("nearest", Search::Nearest), ("bins", Search::Bins)] {
                let part = |part: &str| format!("{name}.{part}");
                let encoded = Blockwise::encode(&cases.f32(&case, "values"), map.clone(), 256, search).unwrap();
                assert_eq!(encoded.codes(), cases.bytes(&case, &part("codes")), "{case} {name}");
                assert_eq!(bits(encoded.absmax()), bits(&cases.f32(&case, &part("absmax"))), "{case} {name}");
                let decoded = encoded.decode::<f32>();
                assert_eq!(bits(&decoded), bits(&cases.f32(&case, &part("decoded"))), "{case} {name}");
                let mut half = vec![f16::ZERO; decoded.len()];
                encoded.decode_into(&mut half).unwrap();
                assert_eq!(bits(&half), bits(&encoded.decode::<f16>()), "{case} {name}");
                assert_error(encoded.decode_into(&mut half[1..]), &["the slice to decode into"]);
            }
        }
    }
}

/// What rounding adds to an error that is otherwise bounded by gaps of a map, relative to the largest magnitude.
const ROUNDING: f32 = 4. * f32::EPSILON;

/// Half the widest gap of values in [-1, 1], with what -1 and 1 are away from the outermost.
fn half_gap(values: &[f32]) -> f32 {
    let mut values = values.to_vec();
    values.sort_by(f32::total_cmp);
    let gaps = values.windows(2).map(|pair| (pair[1] - pair[0]) / 2.);
    gaps.chain([values[0] + 1., 1. - values[values.len() - 1]]).fold(0., f32::max)
}

fn books() -> impl Strategy<Value = Codebook> {
    prop_oneof![Just(Codebook::Nf4), Just(Codebook::Fp4)]
}

fn block_sizes() -> impl Strategy<Value = usize> {
    (5..=12u32).prop_map(|power| 1 << power)
}

/// Weights of all signs and many magnitudes.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    let weight = (-1f32..1., -6..6i32).prop_map(|(x, power)| x * 10f32.powi(power));
    prop_oneof![prop::collection::vec(-0.1f32..0.1, 1..9000), prop::collection::vec(weight, 1..600)]
}

fn encode(values: &[f32], book: Codebook, block: usize) -> FourBit {
    FourBit::encode(values, &[values.len()], book, block).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn an_error_is_at_most_half_the_widest_gap_of_the_largest_magnitude(w in weights(), book in books(), block in block_sizes()) {
        let decoded = encode(&w, book, block).decode::<f32>();
        let bound = half_gap(&book.values()) + ROUNDING;
        for (w, decoded) in w.chunks(block).zip(decoded.chunks(block)) {
            let largest = w.iter().fold(0f32, |largest, w| largest.max(w.abs()));
            for (w, decoded) in w.iter().zip(decoded) {
                prop_assert!((w - decoded).abs() <= bound * largest, "{w} {decoded} {largest}");
                prop_assert!(w.abs() < largest || w == decoded, "the largest magnitude {w} became {decoded}");
            }
        }
    }

    #[test]
    fn encoding_what_was_decoded_changes_nothing(w in weights(), book in books(), block in block_sizes()) {
        let once = encode(&w, book, block);
        let again = encode(&once.decode(), book, block);
        prop_assert_eq!(bits(&once.decode::<f32>()), bits(&again.decode::<f32>()));
        prop_assert_eq!(bits(&once.scales().decode()), bits(&again.scales().decode()));
    }

    #[test]
    fn a_power_of_two_moves_from_the_weights_to_the_scales(w in weights(), book in books(), block in block_sizes(), power in -20..20i32) {
        let by = 2f32.powi(power);
        let moved: Vec<f32> = w.iter().map(|w| w * by).collect();
        let (one, other) = (encode(&w, book, block), encode(&moved, book, block));
        prop_assert_eq!(one.bytes(), other.bytes());
        let scales: Vec<f32> = one.scales().decode().iter().map(|scale| scale * by).collect();
        prop_assert_eq!(bits(&scales), bits(&other.scales().decode()));
    }

    #[test]
    fn rows_are_those_of_the_whole(
        (rows, row) in (1..40usize, 1..90usize), from in 0..40usize, count in 0..40usize, book in books(), nested in any::<bool>(),
    ) {
        let w: Vec<f32> = (0..rows * row).map(|i| ((i * 37 + i / 11) % 101) as f32 / 50. - 1.).collect();
        let packed = FourBit::encode(&w, &[rows, row], book, 32).unwrap();
        let packed = if nested { packed.with_nested_scales().unwrap() } else { packed };
        let (from, to) = (from.min(rows), (from + count).min(rows));
        let mut out = vec![0f32; (to.max(from) - from) * row];
        packed.decode_rows(from..to.max(from), &mut out).unwrap();
        prop_assert_eq!(bits(&out), bits(&packed.decode::<f32>()[from * row..to.max(from) * row]));
        let (mut half, mut brain) = (vec![f16::ZERO; w.len()], vec![bf16::ZERO; w.len()]);
        packed.decode_into(&mut half).unwrap();
        packed.decode_into(&mut brain).unwrap();
        for ((value, half), brain) in packed.decode::<f32>().iter().zip(half).zip(brain) {
            prop_assert_eq!(f16::from_f32(*value).to_bits(), half.to_bits());
            prop_assert_eq!(bf16::from_f32(*value).to_bits(), brain.to_bits());
        }
    }

    #[test]
    fn a_code_is_that_of_the_nearest_value(x in prop::collection::vec(-1f32..1., 0..300), power in 0..7i32) {
        // The last makes the largest magnitude 1.
        let x: Vec<f32> = x.iter().map(|x| x * 10f32.powi(-power)).chain([1.]).collect();
        for map in [Map8::signed(), Map8::unsigned()] {
            let encoded = Blockwise::encode(&x, map.clone(), 512, Search::Nearest).unwrap();
            for (x, code) in x.iter().zip(encoded.codes()) {
                let distance = |value: &f32| (f64::from(*value) - f64::from(*x)).abs();
                let nearest = map.values().iter().map(distance).fold(2., f64::min);
                let middle = f64::from(f32::EPSILON) * f64::from(x.abs());
                prop_assert!(distance(&map.values()[*code as usize]) <= nearest + middle, "{x} {code}");
            }
        }
    }

    #[test]
    fn nested_scales_are_within_half_the_widest_gap_of_the_map(scales in prop::collection::vec(0f32..3., 1..1000)) {
        let Scales::Nested { over, offset } = Scales::Plain(scales.clone()).nested().unwrap() else { unreachable!() };
        let bound = half_gap(Map8::signed().values()) + 1. / 65535. + ROUNDING;
        for (i, scale) in scales.iter().enumerate() {
            let decoded = over.get(i) + offset;
            let allowed = bound * over.absmax()[i / Scales::NESTED_BLOCK] + ROUNDING * scale.max(offset);
            prop_assert!((decoded - scale).abs() <= allowed, "{scale} {decoded}");
        }
    }

    #[test]
    fn the_first_weight_that_is_not_finite_is_named(
        mut w in prop::collection::vec(-1f32..1., 2..40_000), at in any::<prop::sample::Index>(), bad in 0..3usize, block in block_sizes(),
    ) {
        let (index, last) = (at.index(w.len()), w.len() - 1);
        w[last] = f32::NAN;
        w[index] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][bad];
        let place = format!("element {index}: {}", w[index]);
        let (map, dims) = (Map8::signed(), [w.len()]);
        assert_error(FourBit::encode(&w, &dims, Codebook::Nf4, block), &[&place, "expected a finite number"]);
        assert_error(Blockwise::encode(&w, map, block, Search::Nearest), &[&place, "expected a finite number"]);
    }
}

#[test]
fn what_cannot_be_encoded_or_is_no_tensor_is_refused() {
    let plain = |count| Scales::Plain(vec![1.; count]);
    let parts = |block, dims: &[usize], bytes: usize, scales| {
        FourBit::from_parts(Codebook::Nf4, block, dims.to_vec(), vec![0; bytes], scales)
    };
    parts(64, &[3, 43], 65, plain(3)).unwrap();
    assert_error(
        parts(64, &[3, 43], 64, plain(3)),
        &["weight: a length of 64", "expected 65 (two weights a byte of [3, 43])"],
    );
    assert_error(
        parts(64, &[3, 43], 65, plain(2)),
        &["absmax: a length of 2", "expected 3 (one for each 64 of 129 weights)"],
    );
    assert_error(parts(64, &[3, 43], 65, plain(4)), &["absmax: a length of 4", "expected 3"]);
    for block in [0, 1, 16, 48, 8192, usize::MAX] {
        let refused = [format!("blocksize: {block} is not allowed"), "a power of two from 32 to 4096".into()];
        let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
        assert_error(parts(block, &[3, 43], 65, plain(3)), &refused);
        assert_error(FourBit::encode(&[1f32; 129], &[3, 43], Codebook::Fp4, block), &refused);
        assert_error(Blockwise::encode(&[1f32; 129], Map8::signed(), block, Search::Bins), &refused);
    }
    for dims in [&[][..], &[0], &[3, 0], &[usize::MAX, 2], &[1 << 33, 1 << 33]] {
        assert_error(parts(64, dims, 65, plain(3)), &["shape", "the extents of a tensor that has elements"]);
        assert_error(FourBit::encode(&[1f32; 129], dims, Codebook::Fp4, 64), &["shape"]);
    }
    assert_error(
        FourBit::encode(&[1f32; 129], &[130], Codebook::Nf4, 64),
        &["weights: a length of 129", "expected 130"],
    );
    assert_error(Blockwise::encode::<f32>(&[], Map8::signed(), 64, Search::Bins), &["shape: [0]"]);
    for bad in [f32::NAN, f32::INFINITY] {
        let scales = Scales::Plain(vec![1., bad, 1.]);
        assert_error(parts(64, &[129], 65, scales), &["absmax, element 1", "expected a finite number"]);
    }
    let nested = |offset| Scales::nested_over(&[1., 2., 3.], offset, Search::Bins);
    assert_error(nested(f32::NAN), &["values, element 0: NaN"]);
    assert_error(nested(1.).unwrap().nested(), &["scales: eight bits each"]);
    let keys = ["absmax", "nested_absmax", "nested_blocksize"];
    let over = |codes, absmax| Blockwise::from_parts(Map8::signed(), 256, vec![255; codes], absmax, keys);
    assert_error(over(257, vec![1.]), &["nested_absmax: a length of 1", "expected 2 (one for each 256 of 257 codes)"]);
    assert_error(over(0, vec![]), &["absmax: a length of 0", "at least one"]);
    assert_error(over(2, vec![f32::NAN]), &["nested_absmax, element 0"]);
    let sums = Scales::Nested { over: over(3, vec![f32::MAX]).unwrap(), offset: f32::MAX };
    assert_error(parts(64, &[129], 65, sums), &["absmax over nested_absmax and nested_offset, element 0: inf"]);
    assert_error(Codebook::named("int4"), &["quant_type: \"int4\"", "nf4 or fp4"]);

    let mut values = *Map8::signed().values();
    assert_eq!(Map8::from_values("quant_map", &values).unwrap(), Map8::signed());
    values.swap(7, 8);
    assert_error(Map8::from_values("quant_map", &values), &["quant_map, element 8", "values that never fall"]);
    values[9] = f32::NAN;
    assert_error(Map8::from_values("quant_map", &values), &["quant_map, element 9: NaN"]);
    assert_error(Map8::from_values("quant_map", &values[1..]), &["quant_map: a length of 255", "expected 256"]);

    let packed = encode(&[1.; 129], Codebook::Nf4, 64);
    assert_error(packed.decode_into(&mut [0f32; 128]), &["the slice to decode into: a length of 128", "expected 129"]);
    #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
    for rows in [0..130, 130..130, 3..2, usize::MAX..usize::MAX] {
        assert_error(packed.decode_rows(rows, &mut [0f32; 1]), &["rows", "a range within 0..129"]);
    }
    assert_error(packed.decode_rows(1..3, &mut [0f32; 1]), &["a length of 1", "expected 2"]);
}
