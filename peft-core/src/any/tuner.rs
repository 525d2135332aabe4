//! A tuner whose type is known only when the program runs.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use super::ranks::{Across, Mapper, Visitor};
use crate::random::{Noise, Random};
use crate::train::{Optim, Phase, Probe};
use crate::{AnyAdapter, Base, Batch, Hidden, Hooks, Procedure, Readout, Result, Tuner};

/// A tuner of any type. Trainer, files and prediction are compiled for this one; its tensors have the names and ids of the tuner's own.
pub struct AnyTuner(Box<dyn Erased>);

impl AnyTuner {
    /// Forgets the type.
    pub fn new<T: Procedure + 'static>(tuner: T) -> Self {
        let mut tuner = Some(tuner);
        // One that is forgotten already stays as it is.
        match (&mut tuner as &mut dyn Any).downcast_mut::<Option<AnyTuner>>().and_then(Option::take) {
            Some(tuner) => tuner,
            None => AnyTuner(Box::new(tuner.unwrap_or_else(|| unreachable!("it was not taken")))),
        }
    }

    /// The tuner, if it is of this type.
    pub fn downcast_ref<T: Procedure + 'static>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }

    /// The name of the tuner's own type.
    pub fn type_name(&self) -> &'static str {
        let path = self.0.type_name();
        let generics = path.find('<').unwrap_or(path.len());
        &path[path[..generics].rfind("::").map_or(0, |at| at + 2)..]
    }

    /// Opens it for one run, as [`Adapter::open`](crate::Adapter::open) does.
    ///
    /// # Panics
    /// If it is no adapter.
    pub fn opened<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let adapter = Tuner::as_adapter(self).unwrap_or_else(|| panic!("an adapter is asked for, not {self:?}"));
        let (mut f, mut result) = (Some(f), None);
        adapter.open_any(batch, &mut |hooks| result = f.take().map(|f| f(hooks)));
        result.unwrap_or_else(|| unreachable!("an adapter opens once"))
    }

    /// The tuners that it is made of, if it is several methods at once, else itself.
    #[cfg(feature = "train")]
    pub(crate) fn each(&self) -> Vec<AnyTuner> {
        self.downcast_ref::<super::Many>().map_or_else(|| vec![self.clone()], |many| many.tuners().cloned().collect())
    }

    /// The tuner, if it is of this type.
    pub fn downcast<T: Procedure + 'static>(self) -> Option<T> {
        self.0.into_any().downcast().ok().map(|tuner| *tuner)
    }
}

/// What is asked of a tuner behind a trait object: [`Module`], [`Tuner`] and [`Procedure`] without their types.
trait Erased: Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
    fn type_name(&self) -> &'static str;
    fn cloned(&self) -> AnyTuner;

    fn collect_devices(&self, devices: Devices) -> Devices;
    fn fork(self: Box<Self>, device: &Device) -> AnyTuner;
    fn to_device(self: Box<Self>, device: &Device) -> AnyTuner;
    fn train(self: Box<Self>) -> AnyTuner;
    fn valid(&self) -> AnyTuner;
    fn materialize(self: Box<Self>) -> AnyTuner;
    fn visit(&self, visitor: &mut dyn Visitor);
    fn map(self: Box<Self>, mapper: &mut dyn Mapper) -> AnyTuner;
    fn content(&self, content: Content) -> Option<Content>;

    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden>;
    fn logits(&self, readout: &Readout<'_>) -> Result<Tensor<3>>;
    fn head_loss(&self, readout: &Readout<'_>) -> Result<Tensor<1>>;
    fn viewed(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>>;
    fn check_tasks(&self, tasks: &[usize]) -> Result<()>;
    fn as_adapter(&self) -> Option<&dyn AnyAdapter>;

    fn phases(&self, steps: usize) -> Vec<Phase>;
    fn prepare(self: Box<Self>, base: &Base, data: Probe<'_>) -> Result<AnyTuner>;
    fn resumed(self: Box<Self>, base: &Base, phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<AnyTuner>;
    fn sample(self: Box<Self>, random: &mut Random) -> AnyTuner;
    fn couples_samples(&self) -> bool;
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>>;
    fn penalty(&self) -> Option<Tensor<1>>;
    fn rate(&self, name: &str, rate: f64) -> f64;
    fn decays(&self, name: &str) -> bool;
    fn may_rest(&self, name: &str) -> bool;
    fn gradients(&mut self, gradients: GradientsParams, step: usize) -> GradientsParams;
    fn after_step(self: Box<Self>, base: &Base, optim: &mut Optim, before: &AnyTuner, step: usize) -> Result<AnyTuner>;
    fn finish(self: Box<Self>, base: &Base) -> Result<AnyTuner>;
}

impl<T: Procedure + 'static> Erased for T {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
    fn type_name(&self) -> &'static str {
        std::any::type_name::<T>()
    }
    fn cloned(&self) -> AnyTuner {
        AnyTuner::new(self.clone())
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        Module::collect_devices(self, devices)
    }
    fn fork(self: Box<Self>, device: &Device) -> AnyTuner {
        AnyTuner::new(Module::fork(*self, device))
    }
    fn to_device(self: Box<Self>, device: &Device) -> AnyTuner {
        AnyTuner::new(Module::to_device(*self, device))
    }
    fn train(self: Box<Self>) -> AnyTuner {
        AnyTuner::new(Module::train(*self))
    }
    fn valid(&self) -> AnyTuner {
        AnyTuner::new(Module::valid(self))
    }
    fn materialize(self: Box<Self>) -> AnyTuner {
        AnyTuner::new(Module::materialize(*self))
    }
    fn visit(&self, visitor: &mut dyn Visitor) {
        Module::visit(self, &mut Across(visitor));
    }
    fn map(self: Box<Self>, mapper: &mut dyn Mapper) -> AnyTuner {
        AnyTuner::new(Module::map(*self, &mut Across(mapper)))
    }
    fn content(&self, content: Content) -> Option<Content> {
        ModuleDisplayDefault::content(self, content)
    }

    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        Tuner::run(self, base, batch)
    }
    fn logits(&self, readout: &Readout<'_>) -> Result<Tensor<3>> {
        Tuner::logits(self, readout)
    }
    fn head_loss(&self, readout: &Readout<'_>) -> Result<Tensor<1>> {
        Tuner::head_loss(self, readout)
    }
    fn viewed(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        Tuner::viewed(self, base, noise)
    }
    fn check_tasks(&self, tasks: &[usize]) -> Result<()> {
        Tuner::check_tasks(self, tasks)
    }
    fn as_adapter(&self) -> Option<&dyn AnyAdapter> {
        Tuner::as_adapter(self)
    }

    fn phases(&self, steps: usize) -> Vec<Phase> {
        Procedure::phases(self, steps)
    }
    fn prepare(self: Box<Self>, base: &Base, data: Probe<'_>) -> Result<AnyTuner> {
        Procedure::prepare(*self, base, data).map(AnyTuner::new)
    }
    fn resumed(self: Box<Self>, base: &Base, phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<AnyTuner> {
        Procedure::resumed(*self, base, phase, shapes).map(AnyTuner::new)
    }
    fn sample(self: Box<Self>, random: &mut Random) -> AnyTuner {
        AnyTuner::new(Procedure::sample(*self, random))
    }
    fn couples_samples(&self) -> bool {
        Procedure::couples_samples(self)
    }
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        Procedure::loss(self, readout)
    }
    fn penalty(&self) -> Option<Tensor<1>> {
        Procedure::penalty(self)
    }
    fn rate(&self, name: &str, rate: f64) -> f64 {
        Procedure::rate(self, name, rate)
    }
    fn decays(&self, name: &str) -> bool {
        Procedure::decays(self, name)
    }
    fn may_rest(&self, name: &str) -> bool {
        Procedure::may_rest(self, name)
    }
    fn gradients(&mut self, gradients: GradientsParams, step: usize) -> GradientsParams {
        Procedure::gradients(self, gradients, step)
    }
    fn after_step(self: Box<Self>, base: &Base, optim: &mut Optim, before: &AnyTuner, step: usize) -> Result<AnyTuner> {
        let before = before.downcast_ref().unwrap_or_else(|| unreachable!("a step keeps the type of what it trains"));
        Procedure::after_step(*self, base, optim, before, step).map(AnyTuner::new)
    }
    fn finish(self: Box<Self>, base: &Base) -> Result<AnyTuner> {
        Procedure::finish(*self, base).map(AnyTuner::new)
    }
}

impl Debug for AnyTuner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Clone for AnyTuner {
    fn clone(&self) -> Self {
        self.0.cloned()
    }
}

impl Module for AnyTuner {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.0.collect_devices(devices)
    }
    fn fork(self, device: &Device) -> Self {
        self.0.fork(device)
    }
    fn to_device(self, device: &Device) -> Self {
        self.0.to_device(device)
    }
    fn train(self) -> Self {
        self.0.train()
    }
    fn valid(&self) -> Self {
        self.0.valid()
    }
    fn materialize(self) -> Self {
        self.0.materialize()
    }
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.0.visit(visitor);
    }
    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        self.0.map(mapper)
    }
}

impl ModuleDisplayDefault for AnyTuner {
    fn content(&self, content: Content) -> Option<Content> {
        self.0.content(content)
    }
}

impl ModuleDisplay for AnyTuner {}

impl Tuner for AnyTuner {
    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        self.0.run(base, batch)
    }
    fn logits(&self, readout: &Readout<'_>) -> Result<Tensor<3>> {
        self.0.logits(readout)
    }
    fn head_loss(&self, readout: &Readout<'_>) -> Result<Tensor<1>> {
        self.0.head_loss(readout)
    }
    fn viewed(&self, base: &Base, noise: Option<&Noise>) -> Result<Option<AnyTuner>> {
        self.0.viewed(base, noise)
    }
    fn check_tasks(&self, tasks: &[usize]) -> Result<()> {
        self.0.check_tasks(tasks)
    }
    fn as_adapter(&self) -> Option<&dyn AnyAdapter> {
        self.0.as_adapter()
    }
}

impl Procedure for AnyTuner {
    fn phases(&self, steps: usize) -> Vec<Phase> {
        self.0.phases(steps)
    }
    fn prepare(self, base: &Base, data: Probe<'_>) -> Result<Self> {
        self.0.prepare(base, data)
    }
    fn resumed(self, base: &Base, phase: usize, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        self.0.resumed(base, phase, shapes)
    }
    fn sample(self, random: &mut Random) -> Self {
        self.0.sample(random)
    }
    fn couples_samples(&self) -> bool {
        self.0.couples_samples()
    }
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        self.0.loss(readout)
    }
    fn penalty(&self) -> Option<Tensor<1>> {
        self.0.penalty()
    }
    fn rate(&self, name: &str, rate: f64) -> f64 {
        self.0.rate(name, rate)
    }
    fn decays(&self, name: &str) -> bool {
        self.0.decays(name)
    }
    fn may_rest(&self, name: &str) -> bool {
        self.0.may_rest(name)
    }
    fn gradients(&mut self, gradients: GradientsParams, step: usize) -> GradientsParams {
        self.0.gradients(gradients, step)
    }
    fn after_step(self, base: &Base, optim: &mut Optim, before: &Self, step: usize) -> Result<Self> {
        self.0.after_step(base, optim, before, step)
    }
    fn finish(self, base: &Base) -> Result<Self> {
        self.0.finish(base)
    }
}
