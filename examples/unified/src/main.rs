//! One wrapper around any adapter. peft-unified has none yet; this one is SparseAdapter with a random mask, in small.
use burn::{module::Module, tensor::Tensor};
use peft_core::train::{TrainConfig, Trainer, Workers, evaluate, predict};
use peft_core::view::{Rewrite, view};
use peft_core::{Adapter, Batch, Head, Hooks, Method, Procedure, Trained, data::Labelled, io::Pretrained, random::Random};
use peft_reparam::LoraConfig;

#[derive(Module, Debug)]
struct Sparse<A: Module> {
    inner: A,
}

impl<A: Adapter> Adapter for Sparse<A> {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        view(&self.inner, &mut Half).open(batch, f) // gradients flow through the view into what is kept
    }
}
impl<A: Adapter> Procedure for Sparse<A> {}

struct Half;
impl Rewrite for Half {
    fn tensor<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Tensor<D> {
        let mask = Random::new(0, name).uniform_tensor(tensor.dims(), 0.0, 1.0, &tensor.device());
        tensor * mask.greater_elem(0.5).float()
    }
}

fn main() -> peft_core::Result<()> {
    let model = std::env::args().nth(1).unwrap_or("shape:roberta-tiny".into()); // random weights, for a first try
    let model = Pretrained::open(&model, &peft_core::device("flex")?)?; // frozen, shared, never copied
    let (train, test) = Labelled::open("../tokens.jsonl".as_ref())?.read()?.split(0.25, 0);
    let (train, test) = (train.prepare(&model, 128)?.examples, test.prepare(&model, 128)?.examples);
    let sparse = Sparse { inner: LoraConfig::new(4).init(&model.base, 0)? };
    let trained = Trained::new(sparse, Head::classifier(&model.base, 2, 0))?;
    let trainer = Trainer::new(TrainConfig::new(1e-2).with_steps(48).with_batch_size(8));
    let (trained, base) = trainer.run(&model.base, trained, &train, None, &mut ())?;
    println!("{}", evaluate(&predict(&base, &trained, &test, &Workers::new(2)?)?, &test)?);
    Ok(())
}
