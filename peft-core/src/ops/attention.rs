//! Attention.

use burn::tensor::{Bool, Int, Tensor, activation};

use super::Drops;

/// One attention: split into heads, before the scores.
#[derive(Clone, Debug)]
pub struct Attention {
    /// The input of the projections, `[batch, tokens, hidden]`.
    pub input: Tensor<3>,
    /// Queries, `[batch, heads, tokens, head width]`.
    pub query: Tensor<4>,
    /// Keys, `[batch, key heads, keys, head width]`; those of earlier steps are among them.
    pub key: Tensor<4>,
    /// Values, `[batch, key heads, keys, head width]`.
    pub value: Tensor<4>,
    /// Who sees whom.
    pub mask: Mask,
}

/// Which keys a query sees, and what is added to their scores.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// True where a key is padding, `[batch, keys]`.
    pub padding: Option<Tensor<2, Bool>>,
    /// In a decoder, by how much the first query comes after the first key: query i sees key j if j <= i + causal.
    pub causal: Option<usize>,
    /// Added to the scores, `[1, heads, queries, keys]`, or of each sequence its own: T5's relative positions.
    pub bias: Option<Tensor<4>>,
}

impl Attention {
    /// The values summed by the softmax of the scores, `[batch, heads, tokens, head width]`. Scores are divided by the root of the heads'
    /// width, if they are to be; `drops` is the dropout of the softmax.
    pub fn context(self, scaled: bool, drops: Option<Drops>) -> Tensor<4> {
        if let Some(drops) = &drops {
            drops.check(self.query.dims()[0]);
        }
        #[cfg(feature = "flex")]
        if self.is_fused() {
            return crate::fused::attention(self, scaled, drops);
        }
        self.composed(scaled, drops)
    }

    /// One query has the products of a vector, and a bias of one sequence alone is not for the others.
    #[cfg(feature = "flex")]
    fn is_fused(&self) -> bool {
        let [_, heads, rows, _] = self.query.dims();
        rows > 1
            && [&self.query, &self.key, &self.value].into_iter().all(crate::fused::is_for)
            && self.mask.bias.as_ref().is_none_or(|bias| bias.dims()[..3] == [1, heads, rows])
    }

    fn composed(self, scaled: bool, drops: Option<Drops>) -> Tensor<4> {
        let [batch, heads, rows, width] = self.query.dims();
        // Heads that share keys and values read the same ones; copies of them would cost more than the product.
        let own = self.key.dims()[1];
        let product = |x: Tensor<4>, y: Tensor<4>| {
            let [inner, outer] = [x.dims()[3], y.dims()[3]];
            if own == heads {
                return x.matmul(y);
            }
            let x = x.reshape([batch, own, heads / own, rows, inner]);
            x.matmul(y.unsqueeze_dim(2)).reshape([batch, heads, rows, outer])
        };
        let scores = product(self.query, self.key.swap_dims(2, 3));
        let scores = if scaled { scores.div_scalar((width as f64).sqrt()) } else { scores };
        let weights = activation::softmax(self.mask.apply(scores), 3);
        product(drops.iter().fold(weights, |weights, drops| drops.of(weights)), self.value)
    }
}

/// Splits `[batch, tokens, heads * width]` into heads, `[batch, heads, tokens, width]`.
pub fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, tokens, inner] = x.dims();
    x.reshape([batch, tokens, heads, inner / heads]).swap_dims(1, 2)
}

/// Joins heads `[batch, heads, tokens, width]` again, `[batch, tokens, heads * width]`.
pub fn joined(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, tokens, width] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * width])
}

/// Of each token, values `[batch, tokens, n, width]` summed by the softmax of their scores `[batch, tokens, n, 1]`.
pub fn mixed(values: Tensor<4>, scores: Tensor<4>) -> Tensor<3> {
    (values * activation::softmax(scores, 2)).sum_dim(2).squeeze_dim(2)
}

impl Mask {
    /// `n` more keys in front that every query sees: a prefix.
    pub fn extend(self, n: usize) -> Self {
        Mask { causal: self.causal.map(|causal| causal + n), ..self.prepend(n) }
    }

    /// `n` more rows in front of the sequence itself: a prompt.
    pub fn prepend(self, n: usize) -> Self {
        let front = |padding: Tensor<2, Bool>| {
            let visible = Tensor::<2, Bool>::full([padding.dims()[0], n], false, &padding.device());
            Tensor::cat(vec![visible, padding], 1)
        };
        Mask { padding: self.padding.map(|p| if n == 0 { p } else { front(p) }), ..self }
    }

    /// Attention scores `[batch, heads, queries, keys]` with the bias, and the unseen keys at half the least finite value, which
    /// no sum can push to infinity. Of a bias for more keys than there are the last columns count; keys in front of it get none.
    pub fn apply(&self, scores: Tensor<4>) -> Tensor<4> {
        let dims = scores.dims();
        let [_, _, queries, keys] = dims;
        let unseen = f32::MIN / 2.0;
        let mut scores = match self.bias_of(keys) {
            None => scores,
            Some(bias) => scores + bias,
        };
        if let Some(padding) = &self.padding {
            scores = scores.mask_fill(padding.clone().unsqueeze_dims::<4>(&[1, 1]).expand(dims), unseen);
        }
        match self.causal {
            // The first query sees the fewest.
            Some(causal) if causal + 1 < keys => {
                let (device, first) = (scores.device().inner(), causal as i64);
                let last_seen = Tensor::<1, Int>::arange(first..first + queries as i64, &device).unsqueeze_dim::<2>(1);
                let hidden = Tensor::<1, Int>::arange(0..keys as i64, &device).unsqueeze().greater(last_seen);
                scores.mask_fill(hidden.unsqueeze::<4>().expand(dims), unseen)
            }
            _ => scores,
        }
    }

    /// The bias for so many keys.
    pub(crate) fn bias_of(&self, keys: usize) -> Option<Tensor<4>> {
        let bias = self.bias.clone()?;
        let [_, heads, queries, columns] = bias.dims();
        if columns >= keys {
            return Some(bias.narrow(3, columns - keys, keys));
        }
        let front = Tensor::zeros([1, heads, queries, keys - columns], &bias.device());
        Some(Tensor::cat(vec![front, bias], 3))
    }
}
