//! Drawing a token from logits.

use super::GenerateConfig;

/// The tokens that may be drawn and their probabilities, in the order of these: logits over `temperature`, then what `top_k`, `top_p`,
/// `min_p`, `typical_p`, `epsilon_cutoff` and `eta_cutoff` leave one after the other, each of the probabilities among what is left. The
/// token that reaches a sum is in; one token always is left.
pub fn candidates(logits: &[f32], config: &GenerateConfig) -> Vec<(u32, f64)> {
    let scaled = |(id, x): (usize, &f32)| (id as u32, f64::from(*x) / config.temperature);
    let mut all: Vec<(u32, f64)> = logits.iter().enumerate().map(scaled).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if config.top_k > 0 {
        all.truncate(config.top_k);
    }
    let largest = all[0].1;
    all.iter_mut().for_each(|(_, x)| *x = (*x - largest).exp());
    normalize(&mut all);
    if config.top_p < 1.0 {
        let kept = reaching(all.iter().map(|(_, p)| *p), config.top_p);
        all.truncate(kept);
        normalize(&mut all);
    }
    let bound = config.min_p * all[0].1;
    at_least(&mut all, bound);
    if config.typical_p < 1.0 {
        let entropy = entropy(&all);
        let odd = |p: f64| (-p.ln() - entropy).abs();
        let mut typical = all.clone();
        typical.retain(|(_, p)| *p > 0.0);
        typical.sort_by(|a, b| odd(a.1).total_cmp(&odd(b.1)));
        let bound = odd(typical[reaching(typical.iter().map(|(_, p)| *p), config.typical_p) - 1].1);
        all.retain(|(_, p)| *p > 0.0 && odd(*p) <= bound);
        normalize(&mut all);
    }
    at_least(&mut all, config.epsilon_cutoff);
    if config.eta_cutoff > 0.0 {
        let bound = config.eta_cutoff.min(config.eta_cutoff.sqrt() * (-entropy(&all)).exp());
        at_least(&mut all, bound);
    }
    all
}

/// Leaves the probabilities from a bound on, and the largest.
fn at_least(all: &mut Vec<(u32, f64)>, bound: f64) {
    let kept = all.iter().take_while(|(_, p)| *p >= bound).count();
    all.truncate(kept.max(1));
    normalize(all);
}

/// How many of the first are needed for a sum.
fn reaching(all: impl Iterator<Item = f64>, sum: f64) -> usize {
    let mut before = 0.0;
    let needed = all.take_while(|p| {
        let needed = before < sum;
        before += p;
        needed
    });
    needed.count()
}

fn entropy(all: &[(u32, f64)]) -> f64 {
    all.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| -p * p.ln()).sum()
}

fn normalize(all: &mut [(u32, f64)]) {
    let sum: f64 = all.iter().map(|(_, p)| p).sum();
    all.iter_mut().for_each(|(_, p)| *p /= sum);
}

/// The candidate at `u`, a number from 0 to below 1, of their probabilities laid end to end.
pub(super) fn draw(candidates: &[(u32, f64)], u: f64) -> u32 {
    let mut end = 0.0;
    let found = candidates.iter().find(|(_, p)| {
        end += p;
        u < end
    });
    found.unwrap_or(&candidates[candidates.len() - 1]).0
}
