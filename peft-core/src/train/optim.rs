//! The optimizer driver: any rule of burn-optim, with states by parameter that can be read, set, reset and saved by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param, ParamId};
#[cfg(feature = "train")]
use burn::optim::{AdafactorConfig, AdamWConfig};
use burn::optim::{DynOptimizer, DynState, GradientsParams, Optimizer, StateSink, StateSource};
use burn::tensor::{Device, Tensor};

use super::Pages;
#[cfg(feature = "train")]
use super::{Paged, Rule, TrainConfig};
#[cfg(feature = "train")]
use crate::Result;
use crate::view::{Visit, visit};

/// An optimizer and its states.
#[derive(Clone)]
pub struct Optim {
    rule: Arc<dyn DynOptimizer>,
    /// The same without weight decay.
    undecayed: Arc<dyn DynOptimizer>,
    states: BTreeMap<ParamId, DynState>,
    #[cfg_attr(not(feature = "train"), allow(dead_code))]
    pages: Pages,
}

/// How a parameter is updated.
pub(crate) struct Update {
    /// Its learning rate.
    pub rate: f64,
    /// Whether weight decay acts on it.
    pub decays: bool,
}

impl Optim {
    /// Without states yet.
    pub fn new(rule: impl Optimizer) -> Self {
        let rule: Arc<dyn DynOptimizer> = Arc::new(rule);
        Optim { undecayed: rule.clone(), rule, states: BTreeMap::new(), pages: Pages::default() }
    }

    /// The same with this rule, which has no weight decay, for parameters of which a method says that they do not decay.
    pub fn with_undecayed(self, rule: impl Optimizer) -> Self {
        Optim { undecayed: Arc::new(rule), ..self }
    }

    /// Whether parameters of which a method says that they do not decay would: one without a gradient moves.
    pub(crate) fn decays_all(&self, device: &Device) -> bool {
        let [value, gradient] = [1.0, 0.0].map(|x| Tensor::<1>::from_floats([x], device).into_bridge());
        let (moved, _) = self.undecayed.step_dyn(1, 1.0, value, gradient, None);
        Tensor::<1>::from_bridge(moved).into_scalar::<f32>() != 1.0
    }

    /// The rule that the settings of a run name, without states yet.
    #[cfg(feature = "train")]
    pub(crate) fn of(config: &TrainConfig) -> Self {
        let pages = Pages::new(config.paging.clone());
        let adamw = |weight_decay: f64| {
            let adamw = AdamWConfig::new()
                .with_beta_1(config.adam_beta1 as f32)
                .with_beta_2(config.adam_beta2 as f32)
                .with_epsilon(config.adam_epsilon as f32);
            adamw.with_weight_decay(weight_decay as f32).build()
        };
        let rule = |weight_decay: f64| match config.optim {
            Rule::AdamW => Optim::new(adamw(weight_decay)),
            Rule::PagedAdamW => Optim::new(Paged::new(adamw(weight_decay), &pages)),
            Rule::Other(rule) => (rule.build)(config, weight_decay, &pages),
            Rule::Adafactor => {
                let adafactor = AdafactorConfig::new().with_relative_step(false).with_scale_parameter(false);
                Optim::new(adafactor.with_weight_decay(weight_decay as f32).build())
            }
        };
        Optim { undecayed: rule(0.0).rule, pages: pages.clone(), ..rule(config.weight_decay) }
    }

    /// What has gone wrong with its states.
    #[cfg(feature = "train")]
    pub(crate) fn check(&self) -> Result<()> {
        self.pages.check()
    }

    /// One step on every parameter that has a gradient; `lr` is asked by the parameter's name.
    pub fn step<M: Module>(&mut self, module: M, gradients: GradientsParams, lr: impl Fn(&str) -> f64) -> M {
        self.update(module, gradients, |name| Update { rate: lr(name), decays: true })
    }

    /// The same where not every parameter decays.
    pub(crate) fn update<M: Module>(
        &mut self,
        module: M,
        gradients: GradientsParams,
        of: impl Fn(&str) -> Update,
    ) -> M {
        struct Step<'a, F> {
            optim: &'a mut Optim,
            gradients: GradientsParams,
            of: F,
            path: Vec<String>,
        }
        impl<F: Fn(&str) -> Update> ModuleMapper for Step<'_, F> {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.to_string());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let Some(gradient) = self.gradients.remove::<D>(param.id) else { return param };
                let (id, Update { rate, decays }) = (param.id, (self.of)(&self.path.join(".")));
                let rule = if decays { &self.optim.rule } else { &self.optim.undecayed };
                param.map(|value| {
                    let tracked = value.is_require_grad();
                    let state = self.optim.states.remove(&id);
                    let (value, gradient) = (value.inner().into_bridge(), gradient.into_bridge());
                    let (value, state) = rule.step_dyn(D, rate, value, gradient, state);
                    if let Some(state) = state {
                        self.optim.states.insert(id, state);
                    }
                    let value = Tensor::<D>::from_inner(Tensor::<D>::from_bridge(value));
                    if tracked { value.require_grad() } else { value }
                })
            }
        }
        module.map(&mut Step { optim: self, gradients, of, path: vec![] })
    }

    /// The state of a parameter, as burn-optim's rule keeps it (`AdamWState<2>` for AdamW on a matrix).
    ///
    /// # Panics
    /// If the rule keeps another type.
    pub fn state<S: Clone + Send + Sync + 'static>(&self, id: ParamId) -> Option<S> {
        self.states.get(&id).map(|state| state.downcast_ref::<S>().clone())
    }

    /// Replaces the state of a parameter of this rank.
    pub fn set_state<S: Send + Sync + 'static>(&mut self, id: ParamId, rank: usize, state: S) {
        self.states.insert(id, DynState::create(state, rank));
    }

    /// Forgets the state of a parameter.
    pub fn reset(&mut self, id: ParamId) {
        self.states.remove(&id);
    }

    /// All states, by the names of the module's parameters.
    pub fn save<M: Module>(&self, module: &M) -> StateSink {
        struct Save<'a>(&'a Optim, StateSink);
        impl Visit for Save<'_> {
            fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
                if let Some(state) = self.0.states.get(&id) {
                    self.0.rule.state_flatten(name, state, &mut self.1);
                }
            }
        }
        let mut save = Save(self, StateSink::default());
        visit(module, &mut save);
        save.1
    }

    /// The same rule with the states that [`save`](Self::save) gave, for a module with the same names.
    pub fn load<M: Module>(&self, module: &M, saved: StateSink, device: &Device) -> Self {
        struct Load<'a>(Optim, StateSource, &'a Device);
        impl Visit for Load<'_> {
            fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
                if let Some(state) = self.0.rule.state_unflatten(D, name, &mut self.1, self.2) {
                    self.0.states.insert(id, state);
                }
            }
        }
        let mut source = StateSource::new(saved.scalars.into_iter().collect());
        for (name, data) in saved.tensors {
            source.insert_tensor(name, data);
        }
        let mut load = Load(Optim { states: BTreeMap::new(), ..self.clone() }, source, device);
        visit(module, &mut load);
        load.0
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;
    use crate::Affine;
    use crate::random::Random;
    use crate::testing::tolerances::SAME_FUNCTION;
    use crate::testing::{assert_close, device};

    const RATE: f64 = 0.1;

    fn map() -> Affine {
        Affine::init([3, 2], 0.5, Random::new(1, "map"), &device().autodiff())
    }

    /// What step 1, 2, .. gets.
    fn gradients(map: &Affine, step: usize) -> GradientsParams {
        let random = |leaf| Random::new(step as u64, leaf);
        let mut gradients = GradientsParams::new();
        gradients.register(map.weight.id, random("weight").normal_tensor::<2>([3, 2], 1.0, &device()));
        gradients.register(map.bias.id, random("bias").normal_tensor::<1>([2], 1.0, &device()));
        gradients
    }

    fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
        tensor.into_data().iter::<f32>().map(f64::from).collect()
    }

    /// Against its equations in f64, with weight decay of the matrix alone.
    #[test]
    fn steps_are_adamw_with_the_settings_of_the_run() {
        let config = TrainConfig {
            adam_beta1: 0.7,
            adam_beta2: 0.8,
            adam_epsilon: 0.05,
            weight_decay: 0.3,
            ..TrainConfig::default()
        };
        let (mut optim, mut trained) = (Optim::of(&config), map());
        trained.bias = trained.bias.set_require_grad(false);
        let mut expected: Vec<(f64, [f64; 2])> = [numbers(trained.weight.val()), numbers(trained.bias.val())]
            .concat()
            .into_iter()
            .map(|x| (x, [0.0; 2]))
            .collect();
        for step in 1..=3 {
            let given = gradients(&trained, step);
            let all = [
                numbers(given.get::<2>(trained.weight.id).unwrap()),
                numbers(given.get::<1>(trained.bias.id).unwrap()),
            ];
            for (i, ((x, [m, v]), g)) in expected.iter_mut().zip(all.concat()).enumerate() {
                let decay = if i < 6 { config.weight_decay } else { 0.0 };
                *m = config.adam_beta1 * *m + (1.0 - config.adam_beta1) * g;
                *v = config.adam_beta2 * *v + (1.0 - config.adam_beta2) * g * g;
                let unbiased = |x: f64, beta: f64| x / (1.0 - beta.powi(step as i32));
                let size = unbiased(*v, config.adam_beta2).sqrt() + config.adam_epsilon;
                *x -= RATE * (decay * *x + unbiased(*m, config.adam_beta1) / size);
            }
            trained = optim.update(trained, given, |name| Update { rate: RATE, decays: name == "weight" });
        }
        let expected: Vec<f32> = expected.into_iter().map(|(x, _)| x as f32).collect();
        let found = Tensor::cat(vec![trained.weight.val().inner().flatten::<1>(0, 1), trained.bias.val()], 0);
        assert_close(found, Tensor::from_data(&expected[..], &device()), SAME_FUNCTION, "three steps");
        assert!(trained.weight.val().is_require_grad() && !trained.bias.val().is_require_grad());
        optim.reset(trained.weight.id);
        assert!(optim.state::<()>(trained.weight.id).is_none());
    }

    /// A step of Adafactor is proportional to the rate, however large, whatever the parameter's size, and its decay to both.
    #[test]
    fn adafactor_follows_the_rate_and_decays() {
        let moved = |weight_decay: f64, rate: f64, size: f64| {
            let config = TrainConfig { optim: Rule::Adafactor, weight_decay, ..TrainConfig::default() };
            let mut start = map();
            start.weight = start.weight.map(|w| Tensor::from_inner(w.inner() * size).require_grad());
            let given = gradients(&start, 1);
            let end = Optim::of(&config).step(start.clone(), given, |_| rate);
            (end.weight.val() - start.weight.val()).inner()
        };
        let step = moved(0.0, RATE, 1.0);
        for times in [2.0, 30.0] {
            let found = moved(0.0, times * RATE, 1.0);
            assert_close(found, step.clone() * times, SAME_FUNCTION, &format!("{times} times the rate"));
        }
        assert_close(moved(0.0, RATE, 3.0), step.clone(), SAME_FUNCTION, "a larger parameter");
        let decay = map().weight.val().inner() * (-RATE * 0.3);
        assert_close(moved(0.3, RATE, 1.0), step + decay, SAME_FUNCTION, "with decay");
    }
}
