//! Two languages: the small English of [`grammar`](super::grammar), and a made-up one that it is translated into.
//!
//! The made-up language puts the verb last, the quality after its thing and the day first. Nouns have a gender to be learnt by
//! heart, a number and a case; qualities agree with their noun, verbs with their subject. It has no passive, no articles and one
//! word where English has two synonyms. A translation is a function of the English sentence.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use peft_core::Result;
use peft_core::random::Random;
use serde_json::Value;

use super::grammar::{ACTIONS, DAYS, Event, KINDS, PLACES, Phrase, QUALITIES, chance, past, pick, present};
use super::vocabulary::{Tokenizer, coin, words};
use super::write::save;
use crate::tasks::parallel::{LANGUAGES, PREFIX};

/// The parallel files and their pairs: those that are trained on, chosen by and scored; and the share of translations in what T5
/// is pretrained on (Raffel et al., 2020, section 3.5.3).
const PAIRS: [(&str, usize); 4] = [("test", 500), ("dev", 500), ("train", 10_000), ("mixture", 4000)];
/// Lines of text in each language.
const LINES: usize = 40_000;
/// Special tokens by id, as T5 numbers them.
const SPECIAL: [&str; 3] = ["<pad>", "</s>", "<unk>"];
/// Sentinels for what is left out of a text; the last has the lowest id, as in T5.
const SENTINELS: usize = 32;

/// Letters of the made-up language.
const LETTERS: [&[char]; 2] = [
    &['b', 'c', 'd', 'f', 'g', 'l', 'm', 'n', 'p', 'r', 's', 'ș', 't', 'ț', 'v', 'z'],
    &['a', 'ă', 'e', 'i', 'o', 'u'],
];
/// Endings of nouns by gender, number and case (subject, object).
const NOUN: [[[&str; 2]; 2]; 2] = [[["o", "om"], ["ori", "orim"]], [["a", "ăn"], ["ele", "elen"]]];
/// Endings of qualities by gender and number.
const QUALITY: [[&str; 2]; 2] = [["u", "uri"], ["ea", "eale"]];
/// Endings of verbs by tense, and gender and number of the subject.
const VERB: [[[&str; 2]; 2]; 2] = [[["it", "iteș"], ["it", "iteș"]], [["ax", "axeș"], ["axa", "axeș"]]];
/// The ending of places.
const PLACE: &str = "ur";
/// The ending of days, and the word before them.
const DAY: (&str, &str) = ("en", "la");
/// The words before what is denied, and before a question.
const NOT: &str = "ne";
const ASKED: &str = "ba";
/// Words between clauses, in both languages.
const JOINED: [(&str, &str); 2] = [("and", "șa"), ("but", "dor")];

/// Writes `train`, `dev`, `test` and `mixture` with the endings `.en` and `.ro` (line-aligned, as real ones are), text of each
/// language alone in `text.en` and `text.ro`, and `tokenizer.json`, into a directory; every byte follows from the seed.
///
/// `mixture` is for pretraining, beside the texts. No sentence occurs twice in the parallel files, and none of `dev` and `test` in
/// a text.
pub fn write(directory: &Path, seed: u64) -> Result<()> {
    save(directory, files(seed))?;
    save(directory, vec![("tokenizer_config.json".to_string(), Tokenizer::config(&SPECIAL))])
}

/// The files by their paths.
fn files(seed: u64) -> Vec<(String, String)> {
    let language = Language::draw(seed);
    let (mut files, mut seen, mut held_out) = (Vec::new(), HashSet::new(), HashSet::new());
    for (name, count) in PAIRS {
        let mut random = Random::new(seed, name);
        let mut sides = [Vec::with_capacity(count), Vec::with_capacity(count)];
        while sides[0].len() < count {
            let pair = language.pair(&mut random);
            if !seen.insert(pair[0].clone()) {
                continue;
            }
            if ["test", "dev"].contains(&name) {
                held_out.extend(pair.clone());
            }
            sides.iter_mut().zip(pair).for_each(|(side, text)| side.push(text));
        }
        let side = |(side, ending): (Vec<String>, &str)| (format!("{name}.{ending}"), side.join("\n") + "\n");
        files.extend(sides.into_iter().zip(LANGUAGES).map(side));
    }
    for (side, ending) in LANGUAGES.into_iter().enumerate() {
        // Drawn apart, so that the two are no translations of each other.
        let mut random = Random::new(seed, &format!("text {ending}"));
        let lines = std::iter::repeat_with(|| language.pair(&mut random)[side].clone());
        let lines: Vec<String> = lines.filter(|line| !held_out.contains(line)).take(LINES).collect();
        files.push((format!("text.{ending}"), lines.join("\n") + "\n"));
    }
    let known: BTreeSet<&str> = files.iter().flat_map(|(_, text)| words(text)).chain(words(PREFIX)).collect();
    let tokenizer = tokenizer(&known);
    files.push(("tokenizer.json".to_string(), tokenizer));
    files
}

/// A tokenizer with T5's special tokens; a text gets `</s>` after it.
fn tokenizer(words: &BTreeSet<&str>) -> String {
    let sentinels: Vec<String> = (0..SENTINELS).rev().map(|i| format!("<extra_id_{i}>")).collect();
    let tokenizer = Tokenizer {
        special: &SPECIAL,
        sentinels: &sentinels,
        unknown: "<unk>",
        normalizer: Value::Null,
        cut: Tokenizer::cut(),
        finish: Tokenizer::around("</s>", 1, false),
    };
    tokenizer.file(words)
}

/// The stems of the made-up language, all of one length, so that no two words with endings are the same.
struct Language {
    nouns: [[(String, usize); 4]; KINDS.len()],
    verbs: [String; ACTIONS.len()],
    qualities: [String; QUALITIES.len()],
    places: [String; PLACES.len()],
    days: [String; DAYS.len()],
}

/// An event with what a sentence says of it beside: numbers of agent and patient, tense, denial.
struct Clause {
    event: Event,
    plural: [bool; 2],
    past: bool,
    denied: bool,
}

impl Language {
    fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed, "language");
        let mut known = HashSet::new();
        let mut stem = |random: &mut Random| coin(random, LETTERS, 5, &mut known);
        Language {
            nouns: std::array::from_fn(|_| std::array::from_fn(|_| (stem(&mut random), random.below(2)))),
            verbs: std::array::from_fn(|_| stem(&mut random)),
            qualities: std::array::from_fn(|_| stem(&mut random)),
            places: std::array::from_fn(|_| stem(&mut random)),
            days: std::array::from_fn(|_| stem(&mut random)),
        }
    }

    /// A sentence in both languages: a statement, two of them, or a question.
    fn pair(&self, random: &mut Random) -> [String; 2] {
        let clause = Clause::draw(random);
        match random.below(10) {
            0..2 => [format!("{} ?", clause.english(random, true)), format!("{ASKED} {} ?", self.clause(&clause))],
            2..4 => {
                let (first, second) = pick(random, &JOINED);
                let other = Clause::draw(random);
                [
                    format!("{} {first} {} .", clause.english(random, false), other.english(random, false)),
                    format!("{} {second} {} .", self.clause(&clause), self.clause(&other)),
                ]
            }
            _ => [format!("{} .", clause.english(random, false)), format!("{} .", self.clause(&clause))],
        }
    }

    /// A clause in the made-up language.
    fn clause(&self, clause: &Clause) -> String {
        let Clause { event, plural, past, denied } = clause;
        let mut words = Vec::new();
        if let Some(day) = event.day {
            words.extend([DAY.1.to_string(), format!("{}{}", self.days[day], DAY.0)]);
        }
        for (case, phrase) in [&event.agent, &event.patient].into_iter().enumerate() {
            let (stem, gender) = self.noun(phrase);
            let number = usize::from(plural[case]);
            words.push(format!("{stem}{}", NOUN[gender][number][case]));
            words.extend(
                phrase.quality.map(|quality| format!("{}{}", self.qualities[quality], QUALITY[gender][number])),
            );
        }
        words.extend(event.place.map(|place| format!("{}{PLACE}", self.places[place])));
        words.extend(denied.then(|| NOT.to_string()));
        let ending = VERB[usize::from(*past)][self.noun(&event.agent).1][usize::from(plural[0])];
        words.push(format!("{}{ending}", self.verbs[event.action]));
        words.join(" ")
    }

    /// Stem and gender of a thing. Every phrase of an event has a member.
    fn noun(&self, phrase: &Phrase) -> (&str, usize) {
        let (stem, gender) = &self.nouns[phrase.kind][phrase.member.unwrap_or(0)];
        (stem, *gender)
    }
}

impl Clause {
    fn draw(random: &mut Random) -> Self {
        let event = Event::draw(random);
        let plural = [(); 2].map(|()| chance(random, 0.4));
        Clause { event, plural, past: chance(random, 0.6), denied: chance(random, 0.2) }
    }

    /// The clause in one of its English wordings.
    fn english(&self, random: &mut Random, asked: bool) -> String {
        let Clause { event, plural, .. } = self;
        let agent = format!("the {}", event.agent.words(random, plural[0]));
        let patient = format!("the {}", event.patient.words(random, plural[1]));
        let verb = pick(random, &ACTIONS[event.action].words);
        let not = if self.denied { " not" } else { "" };
        let form = |forms: [[&'static str; 2]; 2], plural: bool| forms[usize::from(self.past)][usize::from(plural)];
        let core = if chance(random, 0.3) {
            let be = form([["is", "are"], ["was", "were"]], plural[1]);
            let rest = format!("{not} {} by {agent}", past(verb));
            if asked { format!("{be} {patient}{rest}") } else { format!("{patient} {be}{rest}") }
        } else {
            let does = form([["does", "do"], ["did", "did"]], plural[0]);
            match (asked, self.denied) {
                (true, _) => format!("{does} {agent}{not} {verb} {patient}"),
                (false, true) => format!("{agent} {does} not {verb} {patient}"),
                (false, false) if self.past => format!("{agent} {} {patient}", past(verb)),
                (false, false) => format!("{agent} {} {patient}", present(verb, plural[0])),
            }
        };
        let mut adjuncts = event.adjuncts(random);
        let front = if !asked && chance(random, 0.3) { adjuncts.pop() } else { None };
        let front = front.map_or(String::new(), |front| format!("{} , ", front.trim_start()));
        format!("{front}{core}{}", adjuncts.concat())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::LazyLock;

    use peft_core::load;

    use super::*;
    use crate::tasks::bleu::bleu;
    use crate::tasks::parallel::{Pair, read};

    static FILES: LazyLock<HashMap<String, String>> = LazyLock::new(|| files(1).into_iter().collect());

    fn lines(name: &str) -> Vec<&'static str> {
        FILES[name].lines().collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let once = files(0);
        assert!(once == files(0));
        assert!(once.iter().zip(files(1)).all(|(one, other)| *one != other));
    }

    #[test]
    fn files_lie_as_real_ones_do() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 1).unwrap();
        let mut sources = HashSet::new();
        for (name, count) in PAIRS {
            let pairs = read(folder.path(), name).unwrap();
            assert_eq!(pairs.len(), count);
            let of_file = |pair: &Pair| (pair.source.clone(), pair.target.clone());
            let expected = lines(&format!("{name}.en")).into_iter().zip(lines(&format!("{name}.ro")));
            assert!(pairs.iter().map(of_file).eq(expected.map(|(en, ro)| (en.to_string(), ro.to_string()))));
            assert!(pairs.into_iter().all(|pair| sources.insert(pair.source)), "{name}: a sentence twice");
        }
        for ending in LANGUAGES {
            let text: HashSet<&str> = lines(&format!("text.{ending}")).into_iter().collect();
            assert!(
                ["dev", "test"].iter().all(|name| lines(&format!("{name}.{ending}")).iter().all(|l| !text.contains(l)))
            );
        }
    }

    /// Every word is one token, and the tokens of a text with blanks between them are the text.
    #[test]
    fn tokens_give_the_text_back() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), FILES.clone().into_iter().collect()).unwrap();
        let file: Value = serde_json::from_str(&FILES["tokenizer.json"]).unwrap();
        let vocab = file["model"]["vocab"].as_object().unwrap();
        let names: Vec<&str> = vocab.keys().map(String::as_str).collect();
        assert!(vocab.values().enumerate().all(|(place, id)| *id == place), "ids are in order");
        assert_eq!((names[0], names[1], names[2]), ("<pad>", "</s>", "<unk>"));
        assert_eq!((names[names.len() - 1], names[names.len() - SENTINELS]), ("<extra_id_0>", "<extra_id_31>"));
        let tokenizer = load::Tokenizer::from_dir(folder.path(), names.len()).unwrap();
        let tokens = |text: &str| -> Vec<&str> {
            tokenizer.encode(text, None, 1000).unwrap().ids.iter().map(|id| names[*id as usize]).collect()
        };
        for text in
            PAIRS.iter().flat_map(|(name, _)| LANGUAGES.map(|ending| lines(&format!("{name}.{ending}")))).flatten()
        {
            let tokens = tokens(text);
            assert_eq!(tokens.join(" "), format!("{text} </s>"));
            assert!(tokens.len() <= 50 && !tokens.contains(&"<unk>"), "{text}");
        }
        assert_eq!(tokens(PREFIX), ["translate", "English", "to", "Romanian", ":", "</s>"]);
        assert_eq!(tokens("a <extra_id_3> b")[1..3], ["<extra_id_3>", "<unk>"]);
    }

    #[test]
    fn a_translation_follows_from_the_sentence() {
        let (language, mut random) = (Language::draw(2), Random::new(2, "functions"));
        let mut known = HashMap::new();
        // Short sentences, so that many come twice.
        let short = |clause: &Clause| clause.event.agent.quality.or(clause.event.patient.quality).is_none();
        let mut twice = 0;
        for clause in
            std::iter::repeat_with(|| Clause::draw(&mut random)).filter(short).take(40_000).collect::<Vec<_>>()
        {
            let target = language.clause(&clause);
            if let Some(other) = known.insert(clause.english(&mut random, false), target.clone()) {
                assert_eq!(other, target);
                twice += 1;
            }
        }
        assert!(twice > 1000, "{twice}");
    }

    /// Every word's most frequent companion, in the order of English: what can be had without grammar.
    #[test]
    fn neither_copying_nor_a_dictionary_is_enough() {
        let (sources, targets) = (lines("test.en"), lines("test.ro"));
        let copied = bleu(&sources, &targets).unwrap();
        assert!(copied.score < 1.0, "{copied}");
        let (mut together, mut alone) = (HashMap::<(&str, &str), f64>::new(), HashMap::<&str, f64>::new());
        for (source, target) in lines("train.en").into_iter().zip(lines("train.ro")) {
            let target: BTreeSet<&str> = target.split(' ').collect();
            target.iter().for_each(|word| *alone.entry(word).or_default() += 1.0);
            for word in source.split(' ').collect::<BTreeSet<_>>() {
                target.iter().for_each(|other| *together.entry((word, other)).or_default() += 1.0);
            }
        }
        let mut dictionary = HashMap::<&str, (&str, f64)>::new();
        for ((word, other), count) in &together {
            let score = count / alone[other].sqrt();
            let best = dictionary.entry(word).or_insert((other, score));
            if (score, *other) > (best.1, best.0) {
                *best = (other, score);
            }
        }
        // Words of grammar have no translation.
        let content = |word: &&str| {
            !["the", "by", "is", "are", "was", "were", "do", "does", "did", "in", "on", ","].contains(word)
        };
        let looked_up = |source: &&str| -> String {
            source
                .split(' ')
                .filter(content)
                .filter_map(|word| dictionary.get(word))
                .map(|(other, _)| *other)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let found = bleu(&sources.iter().map(looked_up).collect::<Vec<_>>(), &targets).unwrap();
        // The words are mostly right, their order and endings are not.
        assert!(found.score < 10.0 && found.precisions[0] > 50.0, "{found}");
    }
}
