use half::f16;
use peft_quant::{
    Blockwise, Codebook, FourBit, Grouped, Int8Rows, Map8, Packing, Requantize, Requantized, Scales, Words,
};
use proptest::prelude::*;

use crate::common::{Cases, assert_error, bits, golden};

const DIMS: [usize; 2] = [24, 128];

fn four_bit(cases: &Cases, name: &str, when: &str) -> FourBit {
    let case = format!("{name}.{when}");
    let scales = match name.ends_with("double") {
        false => Scales::Plain(cases.f32(&case, "absmax")),
        true => Scales::Nested {
            over: Blockwise::from_parts(
                Map8::signed(),
                Scales::NESTED_BLOCK,
                cases.bytes(&case, "absmax").to_vec(),
                cases.f32(&case, "nested_absmax"),
                ["absmax", "nested_absmax", "nested_blocksize"],
            )
            .unwrap(),
            offset: cases.f32(&case, "offset")[0],
        },
    };
    let codebook = Codebook::named(&name[..3]).unwrap();
    FourBit::from_parts(codebook, 64, DIMS.to_vec(), cases.bytes(&case, "bytes").to_vec(), scales).unwrap()
}

fn int8(cases: &Cases, when: &str) -> Int8Rows {
    let case = format!("int8.{when}");
    let codes = cases.bytes(&case, "codes").iter().map(|code| *code as i8).collect();
    Int8Rows::from_parts(DIMS, codes, cases.f32(&case, "scales")).unwrap()
}

/// PEFT's own merge of a LoRA, to the bit.
#[test]
fn sums_are_packed_as_peft_packs_them() {
    let bytes = golden("merged.safetensors");
    let cases = Cases::open(&bytes);
    for name in ["nf4", "fp4", "nf4-double"] {
        let found = four_bit(&cases, name, "before").plus(&cases.f32(name, "update")).unwrap();
        assert_eq!(found.packed, four_bit(&cases, name, "after"), "{name}");
    }
    let found = int8(&cases, "before").plus(&cases.f32("int8", "update")).unwrap();
    assert_eq!(found.packed, int8(&cases, "after"));
}

/// What is told is the difference between what was asked for and what is there.
fn told<T: Requantize>(before: &T, found: &Requantized<T>, update: &[f32]) {
    let sums: Vec<f32> = before.weights().iter().zip(update).map(|(w, x)| w + x).collect();
    let differences: Vec<f64> =
        found.packed.weights().iter().zip(&sums).map(|(now, sum)| f64::from(*now) - f64::from(*sum)).collect();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let (error, update) = (norm(&mut differences.iter().copied()), norm(&mut update.iter().map(|x| f64::from(*x))));
    assert!((found.error - error).abs() <= 1e-6 * error, "{} and {error}", found.error);
    assert!((found.update - update).abs() <= 1e-6 * update, "{} and {update}", found.update);
    let largest = differences.iter().fold(0., |largest: f64, x| largest.max(x.abs()));
    assert!((f64::from(found.largest) - largest).abs() <= 1e-6 * largest, "{} and {largest}", found.largest);
}

fn values(seed: u64, std: f32) -> Vec<f32> {
    let mut random = peft_core::random::Random::new(seed, "values");
    (0..DIMS[0] * DIMS[1]).map(|_| random.normal() as f32 * std).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_cost_is_told(seed: u64, std in prop::sample::select(vec![1e-3f32, 0.05, 1.])) {
        let (w, update) = (values(seed, 0.05), values(seed ^ 1, std));
        let four_bit = FourBit::encode(&w, &DIMS, Codebook::Nf4, 64).unwrap();
        let nested = four_bit.clone().with_nested_scales().unwrap();
        for packed in [four_bit, nested] {
            let found = packed.plus(&update).unwrap();
            told(&packed, &found, &update);
            prop_assert_eq!(std::mem::discriminant(packed.scales()), std::mem::discriminant(found.packed.scales()));
        }
        let packed = Int8Rows::encode(&w, DIMS).unwrap();
        told(&packed, &packed.plus(&update).unwrap(), &update);
        for (bits, symmetric) in [(2, false), (3, true), (4, false), (8, true)] {
            let packed = Grouped::encode(&w, DIMS, bits, 32, symmetric).unwrap();
            let found = packed.plus(&update).unwrap();
            told(&packed, &found, &update);
            let middle = |of: &Grouped| of.zeros().iter().all(|zero| *zero == packed.zeros()[0]);
            prop_assert_eq!(middle(&found.packed), symmetric);
        }
    }

    #[test]
    fn an_update_of_zeros_costs_nothing(seed: u64) {
        for codebook in [Codebook::Nf4, Codebook::Fp4] {
            let packed = FourBit::encode(&values(seed, 0.05), &DIMS, codebook, 64).unwrap();
            let found = packed.plus(&vec![0.; DIMS[0] * DIMS[1]]).unwrap();
            prop_assert_eq!((found.update, found.error, found.largest), (0., 0., 0.));
            prop_assert_eq!(bits(&found.packed.decode::<f32>()), bits(&packed.decode::<f32>()));
        }
    }
}

#[test]
fn what_cannot_be_added_is_refused() {
    let packed = FourBit::encode(&values(0, 1.), &DIMS, Codebook::Nf4, 64).unwrap();
    assert_error(packed.plus(&[0.; 3]), &["update: a length of 3", "3072 (one for each weight)"]);
    let mut update = values(1, 1.);
    update[130] = f32::NAN;
    assert_error(packed.plus(&update), &["weights, element 130: NaN", "finite"]);
    let words = Words {
        qweight: vec![0; 8 * 16 / 8],
        qzeros: vec![0; 2],
        scales: vec![f16::ONE; 16],
        g_idx: Some((0..16).map(|input| input % 2).collect()),
    };
    let packed = Grouped::from_words([8, 16], 4, 8, Packing::GptqV2, &words).unwrap();
    assert_error(packed.plus(&[0.; 128]), &["g_idx", "consecutive"]);
}
