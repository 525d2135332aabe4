use burn::tensor::Tensor;
use peft_additive::{PromptTuning, PromptTuningConfig};
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, batch, examples, randomized};
use peft_core::{Bare, Base, Batch, Example, Method, Part, Site, random::Random};
use proptest::prelude::*;

use super::{bases, pick, real, run, with};

fn prompt(base: &Base, rows: Tensor<2>) -> PromptTuning {
    let fresh = PromptTuningConfig::new(rows.dims()[0]).init(base, 0).unwrap();
    with(fresh, "prompt_embeddings", rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// P = E(t) is the frozen model on [t; x], bit for bit.
    #[test]
    fn a_prompt_of_words_is_those_words(seed: u64, n in 1..9usize) {
        for base in bases() {
            let (shape, mut random) = (base.shape(), Random::new(seed, "words"));
            let words: Vec<usize> = (0..n).map(|_| 4 + random.below(shape.vocab - 4)).collect();
            let longer: Vec<Example> = examples(&base).into_iter().map(|example| Example {
                ids: words.iter().map(|id| *id as u32).chain(example.ids).collect(),
                types: example.types.map(|types| [vec![0; n], types].concat()),
                ..example
            }).collect();
            let longer = Batch::new(&longer, shape.pad, base.device()).unwrap();
            let table = base.weight(Site::encoder(0, Part::Words)).dense();
            let found = run(&prompt(&base, pick(table, 0, &words)), &base, &batch(&base));
            let expected = run(&Bare {}, &base, &longer);
            prop_assert_eq!(real(found, &longer).into_data(), real(expected, &longer).into_data());
        }
    }

    /// Two rows that change places, each keeping its sum with the position embedding, change places at the end too.
    #[test]
    fn rows_with_their_positions_can_be_swapped(seed: u64, n in 2..9usize, i in 0..9usize, j in 0..9usize) {
        let (i, j) = (i % n, j % n);
        prop_assume!(i != j);
        for base in bases() {
            let random = randomized(&PromptTuningConfig::new(n).init(&base, seed).unwrap(), seed);
            let rows = peft_core::view::tensors(&random)["prompt_embeddings"].clone();
            let rows = Tensor::<2>::from_data(rows, base.device());
            let first = base.shape().positions - base.shape().max_length();
            let positions = base.weight(Site::encoder(0, Part::Positions)).dense().narrow(0, first, n);
            let mut order: Vec<usize> = (0..n).collect();
            order.swap(i, j);
            let swapped = pick(rows + positions.clone(), 0, &order) - positions;
            let rows_after = n + examples(&base).iter().map(|e| e.ids.len()).max().unwrap();
            order.extend(n..rows_after);
            let before = run(&random, &base, &batch(&base));
            let after = run(&prompt(&base, swapped), &base, &batch(&base));
            assert_close(pick(before, 1, &order), after, SAME_FUNCTION, "swapped");
        }
    }
}
