//! Finished LoRAs as one, as PEFT's `add_weighted_adapter` makes it of its combination types: on the factors (`linear`, `ties`,
//! `dare_linear`, `dare_ties`, `magnitude_prune`), beside each other (`cat`), or on the products, cut to a rank (`svd` and those that
//! end so).
//!
//! On the factors a weight w of an adapter with scale s is sqrt(|w s|) on both, with the sign of w s on A. So the result has the products
//! of each adapter with itself as they should be, and those of each with every other besides: it is exact for one adapter, and for
//! several that share A. `cat` is exact, `svd` the best of its rank.
//!
//! Differs from PEFT: where LoRAs have `use_rslora` the result has not, since PEFT's is scaled by the root of its rank; ranks by pattern stay
//! such where factors are combined; one adapter alone may be cut to a rank. DARE's masks are functions of a seed and a tensor's name.

use burn::tensor::{Tensor, TensorData};
use indexmap::IndexMap;
use peft_core::combine::{Combination, check_alike, check_weights};
use peft_core::view::{shapes, with_values};
use peft_core::{Base, Error, Method, Result, Site, Source};

use super::lora::{BiasMode, Factors, Lora, LoraConfig};
use super::ranks::check_rank;
use super::start::svd;

/// On what of the factors a combination acts, and what rank the result has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// On each factor: all adapters have one rank, and so has the result.
    Factors,
    /// The weighted sum alone, as factors beside each other: the ranks add up.
    Concatenated,
    /// On the products, of which the largest singular values are kept: this many, or as many as the largest rank.
    Products(Option<usize>),
}

/// Settings that the factors of one adapter may have for themselves.
const FREE: [&str; 6] = ["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "freeze_a"];

/// LoRAs on the same sites as one, of a scale of 1. The sources are named in errors.
pub fn combined(
    sources: &[Source],
    weights: &[f64],
    how: &Combination,
    form: Form,
    base: &Base,
) -> Result<(LoraConfig, Lora)> {
    how.check()?;
    check_weights(weights, sources.len())?;
    check_alike(sources, base.shape(), &FREE)?;
    let mut loras = vec![];
    for source in sources {
        let (lora, Some(config)) = (source.tuner::<LoraConfig>()?, source.config.downcast_ref::<LoraConfig>()) else {
            unreachable!("the tuner of a method has its configuration")
        };
        check_plain(config).map_err(|(key, found)| {
            let expected = "LoRAs of two factors and nothing else (or the mean, tensor by tensor)";
            Error::config(format!("{}: {key}", source.name), found, expected)
        })?;
        loras.push((source, lora, config));
    }
    let sites: Vec<Site> = loras[0].1.factors.iter().map(|(site, _)| site).collect();
    let at = |site: Site| -> Vec<(&Source, &Factors)> {
        loras.iter().filter_map(|(source, lora, _)| Some((*source, lora.factors.get(site)?))).collect()
    };
    let most = loras.iter().map(|(.., config)| config.rank_pattern.values().copied().fold(config.r, usize::max));
    let rank = match form {
        Form::Factors => loras[0].2.r,
        Form::Concatenated => most.sum(),
        Form::Products(rank) => rank.unwrap_or(most.max().unwrap_or(0)),
    };
    check_rank("the rank", rank)?;
    let mut made = vec![];
    for site in sites {
        let pair = match form {
            Form::Factors => of_factors(&at(site), weights, how, site)?,
            Form::Concatenated => beside(&at(site), weights, rank),
            Form::Products(_) => of_products(&at(site), weights, how, rank, site)?,
        };
        made.push((site, pair));
    }
    let shape = base.shape();
    let other = made.iter().filter(|(_, pair)| pair.rank != rank);
    let rank_pattern: IndexMap<String, usize> =
        other.map(|(site, pair)| (LoraConfig::path(shape, *site), pair.rank)).collect();
    let config = LoraConfig {
        r: rank,
        lora_alpha: rank as f64,
        alpha_pattern: rank_pattern.iter().map(|(path, rank)| (path.clone(), *rank as f64)).collect(),
        rank_pattern,
        use_rslora: false,
        freeze_a: false,
        a_seed: None,
        ..loras[0].2.clone()
    };
    let fresh = config.for_loading(base)?;
    let dims = shapes(&fresh);
    let of = |name: &String| {
        let (_, site, leaf) = peft_core::split_name(name);
        let pair = made.iter().find(|(other, _)| *other == site).map(|(_, pair)| pair);
        let pair = pair.unwrap_or_else(|| unreachable!("the sites are those of the adapters"));
        let numbers = if leaf == "a" { &pair.a } else { &pair.b };
        numbers.iter().map(|x| *x as f32).collect::<Vec<f32>>()
    };
    let values = dims.into_iter().map(|(name, dims)| (name.clone(), TensorData::new(of(&name), dims))).collect();
    Ok((config, with_values(fresh, &values)?))
}

/// The setting that makes a LoRA more than its factors.
fn check_plain(config: &LoraConfig) -> Result<(), (&'static str, String)> {
    if config.use_dora {
        return Err(("use_dora", "true".into()));
    }
    if config.bias != BiasMode::None {
        return Err(("bias", format!("{:?}", config.bias).to_lowercase()));
    }
    match &config.trainable_token_indices {
        Some(_) => Err(("trainable_token_indices", "rows of a table".into())),
        None => Ok(()),
    }
}

/// Factors of the result at one site, row after row, with a scale of 1.
struct Made {
    a: Vec<f64>,
    b: Vec<f64>,
    rank: usize,
}

fn numbers(tensor: &Tensor<2>) -> Vec<f64> {
    tensor.to_data().iter().collect()
}

fn of_factors(all: &[(&Source, &Factors)], weights: &[f64], how: &Combination, site: Site) -> Result<Made> {
    let rank = |factors: &Factors| factors.a.dims()[1];
    let (first, expected) = (all[0].0, rank(all[0].1));
    if let Some((source, factors)) = all.iter().find(|(_, factors)| rank(factors) != expected) {
        let key = format!("{}: r at {site}", source.name);
        let expected = format!("{expected}, as in {} (other ranks go together by cat or svd)", first.name);
        return Err(Error::config(key, rank(factors), expected));
    }
    let scaled = || all.iter().zip(weights).map(|((_, factors), weight)| weight * factors.scale);
    let on_a: Vec<f64> = scaled().map(|w| w.abs().sqrt() * if w < 0.0 { -1.0 } else { 1.0 }).collect();
    let on_b: Vec<f64> = scaled().map(|w| w.abs().sqrt()).collect();
    let [a, b] = [|factors: &Factors| numbers(&factors.a.val()), |factors: &Factors| numbers(&factors.b.val())]
        .map(|of| all.iter().map(|(_, factors)| of(factors)).collect::<Vec<_>>());
    let (a, b) = (how.of(&format!("factors.{site}.a"), a, &on_a), how.of(&format!("factors.{site}.b"), b, &on_b));
    Ok(Made { a, b, rank: expected })
}

/// A with the weights beside each other, B below each other, and zeros up to the rank.
fn beside(all: &[(&Source, &Factors)], weights: &[f64], rank: usize) -> Made {
    let ([rows, _], [_, columns]) = (all[0].1.a.dims(), all[0].1.b.dims());
    let (mut a, mut b, mut before) = (vec![0.0; rows * rank], vec![0.0; rank * columns], 0);
    for ((_, factors), weight) in all.iter().zip(weights) {
        let own = factors.a.dims()[1];
        for (row, values) in numbers(&factors.a.val()).chunks(own).enumerate() {
            for (k, x) in values.iter().enumerate() {
                a[row * rank + before + k] = x * weight * factors.scale;
            }
        }
        b[before * columns..][..own * columns].copy_from_slice(&numbers(&factors.b.val()));
        before += own;
    }
    Made { a, b, rank }
}

/// The combination of the products, cut to its largest singular values; zeros, where a matrix has fewer.
fn of_products(
    all: &[(&Source, &Factors)],
    weights: &[f64],
    how: &Combination,
    rank: usize,
    site: Site,
) -> Result<Made> {
    let ([rows, _], [_, columns]) = (all[0].1.a.dims(), all[0].1.b.dims());
    let product = |factors: &Factors| {
        let (a, b, own) = (numbers(&factors.a.val()), numbers(&factors.b.val()), factors.a.dims()[1]);
        let at = |i: usize, j: usize| (0..own).map(|k| a[i * own + k] * b[k * columns + j]).sum::<f64>();
        (0..rows * columns).map(|at_| at(at_ / columns, at_ % columns) * factors.scale).collect()
    };
    let products = all.iter().map(|(_, factors)| product(factors)).collect();
    let svd = svd(&how.of(&format!("products.{site}"), products, weights), columns)?;
    let (mut a, mut b) = (vec![0.0; rows * rank], vec![0.0; rank * columns]);
    for k in 0..rank.min(rows).min(columns) {
        for i in 0..rows {
            a[i * rank + k] = svd.U()[(i, k)];
        }
        for j in 0..columns {
            b[k * columns + j] = svd.S()[k] * svd.V()[(j, k)];
        }
    }
    Ok(Made { a, b, rank })
}
