//! LLM.int8(): that it is bitsandbytes' to the bit, and what holds of it for all weights.

use half::{bf16, f16};
use peft_quant::Int8Rows;
use proptest::prelude::*;
use safetensors::Dtype;

use crate::common::{Cases, Stored, assert_error, bits, golden, numbers};

fn check<E: Stored>(cases: &Cases, case: &str) {
    let shape = cases.shape(case, "values");
    let (values, dims) = (E::read(cases.bytes(case, "values")), [shape[0], shape[1]]);
    let threshold = cases.f32(case, "threshold")[0];
    let (encoded, outliers) = Int8Rows::encode_without_outliers(&values, dims, threshold).unwrap();
    assert_eq!(encoded.codes(), numbers(cases.bytes(case, "codes"), i8::from_le_bytes), "{case}");
    assert_eq!(bits(encoded.scales()), bits(&cases.f32(case, "scales")), "{case}");
    let expected = numbers(cases.bytes(case, "outliers"), i64::from_le_bytes);
    assert_eq!(outliers.iter().map(|column| *column as i64).collect::<Vec<_>>(), expected, "{case}");
    assert_eq!(bits(&encoded.decode::<E>()), bits(&E::read(cases.bytes(case, "decoded"))), "{case}");
    if threshold == 0. {
        assert_eq!(Int8Rows::encode(&values, dims).unwrap(), encoded);
    }
}

#[test]
fn codes_scales_outliers_and_values_are_those_of_bitsandbytes() {
    let file = golden("codecs.safetensors");
    let cases = Cases::open(&file);
    let names = cases.with("int8", "values");
    assert_eq!(names.len(), 8);
    for case in names {
        match cases.dtype(&case, "values") {
            Dtype::F32 => check::<f32>(&cases, &case),
            Dtype::F16 => check::<f16>(&cases, &case),
            _ => check::<bf16>(&cases, &case),
        }
    }
}

/// What rounding adds to an error, relative to the largest magnitude: to f16, and in f32.
const ROUNDING: f32 = 0.5 / 1024. + 4. * f32::EPSILON;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn an_error_is_at_most_half_a_step_of_its_row(rows in 1..9usize, w in prop::collection::vec(-3f32..3., 1..300)) {
        let columns = w.len();
        let w: Vec<f32> = (0..rows).flat_map(|row| w.iter().map(move |w| w * (row as f32 - 1.5))).collect();
        let encoded = Int8Rows::encode(&w, [rows, columns]).unwrap();
        let decoded = encoded.decode::<f32>();
        for ((w, decoded), scale) in w.chunks(columns).zip(decoded.chunks(columns)).zip(encoded.scales()) {
            for (w, decoded) in w.iter().zip(decoded) {
                prop_assert!((w - decoded).abs() <= (0.5 / 127. + ROUNDING) * scale, "{w} {decoded} {scale}");
            }
        }
    }

    #[test]
    fn encoding_what_was_decoded_changes_no_code(w in prop::collection::vec(-3f32..3., 1..300)) {
        let once = Int8Rows::encode(&w, [1, w.len()]).unwrap();
        let again = Int8Rows::encode(&once.decode::<f32>(), [1, w.len()]).unwrap();
        prop_assert_eq!(once.codes(), again.codes());
    }

    #[test]
    fn rows_are_those_of_the_whole((rows, columns) in (1..30usize, 1..50usize), from in 0..30usize, count in 0..30usize) {
        let w: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 + i / 11) % 101) as f32 / 50. - 1.).collect();
        let encoded = Int8Rows::encode(&w, [rows, columns]).unwrap();
        let from = from.min(rows);
        let to = (from + count).min(rows);
        let mut out = vec![0f32; (to - from) * columns];
        encoded.decode_rows(from..to, &mut out).unwrap();
        prop_assert_eq!(bits(&out), bits(&encoded.decode::<f32>()[from * columns..to * columns]));
    }

    #[test]
    fn without_its_outliers_the_rest_is_as_if_they_were_zero(
        x in prop::collection::vec(-3f32..3., 60), at in prop::collection::vec(0..60usize, 1..5), threshold in 1f32..6.,
    ) {
        let mut x = x;
        at.iter().for_each(|i| x[*i] = 7.);
        let (encoded, outliers) = Int8Rows::encode_without_outliers(&x, [4, 15], threshold).unwrap();
        let large = |x: f32| f16::from_f32(x).to_f32().abs() >= threshold;
        let expected: Vec<usize> = (0..15).filter(|column| (0..4).any(|row| large(x[row * 15 + column]))).collect();
        prop_assert_eq!(&outliers, &expected);
        let rest: Vec<f32> = x.iter().map(|x| if large(*x) { 0. } else { *x }).collect();
        let plain = Int8Rows::encode(&rest, [4, 15]).unwrap();
        prop_assert_eq!(encoded.scales(), plain.scales());
        for (i, code) in encoded.codes().iter().enumerate() {
            prop_assert_eq!(*code, if outliers.contains(&(i % 15)) { 0 } else { plain.codes()[i] });
        }
    }
}

#[test]
fn what_cannot_be_encoded_or_is_no_matrix_is_refused() {
    for bad in [f32::NAN, f32::NEG_INFINITY, 65520., -1e9] {
        let mut w = [1.; 12];
        w[7] = bad;
        w[11] = f32::NAN;
        let place = format!("weights, element 7: {bad}");
        assert_error(Int8Rows::encode(&w, [3, 4]), &[&place, "a finite number that f16 holds, at most 65504"]);
    }
    Int8Rows::encode(&[65504f32], [1, 1]).unwrap();
    for dims in [[0, 4], [3, 0], [usize::MAX, 3]] {
        assert_error(Int8Rows::encode(&[1f32; 12], dims), &["shape"]);
        assert_error(Int8Rows::from_parts(dims, vec![0; 12], vec![1.; 3]), &["shape"]);
    }
    assert_error(Int8Rows::encode(&[1f32; 11], [3, 4]), &["weights: a length of 11", "expected 12"]);
    for threshold in [-1., f32::NAN] {
        let result = Int8Rows::encode_without_outliers(&[1f32; 12], [3, 4], threshold);
        assert_error(result, &["llm_int8_threshold", "0, for none, or more"]);
    }
    assert_error(Int8Rows::from_parts([3, 4], vec![0; 11], vec![1.; 3]), &["weight: a length of 11", "expected 12"]);
    assert_error(
        Int8Rows::from_parts([3, 4], vec![0; 12], vec![1.; 4]),
        &["SCB: a length of 4", "3 (one for each row)"],
    );
    assert_error(Int8Rows::from_parts([1, 4], vec![0; 4], vec![f32::NAN]), &["SCB, element 0: NaN"]);
    let encoded = Int8Rows::encode(&[1f32; 12], [3, 4]).unwrap();
    assert_error(encoded.decode_rows(2..4, &mut [0f32; 8]), &["rows: 2..4", "a range within 0..3"]);
    assert_error(encoded.decode_rows(0..2, &mut [0f32; 7]), &["a length of 7", "expected 8"]);
}
