//! Table III of the survey as data: Xu et al., "Parameter-Efficient Fine-Tuning Methods for Pretrained Language Models:
//! A Critical Review and Assessment" (2023), RoBERTa-base and RoBERTa-large on the development sets of GLUE.

use std::sync::LazyLock;

use serde::Deserialize;

/// A row: one method on one model.
#[derive(Debug, Deserialize)]
pub struct Row {
    /// `RoBERTa-base` or `RoBERTa-large`.
    pub model: String,
    /// The method's name there.
    pub method: String,
    /// Its number of trainable parameters as printed; none is printed for Child-Tuning_D.
    pub params: Option<String>,
    /// For each of the tasks its metric, or both of its metrics, times 100.
    pub scores: Vec<Vec<f64>>,
    /// The average column as printed. Two rows differ from the mean of what is printed by more than rounding.
    pub average: [f64; 2],
}

#[derive(Deserialize)]
struct Table {
    tasks: Vec<String>,
    rows: Vec<Row>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    serde_json::from_str(include_str!("survey.json")).expect("a file of this crate, which a test reads")
});

/// A row of Tables IV to VI: model, row, trainable parameters as printed (Table V has none), score.
pub type Printed = (&'static str, &'static str, &'static str, f64);

/// Table IV: BLEU of T5 on WMT16's English to Romanian.
pub const TABLE_IV: [Printed; 6] = [
    ("T5-base", "FT", "222.9M", 27.42),
    ("T5-base", "IA3", "0.07M", 27.58),
    ("T5-base", "LoRA", "0.88M", 27.78),
    ("T5-large", "FT", "737.7M", 28.13),
    ("T5-large", "IA3", "0.19M", 28.12),
    ("T5-large", "LoRA", "2.36M", 28.12),
];

/// Table V: 5-shot accuracy on MMLU of LLaMA-7B, fine-tuned on Alpaca at three learning rates.
pub const TABLE_V: [Printed; 3] = [
    ("LLaMA-7B", "FT, 2e-4", "6738.4M", 25.71),
    ("LLaMA-7B", "FT, 5e-5", "6738.4M", 26.65),
    ("LLaMA-7B", "FT, 1e-6", "6738.4M", 41.79),
];

/// Table VI: 5-shot accuracy on MMLU of LLaMA, fine-tuned on Alpaca.
pub const TABLE_VI: [Printed; 8] = [
    ("LLaMA-7B", "FT", "6738.4M", 41.79),
    ("LLaMA-7B", "IA3", "1.58M", 37.88),
    ("LLaMA-7B", "LoRA", "159.9M", 40.67),
    ("LLaMA-7B", "QLoRA", "79.9M", 39.96),
    ("LLaMA-13B", "FT", "13015.9M", 49.6),
    ("LLaMA-13B", "IA3", "2.48M", 47.42),
    ("LLaMA-13B", "LoRA", "250.3M", 47.49),
    ("LLaMA-13B", "QLoRA", "125.2M", 47.29),
];

/// A row of Table VII: model, row, GB at the peak.
pub type Memory = (&'static str, &'static str, f64);

/// Table VII: the most memory that fine-tuning takes, on A800s. Those of full fine-tuning of LLaMA are sums over several.
pub const TABLE_VII: [Memory; 40] = [
    ("RoBERTa-base", "FT", 5.38),
    ("RoBERTa-base", "Adapter_S", 15.29),
    ("RoBERTa-base", "Prompt-tuning", 3.84),
    ("RoBERTa-base", "Prefix-tuning", 3.56),
    ("RoBERTa-base", "IA3", 2.62),
    ("RoBERTa-base", "BitFit", 3.27),
    ("RoBERTa-base", "Child-Tuning_D", 6.02),
    ("RoBERTa-base", "LoRA", 3.59),
    ("RoBERTa-base", "AdaLoRA", 3.57),
    ("RoBERTa-base", "MAM Adapter", 15.35),
    ("RoBERTa-base", "ProPELT_Adapter", 8.63),
    ("RoBERTa-base", "ProPELT_Prefix", 9.47),
    ("RoBERTa-base", "ProPELT_LoRA", 8.25),
    ("RoBERTa-large", "FT", 11.96),
    ("RoBERTa-large", "Adapter_S", 37.17),
    ("RoBERTa-large", "Prompt-tuning", 7.98),
    ("RoBERTa-large", "Prefix-tuning", 7.58),
    ("RoBERTa-large", "IA3", 4.83),
    ("RoBERTa-large", "BitFit", 7.5),
    ("RoBERTa-large", "Child-Tuning_D", 13.67),
    ("RoBERTa-large", "LoRA", 7.5),
    ("RoBERTa-large", "AdaLoRA", 7.43),
    ("RoBERTa-large", "MAM Adapter", 37.82),
    ("RoBERTa-large", "ProPELT_Adapter", 19.82),
    ("RoBERTa-large", "ProPELT_Prefix", 22.85),
    ("RoBERTa-large", "ProPELT_LoRA", 19.52),
    ("T5-base", "FT", 25.17),
    ("T5-base", "IA3", 21.36),
    ("T5-base", "LoRA", 19.43),
    ("T5-large", "FT", 30.17),
    ("T5-large", "IA3", 25.71),
    ("T5-large", "LoRA", 23.77),
    ("LLaMA-7B", "FT", 169.36),
    ("LLaMA-7B", "IA3", 128.57),
    ("LLaMA-7B", "LoRA", 124.82),
    ("LLaMA-7B", "QLoRA", 56.46),
    ("LLaMA-13B", "FT", 287.79),
    ("LLaMA-13B", "IA3", 191.24),
    ("LLaMA-13B", "LoRA", 174.24),
    ("LLaMA-13B", "QLoRA", 66.6),
];

/// The row of a method on a model, both by the names of the survey.
pub fn table_iii(model: &str, method: &str) -> Option<&'static Row> {
    TABLE.rows.iter().find(|row| row.model == model && row.method == method)
}

impl Row {
    /// The scores of a task, by its name in any spelling (`SST2`, `SST-2`, `sst2`); none for a task that is not GLUE's.
    pub fn task(&self, name: &str) -> &[f64] {
        let plain =
            |name: &str| name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        let place = TABLE.tasks.iter().position(|task| plain(task) == plain(name));
        place.map_or(&[], |i| &self.scores[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The printed averages are a checksum of every number: all but two agree with the means.
    #[test]
    fn averages_agree() {
        assert_eq!((TABLE.rows.len(), TABLE.tasks.len()), (26, 8));
        let wrong = TABLE.rows.iter().filter(|row| {
            assert!(row.scores.iter().all(|s| s.len() == 1 || s.len() == 2) && row.scores.len() == 8);
            let mean = |pick: fn(&Vec<f64>) -> f64| row.scores.iter().map(pick).sum::<f64>() / 8.0;
            (mean(|s| s[0]) - row.average[0]).abs() > 0.0101
                || (mean(|s| s[s.len() - 1]) - row.average[1]).abs() > 0.0101
        });
        let wrong: Vec<_> = wrong.map(|row| (&*row.model, &*row.method)).collect();
        assert_eq!(wrong, [("RoBERTa-base", "FT"), ("RoBERTa-large", "BitFit")]);
    }

    /// What the text says that rows of LLaMA save against full fine-tuning, in percent.
    #[test]
    fn memory_agrees_with_the_text() {
        let gb = |model: &str, name: &str| {
            TABLE_VII.iter().find(|row| (row.0, row.1) == (model, name)).map(|row| row.2).unwrap()
        };
        for (model, saved) in [("LLaMA-7B", [24.08, 26.30, 66.66]), ("LLaMA-13B", [33.55, 39.46, 76.86])] {
            for (name, saved) in ["IA3", "LoRA", "QLoRA"].into_iter().zip(saved) {
                let found = 100.0 * (1.0 - gb(model, name) / gb(model, "FT"));
                assert!((found - saved).abs() < 0.01, "{model} {name}: {found}");
            }
        }
        assert_eq!(TABLE_VII.iter().filter(|row| row.0.starts_with("RoBERTa")).count(), 26);
    }

    #[test]
    fn rows_are_found() {
        let lora = table_iii("RoBERTa-base", "LoRA").unwrap();
        assert_eq!(
            (lora.params.as_deref(), lora.task("sst-2"), lora.task("MRPC")),
            (Some("0.89M"), &[94.04][..], &[87.5, 90.68][..])
        );
        assert!(lora.task("WNLI").is_empty());
        assert!(table_iii("RoBERTa-large", "Child-Tuning_D").unwrap().params.is_none());
        assert!(table_iii("RoBERTa-base", "lora").is_none());
    }
}
