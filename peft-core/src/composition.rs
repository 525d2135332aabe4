//! Finished adapters that work together, in the forms that AdapterHub has: one behind another, fused, each on a part of the tokens or of
//! the rows, beside each other, averaged in what they give.
//!
//! Rows are independent of each other, so that [`Composition::Parallel`] and [`Composition::BatchSplit`] are runs of their own
//! ([`Composition::lanes`]). The rest is one run, whose hooks are woven of those of the adapters.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::Tensor;

use crate::view::{copied, shapes, tensors};
use crate::{
    AnyTuner, Base, Batch, Error, Frame, Head, Hidden, Hooks, Next, Procedure, Result, Sequence, Site, Source, Trained,
    Tuner,
};

/// A composition of adapters, or of their names.
#[derive(Clone, Debug, PartialEq)]
pub enum Composition<T> {
    /// An adapter.
    One(T),
    /// Each reads what the one before gives.
    Stack(Vec<Composition<T>>),
    /// An attention over what they give.
    Fuse(Vec<Composition<T>>),
    /// So many tokens each, from the front.
    Split(Vec<(Composition<T>, usize)>),
    /// So many rows of a batch each, from the front.
    BatchSplit(Vec<(Composition<T>, usize)>),
    /// Each on all rows, one result behind the other.
    Parallel(Vec<Composition<T>>),
    /// What each gives, times its weight, added up.
    Average(Vec<(Composition<T>, f64)>),
}

/// What each form may hold beside adapters, as in AdapterHub.
const NESTED: [(&str, &[&str]); 6] = [
    ("Stack", &["Fuse", "Split", "Parallel", "BatchSplit", "Average"]),
    ("Fuse", &[]),
    ("Split", &["Split", "Stack", "BatchSplit", "Average"]),
    ("Parallel", &["Stack", "BatchSplit", "Average"]),
    ("BatchSplit", &["Stack", "Split", "BatchSplit", "Average"]),
    ("Average", &["Stack", "Split", "BatchSplit"]),
];

/// Methods whose adapters add to a map or a sub-layer and do nothing else, and the forms of which they can be parts beside a stack.
const ADDING: [(&str, &[&str]); 4] = [
    ("adapter", &["Split", "Average"]),
    ("parallel", &["Split", "Average"]),
    ("lora", &["Average"]),
    ("adapter-fusion", &[]),
];

impl<T> Composition<T> {
    /// The form's name, as AdapterHub's files have it.
    pub fn name(&self) -> &'static str {
        match self {
            Composition::One(_) => "an adapter",
            Composition::Stack(_) => "Stack",
            Composition::Fuse(_) => "Fuse",
            Composition::Split(_) => "Split",
            Composition::BatchSplit(_) => "BatchSplit",
            Composition::Parallel(_) => "Parallel",
            Composition::Average(_) => "Average",
        }
    }

    /// The compositions of which it is made.
    pub fn children(&self) -> Vec<&Composition<T>> {
        match self {
            Composition::One(_) => vec![],
            Composition::Stack(all) | Composition::Fuse(all) | Composition::Parallel(all) => all.iter().collect(),
            Composition::Split(all) | Composition::BatchSplit(all) => all.iter().map(|(one, _)| one).collect(),
            Composition::Average(all) => all.iter().map(|(one, _)| one).collect(),
        }
    }

    /// The adapters, from the front.
    pub fn adapters(&self) -> Vec<&T> {
        match self {
            Composition::One(one) => vec![one],
            other => other.children().into_iter().flat_map(Composition::adapters).collect(),
        }
    }

    /// Refuses what AdapterHub does not nest.
    pub fn check(&self) -> Result<()> {
        self.check_at(0)
    }

    fn check_at(&self, level: usize) -> Result<()> {
        let Some((name, allowed)) = NESTED.iter().find(|(name, _)| *name == self.name()) else { return Ok(()) };
        let wrong = |found: String, expected: String| Err(Error::config("adapter_setup", found, expected));
        if level > 1 && *name != "Stack" {
            return wrong(format!("{name} as deep as level {level}"), "a Stack or an adapter there".into());
        }
        if self.children().is_empty() {
            return wrong(format!("{name} of nothing"), "at least one adapter".into());
        }
        for child in self.children() {
            if !matches!(child, Composition::One(_)) && !allowed.contains(&child.name()) {
                let expected = allowed.iter().chain(&["an adapter"]).copied().collect::<Vec<_>>().join(", ");
                return wrong(format!("{} inside {name}", child.name()), expected);
            }
            child.check_at(level + 1)?;
        }
        Ok(())
    }

    /// The same of what `one` makes of each adapter and `fuse` of those that are fused.
    pub fn map<U>(
        &self,
        one: &mut dyn FnMut(&T) -> Result<U>,
        fuse: &mut dyn FnMut(Vec<U>) -> Result<U>,
    ) -> Result<Composition<U>> {
        Ok(match self {
            Composition::One(adapter) => Composition::One(one(adapter)?),
            Composition::Fuse(_) => {
                let parts = self.adapters().into_iter().map(one).collect::<Result<_>>()?;
                Composition::One(fuse(parts)?)
            }
            Composition::Stack(all) => {
                Composition::Stack(all.iter().map(|it| it.map(one, fuse)).collect::<Result<_>>()?)
            }
            Composition::Parallel(all) => {
                Composition::Parallel(all.iter().map(|it| it.map(one, fuse)).collect::<Result<_>>()?)
            }
            Composition::Split(all) => Composition::Split(mapped(all, one, fuse)?),
            Composition::BatchSplit(all) => Composition::BatchSplit(mapped(all, one, fuse)?),
            Composition::Average(all) => Composition::Average(mapped(all, one, fuse)?),
        })
    }
}

fn mapped<T, U, N: Copy>(
    all: &[(Composition<T>, N)],
    one: &mut dyn FnMut(&T) -> Result<U>,
    fuse: &mut dyn FnMut(Vec<U>) -> Result<U>,
) -> Result<Vec<(Composition<U>, N)>> {
    all.iter().map(|(it, number)| Ok((it.map(one, fuse)?, *number))).collect()
}

/// A run of some rows with adapters of their own.
#[derive(Debug)]
pub struct Lane {
    /// Which rows.
    pub rows: Range<usize>,
    /// The adapters, with the head of the last.
    pub trained: Trained<AnyTuner>,
}

impl Composition<Source> {
    /// The runs that make it up, of so many rows in all: one, but of what stands beside each other or has rows of its own. Fused adapters
    /// are one by now. What cannot be a part is an error that names the adapter and the reason.
    pub fn lanes(&self, rows: usize) -> Result<Vec<Lane>> {
        self.check()?;
        self.check_methods(None)?;
        let lane = |(rows, one): (Range<usize>, Composition<&Source>)| {
            let (mut parts, mut number) = (vec![], 0..);
            let head = one.head()?.clone();
            let tree = one.map(
                &mut |source| {
                    parts.push(copied(source.trained.tuner.clone()));
                    number.next().ok_or_else(|| unreachable!("numbers do not end"))
                },
                &mut |_| unreachable!("fused adapters are one"),
            )?;
            let whole = match one.adapters().iter().all(|source| source.config.name() == "adapter") {
                true => parts.iter().flat_map(shapes).map(|(name, _)| name).collect(),
                false => vec![],
            };
            let woven = AnyTuner::new(Woven { parts, tree, whole });
            Ok(Lane { rows, trained: Trained::new(woven, head)? })
        };
        self.apart(0..rows)?.into_iter().map(lane).collect()
    }

    /// Refuses adapters that cannot be parts of a form, and forms in which AdapterHub computes something else than it says.
    fn check_methods(&self, inside: Option<&str>) -> Result<()> {
        let wrong = |source: &Source, expected: String| {
            Err(Error::config(self.name(), format!("{}, of {}", source.name, source.config.name()), expected))
        };
        let forms = |method: &str| ADDING.iter().find(|(name, _)| *name == method).map_or(&[][..], |(_, forms)| forms);
        if let Composition::Split(_) | Composition::Average(_) = self {
            for source in self.adapters() {
                if !forms(source.config.name()).contains(&self.name()) {
                    let known = ADDING.iter().filter(|(_, forms)| forms.contains(&self.name())).map(|(name, _)| *name);
                    return wrong(source, format!("adapters of {}", known.collect::<Vec<_>>().join(", ")));
                }
            }
        }
        let loras = || self.adapters().into_iter().filter(|source| source.config.name() == "lora");
        if let (Composition::Stack(_), Some(second)) = (self, loras().nth(1)) {
            let expected =
                "one LoRA in a Stack: AdapterHub feeds a second with what the first adds, not with the input";
            return wrong(second, expected.into());
        }
        if let (Some(outer), false) = (inside.filter(|outer| *outer != "Stack"), matches!(self, Composition::One(_))) {
            let twice = |source: &&&Source| source.config.settings().get("placement") == Some(&"pfeiffer".into());
            if let Some(source) = self.adapters().iter().find(twice) {
                let expected =
                    format!("no {} inside {outer} for it: AdapterHub normalizes its input twice there", self.name());
                return wrong(source, expected);
            }
        }
        self.children().into_iter().try_for_each(|child| child.check_methods(Some(self.name())))
    }

    /// The rows that have adapters of their own, and these without a division of rows in them.
    fn apart(&self, rows: Range<usize>) -> Result<Vec<(Range<usize>, Composition<&Source>)>> {
        Ok(match self {
            Composition::One(source) => vec![(rows, Composition::One(source))],
            Composition::Fuse(_) => {
                return Err(Error::config("adapter_setup", "Fuse", "a finished fusion of the adapters"));
            }
            Composition::Stack(all) => {
                let mut lanes: Vec<(Range<usize>, Vec<Composition<&Source>>)> = vec![(rows, vec![])];
                if all.iter().filter(|child| matches!(child, Composition::Parallel(_))).count() > 1 {
                    return Err(Error::config(
                        "adapter_setup",
                        "two Parallel in one Stack",
                        "one, which repeats the rows",
                    ));
                }
                for child in all {
                    let mut longer = vec![];
                    for (rows, before) in lanes {
                        for (rows, one) in child.apart(rows)? {
                            longer.push((rows, before.iter().cloned().chain([one]).collect()));
                        }
                    }
                    lanes = longer;
                }
                lanes.into_iter().map(|(rows, all)| (rows, Composition::Stack(all))).collect()
            }
            Composition::Parallel(all) => {
                all.iter().map(|child| child.apart(rows.clone())).collect::<Result<Vec<_>>>()?.concat()
            }
            Composition::BatchSplit(all) => {
                let sizes: Vec<usize> = all.iter().map(|(_, size)| *size).collect();
                if sizes.iter().sum::<usize>() != rows.len() {
                    let expected = format!("sizes that add up to the rows there, {}", rows.len());
                    return Err(Error::config("batch_sizes", format!("{sizes:?}"), expected));
                }
                let (mut lanes, mut first) = (vec![], rows.start);
                for (child, size) in all {
                    lanes.extend(child.apart(first..first + size)?);
                    first += size;
                }
                lanes
            }
            Composition::Split(all) => vec![(rows.clone(), Composition::Split(together(all, &rows)?))],
            Composition::Average(all) => vec![(rows.clone(), Composition::Average(together(all, &rows)?))],
        })
    }
}

/// Parts that all have the same rows.
fn together<'a, N: Copy>(
    all: &'a [(Composition<Source>, N)],
    rows: &Range<usize>,
) -> Result<Vec<(Composition<&'a Source>, N)>> {
    let one = |(child, number): &'a (Composition<Source>, N)| match &mut child.apart(rows.clone())?[..] {
        [(_, one)] => Ok((one.clone(), *number)),
        _ => Err(Error::config("adapter_setup", "BatchSplit inside a form of tokens", "it outermost, or in a Stack")),
    };
    all.iter().map(one).collect()
}

impl Composition<&Source> {
    /// The head of the last adapter; where several are the last, they must have the same.
    fn head(&self) -> Result<&Head> {
        match self {
            Composition::One(source) => Ok(&source.trained.head),
            Composition::Stack(all) => all.last().map_or_else(|| unreachable!("a form has parts"), Composition::head),
            other => {
                let heads = other.children().into_iter().map(Composition::head).collect::<Result<Vec<_>>>()?;
                match heads.iter().all(|head| tensors(*head) == tensors(heads[0])) {
                    true => Ok(heads[0]),
                    false => {
                        let found = format!("heads that differ, of {}", self.name());
                        Err(Error::config("head", found, "one for all: their outputs are of one text"))
                    }
                }
            }
        }
    }
}

/// Adapters whose hooks make one run.
#[derive(Module, Debug)]
struct Woven {
    parts: Vec<AnyTuner>,
    /// Numbers of parts.
    #[module(skip)]
    tree: Composition<usize>,
    /// The tensors of adapters that all stand at the output of sub-layers: there AdapterHub averages the whole and not what is added.
    #[module(skip)]
    whole: Vec<String>,
}

impl Woven {
    fn open(&self, tree: &Composition<usize>, batch: &Batch, f: &mut dyn FnMut(&dyn Hooks)) {
        match tree {
            Composition::One(part) => {
                let adapter = self.parts[*part].as_adapter();
                adapter.unwrap_or_else(|| unreachable!("`run` has looked")).open_any(batch, f);
            }
            Composition::Stack(all) => self.open_stack(all, batch, &(), f),
            Composition::Average(all) => {
                let (children, weights): (Vec<_>, Vec<f64>) = all.iter().map(|(one, weight)| (one, *weight)).unzip();
                let (weights, whole) = (&weights[..], &self.whole[..]);
                self.open_all(&children, batch, &[], &mut |all| f(&Averaged { all, weights, whole }));
            }
            Composition::Split(all) => {
                let (children, sizes): (Vec<_>, Vec<usize>) = all.iter().map(|(one, size)| (one, *size)).unzip();
                self.open_all(&children, batch, &[], &mut |all| f(&Parted { all, sizes: &sizes }));
            }
            Composition::Fuse(_) | Composition::BatchSplit(_) | Composition::Parallel(_) => {
                unreachable!("lanes hold none")
            }
        }
    }

    fn open_stack(&self, all: &[Composition<usize>], batch: &Batch, inner: &dyn Hooks, f: &mut dyn FnMut(&dyn Hooks)) {
        match all {
            [] => f(inner),
            [first, rest @ ..] => {
                self.open(first, batch, &mut |hooks| self.open_stack(rest, batch, &(hooks, inner), f));
            }
        }
    }

    fn open_all(
        &self,
        all: &[&Composition<usize>],
        batch: &Batch,
        opened: &[&dyn Hooks],
        f: &mut dyn FnMut(&[&dyn Hooks]),
    ) {
        match all {
            [] => f(opened),
            [first, rest @ ..] => self.open(first, batch, &mut |hooks| {
                let opened: Vec<&dyn Hooks> = opened.iter().copied().chain([hooks]).collect();
                self.open_all(rest, batch, &opened, f);
            }),
        }
    }

    /// Refuses sequences of other lengths than the splits.
    fn check_lengths(tree: &Composition<usize>, tokens: usize) -> Result<()> {
        if let Composition::Split(all) = tree {
            let sizes: Vec<usize> = all.iter().map(|(_, size)| *size).collect();
            if sizes.iter().sum::<usize>() != tokens {
                let expected = format!("sizes that add up to the tokens of a sequence, {tokens}");
                return Err(Error::config("splits", format!("{sizes:?}"), expected));
            }
            return all.iter().try_for_each(|(one, size)| Self::check_lengths(one, *size));
        }
        tree.children().into_iter().try_for_each(|child| Self::check_lengths(child, tokens))
    }
}

impl Tuner for Woven {
    fn run(&self, base: &Base, batch: &Batch) -> Result<Hidden> {
        Self::check_lengths(&self.tree, batch.dims()[1])?;
        for part in &self.parts {
            part.check_tasks(&batch.tasks)?;
            if part.as_adapter().is_none() {
                return Err(Error::config("adapter_setup", format!("{part:?}"), "adapters, which compose"));
            }
        }
        let mut hidden = None;
        self.open(&self.tree, batch, &mut |hooks| hidden = Some(base.forward(batch, hooks)));
        hidden.unwrap_or_else(|| unreachable!("every adapter opens once"))
    }
}

impl Procedure for Woven {}

/// What several give, times their weights.
struct Averaged<'a> {
    all: &'a [&'a dyn Hooks],
    weights: &'a [f64],
    whole: &'a [String],
}

impl Averaged<'_> {
    /// What is added to the plain output, times the weights.
    fn sum(&self, plain: Tensor<3>, each: impl Fn(&dyn Hooks) -> Tensor<3>) -> Tensor<3> {
        let parts = self.all.iter().zip(self.weights);
        parts.fold(plain.clone(), |sum, (hooks, weight)| sum + (each(*hooks) - plain.clone()) * *weight)
    }
}

impl Hooks for Averaged<'_> {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        // Once: what is inside may keep rows in a cache.
        let output = next(x.clone());
        let each = |hooks: &dyn Hooks| hooks.sublayer(frame, site, x.clone(), &|_| output.clone());
        let sum = self.sum(output.clone(), each);
        let place = format!("adapters.{site}.");
        match self.whole.iter().any(|name| name.starts_with(&place)) {
            // The output itself is among what is weighted.
            true => sum + output * (self.weights.iter().sum::<f64>() - 1.0),
            false => sum,
        }
    }

    fn linear(&self, site: Site, x: Tensor<3>, next: Next<'_, Tensor<3>>) -> Tensor<3> {
        let output = next(x.clone());
        self.sum(output.clone(), |hooks| hooks.linear(site, x.clone(), &|_| output.clone()))
    }
}

/// Tokens from the front for each.
struct Parted<'a> {
    all: &'a [&'a dyn Hooks],
    sizes: &'a [usize],
}

impl Hooks for Parted<'_> {
    fn sublayer(&self, frame: &Frame<'_>, site: Site, x: Sequence, next: Next<'_, Sequence, Tensor<3>>) -> Tensor<3> {
        let output = next(x.clone());
        let first = (0..self.sizes.len()).map(|i| self.sizes[..i].iter().sum());
        let of = |((hooks, size), first): ((&&dyn Hooks, &usize), usize)| {
            let own = hooks.sublayer(frame, site, x.clone(), &|_| output.clone());
            own.narrow(1, first, *size)
        };
        Tensor::cat(self.all.iter().zip(self.sizes).zip(first).map(of).collect(), 1)
    }
}
