use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use peft_additive::{Ia3, Ia3Config};
use peft_core::testing::tolerances::{MERGED, SAME_FUNCTION};
use peft_core::testing::{assert_close, batch, randomized};
use peft_core::view::{tensors, with_values};
use peft_core::{Bare, Base, Method, Part, Site, Slot, Weight, Within, random::Random};
use proptest::prelude::*;

use super::{bases, pick, run};

/// No factor is 0 or 1.
fn random(config: &Ia3Config, base: &Base, seed: u64) -> Ia3 {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn map(ia3: &Ia3, f: impl Fn(&str, usize, f32) -> f32) -> Ia3 {
    let changed = |(name, data): (String, TensorData)| {
        let values: Vec<f32> = data.iter::<f32>().enumerate().map(|(i, x)| f(&name, i, x)).collect();
        (name, TensorData::new(values, data.shape().clone()))
    };
    with_values(ia3.clone(), &tensors(ia3).into_iter().map(changed).collect()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Two in a row are their product, in either order.
    #[test]
    fn two_in_a_row_multiply(seed: u64) {
        for base in bases() {
            for config in [Ia3Config::new(), Ia3Config::paper()] {
                let (a, b) = (random(&config, &base, seed), random(&config, &base, seed ^ 1));
                let factors: BTreeMap<String, Vec<f32>> =
                    tensors(&b).into_iter().map(|(name, data)| (name, data.iter::<f32>().collect())).collect();
                let product = run(&map(&a, |name, i, x| x * factors[name][i]), &base, &batch(&base));
                assert_close(run(&(a.clone(), b.clone()), &base, &batch(&base)), product.clone(), SAME_FUNCTION, "(a, b)");
                assert_close(run(&(b, a), &base, &batch(&base)), product, SAME_FUNCTION, "(b, a)");
            }
        }
    }

    /// The value's output and the attention output's input are scaled one after the other: c in the one and 1 / c in the
    /// other cancel.
    #[test]
    fn value_and_output_share_their_factors(seed: u64) {
        for base in bases() {
            let ia3 = random(&Ia3Config::new(), &base, seed);
            let factors: Vec<f32> = {
                let mut random = Random::new(seed, "c");
                (0..base.shape().hidden).map(|_| 0.4 + 2.0 * random.unit() as f32).collect()
            };
            let moved = map(&ia3, |name, i, x| match name.rsplit_once('.').unwrap().1 {
                "value" => x * factors[i],
                "output" => x / factors[i],
                _ => x,
            });
            assert_ne!(tensors(&ia3), tensors(&moved));
            assert_close(run(&ia3, &base, &batch(&base)), run(&moved, &base, &batch(&base)), SAME_FUNCTION, "moved");
        }
    }

    /// q . (k * l) = (q * l) . k
    #[test]
    fn the_keys_factors_may_be_the_querys(seed: u64) {
        for base in bases() {
            let on = |part: Part| Ia3Config::new().with_sites(part, peft_core::Sites::Parts(vec![]));
            let key = random(&on(Part::Key), &base, seed);
            let named = |(name, data): (String, TensorData)| (name.replace("key", "query"), data);
            let values = tensors(&key).into_iter().map(named).collect();
            let query = with_values(on(Part::Query).init(&base, 0).unwrap(), &values).unwrap();
            assert_close(run(&key, &base, &batch(&base)), run(&query, &base, &batch(&base)), SAME_FUNCTION, "query");
        }
    }

    /// Where all but two factors of an input are 1, the update of the weight is A B with A = E_S diag(l_S - 1), B = W_S.
    #[test]
    fn few_factors_are_a_low_rank_update(seed: u64, first in 0..12usize, second in 12..24usize) {
        for base in bases() {
            let all = random(&Ia3Config::new().with_sites(Part::Output, Part::Output), &base, seed);
            let few = map(&all, |_, i, x| if [first, second].contains(&i) { x } else { 1.0 });
            let mut updated = base.clone();
            for layer in 0..base.shape().layers {
                let site = Site::encoder(layer, Part::Output);
                let w = base.weight(site).dense();
                let l: Vec<f32> = tensors(&all)[&format!("inputs.{site}")].iter::<f32>().collect();
                let a: Vec<f32> = (0..24).flat_map(|row| [first, second].map(|s| if row == s { l[s] - 1.0 } else { 0.0 })).collect();
                let a = Tensor::<2>::from_data(TensorData::new(a, [24, 2]), base.device());
                let b = pick(w.clone(), 0, &[first, second]);
                updated = updated.with_weight(site, Weight::Dense(w + a.matmul(b)));
            }
            assert_close(run(&few, &base, &batch(&base)), run(&Bare {}, &updated, &batch(&base)), MERGED, "low rank");
        }
    }

    /// A factor of an output scales weight and bias; layers outside of `Within` are left alone.
    #[test]
    fn an_output_is_scaled_with_its_bias(seed: u64, layer in 0..2usize) {
        for base in bases() {
            let ia3 = random(&Ia3Config::new().with_sites(Part::Value, peft_core::Sites::Parts(vec![])), &base, seed);
            let site = Site::encoder(layer, Part::Value);
            let l = Tensor::<2>::from_data(tensors(&ia3)[&format!("outputs.{site}")].clone(), base.device()).reshape([24]);
            let scaled = base.clone()
                .with_weight(site, Weight::Dense(base.weight(site).dense() * l.clone().unsqueeze()))
                .with_vector(site, Slot::Bias, base.vector(site, Slot::Bias) * l);
            let within = run(&Within::new(ia3, layer..layer + 1), &base, &batch(&base));
            assert_close(within, run(&Bare {}, &scaled, &batch(&base)), MERGED, "scaled");
        }
    }
}
