//! Drawing a token from logits.

use super::GenerateConfig;

/// The tokens that may be drawn and their probabilities: logits over `temperature`, of these the `top_k` largest, of these the most
/// probable that together have `top_p`; the one that reaches it is in. In the order of their probabilities.
pub fn candidates(logits: &[f32], config: &GenerateConfig) -> Vec<(u32, f64)> {
    let scaled = |(id, x): (usize, &f32)| (id as u32, f64::from(*x) / config.temperature);
    let mut all: Vec<(u32, f64)> = logits.iter().enumerate().map(scaled).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if config.top_k > 0 {
        all.truncate(config.top_k);
    }
    normalize(&mut all);
    let mut before = 0.0;
    let within = all.iter().take_while(|(_, p)| {
        let within = before < config.top_p;
        before += p;
        within
    });
    let kept = within.count();
    all.truncate(kept);
    let sum: f64 = all.iter().map(|(_, p)| p).sum();
    all.iter_mut().for_each(|(_, p)| *p /= sum);
    all
}

/// Logits, largest first, to probabilities.
fn normalize(all: &mut [(u32, f64)]) {
    let largest = all[0].1;
    all.iter_mut().for_each(|(_, x)| *x = (*x - largest).exp());
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
