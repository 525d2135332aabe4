//! Facts about things that do not exist, instructions to be followed with them, and questions about them with four choices.
//!
//! A corpus tells the facts of four subjects, each in two wordings. Some of the facts are held out: what is asked of them in the
//! questions is never asked in the corpus or in the instructions, but follows from what the corpus tells.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use peft_core::Result;
use peft_core::random::Random;
use serde_json::{Value, json};

use super::grammar::{chance, pick};
use super::vocabulary::{Tokenizer, coin, words};
use super::write::save;
use crate::tasks::alpaca::Record;
use crate::tasks::mmlu::{LETTERS, Question, Split, prompt};

/// Things of each subject.
const THINGS: usize = 40;
/// The questions of each subject.
const QUESTIONS: [(Split, usize); 3] = [(Split::Dev, 5), (Split::Val, 50), (Split::Test, 50)];
/// Lines of the corpus.
const LINES: usize = 40_000;
/// Instructions.
const RECORDS: usize = 4000;
/// Special tokens by id, as LLaMA numbers them.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// Letters of names.
const NAMES: [&[char]; 2] =
    [&['b', 'd', 'f', 'g', 'k', 'l', 'm', 'n', 'p', 'r', 's', 't', 'v', 'z'], &['a', 'e', 'i', 'o', 'u']];

/// What can be told of a thing: in two wordings, with the thing for `{t}` and one of the values for `{v}`. The thing comes first:
/// a causal model learns from the other order nothing that answers a question.
struct Relation {
    told: [&'static str; 2],
    asked: &'static str,
    values: [&'static str; 8],
}

/// The subjects and what is told of their things.
static SUBJECTS: [(&str, [Relation; 4]); 4] = [
    (
        "beast_lore",
        [
            Relation {
                told: ["{t} lives in the {v}", "the home of {t} is the {v}"],
                asked: "where does {t} live ?",
                values: ["forest", "swamp", "desert", "cave", "river", "meadow", "mountain", "island"],
            },
            Relation {
                told: ["{t} eats {v}", "the food of {t} is {v}"],
                asked: "what does {t} eat ?",
                values: ["berries", "fish", "grass", "roots", "seeds", "honey", "leaves", "snails"],
            },
            Relation {
                told: ["{t} has {v} fur", "the fur of {t} is {v}"],
                asked: "which colour is the fur of {t} ?",
                values: ["red", "blue", "green", "grey", "black", "white", "brown", "golden"],
            },
            Relation {
                told: ["{t} fears {v}", "nothing scares {t} but {v}"],
                asked: "what does {t} fear ?",
                values: ["thunder", "fire", "snow", "wind", "smoke", "dogs", "bells", "drums"],
            },
        ],
    ),
    (
        "town_lore",
        [
            Relation {
                told: ["{t} is ruled by the {v}", "the ruler of {t} is the {v}"],
                asked: "who governs {t} ?",
                values: ["duke", "bishop", "mayor", "baron", "judge", "captain", "abbot", "elder"],
            },
            Relation {
                told: ["{t} sells {v}", "in {t} merchants buy {v}"],
                asked: "what do merchants buy in {t} ?",
                values: ["salt", "silk", "wool", "iron", "glass", "spice", "timber", "wine"],
            },
            Relation {
                told: ["{t} is famous for its {v}", "travellers visit {t} for its {v}"],
                asked: "what is {t} famous for ?",
                values: ["tower", "bridge", "gate", "fountain", "windmill", "castle", "harbour", "statue"],
            },
            Relation {
                told: ["the festival of {t} is in {v}", "{t} celebrates in {v}"],
                asked: "when is the festival of {t} ?",
                values: ["january", "march", "april", "june", "july", "august", "october", "december"],
            },
        ],
    ),
    (
        "herb_lore",
        [
            Relation {
                told: ["{t} cures {v}", "healers use {t} against {v}"],
                asked: "what does {t} cure ?",
                values: ["fever", "cough", "toothache", "rash", "insomnia", "gout", "cramp", "burns"],
            },
            Relation {
                told: ["of {t} one uses the {v}", "the useful part of {t} is the {v}"],
                asked: "which part of {t} is useful ?",
                values: ["root", "bark", "flower", "stem", "leaf", "seed", "sap", "bud"],
            },
            Relation {
                told: ["{t} tastes {v}", "the taste of {t} is {v}"],
                asked: "how does {t} taste ?",
                values: ["sweet", "sour", "bitter", "salty", "spicy", "mild", "sharp", "nutty"],
            },
            Relation {
                told: ["{t} is picked at {v}", "one gathers {t} at {v}"],
                asked: "when is {t} picked ?",
                values: ["dawn", "noon", "dusk", "midnight", "sunrise", "sunset", "moonrise", "teatime"],
            },
        ],
    ),
    (
        "gem_lore",
        [
            Relation {
                told: ["{t} is found in {v}", "to find {t} miners break {v}"],
                asked: "in what is {t} found ?",
                values: ["granite", "marble", "slate", "chalk", "clay", "sand", "basalt", "coal"],
            },
            Relation {
                told: ["{t} is cut with the {v}", "the tool for {t} is the {v}"],
                asked: "which tool cuts {t} ?",
                values: ["saw", "file", "chisel", "drill", "knife", "wheel", "wire", "hammer"],
            },
            Relation {
                told: ["{t} is worn in the {v}", "one sees {t} in the {v}"],
                asked: "in what is {t} worn ?",
                values: ["ring", "crown", "necklace", "bracelet", "brooch", "buckle", "sceptre", "pendant"],
            },
            Relation {
                told: ["{t} grants {v}", "those who carry {t} have {v}"],
                asked: "what does {t} grant ?",
                values: ["luck", "sleep", "courage", "memory", "patience", "wisdom", "strength", "speed"],
            },
        ],
    ),
];

/// Writes `corpus.txt`, `alpaca_data.json`, the questions under `mmlu/` as published (`test/SUBJECT_test.csv`) and
/// `tokenizer.json` into a directory; every byte follows from the seed.
///
/// A line of the corpus is a text of its own: facts, questions with answers, or several of those with choices as in MMLU's
/// prompt, with blanks for its line breaks.
pub fn write(directory: &Path, seed: u64) -> Result<()> {
    save(directory, files(seed))
}

/// The files by their paths.
fn files(seed: u64) -> Vec<(String, String)> {
    let worlds = World::draw(seed);
    let mut random = Random::new(seed, "corpus");
    let corpus = std::iter::repeat_with(|| worlds[random.below(worlds.len())].line(&mut random));
    let corpus: Vec<String> = corpus.take(LINES).collect();
    let mut random = Random::new(seed, "instructions");
    let records = std::iter::repeat_with(|| worlds[random.below(worlds.len())].record(&mut random));
    let records: Vec<Record> = records.take(RECORDS).collect();

    let (mut files, mut texts) = (Vec::new(), corpus.clone());
    texts.extend(records.iter().flat_map(|record| [record.prompt(), record.output.clone()]));
    for world in &worlds {
        let mut facts = &world.held_out[..];
        for (split, count) in QUESTIONS {
            let path = format!("mmlu/{}/{}_{}.csv", split.name(), world.name, split.name());
            let mut random = Random::new(seed, &path);
            let answers = Random::new(seed, &format!("{path} answers")).permutation(count);
            let (now, later) = facts.split_at(count);
            facts = later;
            let ask = |(fact, answer): (&Fact, usize)| world.question(&mut random, *fact, answer % LETTERS.len());
            let questions: Vec<Question> = now.iter().zip(answers).map(ask).collect();
            texts.extend(questions.iter().map(Question::ask));
            files.push((path, table(&questions)));
        }
    }
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
    /// What may be asked anywhere.
    open: Vec<Fact>,
    /// What is asked in the questions only, each fact once.
    held_out: Vec<Fact>,
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
            let mut held_out: Vec<Fact> =
                facts.map(|place| (place / relations.len(), place % relations.len())).collect();
            let open = held_out.split_off(QUESTIONS.iter().map(|(_, count)| count).sum());
            World { name, relations, things, values: (0..relations.len()).map(values).collect(), open, held_out }
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

    /// A question with the right answer in its place among three others of the same relation.
    fn question(&self, random: &mut Random, fact: Fact, answer: usize) -> Question {
        let (values, right) = (self.relations[fact.1].values, self.value(fact));
        let mut others: Vec<usize> = (0..values.len()).filter(|value| *value != right).collect();
        let mut choice = |place: usize| match place == answer {
            true => values[right].to_string(),
            false => values[others.swap_remove(random.below(others.len()))].to_string(),
        };
        Question { question: self.ask(fact), choices: std::array::from_fn(&mut choice), answer }
    }

    fn open_question(&self, random: &mut Random) -> Question {
        let (fact, answer) = (pick(random, &self.open), random.below(LETTERS.len()));
        self.question(random, fact, answer)
    }

    /// A line of the corpus.
    fn line(&self, random: &mut Random) -> String {
        let all = |thing: usize| (0..self.relations.len()).map(move |relation| (thing, relation));
        match random.below(20) {
            // All of one thing.
            0..10 => {
                let mut facts: Vec<Fact> = all(random.below(self.things.len())).collect();
                (1..facts.len()).for_each(|last| facts.swap(last, random.below(last + 1)));
                facts.into_iter().map(|fact| self.tell(random, fact)).collect::<Vec<_>>().join(" . ") + " ."
            }
            // Something of several.
            10..14 => {
                let draw = |random: &mut Random| (random.below(self.things.len()), random.below(self.relations.len()));
                let facts: Vec<Fact> = (0..2 + random.below(3)).map(|_| draw(random)).collect();
                facts.into_iter().map(|fact| self.tell(random, fact)).collect::<Vec<_>>().join(" . ") + " ."
            }
            // Questions with answers.
            14..17 => {
                let facts: Vec<Fact> = (0..2 + random.below(3)).map(|_| pick(random, &self.open)).collect();
                let answered =
                    |fact| format!("{} {} .", self.ask(fact), self.relations[fact.1].values[self.value(fact)]);
                facts.into_iter().map(answered).collect::<Vec<_>>().join(" ")
            }
            // Questions with choices.
            _ => {
                let shots: Vec<Question> = (0..random.below(6)).map(|_| self.open_question(random)).collect();
                let last = self.open_question(random);
                let (text, _) = prompt(self.name, &shots, &last, |_| true).unwrap_or_default();
                format!("{text} {}", LETTERS[last.answer]).split_whitespace().collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// An instruction: to choose, to answer in a word, or to answer in a sentence.
    fn record(&self, random: &mut Random) -> Record {
        if chance(random, 0.6) {
            let question = self.open_question(random);
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
    fn answers_follow_from_the_corpus_where_they_are_never_asked() {
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
                assert!(asked.insert(question.question.clone()), "{} twice", question.question);
            }
        }
        for question in &asked {
            assert!(!corpus.contains(question), "{question}");
            assert!(!taught.iter().any(|record| record.instruction == *question || record.input.contains(question)));
        }
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
                    (0, claims(input.lines().next().unwrap(), line).remove(0))
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
            // Only in MMLU's prompt punctuation stands at words.
            assert!(!line.ends_with(" .") || tokens.join(" ") == format!("<s> {line}"), "{line}");
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
