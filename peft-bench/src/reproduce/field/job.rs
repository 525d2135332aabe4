//! The runs of the table: their names, what each needs, and in which order they go.

use peft_core::{Error, Result};

use super::rows::ROWS;
use super::{SOURCES, Task};
use crate::reproduce::report::Outcome;
use crate::reproduce::rows::{Row, Sources};

/// What a run is trained on.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum On {
    Task(Task),
    /// The tasks of the sources together.
    Together,
}

/// One run: a row on a task with a seed.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Job {
    pub(super) row: Row,
    pub(super) on: On,
    pub(super) seed: u64,
}

impl Sources {
    /// The runs that one of a row needs.
    pub(super) fn of(self, job: &Job) -> Result<Vec<Job>> {
        let row = |name: &str| Row::named(&ROWS, name);
        Ok(match self {
            Sources::Base => vec![],
            Sources::Own(name) => vec![Job { row: row(name)?, ..*job }],
            Sources::Others(name) => {
                let on = |task: &str| Ok(Job { row: row(name)?, on: On::Task(Task::named(task)?), seed: job.seed });
                SOURCES.into_iter().map(on).collect::<Result<_>>()?
            }
            Sources::Together(row) => vec![Job { row: *row, on: On::Together, seed: job.seed }],
        })
    }
}

/// The wanted runs and those that they need, in an order in which each wave needs earlier ones only.
pub(super) fn waves(wanted: &[Job]) -> Result<Vec<Vec<Job>>> {
    fn place(job: Job, waves: &mut Vec<Vec<Job>>) -> Result<usize> {
        if let Some(at) = waves.iter().position(|wave| wave.contains(&job)) {
            return Ok(at);
        }
        let needs = job.row.sources.of(&job)?;
        let at = needs.into_iter().map(|need| Ok(place(need, waves)? + 1)).collect::<Result<Vec<_>>>()?;
        let at = at.into_iter().max().unwrap_or(0);
        waves.resize(waves.len().max(at + 1), vec![]);
        waves[at].push(job);
        Ok(at)
    }
    let mut waves = vec![];
    wanted.iter().try_for_each(|job| place(*job, &mut waves).map(drop))?;
    Ok(waves)
}

impl On {
    pub(super) fn name(&self) -> &'static str {
        match self {
            On::Task(task) => task.name,
            On::Together => "sources",
        }
    }
}

impl Job {
    /// What names it among all runs.
    pub(super) fn name(&self) -> String {
        format!("{}/{}/{}", self.row.name, self.on.name(), self.seed)
    }

    pub(super) fn named(name: &str) -> Result<Self> {
        let wrong = || Error::config("--job", name, "ROW/TASK/SEED");
        let [seed, on, row] = name.rsplitn(3, '/').collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let seed = seed.parse().map_err(|_| wrong())?;
        let together = ROWS.iter().filter_map(|row| match row.sources {
            Sources::Together(row) => Some(*row),
            _ => None,
        });
        let row = ROWS.into_iter().chain(together).find(|known| known.name == row).ok_or_else(wrong)?;
        let on = if on == On::Together.name() { On::Together } else { On::Task(Task::named(on)?) };
        Ok(Job { row, on, seed })
    }

    /// The same for a reader.
    pub(super) fn told(&self) -> String {
        let on = match &self.on {
            On::Task(task) => task.directory,
            On::Together => "the source tasks together",
        };
        format!("{} on {on}, seed {}", self.row.name, self.seed)
    }

    pub(super) fn progress(&self, outcome: &Outcome) -> String {
        let metrics = match &self.on {
            On::Task(task) => task.metrics,
            On::Together => &[],
        };
        let scores = metrics.iter().zip(&outcome.scores).map(|(name, score)| format!("{name} {score:.2} "));
        let when = if outcome.earlier { "by an earlier call, which took" } else { "in" };
        format!("{}: {}{when} {:.1} s", self.told(), scores.collect::<String>(), outcome.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(row: &str, task: &str) -> Job {
        Job { row: Row::named(&ROWS, row).unwrap(), on: On::Task(Task::named(task).unwrap()), seed: 3 }
    }

    #[test]
    fn sources_come_before_what_starts_from_them() {
        let wanted = [job("MPT", "cola"), job("Laplace-LoRA", "cola"), job("SPoT", "qnli"), job("BitFit", "cola")];
        let waves = waves(&wanted).unwrap();
        let all: Vec<&Job> = waves.iter().flatten().collect();
        // Beside the wanted: three prompts, the MPT of the sources, a LoRA.
        assert_eq!(all.len(), 9);
        let wave = |job: &Job| waves.iter().position(|wave| wave.contains(job)).unwrap();
        for job in all {
            assert!(job.row.sources.of(job).unwrap().iter().all(|need| wave(need) < wave(job)), "{}", job.told());
        }
        assert_eq!((waves.len(), wave(&wanted[3])), (3, 0));
    }

    #[test]
    fn a_run_is_found_by_its_name() {
        let [mpt, lora] = [job("MPT", "cola"), job("Sequential adapter (Pfeiffer)", "stsb")];
        let stage = mpt.row.sources.of(&mpt).unwrap()[0];
        for job in [mpt, lora, stage] {
            assert!(Job::named(&job.name()).unwrap() == job, "{}", job.name());
        }
        assert!(
            ["LoRA", "LoRA/cola", "LoRa/cola/1", "LoRA/wnli/1", "LoRA/cola/x"]
                .iter()
                .all(|name| Job::named(name).is_err())
        );
    }
}
