use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use peft_additive::{Activation, Hyperformer, HyperformerConfig};
use peft_core::generate::{GenerateConfig, Prompt, generate, next_logits};
use peft_core::io::peft::from_settings;
use peft_core::testing::conformance::loss;
use peft_core::testing::tolerances::SAME_FUNCTION;
use peft_core::testing::{assert_close, base, batch, device, examples, fixtures::SHAPES, randomized};
use peft_core::train::{Observer, Run, TrainConfig, Trainer};
use peft_core::view::{Rewrite, Visit, shapes, tensors, view, visit};
use peft_core::{
    Adapter, Bare, Base, Batch, Example, Head, Label, LanguageModel, Method, Part, Sequence, Site, Stack, Trained,
    Tuner, random::Random,
};
use proptest::prelude::*;

use super::bottleneck::{activate, normalize};
use super::{run, with};

const TASKS: usize = 3;

fn bases() -> Vec<Base> {
    SHAPES.iter().map(|shape| base(shape, &device())).collect()
}

fn config() -> HyperformerConfig {
    HyperformerConfig::new(TASKS).with_bottleneck(7).with_dims(4, 6, 5)
}

fn random(config: &HyperformerConfig, base: &Base, seed: u64) -> Hyperformer {
    randomized(&config.init(base, seed).unwrap(), seed)
}

fn batch_of(base: &Base, examples: &[Example]) -> Batch {
    base.batch(&examples.iter().collect::<Vec<_>>()).unwrap()
}

/// The suite's sequences, all of one task.
fn batch_of_task(base: &Base, task: usize) -> Batch {
    let examples: Vec<Example> = examples(base).into_iter().map(|example| Example { task, ..example }).collect();
    batch_of(base, &examples)
}

fn tensor<const D: usize>(module: &impl Module, name: &str, base: &Base) -> Tensor<D> {
    Tensor::from_data(tensors(module)[name].clone(), base.device())
}

/// The tensors whose name ends so, changed.
struct Change<F>(&'static str, F);

impl<F: Fn(f32) -> f32> Rewrite for Change<F> {
    fn tensor<const D: usize>(&mut self, name: &str, t: Tensor<D>) -> Tensor<D> {
        if !name.contains(self.0) {
            return t;
        }
        let (dims, values) = (t.dims(), t.to_data().iter::<f32>().map(&self.1).collect::<Vec<_>>());
        Tensor::from_data(TensorData::new(values, dims), &t.device())
    }
}

/// The rows of the tasks' embeddings, and for every other tensor one row, that have a gradient.
struct Rows<'a>(&'a GradientsParams, Vec<(String, Vec<bool>)>);

impl Visit for Rows<'_> {
    fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, tensor: Tensor<D>) {
        let rows = if name == "tasks" { tensor.dims()[0] } else { 1 };
        let gradient: Vec<f32> = self.0.get::<D>(id).unwrap().into_data().iter().collect();
        let moves = gradient.chunks(gradient.len() / rows).map(|row| row.iter().any(|x| *x != 0.0)).collect();
        self.1.push((name.to_string(), moves));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// The card's equations, worked out from the tensors, for a batch of two sequences of different tasks. What is normalized is also so
    /// small that the epsilons decide what becomes of it.
    #[test]
    fn an_adapter_is_what_the_hypernetwork_makes(seed: u64, layer in 0..2usize, first in 0..TASKS) {
        for base in bases() {
            for (act, size) in [(Activation::GeluNew, 1.0), (Activation::Relu, 1.0), (Activation::Relu, 1e-3)] {
                let tuner = random(&config().with_activation(act), &base, seed).valid();
                let tuner = view(&tuner, &mut Change(".outer.", |x| x * size));
                let tuner = view(&tuner, &mut Change(".up.", |x| x * size));
                let tasks = [first, (first + 1) % TASKS];
                for (stack, (kind, part)) in base.shape().stacks().into_iter().flat_map(|(stack, _)| {
                    [(stack, (0, Part::FeedForward)), (stack, (1, Part::SelfAttention))]
                }) {
                    let name = if stack == Stack::Encoder { "encoder" } else { "decoder" };
                    let get = |leaf: &str| format!("networks.{name}.0.layer.{leaf}");
                    let matrix = |leaf: &str| tensor::<2>(&tuner, &get(leaf), &base);
                    let vector = |leaf: &str| tensor::<1>(&tuner, &get(leaf), &base).unsqueeze::<2>();
                    let affine = |x: Tensor<2>, map: &str| {
                        x.matmul(matrix(&format!("{map}.weight"))) + vector(&format!("{map}.bias"))
                    };
                    let draw = |name| Random::new(seed, name).normal_tensor([2, 5, 24], 1.0, base.device());
                    let (x, u): (Tensor<3>, Tensor<3>) = (draw("x"), draw("u"));
                    let expected = tasks.iter().enumerate().map(|(i, task)| {
                        let z = tensor::<2>(&tuner, "tasks", &base).narrow(0, *task, 1);
                        let rows = vec![z, matrix("layers").narrow(0, layer, 1), matrix("kinds").narrow(0, kind, 1)];
                        let input = affine(affine(Tensor::cat(rows, 1), "inner").clamp_min(0.0), "outer");
                        let [gain, bias] = ["norm.gain", "norm.bias"].map(|leaf| vector(leaf).unsqueeze());
                        let input = normalize(input.unsqueeze(), gain, bias, 1e-6);
                        let made = |map: &str| affine(input.clone().squeeze_dim(0), map);
                        let down = made("down.weight").reshape([7, 24]).transpose().unsqueeze();
                        let up = made("up.weight").reshape([24, 7]).transpose().unsqueeze();
                        let [down_bias, up_bias] = ["down.bias", "up.bias"].map(|map| made(map).unsqueeze());
                        let u = u.clone().narrow(0, i, 1);
                        let inner = activate(u.clone().matmul(down) + down_bias, act);
                        let [gain, bias] = ["post.weight", "post.bias"].map(|map| made(map).unsqueeze());
                        u + normalize(inner.matmul(up) + up_bias, gain, bias, 1e-5)
                    });
                    let expected = Tensor::cat(expected.collect(), 0);
                    let site = Site { stack, layer, part };
                    let input = Sequence { hidden: x, mask: Default::default(), prompt: 0, offset: 0, past: 0 };
                    let batch = Batch { tasks: tasks.to_vec(), ..batch(&base) };
                    let found = tuner.open(&batch, |hooks| hooks.sublayer(&base.frame(&batch, hooks), site, input, &|_| u.clone()));
                    assert_close(found, expected, SAME_FUNCTION, &format!("{act:?} at {site}"));
                }
            }
        }
    }

    /// To the bit, and other ones for another task.
    #[test]
    fn cached_adapters_are_those_that_are_generated(seed: u64) {
        for base in bases() {
            let tuner = random(&config(), &base, seed);
            let found: Vec<TensorData> = (0..TASKS).map(|task| {
                let (cached, batch) = (tuner.cached(task).unwrap(), batch_of_task(&base, task));
                let generated = run(&tuner, &base, &batch).into_data();
                assert_eq!(run(&cached, &base, &batch).into_data(), generated);
                let own = shapes(&cached).into_iter().filter(|(name, _)| name.starts_with("adapters."));
                let adapters: usize = own.map(|(_, dims)| dims.into_iter().product::<usize>()).sum();
                let layers: usize = base.shape().stacks().into_iter().map(|(_, layers)| layers).sum();
                assert_eq!(adapters, 2 * layers * (2 * 24 * 7 + 7 + 3 * 24));
                generated
            }).collect();
            prop_assert!(found[0] != found[1] && found[1] != found[2]);
        }
    }

    /// To the bit.
    #[test]
    fn tasks_with_one_embedding_are_one_function(seed: u64) {
        for base in bases() {
            let tuner = random(&config(), &base, seed).valid();
            let z: Tensor<2> = tensor(&tuner, "tasks", &base);
            let same = Tensor::cat(vec![z.clone().narrow(0, 0, 2), z.narrow(0, 0, 1)], 0);
            let same = with(tuner, "tasks", same);
            let states = |task| run(&same, &base, &batch_of_task(&base, task)).into_data();
            let [first, second, third] = [0, 1, 2].map(states);
            prop_assert_eq!(&first, &third);
            prop_assert_ne!(first, second);
        }
    }

    /// To the bit, wherever training had led the maps.
    #[test]
    fn a_normalization_to_nothing_is_the_base(seed: u64) {
        for base in bases() {
            let tuner = random(&config().with_train_layernorm(false), &base, seed).valid();
            let silent = view(&tuner, &mut Change(".post.", |_| 0.0));
            let (batch, bits) = (batch(&base), |x: Tensor<3>| -> TensorData { x.into_data() });
            let bare = bits(run(&Bare {}, &base, &batch));
            prop_assert_ne!(bits(run(&tuner, &base, &batch)), bare.clone());
            prop_assert_eq!(bits(run(&silent, &base, &batch)), bare);
        }
    }

    #[test]
    fn a_constant_in_the_second_bias_is_normalized_away(seed: u64) {
        for base in bases() {
            let tuner = random(&config(), &base, seed).valid();
            let shifted = view(&tuner, &mut Change(".up.bias.bias", |x| x + 0.7));
            let batch = batch(&base);
            prop_assert_ne!(tensors(&tuner), tensors(&shifted));
            assert_close(run(&shifted, &base, &batch), run(&tuner, &base, &batch), SAME_FUNCTION, "a constant more");
        }
    }

    /// No gradient at all for the others' embeddings; one for every tensor that tasks share.
    #[test]
    fn a_task_trains_its_own_embedding_and_what_is_shared(seed: u64, task in 0..TASKS) {
        for base in bases() {
            let tuner = random(&config(), &base, seed);
            let hidden = tuner.run(&base, &batch_of_task(&base, task)).unwrap();
            let gradients = GradientsParams::from_grads(loss(hidden).backward(), &tuner);
            let mut rows = Rows(&gradients, vec![]);
            visit(&tuner, &mut rows);
            for (name, moves) in rows.1 {
                let expected = if name == "tasks" { (0..TASKS).map(|other| other == task).collect() } else { vec![true] };
                prop_assert_eq!(moves, expected, "{}", name);
            }
        }
    }

    /// A batch of several tasks against the sequences of each alone, which keep their places.
    #[test]
    fn sequences_of_several_tasks_do_not_meet(seed: u64, tasks in prop::array::uniform5(0..TASKS)) {
        for base in bases() {
            let tuner = random(&config(), &base, seed).valid();
            let of_task = |(example, task): (Example, usize)| Example { task, ..example };
            let examples: Vec<Example> = examples(&base).into_iter().zip(tasks).map(of_task).collect();
            let found = run(&tuner, &base, &batch_of(&base, &examples));
            for (i, task) in tasks.into_iter().enumerate() {
                let own = run(&tuner, &base, &batch_of_task(&base, task));
                let [found, own] = [&found, &own].map(|states| states.clone().narrow(0, i, 1));
                assert_close(found, own, SAME_FUNCTION, &format!("sequence {i} of task {task}"));
            }
        }
    }
}

fn prompts(base: &Base) -> Vec<Prompt> {
    examples(base).into_iter().zip([2, 0, 1, 0, 2]).map(|(example, task)| Prompt { ids: example.ids, task }).collect()
}

/// Against the cached adapters of its task, which know no tasks.
#[test]
fn a_text_is_that_of_its_own_task() {
    for base in ["t5-tiny", "llama-tiny"].map(|shape| base(shape, &device())) {
        let tuner = random(&config(), &base, 5);
        let head = || Head::LanguageModel(LanguageModel {});
        let trained = Trained::new(tuner.clone(), head()).unwrap();
        for (num_beams, use_cache) in [(1, true), (3, true), (3, false)] {
            let config = GenerateConfig { use_cache, ..GenerateConfig::new(7).with_beams(num_beams) };
            let found = generate(&base, &trained, &prompts(&base), &config, |_, _| Ok(())).unwrap();
            let alone = |task: usize, ids: &Vec<u32>| {
                let ids = std::slice::from_ref(ids);
                let cached = Trained::new(tuner.cached(task).unwrap(), head()).unwrap();
                generate(&base, &cached, ids, &config, |_, _| Ok(())).unwrap().remove(0)
            };
            let mut others = 0;
            for (text, prompt) in found.iter().zip(prompts(&base)) {
                assert_eq!(*text, alone(prompt.task, &prompt.ids), "{num_beams} beams");
                others += usize::from(*text != alone((prompt.task + 1) % TASKS, &prompt.ids));
            }
            assert!(others > 0, "tasks make no difference");
        }
    }
}

/// Though all begin with the same tokens, which those of one task would share.
#[test]
fn the_next_token_is_that_of_its_own_task() {
    let base = base("llama-tiny", &device());
    let tuner = random(&config(), &base, 5).valid();
    let head = || Head::LanguageModel(LanguageModel {});
    let prompts = [0, 1, 2, 1].map(|task| Prompt { ids: vec![5, 9, 11, 6 + task as u32], task });
    let found = next_logits(&base, &Trained::new(tuner.clone(), head()).unwrap(), &prompts).unwrap();
    for (found, Prompt { ids, task }) in found.into_iter().zip(prompts) {
        let cached = Trained::new(tuner.cached(task).unwrap(), head()).unwrap().valid();
        let alone = next_logits(&base, &cached, &[ids]).unwrap().remove(0);
        let [found, alone] = [found, alone].map(|row| Tensor::<1>::from_data(row.as_slice(), base.device()));
        assert_close(found, alone, SAME_FUNCTION, &format!("task {task}"));
    }
}

/// The loss and the gradient of a step on all samples at once and on one at a time.
#[test]
fn pieces_of_a_batch_keep_their_tasks() {
    let base = base("roberta-tiny", &device());
    let data: Vec<Example> =
        examples(&base).into_iter().zip([2, 0, 1, 1, 0]).map(|(e, task)| Example { task, ..e }).collect();
    let step = |micro_rows, data: &[Example]| {
        let config = TrainConfig { micro_rows, dropout: Some(0.0), ..TrainConfig::new(1e-3).with_steps(1) };
        let trained = Trained::new(random(&self::config(), &base, 5), Head::classifier(&base, 2, 3)).unwrap();
        let report = Run::new(&config, base.clone(), trained).unwrap().step(data).unwrap();
        Tensor::<1>::from_data([report.loss as f32, report.grad_norm as f32], base.device())
    };
    assert_close(step(1, &data), step(10_000, &data), SAME_FUNCTION, "loss and norm of the gradient");
    let same: Vec<Example> = data.iter().cloned().map(|example| Example { task: 0, ..example }).collect();
    assert_ne!(step(1, &data).into_data(), step(1, &same).into_data());
}

/// A run that must not start.
struct Unstarted;

impl Observer for Unstarted {
    fn start(&mut self, _done: usize, _notes: &[String]) -> peft_core::Result<()> {
        panic!("the run has started");
    }
}

/// Before the first step, in evaluation data too, and wherever a batch is run.
#[test]
fn a_task_that_is_not_there_is_refused() {
    let base = base("bert-tiny", &device());
    let tuner = config().init(&base, 0).unwrap();
    let trained = || Trained::new(tuner.clone(), Head::classifier(&base, 2, 3)).unwrap();
    let known = [Example { ids: vec![5, 7], label: Some(Label::Class(1)), ..Default::default() }];
    let unknown = [Example { task: 3, ..known[0].clone() }];
    let trainer = Trainer::new(TrainConfig::new(1e-3).with_steps(1));
    let run =
        |data: &[Example], evaluation| trainer.run(&base, trained(), data, evaluation, &mut Unstarted).map(|_| ());
    let batch = batch_of(&base, &unknown);
    for message in [
        run(&unknown, None).unwrap_err(),
        run(&known, Some(&unknown)).unwrap_err(),
        tuner.run(&base, &batch).map(|_| ()).unwrap_err(),
        (Bare {}, tuner.clone()).run(&base, &batch).map(|_| ()).unwrap_err(),
        tuner.cached(3).map(|_| ()).unwrap_err(),
    ] {
        assert!(message.to_string().contains("task: 3 is not allowed, expected a number below 3"), "{message}");
    }
    assert!(trainer.run(&base, trained(), &known, Some(&known), &mut ()).is_ok());
}

/// Names as the official code's modules have them.
#[test]
fn files_call_the_tensors_of_a_hypernetwork_by_its_stack() {
    let base = base("t5-tiny", &device());
    let keys: Vec<_> =
        tensors(&config().init(&base, 0).unwrap()).keys().map(|name| config().key(name, base.shape())).collect();
    let named = |name: &str| keys.iter().find(|key| key.name == format!("base_model.model.{name}")).unwrap();
    let mut names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 1 + 2 * 20 + (2 * 2 + 1) + (3 * 3 + 1));
    assert!(!named("task_embedding_controller.task_to_embeddings").transposed);
    for (path, transposed) in [
        ("layer_id_embeddings.weight", false),
        ("adapters_block_type.weight", false),
        ("task_hypernet.task_embeding_generator.2.weight", true),
        ("task_hypernet.task_embeding_generator.0.bias", false),
        ("LayerNorm.weight", false),
        ("down_sampler_hyper_net.weight_generator.0.weight", true),
        ("up_sampler_hyper_net.bias_generator.0.weight", true),
        ("post_layernorm_hypernet.bias_generator.bias", false),
    ] {
        for stack in ["encoder", "decoder"] {
            let key = named(&format!("{stack}.adapter_layers_hyper_net.{path}"));
            assert_eq!(key.transposed, transposed, "{}", key.name);
        }
    }
    assert!(!named("decoder.block.2.layer.1.layer_norm.weight").transposed);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let base = base("roberta-tiny", &device());
    for (config, words) in [
        (HyperformerConfig { tasks: 0, ..config() }, ["tasks", "0", "1 to 1024"]),
        (HyperformerConfig { tasks: 1025, ..config() }, ["tasks", "1025", "1 to 1024"]),
        (config().with_bottleneck(0), ["bottleneck", "0", "1 to 384"]),
        (config().with_dims(0, 6, 5), ["task_embedding_dim", "0", "1 to 1024"]),
        (config().with_dims(4, 2000, 5), ["task_hidden_dim", "2000", "1 to 1024"]),
        (config().with_dims(4, 6, 0), ["projected_task_embedding_dim", "0", "1 to 1024"]),
    ] {
        for message in [config.init(&base, 0).unwrap_err(), config.count(base.shape()).unwrap_err()] {
            let message = message.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}

#[test]
fn settings_are_read_as_words() {
    let words = ["tasks=3", "bottleneck=7", "task_embedding_dim=4", "task_hidden_dim=6"];
    let more = ["projected_task_embedding_dim=5", "activation=swish", "train_layernorm=false"];
    let expected = config().with_activation(Activation::Swish).with_train_layernorm(false);
    let words: Vec<String> = words.into_iter().chain(more).map(str::to_string).collect();
    assert_eq!(from_settings::<HyperformerConfig>(&words).unwrap(), expected);
    assert_eq!(from_settings::<HyperformerConfig>(&[]).unwrap(), HyperformerConfig::new(8));
}
