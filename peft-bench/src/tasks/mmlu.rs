//! Questions with four choices (MMLU, Hendrycks et al., 2021): their files, the prompt with solved examples, and the averages.

use std::path::Path;

use peft_core::files::{read_jsonl, read_text};
use peft_core::{Error, Result};
use serde_json::Value;

pub use super::areas::Area;

/// The letters of the choices.
pub const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
/// The solved examples that a prompt has, if they fit.
pub const SHOTS: usize = 5;

/// The largest file of a subject that is read, in bytes.
const MAX_CSV: u64 = 64 << 20;

/// A question with its choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is asked.
    pub question: String,
    /// The choices, A to D.
    pub choices: [String; 4],
    /// The right one, from 0.
    pub answer: usize,
}

/// The questions of one subject, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its name in the files, with underscores for blanks.
    pub name: String,
    /// At least one.
    pub questions: Vec<Question>,
}

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Five questions of each subject: the solved examples.
    Dev,
    /// For choosing among checkpoints.
    Val,
    /// For the score.
    Test,
}

impl Split {
    /// Its name in the files.
    pub fn name(self) -> &'static str {
        match self {
            Split::Dev => "dev",
            Split::Val => "val",
            Split::Test => "test",
        }
    }
}

/// Reads a split, its subjects in the order of their names. It lies as published, `test/SUBJECT_test.csv` without a header line
/// (question, four choices, letter), or in one file `test.jsonl` of objects with `subject`, `question`, `choices` and `answer`
/// (a letter, or its number from 0). A directory `test` goes before the file.
pub fn read(directory: &Path, split: Split) -> Result<Vec<Subject>> {
    let name = split.name();
    let (folder, lines) = (directory.join(name), directory.join(format!("{name}.jsonl")));
    let mut subjects = match (folder.is_dir(), lines.exists()) {
        (true, _) => read_folder(&folder, name)?,
        (false, true) => read_lines(&lines)?,
        (false, false) => {
            let expected = format!("{name}/SUBJECT_{name}.csv or {name}.jsonl, neither of them compressed");
            return Err(Error::file(directory, format!("split {name}"), "no such file", expected));
        }
    };
    subjects.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(subjects)
}

/// The first `count` questions of each subject, all of those that have fewer.
pub fn first(mut subjects: Vec<Subject>, count: usize) -> Vec<Subject> {
    subjects.iter_mut().for_each(|subject| subject.questions.truncate(count.max(1)));
    subjects
}

fn read_folder(folder: &Path, split: &str) -> Result<Vec<Subject>> {
    let ending = format!("_{split}.csv");
    let mut subjects = Vec::new();
    for entry in folder.read_dir().map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(name) = file.strip_suffix(&ending).filter(|name| !name.is_empty()) {
            subjects.push(Subject { name: name.to_string(), questions: read_csv(&path)? });
        }
    }
    if subjects.is_empty() {
        return Err(Error::file(folder, "files", "none of a subject", format!("SUBJECT{ending}")));
    }
    Ok(subjects)
}

/// A cell in double quotes may have commas, line breaks and doubled quotes. Questions and choices are taken as they stand.
fn read_csv(path: &Path) -> Result<Vec<Question>> {
    let text = read_text(path, MAX_CSV)?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut questions = Vec::new();
    for row in reader.records() {
        let row = row.map_err(|error| {
            let line = error.position().map_or(1, csv::Position::line);
            Error::file(path, format!("line {line}"), error, "comma-separated fields")
        })?;
        // Where the row begins; the position that the parser gives counts the line break before it.
        let start = row.position().map_or(0, |position| position.byte() as usize);
        let blank = text[start..].len() - text[start..].trim_start_matches(['\r', '\n']).len();
        let place = format!("line {}", 1 + text[..start + blank].matches('\n').count());
        let cells: [&str; 6] = row.iter().collect::<Vec<_>>().try_into().map_err(|cells: Vec<_>| {
            let expected = "6: the question, four choices and the letter of the right one";
            Error::file(path, &place, format!("{} fields", cells.len()), expected)
        })?;
        let [question, a, b, c, d, answer] = cells;
        let answer = letter(answer.trim()).ok_or_else(|| wrong_answer(path, &place, &format!("{answer:?}")))?;
        questions.push(checked(path, &place, question, [a, b, c, d].map(str::to_string), answer)?);
    }
    if questions.is_empty() {
        return Err(Error::file(path, "content", "no question", "at least one"));
    }
    Ok(questions)
}

fn read_lines(path: &Path) -> Result<Vec<Subject>> {
    let mut subjects: Vec<Subject> = Vec::new();
    for (line, value) in read_jsonl(path)? {
        let place = format!("line {line}");
        let cell = |key: &str, expected: &str| match &value[key] {
            Value::Null => Err(Error::file(path, format!("{place}, {key}"), "nothing", expected)),
            value => Ok(value.clone()),
        };
        let text = |key: &str| match cell(key, "a text")? {
            Value::String(text) if !text.trim().is_empty() => Ok(text),
            other => Err(Error::file(path, format!("{place}, {key}"), short(&other), "a text that is not empty")),
        };
        let (name, question) = (text("subject")?, text("question")?);
        let expected = "an array of four texts";
        let choices = cell("choices", expected)?;
        let choices: [String; 4] = serde_json::from_value(choices.clone())
            .map_err(|_| Error::file(path, format!("{place}, choices"), short(&choices), expected))?;
        let answer = cell("answer", "one of A, B, C and D")?;
        let number = answer.as_u64().filter(|number| *number < 4).map(|number| number as usize);
        let answer = number
            .or_else(|| answer.as_str().and_then(letter))
            .ok_or_else(|| wrong_answer(path, &place, &short(&answer)))?;
        let question = checked(path, &place, &question, choices, answer)?;
        match subjects.iter_mut().find(|subject| subject.name == name) {
            Some(subject) => subject.questions.push(question),
            None => subjects.push(Subject { name, questions: vec![question] }),
        }
    }
    if subjects.is_empty() {
        return Err(Error::file(path, "content", "no question", "at least one"));
    }
    Ok(subjects)
}

fn letter(text: &str) -> Option<usize> {
    LETTERS.iter().position(|letter| *letter == text)
}

fn wrong_answer(path: &Path, place: &str, found: &str) -> Error {
    Error::file(path, format!("{place}, answer"), found, "one of A, B, C and D")
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

/// A choice may be any text, even none: some of the published ones are blank.
fn checked(path: &Path, place: &str, question: &str, choices: [String; 4], answer: usize) -> Result<Question> {
    if question.trim().is_empty() {
        return Err(Error::file(path, format!("{place}, question"), "no text", "a question"));
    }
    Ok(Question { question: question.to_string(), choices, answer })
}

impl Question {
    /// The question with its choices, and the word after which the letter comes.
    pub fn ask(&self) -> String {
        let choices: String =
            LETTERS.iter().zip(&self.choices).map(|(letter, choice)| format!("\n{letter}. {choice}")).collect();
        format!("{}{choices}\nAnswer:", self.question)
    }
}

/// The prompt for a question of a subject, to the letter as in MMLU's own script (with two blanks after "about"), and the
/// number of solved examples in it. While the prompt does not fit, the last example is dropped; nothing if it does not fit
/// without any.
pub fn prompt(
    subject: &str,
    shots: &[Question],
    question: &Question,
    fits: impl Fn(&str) -> bool,
) -> Option<(String, usize)> {
    let words: String = subject.split('_').map(|word| format!(" {word}")).collect();
    let header = format!("The following are multiple choice questions (with answers) about {words}.\n\n");
    let solved: Vec<String> = shots.iter().map(|shot| format!("{} {}\n\n", shot.ask(), LETTERS[shot.answer])).collect();
    (0..=solved.len()).rev().find_map(|count| {
        let prompt = format!("{header}{}{}", solved[..count].concat(), question.ask());
        fits(&prompt).then_some((prompt, count))
    })
}

/// How many questions of a subject were answered right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// The subject's name.
    pub subject: String,
    /// Questions with the right answer.
    pub right: usize,
    /// All questions.
    pub questions: usize,
    /// Questions whose prompt had not all of the solved examples.
    pub shortened: usize,
}

impl Score {
    /// The share of right answers.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.questions as f64
    }
}

/// The scores of all subjects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scores(pub Vec<Score>);

impl Scores {
    /// Asks all questions, each after the first [`SHOTS`] of its subject's questions in `shots`. The answer is the choice
    /// with the largest of the four logits that follow the prompt, the first of equal ones; `logits` gives them for all prompts of
    /// a subject.
    ///
    /// An error if a subject has not that many questions in `shots`, a prompt does not fit without any, or a logit is no number.
    pub fn of(
        subjects: &[Subject],
        shots: &[Subject],
        fits: impl Fn(&str) -> bool,
        mut logits: impl FnMut(&[String]) -> Result<Vec<[f32; 4]>>,
    ) -> Result<Self> {
        let mut scores = Vec::with_capacity(subjects.len());
        for Subject { name, questions } in subjects {
            let solved =
                shots.iter().find(|subject| subject.name == *name).map_or(&[][..], |subject| &subject.questions);
            let Some(solved) = solved.get(..SHOTS) else {
                let found = format!("{} questions of {name}", solved.len());
                return Err(Error::config("solved examples", found, format!("{SHOTS}, of the split dev")));
            };
            let mut score = Score { subject: name.clone(), right: 0, questions: questions.len(), shortened: 0 };
            let mut prompts = Vec::with_capacity(questions.len());
            for (question, number) in questions.iter().zip(1..) {
                let (prompt, count) = prompt(name, solved, question, &fits).ok_or_else(|| {
                    let found = format!("question {number} of {name}, alone");
                    Error::config("prompt", found, "one that fits the model")
                })?;
                score.shortened += usize::from(count < SHOTS);
                prompts.push(prompt);
            }
            for ((question, number), logits) in questions.iter().zip(1..).zip(logits(&prompts)?) {
                if logits.iter().any(|logit| logit.is_nan()) {
                    let detail = format!("{logits:?} for question {number} of {name}");
                    return Err(Error::Check { what: "logits of the choices are numbers", detail });
                }
                let best = (0..4).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
                score.right += usize::from(best == question.answer);
            }
            scores.push(score);
        }
        Ok(Scores(scores))
    }

    /// The mean of the subjects' accuracies (as QLoRA's evaluation reports it) and its standard error, by the unbiased variance of
    /// each subject's; of a subject of one question that of all questions is taken. NaN if there are no subjects.
    pub fn macro_average(&self) -> (f64, f64) {
        let count = self.0.len() as f64;
        let (all, _) = self.micro_average();
        let variance = |score: &Score| match score.questions {
            1 => all * (1.0 - all),
            n => score.accuracy() * (1.0 - score.accuracy()) / (n as f64 - 1.0),
        };
        let sum = |f: &dyn Fn(&Score) -> f64| self.0.iter().map(f).sum::<f64>();
        (sum(&Score::accuracy) / count, sum(&variance).sqrt() / count)
    }

    /// The accuracy over all questions (as MMLU's own script reports it) and its binomial standard error
    /// sqrt(p (1 - p) / n); NaN if there are none.
    pub fn micro_average(&self) -> (f64, f64) {
        accuracy(self.0.iter())
    }

    /// The same of the subjects of one area; nothing if there are none.
    pub fn of_area(&self, area: Area) -> Option<(f64, f64)> {
        let own = || self.0.iter().filter(|score| Area::of(&score.subject) == Some(area));
        own().next().is_some().then(|| accuracy(own()))
    }
}

fn accuracy<'a>(scores: impl Iterator<Item = &'a Score>) -> (f64, f64) {
    let (right, all) = scores.fold((0, 0), |(right, all), score| (right + score.right, all + score.questions));
    let share = right as f64 / all as f64;
    (share, (share * (1.0 - share) / all as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn question(text: &str, answer: usize) -> Question {
        Question { question: text.to_string(), choices: ["w", "x", "y", "z"].map(str::to_string), answer }
    }

    fn subject(name: &str, questions: Vec<Question>) -> Subject {
        Subject { name: name.to_string(), questions }
    }

    fn read_file(name: &str, content: &[u8]) -> Result<Vec<Subject>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        read(folder.path(), Split::Test)
    }

    #[test]
    fn the_prompt_is_mmlus_to_the_letter() {
        let shots = [question("What is 1?", 0), question("Two\nlines", 3)];
        let asked = question("Which?", 1);
        let (whole, count) = prompt("high_school_us_history", &shots, &asked, |_| true).unwrap();
        let header = "The following are multiple choice questions (with answers) about  high school us history.\n\n";
        let first = "What is 1?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\n";
        let second = "Two\nlines\nA. w\nB. x\nC. y\nD. z\nAnswer: D\n\n";
        let last = "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:";
        assert_eq!((whole.as_str(), count), (format!("{header}{first}{second}{last}").as_str(), 2));
        // Shots are dropped from the end.
        let fits = |limit: usize| move |text: &str| text.len() <= limit;
        let short = format!("{header}{first}{last}");
        assert_eq!(
            prompt("high_school_us_history", &shots, &asked, fits(whole.len() - 1)).unwrap(),
            (short.clone(), 1)
        );
        let bare = format!("{header}{last}");
        assert_eq!(prompt("high_school_us_history", &shots, &asked, fits(short.len() - 1)).unwrap(), (bare.clone(), 0));
        assert!(prompt("high_school_us_history", &shots, &asked, fits(bare.len() - 1)).is_none());
    }

    #[test]
    fn both_layouts_are_the_same() {
        let csv = "Who?,a,\"b, \"\"c\"\"\",d,,B\r\n\"Two\nlines, or\r\nmore\",1,2,3,4,D\n";
        let lines = r#"{"subject": "x_y", "question": "Who?", "choices": ["a", "b, \"c\"", "d", ""], "answer": "B", "id": 1}

{"subject": "x_y", "question": "Two\nlines, or\r\nmore", "choices": ["1", "2", "3", "4"], "answer": 3}"#;
        let found = read_file("test/x_y_test.csv", csv.as_bytes()).unwrap();
        assert_eq!(found, read_file("test.jsonl", lines.as_bytes()).unwrap());
        assert_eq!((found.len(), found[0].name.as_str(), found[0].questions.len()), (1, "x_y", 2));
        assert_eq!(found[0].questions[0].choices, ["a", "b, \"c\"", "d", ""]);
        assert_eq!(found[0].questions[1].answer, 3);
        assert_eq!(first(found.clone(), 1)[0].questions, found[0].questions[..1]);
        let two = [r#"{"subject": "b", "question": "q", "choices": ["", "", "", ""], "answer": 0}"#; 2].join("\n");
        let two = read_file("test.jsonl", two.replacen("\"b\"", "\"c\"", 1).as_bytes()).unwrap();
        assert_eq!(two.iter().map(|subject| subject.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn errors_name_file_and_line() {
        let csv = "test/law_test.csv";
        let line = |rest: &str| format!("{{\"subject\": \"s\", \"question\": \"q\"{rest}}}").into_bytes();
        let cases: [(&str, Vec<u8>, &str); 15] = [
            (csv, b"q,a,b,c,d,E\n".to_vec(), "line 1, answer: found \"E\", expected one of A, B, C and D"),
            (csv, b"q,a,b,c,d,a\n".to_vec(), "line 1, answer: found \"a\""),
            (csv, b"q,\"a\nb\nc\",b,c,d,A\n\nq,a,b,c,d\n".to_vec(), "line 5: found 5 fields, expected 6"),
            (csv, b"q,a,b,c,d,A\nq,a,b,c,d,A,B\n".to_vec(), "line 2: found 7 fields"),
            (csv, b"q,a,b,c,d,A\n,a,b,c,d,A\n".to_vec(), "line 2, question: found no text"),
            (csv, b"q,a,b,c,d,A\n\"q,a,b,c,d,A\n".to_vec(), "line 2: found 1 fields"),
            (csv, b"".to_vec(), "content: found no question"),
            (csv, b"q,a,b,c,d,A\nq,\xff,b,c,d,A\n".to_vec(), "line 2: found bytes that are no text"),
            ("test/law_val.csv", b"".to_vec(), "files: found none of a subject, expected SUBJECT_test.csv"),
            ("test.jsonl.gz", b"".to_vec(), "split test: found no such file, expected test/SUBJECT_test.csv"),
            ("test.jsonl", b"\n".to_vec(), "content: found no question"),
            ("test.jsonl", b"{\"question\": \"q\"}".to_vec(), "line 1, subject: found nothing"),
            ("test.jsonl", b"\n[]".to_vec(), "line 2, subject: found nothing"),
            (
                "test.jsonl",
                line(", \"choices\": [\"a\", \"b\", \"c\"], \"answer\": 1"),
                "choices: found [\"a\",\"b\",\"c\"]",
            ),
            (
                "test.jsonl",
                line(", \"choices\": [\"a\", \"b\", \"c\", \"d\"], \"answer\": 4"),
                "line 1, answer: found 4",
            ),
        ];
        for (name, content, expected) in cases {
            let error = read_file(name, &content).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn averages_and_errors_by_hand() {
        let letters = |answers: &[usize]| answers.iter().map(|answer| question("q", *answer)).collect::<Vec<_>>();
        let dev = [
            subject("anatomy", letters(&[0; 6])),
            subject("virology", letters(&[1; 5])),
            subject("z", letters(&[0; 5])),
        ];
        let test = [
            subject("anatomy", letters(&[0, 1])),
            subject("virology", letters(&[0; 4])),
            subject("z", letters(&[3, 0])),
        ];
        let mut asked = 0;
        // All right but for the first choice of equal ones: A.
        let scores = Scores::of(
            &test,
            &dev,
            |text| text.len() < 230,
            |prompts| {
                asked += prompts.len();
                assert!(prompts.iter().all(|prompt| prompt.ends_with("\nAnswer:")));
                Ok(vec![[1.0, 1.0, f32::NEG_INFINITY, 0.5]; prompts.len()])
            },
        )
        .unwrap();
        assert_eq!(asked, 8);
        assert_eq!(
            scores.0.iter().map(|score| (score.right, score.questions)).collect::<Vec<_>>(),
            [(1, 2), (4, 4), (1, 2)]
        );
        assert!(scores.0.iter().all(|score| score.shortened == score.questions));
        let near =
            |(a, e): (f64, f64), (b, f): (f64, f64)| assert!((a - b).abs() < 1e-12 && (e - f).abs() < 1e-12, "{a} {e}");
        near(scores.macro_average(), (2.0 / 3.0, 0.5_f64.sqrt() / 3.0));
        near(scores.micro_average(), (0.75, (0.1875_f64 / 8.0).sqrt()));
        let other = 5.0 / 6.0;
        near(scores.of_area(Area::Other).unwrap(), (other, (other * (1.0 - other) / 6.0_f64).sqrt()));
        assert_eq!(scores.of_area(Area::Stem), None);

        let fails = |dev: &[Subject], fits: bool, logit: f32| {
            Scores::of(&test, dev, |_| fits, |prompts| Ok(vec![[logit; 4]; prompts.len()])).unwrap_err().to_string()
        };
        assert!(fails(&dev[1..], true, 0.0).contains("0 questions of anatomy"));
        assert!(fails(&dev, false, 0.0).contains("question 1 of anatomy"));
        assert!(fails(&dev, true, f32::NAN).contains("question 1 of anatomy"));
    }
}
