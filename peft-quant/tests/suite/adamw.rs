//! AdamW with moments of eight bits: bitsandbytes' steps, and what holds of all.

use peft_quant::{AdamW8, Blockwise, Map8, Moments8, Search};
use proptest::prelude::*;

use crate::common::{Cases, assert_error, bits, golden};

const RULE: AdamW8 = AdamW8 { beta1: 0.9, beta2: 0.995, epsilon: 1e-8, weight_decay: 0.1, search: Search::Nearest };

/// What rounding adds to a parameter in a few steps, relative to the largest: torch's square root on a CPU is not always the nearest.
const ROUNDING: f32 = 4. * f32::EPSILON;

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0., |largest, x| x.abs().max(largest))
}

#[test]
fn moments_are_those_of_bitsandbytes_to_the_bit_and_parameters_to_rounding() {
    let file = golden("codecs.safetensors");
    let cases = Cases::open(&file);
    for (name, search) in [("nearest", Search::Nearest), ("bins", Search::Bins)] {
        for count in [256, 700] {
            let case = format!("adamw.{name}.{count}");
            let (mut p, g) = (cases.f32(&case, "values"), cases.f32(&case, "gradients"));
            let mut moments = Moments8::zeros(count).unwrap();
            let rule = AdamW8 { search, ..RULE };
            for (step, g) in (1..).zip(g.chunks(count)) {
                rule.step(&mut moments, step, 1e-2, g, &mut p).unwrap();
            }
            assert_eq!(moments.first().codes(), cases.bytes(&case, "codes1"), "{case}");
            assert_eq!(moments.second().codes(), cases.bytes(&case, "codes2"), "{case}");
            assert_eq!(bits(moments.first().absmax()), bits(&cases.f32(&case, "absmax1")), "{case}");
            assert_eq!(bits(moments.second().absmax()), bits(&cases.f32(&case, "absmax2")), "{case}");
            let expected = cases.f32(&case, "final");
            for (p, expected) in p.iter().zip(&expected) {
                assert!(
                    (p - expected).abs() <= ROUNDING * largest(&cases.f32(&case, "final")),
                    "{case}: {p} {expected}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Bits do not depend on how a tensor lies beside others, as long as blocks stay whole, nor on how it is cut for threads.
    #[test]
    fn blocks_are_independent(g in prop::collection::vec(-1f32..1., 257..20_000), at in any::<prop::sample::Index>()) {
        let start: Vec<f32> = g.iter().rev().copied().collect();
        let cut = at.index(g.len() / 256) * 256 + 256;
        let (mut whole, mut p) = (Moments8::zeros(g.len()).unwrap(), start.clone());
        let (mut first, mut q) = (Moments8::zeros(cut).unwrap(), start);
        let mut second = (cut < g.len()).then(|| Moments8::zeros(g.len() - cut).unwrap());
        for step in 1..4 {
            RULE.step(&mut whole, step, 1e-3, &g, &mut p).unwrap();
            RULE.step(&mut first, step, 1e-3, &g[..cut], &mut q[..cut]).unwrap();
            if let Some(second) = &mut second {
                RULE.step(second, step, 1e-3, &g[cut..], &mut q[cut..]).unwrap();
            }
        }
        prop_assert_eq!(bits(&p), bits(&q));
        prop_assert_eq!(&whole.first().codes()[..cut], first.first().codes());
        prop_assert_eq!(&whole.second().codes()[..cut], first.second().codes());
    }

    /// The first step is the learning rate against the gradient's sign, whatever its size.
    #[test]
    fn the_first_step_is_one_rate_long(g in prop::collection::vec(prop_oneof![-1f32..-1e-3, 1e-3f32..1.], 1..600), rate in 1e-4..1e-1) {
        let rule = AdamW8 { weight_decay: 0., ..RULE };
        let (mut moments, mut p) = (Moments8::zeros(g.len()).unwrap(), vec![0f32; g.len()]);
        rule.step(&mut moments, 1, rate, &g, &mut p).unwrap();
        for (p, g) in p.iter().zip(&g) {
            let expected = -(rate as f32) * g / (g.abs() + rule.epsilon as f32);
            prop_assert!((p - expected).abs() <= ROUNDING * rate as f32, "{g} {p} {expected}");
        }
    }

    #[test]
    fn nothing_moves_without_gradients_and_decay(p in prop::collection::vec(-1f32..1., 1..600)) {
        let rule = AdamW8 { weight_decay: 0., ..RULE };
        let (mut moments, mut q) = (Moments8::zeros(p.len()).unwrap(), p.clone());
        for step in 1..4 {
            rule.step(&mut moments, step, 1e-2, &vec![0.; p.len()], &mut q).unwrap();
        }
        prop_assert_eq!(&p, &q);
        prop_assert!(moments.second().decode::<f32>().iter().all(|v| *v == 0.));
    }
}

#[test]
fn moments_take_2_03_bytes_a_parameter() {
    assert_eq!(Moments8::zeros(256 * 1000).unwrap().size(), 256_000 * 2 + 1000 * 8);
}

#[test]
fn what_is_no_step_is_refused_and_changes_nothing() {
    let mut moments = Moments8::zeros(300).unwrap();
    let mut p = vec![0.5f32; 300];
    RULE.step(&mut moments, 1, 1e-2, &vec![0.1; 300], &mut p).unwrap();
    let before = (moments.clone(), p.clone());
    let mut refused = |step, g: &[f32], count: usize, parts: &[&str]| {
        assert_error(RULE.step(&mut moments, step, 1e-2, g, &mut p[..count]), parts);
        assert_eq!((&moments, &p), (&before.0, &before.1));
    };
    refused(2, &[0.; 299], 300, &["gradients: a length of 299", "expected 300"]);
    refused(2, &[0.; 300], 299, &["parameters: a length of 299", "expected 300"]);
    refused(0, &[0.; 300], 300, &["step: 0"]);
    for bad in [f32::NAN, f32::INFINITY, -2e19] {
        let mut g = vec![0.1; 300];
        (g[299], g[270]) = (f32::NAN, bad);
        refused(2, &g, 300, &["gradients, element 270", "a number whose square is finite"]);
    }
    assert_error(Moments8::zeros(0), &["elements: a length of 0"]);
    let moment = |count, block| Blockwise::encode(&vec![1f32; count], Map8::signed(), block, Search::Nearest).unwrap();
    Moments8::from_parts(moment(300, 256), moment(300, 256)).unwrap();
    assert_error(Moments8::from_parts(moment(300, 256), moment(299, 256)), &["second moment: a length of 299", "300"]);
    assert_error(Moments8::from_parts(moment(300, 128), moment(300, 256)), &["first moment, blocksize: 128", "256"]);
}
