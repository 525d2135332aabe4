//! Visiting and mapping the tensors of a module behind a trait object: burn's visitors are generic over the rank, which a trait
//! object cannot be, so that a tensor passes as `Any` and its rank is found again on the other side.

use std::any::Any;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor};

/// A visitor of burn's behind a reference.
pub(super) trait Visitor {
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
    /// A `Param<Tensor<D>>`.
    fn float(&mut self, param: &dyn Any);
    /// A `Param<Tensor<D, Int>>`.
    fn int(&mut self, param: &dyn Any);
}

/// A mapper of burn's behind a reference.
pub(super) trait Mapper {
    fn enter(&mut self, name: &str, container: &str);
    fn exit(&mut self, name: &str, container: &str);
    /// An `Option<Param<Tensor<D>>>`, whose value is replaced.
    fn float(&mut self, param: &mut dyn Any);
    /// An `Option<Param<Tensor<D, Int>>>`, whose value is replaced.
    fn int(&mut self, param: &mut dyn Any);
}

/// Does this with `$param` as the one of these types that it is.
macro_rules! of_type {
    ($param:ident.$cast:ident to $($type:ty)|+: |$found:ident| $then:expr) => {
        $(if let Some($found) = $param.$cast::<$type>() { return $then; })+
        unreachable!("burn's tensors here have one to six dimensions")
    };
}

type Float<const D: usize> = Param<Tensor<D>>;
type Slot<const D: usize> = Option<Float<D>>;
type Whole<const D: usize> = Param<Tensor<D, Int>>;
type WholeSlot<const D: usize> = Option<Whole<D>>;

impl<V: ModuleVisitor> Visitor for V {
    fn enter(&mut self, name: &str, container: &str) {
        self.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.exit_module(name, container);
    }
    fn float(&mut self, param: &dyn Any) {
        of_type!(param.downcast_ref to Float<1> | Float<2> | Float<3> | Float<4> | Float<5> | Float<6>: |param| self.visit_float(param));
    }
    fn int(&mut self, param: &dyn Any) {
        of_type!(param.downcast_ref to Whole<1> | Whole<2> | Whole<3> | Whole<4> | Whole<5> | Whole<6>: |param| self.visit_int(param));
    }
}

impl<M: ModuleMapper> Mapper for M {
    fn enter(&mut self, name: &str, container: &str) {
        self.enter_module(name, container);
    }
    fn exit(&mut self, name: &str, container: &str) {
        self.exit_module(name, container);
    }
    fn float(&mut self, param: &mut dyn Any) {
        of_type!(param.downcast_mut to Slot<1> | Slot<2> | Slot<3> | Slot<4> | Slot<5> | Slot<6>: |slot| {
            *slot = slot.take().map(|param| self.map_float(param));
        });
    }
    fn int(&mut self, param: &mut dyn Any) {
        of_type!(param.downcast_mut to WholeSlot<1> | WholeSlot<2> | WholeSlot<3> | WholeSlot<4> | WholeSlot<5> | WholeSlot<6>: |slot| {
            *slot = slot.take().map(|param| self.map_int(param));
        });
    }
}

/// The other side: what burn hands tensors to.
pub(super) struct Across<'a, T: ?Sized>(pub(super) &'a mut T);

impl ModuleVisitor for Across<'_, dyn Visitor + '_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.float(param);
    }
    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.int(param);
    }
}

impl ModuleMapper for Across<'_, dyn Mapper + '_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.0.enter(name, container);
    }
    fn exit_module(&mut self, name: &str, container: &str) {
        self.0.exit(name, container);
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let mut slot = Some(param);
        self.0.float(&mut slot);
        slot.unwrap_or_else(|| unreachable!("a mapped tensor takes the place of the old one"))
    }
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let mut slot = Some(param);
        self.0.int(&mut slot);
        slot.unwrap_or_else(|| unreachable!("a mapped tensor takes the place of the old one"))
    }
}
