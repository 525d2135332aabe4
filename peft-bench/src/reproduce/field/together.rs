//! The rows of the table of several tasks: what each task gains or loses where others are used, beside an adapter and a prompt of its own.
//! The first row of a group is what the others of it are set against.

use super::super::rows::{ROW, Row, Sources};

const ADAPTERS: Row = Row { group: "adapters", small_learning_rate: 5e-3, ..ROW };
const PROMPTS: Row = Row { group: "prompts", small_learning_rate: 3e-3, ..ROW };

/// An adapter for a task alone.
const OWN: Row = Row {
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
    differs: "One for each task, which shares nothing.",
    ..ADAPTERS
};

const PROMPT: Row = Row {
    name: "Prompt tuning",
    method: "prompt",
    settings: &["num_virtual_tokens=10"],
    differs: "One for each task, which shares nothing.",
    ..PROMPTS
};

const MPT_SOURCE: Row = Row {
    name: "MPT of all tasks",
    method: "mpt",
    settings: &["num_virtual_tokens=10", "num_tasks={tasks}"],
    sources: Sources::Others("Prompt tuning"),
    together: true,
    ..PROMPTS
};

/// The rows.
pub const ROWS: [Row; 10] = [
    OWN,
    Row {
        name: "One adapter for all",
        together: true,
        differs: "The same adapter, trained on all tasks together; each task has a head.",
        ..OWN
    },
    Row {
        name: "Hyperformer++",
        method: "hyperformer",
        settings: &[
            "tasks={tasks}",
            "bottleneck=12",
            "task_embedding_dim=16",
            "task_hidden_dim=32",
            "projected_task_embedding_dim=8",
        ],
        small_learning_rate: 3e-3,
        together: true,
        ..ADAPTERS
    },
    Row {
        name: "AdapterFusion",
        method: "adapter-fusion",
        small_learning_rate: 1e-3,
        sources: Sources::Others("Sequential adapter (Pfeiffer)"),
        differs: "The task's own adapter is not among those that are fused.",
        ..ADAPTERS
    },
    Row {
        name: "MerA",
        method: "mera",
        small_learning_rate: 3e-3,
        sources: Sources::Others("Sequential adapter (Pfeiffer)"),
        ..ADAPTERS
    },
    Row {
        name: "AdapterSoup",
        method: "adapter-soup",
        sources: Sources::Others("Sequential adapter (Pfeiffer)"),
        differs: "The mean of the sources stays as it is; the head is trained behind it.",
        ..ADAPTERS
    },
    PROMPT,
    Row {
        name: "SPoT",
        method: "spot",
        settings: &["num_virtual_tokens=10"],
        sources: Sources::Others("Prompt tuning"),
        differs: "It starts from the mean of the sources.",
        ..PROMPTS
    },
    Row {
        name: "ATTEMPT",
        method: "attempt",
        settings: &["num_virtual_tokens=10", "attention_width=24"],
        sources: Sources::Others("Prompt tuning"),
        ..PROMPTS
    },
    Row {
        name: "MPT",
        method: "mpt",
        settings: &["num_virtual_tokens=10", "prompt_tuning_init=AVERAGE_SOURCE_TASKS"],
        sources: Sources::Together(&MPT_SOURCE),
        differs: "Its source stage has seen the task, among all others.",
        ..PROMPTS
    },
];
