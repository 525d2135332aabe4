//! # CoDA                                   family: additive / adapter-based
//! X' = X + P^T (P l o (f(P X) - P X)) + act(z Wd + bd) Wu + bu, z = N(X)     f: the frozen layer; P: [k, n], the k tokens with the largest l; Wd: [d, m], Wu: [m, d] = 0
//! l = SoftTopK(z w, k) = argmax s . l + e H(l) under sum l = k, 0 <= l <= 1     w: (d,), k = n / r rounded up, H the entropy
//! Paper: Lei et al., 2023, arXiv:2304.04947, section 3.   Reference: lucidrains/CoLT5-attention `coor_descent` for SoftTopK
//! Oracle: code lucidrains/CoLT5-attention colt5_attention/coor_descent.py: `equals_the_derivation_of_coda`
//! Trains: 2 d m + m + 2 d per encoder layer; without a router, r = 1, d less.      Merges: no, which tokens run is known at run time.
//! Identities:
//! - r = 1 is the base's layer and a parallel adapter: `with_all_tokens_it_is_the_layer_and_a_parallel_adapter`
//! - X' is what the equation says, and only k tokens run through the layer: `a_layer_is_its_equation_on_the_chosen_tokens`
//! - of a table of relative positions the chosen tokens keep their own: `relative_positions_follow_the_chosen_tokens`
//! - on T5 z goes through N as the methods beside this one have made it: `a_method_sees_the_base_as_the_others_rewrite_it`
//! - l solves the problem: `soft_top_k_is_the_maximum`
//! - e -> 0 is the hard choice: `soft_top_k_without_entropy_chooses_hard`
//! - padding is never chosen, each sequence has its own k: `C7`
//!
//! Differs from the paper: no pretraining with routing. Tokens attend to those that run with them (the paper's k-to-k attention). Routers and adapters are in the encoder only. RoBERTa and BERT are an extension: the sum of a layer is not normalized again. A decoder alone is refused, since the choice would look ahead. A head that reads the first token leaves the last router without a gradient where that token is not chosen. The default e is 1, the paper's for speech; for text it has 0.03. In short runs small ones did not train: after 200 steps of 16 on SST-2 (MiniLM, means of two seeds) accuracy is 0.70 with e = 1, 0.71 with 0.3, 0.58 with 0.1 and 0.54 with 0.03 (in 50 steps of the ascent, since 20 end at sum l = 0.91 k), though the chosen tokens have l = 0.42, 0.59, 0.80 and 0.92 at the start, and 0.55, 0.72, 0.84 and 0.94 after: `scripts/bench/coda_epsilon.py`.

use burn::module::{Module, Param};
use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor, activation};
use peft_core::{
    Base, Error, Frame, Hooks, Key, Mask, Method, Next, Part, Procedure, Result, Sequence, Shape, Site, SiteMap, Stack,
    adapter, random::Random, split_name,
};
use serde::{Deserialize, Serialize};

use super::bottleneck::{Activation, Bottleneck, check_width, count, key};

/// What the entropy's weight starts from, and by which factor it shrinks at each step: few steps then come near the maximum.
const ANNEALING: (f64, f64) = (4.0, 0.7);

/// The configuration of CoDA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CodaConfig {
    /// By how much r the number of tokens that run through the frozen layers is divided.
    pub reduction: usize,
    /// Width m of the adapters' bottleneck.
    pub bottleneck: usize,
    /// Steps of the coordinate ascent.
    pub iterations: usize,
    /// The weight e of the entropy after the last of them: the smaller, the harder the choice.
    pub epsilon: f64,
}

impl Default for CodaConfig {
    /// The paper's: a third of the tokens, adapters of width 64, 20 steps; of its range for the entropy, 0.02 to 1, the softest, by the
    /// measurement in the card.
    fn default() -> Self {
        CodaConfig::new(3)
    }
}

impl CodaConfig {
    /// With one in so many tokens through the frozen layers.
    pub fn new(reduction: usize) -> Self {
        CodaConfig { reduction, bottleneck: 64, iterations: 20, epsilon: 1.0 }
    }

    /// With adapters of this width.
    pub fn with_bottleneck(mut self, width: usize) -> Self {
        self.bottleneck = width;
        self
    }

    /// With so many steps to an entropy of this weight.
    pub fn with_ascent(mut self, iterations: usize, epsilon: f64) -> Self {
        (self.iterations, self.epsilon) = (iterations, epsilon);
        self
    }

    /// The layers with an adapter; refuses settings that cannot be.
    fn plan(&self, shape: &Shape) -> Result<Vec<Site>> {
        check_width(self.bottleneck, shape)?;
        if self.reduction == 0 {
            return Err(Error::config("reduction", 0, "at least 1"));
        }
        if !(1..=10_000).contains(&self.iterations) {
            return Err(Error::config("iterations", self.iterations, "1 to 10000"));
        }
        if !(self.epsilon > 0.0 && self.epsilon <= ANNEALING.0) {
            return Err(Error::config("epsilon", self.epsilon, format!("a number above 0, at most {}", ANNEALING.0)));
        }
        let layers: Vec<Site> =
            shape.sites(Part::Layer).into_iter().filter(|site| site.stack == Stack::Encoder).collect();
        if layers.is_empty() {
            let expected = "a model with an encoder: in a decoder the choice of tokens would look ahead";
            return Err(Error::config("model", "a decoder alone", expected));
        }
        Ok(layers)
    }
}

/// Adapters beside layers, and what chooses the tokens that run through these.
#[derive(Module, Debug)]
pub struct Coda {
    /// `[d]` each; none, if all tokens run.
    routers: SiteMap<Param<Tensor<1>>>,
    adapters: SiteMap<Bottleneck>,
    #[module(skip)]
    config: CodaConfig,
}

impl Method for CodaConfig {
    const NAME: &'static str = "coda";
    const PEFT_TYPE: &'static str = "CODA";
    type Tuner = Coda;

    fn init(&self, base: &Base, seed: u64) -> Result<Coda> {
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        let (layers, d) = (self.plan(shape)?, shape.hidden);
        let random = |site: &Site, leaf| Random::new(seed, &format!("coda.{site}.{leaf}"));
        let router =
            |site: &Site| (*site, Param::from_tensor(random(site, "router").normal_tensor([d], 0.02, &device)));
        let adapter = |site: &Site| (*site, Bottleneck::kaiming(d, self.bottleneck, random(site, "down"), &device));
        Ok(Coda {
            routers: layers.iter().filter(|_| self.reduction > 1).map(router).collect(),
            adapters: layers.iter().map(adapter).collect(),
            config: self.clone(),
        })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        let router = if self.reduction > 1 { shape.hidden } else { 0 };
        Ok(self.plan(shape)?.len() * (count(shape.hidden, self.bottleneck) + router))
    }

    fn key(&self, name: &str, shape: &Shape) -> Key {
        match split_name(name) {
            ("routers", site, _) => key(shape, site, "router"),
            (_, site, leaf) => key(shape, site, leaf),
        }
    }
}

impl Hooks for Coda {
    fn layer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence>) -> Sequence {
        let Some(adapter) = self.adapters.get(site) else { return next(x) };
        // Normalized as for the layer's own attention.
        let read = match frame.shape().pre_norm() {
            true => frame.norm(Site { part: Part::NormAttention, ..site }, x.hidden.clone()),
            false => x.hidden.clone(),
        };
        let added = adapter.forward(read.clone(), Activation::Relu);
        let hidden = match self.routers.get(site) {
            Some(router) if x.hidden.dims()[1] > 1 => {
                let scores = read.matmul(router.val().unsqueeze_dims::<3>(&[0, 2])).squeeze_dim(2);
                Route::new(scores, x.mask.padding.clone(), &self.config).run(x.clone(), next)
            }
            _ => next(x.clone()).hidden,
        };
        Sequence { hidden: hidden + added, ..x }
    }
}

adapter!(Coda);
impl Procedure for Coda {
    /// A head that reads one row leaves the last router without a gradient in every step in which that row is not chosen.
    fn may_rest(&self, name: &str) -> bool {
        name.starts_with("routers.")
    }
}

/// The tokens of a batch that run through a layer. A shorter sequence has fewer, which leaves places free.
struct Route {
    /// Which tokens, `[batch, k]`.
    tokens: Tensor<2, Int>,
    /// True where a place is free, `[batch, k]`.
    free: Tensor<2, Bool>,
    /// How much of what the layer does to a token is done, `[batch, k]`; 0 in a free place.
    share: Tensor<2>,
}

impl Route {
    /// By scores `[batch, tokens]`.
    fn new(scores: Tensor<2>, padding: Option<Tensor<2, Bool>>, config: &CodaConfig) -> Self {
        let ([batch, n], device) = (scores.dims(), scores.device().inner());
        let padding = padding.unwrap_or_else(|| Tensor::full([batch, n], false, &device));
        let lengths = padding.clone().bool_not().float().sum_dim(1);
        let chosen = (lengths.clone() / config.reduction as f64).ceil();
        let share = soft_top_k(scores.clone(), padding.clone(), chosen.clone(), config.iterations, config.epsilon);
        let all = lengths.lower_equal(chosen.clone()).expand([batch, n]).bool_and(padding.clone().bool_not());
        let k = n.div_ceil(config.reduction);
        let order = scores.inner().mask_fill(padding, f32::MIN).argsort_descending(1);
        let tokens = order.narrow(1, 0, k);
        let places = Tensor::<1, Int>::arange(0..k as i64, &device).float().unsqueeze::<2>().expand([batch, k]);
        let free = places.greater_equal(chosen.expand([batch, k]));
        let share = share.mask_fill(all, 1.0).gather(1, tokens.clone()).mask_fill(free.clone(), 0.0);
        Route { tokens, free, share }
    }

    /// The states `[batch, tokens, d]` after the layer.
    fn run(self, x: Sequence, next: Next<'_, Sequence>) -> Tensor<3> {
        let Route { tokens, free, share } = self;
        let ([_, n, d], [batch, k]) = (x.hidden.dims(), tokens.dims());
        let rows = tokens.clone().unsqueeze_dim::<3>(2).expand([batch, k, d]);
        let chosen = x.hidden.clone().gather(1, rows.clone());
        let bias = x.mask.bias.as_ref().map(|bias| {
            let [_, heads, _, columns] = bias.dims();
            let pairs = tokens.clone().unsqueeze_dim::<3>(2) * columns as i32 + tokens.unsqueeze_dim::<3>(1);
            let flat = bias.clone().reshape([heads, n * columns]).select(1, pairs.reshape([batch * k * k]));
            flat.reshape([heads, batch, k, k]).swap_dims(0, 1)
        });
        let mask = Mask { padding: Some(free), bias, ..x.mask.clone() };
        let output = next(Sequence { hidden: chosen.clone(), mask, ..x.clone() }).hidden;
        let update = (output - chosen) * share.unsqueeze_dim::<3>(2);
        let nothing = Tensor::zeros([batch, n, d], &x.hidden.device().inner());
        x.hidden + nothing.scatter(1, rows, update, IndexingUpdateOp::Add)
    }
}

/// The l in [0, 1] with the sum `k` `[batch, 1]` that maximize s . l + e H(l), 0 at padding, for scores s `[batch, tokens]`: by
/// coordinate ascent on the multipliers of the two constraints, while e falls.
fn soft_top_k(scores: Tensor<2>, padding: Tensor<2, Bool>, k: Tensor<2>, iterations: usize, epsilon: f64) -> Tensor<2> {
    let (start, factor) = ANNEALING;
    let (mut e, log_k) = (start, k.log());
    let mut b = scores.clone().neg();
    let mut l = scores.zeros_like();
    for _ in 0..iterations {
        e = f64::max(e, epsilon);
        let z = ((scores.clone() + b) / e).mask_fill(padding.clone(), f32::MIN / 2.0);
        let largest = z.clone().inner().max_dim(1);
        let log_sum = (z - largest.clone()).exp().sum_dim(1).log() + largest;
        let a = (log_k.clone() - log_sum) * e;
        let z = scores.clone() + a;
        b = activation::relu(z.clone()).neg();
        l = ((z + b.clone()) / e).exp();
        e *= factor;
    }
    l.mask_fill(padding, 0.0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use peft_core::testing::tolerances::SAME_FUNCTION;
    use peft_core::testing::{assert_close, base, device};
    use proptest::prelude::*;

    use super::*;

    /// Those with an encoder.
    const ENCODING: [&str; 3] = ["roberta-tiny", "bert-tiny", "t5-tiny"];

    mod routed {
        use super::*;
        peft_core::conformance!(
            CodaConfig::new(2).with_bottleneck(5),
            only(ENCODING: "in a decoder the choice of tokens would look ahead"),
            skip(C1: "tokens that are not chosen pass the layer by", C3: "which tokens run is known at run time")
        );
    }

    mod all_tokens {
        use super::*;
        peft_core::conformance!(
            CodaConfig::new(1).with_bottleneck(5),
            only(ENCODING: "in a decoder the choice of tokens would look ahead"),
            skip(C3: "an adapter beside a whole layer is no weight")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_closed_form_says() {
        let shape = Shape::named("roberta-base").unwrap();
        assert_eq!(CodaConfig::default().count(&shape).unwrap(), 1_198_848);
        assert_eq!(CodaConfig::new(1).count(&shape).unwrap(), 1_198_848 - 12 * 768);
    }

    /// Scores of two sequences, the second of them with three tokens less, and the numbers of tokens to choose.
    fn problem(seed: u64) -> (Tensor<2>, Tensor<2, Bool>, Tensor<2>) {
        let scores: Tensor<2> = Random::new(seed, "scores").normal_tensor([2, 11], 1.0, &device());
        let padding = Tensor::<1, Int>::arange(0..11, &device()).greater_equal_elem(8).unsqueeze::<2>();
        let padding = Tensor::cat(vec![Tensor::full([1, 11], false, &device()), padding], 0);
        (scores, padding, Tensor::from_data([[4.0f32], [3.0]], &device()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// l = min(1, exp((s + a) / e)), with the a that gives the sum found by bisection in f64.
        #[test]
        fn soft_top_k_is_the_maximum(seed: u64) {
            let (scores, padding, k) = problem(seed);
            let epsilon = 0.5;
            let rows = scores.clone().into_data().iter::<f32>().map(f64::from).collect::<Vec<_>>();
            let mut expected = Vec::new();
            for (row, n, k) in [(&rows[..11], 11, 4.0), (&rows[11..], 8, 3.0)] {
                let shares = |a: f64| row.iter().enumerate().map(move |(i, s)| if i < n { ((s + a) / epsilon).exp().min(1.0) } else { 0.0 });
                let (mut low, mut high) = (-50.0, 50.0);
                for _ in 0..200 {
                    let middle = (low + high) / 2.0;
                    if shares(middle).sum::<f64>() < k { low = middle } else { high = middle }
                }
                expected.extend(shares(low).map(|l| l as f32));
            }
            let found = soft_top_k(scores.clone(), padding.clone(), k.clone(), 2000, epsilon);
            let expected = Tensor::<2>::from_data(TensorData::new(expected, [2, 11]), &device());
            assert_close(found, expected, SAME_FUNCTION, "the maximum");
            // A few steps are within the bounds already.
            let few = soft_top_k(scores, padding, k, 20, epsilon).into_data();
            prop_assert!(few.iter::<f32>().all(|l| (0.0..=1.0).contains(&l)));
        }

        /// Where scores lie apart.
        #[test]
        fn soft_top_k_without_entropy_chooses_hard(seed: u64) {
            let (_, padding, k) = problem(seed);
            let order = Random::new(seed, "order").permutation(8);
            let row: Vec<f32> = (0..11).map(|i| order.get(i).map_or(-3.5, |rank| *rank as f32)).collect();
            let scores = Tensor::<2>::from_data(TensorData::new([row.clone(), row.clone()].concat(), [2, 11]), &device());
            let hard = |k: usize| row.iter().map(move |s| f32::from(*s >= 8.0 - k as f32));
            let expected: Vec<f32> = hard(4).chain(hard(3)).collect();
            let found = soft_top_k(scores, padding, k, 500, 0.02);
            let expected = Tensor::<2>::from_data(TensorData::new(expected, [2, 11]), &device());
            assert_close(found, expected, SAME_FUNCTION, "the largest");
        }
    }

    /// On scores as spread as those of new routers on states of width 384. With a small e the sum is far from k yet, and what one
    /// score moves is many times as much.
    #[test]
    fn the_default_ascent_arrives_and_is_gentle() {
        let CodaConfig { iterations, epsilon, .. } = CodaConfig::default();
        assert_eq!((iterations, epsilon), (20, 1.0));
        let (device, k) = (device().autodiff(), Tensor::<2>::full([32, 1], 8.0, &device()));
        let ascent = |epsilon: f64| {
            let scores: Tensor<2> = Random::new(3, "scores").normal_tensor([32, 24], 0.2, &device);
            let (scores, padding) = (scores.require_grad(), Tensor::full([32, 24], false, &device.clone().inner()));
            let l = soft_top_k(scores.clone(), padding, k.clone(), iterations, epsilon);
            let sums = l.clone().inner().sum_dim(1) / 8.0;
            let moved = scores.grad(&l.powi_scalar(2).sum().backward()).unwrap();
            (sums, moved.abs().mean().into_scalar::<f32>())
        };
        let ((sums, gentle), (short, rough)) = (ascent(epsilon), ascent(0.03));
        assert_close(sums, Tensor::ones([32, 1], &k.device()), SAME_FUNCTION, "sum l / k");
        assert!(short.mean().into_scalar::<f32>() < 0.95);
        assert!(rough > 5.0 * gentle, "{rough} against {gentle}");
    }

    /// From b = -s the first step's sum of exponentials is the number of tokens: l = min(1, k / n exp(s / 4)).
    #[test]
    fn the_first_step_is_that_from_minus_the_scores() {
        let (scores, padding, k) = problem(1);
        let found = soft_top_k(scores.clone(), padding.clone(), k.clone(), 1, 1.0);
        let tokens = padding.clone().bool_not().float().sum_dim(1);
        let expected = ((scores / ANNEALING.0).exp() * (k / tokens)).clamp_max(1.0).mask_fill(padding, 0.0);
        assert_close(found, expected, SAME_FUNCTION, "one step");
    }

    #[test]
    fn only_routers_may_rest() {
        let coda = CodaConfig::new(2).init(&base("t5-tiny", &device()), 1).unwrap();
        let names: Vec<String> = peft_core::view::tensors(&coda).into_keys().collect();
        assert!(names.iter().all(|name| coda.may_rest(name) != name.starts_with("adapters.")));
    }

    /// Beside a longer one, and after a single step of the ascent, which has not arrived.
    #[test]
    fn a_token_alone_is_not_shared() {
        let scores = Tensor::<2>::from_data([[-3.0f32, 0.0, 0.0], [0.0, 1.0, 2.0]], &device());
        let padding = Tensor::<2, Bool>::from_data([[false, true, true], [false, false, false]], &device());
        let share = Route::new(scores, Some(padding), &CodaConfig::new(2).with_ascent(1, 1.0)).share;
        let share = share.into_data().iter::<f32>().collect::<Vec<_>>();
        assert_eq!(share[..2], [1.0, 0.0]);
        assert!(share[3] < 1.0, "{share:?}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let [roberta, llama] = ["roberta-tiny", "llama-tiny"].map(|name| base(name, &device()));
        let good = CodaConfig::new(2).with_bottleneck(5);
        for (config, base, words) in [
            (good.clone().with_bottleneck(0), &roberta, ["bottleneck", "0", "1 to 384"]),
            (CodaConfig { reduction: 0, ..good.clone() }, &roberta, ["reduction", "0", "at least 1"]),
            (good.clone().with_ascent(0, 0.1), &roberta, ["iterations", "0", "1 to 10000"]),
            (good.clone().with_ascent(20, 0.0), &roberta, ["epsilon", "0", "at most 4"]),
            (good.clone().with_ascent(20, f64::NAN), &roberta, ["epsilon", "NaN", "above 0"]),
            (good, &llama, ["model", "a decoder alone", "an encoder"]),
        ] {
            for message in [config.init(base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
                let message = message.to_string();
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
        }
    }
}
