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
