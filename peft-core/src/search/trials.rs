//! What was tried, in files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Point, Proposal, Trial};
use crate::files::{hold, read_json, write_file};
use crate::{Error, Result};

/// A directory of trials, each a file of what is tried and, once it is done, one of what came of it. Several processes may share it.
pub struct Trials {
    dir: PathBuf,
}

/// A trial that this process is to run. Others leave it alone as long as it lives.
pub struct Claim {
    dir: PathBuf,
    number: usize,
    proposal: Proposal,
    _lock: File,
}

impl Trials {
    /// Those in a directory, which is made if there is none. They must be of a search with this identity.
    pub fn open(dir: &Path, identity: &Value) -> Result<Self> {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let (trials, path) = (Trials { dir: dir.to_path_buf() }, dir.join("search.json"));
        let _lock = trials.lock()?;
        if !path.exists() {
            write_file(&path, identity.to_string().as_bytes())?;
        }
        let found = read_json(&path)?;
        let other = |key: &&String| found.get(key.as_str()) != identity.get(key.as_str());
        match identity.as_object().into_iter().flat_map(Map::keys).find(other) {
            None => Ok(trials),
            Some(key) => {
                let expected = format!("{}, as this search; or another directory", identity[key]);
                Err(Error::file(path, key, found.get(key).unwrap_or(&Value::Null), expected))
            }
        }
    }

    /// All trials, in their order.
    pub fn all(&self) -> Result<Vec<Trial>> {
        let mut all = vec![];
        while let Some(trial) = self.read(all.len())? {
            all.push(trial);
        }
        Ok(all)
    }

    /// A trial to run: one that another process has left, or what `next` proposes after all that there are. None if that is nothing.
    pub fn claim(&self, next: impl FnOnce(&[Trial]) -> Option<(Proposal, usize)>) -> Result<Option<Claim>> {
        let _lock = self.lock()?;
        let all = self.all()?;
        for (number, trial) in all.iter().enumerate() {
            if !done(&self.dir, number).exists()
                && let Ok(claim) = self.hold(number, trial.proposal.clone())
            {
                return Ok(Some(claim));
            }
        }
        let Some((proposal, numbers)) = next(&all) else { return Ok(None) };
        let Proposal { point: Point { kind, places }, effort } = &proposal;
        let claim = self.hold(all.len(), proposal.clone())?;
        let text = json!({"kind": kind, "places": places, "effort": effort, "numbers": numbers}).to_string();
        write_file(&proposed(&self.dir, all.len()), text.as_bytes())?;
        Ok(Some(claim))
    }

    /// Whether a trial is run by another process.
    pub fn runs(&self, number: usize) -> bool {
        let held = |file: File| file.try_lock().is_err();
        !done(&self.dir, number).exists() && File::open(lock(&self.dir, number)).is_ok_and(held)
    }

    fn hold(&self, number: usize, proposal: Proposal) -> Result<Claim> {
        let path = lock(&self.dir, number);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        hold(&file, &path)?;
        Ok(Claim { dir: self.dir.clone(), number, proposal, _lock: file })
    }

    /// Held while it is decided what is tried next.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join("search.lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    fn read(&self, number: usize) -> Result<Option<Trial>> {
        let path = proposed(&self.dir, number);
        if !path.exists() {
            return Ok(None);
        }
        let value = read_json(&path)?;
        let wrong = |key: &str| Error::file(&path, key, &value[key], "a number as a search writes it");
        let number_of = |value: &Value| value.as_u64().map(|number| number as usize);
        let places = value["places"].as_array().map(|places| places.iter().map(number_of).collect());
        let point = Point {
            kind: number_of(&value["kind"]).ok_or_else(|| wrong("kind"))?,
            places: places.flatten().ok_or_else(|| wrong("places"))?,
        };
        let effort = value["effort"].as_f64().ok_or_else(|| wrong("effort"))?;
        let numbers = number_of(&value["numbers"]).ok_or_else(|| wrong("numbers"))?;
        let outcome = done(&self.dir, number);
        let score = if outcome.exists() { read_json(&outcome)?["score"].as_f64() } else { None };
        Ok(Some(Trial { proposal: Proposal { point, effort }, score, numbers }))
    }
}

impl Claim {
    /// Which trial it is, counted from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// What is to be tried.
    pub fn proposal(&self) -> &Proposal {
        &self.proposal
    }

    /// Where it may write while it runs.
    pub fn path(&self) -> PathBuf {
        self.dir.join(format!("{:04}", self.number))
    }

    /// Keeps what came of it: its score, none if it failed, and what else there is to say.
    pub fn finish(self, score: Option<f64>, more: Map<String, Value>) -> Result<()> {
        let mut outcome = more;
        outcome.insert("score".into(), json!(score));
        write_file(&done(&self.dir, self.number), Value::Object(outcome).to_string().as_bytes())
    }
}

fn proposed(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{number:04}.json"))
}

fn done(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{number:04}.outcome.json"))
}

fn lock(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{number:04}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points in turn.
    fn next(budget: usize) -> impl Fn(&[Trial]) -> Option<(Proposal, usize)> {
        move |trials| {
            let point = Point { kind: 0, places: vec![trials.len(), 7] };
            (trials.len() < budget).then_some((Proposal { point, effort: 1.0 / 3.0 }, 10 + trials.len()))
        }
    }

    #[test]
    fn a_trial_is_one_processes_until_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let identity = json!({"space": 1, "seed": 2});
        let [one, other] = [0, 1].map(|_| Trials::open(folder.path(), &identity).unwrap());
        let first = one.claim(next(3)).unwrap().unwrap();
        let second = other.claim(next(3)).unwrap().unwrap();
        assert_eq!([first.number(), second.number()], [0, 1]);
        assert!(one.runs(1) && other.runs(0));
        first.finish(Some(0.25), Map::new()).unwrap();
        // Of a process that was killed.
        drop(second);
        assert!(!one.runs(1));
        let again = one.claim(next(3)).unwrap().unwrap();
        assert_eq!((again.number(), again.proposal().point.places.as_slice()), (1, &[1, 7][..]));
        again.finish(None, Map::new()).unwrap();
        let third = one.claim(next(3)).unwrap().unwrap();
        assert_eq!(third.number(), 2);
        assert!(other.claim(next(3)).unwrap().is_none());
        let all = other.all().unwrap();
        assert_eq!(all.iter().map(|trial| trial.score).collect::<Vec<_>>(), [Some(0.25), None, None]);
        assert_eq!(all.iter().map(|trial| trial.numbers).collect::<Vec<_>>(), [10, 11, 12]);
        assert!(all.iter().all(|trial| trial.proposal.effort == 1.0 / 3.0));
    }

    #[test]
    fn another_search_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Trials::open(folder.path(), &json!({"space": 1, "seed": 2})).unwrap();
        let message = Trials::open(folder.path(), &json!({"space": 1, "seed": 3})).err().unwrap().to_string();
        assert!(
            ["search.json", "seed", "2", "3, as this search"].iter().all(|word| message.contains(word)),
            "{message}"
        );
    }
}
