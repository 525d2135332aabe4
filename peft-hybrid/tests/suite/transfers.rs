//! What goes between program and device in a step and in a prediction: as much for a deep model as for a flat one.

use peft_additive::PromptTuningConfig;
use peft_core::testing::{device, examples};
use peft_core::train::{Run, TrainConfig, Workers, predict};
use peft_core::transfer::{Transfers, counted};
use peft_core::{Base, Head, Method, Procedure, Shape, Trained};
use peft_reparam::LoraConfig;

/// Of a step on five texts in one piece, and of their prediction.
fn transfers<M: Method>(method: &M, base: &Base, threads: usize) -> [Transfers; 2]
where
    M::Tuner: Procedure,
{
    let data = examples(base);
    let trained = Trained::new(method.init(base, 1).unwrap(), Head::classifier(base, 2, 1)).unwrap();
    let config = TrainConfig { threads, batch_size: data.len(), max_grad_norm: 1.0, ..TrainConfig::new(1e-2) };
    let mut run = Run::new(&config, base.clone(), trained).unwrap();
    let (_, step) = counted(|| run.step(&data).unwrap());
    let workers = Workers::new(threads).unwrap();
    let (_, prediction) = counted(|| predict(base, &run.trained, &data, &workers).unwrap());
    [step, prediction]
}

#[test]
fn layers_transfer_nothing() {
    // Ids, padding and labels; T5 has the decoder's ids, the buckets of two stacks and the places of the words too, a LLaMA the
    // frequencies of its positions. What is read are the losses and the norms of the gradients.
    for (name, sent) in [("roberta-tiny", 3), ("t5-tiny", 7), ("llama-tiny", 4)] {
        let deep = Shape::named(name).unwrap().with_dropout(0.1);
        for (shape, threads) in [(deep.clone().one_layer(), 1), (deep.clone(), 1), (deep, 2)] {
            let base = Base::random(shape, 1, &device());
            let what = format!("{name}, {} layers, {threads} threads", base.shape().layers);
            let found = [
                transfers(&LoraConfig::new(3).with_dropout(0.1), &base, threads),
                transfers(&PromptTuningConfig::new(4), &base, threads),
            ];
            for [step, prediction] in found {
                assert_eq!(step, Transfers { sent, read: 2 }, "{what}");
                // Each of five texts alone, without padding and labels; of a text the places of its last rows are none.
                let of_each = if name == "t5-tiny" { 4 } else { sent - 2 };
                assert_eq!(prediction, Transfers { sent: 5 * of_each, read: 5 }, "{what}");
            }
        }
    }
}
