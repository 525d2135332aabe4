//! Facts about things that do not exist, instructions to be followed with them, and questions about them with four choices.
//!
//! A corpus tells the facts of four subjects, each in two wordings, and asks of some of them; the instructions ask of more. No
//! question of MMLU's files stands there with its choices, but every second is of a fact that is asked with others; for these a
//! small model must know the fact and find it among the choices. The other facts are told and never asked: a small model has them
//! right by chance, one that can put together what it read need not.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use peft_core::Result;
use peft_core::random::Random;
use serde_json::{Value, json};

use super::grammar::{chance, pick};
use super::subjects::{Relation, SUBJECTS};
use super::vocabulary::{Tokenizer, coin, words};
use super::write::save;
use crate::tasks::alpaca::Record;
use crate::tasks::mmlu::{LETTERS, Question, Split, prompt};

/// Things of each subject.
const THINGS: usize = 40;
/// The questions of each subject.
const QUESTIONS: [(Split, usize); 3] = [(Split::Dev, 5), (Split::Val, 50), (Split::Test, 50)];
/// Lines of the corpus.
const LINES: usize = 60_000;
/// Instructions.
const RECORDS: usize = 4000;
/// Special tokens by id, as LLaMA numbers them.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// Letters of names.
const NAMES: [&[char]; 2] =
    [&['b', 'd', 'f', 'g', 'k', 'l', 'm', 'n', 'p', 'r', 's', 't', 'v', 'z'], &['a', 'e', 'i', 'o', 'u']];

/// Writes `corpus.txt`, `alpaca_data.json`, the questions under `mmlu/` as published (`test/SUBJECT_test.csv`) and
/// `tokenizer.json` into a directory; every byte follows from the seed.
///
/// A line of the corpus is a text of its own: facts; or a question, a question with choices, or several of these as in MMLU's
/// prompt (with blanks for its line breaks), with a tab before each answer. To say the letter of a choice is the last thing that
/// a small model learns, and sooner from a loss on the words behind the tabs than on every word.
pub fn write(directory: &Path, seed: u64) -> Result<()> {
    save(directory, files(seed))?;
    save(directory, vec![("tokenizer_config.json".to_string(), Tokenizer::config(&SPECIAL))])
}

/// The files by their paths.
fn files(seed: u64) -> Vec<(String, String)> {
    let (mut worlds, mut files, mut texts) = (World::draw(seed), Vec::new(), Vec::new());
    for world in &mut worlds {
        let mut facts = world.examined.iter();
        for (split, count) in QUESTIONS {
            let path = format!("mmlu/{}/{}_{}.csv", split.name(), world.name, split.name());
            let mut random = Random::new(seed, &path);
            let answers = Random::new(seed, &format!("{path} answers")).permutation(count);
            let ask = |(answer, fact): (usize, &Fact)| world.question(&mut random, *fact, answer % LETTERS.len());
            let questions: Vec<Question> = answers.into_iter().zip(facts.by_ref()).map(ask).collect();
            texts.extend(questions.iter().map(Question::ask));
            files.push((path, table(&questions)));
        }
        world.reserved.extend(texts.iter().cloned());
    }
    let mut random = Random::new(seed, "corpus");
    let corpus = std::iter::repeat_with(|| worlds[random.below(worlds.len())].line(&mut random));
    let corpus: Vec<String> = corpus.take(LINES).collect();
    let mut random = Random::new(seed, "instructions");
    let records = std::iter::repeat_with(|| worlds[random.below(worlds.len())].record(&mut random));
    let records: Vec<Record> = records.take(RECORDS).collect();
    texts.extend(corpus.iter().cloned());
    texts.extend(records.iter().flat_map(|record| [record.prompt(), record.output.clone()]));
    let known: BTreeSet<&str> = texts.iter().flat_map(|text| words(text)).collect();
    files.push(("tokenizer.json".to_string(), tokenizer(&known)));
    files.push(("corpus.txt".to_string(), corpus.join("\n") + "\n"));
    let object =
        |record: &Record| json!({ "instruction": record.instruction, "input": record.input, "output": record.output });
    let array = Value::Array(records.iter().map(object).collect());
    files.push(("alpaca_data.json".to_string(), format!("{array:#}\n")));
    files
}

/// A file of questions in MMLU's columns. No cell has anything that must be quoted.
fn table(questions: &[Question]) -> String {
    let row = |question: &Question| {
        let Question { question, choices, answer } = question;
        format!("{question},{},{}\n", choices.join(","), LETTERS[*answer])
    };
    questions.iter().map(row).collect()
}

/// A tokenizer with LLaMA's special tokens; a text gets `<s>` before it.
fn tokenizer(words: &BTreeSet<&str>) -> String {
    let tokenizer = Tokenizer {
        special: &SPECIAL,
        sentinels: &[],
        unknown: "<unk>",
        normalizer: Value::Null,
        cut: Tokenizer::cut(),
        finish: Tokenizer::around("<s>", 1, true),
    };
    tokenizer.file(words)
}

/// A thing and a relation, by their places.
type Fact = (usize, usize);

/// All that is the case in one subject.
struct World {
    name: &'static str,
    relations: &'static [Relation; 4],
    things: Vec<String>,
    /// For each relation, the place of each thing's value.
    values: Vec<Vec<usize>>,
    /// What the corpus and the instructions ask.
    open: Vec<Fact>,
    /// What the questions ask, in their order.
    examined: Vec<Fact>,
    /// The questions, which are asked nowhere else.
    reserved: HashSet<String>,
}

impl World {
    fn draw(seed: u64) -> Vec<Self> {
        let mut random = Random::new(seed, "names");
        let mut known = HashSet::new();
        let world = |(name, relations): &'static (&str, [Relation; 4])| {
            let things = (0..THINGS).map(|_| coin(&mut random, NAMES, 6, &mut known)).collect();
            let shuffled = |what: &str, count: usize| Random::new(seed, &format!("{name} {what}")).permutation(count);
            // Each value is that of as many things.
            let values = |relation: usize| {
                shuffled(&format!("values {relation}"), THINGS).into_iter().map(|place| place % 8).collect()
            };
            let facts = shuffled("facts", THINGS * relations.len()).into_iter();
            let mut examined: Vec<Fact> =
                facts.map(|place| (place / relations.len(), place % relations.len())).collect();
            let mut open = examined.split_off(QUESTIONS.iter().map(|(_, count)| count).sum());
            open.extend(examined.iter().step_by(2));
            let open = shuffled("open", open.len()).into_iter().map(|place| open[place]).collect();
            let values = (0..relations.len()).map(values).collect();
            World { name, relations, things, values, open, examined, reserved: HashSet::new() }
        };
        SUBJECTS.iter().map(world).collect()
    }

    fn value(&self, (thing, relation): Fact) -> usize {
        self.values[relation][thing]
    }

    fn tell(&self, random: &mut Random, fact: Fact) -> String {
        let relation = &self.relations[fact.1];
        pick(random, &relation.told)
            .replace("{t}", &self.things[fact.0])
            .replace("{v}", relation.values[self.value(fact)])
    }

    fn ask(&self, (thing, relation): Fact) -> String {
        self.relations[relation].asked.replace("{t}", &self.things[thing])
    }

    /// A question for a fact.
    fn question(&self, random: &mut Random, fact: Fact, answer: usize) -> Question {
        self.choose(random, self.ask(fact), (fact.1, self.value(fact)), answer)
    }

    /// A question whose answer is the value that it names: it teaches to find a choice and say its letter.
    fn reading(&self, random: &mut Random) -> Question {
        let relation = random.below(self.relations.len());
        let (value, answer) = (random.below(8), random.below(LETTERS.len()));
        let asked = format!("which of these is {} ?", self.relations[relation].values[value]);
        self.choose(random, asked, (relation, value), answer)
    }

    /// The right value in its place among three others of the same relation.
    fn choose(
        &self,
        random: &mut Random,
        question: String,
        (relation, right): (usize, usize),
        answer: usize,
    ) -> Question {
        let values = self.relations[relation].values;
        let mut others: Vec<usize> = (0..values.len()).filter(|value| *value != right).collect();
        let mut choice = |place: usize| match place == answer {
            true => values[right].to_string(),
            false => values[others.swap_remove(random.below(others.len()))].to_string(),
        };
        Question { question, choices: std::array::from_fn(&mut choice), answer }
    }

    /// A question for one of some facts, but none that is reserved.
    fn open_question(&self, random: &mut Random, facts: &[Fact]) -> Question {
        loop {
            let (fact, answer) = (pick(random, facts), random.below(LETTERS.len()));
            let question = self.question(random, fact, answer);
            if !self.reserved.contains(&question.ask()) {
                return question;
            }
        }
    }

    /// A line of the corpus.
    fn line(&self, random: &mut Random) -> String {
        let all = |thing: usize| (0..self.relations.len()).map(move |relation| (thing, relation));
        // The rest is left to the instructions.
        let open = &self.open[self.open.len() * 2 / 3..];
        match random.below(20) {
            // All of one thing.
            0..8 => {
                let mut facts: Vec<Fact> = all(random.below(self.things.len())).collect();
                (1..facts.len()).for_each(|last| facts.swap(last, random.below(last + 1)));
                facts.into_iter().map(|fact| self.tell(random, fact)).collect::<Vec<_>>().join(" . ") + " ."
            }
            // Something of several.
            8..10 => {
                let draw = |random: &mut Random| (random.below(self.things.len()), random.below(self.relations.len()));
                let facts: Vec<Fact> = (0..2 + random.below(3)).map(|_| draw(random)).collect();
                facts.into_iter().map(|fact| self.tell(random, fact)).collect::<Vec<_>>().join(" . ") + " ."
            }
            // A question with its answer.
            10..12 => {
                let fact = pick(random, open);
                format!("{}\t{} .", self.ask(fact), self.relations[fact.1].values[self.value(fact)])
            }
            // A question with choices.
            12..18 => {
                let question =
                    if chance(random, 0.6) { self.reading(random) } else { self.open_question(random, open) };
                format!("{}\t{}", one_line(&question.ask()), LETTERS[question.answer])
            }
            // Several of them.
            _ => {
                let shots: Vec<Question> = (0..1 + random.below(5)).map(|_| self.open_question(random, open)).collect();
                let last = self.open_question(random, open);
                let (text, _) = prompt(self.name, &shots, &last, |_| true).unwrap_or_default();
                format!("{}\t{}", one_line(&text).replace("Answer: ", "Answer:\t"), LETTERS[last.answer])
            }
        }
    }

    /// An instruction: to choose, to answer in a word, or to answer in a sentence.
    fn record(&self, random: &mut Random) -> Record {
        if chance(random, 0.6) {
            let question =
                if chance(random, 0.3) { self.reading(random) } else { self.open_question(random, &self.open) };
            let output = LETTERS[question.answer].to_string();
            return Record { instruction: "Choose the right answer.".to_string(), input: question.ask(), output };
        }
        let fact = pick(random, &self.open);
        let (asked, value) = (self.ask(fact), self.relations[fact.1].values[self.value(fact)]);
        match chance(random, 0.5) {
            true => Record { instruction: asked, input: String::new(), output: format!("{value} .") },
            false => Record {
                instruction: "Answer the question in a sentence.".to_string(),
                input: asked,
                output: format!("{} .", self.tell(random, fact)),
            },
        }
    }
}

/// A text without line breaks.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::LazyLock;

    use peft_core::load;

    use super::*;
    use crate::tasks::{alpaca, mmlu};

    static FILES: LazyLock<HashMap<String, String>> = LazyLock::new(|| files(1).into_iter().collect());

    /// The files on a disk.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), FILES.clone().into_iter().collect()).unwrap();
        folder
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let once = files(0);
        assert!(once == files(0));
        assert!(once.iter().zip(files(1)).all(|(one, other)| *one != other));
    }

    #[test]
    fn layouts_are_those_of_the_real_data() {
        let folder = folder();
        assert_eq!(alpaca::read(&folder.path().join("alpaca_data.json")).unwrap().len(), RECORDS);
        for (split, count) in QUESTIONS {
            let subjects = mmlu::read(&folder.path().join("mmlu"), split).unwrap();
            let names: Vec<&str> = subjects.iter().map(|subject| subject.name.as_str()).collect();
            assert_eq!(names, ["beast_lore", "gem_lore", "herb_lore", "town_lore"]);
            for subject in &subjects {
                assert_eq!(subject.questions.len(), count);
                let answers = |answer| subject.questions.iter().filter(|question| question.answer == answer).count();
                assert!((0..4).all(|answer| answers(answer).abs_diff(count / 4) <= 1), "{}", subject.name);
                assert!(
                    subject.questions.iter().all(|question| question.choices.iter().collect::<HashSet<_>>().len() == 4)
                );
            }
        }
    }

    /// What a question says with one of its choices put in, in both wordings of the corpus.
    fn claims(question: &str, choice: &str) -> Vec<String> {
        let named = |relation: &Relation| {
            let (before, after) = relation.asked.split_once("{t}").unwrap();
            let thing = question.strip_prefix(before)?.strip_suffix(after)?;
            Some(relation.told.map(|told| told.replace("{t}", thing).replace("{v}", choice)).to_vec())
        };
        SUBJECTS.iter().flat_map(|(_, relations)| relations).find_map(named).expect("a relation")
    }

    #[test]
    fn answers_follow_from_the_corpus_where_they_are_not_asked() {
        let corpus = &FILES["corpus.txt"];
        let told: HashSet<&str> = corpus.lines().flat_map(|line| line.trim_end_matches(" .").split(" . ")).collect();
        let taught = alpaca::read(&folder().path().join("alpaca_data.json")).unwrap();
        let (mut asked, folder) = (HashSet::new(), folder());
        for (split, _) in QUESTIONS {
            for question in mmlu::read(&folder.path().join("mmlu"), split).unwrap().iter().flat_map(|s| &s.questions) {
                for (place, choice) in question.choices.iter().enumerate() {
                    for claim in claims(&question.question, choice) {
                        assert_eq!(told.contains(claim.as_str()), place == question.answer, "{claim}");
                    }
                }
                assert!(asked.insert((question.ask(), question.question.clone())), "{} twice", question.question);
            }
        }
        // With its choices none is asked elsewhere, without them every second.
        let taught: HashSet<&str> =
            taught.iter().flat_map(|record| [record.instruction.as_str(), record.input.as_str()]).collect();
        let corpus = corpus.replace('\t', " ");
        let questions: HashSet<&str> = taught.iter().filter_map(|text| text.lines().next()).collect();
        assert!(asked.iter().all(|(whole, _)| !taught.contains(whole.as_str()) && !corpus.contains(&one_line(whole))));
        let open = asked.iter().filter(|(_, question)| questions.contains(question.as_str())).count();
        assert!(open.abs_diff(asked.len() / 2) <= 8, "{open} of {}", asked.len());
    }

    #[test]
    fn instructions_are_followed_as_the_corpus_tells() {
        let told: HashSet<&str> =
            FILES["corpus.txt"].lines().flat_map(|line| line.trim_end_matches(" .").split(" . ")).collect();
        let mut kinds = [0; 3];
        for Record { instruction, input, output } in alpaca::read(&folder().path().join("alpaca_data.json")).unwrap() {
            let output = output.trim_end_matches(" .");
            let (kind, claim) = match instruction.as_str() {
                "Choose the right answer." => {
                    let line = input.lines().find_map(|line| line.strip_prefix(&format!("{output}. "))).unwrap();
                    let question = input.lines().next().unwrap();
                    if question == format!("which of these is {line} ?") {
                        continue;
                    }
                    (0, claims(question, line).remove(0))
                }
                "Answer the question in a sentence." => (1, output.to_string()),
                question => (2, claims(question, output).remove(0)),
            };
            kinds[kind] += 1;
            assert!(told.contains(claim.as_str()), "{instruction} {input} {output}");
        }
        assert!(kinds.iter().all(|count| *count > 500), "{kinds:?}");
    }

    #[test]
    fn tokens_give_the_text_back_and_letters_are_tokens() {
        let folder = folder();
        let file: Value = serde_json::from_str(&FILES["tokenizer.json"]).unwrap();
        let names: Vec<&str> = file["model"]["vocab"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names[..3], SPECIAL);
        let tokenizer = load::Tokenizer::from_dir(folder.path(), names.len()).unwrap();
        let tokens = |text: &str| -> Vec<&str> {
            tokenizer.encode(text, None, 1000).unwrap().ids.iter().map(|id| names[*id as usize]).collect()
        };
        for line in FILES["corpus.txt"].lines() {
            let tokens = tokens(line);
            assert!(!tokens.contains(&"<unk>"), "{line}");
            // Only beside choices punctuation stands at words.
            let text = line.replace('\t', " ");
            assert!(line.contains("A. ") || tokens.join(" ") == format!("<s> {text}"), "{line}");
        }
        LETTERS.iter().for_each(|letter| assert_eq!(tokens(letter), ["<s>", letter]));
        let read = |split| mmlu::read(&folder.path().join("mmlu"), split).unwrap();
        let (shots, test) = (read(Split::Dev), read(Split::Test));
        let mut longest = 0;
        for (shots, subject) in shots.iter().zip(&test) {
            for question in &subject.questions {
                let (prompt, _) = prompt(&subject.name, &shots.questions, question, |_| true).unwrap();
                let tokens = tokens(&prompt);
                assert!(!tokens.contains(&"<unk>"), "{prompt}");
                longest = longest.max(tokens.len());
            }
        }
        assert!((100..256).contains(&longest), "{longest}");
        let records = alpaca::read(&folder.path().join("alpaca_data.json")).unwrap();
        let texts = records.iter().map(|record| format!("{} {}", record.prompt(), record.output));
        texts.for_each(|text| assert!(!tokens(&text).contains(&"<unk>"), "{text}"));
    }
}
