//! Working with the tensors of any module by their names, the dotted paths of burn's records.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Int, Shape, Tensor, TensorData};

use crate::{Error, Result, random::hash};

/// A change of tensors, by name.
pub trait Rewrite {
    /// The tensor that takes the place of `tensor`.
    fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D>;
}

/// A module of the same form and the same ids whose tensors are computed from its own. The result may be tracked: gradients
/// flow into whatever it was computed from. It then lives for one run and is never optimized or saved; one of leaves is a module like
/// any other.
pub fn view<M: Module>(module: &M, rewrite: &mut impl Rewrite) -> M {
    struct View<'a, R> {
        path: Vec<String>,
        rewrite: &'a mut R,
    }
    impl<R: Rewrite> ModuleMapper for View<'_, R> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, _) = param.consume();
            Param::initialized(id, self.rewrite.tensor(&self.path.join("."), value))
        }
    }
    module.clone().map(&mut View { path: vec![], rewrite })
}

/// A module with new values in the tensors that `values` names; a value of another shape is an error.
pub fn with_values<M: Module>(module: M, values: &BTreeMap<String, TensorData>) -> Result<M> {
    struct Replace<'a> {
        path: Vec<String>,
        values: &'a BTreeMap<String, TensorData>,
        wrong: Option<Error>,
    }
    impl<'a> Replace<'a> {
        /// The new value of the tensor at which the walk is, which has these dimensions.
        fn value(&mut self, dims: Shape) -> Option<&'a TensorData> {
            let name = self.path.join(".");
            let data = self.values.get(&name)?;
            if *data.shape() == dims {
                return Some(data);
            }
            let (found, expected) = (format!("shape {:?}", data.shape()), format!("{dims:?}"));
            self.wrong = Some(Error::config(name, found, expected));
            None
        }
    }
    impl ModuleMapper for Replace<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(data) = self.value(param.lazy_shape()) else { return param };
            param.map(|old| {
                let new = Tensor::from_data(data.clone(), &old.device());
                if old.is_require_grad() { new.require_grad() } else { new }
            })
        }
        fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
            let Some(data) = self.value(param.lazy_shape()) else { return param };
            param.map(|old| Tensor::from_data(data.clone(), &old.device()))
        }
    }
    let mut replace = Replace { path: vec![], values, wrong: None };
    let module = module.map(&mut replace);
    replace.wrong.map_or(Ok(module), Err)
}

/// The values of a module's tensors, by name; those of indices as integers of 64 bits.
pub fn tensors<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    struct Collect(BTreeMap<String, TensorData>);
    impl Visit for Collect {
        fn tensor<const D: usize>(&mut self, name: &str, _: ParamId, tensor: Tensor<D>) {
            self.0.insert(name.to_string(), tensor.into_data());
        }
        fn indices<const D: usize>(&mut self, name: &str, tensor: Tensor<D, Int>) {
            self.0.insert(name.to_string(), tensor.into_data().convert::<i64>());
        }
    }
    let mut collect = Collect(BTreeMap::new());
    visit(module, &mut collect);
    collect.0
}

/// The same module with ids of their own for its tensors: two finished adapters have the same.
pub fn copied<M: Module>(module: M) -> M {
    struct Fresh;
    impl ModuleMapper for Fresh {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(ParamId::new(), value, mapper)
        }
        fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(ParamId::new(), value, mapper)
        }
    }
    module.map(&mut Fresh)
}

/// The module with its tensors on this device, of whatever backend they were.
pub(crate) fn on_device<M: Module>(module: M, device: &Device) -> M {
    struct Onto(Device);
    impl ModuleMapper for Onto {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, value, mapper) = param.consume();
            if value.device().inner() == self.0 {
                return Param::from_mapped_value(id, value, mapper);
            }
            let device = if value.is_autodiff() { self.0.clone().autodiff() } else { self.0.clone() };
            let moved = Tensor::from_data(value.to_data(), &device).set_require_grad(value.is_require_grad());
            Param::from_mapped_value(id, moved, mapper)
        }
        fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
            let (id, value, mapper) = param.consume();
            let there = value.device().inner() != self.0;
            Param::from_mapped_value(
                id,
                if there { Tensor::from_data(value.into_data(), &self.0) } else { value },
                mapper,
            )
        }
    }
    module.map(&mut Onto(device.clone().inner()))
}

/// A module like the first, with the sum of the modules' tensors of each name, each times its module's weight: added up in f64 and
/// rounded once. Tensors of indices are the first's. A module with other tensors, by names and shapes, is an error that gives its number.
pub fn weighted_sum<M: Module>(modules: &[M], weights: &[f64]) -> Result<M> {
    if modules.is_empty() || modules.len() != weights.len() {
        let expected = format!("at least one, and as many as weights, {}", weights.len());
        return Err(Error::config("modules", modules.len(), expected));
    }
    combined(modules, |_, values| sum_of(&values, weights))
}

/// The sum of lists of numbers, each times its weight.
pub(crate) fn sum_of(values: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; values.first().map_or(0, Vec::len)];
    for (one, weight) in values.iter().zip(weights) {
        sum.iter_mut().zip(one).for_each(|(sum, x)| *sum += weight * x);
    }
    sum
}

/// A module like the first, in which each tensor is made by `of` its name and the modules' numbers of this name, in f64; those of
/// indices are the first's. A module with other tensors, by names and shapes, is an error that gives its number.
pub(crate) fn combined<M: Module>(modules: &[M], mut of: impl FnMut(&str, Vec<Vec<f64>>) -> Vec<f64>) -> Result<M> {
    let form = shapes(&modules[0]);
    if let Some(i) = modules.iter().position(|module| shapes(module) != form) {
        return Err(Error::config(
            "modules",
            format!("other tensors in number {i}"),
            "names and shapes as in number 0",
        ));
    }
    let all: Vec<_> = modules.iter().map(tensors).collect();
    let mut made = |(name, data): (&String, &TensorData)| {
        let values = all.iter().map(|one| one[name].iter::<f64>().collect()).collect();
        let made: Vec<f32> = of(name, values).into_iter().map(|x| x as f32).collect();
        (name.clone(), TensorData::new(made, data.shape().clone()))
    };
    let values = all[0].iter().filter(|(_, data)| data.dtype().is_float()).map(&mut made).collect();
    with_values(modules[0].clone(), &values)
}

/// The shapes of a module's tensors, by name, without reading their values.
pub fn shapes<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    struct Shapes(Vec<(String, Vec<usize>)>);
    impl Visit for Shapes {
        fn tensor<const D: usize>(&mut self, name: &str, _: ParamId, tensor: Tensor<D>) {
            self.0.push((name.to_string(), tensor.dims().to_vec()));
        }
        fn indices<const D: usize>(&mut self, name: &str, tensor: Tensor<D, Int>) {
            self.0.push((name.to_string(), tensor.dims().to_vec()));
        }
    }
    let mut shapes = Shapes(vec![]);
    visit(module, &mut shapes);
    shapes.0
}

/// The shapes of those of a module's tensors that are trained: the others go along (a mask, say).
pub fn trained<M: Module>(module: &M) -> BTreeMap<String, Vec<usize>> {
    struct Trained(BTreeMap<String, Vec<usize>>);
    impl Visit for Trained {
        fn tensor<const D: usize>(&mut self, name: &str, _: ParamId, tensor: Tensor<D>) {
            if tensor.is_require_grad() {
                self.0.insert(name.to_string(), tensor.dims().to_vec());
            }
        }
    }
    let mut trained = Trained(BTreeMap::new());
    visit(module, &mut trained);
    trained.0
}

/// How many numbers of a module are trained.
pub fn trainable<M: Module>(module: &M) -> usize {
    trained(module).values().map(|dims| dims.iter().product::<usize>()).sum()
}

/// Something done with each tensor of a module.
pub trait Visit {
    /// One tensor, its name and its id.
    fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, tensor: Tensor<D>);

    /// One tensor of indices, which goes along with those that are trained.
    fn indices<const D: usize>(&mut self, _name: &str, _tensor: Tensor<D, Int>) {}
}

/// Visits the tensors of a module by name, in its order.
pub fn visit<M: Module>(module: &M, visit: &mut impl Visit) {
    struct Walk<'a, V> {
        path: Vec<String>,
        visit: &'a mut V,
    }
    impl<V: Visit> ModuleVisitor for Walk<'_, V> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.visit.tensor(&self.path.join("."), param.id, param.val());
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            self.visit.indices(&self.path.join("."), param.val());
        }
    }
    module.visit(&mut Walk { path: vec![], visit });
}

/// The same module with ids that are functions of the names. An id that occurs twice is an error: the optimizer would move
/// one of the places only.
pub fn with_ids_from_names<M: Module>(module: M) -> Result<M> {
    struct Ids(BTreeMap<ParamId, String>, Option<Error>);
    impl Visit for Ids {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
            if let Some(first) = self.0.insert(id, name.to_string()) {
                let found = format!("the same parameter as {first}");
                self.1 = Some(Error::config(name, found, "every parameter in one place; share by a view"));
            }
        }
    }
    let mut ids = Ids(BTreeMap::new(), None);
    visit(&module, &mut ids);
    if let Some(error) = ids.1 {
        return Err(error);
    }
    struct Rename(Vec<String>, BTreeSet<u64>);
    impl Rename {
        fn id(&mut self) -> ParamId {
            let mut id = hash(&self.0.join("."));
            while !self.1.insert(id) {
                id = id.wrapping_add(1);
            }
            ParamId::from(id)
        }
    }
    impl ModuleMapper for Rename {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(self.id(), value, mapper)
        }
        fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
            let (_, value, mapper) = param.consume();
            Param::from_mapped_value(self.id(), value, mapper)
        }
    }
    Ok(module.map(&mut Rename(vec![], BTreeSet::new())))
}
