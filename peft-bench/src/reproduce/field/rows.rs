//! The rows of the table of all methods, in the order of the survey's tree, each with settings for the small model (3 layers of 96).

use super::super::rows::{ROW, Row, Sources};

const BASELINE: Row = Row { group: "baseline", ..ROW };
const ADAPTER: Row = Row { group: "additive / adapter-based", small_learning_rate: 5e-3, ..ROW };
const PROMPT: Row = Row { group: "additive / soft prompt-based", small_learning_rate: 3e-3, ..ROW };
const OTHER: Row = Row { group: "additive / others", small_learning_rate: 5e-3, ..ROW };
const BIAS: Row = Row { group: "partial / bias update", small_learning_rate: 5e-3, ..ROW };
const WEIGHT: Row = Row { group: "partial / pretrained weight masking", small_learning_rate: 2e-3, ..ROW };
const DELTA: Row = Row { group: "partial / delta weight masking", small_learning_rate: 1e-3, ..ROW };
const LOW_RANK: Row = Row { group: "reparameterized / low-rank decomposition", small_learning_rate: 5e-3, ..ROW };
const QUANTIZED: Row = Row { group: "reparameterized / quantized", small_learning_rate: 5e-3, ..ROW };
const MANUAL: Row = Row { group: "hybrid / manual combination", small_learning_rate: 3e-3, ..ROW };
const AUTOMATIC: Row = Row { group: "hybrid / automatic combination", small_learning_rate: 3e-3, ..ROW };
const UNIFIED: Row = Row { group: "unified / any adapter", small_learning_rate: 5e-3, ..ROW };

/// A LoRA of rank 8 that is twice as strong.
const LORA: &[&str] = &["r=8", "lora_alpha=16"];

/// MPT's first stage: one prompt and what tells the source tasks apart, taught by a finished prompt for each of them.
const MPT_SOURCE: Row = Row {
    name: "MPT of the sources",
    method: "mpt",
    settings: &["num_virtual_tokens=10", "num_tasks=3"],
    sources: Sources::Others("Prompt tuning"),
    ..PROMPT
};

/// All methods of the registry, and those that are settings of another.
pub const ROWS: [Row; 70] = [
    Row { name: "Linear probing", method: "linear-probe", small_learning_rate: 5e-3, ..BASELINE },
    Row {
        name: "Full fine-tuning",
        method: "full",
        small_learning_rate: 5e-4,
        weight_decay: 0.1,
        differs: "Its file is a whole model.",
        ..BASELINE
    },
    Row {
        name: "AdapterDrop",
        method: "adapter-drop",
        settings: &["drop=1", "bottleneck=24"],
        differs: "The lowest of three layers is without adapter.",
        ..ADAPTER
    },
    Row {
        name: "AdapterFusion",
        method: "adapter-fusion",
        small_learning_rate: 1e-3,
        sources: Sources::Others("Sequential adapter (Pfeiffer)"),
        ..ADAPTER
    },
    Row {
        name: "AdapterSoup",
        method: "adapter-soup",
        sources: Sources::Others("Sequential adapter (Pfeiffer)"),
        differs: "The mean of the sources stays as it is; the head is trained behind it.",
        ..ADAPTER
    },
    Row {
        name: "CoDA",
        method: "coda",
        settings: &["reduction=2", "bottleneck=24"],
        small_learning_rate: 1e-3,
        differs: "Half of the tokens run through the frozen layers, with no pretraining for that.",
        ..ADAPTER
    },
    Row {
        name: "Hyperformer++",
        method: "hyperformer",
        settings: &[
            "tasks=1",
            "bottleneck=12",
            "task_embedding_dim=16",
            "task_hidden_dim=32",
            "projected_task_embedding_dim=8",
        ],
        small_learning_rate: 3e-3,
        differs: "Of one task, so that it has nothing to share.",
        ..ADAPTER
    },
    Row {
        name: "MAD-X",
        method: "bottleneck",
        settings: &["reduction_factor=2", "inv_adapter=nice", "inv_adapter_reduction_factor=2"],
        differs: "The block behind the embeddings is trained with the task, not with a language.",
        ..ADAPTER
    },
    Row {
        name: "MerA",
        method: "mera",
        sources: Sources::Others("Sequential adapter (Pfeiffer)"),
        small_learning_rate: 3e-3,
        ..ADAPTER
    },
    Row {
        name: "Parallel adapter",
        method: "parallel",
        settings: &["bottleneck=24", "scaling=2"],
        small_learning_rate: 3e-3,
        ..ADAPTER
    },
    Row {
        name: "Residual adapter",
        method: "residual",
        settings: &["bottleneck=24"],
        small_learning_rate: 2e-3,
        ..ADAPTER
    },
    Row { name: "Sequential adapter (Houlsby)", method: "adapter", settings: &["bottleneck=24"], ..ADAPTER },
    Row {
        name: "Sequential adapter (Pfeiffer)",
        method: "adapter",
        settings: &[
            "bottleneck=24",
            "placement=pfeiffer",
            "activation=relu",
            "init=normal",
            "init_std=0.02",
            "train_layernorm=false",
        ],
        ..ADAPTER
    },
    Row {
        name: "Tiny-Attn adapter",
        method: "tiny-attn",
        settings: &["attention_embd=4", "attention_head=2"],
        ..ADAPTER
    },
    Row {
        name: "ATTEMPT",
        method: "attempt",
        settings: &["num_virtual_tokens=10", "attention_width=24"],
        sources: Sources::Others("Prompt tuning"),
        ..PROMPT
    },
    Row {
        name: "MPT",
        method: "mpt",
        settings: &["num_virtual_tokens=10", "prompt_tuning_init=AVERAGE_SOURCE_TASKS"],
        sources: Sources::Together(&MPT_SOURCE),
        ..PROMPT
    },
    Row {
        name: "P-tuning",
        method: "p-tuning",
        settings: &["num_virtual_tokens=10", "encoder_hidden_size=96"],
        // At 2e-3 it does not learn CoLA.
        small_learning_rate: 1e-3,
        ..PROMPT
    },
    Row {
        name: "Prefix tuning",
        method: "prefix",
        settings: &["num_virtual_tokens=10", "prefix_projection=true"],
        small_learning_rate: 2e-3,
        differs: "Its file has the prefix without the projection.",
        ..PROMPT
    },
    Row { name: "Prompt tuning", method: "prompt", settings: &["num_virtual_tokens=10"], ..PROMPT },
    Row {
        name: "SPoT",
        method: "spot",
        settings: &["num_virtual_tokens=10"],
        sources: Sources::Others("Prompt tuning"),
        differs: "It starts from the mean of the sources.",
        ..PROMPT
    },
    Row {
        name: "WARP",
        method: "warp",
        settings: &["mask_token_id=4"],
        small_learning_rate: 1e-2,
        differs: "Its head is the vectors of the classes, behind the frozen transform of the model's head for masked words.",
        ..PROMPT
    },
    Row { name: "AttentionFusion", method: "attention-fusion", small_learning_rate: 1e-2, ..OTHER },
    Row { name: "Hadamard adapter", method: "hadamard", ..OTHER },
    Row { name: "(IA)^3", method: "ia3", small_learning_rate: 2e-2, ..OTHER },
    Row {
        name: "Ladder side-tuning",
        method: "lst",
        settings: &["task_reduction_factor=2", "samples_for_fisher=256"],
        small_learning_rate: 3e-3,
        differs: "On CoLA its loss begins to fall after some 170 steps, where three epochs end.",
        ..OTHER
    },
    Row { name: "PASTA", method: "pasta", small_learning_rate: 1e-2, ..OTHER },
    Row { name: "BitFit", method: "bitfit", ..BIAS },
    Row { name: "S-BitFit", method: "s-bitfit", ..BIAS },
    Row { name: "U-BitFit", method: "u-bitfit", ..BIAS },
    Row { name: "FISH Mask", method: "fish-mask", settings: &["keep_ratio=0.02"], ..WEIGHT },
    Row {
        name: "Threshold-Mask",
        method: "threshold-mask",
        differs: "Files have a bit for each weight, 32 of which count as one number.",
        ..WEIGHT
    },
    Row { name: "Child-Tuning_D", method: "child-tuning", small_learning_rate: 5e-4, ..DELTA },
    Row { name: "Diff pruning", method: "diff-pruning", settings: &["target_sparsity=0.02"], ..DELTA },
    Row { name: "LT-SFT", method: "lt-sft", settings: &["ft_params_proportion=0.02"], ..DELTA },
    Row { name: "SAM", method: "sam", settings: &["keep_ratio=0.02", "burn_in=60"], ..DELTA },
    Row {
        name: "AdaLoRA",
        method: "adalora",
        settings: &["init_r=12", "target_r=8", "lora_alpha=16"],
        small_learning_rate: 1.5e-2,
        ..LOW_RANK
    },
    Row {
        name: "Delta-LoRA",
        method: "delta-lora",
        settings: &["r=8", "lora_alpha=16", "start_steps=50"],
        small_learning_rate: 3e-3,
        ..LOW_RANK
    },
    Row { name: "DoRA", method: "lora", settings: &["r=8", "lora_alpha=16", "use_dora=true"], ..LOW_RANK },
    Row { name: "DyLoRA", method: "dylora", settings: LORA, ..LOW_RANK },
    Row { name: "IncreLoRA", method: "increlora", ..LOW_RANK },
    Row {
        name: "Intrinsic SAID",
        method: "intrinsic-said",
        settings: &["intrinsic_dim=1000"],
        // At 1e-2 it does not learn CoLA: each number moves every tensor.
        small_learning_rate: 5e-3,
        ..LOW_RANK
    },
    Row { name: "Kernel-mix-lite", method: "kernel-mix-lite", settings: &["output=true"], ..LOW_RANK },
    Row { name: "KronA", method: "krona", small_learning_rate: 1e-2, ..LOW_RANK },
    Row { name: "KronA_B", method: "krona-b", small_learning_rate: 1e-2, ..LOW_RANK },
    Row { name: "KronA_B_res", method: "krona-b", settings: &["residual=0"], small_learning_rate: 1e-2, ..LOW_RANK },
    Row {
        name: "L-LoRA",
        method: "lora",
        settings: &["r=8", "lora_alpha=16", "freeze_a=true", "a_seed=0"],
        ..LOW_RANK
    },
    Row {
        name: "Laplace-LoRA",
        method: "laplace-lora",
        settings: &["r=8", "lora_alpha=16", "prediction=sampled", "samples=16"],
        sources: Sources::Own("LoRA"),
        differs: "It is the posterior of the row LoRA of the same task and seed: nothing is trained. It predicts by 16 draws. Its \
                  preparation, a singular value decomposition for each text, map and factor, takes the longest of all rows.",
        ..LOW_RANK
    },
    Row { name: "LoRA", method: "lora", settings: LORA, ..LOW_RANK },
    Row { name: "LoRA-FA", method: "lora", settings: &["r=8", "lora_alpha=16", "freeze_a=true"], ..LOW_RANK },
    Row {
        name: "LoRAHub",
        method: "lorahub",
        settings: &["modules=3", "r=8", "lora_alpha=16", "max_inference_step=10", "head_share=0.5"],
        sources: Sources::Others("LoRA"),
        differs: "The weights of the sources are searched in the middle of the steps, the first half of which trains the head alone: \
                  under its random start no source is worth its cost.",
        ..LOW_RANK
    },
    Row { name: "LoRAPrune", method: "loraprune", settings: &["r=8", "lora_alpha=16", "ratio=0.25"], ..LOW_RANK },
    Row {
        name: "MOELoRA",
        method: "moelora",
        settings: &["r=8", "lora_alpha=16", "expert_num=4", "task_num=1", "task_embedding_dim=16"],
        differs: "Of one task, so that its gate is one for all texts. It merges for one task at a time, which is not tried here.",
        ..LOW_RANK
    },
    Row { name: "QLoRA", method: "qlora", settings: LORA, ..LOW_RANK },
    Row { name: "LoftQ", method: "loftq", settings: LORA, ..QUANTIZED },
    Row { name: "QA-LoRA", method: "qa-lora", settings: LORA, small_learning_rate: 5e-4, ..QUANTIZED },
    Row {
        name: "Compacter",
        method: "compacter",
        settings: &["bottleneck=24", "phm_dim=4"],
        small_learning_rate: 5e-3,
        ..MANUAL
    },
    Row {
        name: "MAM adapter",
        method: "mam",
        settings: &["num_virtual_tokens=10", "encoder_hidden_size=96", "bottleneck=24", "scaling=2"],
        ..MANUAL
    },
    Row {
        name: "S-MAM",
        method: "pruned-mam",
        settings: &["num_virtual_tokens=10", "bottleneck=24", "samples=256", "structured=true"],
        ..MANUAL
    },
    Row {
        name: "U-MAM",
        method: "pruned-mam",
        settings: &["num_virtual_tokens=10", "bottleneck=24", "samples=256"],
        ..MANUAL
    },
    Row {
        name: "UniPELT",
        method: "unipelt",
        settings: &["num_virtual_tokens=10", "encoder_hidden_size=96", "bottleneck=24"],
        differs: "Its file has the prefix without the projection.",
        ..MANUAL
    },
    Row {
        name: "AutoPEFT",
        method: "autopeft",
        settings: &["serial=12", "parallel=24", "prefix=4", "scaling=2"],
        differs: "A configuration as a search finds one, without that search.",
        ..AUTOMATIC
    },
    Row {
        name: "S3Delta-M",
        method: "s3delta",
        settings: &["share=0.01", "bottleneck=8"],
        differs: "Half of the steps search.",
        ..AUTOMATIC
    },
    Row {
        name: "S4",
        method: "s4",
        settings: &[
            r#"groups=[["adapter","lora"],["adapter","prefix","bias"],["prefix","bias","lora"]]"#,
            "share=0",
            "bottleneck=24",
        ],
        differs: "Three groups, since there are three layers; parts have sizes of their own, not equal shares.",
        ..AUTOMATIC
    },
    Row { name: "AdaMix (adapter)", method: "adamix-adapter", ..UNIFIED },
    Row {
        name: "AdaMix (LoRA)",
        method: "adamix-lora",
        settings: &["r=4", "lora_alpha=8", "consistency=1"],
        ..UNIFIED
    },
    Row {
        name: "ProPETL (adapter)",
        method: "propetl-adapter",
        settings: &["bottleneck=24", "mask_rate=2"],
        small_learning_rate: 1e-2,
        weight_decay: 0.1,
        ..UNIFIED
    },
    Row {
        name: "ProPETL (LoRA)",
        method: "propetl-lora",
        settings: &["r=8", "lora_alpha=16", "density=0.5", "mask_rate=10"],
        weight_decay: 0.1,
        ..UNIFIED
    },
    Row {
        name: "ProPETL (prefix)",
        method: "propetl-prefix",
        settings: &["num_virtual_tokens=10", "encoder_hidden_size=96", "density=0.5"],
        weight_decay: 0.1,
        ..UNIFIED
    },
    Row { name: "SparseAdapter (adapter)", method: "sparse-adapter", settings: &["bottleneck=24"], ..UNIFIED },
    Row { name: "SparseAdapter (LoRA)", method: "sparse-lora", settings: LORA, ..UNIFIED },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use peft_core::Shape;
    use peft_core::io::peft::with_words;

    use super::*;
    use crate::registry::{METHODS, by_name};

    /// A method that is added without a row here fails this.
    #[test]
    fn rows_are_the_registry() {
        let rows: BTreeSet<&str> = ROWS.iter().map(|row| row.method).collect();
        let methods: BTreeSet<&str> = METHODS.iter().map(|entry| entry.name).collect();
        assert_eq!(rows, methods);
        let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    /// Groups stand together and are those of the survey's tree as the methods' cards have it, in its order.
    #[test]
    fn rows_are_in_the_order_of_the_tree() {
        let mut groups: Vec<&str> = ROWS.iter().map(|row| row.group).collect();
        groups.dedup();
        assert_eq!(groups.iter().collect::<BTreeSet<_>>().len(), groups.len(), "{groups:?}");
        let families = ["baseline", "additive", "partial", "reparameterized", "hybrid", "unified"];
        let place = |group: &str| families.iter().position(|family| *family == group.split(" / ").next().unwrap());
        assert!(groups.iter().all(|group| place(group).is_some()) && groups.is_sorted_by_key(|group| place(group)));
        for row in ROWS.iter().filter(|row| row.group != "baseline") {
            let family = METHODS.iter().find(|entry| entry.name == row.method).unwrap().family;
            assert!(row.group.starts_with(family), "{}", row.name);
        }
    }

    #[test]
    fn settings_are_such_and_sources_are_rows() {
        let shape = Shape::named("roberta-base").unwrap();
        for row in &ROWS {
            with_words(&by_name(row.method).unwrap(), &row.settings(&shape, true)).unwrap();
            match row.sources {
                Sources::Base => {}
                Sources::Own(name) | Sources::Others(name) => {
                    assert!(ROWS.iter().any(|row| row.name == name && row.sources == Sources::Base), "{name}");
                }
                Sources::Together(row) => assert!(matches!(row.sources, Sources::Others(_))),
            }
        }
    }
}
