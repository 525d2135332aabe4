//! The optimizer driver: any rule of burn-optim, with states by parameter that can be read, set, reset and saved by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param, ParamId};
#[cfg(feature = "train")]
use burn::optim::{AdafactorConfig, AdamWConfig};
use burn::optim::{DynOptimizer, DynState, GradientsParams, Optimizer, StateSink, StateSource};
use burn::tensor::{Device, Tensor};

#[cfg(feature = "train")]
use super::{Rule, TrainConfig};
use crate::view::{Visit, visit};

/// An optimizer and its states.
#[derive(Clone)]
pub struct Optim {
    rule: Arc<dyn DynOptimizer>,
    /// The same without weight decay.
    undecayed: Arc<dyn DynOptimizer>,
    states: BTreeMap<ParamId, DynState>,
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
        Optim { undecayed: rule.clone(), rule, states: BTreeMap::new() }
    }

    /// The rule that the settings of a run name, without states yet.
    #[cfg(feature = "train")]
    pub(crate) fn of(config: &TrainConfig) -> Self {
        let rule = |weight_decay: f64| match config.optim {
            Rule::AdamW => {
                let adamw = AdamWConfig::new()
                    .with_beta_1(config.adam_beta1 as f32)
                    .with_beta_2(config.adam_beta2 as f32)
                    .with_epsilon(config.adam_epsilon as f32);
                Optim::new(adamw.with_weight_decay(weight_decay as f32).build())
            }
            Rule::Adafactor => {
                let adafactor = AdafactorConfig::new().with_relative_step(false).with_scale_parameter(false);
                Optim::new(adafactor.with_weight_decay(weight_decay as f32).build())
            }
        };
        Optim { undecayed: rule(0.0).rule, ..rule(config.weight_decay) }
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
