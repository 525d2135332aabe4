//! The settings of LoRA, and what follows from them on a model.

use indexmap::IndexMap;
use peft_core::{Error, Part, Result, Shape, Site, Sites, Slot};
use serde::{Deserialize, Serialize};

use crate::low_rank::pair::check_dropout;
use crate::low_rank::ranks::{Patterns, check_alpha, check_rank};
use crate::low_rank::tables;
use crate::low_rank::tokens::TokenIndices;

/// Which biases of the base are trained beside the factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasMode {
    /// None.
    #[default]
    None,
    /// Those of the adapted linear maps.
    LoraOnly,
    /// Every bias of the model, the normalizations' included.
    All,
}

/// The configuration of LoRA, in the names of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The scale is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability on the input of the low-rank path.
    pub lora_dropout: f64,
    /// Where.
    pub target_modules: Sites,
    /// Whether the scale is `lora_alpha / sqrt(r)` (Kalajdzievski, 2023, arXiv:2312.03732).
    pub use_rslora: bool,
    /// Whether each output's weights have a trained length of their own: DoRA.
    pub use_dora: bool,
    /// Biases trained beside the factors.
    pub bias: BiasMode,
    /// Ranks of modules whose path ends in a match of the key; of several keys the first counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas of modules whose path ends in a match of the key; of several keys the first counts.
    pub alpha_pattern: IndexMap<String, f64>,
    /// Rows of word tables that are trained as a whole.
    pub trainable_token_indices: Option<TokenIndices>,
    /// Whether A stays as it starts: LoRA-FA.
    pub freeze_a: bool,
    /// The seed that A starts from; the run's, if absent. Adapters that share it can be added up: L-LoRA.
    pub a_seed: Option<u64>,
}

impl Default for LoraConfig {
    /// PEFT's: rank 8, alpha 8, no dropout, on query and value.
    fn default() -> Self {
        LoraConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Part::Query | Part::Value,
            use_rslora: false,
            use_dora: false,
            bias: BiasMode::None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            trainable_token_indices: None,
            freeze_a: false,
            a_seed: None,
        }
    }
}

impl LoraConfig {
    /// Rank `r`, alpha 8, on query and value.
    pub fn new(r: usize) -> Self {
        LoraConfig { r, ..Default::default() }
    }

    /// With this numerator of the scale.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.lora_alpha = alpha;
        self
    }

    /// With dropout of this probability on the low-rank path's input.
    pub fn with_dropout(mut self, p: f64) -> Self {
        self.lora_dropout = p;
        self
    }

    /// On these linear maps and tables.
    pub fn with_sites(mut self, sites: impl Into<Sites>) -> Self {
        self.target_modules = sites.into();
        self
    }

    /// With the scale `alpha / sqrt(r)`.
    pub fn with_rslora(mut self) -> Self {
        self.use_rslora = true;
        self
    }

    /// As DoRA.
    pub fn with_dora(mut self) -> Self {
        self.use_dora = true;
        self
    }

    /// As LoRA-FA.
    pub fn with_frozen_a(mut self) -> Self {
        self.freeze_a = true;
        self
    }

    /// As L-LoRA: LoRA-FA with an A that follows from this seed, whatever the run's.
    pub fn with_shared_a(mut self, seed: u64) -> Self {
        (self.freeze_a, self.a_seed) = (true, Some(seed));
        self
    }

    /// With these biases trained too.
    pub fn with_bias(mut self, bias: BiasMode) -> Self {
        self.bias = bias;
        self
    }

    /// The adapted linear maps and tables.
    pub(in crate::low_rank) fn adapted(&self, shape: &Shape) -> Result<Vec<Site>> {
        self.target_modules.among(&shape.matrices())
    }

    /// The path of a linear map or of a use of a table.
    pub(in crate::low_rank) fn path(shape: &Shape, site: Site) -> String {
        let path = shape.matrices().into_iter().find_map(|(other, path)| (other == site).then_some(path));
        path.unwrap_or_else(|| panic!("the model has no matrix at {site}"))
    }

    /// Site, rank and scale of every adapted linear map and table.
    pub(super) fn plan(&self, shape: &Shape) -> Result<Vec<(Site, usize, f64)>> {
        check_dropout(self.lora_dropout)?;
        let adapted = self.adapted(shape)?;
        let paths: Vec<String> = adapted.iter().map(|site| Self::path(shape, *site)).collect();
        if self.freeze_a && adapted.iter().any(|site| tables::is_looked_up(*site)) {
            let expected = "false where target_modules choose a table that is looked up, whose A starts at 0";
            return Err(Error::config("freeze_a", true, expected));
        }
        let ranks = Patterns::new("rank_pattern", &self.rank_pattern, &paths)?;
        let alphas = Patterns::new("alpha_pattern", &self.alpha_pattern, &paths)?;
        let plan = |(site, path): (Site, &String)| {
            let rank = ranks.first(path).unwrap_or(self.r);
            let alpha = alphas.first(path).unwrap_or(self.lora_alpha);
            check_rank(&format!("r at {path}"), rank)?;
            check_alpha(&format!("lora_alpha at {path}"), alpha)?;
            let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            Ok((site, rank, alpha / divisor))
        };
        adapted.into_iter().zip(&paths).map(plan).collect()
    }

    /// How many numbers all A have, and how many all B.
    pub fn sizes(&self, shape: &Shape) -> Result<[usize; 2]> {
        let add = |[a, b]: [usize; 2], (site, r, _): (Site, usize, f64)| {
            let [rows, columns] = tables::dims(shape, site);
            [a + r * rows, b + r * columns]
        };
        Ok(self.plan(shape)?.into_iter().fold([0, 0], add))
    }

    /// The trained rows of word tables.
    pub(super) fn rows(&self, shape: &Shape) -> Result<Vec<(Site, Vec<usize>)>> {
        let Some(tokens) = &self.trainable_token_indices else { return Ok(vec![]) };
        let (plan, adapted) = (tokens.plan(shape)?, self.adapted(shape)?);
        match plan.iter().find(|(site, _)| adapted.contains(site)) {
            None => Ok(plan),
            Some((site, _)) => {
                let expected = "tables that target_modules do not choose too";
                Err(Error::config("trainable_token_indices", Self::path(shape, *site), expected))
            }
        }
    }

    /// The trained biases of the base.
    pub(super) fn biases(&self, shape: &Shape) -> Result<Vec<Site>> {
        let adapted = self.adapted(shape)?;
        let bias = |site: &Site| match self.bias {
            BiasMode::None => false,
            BiasMode::LoraOnly => adapted.contains(site),
            BiasMode::All => true,
        };
        Ok(shape.places().into_iter().filter(|p| p.slot == Slot::Bias).map(|p| p.site).filter(bias).collect())
    }
}
