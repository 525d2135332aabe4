//! # MPT                                    family: additive / soft prompt-based
//! x' = [P_k; E(x)], P_k = P* o (C_k R_k)   P*: [l, d], of all tasks; C_k: [l, r], R_k: [r, d], of task k
//! from finished prompts, one a task: loss + c (KL(p_k || p) + mean (h_k - h)^2)       p_k, h_k: what prompt k and its head predict, and its final states
//! Paper: Wang et al., 2023, arXiv:2303.02861, section 3.   Reference: huggingface/peft tuners/multitask_prompt_tuning
//! Oracle: package peft 0.21.2: `equals_pefts_multitask_prompts`
//! Trains: l d + K r (l + d) for K tasks, on T5 with 2 l for l.       Merges: no, P_k lengthens the sequence.
//! Identities:
//! - it starts as P*, whatever the rank: `it_starts_as_the_shared_prompt`
//! - a C_k and R_k / a are the same prompt, and so are factors with a rank of zeros more: `factors_are_free_by_a_scale_and_by_zeros`
//! - what is computed for a task is prompt tuning: `a_folded_prompt_is_that_of_its_task`
//! - a batch moves P* and the factors of its tasks, no others: `a_batch_moves_the_factors_of_its_tasks`
//! - the mean of one source task is that task, of several it is of the factors, not of their products: `targets_start_from_the_sources_factors`
//! - the loss is what the equation says: `the_loss_is_that_of_the_equation`
//! - it is the task's alone where the student is its teacher: `nothing_is_to_be_learnt_from_oneself`
//!
//! Differs from the paper: on T5 there are rows for the decoder too, which stand in front of what it sees, as in PEFT (there not while a text is generated). PEFT does not distil. A mean is over a sequence's rows and channels of the last layer, a divergence over all predictions. Teachers run without dropout and predict with heads of their own. One learning rate for all, unless `factor_rate` is set (0.4 / 0.3 in the paper). Batches mix tasks or have one (`task_temperature`), there a number of tasks that is drawn anew.

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::transfer::send;
use peft_core::{
    Adapter, Base, Batch, Error, Hooks, Key, Method, Procedure, Readout, Result, Sequence, Shape, Source, Stack, Tuner,
    random::Random, view::copied,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::prompt_tuning::{PromptInit, PromptTuning, PromptTuningConfig};
use super::teacher::Teacher;
use super::{check_length, derived_of_rows, in_front, source_rows};

/// More tasks or ranks than anybody has, so that a file cannot ask for any amount of memory.
const MOST: usize = 1024;
/// What PEFT's factors start from.
const STD: f64 = 0.02;

/// How the shared prompt and the factors start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MptInit {
    /// The shared prompt as words that are drawn with replacement, the factors so that each task has that prompt.
    #[default]
    SampleVocab,
    /// PEFT's: the shared prompt from the standard normal distribution, the factors with standard deviation 0.02.
    Random,
    /// From an MPT of source tasks: its shared prompt, and the means of its factors for each task.
    AverageSourceTasks,
    /// The same with the factors of one source task.
    ExactSourceTask,
    /// Its shared prompt alone, which each task has at the start.
    OnlySourceShared,
    /// The words of a text. Only files that PEFT wrote may say so: there the numbers are known already.
    Text,
}

/// The configuration of MPT, in the names of PEFT's `MultitaskPromptTuningConfig` where it has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MptConfig {
    /// Number of virtual tokens.
    pub num_virtual_tokens: usize,
    /// Number K of tasks.
    pub num_tasks: usize,
    /// The rank r of what tells a task's prompt from the shared one.
    pub num_ranks: usize,
    /// How it starts.
    pub prompt_tuning_init: MptInit,
    /// Whose factors all start from, with `ExactSourceTask`: the first's, if absent.
    pub prompt_tuning_init_task: Option<usize>,
    /// The weight c of the teachers.
    pub distillation: f64,
    /// By what the learning rate of the factors is multiplied.
    pub factor_rate: f64,
}

impl Default for MptConfig {
    /// 20 virtual tokens, as prompt tuning has here, of one task; rank and weight are the paper's.
    fn default() -> Self {
        MptConfig {
            num_virtual_tokens: 20,
            num_tasks: 1,
            num_ranks: 1,
            prompt_tuning_init: MptInit::SampleVocab,
            prompt_tuning_init_task: None,
            distillation: 0.9,
            factor_rate: 1.0,
        }
    }
}

impl MptConfig {
    /// This many virtual tokens, for so many tasks.
    pub fn new(num_virtual_tokens: usize, num_tasks: usize) -> Self {
        MptConfig { num_virtual_tokens, num_tasks, ..Default::default() }
    }

    /// With factors of this rank.
    pub fn with_ranks(mut self, ranks: usize) -> Self {
        self.num_ranks = ranks;
        self
    }

    /// With this start.
    pub fn with_init(mut self, init: MptInit) -> Self {
        self.prompt_tuning_init = init;
        self
    }

    /// From the factors of this source task.
    pub fn from_task(self, task: usize) -> Self {
        MptConfig { prompt_tuning_init_task: Some(task), ..self.with_init(MptInit::ExactSourceTask) }
    }

    /// With this weight of the teachers.
    pub fn with_distillation(mut self, weight: f64) -> Self {
        self.distillation = weight;
        self
    }

    fn prompt(&self, init: PromptInit) -> PromptTuningConfig {
        PromptTuningConfig::new(self.num_virtual_tokens).with_init(init)
    }

    fn check(&self, shape: &Shape) -> Result<()> {
        check_length(self.num_virtual_tokens, shape)?;
        for (key, value) in [("num_tasks", self.num_tasks), ("num_ranks", self.num_ranks)] {
            if !(1..=MOST).contains(&value) {
                return Err(Error::config(key, value, format!("1 to {MOST}")));
            }
        }
        for (key, value) in [("distillation", self.distillation), ("factor_rate", self.factor_rate)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::config(key, value, "a finite number from 0"));
            }
        }
        Ok(())
    }

    /// Factors with which each task has the shared prompt, `[K, rows, r]` and `[K, r, d]`: ones, and behind them ranks whose second
    /// factors are 0.
    fn ones(&self, base: &Base, rows: usize, seed: u64) -> [Tensor<3>; 2] {
        let (k, more, d, device) = (self.num_tasks, self.num_ranks - 1, base.shape().hidden, base.device());
        let (cols, none) = (Tensor::ones([k, rows, 1], device), Tensor::ones([k, 1, d], device));
        if more == 0 {
            return [cols, none];
        }
        let drawn = Random::new(seed, "mpt.cols").normal_tensor([k, rows, more], STD, device);
        [Tensor::cat(vec![cols, drawn], 2), Tensor::cat(vec![none, Tensor::zeros([k, more, d], device)], 1)]
    }

    fn built(&self, base: &Base, shared: Tensor<2>, [cols, rows]: [Tensor<3>; 2], teachers: Vec<Teacher>) -> Mpt {
        Mpt {
            shared: Param::from_tensor(Tensor::from_inner(shared)),
            cols: Param::from_tensor(Tensor::from_inner(cols)),
            rows: Param::from_tensor(Tensor::from_inner(rows)),
            teachers,
            stacks: base.shape().stacks().len(),
            config: self.clone(),
        }
    }

    /// From an MPT of source tasks.
    fn target(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<Mpt> {
        let [source] = sources else {
            let start = serde_json::json!(self.prompt_tuning_init);
            let expected = format!("one adapter of mpt, for the start {start}");
            return Err(Error::config("sources", sources.len(), expected));
        };
        let own = source.tuner::<MptConfig>()?.valid();
        let (shared, cols, rows) = (own.shared.val(), own.cols.val(), own.rows.val());
        let expected = [base.shape().stacks().len() * self.num_virtual_tokens, base.shape().hidden];
        let ([tasks, _, ranks], found) = (cols.dims(), shared.dims());
        if found != expected || ranks != self.num_ranks {
            let found = format!("{}, of shape {found:?} and rank {ranks}", source.name);
            let expected = format!("an mpt of shape {expected:?} and rank {}", self.num_ranks);
            return Err(Error::config("sources", found, expected));
        }
        let for_all = |one: Tensor<3>| one.repeat_dim(0, self.num_tasks);
        let factors = match self.prompt_tuning_init {
            MptInit::AverageSourceTasks => [cols, rows].map(|all| for_all(all.mean_dim(0))),
            MptInit::ExactSourceTask => {
                let task = self.prompt_tuning_init_task.unwrap_or(0);
                if task >= tasks {
                    let expected = format!("a number below {tasks}, the tasks of {}", source.name);
                    return Err(Error::config("prompt_tuning_init_task", task, expected));
                }
                [cols, rows].map(|all| for_all(all.narrow(0, task, 1)))
            }
            _ => self.ones(base, expected[0], seed),
        };
        Ok(self.built(base, shared, factors, vec![]))
    }
}

/// A prompt of all tasks, and what makes each task's of it.
#[derive(Module, Debug)]
pub struct Mpt {
    /// P*, `[stacks * virtual tokens, hidden]`.
    shared: Param<Tensor<2>>,
    /// All C_k, `[tasks, stacks * virtual tokens, r]`.
    cols: Param<Tensor<3>>,
    /// All R_k, `[tasks, r, hidden]`.
    rows: Param<Tensor<3>>,
    /// One for each task, or none; not trained.
    teachers: Vec<Teacher>,
    #[module(skip)]
    stacks: usize,
    #[module(skip)]
    config: MptConfig,
}

impl Mpt {
    /// The prompts of these tasks, `[tasks, stacks * virtual tokens, hidden]`.
    fn prompts(&self, tasks: &[usize]) -> Tensor<3> {
        let tasks: Vec<i32> = tasks.iter().map(|task| *task as i32).collect();
        let tasks = send::<1, Int>(tasks.as_slice(), &self.shared.val().device());
        let of = |all: &Param<Tensor<3>>| all.val().select(0, tasks.clone());
        of(&self.cols).matmul(of(&self.rows)) * self.shared.val().unsqueeze()
    }

    /// The prompt of a task for good: the same function on its sequences.
    pub fn folded(&self, task: usize, base: &Base) -> Result<PromptTuning> {
        self.check_tasks(&[task])?;
        if self.stacks > 1 {
            let expected = "a model with one stack: prompt tuning has no rows for a decoder behind an encoder";
            return Err(Error::config("model", "encoder and decoder", expected));
        }
        let rows = self.valid().prompts(&[task]).squeeze_dim(0);
        Ok(self
            .config
            .prompt(PromptInit::Random)
            .init(base, 0)?
            .with_rows(Param::from_tensor(Tensor::from_inner(rows))))
    }
}

impl Method for MptConfig {
    const NAME: &'static str = "mpt";
    const PEFT_TYPE: &'static str = "MULTITASK_PROMPT_TUNING";
    const OWN_SETTINGS: &'static [&'static str] = &["distillation", "factor_rate"];
    const HEAD_PREFIX: &'static str = PromptTuningConfig::HEAD_PREFIX;
    type Tuner = Mpt;

    fn init(&self, base: &Base, seed: u64) -> Result<Mpt> {
        self.init_from(base, seed, &[])
    }

    /// From the prompts of all tasks, as teachers, or, where the start says so, from an MPT of source tasks.
    fn init_from(&self, base: &Base, seed: u64, sources: &[Source]) -> Result<Mpt> {
        self.check(base.shape())?;
        let init = match self.prompt_tuning_init {
            MptInit::SampleVocab => PromptInit::SampleVocab,
            MptInit::Random => PromptInit::Random,
            MptInit::Text => return Err(Error::config("prompt_tuning_init", "TEXT", "a start that needs no text")),
            _ => return self.target(base, seed, sources),
        };
        if !sources.is_empty() && sources.len() != self.num_tasks {
            let expected = format!("none, or a prompt for each of the {} tasks (num_tasks)", self.num_tasks);
            return Err(Error::config("sources", sources.len(), expected));
        }
        let shared = self.prompt(init).init(base, seed)?.valid().rows();
        let [rows, d] = shared.dims();
        let teacher = |source: &Source| {
            source_rows(source, [rows, d])?;
            let prompt = source.tuner::<PromptTuningConfig>()?.clone();
            Ok(copied(Teacher { prompt, head: source.trained.head.clone() }.no_grad()))
        };
        let teachers = sources.iter().map(teacher).collect::<Result<_>>()?;
        let factors = match init {
            PromptInit::Random => {
                [("cols", [self.num_tasks, rows, self.num_ranks]), ("rows", [self.num_tasks, self.num_ranks, d])].map(
                    |(name, dims)| Random::new(seed, &format!("mpt.{name}")).normal_tensor(dims, STD, base.device()),
                )
            }
            _ => self.ones(base, rows, seed),
        };
        Ok(self.built(base, shared, factors, teachers))
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        self.check(shape)?;
        let rows = shape.stacks().len() * self.num_virtual_tokens;
        Ok(rows * shape.hidden + self.num_tasks * self.num_ranks * (rows + shape.hidden))
    }

    fn key(&self, name: &str, _shape: &Shape) -> Key {
        Key::plain(match name {
            "shared" => "prompt_embeddings",
            "cols" => "prefix_task_cols",
            _ => "prefix_task_rows",
        })
    }

    /// What decided how it started and was trained is over; PEFT would ask for the files of the source.
    fn for_files(&self, _shape: &Shape) -> Result<Self> {
        let over = MptConfig::new(self.num_virtual_tokens, self.num_tasks).with_ranks(self.num_ranks);
        Ok(over.with_init(MptInit::Random))
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn derived(&self, shape: &Shape) -> Map<String, Value> {
        derived_of_rows(shape)
    }

    fn to_saved(tuner: Mpt) -> Mpt {
        Mpt { teachers: vec![], ..tuner }
    }

    fn for_loading(&self, base: &Base) -> Result<Mpt> {
        self.clone().with_init(MptInit::Random).init(base, 0)
    }
}

/// The prompts of the sequences of one batch.
struct Opened {
    /// `[batch, stacks * virtual tokens, hidden]`.
    rows: Tensor<3>,
    stacks: usize,
}

impl Hooks for Opened {
    fn embed(&self, stack: Stack, x: Sequence) -> Sequence {
        // A text that goes on has its prompt already.
        if x.past > 0 {
            return x;
        }
        let n = self.rows.dims()[1] / self.stacks;
        let first = if stack == Stack::Decoder { (self.stacks - 1) * n } else { 0 };
        in_front(self.rows.clone().narrow(1, first, n), x)
    }
}

impl Adapter for Mpt {
    /// # Panics
    /// On a task that it does not have.
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        f(&Opened { rows: self.prompts(&batch.tasks), stacks: self.stacks })
    }

    fn tasks(&self) -> Option<usize> {
        Some(self.config.num_tasks)
    }
}

impl Procedure for Mpt {
    /// With teachers each task's sequences apart, since each has a head of its own.
    fn loss(&self, readout: &Readout<'_>) -> Result<Option<Tensor<1>>> {
        if self.teachers.is_empty() || self.config.distillation == 0.0 {
            return Ok(None);
        }
        let tasks = &readout.batch.tasks;
        let of = |task: usize| {
            let sequences: Vec<usize> = (0..tasks.len()).filter(|i| tasks[*i] == task).collect();
            self.teachers[task].loss(task, self, self.config.distillation, &readout.select(&sequences))
        };
        let losses = tasks.iter().copied().collect::<BTreeSet<_>>().into_iter().map(of);
        Ok(losses.collect::<Result<Vec<_>>>()?.into_iter().reduce(|a, b| a + b))
    }

    fn rate(&self, name: &str, rate: f64) -> f64 {
        if name == "shared" { rate } else { rate * self.config.factor_rate }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use peft_core::testing::{base, device, golden::Case, randomized};
    use peft_core::{AnyTuner, Head, Trained};

    use super::*;

    fn source<M: Method>(config: M, base: &Base, seed: u64) -> Source {
        let tuner = AnyTuner::new(randomized(&config.init(base, seed).unwrap(), seed));
        let trained = Trained::new(tuner, Head::classifier(base, 2, seed)).unwrap();
        Source { name: format!("task {seed}"), config: config.into(), trained }
    }

    mod fresh {
        use super::*;
        peft_core::conformance!(
            MptConfig::new(5, 3).with_ranks(2),
            skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
        );
    }

    mod taught {
        use super::*;

        fn teachers(base: &Base) -> Vec<Source> {
            (1..4).map(|seed| source(PromptTuningConfig::new(5), base, seed)).collect()
        }

        peft_core::conformance!(
            MptConfig::new(5, 3),
            from(teachers),
            skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
        );
    }

    mod target {
        use super::*;

        fn sources(base: &Base) -> Vec<Source> {
            vec![source(MptConfig::new(5, 3), base, 1)]
        }

        peft_core::conformance!(
            MptConfig::new(5, 2).with_init(MptInit::AverageSourceTasks),
            from(sources),
            skip(C1: "the virtual tokens are seen by all others", C3: "the sequence becomes longer")
        );
    }

    #[test]
    fn equals_pefts_multitask_prompts() {
        for (case, base) in
            [("mpt", "roberta-classify"), ("mpt-bert", "bert-classify"), ("mpt-t5", "t5"), ("mpt-llama", "llama")]
        {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
            Case::open(dir, base).check_method::<MptConfig>();
        }
    }

    #[test]
    fn has_as_many_parameters_as_the_paper_says() {
        let t5 = Shape::named("t5-base").unwrap();
        let roberta = Shape::named("roberta-base").unwrap();
        assert_eq!(MptConfig::new(100, 1).count(&roberta).unwrap(), 77_668);
        // With the decoder's rows.
        assert_eq!(MptConfig::new(100, 1).count(&t5).unwrap(), 77_668 + 100 * 769);
        assert_eq!(MptConfig::new(20, 8).with_ranks(2).count(&roberta).unwrap(), 15_360 + 8 * 2 * 788);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        let good = MptConfig::new(5, 2);
        let of = |config: &MptConfig, sources: &[Source]| config.init_from(&base, 0, sources).unwrap_err().to_string();
        let (prompt, mpt) = (source(PromptTuningConfig::new(5), &base, 1), source(good.clone(), &base, 2));
        let average = good.clone().with_init(MptInit::AverageSourceTasks);
        let short = source(PromptTuningConfig::new(4), &base, 3);
        for (message, words) in [
            (of(&MptConfig::new(5, 0), &[]), ["num_tasks: 0", "1 to 1024"]),
            (of(&good.clone().with_ranks(1025), &[]), ["num_ranks: 1025", "1 to 1024"]),
            (of(&good.clone().with_distillation(-1.0), &[]), ["distillation: -1", "from 0"]),
            (of(&good.clone().with_init(MptInit::Text), &[]), ["prompt_tuning_init: TEXT", "no text"]),
            (of(&good, std::slice::from_ref(&prompt)), ["sources: 1", "each of the 2 tasks"]),
            (of(&good, &[prompt.clone(), short]), ["task 3, of shape [4, 24]", "[5, 24]"]),
            (of(&good, &[prompt.clone(), mpt.clone()]), ["task 2, of mpt", "adapters of prompt"]),
            (of(&average, &[]), ["sources: 0", "one adapter of mpt"]),
            (of(&average, &[prompt]), ["task 1, of prompt", "adapters of mpt"]),
            (of(&average.with_ranks(2), std::slice::from_ref(&mpt)), ["shape [5, 24] and rank 1", "rank 2"]),
            (of(&good.from_task(2), &[mpt]), ["prompt_tuning_init_task: 2", "below 2"]),
        ] {
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
