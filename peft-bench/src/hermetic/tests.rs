//! Whether the files are what they say: labels are derived again from the texts, or from worlds in which they hold.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use peft_core::random::Random;

use super::grammar::{ACTIONS, Event, KINDS, Phrase, QUALITIES, chance, past};
use super::tasks::{Claim, Quantity, TASKS, Task};
use super::write::files;

static FILES: LazyLock<HashMap<String, String>> = LazyLock::new(|| files(1).into_iter().collect());

/// Texts and label of each row of a file, found by the columns' names.
fn rows(task: &Task, file: &str) -> Vec<(String, String, String)> {
    let path = format!("glue/{}/{file}", task.glue.directory);
    let mut lines: Vec<Vec<&str>> = FILES[&path].lines().map(|line| line.split('\t').collect()).collect();
    let header = if task.glue.directory == "CoLA" { task.columns.split('\t').collect() } else { lines.remove(0) };
    let cell = |line: &[&str], name: &str| match header.iter().position(|column| *column == name) {
        Some(place) => line[place].to_string(),
        None => String::new(),
    };
    let row = |line: &Vec<&str>| {
        let [first, second, label] = task.used().map(|name| cell(line, name));
        (first, second, label)
    };
    lines.iter().map(row).collect()
}

fn task(directory: &str) -> &'static Task {
    TASKS.iter().find(|task| task.glue.directory == directory).expect("a task")
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let once = files(0);
    assert!(once == files(0));
    assert!(
        once.iter().zip(files(1)).filter(|((name, _), _)| name != "tokenizer.json").all(|(one, other)| *one != other)
    );
}

#[test]
fn no_text_stands_in_two_files_and_every_word_is_known() {
    let tokenizer: serde_json::Value = serde_json::from_str(&FILES["tokenizer.json"]).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    assert!((200..500).contains(&vocab.len()), "{}", vocab.len());
    assert!(vocab.values().enumerate().all(|(place, id)| *id == place), "ids are in order");
    // A line of the corpus without its verdict.
    let bare = |line: &str| line[..=line.rfind(['.', '?']).unwrap()].to_string();
    let either = |line: String| match line.split_once('\t') {
        Some((first, second)) => vec![format!("{second}\t{first}"), line],
        None => vec![line],
    };
    let corpus: HashSet<String> = FILES["corpus.txt"].lines().map(bare).flat_map(either).collect();
    for task in &TASKS {
        let texts = |file| -> HashSet<String> {
            let joined = |(first, second, _): (String, String, String)| match second.is_empty() {
                true => first,
                false => format!("{first}\t{second}"),
            };
            rows(task, file).into_iter().map(joined).collect()
        };
        let (train, dev) = (texts("train.tsv"), texts(task.glue.dev));
        assert_eq!((train.len(), dev.len()), (2000, 500), "{}: no row twice", task.glue.directory);
        assert!(train.is_disjoint(&dev), "{}", task.glue.directory);
        assert!(corpus.is_disjoint(&dev) && corpus.is_disjoint(&train), "{}", task.glue.directory);
        assert!(train.union(&dev).flat_map(|text| text.split_whitespace()).all(|word| vocab.contains_key(word)));
    }
}

#[test]
fn classes_are_balanced() {
    for task in TASKS.iter().filter(|task| !task.glue.classes.is_empty()) {
        let mut counts = BTreeMap::<String, usize>::new();
        rows(task, "train.tsv").into_iter().for_each(|(_, _, label)| *counts.entry(label).or_default() += 1);
        assert_eq!(counts.len(), task.glue.classes.len());
        assert!(counts.values().all(|count| count.abs_diff(2000 / counts.len()) <= 1), "{counts:?}");
    }
    let scores: Vec<f64> = rows(task("STS-B"), "train.tsv").iter().map(|row| row.2.parse().unwrap()).collect();
    assert!(scores.iter().all(|score| (0.0..=5.0).contains(score)));
}

/// The meaning of a text as a set of facts, read off its words: synonyms made one, passives made active.
fn facts(text: &str) -> BTreeSet<String> {
    let mut text = format!(" {text} ");
    for [word, synonym] in QUALITIES {
        text = text.replace(&format!(" {synonym} "), &format!(" {word} "));
    }
    for [word, synonym] in ACTIONS.iter().map(|action| action.words) {
        text = text.replace(&format!(" {} ", past(synonym)), &format!(" {} ", past(word)));
    }
    let words: Vec<&str> = text.split_whitespace().filter(|word| !["the", ",", ".", "was"].contains(word)).collect();
    let done = |word: &&str| ACTIONS.iter().any(|action| past(action.words[0]) == **word);
    let verb = words.iter().position(done).expect("a verb");
    let passive = text.contains(" was ");
    let mut facts = BTreeSet::from([words[verb].to_string()]);
    let mut place = 0;
    while place < words.len() {
        match words[place] {
            "in" | "on" => {
                facts.insert(words[place + 1].to_string());
                place += 1;
            }
            "by" => {}
            word if place != verb => {
                let role = if (place < verb) != passive { "agent" } else { "patient" };
                facts.insert(format!("{role} {word}"));
            }
            _ => {}
        }
        place += 1;
    }
    facts
}

#[test]
fn paraphrases_tell_the_same_facts() {
    for (first, second, label) in rows(task("MRPC"), "train.tsv") {
        assert_eq!(facts(&first) == facts(&second), label == "1", "{first} {second}");
    }
}

#[test]
fn what_is_entailed_is_told_by_one_sentence_of_the_passage() {
    for (passage, claim, label) in rows(task("RTE"), "train.tsv") {
        // Kinds are not words of the passage, so only claims without them can be read off.
        if KINDS.iter().any(|(kind, _)| claim.contains(kind)) {
            continue;
        }
        let told =
            passage.trim_end_matches(" .").split(" . ").any(|sentence| facts(&claim).is_subset(&facts(sentence)));
        assert_eq!(told, label == "entailment", "{passage} {claim}");
    }
}

#[test]
fn scores_are_high_for_the_same_facts_only() {
    for (first, second, score) in rows(task("STS-B"), "train.tsv") {
        assert_eq!(facts(&first) == facts(&second), score == "5.000", "{first} {second}");
    }
}

/// Whether a claim holds of some things and what each of them did; nothing if it is about no thing among them.
fn holds(claim: &Claim, world: &[(Phrase, Vec<Event>)]) -> Option<bool> {
    let about: Vec<bool> = world
        .iter()
        .filter(|(thing, _)| thing.is_a(&claim.event.agent))
        .map(|(thing, deeds)| {
            let deed = Event { agent: thing.clone(), ..claim.event.clone() };
            deeds.iter().any(|done| done.implies(&deed))
        })
        .collect();
    (!about.is_empty()).then(|| match claim.quantity {
        Quantity::Every => about.iter().all(|did| *did),
        Quantity::Some => about.iter().any(|did| *did),
        Quantity::No => !about.iter().any(|did| *did),
    })
}

#[test]
fn inference_agrees_with_every_world() {
    let mut random = Random::new(3, "worlds");
    for _ in 0..400 {
        let event = Event::draw(&mut random);
        let (premise, hypothesis) = (Claim::draw(&mut random, &event), Claim::draw(&mut random, &event));
        let mut seen = [false; 2];
        for _ in 0..1000 {
            let mut thing = |agent: &Phrase| {
                let fill = |known: Option<usize>, random: &mut Random| known.or(Some(random.below(4)));
                let thing = Phrase {
                    member: fill(agent.member, &mut random),
                    quality: fill(agent.quality, &mut random),
                    ..*agent
                };
                let mut deeds = Vec::new();
                for claim in [&premise, &hypothesis] {
                    if chance(&mut random, 0.4) {
                        deeds.push(Event { agent: thing.clone(), ..claim.event.clone() });
                    }
                }
                (thing, deeds)
            };
            let agents = [&premise.event.agent, &hypothesis.event.agent];
            let mut world: Vec<_> = (0..3).map(|place| thing(agents[place % 2])).collect();
            world.truncate(1 + random.below(3));
            if let (Some(true), Some(follows)) = (holds(&premise, &world), holds(&hypothesis, &world)) {
                seen[usize::from(follows)] = true;
            }
        }
        let found = match seen {
            [false, true] => 0,
            [true, false] => 2,
            _ => 1,
        };
        assert_eq!(premise.relation(&hypothesis), found, "{premise:?} {hypothesis:?}");
    }
}

/// Accuracy on the development set of the words alone, by naive Bayes.
fn bag_of_words(task: &Task) -> f64 {
    let words = |(first, second, _): &(String, String, String)| -> Vec<String> {
        let first = first.split(' ').map(|word| format!("1 {word}"));
        first.chain(second.split(' ').map(|word| format!("2 {word}"))).collect()
    };
    let mut counts = HashMap::<(String, String), f64>::new();
    let (train, dev) = (rows(task, "train.tsv"), rows(task, task.glue.dev));
    for row in &train {
        words(row).into_iter().for_each(|word| *counts.entry((row.2.clone(), word)).or_default() += 1.0);
    }
    let score = |row: &(String, String, String), label: &str| -> f64 {
        words(row).into_iter().map(|word| (counts.get(&(label.to_string(), word)).unwrap_or(&0.0) + 1.0).ln()).sum()
    };
    let right = dev.iter().filter(|row| task.glue.classes.iter().all(|label| score(row, label) <= score(row, &row.2)));
    right.count() as f64 / dev.len() as f64
}

#[test]
fn words_alone_do_not_solve_what_needs_structure() {
    for (directory, most) in
        [("CoLA", 0.65), ("SST-2", 0.75), ("MRPC", 0.6), ("QQP", 0.62), ("QNLI", 0.7), ("RTE", 0.6), ("MNLI", 0.75)]
    {
        let accuracy = bag_of_words(task(directory));
        assert!(accuracy <= most, "{directory}: {accuracy}");
    }
}
