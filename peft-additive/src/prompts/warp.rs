//! # WARP                                   family: additive / soft prompt-based
//! x' = T(P, E(mask), E(x)), z = V h + c, h = LN(gelu(y_mask W + b))        T: a template; P: [K, d], rows in its slots; y_mask: the final state of its mask; V: [C, d]; c: (C,); W, b and LN: the model's, frozen
//! Paper: Hambardzumyan et al., 2021, arXiv:2101.00121, section 3.   Reference: YerevaNN/WARP
//! Oracle: paper: `equals_the_derivation_of_warp`
//! Trains: K d, and C d + C as head.        Merges: no, P and the mask lengthen the sequence.
//! Identities:
//! - P of words, V and c of the model's own for words: z are its logits at the mask of that text: `a_template_of_words_is_that_text`
//! - where in memory the rows of slots stand does not matter, only their positions: `a_template_of_words_is_that_text`
//! - a constant added to all rows of V changes no probability: `a_vector_for_all_classes_changes_nothing`
//! - no word of a text is taken for a slot or a mask: `words_of_a_text_are_no_slots`
//!
//! Differs from the paper: two texts keep the special tokens between them, in front of the second; there they are one. BERT is an extension. The model's dropout is that of the run, in the paper 0. Rows of slots and of the mask stand in front of those of the text, in whatever order the template has them, and their positions are those of the template.

use std::cell::RefCell;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use peft_core::transfer::{read, send};
use peft_core::{
    Adapter, Affine, AtMask, Base, Batch, Error, Head, Hooks, Key, Lookup, Method, Part, Procedure, Result, Sequence,
    Shape, Site, Source, Stack, Wanted, random::Random,
};
use serde::{Deserialize, Serialize};

use super::{check_length, in_front, torch_linear};

/// What the rows of slots start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotInit {
    /// The mask's row of the word table.
    #[default]
    Mask,
    /// Normal numbers with mean and spread of the word table.
    Random,
    /// The rows of `init_words`.
    Words,
}

/// The configuration of WARP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarpConfig {
    /// Numbers of slots, `{text}`, `{pair}` (the second text, if its place matters) and `<mask>`, in their order, blanks between them.
    pub template: String,
    /// The id of the mask; if absent, that of the published models: 103 of a BERT, 50264 of a RoBERTa.
    pub mask_token_id: Option<usize>,
    /// The start of the slots.
    pub slot_init: SlotInit,
    /// With `words`: the ids of the words from which the slots start, one for each.
    pub init_words: Vec<usize>,
    /// The ids of the words from which the classes' vectors start; drawn, if there are none.
    pub verbalizers: Vec<usize>,
}

impl Default for WarpConfig {
    /// 20 slots: five in front, ten around the mask between the texts, five at the end.
    fn default() -> Self {
        WarpConfig {
            template: "5 {text} 5 <mask> 5 {pair} 5".into(),
            mask_token_id: None,
            slot_init: SlotInit::Mask,
            init_words: vec![],
            verbalizers: vec![],
        }
    }
}

/// A template as it is read.
#[derive(Clone, Debug, PartialEq)]
struct Template {
    /// How many slots and masks are in front of the first text, behind it, and at the end.
    gaps: [usize; 3],
    /// Which of these, counted through, is the mask.
    mask: usize,
}

impl Template {
    /// How many rows of slots.
    fn slots(&self) -> usize {
        self.gaps.iter().sum::<usize>() - 1
    }

    /// Of how many tokens the first text is, where the template tells it from the second, and where the end is: of a sequence of these
    /// ids, which ends with a special token that also ends the first text.
    fn cuts(ids: &[i32]) -> [usize; 3] {
        let end = ids.len().saturating_sub(1).max(1);
        let first = ids.iter().skip(1).position(|id| Some(id) == ids.last()).map_or(end, |place| place + 1);
        [1.min(ids.len()), first.min(end), end]
    }

    /// The position of each row, those of mask and slots in front, of a sequence of these ids that is padded to `tokens`.
    fn positions(&self, ids: &[i32], tokens: usize) -> Vec<i32> {
        let (cuts, mut virtual_rows, mut real, mut next) = (Template::cuts(ids), vec![], vec![], 0);
        for token in 0..=tokens {
            for (gap, _) in cuts.iter().enumerate().filter(|(_, cut)| **cut == token) {
                virtual_rows.extend(next..next + self.gaps[gap] as i32);
                next += self.gaps[gap] as i32;
            }
            if token < tokens {
                real.push(next);
                next += 1;
            }
        }
        let mask = virtual_rows.remove(self.mask);
        [vec![mask], virtual_rows, real].concat()
    }
}

impl WarpConfig {
    /// With this template.
    pub fn new(template: &str) -> Self {
        WarpConfig { template: template.into(), ..Default::default() }
    }

    /// With this word as mask.
    pub fn with_mask(mut self, id: usize) -> Self {
        self.mask_token_id = Some(id);
        self
    }

    /// From the rows of these words.
    pub fn with_words(mut self, ids: impl IntoIterator<Item = usize>) -> Self {
        (self.slot_init, self.init_words) = (SlotInit::Words, ids.into_iter().collect());
        self
    }

    /// With vectors of classes that start from these words.
    pub fn with_verbalizers(mut self, ids: impl IntoIterator<Item = usize>) -> Self {
        self.verbalizers = ids.into_iter().collect();
        self
    }

    fn read(&self) -> Result<Template> {
        let wrong = || {
            let expected = "numbers of slots, {text} once, <mask> once and {pair} once at most, behind {text}, as in 5 {text} <mask> 5";
            Error::config("template", &self.template, expected)
        };
        let (mut gaps, mut gap, mut mask) = ([0; 3], 0, None);
        for word in self.template.split_whitespace() {
            match word {
                "{text}" if gap == 0 => gap = 1,
                "{pair}" if gap == 1 => gap = 2,
                "<mask>" if mask.is_none() => {
                    mask = Some(gaps.iter().sum());
                    gaps[gap] += 1;
                }
                _ => gaps[gap] += word.parse::<u16>().ok().filter(|n| *n > 0).map(usize::from).ok_or_else(wrong)?,
            }
        }
        if gap == 1 {
            // What stands behind the only text is at the end, whatever the sequence has.
            gaps = [gaps[0], 0, gaps[1]];
        }
        mask.filter(|_| gap > 0).map(|mask| Template { gaps, mask }).ok_or_else(wrong)
    }

    /// The template and the mask's id; refuses settings that cannot be.
    fn plan(&self, shape: &Shape) -> Result<(Template, usize)> {
        let family = shape.architecture.family();
        let Some(usual) = family.mask_word else {
            return Err(Error::config("model", family.name, "BERT or RoBERTa, which have a word for a mask"));
        };
        let (template, mask) = (self.read()?, self.mask_token_id.unwrap_or(usual));
        check_length(template.slots() + 1, shape)?;
        let words = [
            ("mask_token_id", std::slice::from_ref(&mask)),
            ("init_words", &self.init_words[..]),
            ("verbalizers", &self.verbalizers[..]),
        ];
        for (key, ids) in words {
            if let Some(id) = ids.iter().find(|id| **id >= shape.vocab) {
                return Err(Error::config(key, id, format!("a word below {}", shape.vocab)));
            }
        }
        let wanted = if self.slot_init == SlotInit::Words { template.slots() } else { 0 };
        if self.init_words.len() != wanted {
            return Err(Error::config("init_words", self.init_words.len(), format!("{wanted} words, for this start")));
        }
        Ok((template, mask))
    }
}

/// Rows of a word table.
fn rows(table: Tensor<2>, ids: &[usize]) -> Tensor<2> {
    let (ids, device) = (ids.iter().map(|id| *id as i32).collect::<Vec<_>>(), table.device().inner());
    table.select(0, send::<1, Int>(ids.as_slice(), &device))
}

/// Rows in the slots of a template.
#[derive(Module, Debug)]
pub struct Warp {
    /// P, `[K, d]`; none without slots.
    slots: Option<Param<Tensor<2>>>,
    #[module(skip)]
    template: Template,
    #[module(skip)]
    mask: usize,
}

impl Method for WarpConfig {
    const NAME: &'static str = "warp";
    const PEFT_TYPE: &'static str = "WARP";
    type Tuner = Warp;

    fn init(&self, base: &Base, seed: u64) -> Result<Warp> {
        let shape = base.shape();
        let (template, mask) = self.plan(shape)?;
        let (k, table) = (template.slots(), base.weight(shape.words()).dense());
        let start = || match self.slot_init {
            SlotInit::Mask => rows(table, &vec![mask; k]),
            SlotInit::Words => rows(table, &self.init_words),
            SlotInit::Random => {
                let mean = table.clone().mean().into_scalar::<f32>();
                let spread = table.sub_scalar(mean).powi_scalar(2).mean().sqrt().into_scalar::<f32>();
                Random::new(seed, "warp.slots").normal_tensor([k, shape.hidden], spread.into(), base.device()) + mean
            }
        };
        let slots = (k > 0).then(|| Param::from_tensor(Tensor::from_inner(start())));
        Ok(Warp { slots, template, mask })
    }

    fn count(&self, shape: &Shape) -> Result<usize> {
        Ok(self.plan(shape)?.0.slots() * shape.hidden)
    }

    /// The vectors of the classes, behind the transform of the model's head for masked words.
    fn head(&self, wanted: &Wanted<'_>, base: &Base, seed: u64, _sources: &[Source]) -> Result<Option<Head>> {
        let Wanted { outputs: Some(outputs), words } = *wanted else { return Ok(None) };
        let (shape, device) = (base.shape(), base.device().clone().autodiff());
        self.plan(shape)?;
        let Some(Head::MaskedLm(words)) = words else {
            let expected = "a model with its head for masked words, which the classes' vectors stand behind";
            return Err(Error::config("head", "none for masked words", expected));
        };
        if self.verbalizers.is_empty() {
            let out = torch_linear([shape.hidden, outputs], shape.hidden, seed, "warp.verbalizers", &device);
            return Ok(Some(Head::AtMask(AtMask::of(words, out))));
        }
        if self.verbalizers.len() != outputs {
            let expected = format!("{outputs}, a word for each class, or none");
            return Err(Error::config("verbalizers", format!("{} words", self.verbalizers.len()), expected));
        }
        let table = match &words.decoder {
            Some(own) => own.val().without_autodiff(),
            None => base.weight(shape.words()).dense(),
        };
        let bias = words.bias.val().without_autodiff().unsqueeze_dim::<2>(1);
        let leaf = |x: Tensor<2>| Tensor::from_inner(x);
        let weight = Param::from_tensor(leaf(rows(table, &self.verbalizers).transpose()));
        let bias = Param::from_tensor(leaf(rows(bias, &self.verbalizers)).squeeze_dim(1));
        Ok(Some(Head::AtMask(AtMask::of(words, Affine { weight, bias }))))
    }

    fn head_count(&self, shape: &Shape, outputs: usize) -> usize {
        outputs * (shape.hidden + 1)
    }

    fn key(&self, _name: &str, _shape: &Shape) -> Key {
        Key::plain("base_model.model.prompt_embeddings")
    }

    fn virtual_tokens(&self) -> usize {
        self.read().map_or(0, |template| template.slots() + 1)
    }
}

/// The template on one batch.
struct Opened<'a> {
    warp: &'a Warp,
    /// Positions behind the first of all rows of all sequences.
    positions: Vec<i32>,
    /// The mask's row, once the words are looked up.
    masked: RefCell<Option<Tensor<2>>>,
}

impl Hooks for Opened<'_> {
    fn rows(&self, site: Site, lookup: &Lookup<'_>, x: Tensor<3>) -> Tensor<3> {
        match site.part {
            Part::Words => {
                self.masked.replace(Some(rows(lookup.table.dense(), &[self.warp.mask])));
                x
            }
            Part::Positions => {
                // Looked up one after the other, the same for all sequences. Those in front are of other methods.
                let [batch, all, width] = x.dims();
                let own = self.positions.len() / batch;
                let front = (all - own) as i32;
                let of =
                    |places: &[i32]| (0..front).chain(places.iter().map(|place| front + place)).collect::<Vec<_>>();
                let places: Vec<i32> = self.positions.chunks(own).flat_map(of).collect();
                let places = send::<1, Int>(places.as_slice(), &x.device());
                x.narrow(0, 0, 1).squeeze_dim::<2>(0).select(0, places).reshape([batch, all, width])
            }
            _ => x,
        }
    }

    fn embed(&self, _stack: Stack, x: Sequence) -> Sequence {
        let mask = self.masked.take().unwrap_or_else(|| unreachable!("words are looked up before"));
        let rows = self.warp.slots.iter().fold(mask, |mask, slots| Tensor::cat(vec![mask, slots.val()], 0));
        let ([n, width], [batch, _, _]) = (rows.dims(), x.hidden.dims());
        in_front(rows.unsqueeze::<3>().expand([batch, n, width]), x)
    }
}

impl Adapter for Warp {
    fn open<R>(&self, batch: &Batch, f: impl FnOnce(&dyn Hooks) -> R) -> R {
        let [_, tokens] = batch.dims();
        let ids: Vec<i32> = read(batch.ids.clone()).iter().collect();
        let padding: Vec<bool> = match &batch.padding {
            Some(padding) => read(padding.clone()).iter().collect(),
            None => vec![false; ids.len()],
        };
        let sequences = ids.chunks(tokens).zip(padding.chunks(tokens));
        let of = |(ids, padding): (&[i32], &[bool])| {
            let real = padding.iter().filter(|padding| !**padding).count();
            self.template.positions(&ids[..real], tokens)
        };
        f(&Opened { warp: self, positions: sequences.flat_map(of).collect(), masked: RefCell::default() })
    }
}

impl Procedure for Warp {}

#[cfg(test)]
mod tests {
    use peft_core::testing::fixtures::ENCODERS;
    use peft_core::testing::{base, device};

    use super::*;

    mod one_text {
        use super::*;
        peft_core::conformance!(
            WarpConfig::new("2 {text} 1 <mask> 2").with_mask(5),
            only(ENCODERS: "the others have no word for a mask"),
            skip(C1: "slots and mask are seen by all others", C3: "the sequence becomes longer")
        );
    }

    mod two_texts {
        use super::*;
        peft_core::conformance!(
            WarpConfig::new("<mask> {text} 3 {pair} 1").with_mask(5),
            only(ENCODERS: "the others have no word for a mask"),
            skip(C1: "slots and mask are seen by all others", C3: "the sequence becomes longer")
        );
    }

    #[test]
    fn has_as_many_parameters_as_the_authors_say() {
        let [base, large] = ["roberta-base", "roberta-large"].map(|name| Shape::named(name).unwrap());
        let config = WarpConfig::default();
        assert_eq!(config.count(&base).unwrap() + config.head_count(&base, 2), 16_898);
        assert_eq!(config.count(&large).unwrap() + config.head_count(&large, 3), 23_555);
        assert_eq!(WarpConfig::new("{text} <mask>").count(&base).unwrap(), 0);
    }

    /// Of `<s> a b </s> c d </s>`, padded by one.
    #[test]
    fn a_template_gives_every_row_its_position() {
        let ids = [0, 10, 11, 2, 12, 13, 2];
        for (template, expected) in [
            // Mask, slots, then the text.
            ("2 {text} 1 <mask> 1 {pair} 1", [6, 1, 2, 5, 7, 11, 0, 3, 4, 8, 9, 10, 12, 13].to_vec()),
            ("{text} 1 <mask>", [7, 6, 0, 1, 2, 3, 4, 5, 8, 9].to_vec()),
            ("<mask> {text} 1 {pair}", [1, 4, 0, 2, 3, 5, 6, 7, 8, 9].to_vec()),
        ] {
            assert_eq!(WarpConfig::new(template).read().unwrap().positions(&ids, 8), expected, "{template}");
        }
        // Without a second text its place is the end.
        let single = WarpConfig::new("{text} <mask> {pair} 1").read().unwrap();
        assert_eq!(single.positions(&[0, 10, 2], 3), [2, 3, 0, 1, 4]);
        assert_eq!(single.positions(&[7], 2), [1, 2, 0, 3]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let base = base("bert-tiny", &device());
        let good = WarpConfig::new("1 {text} <mask> 1").with_mask(5);
        let template = |template: &str| WarpConfig { template: template.into(), ..good.clone() };
        for (config, words) in [
            (template("1 {text} 1"), ["template: 1 {text} 1", "<mask> once"]),
            (template("<mask> {text} <mask>"), ["template", "<mask> once"]),
            (template("1 <mask>"), ["template", "{text} once"]),
            (template("{pair} {text} <mask>"), ["template", "behind {text}"]),
            (template("{text} 0 <mask>"), ["template", "numbers of slots"]),
            (template("{text} word <mask>"), ["template", "numbers of slots"]),
            (template("99 {text} <mask>"), ["num_virtual_tokens: 100", "virtual tokens included"]),
            (good.clone().with_mask(9999), ["mask_token_id: 9999", "a word below"]),
            (good.clone().with_words([1]), ["init_words: 1", "2 words"]),
            (good.clone().with_verbalizers([1, 9999]), ["verbalizers: 9999", "a word below"]),
        ] {
            let message = config.init(&base, 0).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        let words = Head::masked_lm(&base, 1);
        let of = |config: &WarpConfig, words: Option<&Head>| {
            config.head(&Wanted { outputs: Some(2), words }, &base, 0, &[]).unwrap_err().to_string()
        };
        for (message, words) in [
            (of(&good, None), ["head: none for masked words", "a model with its head"]),
            (
                of(&good.clone().with_verbalizers([1]), Some(&words)),
                ["verbalizers: 1 words", "2, a word for each class"],
            ),
        ] {
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
