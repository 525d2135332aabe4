//! `peft reproduce`

use std::fmt::Display;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use peft_core::train::TrainConfig;
use peft_core::{Error, Result};

use crate::machine::threads;
use crate::reproduce::rows::{self, Row};
use crate::reproduce::sequences::Sizes;
use crate::reproduce::translation::{self, Stems};
use crate::reproduce::{Plan, classification, field, instruction, memory};
use crate::signals;
use crate::tasks::{TASKS, Task};

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    /// RoBERTa on GLUE
    #[value(name = "3")]
    Classification,
    /// T5 on translation
    #[value(name = "4")]
    Translation,
    /// LLaMA fine-tuned at three rates
    #[value(name = "5")]
    Rates,
    /// LLaMA on MMLU
    #[value(name = "6")]
    Instruction,
    /// The most memory of each row
    #[value(name = "7")]
    Memory,
    /// All methods on one small model
    Methods,
    /// Ways in which tasks work together, on the same model
    #[value(name = "multi-task")]
    Tasks,
}

/// Train the rows of a table of the survey and set them beside its figures, or all methods on one small model
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft reproduce\n  peft reproduce --quick\n  \
    peft reproduce --model roberta-base --data GLUE --rows LoRA,BitFit --tasks rte,mrpc --seeds 0,1,2 --epochs 20\n  \
    peft reproduce --table 4\n  peft reproduce --table 4 --model t5-base --data wmt16-en-ro --test newstest2016\n  \
    peft reproduce --table 6 --model DIR --data DIR --max-steps 200 --limit 20\n  \
    peft reproduce --table 7 --rows LoRA,LLaMA-7B/QLoRA\n  peft reproduce --table methods --quick\n  peft reproduce --table multi-task --quick\n\n\
    Without --model and --data it makes both from a grammar: for Table III a corpus, eight tasks of GLUE's kinds and a small \
    RoBERTa, for Table IV two languages and a small T5, for Tables V and VI facts, instructions, questions and a small LLaMA. The table \
    of all methods has every method of `peft methods` on three tasks of Table III's and its small RoBERTa, each run in a process of its \
    own: what it scores, trains, stores and costs. The table of several tasks has adapters and prompts for one task each and ways in which tasks \
    work together, with the difference that these make. Settings of both are for that model; with --model learning rates are 1e-3 unless given. \
    Table VII is the memory of a step of each row on random weights of the real shapes, measured in a process of its own, or \
    planned where this machine has not the memory; its rows are named on all models or as MODEL/ROW. Interrupted, the same command goes on where it was. The report has the rows and tasks of the last call; outcomes of earlier ones \
    are kept, so that a call with all of them brings them back.\n\n\
    The directory of the data is for Table III that of GLUE; for Table IV it has line-aligned files TRAIN.en, TRAIN.ro, TEST.en, \
    TEST.ro; for Tables V and VI alpaca_data.json (or .jsonl) and the questions in mmlu/.")]
pub struct Reproduce {
    /// The table: 3 (RoBERTa on GLUE), 4 (T5 on translation), 5 (LLaMA fine-tuned at three rates), 6 (LLaMA on MMLU), 7 (memory), methods (all
    /// methods), multi-task (ways in which tasks work together)
    #[arg(long, default_value = "3", hide_possible_values = true)]
    table: Table,
    /// A model directory, or the id of a model on a hub
    #[arg(long, requires = "data")]
    model: Option<String>,
    /// The directory of the data, see below
    #[arg(long, requires = "model")]
    data: Option<PathBuf>,
    /// Less pretraining, fewer tasks and rows, one seed: two minutes; of Table VII one short sequence on RoBERTa-base; of all methods one task, one seed and 30 steps, of several tasks three
    #[arg(long, conflicts_with = "model")]
    quick: bool,
    /// Rows by the survey's names or ours [default: all]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Tasks of Table III [default: all], of all methods [default: cola,qnli,stsb] and of several tasks [default: cola,sst2,mrpc,stsb,qnli,rte]
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Table IV: the names of the files that are trained on [default: train]
    #[arg(long, value_name = "STEM")]
    train: Option<String>,
    /// Table IV: the names of the files that are scored [default: test]
    #[arg(long, value_name = "STEM")]
    test: Option<String>,
    /// The most that is scored: sentences of Table IV, questions of each subject of Tables V and VI [default: 200, 50]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Sequences in a step [default: 32; with --model the survey's: 32 for Table III (IA3 8), 64 (large 32) for Table IV, 16 for Tables V and VI]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Tokens to which texts of Tables IV to VI are cut [default: 128]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(8..))]
    max_length: Option<u32>,
    /// Seeds [default: 0,1]
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Times through the data of a task [default: 3; 10 with --model; 5 of Table IV, 2 of Tables V and VI, 1 with --model]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Stop each run after so many steps, if that is sooner
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    max_steps: Option<u32>,
    /// A learning rate for a row, ROW=RATE
    #[arg(long, value_name = "ROW=RATE", value_delimiter = ',')]
    learning_rate: Vec<String>,
    /// Threads; changes no bit of the results [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Where models, outcomes and the report are written [default: target/reproduce, in it real with --model and table-4 and so on; Tables V and VI share a model there]
    #[arg(long)]
    output: Option<PathBuf>,
    /// Where to compute
    #[arg(long, default_value_t = peft_core::available().first().copied().unwrap_or("none").to_string())]
    device: String,
    /// One run of the table of all methods, by its name: ROW/TASK/SEED
    #[arg(long, hide = true)]
    job: Option<String>,
}

impl Reproduce {
    pub(super) fn run(self) -> Result<()> {
        if self.table != Table::Translation {
            refuse("--train", &self.train, "Table IV")?;
            refuse("--test", &self.test, "Table IV")?;
        }
        let (output, _) = self.places();
        signals::will_say(format!("what is done lies in {}; the same command goes on from there", output.display()));
        match self.table {
            Table::Classification => self.classification(),
            Table::Memory => self.memory(),
            Table::Methods | Table::Tasks => self.field(),
            Table::Translation | Table::Rates | Table::Instruction => self.sequences(),
        }
    }

    /// Where everything is written, and what is made. Tables V and VI are about one model, all methods about that of Table III.
    fn places(&self) -> (PathBuf, PathBuf) {
        let all = PathBuf::from("target/reproduce");
        let usual = match (self.table, &self.model) {
            (Table::Classification, None) => all.clone(),
            (Table::Classification, Some(_)) => all.join("real"),
            (Table::Methods, _) => all.join("methods"),
            (Table::Tasks, _) => all.join("multi-task"),
            (Table::Translation, _) => all.join("table-4"),
            (Table::Rates, _) => all.join("table-5"),
            (Table::Instruction, _) => all.join("table-6"),
            (Table::Memory, _) => all.join("table-7"),
        };
        let output = self.output.clone().unwrap_or(usual);
        let made = match self.table {
            Table::Rates | Table::Instruction if self.output.is_none() => all.join("tables-5-and-6"),
            Table::Methods | Table::Tasks if self.output.is_none() => all,
            _ => output.clone(),
        };
        (output, made.join(if self.quick { "quick" } else { "made" }))
    }

    /// Rows by their names, in a quick run some of them.
    fn rows(&self, all: &[Row], quick: &[&str]) -> Result<Vec<Row>> {
        let usual = all.iter().filter(|row| !self.quick || quick.contains(&row.name)).copied();
        match self.rows.is_empty() {
            true => Ok(usual.collect()),
            false => {
                let rows = self.rows.iter().map(|name| Row::named(all, name)).collect::<Result<Vec<_>>>()?;
                once("--rows", rows.iter().map(|row| row.name))?;
                Ok(rows)
            }
        }
    }

    fn seeds(&self) -> Result<Vec<u64>> {
        once("--seeds", &self.seeds)?;
        Ok(match (self.seeds.is_empty(), self.quick) {
            (false, _) => self.seeds.clone(),
            (true, true) => vec![0],
            (true, false) => vec![0, 1],
        })
    }

    fn rates(&self, rows: &[Row]) -> Result<Vec<(String, f64)>> {
        let row = |name: &str| {
            let known = || rows.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
            Row::named(rows, name)
                .map_err(|_| Error::config("--learning-rate", name, format!("a row of this call: {}", known())))
        };
        let rate = |text: &String| {
            let wrong = || Error::config("--learning-rate", text, "ROW=RATE, such as LoRA=5e-4");
            let (name, rate) = text.rsplit_once('=').ok_or_else(wrong)?;
            let rate = rate.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0).ok_or_else(wrong)?;
            TrainConfig::new(rate).check()?;
            Ok((row(name)?.name.to_string(), rate))
        };
        let rates = self.learning_rate.iter().map(rate).collect::<Result<Vec<_>>>()?;
        once("--learning-rate", rates.iter().map(|(name, _)| name))?;
        Ok(rates)
    }

    fn plan(self, (all, quick): (&[Row], &[&str]), epochs: usize) -> Result<Plan> {
        let (output, made) = self.places();
        let rows = self.rows(all, quick)?;
        Ok(Plan {
            seeds: self.seeds()?,
            epochs: self.epochs.map_or(epochs, |epochs| epochs as usize),
            max_steps: self.max_steps.map(|steps| steps as usize),
            learning_rates: self.rates(&rows)?,
            rows,
            batch_size: self.batch_size.map(|size| size as usize),
            quick: self.quick,
            threads: self.threads.map_or_else(threads, usize::from),
            output,
            made,
            device: peft_core::device(&self.device)?,
            real: self.model.zip(self.data),
        })
    }

    /// Tasks by their names, `quick` in a quick run and `all` else.
    fn tasks(&self, all: &[&str], quick: &[&str]) -> Result<Vec<Task>> {
        refuse("--limit", &self.limit, "Tables IV to VI")?;
        refuse("--max-length", &self.max_length, "Tables IV to VI")?;
        once("--tasks", &self.tasks)?;
        match (self.tasks.is_empty(), self.quick) {
            (false, _) => self.tasks.iter().map(|name| Task::named(name)).collect(),
            (true, quickly) => (if quickly { quick } else { all }).iter().map(|name| Task::named(name)).collect(),
        }
    }

    fn field(self) -> Result<()> {
        let apart = self.table == Table::Methods;
        let (all, quick): (&[&str], &[&str]) = match apart {
            true => (&field::TASKS, &field::TASKS[..1]),
            false => (&field::TOGETHER, &field::TOGETHER[1..4]),
        };
        let tasks = self.tasks(all, quick)?;
        if let Some(task) = tasks.iter().find(|task| apart && field::SOURCES.contains(&task.name)) {
            let expected = format!("none of {}: the sources", field::SOURCES.join(", "));
            return Err(Error::config("--tasks", task.name, expected));
        }
        if !apart && tasks.len() < 2 {
            return Err(Error::config("--tasks", tasks[0].name, "two tasks or more, which work together"));
        }
        let rows: &'static [Row] = if apart { &field::rows::ROWS } else { &field::together::ROWS };
        let table = field::Table { rows, tasks, apart };
        let job = self.job.clone();
        let steps = self.max_steps.or(self.quick.then_some(30));
        let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
        let epochs = if self.model.is_some() { 10 } else { 3 };
        let plan = Reproduce { max_steps: steps, ..self }.plan((rows, &names), epochs)?;
        match job {
            Some(job) => field::run_one(&plan, &table, &job),
            None => field::run(&plan, &table).map(|_| ()),
        }
    }

    fn classification(self) -> Result<()> {
        let tasks = self.tasks(&TASKS.map(|task| task.name), &["cola", "mnli", "qnli"])?;
        let epochs = if self.model.is_some() { 10 } else { 3 };
        let plan = self.plan((&rows::ROWS, &["Linear probe", "FT", "BitFit", "LoRA"]), epochs)?;
        classification::run(&plan, &tasks).map(|_| ())
    }

    fn memory(self) -> Result<()> {
        let (output, _) = self.places();
        let only = "Tables III to VI: rows of Table VII are steps on random weights";
        refuse("--model", &self.model, only)?;
        refuse("--tasks", &self.tasks.first(), only)?;
        refuse("--seeds", &self.seeds.first(), only)?;
        refuse("--epochs", &self.epochs, only)?;
        refuse("--max-steps", &self.max_steps, only)?;
        refuse("--learning-rate", &self.learning_rate.first(), only)?;
        refuse("--limit", &self.limit, "Tables IV to VI")?;
        refuse("--max-length", &self.max_length, "Tables IV to VI")?;
        once("--rows", &self.rows)?;
        memory::run(&memory::Plan {
            rows: self.rows,
            batch_size: self.batch_size.map(|size| size as usize),
            quick: self.quick,
            threads: self.threads.map_or_else(threads, usize::from),
            output,
            device: self.device,
        })
    }

    fn sequences(self) -> Result<()> {
        refuse("--tasks", &self.tasks.first(), "Table III")?;
        let (table, translation, made) = (self.table, self.table == Table::Translation, self.model.is_none());
        let rows: (&[Row], &[&str]) = match table {
            Table::Translation => (&rows::ROWS_IV, &["LoRA"]),
            Table::Rates => (&rows::ROWS_V, &["FT, 2e-4"]),
            _ => (&rows::ROWS_VI, &["LoRA"]),
        };
        let sizes = Sizes {
            max_length: self.max_length.unwrap_or(128) as usize,
            limit: self.limit.map_or(if translation { 200 } else { 50 }, |limit| limit as usize),
        };
        let stem = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.into());
        let stems = Stems { train: stem(&self.train, "train"), test: stem(&self.test, "test") };
        let epochs = match (translation, made) {
            (true, _) => 5,
            (false, true) => 2,
            (false, false) => 1,
        };
        let plan = self.plan(rows, epochs)?;
        match table {
            Table::Translation => translation::run(&plan, &sizes, &stems),
            table => instruction::run(&plan, &sizes, table == Table::Rates),
        }
        .map(|_| ())
    }
}

/// Refuses an option of other tables.
fn refuse<T: Display>(option: &str, value: &Option<T>, tables: &str) -> Result<()> {
    value.as_ref().map_or(Ok(()), |value| Err(Error::config(option, value, format!("none: it is for {tables}"))))
}

/// Refuses what is named twice: it would count as two.
fn once<T: Display + PartialEq>(option: &str, values: impl IntoIterator<Item = T>) -> Result<()> {
    let mut seen: Vec<T> = Vec::new();
    for value in values {
        if seen.contains(&value) {
            return Err(Error::config(option, format!("{value} twice"), "each once"));
        }
        seen.push(value);
    }
    Ok(())
}
