//! A method on a burn module that is not of this library, trained in a loop of one's own.
//!
//! The module's linear maps and normalizations are shown to the method as the sites of a base, and the method's own hooks give what
//! each becomes: a linear map is what its hook makes of the unit vectors. Gradients flow through that into the method's tensors.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;

use crate::models::plain;
use crate::random::Random;
use crate::train::{Length, Optim, Probe, TrainConfig, Update};
use crate::view::{self, Rewrite, shapes, tensors, trainable, with_ids_from_names, with_values};
use crate::{Base, Batch, Error, Example, Head, Hooks, Method, Part, Place, Procedure, Result, Site, Slot, States};
use crate::{Tuner, Weight};

/// A method with a choice of modules by their paths.
pub trait On: Method {
    /// On the modules whose path, such as `layers.0.mha.query`, ends in a match of the pattern; an error of a method that has no setting
    /// for them.
    fn on(&self, pattern: &str) -> Result<Self> {
        let key = "target_modules";
        let wanted = Value::from(format!(r"(.*\.)?({pattern})"));
        let told = |error: serde_json::Error| Error::config(key, pattern, error.to_string());
        let mut settings = serde_json::to_value(self).map_err(told)?;
        settings[key] = wanted.clone();
        let none = || Error::config(key, pattern, format!("none: {} has no setting for its modules", Self::NAME));
        let config: Self = serde_json::from_value(settings).map_err(|_| none())?;
        match serde_json::to_value(&config).map_err(told)?.get(key) == Some(&wanted) {
            true => Ok(config),
            false => Err(none()),
        }
    }
}

impl<M: Method> On for M {}

/// A frozen module with a method on its weights. Its steps are called in this order: [`start`](Self::start), then for each step
/// [`draw`](Self::draw) and [`step`](Self::step), at last [`finish`](Self::finish).
#[derive(Clone, Debug)]
pub struct Applied<M: Module, C: Method> {
    module: M,
    #[cfg_attr(not(feature = "load"), allow(dead_code))]
    config: C,
    base: Base,
    tuner: C::Tuner,
    random: Random,
    /// Steps that are done.
    steps: usize,
    /// The step behind which each phase ends.
    phases: Vec<usize>,
}

impl<M: Module, C: Method> Applied<M, C> {
    /// The method at its start, on the module's linear maps and normalizations; tables of words and other tensors stay as they are.
    /// The seed decides every random number. An error if the method acts on something other than weights, has dropout on the inputs of
    /// linear maps, which weights do not see, or finds none of its modules, or if a matrix has a reparameterization of burn's.
    pub fn new(module: M, config: C, seed: u64) -> Result<Self> {
        check_dropout::<C>(&config)?;
        let base = base_of(&module)?;
        let tuner = with_ids_from_names(config.init(&base, seed)?)?;
        Self::of(module, config, base, tuner, seed)
    }

    fn of(module: M, config: C, base: Base, tuner: C::Tuner, seed: u64) -> Result<Self> {
        if C::merge(&tuner).is_none() || tuner.as_adapter().is_none() {
            let expected = "a method that is merged into weights: this one does not work on weights alone";
            return Err(Error::config("method", C::NAME, expected));
        }
        Ok(Applied { module, config, base, tuner, random: Random::new(seed, "applied"), steps: 0, phases: vec![] })
    }

    /// Before the first step of a run of this many. A method that looks at examples of the data here is an error: the loop is not ours.
    pub fn start(self, steps: usize) -> Result<Self> {
        let add = |end: &mut usize, phase: crate::train::Phase| {
            *end += phase.steps;
            Some(*end)
        };
        let phases = self.tuner.phases(steps).into_iter().scan(0, add).collect();
        Applied { phases, steps: 0, ..self }.prepared(0)
    }

    fn prepared(self, phase: usize) -> Result<Self> {
        let steps = self.phases.last().copied().unwrap_or_default();
        let run = TrainConfig { length: Length::Steps(steps), ..TrainConfig::default() };
        let head = Head::States(States {});
        let data = Probe::new(&head, &[]).with_run(&run).with_phase(phase);
        Ok(Applied { tuner: with_ids_from_names(self.tuner.prepare(&self.base, data)?)?, ..self })
    }

    /// Draws what is random in the next step (a rank, a mask), and gives the [`module`](Self::module) for it.
    pub fn draw(&mut self) -> Result<M> {
        self.tuner = self.tuner.clone().sample(&mut self.random);
        self.module()
    }

    /// The module as the method makes it. It lives for one run: gradients flow through it into the method's tensors.
    pub fn module(&self) -> Result<M> {
        let device = self.base.device().clone().autodiff();
        let batch = Batch::new([&Example { ids: vec![0], ..Example::default() }], 0, self.base.device())?;
        let mut module = None;
        let adapter = self.tuner.as_adapter().unwrap_or_else(|| unreachable!("`new` has refused what is none"));
        adapter.open_any(&batch, &mut |hooks| {
            module = Some(view::view(&self.module, &mut Effective { base: &self.base, hooks, device: &device }));
        });
        Ok(module.unwrap_or_else(|| unreachable!("an adapter opens once")))
    }

    /// One step down the loss of a run of what [`draw`](Self::draw) gave, with what the method adds to it and does about it. A loss that
    /// is no finite number is an error, and so is weight decay of what the method keeps from it (see [`Optim::with_undecayed`]). Each phase
    /// of a method has the optimizer's states for itself.
    pub fn step(self, loss: Tensor<1>, optim: &mut Optim, rate: f64) -> Result<Self> {
        let Applied { mut tuner, steps, .. } = self;
        let steps = steps + 1;
        let loss = tuner.penalty().map_or(loss.clone(), |penalty| loss + penalty);
        let value = loss.clone().into_scalar::<f32>();
        if !value.is_finite() {
            return Err(Error::config("loss", value, format!("a finite number in step {steps}")));
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &tuner);
        let gradients = tuner.gradients(gradients, steps);
        let before = tuner.clone();
        if let Some((name, _)) = shapes(&tuner).into_iter().find(|(name, _)| !before.decays(name))
            && optim.decays_all(self.base.device())
        {
            let expected = "the same without, by `Optim::with_undecayed`, for what the method keeps from decay";
            return Err(Error::config("optimizer", format!("weight decay, which {name} must not have"), expected));
        }
        let of = |name: &str| Update { rate: before.rate(name, rate), decays: before.decays(name) };
        let tuner = optim.update(tuner, gradients, of);
        let tuner = with_ids_from_names(tuner.after_step(&self.base, optim, &before, steps)?)?;
        let applied = Applied { tuner, steps, ..self };
        let ended = applied.phases.iter().position(|end| *end == steps).map(|phase| phase + 1);
        let Some(phase) = ended.filter(|phase| *phase < applied.phases.len()) else { return Ok(applied) };
        view::visit(&applied.tuner, &mut Forget(optim));
        applied.prepared(phase)
    }

    /// After the last step.
    pub fn finish(self) -> Result<Self> {
        Ok(Applied { tuner: self.tuner.finish(&self.base)?, ..self })
    }

    /// How many numbers are trained.
    pub fn trainable(&self) -> usize {
        trainable(&self.tuner)
    }

    /// The method's tensors.
    pub fn tuner(&self) -> &C::Tuner {
        &self.tuner
    }

    /// The same with other values of the method's tensors, by name.
    pub fn with_tuner(self, tuner: C::Tuner) -> Self {
        Applied { tuner, ..self }
    }

    /// The module with the method folded into its weights, which knows nothing of the method any more.
    pub fn merge(self) -> Result<M> {
        let Some(method) = C::merge(&self.tuner) else { unreachable!("`new` has refused what does not merge") };
        let merged = self.base.merged(method);
        let value = |place: Place| match place.slot {
            Slot::Weight => (place.name, merged.weight(place.site).dense().into_data()),
            slot => (place.name, merged.vector(place.site, slot).into_data()),
        };
        with_values(self.module, &merged.shape().places().into_iter().map(value).collect())
    }
}

#[cfg(feature = "load")]
impl<M: Module, C: Method> Applied<M, C> {
    /// Writes the method's settings and tensors, and the fingerprint of the module's weights, as an adapter directory, all or nothing.
    pub fn save(&self, dir: &std::path::Path) -> Result<()> {
        let trained = crate::Trained::new(self.tuner.clone(), Head::States(States {}))?;
        let labels = crate::io::peft::Labels::of("module", &self.base, vec![]);
        crate::io::record::save(dir, &crate::AnyMethod::new(self.config.clone()), &trained, self.base.shape(), &labels)
    }

    /// What [`save`](Self::save) wrote, on the module that it was trained on.
    pub fn load(module: M, dir: &std::path::Path) -> Result<Self> {
        let base = base_of(&module)?;
        let (config, trained) = crate::io::record::load::<C>(dir, &base)?;
        Self::of(module, config, base, trained.tuner, 0)
    }
}

/// Forgets an optimizer's states.
struct Forget<'a>(&'a mut Optim);

impl view::Visit for Forget<'_> {
    fn tensor<const D: usize>(&mut self, _: &str, id: ParamId, _: Tensor<D>) {
        self.0.reset(id);
    }
}

/// Refuses dropout on the inputs of linear maps.
fn check_dropout<C: Method>(config: &C) -> Result<()> {
    let settings = serde_json::to_value(config).unwrap_or_default();
    let drops = |(key, value): &(&String, &Value)| key.contains("dropout") && value.as_f64().is_some_and(|p| p > 0.0);
    match settings.as_object().and_then(|settings| settings.iter().find(drops)) {
        Some((key, value)) => Err(Error::config(key, value, "0: inputs are dropped, which weights do not see")),
        None => Ok(()),
    }
}

/// The module's linear maps and normalizations as a base.
fn base_of<M: Module>(module: &M) -> Result<Base> {
    let mut survey = Survey { path: vec![], kinds: vec![], places: vec![], taken: None };
    module.visit(&mut survey);
    if let Some(path) = survey.taken {
        return Err(Error::config("module", path, "weights without a reparameterization: this one has one already"));
    }
    if survey.places.is_empty() {
        return Err(Error::config("module", "no linear map and no normalization", "at least one"));
    }
    let values = tensors(module);
    let device = module.devices().into_iter().next().unwrap_or_default();
    Base::new(plain::shape(survey.places), &device, |place| {
        let data = values[&place.name].clone();
        if place.slot != Slot::Weight {
            return Ok(data);
        }
        Ok::<TensorData, Error>(Tensor::<2>::from_data(data, &device.clone().inner()).transpose().into_data())
    })
}

/// Finds the tensors that a method can act on.
struct Survey {
    path: Vec<String>,
    kinds: Vec<String>,
    places: Vec<Place>,
    /// What has a reparameterization of burn's.
    taken: Option<String>,
}

impl Survey {
    /// Where a tensor is used, if it is a weight or a bias of a linear map or belongs to a normalization.
    fn site(&self, rank: usize) -> Option<(Site, Slot)> {
        let name = self.path.last()?;
        let module = self.path[..self.path.len() - 1].join(".");
        let beside = || self.places.iter().find(|place| place.module() == module).map(|place| place.site);
        match (rank, name.as_str()) {
            (2, _) if self.kinds.last()?.contains("Embedding") => None,
            (2, "weight") => Some((plain::next(&self.places, plain::part(&module)), Slot::Weight)),
            (1, "gamma") => Some((plain::next(&self.places, Part::NormFeedForward), Slot::Gain)),
            (1, "bias" | "beta") => Some((beside()?, Slot::Bias)),
            _ => None,
        }
    }
}

impl ModuleVisitor for Survey {
    fn enter_module(&mut self, name: &str, kind: &str) {
        if kind == "Reparameterization" {
            self.taken.get_or_insert(self.path.join("."));
        }
        self.path.push(name.to_string());
        self.kinds.push(kind.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.kinds.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((site, slot)) = self.site(D) else { return };
        let (dims, name) = (param.lazy_shape().to_vec(), self.path.join("."));
        self.places.push(Place { site, slot, dims, transposed: slot == Slot::Weight, name });
    }
}

/// Each tensor as the method's hooks make it.
struct Effective<'a> {
    base: &'a Base,
    hooks: &'a dyn Hooks,
    device: &'a Device,
}

impl Effective<'_> {
    /// What a linear map `[in, out]` makes of the unit vectors. What is merged adds nothing else there: biases have a hook of their own.
    fn linear(&self, site: Site) -> Tensor<2> {
        let weight = self.hooks.weight(site, self.base.weight(site).clone()).dense();
        let [inputs, outputs] = weight.dims();
        let units = Tensor::<2>::eye(inputs, self.device).unsqueeze::<3>();
        let rows = self.hooks.linear(site, units, &|x| Weight::Dense(weight.clone()).linear(x, None));
        rows.reshape([inputs, outputs])
    }
}

impl Rewrite for Effective<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
        let places = self.base.shape().places();
        let Some(place) = places.iter().find(|place| place.name == name) else { return tensor.detach() };
        let Place { site, slot, .. } = *place;
        match slot {
            Slot::Weight => Tensor::from_bridge(self.linear(site).into_bridge()),
            slot => {
                let vector = self.hooks.vector(site, slot, self.base.vector(site, slot));
                Tensor::from_bridge(tracked(vector).into_bridge())
            }
        }
    }
}

fn tracked<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.is_autodiff() { tensor } else { Tensor::from_inner(tensor) }
}
