//! The rows of Table III that can be run, with their settings.

use peft_core::{Error, Head, Result, Shape, io::peft};

use crate::registry::by_name;

/// A row of the table: a method with the survey's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Its name, the survey's where it has the row.
    pub name: &'static str,
    /// The method's name in commands.
    pub method: &'static str,
    /// Its settings, those from which the survey's number of parameters follows.
    pub settings: &'static [&'static str],
    /// Its settings for a model as wide as RoBERTa-large, where they differ.
    pub large_settings: &'static [&'static str],
    /// Its settings for the small model that is pretrained here, where they differ.
    pub small_settings: &'static [&'static str],
    /// The peak learning rate for models of the size of RoBERTa-base.
    pub learning_rate: f64,
    /// The peak learning rate for the small model.
    pub small_learning_rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Sequences in a step, those of the survey for the smaller and for the larger of its two models; 32 for the small one.
    pub batch_sizes: [usize; 2],
    /// Whether the survey's number of parameters includes the head.
    pub counts_head: bool,
    /// What the survey's number counts where that is not what the row trains: methods with settings, and how many of each.
    pub counted: &'static [(&'static str, &'static [&'static str], usize)],
    /// What else is not as in the survey, or in the code that it ran, in sentences; empty, if nothing is known.
    pub differs: &'static str,
    /// Where it stands in the survey's tree, family / group: of the table of all methods.
    pub group: &'static str,
    /// What it starts from, in the same table.
    pub sources: Sources,
    /// Whether one run is of all tasks of the table, each with a head of its own; `{tasks}` in settings is their number.
    pub together: bool,
}

/// The finished adapters from which a row starts: of another row, by its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sources {
    /// None.
    Base,
    /// That of the same task and seed.
    Own(&'static str),
    /// Those of other tasks.
    Others(&'static str),
    /// That of a row which is trained on the other tasks together.
    Together(&'static Row),
}

pub(super) const ROW: Row = Row {
    name: "",
    method: "",
    settings: &[],
    large_settings: &[],
    small_settings: &[],
    learning_rate: 1e-3,
    small_learning_rate: 1e-3,
    weight_decay: 0.0,
    batch_sizes: [32; 2],
    counts_head: true,
    counted: &[],
    differs: "",
    group: "",
    sources: Sources::Base,
    together: false,
};

const PROPETL: &str = "The authors' batches are of 128, and their warm-up is 10 % of the steps.";
const UNSHARED: &str = "The survey's number is that of a prefix or of maps for each layer, without sharing; here they are shared, with \
                        masks. The authors' batches are of 128, and their warm-up is 10 % of the steps.";

/// The rows in the survey's order; the linear probe, which it does not have, shows what the frozen model is worth alone.
pub const ROWS: [Row; 14] = [
    Row { name: "Linear probe", method: "linear-probe", learning_rate: 3e-3, small_learning_rate: 5e-3, ..ROW },
    Row { name: "FT", method: "full", learning_rate: 2e-5, small_learning_rate: 5e-4, weight_decay: 0.1, ..ROW },
    Row {
        name: "Adapter_S",
        method: "adapter",
        settings: &[
            "bottleneck=200",
            "activation=relu",
            "init=normal",
            "init_std=0.02",
            "dropout=0.1",
            "inner_norm=self_attention",
            "train_layernorm=false",
        ],
        small_settings: &[
            "bottleneck=24",
            "activation=relu",
            "init=normal",
            "init_std=0.02",
            "dropout=0.1",
            "inner_norm=self_attention",
            "train_layernorm=false",
        ],
        learning_rate: 1e-4,
        small_learning_rate: 5e-3,
        weight_decay: 0.1,
        counts_head: false,
        differs: "The code that the survey ran leaves the head at its random start, and the survey does not count it; here it is trained.",
        ..ROW
    },
    Row {
        name: "Prompt-tuning",
        method: "prompt",
        settings: &["num_virtual_tokens=20"],
        small_settings: &["num_virtual_tokens=10"],
        learning_rate: 1e-2,
        small_learning_rate: 3e-3,
        differs: "The virtual tokens start as words of the vocabulary; the survey's package starts them at random by default.",
        ..ROW
    },
    Row {
        name: "Prefix-tuning",
        method: "prefix",
        settings: &["num_virtual_tokens=20"],
        // With a projection, as in the paper: vectors of PEFT's size upset a narrow model.
        small_settings: &["num_virtual_tokens=10", "prefix_projection=true"],
        learning_rate: 1e-2,
        small_learning_rate: 2e-3,
        ..ROW
    },
    Row { name: "IA3", method: "ia3", learning_rate: 8e-3, small_learning_rate: 2e-2, batch_sizes: [8; 2], ..ROW },
    Row { name: "BitFit", method: "bitfit", learning_rate: 5e-4, small_learning_rate: 5e-3, ..ROW },
    Row {
        name: "Child-Tuning_D",
        method: "child-tuning",
        settings: &["reserve_p=0.3"],
        learning_rate: 4e-5,
        small_learning_rate: 5e-4,
        // The script's.
        weight_decay: 0.01,
        ..ROW
    },
    Row {
        name: "LoRA",
        method: "lora",
        settings: &["r=8", "lora_alpha=16", "target_modules=query,value"],
        learning_rate: 5e-4,
        small_learning_rate: 5e-3,
        ..ROW
    },
    Row {
        name: "AdaLoRA",
        method: "adalora",
        settings: &["init_r=12", "target_r=8", "lora_alpha=16", "target_modules=query,value"],
        learning_rate: 1e-3,
        small_learning_rate: 1.5e-2,
        ..ROW
    },
    Row {
        name: "MAM Adapter",
        method: "mam",
        settings: &["num_virtual_tokens=16", "encoder_hidden_size=800", "bottleneck=16", "scaling=2"],
        small_settings: &["num_virtual_tokens=10", "encoder_hidden_size=96", "bottleneck=24", "scaling=2"],
        learning_rate: 1e-4,
        small_learning_rate: 3e-3,
        weight_decay: 0.1,
        counts_head: false,
        // What the official code builds: of the three prefixes an encoder uses one, of two adapters a layer one.
        counted: &[
            ("prefix", &["num_virtual_tokens=16", "prefix_projection=true", "encoder_hidden_size=800"], 3),
            ("parallel", &["bottleneck=16"], 2),
        ],
        differs: "The code that the survey ran builds three prefixes with their maps and two adapters a layer, which the survey counts, \
                  and an encoder uses one each: those that are here. It leaves the head at its random start; here it is trained.",
        ..ROW
    },
    Row {
        name: "ProPELT_Adapter",
        method: "propetl-adapter",
        settings: &["bottleneck=64", "density=0.5", "mask_rate=30"],
        large_settings: &["bottleneck=85", "density=0.5", "mask_rate=30"],
        small_settings: &["bottleneck=24", "density=0.5", "mask_rate=2"],
        learning_rate: 1e-4,
        small_learning_rate: 1e-2,
        weight_decay: 0.1,
        differs: PROPETL,
        ..ROW
    },
    Row {
        name: "ProPELT_Prefix",
        method: "propetl-prefix",
        settings: &["num_virtual_tokens=64", "encoder_hidden_size=512", "density=0.1", "mask_rate=1"],
        small_settings: &["num_virtual_tokens=10", "encoder_hidden_size=96", "density=0.5", "mask_rate=1"],
        learning_rate: 1e-4,
        small_learning_rate: 5e-3,
        weight_decay: 0.1,
        counted: &[("prefix", &["num_virtual_tokens=64", "prefix_projection=true", "encoder_hidden_size=512"], 1)],
        differs: UNSHARED,
        ..ROW
    },
    Row {
        name: "ProPELT_LoRA",
        method: "propetl-lora",
        settings: &["r=32", "lora_alpha=48", "density=0.1", "mask_rate=300", "target_modules=query,value"],
        small_settings: &["r=8", "lora_alpha=16", "density=0.5", "mask_rate=10", "target_modules=query,value"],
        learning_rate: 1e-4,
        small_learning_rate: 5e-3,
        weight_decay: 0.1,
        counted: &[("lora", &["r=32", "target_modules=query,value"], 1)],
        differs: UNSHARED,
        ..ROW
    },
];

/// What the rows of Table IV share.
const T5: Row = Row { batch_sizes: [64, 32], counts_head: false, ..ROW };

/// The rows of Table IV.
pub const ROWS_IV: [Row; 3] = [
    Row { name: "FT", method: "full", learning_rate: 1e-4, small_learning_rate: 5e-4, ..T5 },
    Row {
        name: "IA3",
        method: "ia3",
        learning_rate: 3e-3,
        small_learning_rate: 2e-2,
        counted: &[("ia3", &["target_modules=wo", "feedforward_modules=wo"], 1)],
        differs: "The survey's number is that of the inputs of the last maps alone; here are the sites that its package has by default, \
                  with keys and values.",
        ..T5
    },
    Row {
        name: "LoRA",
        method: "lora",
        settings: &["r=8", "lora_alpha=16", "target_modules=query,value"],
        learning_rate: 1e-3,
        small_learning_rate: 2e-3,
        ..T5
    },
];

/// What the rows of Tables V and VI share.
const LLAMA: Row = Row { batch_sizes: [16; 2], counts_head: false, ..ROW };

/// The rows of Table V: full fine-tuning at three learning rates; the small model's are a hundred times as high.
pub const ROWS_V: [Row; 3] = [
    Row { name: "FT, 2e-4", method: "full", learning_rate: 2e-4, small_learning_rate: 2e-2, ..LLAMA },
    Row { name: "FT, 5e-5", method: "full", learning_rate: 5e-5, small_learning_rate: 5e-3, ..LLAMA },
    Row { name: "FT, 1e-6", method: "full", learning_rate: 1e-6, small_learning_rate: 1e-4, ..LLAMA },
];

/// The rows of Table VI.
pub const ROWS_VI: [Row; 4] = [
    Row { name: "FT", method: "full", learning_rate: 1e-6, small_learning_rate: 5e-4, ..LLAMA },
    Row {
        name: "IA3",
        method: "ia3",
        settings: &["target_modules=all-linear", "feedforward_modules=down_proj"],
        learning_rate: 3e-3,
        small_learning_rate: 1e-2,
        ..LLAMA
    },
    Row {
        name: "LoRA",
        method: "lora",
        settings: &["r=64", "lora_alpha=16", "lora_dropout=0.1", "target_modules=all-linear"],
        small_settings: &["r=8", "lora_alpha=16", "target_modules=all-linear"],
        learning_rate: 2e-4,
        small_learning_rate: 2e-3,
        ..LLAMA
    },
    Row {
        name: "QLoRA",
        method: "qlora",
        settings: &["r=64", "lora_alpha=16", "lora_dropout=0.1"],
        small_settings: &["r=8", "lora_alpha=16"],
        learning_rate: 2e-4,
        small_learning_rate: 2e-3,
        differs: "The survey's numbers of parameters are LoRA's, halved by a line of the script that prints them; it trains as many as LoRA.",
        ..LLAMA
    },
];

/// From this width on a model is the larger of the survey's two.
const LARGE: usize = 1024;

fn count(method: &str, settings: &[String], shape: &Shape) -> Result<usize> {
    peft::with_words(&by_name(method)?, settings)?.count(shape)
}

impl Row {
    /// The row of this name, in any case, among those of a table.
    pub fn named(rows: &[Row], name: &str) -> Result<Self> {
        let known = || rows.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        let named = rows.iter().find(|row| row.name.eq_ignore_ascii_case(name));
        named
            .or_else(|| rows.iter().find(|row| row.method == name))
            .copied()
            .ok_or_else(|| Error::config("--rows", name, known()))
    }

    /// Sequences in a step with the survey's settings for a model of this shape.
    pub fn batch_size(&self, shape: &Shape) -> usize {
        self.batch_sizes[usize::from(shape.hidden >= LARGE)]
    }

    /// Its settings as commands take them, the survey's for a model of this shape or those for the small model.
    pub fn settings(&self, shape: &Shape, small: bool) -> Vec<String> {
        let settings = match (small, shape.hidden >= LARGE) {
            (true, _) if !self.small_settings.is_empty() => self.small_settings,
            (false, true) if !self.large_settings.is_empty() => self.large_settings,
            _ => self.settings,
        };
        words(settings)
    }

    /// The same for a reader.
    pub(super) fn settings_text(&self, shape: &Shape, small: bool) -> String {
        let settings = self.settings(shape, small).join(", ");
        if settings.is_empty() { "its own settings".to_string() } else { settings }
    }

    /// What is not as in the survey, as it follows a sentence.
    pub(super) fn differs_text(&self) -> String {
        if self.differs.is_empty() { String::new() } else { format!(" {}", self.differs) }
    }

    /// The trainable parameters of the method, without the head.
    pub fn count(&self, shape: &Shape, small: bool) -> Result<usize> {
        count(self.method, &self.settings(shape, small), shape)
    }

    /// The number that the survey gives for a model of this shape, derived from what it counts.
    pub fn survey_count(&self, shape: &Shape) -> Result<usize> {
        let parts = self
            .counted
            .iter()
            .map(|(method, settings, times)| count(method, &words(settings), shape).map(|count| times * count));
        let own = if self.counted.is_empty() { self.count(shape, false)? } else { parts.sum::<Result<usize>>()? };
        Ok(own + if self.counts_head { Head::count(shape, 2) } else { 0 })
    }
}

fn words(settings: &[&str]) -> Vec<String> {
    settings.iter().map(|setting| setting.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use peft_additive::{PromptInit, PromptTuningConfig, SequentialConfig};
    use peft_partial::ChildTuningConfig;

    use super::*;
    use crate::reproduce::survey::table_iii;

    #[test]
    fn counts_of_sequence_models_are_those_of_the_survey() {
        let count = |rows: &[Row], name: &str, shape: &str| {
            Row::named(rows, name).unwrap().survey_count(&Shape::named(shape).unwrap()).unwrap()
        };
        for (shape, full, lora, ia3) in [
            ("t5-base", 222_903_552, 884_736, [129_024, 73_728]),
            ("t5-large", 737_668_096, 2_359_296, [344_064, 196_608]),
        ] {
            assert_eq!(count(&ROWS_IV, "FT", shape), full);
            assert_eq!(count(&ROWS_IV, "LoRA", shape), lora);
            // The survey's 0.07M and 0.19M: the inputs of the last maps alone.
            let [ours, survey] = ia3;
            assert_eq!(ROWS_IV[1].count(&Shape::named(shape).unwrap(), false).unwrap(), ours);
            assert_eq!(count(&ROWS_IV, "IA3", shape), survey);
        }
        for (shape, full, lora, ia3) in
            [("llama-7b", 6_738_415_616, 159_907_840, 1_581_056), ("llama-13b", 13_015_864_320, 250_347_520, 2_478_080)]
        {
            assert_eq!(count(&ROWS_VI, "FT", shape), full);
            assert_eq!(count(&ROWS_VI, "LoRA", shape), lora);
            assert_eq!(count(&ROWS_VI, "IA3", shape), ia3);
            // As the survey prints all parameters and their share.
            let percent = |count: usize| 100.0 * count as f64 / (full + count) as f64;
            let printed = if shape == "llama-7b" { [2.32, 0.02] } else { [1.88, 0.02] };
            assert!((percent(lora) - printed[0]).abs() < 0.01 && (percent(ia3) - printed[1]).abs() < 0.01);
        }
    }

    /// The Houlsby adapter of the MAM code, with which the survey says that it ran this row.
    #[test]
    fn the_sequential_adapter_is_the_surveys() {
        let row = Row::named(&ROWS, "Adapter_S").unwrap();
        let read = |settings| peft::from_settings::<SequentialConfig>(&words(settings)).unwrap();
        assert_eq!(read(row.settings), SequentialConfig::survey());
        assert_eq!(read(row.small_settings), SequentialConfig::survey().with_bottleneck(24));
    }

    /// Weight decay as in the script, and the Fisher information of the whole training set.
    #[test]
    fn child_tuning_is_that_of_its_script() {
        let row = Row::named(&ROWS, "Child-Tuning_D").unwrap();
        let settings = peft::from_settings::<ChildTuningConfig>(&words(row.settings)).unwrap();
        assert_eq!((row.weight_decay, settings), (0.01, ChildTuningConfig::default()));
    }

    #[test]
    fn the_row_of_prompts_says_what_they_start_as() {
        let row = Row::named(&ROWS, "Prompt-tuning").unwrap();
        let settings = peft::from_settings::<PromptTuningConfig>(&words(row.settings)).unwrap();
        assert_eq!(settings.prompt_tuning_init, PromptInit::SampleVocab);
        assert!(row.differs.contains("start as words of the vocabulary"), "{}", row.differs);
    }

    /// As the survey states them; the small model's is the same for all rows.
    #[test]
    fn batches_are_those_of_the_survey() {
        let sizes = |rows: &[Row], shape: &str| -> Vec<usize> {
            rows.iter().map(|row| row.batch_size(&Shape::named(shape).unwrap())).collect()
        };
        for (shape, rows, expected) in [
            ("t5-base", &ROWS_IV[..], 64),
            ("t5-large", &ROWS_IV[..], 32),
            ("llama-7b", &ROWS_V[..], 16),
            ("llama-13b", &ROWS_VI[..], 16),
        ] {
            assert_eq!(sizes(rows, shape), vec![expected; rows.len()], "{shape}");
        }
        for shape in ["roberta-base", "roberta-large"] {
            for (row, size) in ROWS.iter().zip(sizes(&ROWS, shape)) {
                assert_eq!(size, if row.name == "IA3" { 8 } else { 32 }, "{shape} {}", row.name);
            }
        }
    }

    /// Where the survey counts something else than what is trained here, with the head, the row says so.
    #[test]
    fn other_counts_are_explained() {
        for (rows, shape, head) in
            [(&ROWS[..], "roberta-base", true), (&ROWS_IV, "t5-base", false), (&ROWS_VI, "llama-7b", false)]
        {
            let shape = Shape::named(shape).unwrap();
            for row in rows {
                let ours = row.count(&shape, false).unwrap() + if head { Head::count(&shape, 2) } else { 0 };
                let other = ours != row.survey_count(&shape).unwrap();
                assert!(!other || !row.differs.is_empty(), "{}", row.name);
            }
        }
    }

    /// The survey prints millions with two or three digits after the point, rounded or cut.
    #[test]
    fn counts_are_those_of_the_survey() {
        for (model, shape) in [("RoBERTa-base", "roberta-base"), ("RoBERTa-large", "roberta-large")] {
            for row in &ROWS[1..] {
                let Some(printed) = table_iii(model, row.name).unwrap().params.clone() else {
                    assert_eq!(row.name, "Child-Tuning_D");
                    continue;
                };
                let number = printed.trim_end_matches('M');
                let digits = number.split('.').nth(1).map_or(0, str::len) as i32;
                let ours = row.survey_count(&Shape::named(shape).unwrap()).unwrap() as f64 / 1e6;
                let scale = 10f64.powi(digits);
                let near = [(ours * scale).round(), (ours * scale).floor()].map(|x| x / scale);
                assert!(near.contains(&number.parse().unwrap()), "{model} {}: {printed} and {ours}", row.name);
            }
        }
    }
}
