//! Comparing with files that `scripts/golden` wrote: with Hugging Face transformers and PEFT, or from a paper's equations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

use super::tolerances::{REFERENCE, REFERENCE_TRAJECTORY, Tolerance};
use super::{device, difference};
use crate::answer::Answer;
use crate::load::Checkpoint;
use crate::loss::targets;
use crate::train::{Optim, Procedure, Rule, TrainConfig};
use crate::view::{Visit, tensors, visit, with_values};
use crate::{Base, Batch, Copies, Example, Key, Label, Method, Trained, io};

/// The directory of a golden model.
pub fn model_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Opens a golden model.
///
/// # Panics
/// If it does not load.
pub fn model(name: &str) -> io::Pretrained {
    io::Pretrained::open(&model_dir(name).to_string_lossy(), &device()).unwrap_or_else(|e| panic!("{e}"))
}

/// The examples of an `inputs.safetensors`.
///
/// # Panics
/// If it does not load.
pub fn examples(path: &Path) -> Vec<Example> {
    let file = Checkpoint::open_file(path).unwrap_or_else(|e| panic!("{e}"));
    let rows = |name: &str| {
        file.shape(name)?;
        let (dims, values) = file.read_i64(name).unwrap_or_else(|e| panic!("{e}"));
        Some(values.chunks(values.len() / dims[0]).map(<[i64]>::to_vec).collect::<Vec<_>>())
    };
    let ids = rows("input_ids").unwrap_or_else(|| panic!("{}: no input_ids", path.display()));
    let (mask, types, labels) = (rows("attention_mask"), rows("token_type_ids"), rows("labels"));
    let (tags, tasks) = (rows("tags"), rows("tasks"));
    let answers = rows("start_positions").zip(rows("end_positions"));
    let unsigned = |row: &[i64]| row.iter().map(|x| *x as u32).collect::<Vec<_>>();
    (0..ids.len())
        .map(|i| {
            let real = mask.as_ref().map_or(ids[i].len(), |m| m[i].iter().filter(|x| **x == 1).count());
            Example {
                ids: unsigned(&ids[i][..real]),
                mask: None,
                types: types.as_ref().map(|t| unsigned(&t[i][..real])),
                label: match (&labels, &tags) {
                    (Some(labels), _) => Some(match &labels[i][..] {
                        [class] => Label::Class(*class as usize),
                        words => Label::Words(words.iter().map(|word| *word as i32).collect()),
                    }),
                    (None, None) => answers.as_ref().map(|(first, last)| {
                        let tokens = [first, last].map(|tokens| tokens[i][0] as usize);
                        Label::Answer(Answer { tokens, ..Default::default() }.into())
                    }),
                    (None, tags) => {
                        tags.as_ref().map(|tags| Label::Tags(tags[i][..real].iter().map(|tag| *tag as i32).collect()))
                    }
                },
                task: tasks.as_ref().map_or(0, |tasks| tasks[i][0] as usize),
            }
        })
        .collect()
}

/// A case: a method's directory with `adapter`, `inputs.safetensors` and `expected.safetensors`.
pub struct Case {
    dir: PathBuf,
    /// The base model.
    pub base: Base,
    /// The examples.
    pub batch: Batch,
    lengths: Vec<usize>,
    labels: Vec<Label>,
    expected: Checkpoint,
}

impl Case {
    /// Opens the case in `dir` on a golden model.
    ///
    /// # Panics
    /// If a file does not load.
    pub fn open(dir: PathBuf, base: &str) -> Self {
        let base = model(base).base;
        let examples = examples(&dir.join("inputs.safetensors"));
        let batch = base.batch(&examples.iter().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}"));
        let lengths = examples.iter().map(|e| e.ids.len()).collect();
        let labels = examples.iter().filter_map(|e| e.label.clone()).collect();
        let expected = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap_or_else(|e| panic!("{e}"));
        Case { dir, base, batch, lengths, labels, expected }
    }

    /// Loads the adapter that PEFT saved.
    ///
    /// # Panics
    /// If it does not load.
    pub fn load<M: Method>(&self) -> (M, Trained<M::Tuner>) {
        io::peft::load(&self.dir.join("adapter"), &self.base).unwrap_or_else(|e| panic!("{e}"))
    }

    /// What is expected under this name.
    ///
    /// # Panics
    /// If nothing is.
    pub fn expected(&self, name: &str) -> TensorData {
        read(&self.expected, name)
    }

    fn compare(&self, name: &str, found: TensorData, tolerance: Tolerance) {
        let expected = self.expected(name);
        let found = TensorData::new(found.iter::<f32>().collect::<Vec<_>>(), expected.shape().clone());
        let differ = difference(&found, &expected);
        assert!(differ <= tolerance.0, "{}: {name} differs by {differ}, allowed {tolerance:?}", self.dir.display());
    }

    /// Compares logits, of sequences those of real tokens: PEFT's may also have rows for virtual tokens, in front.
    fn compare_logits<T: crate::Tuner>(&self, name: &str, trained: &Trained<T>, base: &Base, tolerance: Tolerance) {
        let found = trained.valid().logits(base, &self.batch).unwrap_or_else(|e| panic!("{e}"));
        let [size, rows, width] = found.dims();
        if rows == 1 {
            return self.compare(name, found.into_data(), tolerance);
        }
        let expected = Tensor::<3>::from_data(self.expected(name), self.base.device());
        let more = expected.dims()[1] - rows;
        let expected = expected.narrow(1, more, rows);
        for i in 0..size {
            let real = if self.batch.decoder.is_some() { rows } else { self.lengths[i] };
            let cut = |x: &Tensor<3>| x.clone().slice([i..i + 1, 0..real, 0..width]).into_data();
            let differ = difference(&cut(&found), &cut(&expected));
            assert!(differ <= tolerance.0, "{}: {name} of {i} differs by {differ}", self.dir.display());
        }
    }

    /// Compares logits, every gradient, and ten AdamW steps: losses, logits and every tensor. `key` says what the file
    /// calls a tensor. Tensors that the reference left out of `final` are not compared. Gives what the steps made.
    ///
    /// # Panics
    /// If one differs.
    pub fn check<T: Procedure>(&self, trained: Trained<T>, key: impl Fn(&str) -> Key) -> Trained<T> {
        self.check_holding(trained, key, |trained| trained)
    }

    /// [`check`](Self::check) where `hold` follows each step, for what has no gradient but roundings.
    ///
    /// # Panics
    /// If one differs.
    pub fn check_holding<T: Procedure>(
        &self,
        trained: Trained<T>,
        key: impl Fn(&str) -> Key,
        hold: impl Fn(Trained<T>) -> Trained<T>,
    ) -> Trained<T> {
        self.compare_logits("logits", &trained, &self.base, REFERENCE);
        let named = named(&trained, &self.gradients(&trained).1);
        assert_eq!(named.len(), tensors(&trained).len(), "every tensor has a gradient");
        for (name, gradient) in named {
            self.compare_named("grad", &name, gradient, &key, REFERENCE);
        }
        self.check_run(trained, key, |_, trained| hold(trained))
    }

    /// [`check`](Self::check) from the values of `start.safetensors`, where tensors have the names that records give them.
    ///
    /// # Panics
    /// If a tensor has no value there, or something differs.
    pub fn check_from_start<T: Procedure>(&self, fresh: Trained<T>) -> Trained<T> {
        let start = Checkpoint::open_file(&self.dir.join("start.safetensors")).unwrap_or_else(|e| panic!("{e}"));
        let values = tensors(&fresh).into_keys().map(|name| (name.clone(), read(&start, &name))).collect();
        self.check(with_values(fresh, &values).unwrap_or_else(|e| panic!("{e}")), |name| Key::plain(name))
    }

    /// The steps alone, each tensor with the learning rate that its method gives it: losses, logits and every tensor. `before` is in front of each of the ten and behind the last; it gets the
    /// number of steps that are done, and gives what goes on.
    ///
    /// # Panics
    /// If something differs.
    pub fn check_run<T: Procedure>(
        &self,
        trained: Trained<T>,
        key: impl Fn(&str) -> Key,
        before: impl FnMut(usize, Trained<T>) -> Trained<T>,
    ) -> Trained<T> {
        let trained = self.check_steps(trained, Rule::AdamW, "", &key, before);
        self.compare_logits("logits_final", &trained, &self.base, REFERENCE_TRAJECTORY);
        trained
    }

    /// The loss and its gradients.
    fn gradients<T: crate::Tuner>(&self, trained: &Trained<T>) -> (f32, GradientsParams) {
        let labels: Vec<&Label> = self.labels.iter().collect();
        let loss = trained.loss(&self.base, &self.batch, &labels).unwrap_or_else(|e| panic!("{e}"));
        let loss = loss / targets(&self.labels, trained.head.ahead(self.base.shape())) as f32;
        (loss.clone().into_scalar::<f32>(), GradientsParams::from_grads(loss.backward(), trained))
    }

    /// Compares the losses before each of ten steps of a rule, and what the tensors are then.
    fn check_steps<T: Procedure>(
        &self,
        mut trained: Trained<T>,
        optim: Rule,
        prefix: &str,
        key: &impl Fn(&str) -> Key,
        mut before: impl FnMut(usize, Trained<T>) -> Trained<T>,
    ) -> Trained<T> {
        let mut optim = Optim::of(&TrainConfig { optim, weight_decay: 0.01, ..Default::default() });
        let mut losses = vec![];
        for step in 0..10 {
            trained = before(step, trained);
            let (loss, gradients) = self.gradients(&trained);
            losses.push(loss);
            let tuner = trained.tuner.clone();
            let rate = |name: &str| name.strip_prefix("tuner.").map_or(1e-2, |name| tuner.rate(name, 1e-2));
            trained = optim.step(trained, gradients, rate);
        }
        trained = before(10, trained);
        self.compare(&format!("{prefix}losses"), TensorData::new(losses, [10]), REFERENCE);
        self.check_tensors(&format!("{prefix}final"), tensors(&trained), key, REFERENCE_TRAJECTORY);
        trained
    }

    /// Compares those tensors that are expected as `KIND.NAME`, and gives their number.
    ///
    /// # Panics
    /// If one differs.
    pub fn check_tensors(
        &self,
        kind: &str,
        tensors: BTreeMap<String, TensorData>,
        key: &impl Fn(&str) -> Key,
        tolerance: Tolerance,
    ) -> usize {
        let expected = |name: &String| self.expected.shape(&format!("{kind}.{}", key(name).name)).is_some();
        let compared: Vec<_> = tensors.into_iter().filter(|(name, _)| expected(name)).collect();
        let count = compared.len();
        compared.into_iter().for_each(|(name, data)| self.compare_named(kind, &name, data, key, tolerance));
        count
    }

    fn compare_named(&self, kind: &str, name: &str, data: TensorData, key: &impl Fn(&str) -> Key, t: Tolerance) {
        let Key { name, transposed } = key(name);
        let data = if transposed { io::transpose(data) } else { data };
        self.compare(&format!("{kind}.{name}"), data, t);
    }

    /// Compares the logits of the adapter that PEFT saved.
    ///
    /// # Panics
    /// If they differ.
    pub fn check_logits<M: Method>(&self) {
        self.check_logits_of(&self.load::<M>().1);
    }

    /// Compares the logits of an adapter.
    ///
    /// # Panics
    /// If they differ.
    pub fn check_logits_of<T: crate::Tuner>(&self, trained: &Trained<T>) {
        self.compare_logits("logits", trained, &self.base, REFERENCE);
    }

    /// [`check`](Self::check) on the adapter that PEFT saved, with the method's own names.
    ///
    /// # Panics
    /// If something differs.
    pub fn check_method<M: Method>(&self) {
        let (config, trained) = self.load::<M>();
        self.check_named(&config, trained);
    }

    /// [`check`](Self::check) with the names that adapter files have.
    ///
    /// # Panics
    /// If something differs.
    pub fn check_named<M: Method>(&self, config: &M, trained: Trained<M::Tuner>) {
        self.check(trained, |name| self.key(config, name));
    }

    /// Compares the logits of the adapter that PEFT saved, folded into the base, with those of PEFT's own merge.
    ///
    /// # Panics
    /// If they differ, or if the method does not merge.
    pub fn check_merged<M: Method>(&self) {
        let (_, trained) = self.load::<M>();
        let trained = trained.valid();
        let merge = M::merge(&trained.tuner).unwrap_or_else(|| panic!("{} does not merge", M::NAME));
        let bare = Trained { tuner: crate::Bare {}, head: trained.head.clone(), copies: Copies::default() };
        let base = trained.copies.onto(&self.base).merged(merge);
        self.compare_logits("logits_merged", &bare, &base, REFERENCE);
    }

    /// The same for ten steps of Adafactor.
    ///
    /// # Panics
    /// If something differs.
    pub fn check_adafactor<M: Method>(&self) {
        let (config, trained) = self.load::<M>();
        self.check_steps(trained, Rule::Adafactor, "adafactor.", &|name| self.key(&config, name), |_, trained| trained);
    }

    /// What adapter files call a trained tensor.
    pub fn key<M: Method>(&self, config: &M, name: &str) -> Key {
        let shape = self.base.shape();
        match name.split_once('.') {
            Some(("head", name)) => io::peft::head_key(M::HEAD_PREFIX, name, shape),
            Some(("copies", name)) => io::peft::copy_key(M::HEAD_PREFIX, name, shape),
            _ => config.key(name.trim_start_matches("tuner."), shape),
        }
    }
}

fn read(file: &Checkpoint, name: &str) -> TensorData {
    let shape = file.shape(name).unwrap_or_else(|| panic!("no {name}"));
    file.read_f32(name, shape).unwrap_or_else(|e| panic!("{e}"))
}

/// The gradients of a module's tensors, by name.
pub fn named<M: Module>(module: &M, gradients: &GradientsParams) -> BTreeMap<String, TensorData> {
    struct Named<'a>(&'a GradientsParams, BTreeMap<String, TensorData>);
    impl Visit for Named<'_> {
        fn tensor<const D: usize>(&mut self, name: &str, id: ParamId, _: Tensor<D>) {
            if let Some(gradient) = self.0.get::<D>(id) {
                self.1.insert(name.to_string(), gradient.into_data());
            }
        }
    }
    let mut named = Named(gradients, BTreeMap::new());
    visit(module, &mut named);
    named.1
}
