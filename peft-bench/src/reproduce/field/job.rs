//! The runs of a table: their names, what each needs, and in which order they go.

use peft_core::{Error, Result};

use super::{SOURCES, Table, Task};
use crate::reproduce::report::Outcome;
use crate::reproduce::rows::{Row, Sources};

/// What a run is trained on.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum On {
    Task(Task),
    /// Several tasks together: those of the sources, or all of the table.
    Together,
}

/// One run: a row on a task with a seed.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Job {
    pub(super) row: Row,
    pub(super) on: On,
    pub(super) seed: u64,
}

impl Table {
    /// The tasks from which a run on these starts, or those that are trained together.
    pub(super) fn sources(&self, on: On) -> Result<Vec<Task>> {
        match self.apart {
            true => SOURCES.into_iter().map(Task::named).collect(),
            false => Ok(self.tasks.iter().filter(|task| On::Task(**task) != on).copied().collect()),
        }
    }

    /// The runs that a run needs.
    pub(super) fn needs(&self, job: &Job) -> Result<Vec<Job>> {
        let row = |name: &str| Row::named(self.rows, name);
        Ok(match job.row.sources {
            Sources::Base => vec![],
            Sources::Own(name) => vec![Job { row: row(name)?, ..*job }],
            Sources::Others(name) => {
                let row = row(name)?;
                self.sources(job.on)?.into_iter().map(|task| Job { row, on: On::Task(task), seed: job.seed }).collect()
            }
            Sources::Together(row) => vec![Job { row: *row, on: On::Together, seed: job.seed }],
        })
    }
}

/// The wanted runs and those that they need, in an order in which each wave needs earlier ones only.
pub(super) fn waves(wanted: &[Job], table: &Table) -> Result<Vec<Vec<Job>>> {
    fn place(job: Job, table: &Table, waves: &mut Vec<Vec<Job>>) -> Result<usize> {
        if let Some(at) = waves.iter().position(|wave| wave.contains(&job)) {
            return Ok(at);
        }
        let needs = table.needs(&job)?;
        let at = needs.into_iter().map(|need| Ok(place(need, table, waves)? + 1)).collect::<Result<Vec<_>>>()?;
        let at = at.into_iter().max().unwrap_or(0);
        waves.resize(waves.len().max(at + 1), vec![]);
        waves[at].push(job);
        Ok(at)
    }
    let mut waves = vec![];
    wanted.iter().try_for_each(|job| place(*job, table, &mut waves).map(drop))?;
    Ok(waves)
}

impl On {
    pub(super) fn name(&self) -> &'static str {
        match self {
            On::Task(task) => task.name,
            On::Together => "together",
        }
    }
}

impl Job {
    /// What names it among all runs.
    pub(super) fn name(&self) -> String {
        format!("{}/{}/{}", self.row.name, self.on.name(), self.seed)
    }

    pub(super) fn named(name: &str, table: &Table) -> Result<Self> {
        let wrong = || Error::config("--job", name, "ROW/TASK/SEED");
        let [seed, on, row] = name.rsplitn(3, '/').collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let seed = seed.parse().map_err(|_| wrong())?;
        let together = table.rows.iter().filter_map(|row| match row.sources {
            Sources::Together(row) => Some(*row),
            _ => None,
        });
        let row = table.rows.iter().copied().chain(together).find(|known| known.name == row).ok_or_else(wrong)?;
        let on = if on == On::Together.name() { On::Together } else { On::Task(Task::named(on)?) };
        Ok(Job { row, on, seed })
    }

    /// The same for a reader.
    pub(super) fn told(&self) -> String {
        let on = match &self.on {
            On::Task(task) => task.directory,
            On::Together => "several tasks together",
        };
        format!("{} on {on}, seed {}", self.row.name, self.seed)
    }

    pub(super) fn progress(&self, outcome: &Outcome) -> String {
        let name = |i: usize| match &self.on {
            On::Task(task) => task.metrics[i],
            On::Together => "",
        };
        let scores = outcome.scores.iter().enumerate().map(|(i, score)| format!("{} {score:.2} ", name(i)));
        let when = if outcome.earlier { "by an earlier call, which took" } else { "in" };
        format!("{}: {}{when} {:.1} s", self.told(), scores.collect::<String>(), outcome.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::field::rows::ROWS;
    use crate::reproduce::field::{TASKS, TOGETHER, together};

    fn table(apart: bool) -> Table {
        let named = |name| Task::named(name).unwrap();
        match apart {
            true => Table { rows: &ROWS, tasks: TASKS.map(named).to_vec(), apart },
            false => Table { rows: &together::ROWS, tasks: TOGETHER.map(named).to_vec(), apart },
        }
    }

    fn job(row: &str, task: &str) -> Job {
        Job { row: Row::named(&ROWS, row).unwrap(), on: On::Task(Task::named(task).unwrap()), seed: 3 }
    }

    #[test]
    fn sources_come_before_what_starts_from_them() {
        let wanted = [job("MPT", "cola"), job("Laplace-LoRA", "cola"), job("SPoT", "qnli"), job("BitFit", "cola")];
        let table = table(true);
        let waves = waves(&wanted, &table).unwrap();
        let all: Vec<&Job> = waves.iter().flatten().collect();
        // Beside the wanted: three prompts, the MPT of the sources, a LoRA.
        assert_eq!(all.len(), 9);
        let wave = |job: &Job| waves.iter().position(|wave| wave.contains(job)).unwrap();
        for job in all {
            assert!(table.needs(job).unwrap().iter().all(|need| wave(need) < wave(job)), "{}", job.told());
        }
        assert_eq!((waves.len(), wave(&wanted[3])), (3, 0));
    }

    #[test]
    fn a_run_is_found_by_its_name() {
        let [mpt, lora] = [job("MPT", "cola"), job("Sequential adapter (Pfeiffer)", "stsb")];
        let table = table(true);
        let stage = table.needs(&mpt).unwrap()[0];
        for job in [mpt, lora, stage] {
            assert!(Job::named(&job.name(), &table).unwrap() == job, "{}", job.name());
        }
        assert!(
            ["LoRA", "LoRA/cola", "LoRa/cola/1", "LoRA/wnli/1", "LoRA/cola/x"]
                .iter()
                .all(|name| Job::named(name, &table).is_err())
        );
    }

    /// A task's own adapter is none of those that it starts from; what is trained on all tasks has all.
    #[test]
    fn tasks_of_a_table_are_sources_of_each_other() {
        let table = table(false);
        let on = |row: &str, on: On| Job { row: Row::named(table.rows, row).unwrap(), on, seed: 0 };
        let fusion = on("AdapterFusion", On::Task(table.tasks[1]));
        let needs = table.needs(&fusion).unwrap();
        assert_eq!(needs.len(), TOGETHER.len() - 1);
        assert!(needs.iter().all(|need| need.on != fusion.on && need.row == together::ROWS[0]));
        let mpt = on("MPT", On::Task(table.tasks[0]));
        let [stage] = table.needs(&mpt).unwrap()[..] else { panic!("one stage") };
        assert!(stage.on == On::Together && table.needs(&stage).unwrap().len() == TOGETHER.len());
        let waves = waves(&[fusion, mpt, on("Hyperformer++", On::Together)], &table).unwrap();
        assert_eq!(waves.iter().map(Vec::len).collect::<Vec<_>>(), [2 * TOGETHER.len(), 2, 1]);
    }
}
