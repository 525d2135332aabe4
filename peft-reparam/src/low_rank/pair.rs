//! Products of two thin matrices beside linear maps: what LoRA and the methods that grew from it share.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use peft_core::random::{Noise, Random};
use peft_core::{Batch, Error, Hooks, Next, Result, Shape, Site, Weight, file_path};

/// What is added to a matrix.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// A, `[in, r]`.
    pub a: Tensor<2>,
    /// B, `[r, out]`.
    pub b: Tensor<2>,
    /// s.
    pub scale: f64,
}

impl Pair {
    /// `x A B s`.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.behind(x.matmul(self.a.clone().unsqueeze()))
    }

    /// `z B s`, where z is what A makes.
    pub(crate) fn behind(&self, z: Tensor<3>) -> Tensor<3> {
        z.matmul(self.b.clone().unsqueeze()) * self.scale
    }

    /// `A B s`.
    pub(crate) fn update(&self) -> Tensor<2> {
        self.a.clone().matmul(self.b.clone()) * self.scale
    }

    /// `W + A B s`.
    pub(crate) fn onto(&self, w: &Weight) -> Tensor<2> {
        let w = w.dense();
        self.update().to_device(&w.device()) + w
    }
}

/// A method that is a pair at each of its sites, and nothing else.
pub(crate) trait LowRank {
    /// The pair at a site.
    fn pair(&self, site: Site) -> Option<Pair>;

    /// Dropout probability on its input.
    fn dropout(&self) -> f64;
}

/// A method of pairs during one run: with the run's dropout.
pub(crate) struct Opened<'a, T> {
    method: &'a T,
    noise: Option<&'a Noise>,
}

impl<'a, T: LowRank> Opened<'a, T> {
    pub(crate) fn new(method: &'a T, batch: &'a Batch) -> Self {
        Opened { method, noise: batch.noise.as_deref() }
    }
}

impl<T: LowRank> Hooks for Opened<'_, T> {
    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let Some(pair) = self.method.pair(site) else { return next(x) };
        next(x.clone()) + pair.forward(dropped(x, self.noise, self.method.dropout(), site))
    }
}

/// The input of a pair as training drops numbers of it.
pub(crate) fn dropped(x: Tensor<3>, noise: Option<&Noise>, p: f64, site: Site) -> Tensor<3> {
    match noise {
        Some(noise) => noise.dropout(x, p, &format!("lora.{site}")),
        None => x,
    }
}

/// How A starts, `[in, r]`: uniform within 1 / sqrt(in).
pub(crate) fn start([rows, rank]: [usize; 2], random: Random, device: &Device) -> Tensor<2> {
    let bound = 1.0 / (rows as f64).sqrt();
    random.uniform_tensor([rows, rank], -bound, bound, device)
}

/// A parameter that goes along untrained.
pub(crate) fn untrained(value: Tensor<2>) -> Param<Tensor<2>> {
    Param::from_tensor(Tensor::from_inner(value.without_autodiff())).set_require_grad(false)
}

/// Refuses a probability that is none.
pub(crate) fn check_dropout(p: f64) -> Result<()> {
    match (0.0..1.0).contains(&p) {
        true => Ok(()),
        false => Err(Error::config("lora_dropout", p, "a number from 0 to below 1")),
    }
}

/// What files call a tensor of LoRA at a site.
pub(crate) fn file_name(shape: &Shape, site: Site, leaf: &str) -> String {
    format!("{}.lora_{leaf}", file_path(shape, site))
}
