//! The reparameterized forms of a matrix on any burn module, one of this library or not:
//!
//! ```
//! # use burn::module::Module;
//! # use burn::nn::LinearConfig;
//! use peft_reparam::bridge::{LoraForm, Reparameterize};
//!
//! # let device = peft_core::device("flex")?.autodiff();
//! # let module = LinearConfig::new(8, 6).init(&device);
//! let module = Reparameterize::new(LoraForm::new(2, 4.0)?, "weight", 0)?.apply(module)?;
//! # assert_eq!(peft_core::view::trainable(&module), 2 * (8 + 6));
//! # Ok::<(), peft_core::Error>(())
//! ```
//!
//! `module.apply_reparameterization(..)` of burn takes the same and does the same, but for the errors: if no matrix has such a name, and
//! if one has a form already. The module is frozen but for what its matrices get, in this call or an earlier one.

use std::collections::BTreeSet;

use burn::module::{LoraAdapter, Module, ModuleVisitor, Param, Reparameterization, Reparameterizer};
use burn::tensor::{Device, Tensor};
use peft_core::random::Random;
use peft_core::view::shapes;
use peft_core::{Error, Pattern, Result};

use crate::low_rank::intrinsic_said::Fastfood;
use crate::low_rank::ranks::{check_alpha, check_rank};

/// How a matrix is computed from its frozen value and what is trained.
pub trait Form {
    /// What is trained for a matrix.
    type Reparam: Reparameterization;

    /// A start of this for a matrix `[rows, columns]` that leaves it as it is. What is random is a function of `seed` and `name`.
    fn start(&self, dims: [usize; 2], seed: u64, name: &str, device: &Device) -> Self::Reparam;
}

/// Puts a form on the matrices of a module.
#[derive(Clone, Debug)]
pub struct Reparameterize<F> {
    form: F,
    paths: Pattern,
    seed: u64,
    /// The tensors of forms that the module has already.
    kept: BTreeSet<String>,
}

impl<F: Form> Reparameterize<F> {
    /// On matrices whose path in the module, such as `layers.0.mha.query.weight`, ends in a match of `pattern`.
    pub fn new(form: F, pattern: &str, seed: u64) -> Result<Self> {
        Ok(Reparameterize { form, paths: Pattern::end("pattern", pattern)?, seed, kept: BTreeSet::new() })
    }

    /// The module with the form on its matrices; an error if the pattern matches none, or one that has a form already, of which burn
    /// would keep the first and this would freeze it.
    pub fn apply<M: Module>(self, module: M) -> Result<M> {
        let mut forms = Forms::default();
        module.visit(&mut forms);
        for matrix in &forms.matrices {
            if self.paths.matches(matrix)? {
                let expected = format!("matrices without a form; {matrix} has one already");
                return Err(Error::config("pattern", self.paths.as_str(), expected));
            }
        }
        let matrices = shapes(&module).into_iter().filter(|(_, dims)| dims.len() == 2).map(|(name, _)| name);
        let names: Vec<String> = matrices.filter(|name| !forms.tensors.contains(name)).collect();
        if self.paths.matches_any(&names)? {
            return Ok(module.apply_reparameterization(Reparameterize { kept: forms.tensors, ..self }));
        }
        let some = names[..names.len().min(6)].join(", ");
        Err(Error::config(
            "pattern",
            self.paths.as_str(),
            format!("a match of the end of a matrix's path, such as {some}"),
        ))
    }
}

/// What of a module has a form.
#[derive(Default)]
struct Forms {
    path: Vec<String>,
    /// How deep in the path the form begins that is being visited.
    within: Option<usize>,
    matrices: BTreeSet<String>,
    /// What is trained in the forms.
    tensors: BTreeSet<String>,
}

impl ModuleVisitor for Forms {
    fn enter_module(&mut self, name: &str, kind: &str) {
        if kind == "Reparameterization" && self.within.is_none() {
            self.matrices.insert(self.path.join("."));
            self.within = Some(self.path.len());
        }
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.within = self.within.filter(|depth| *depth < self.path.len());
    }

    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        if self.within.is_some() {
            self.tensors.insert(self.path.join("."));
        }
    }
}

impl<F: Form> Reparameterizer for Reparameterize<F> {
    type Reparam = F::Reparam;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<F::Reparam>) {
        if self.kept.contains(path) {
            return (param, None);
        }
        let base = param.set_require_grad(false);
        // What cannot be matched was an error in `apply`.
        if D != 2 || !self.paths.matches(path).unwrap_or(false) {
            return (base, None);
        }
        let (value, dims) = (base.base(), base.lazy_shape());
        let form = self.form.start([dims[0], dims[1]], self.seed, path, &value.device());
        (base, Some(form))
    }
}

/// W + s A B, s = alpha / r: LoRA, with the start of [`LoraConfig`](crate::LoraConfig).
#[derive(Clone, Copy, Debug)]
pub struct LoraForm {
    rank: usize,
    alpha: f64,
}

impl LoraForm {
    /// Of this rank and this numerator of the scale.
    pub fn new(rank: usize, alpha: f64) -> Result<Self> {
        check_rank("rank", rank)?;
        check_alpha("alpha", alpha)?;
        Ok(LoraForm { rank, alpha })
    }
}

impl Form for LoraForm {
    type Reparam = LoraAdapter;

    fn start(&self, [rows, columns]: [usize; 2], seed: u64, name: &str, device: &Device) -> LoraAdapter {
        let bound = 1.0 / (rows as f64).sqrt();
        let a = Random::new(seed, &format!("lora.{name}.a")).uniform_tensor([rows, self.rank], -bound, bound, device);
        let b = Tensor::zeros([self.rank, columns], device);
        LoraAdapter { a: Param::from_tensor(a), b: Param::from_tensor(b), scale: self.alpha / self.rank as f64 }
    }
}

/// W + s A (x) B, the Kronecker product of two small matrices: that of KronA (Edalati et al., 2022, arXiv:2212.10650).
#[derive(Clone, Copy, Debug)]
pub struct KronForm {
    rows: usize,
    columns: usize,
    scale: f64,
}

impl KronForm {
    /// With A of at most so many rows and columns: of each the largest number that divides the matrix's.
    pub fn new(rows: usize, columns: usize, scale: f64) -> Result<Self> {
        if rows == 0 || columns == 0 {
            return Err(Error::config("rows, columns", format!("{rows}, {columns}"), "at least 1 each"));
        }
        if !scale.is_finite() || scale == 0.0 {
            return Err(Error::config("scale", scale, "a finite number other than 0"));
        }
        Ok(KronForm { rows, columns, scale })
    }
}

/// The factors of a Kronecker product.
#[derive(Module, Debug)]
pub struct Kron {
    /// `[a, b]`.
    pub a: Param<Tensor<2>>,
    /// `[rows / a, columns / b]`.
    pub b: Param<Tensor<2>>,
    #[module(skip)]
    scale: f64,
}

impl Form for KronForm {
    type Reparam = Kron;

    fn start(&self, [rows, columns]: [usize; 2], seed: u64, name: &str, device: &Device) -> Kron {
        let divisor = |n: usize, most: usize| (1..=most.min(n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1);
        let (a_rows, a_columns) = (divisor(rows, self.rows), divisor(columns, self.columns));
        let bound = 1.0 / (a_rows as f64).sqrt();
        let a = Random::new(seed, &format!("kron.{name}.a")).uniform_tensor([a_rows, a_columns], -bound, bound, device);
        let b = Tensor::zeros([rows / a_rows, columns / a_columns], device);
        Kron { a: Param::from_tensor(a), b: Param::from_tensor(b), scale: self.scale }
    }
}

impl Reparameterization for Kron {
    const NAME: &'static str = "kron";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let ([a_rows, a_columns], [b_rows, b_columns]) = (self.a.dims(), self.b.dims());
        let a = self.a.val().reshape([a_rows, 1, a_columns, 1]);
        let b = self.b.val().reshape([1, b_rows, 1, b_columns]);
        let dims = base.dims();
        base + (a * b * self.scale).reshape(dims)
    }
}

/// The most numbers along random directions for one matrix, as many as the largest word tables have.
const MAX_INTRINSIC: usize = 1 << 30;

/// W + P theta, P a random map that is not stored: Intrinsic SAID's. Burn gives each matrix parameters of its own, so each has a
/// theta; [`IntrinsicSaidConfig`](crate::IntrinsicSaidConfig) has one for all.
#[derive(Clone, Copy, Debug)]
pub struct SaidForm {
    intrinsic_dim: usize,
}

impl SaidForm {
    /// With so many numbers for a matrix.
    pub fn new(intrinsic_dim: usize) -> Result<Self> {
        if !(1..=MAX_INTRINSIC).contains(&intrinsic_dim) {
            return Err(Error::config("intrinsic_dim", intrinsic_dim, format!("1 to {MAX_INTRINSIC}")));
        }
        Ok(SaidForm { intrinsic_dim })
    }
}

/// What a matrix is moved by along random directions.
#[derive(Module, Debug)]
pub struct Said {
    /// `[intrinsic_dim]`.
    pub theta: Param<Tensor<1>>,
    #[module(skip)]
    map: Fastfood,
}

impl Form for SaidForm {
    type Reparam = Said;

    fn start(&self, [rows, columns]: [usize; 2], seed: u64, name: &str, device: &Device) -> Said {
        let theta = Param::from_tensor(Tensor::zeros([self.intrinsic_dim], device));
        Said { theta, map: Fastfood::new(seed, name, self.intrinsic_dim, rows * columns) }
    }
}

impl Reparameterization for Said {
    const NAME: &'static str = "said";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let dims = base.dims();
        base + self.map.apply(self.theta.val()).reshape(dims)
    }
}
