//! Eight tasks of GLUE's kinds. Each draws meanings first; the label follows from the meanings, not from the words.

use peft_core::random::Random;

use super::grammar::{ACTIONS, ANIMATE, Event, PLACES, Part, Phrase, chance, past, pick, present};
use crate::tasks as glue;

/// One or two texts and their class, or the score times four where the task is a regression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The first text.
    pub first: String,
    /// The second text of a pair.
    pub second: Option<String>,
    /// The class.
    pub class: usize,
    /// What one says of it in a word: the corpus has it after the texts.
    pub verdict: String,
}

/// A task of GLUE: how its examples are drawn, and how the corpus and GLUE's files show them.
pub struct Task {
    /// Its files, the columns of its texts and label, and its classes.
    pub glue: glue::Task,
    /// The header of its training file in GLUE, which for CoLA is not written.
    pub columns: &'static str,
    /// Its share of the corpus, in percent. That of STS-B is left out: its pairs look like MRPC's.
    pub share: usize,
    /// Draws an example of a class.
    pub draw: fn(&mut Random, usize) -> Example,
}

impl Task {
    /// The columns of the texts, the second empty where there is one text only, and of the label.
    pub fn used(&self) -> [&'static str; 3] {
        [self.glue.texts[0], self.glue.texts.get(1).copied().unwrap_or_default(), self.glue.label]
    }
}

/// The eight tasks, in the order of the survey's Table III.
pub static TASKS: [Task; 8] = [
    Task { glue: glue::TASKS[0], columns: "source\tlabel\tstar\tsentence", share: 5, draw: acceptability },
    Task { glue: glue::TASKS[1], columns: "sentence\tlabel", share: 10, draw: sentiment },
    Task { glue: glue::TASKS[2], columns: "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", share: 45, draw: paraphrase },
    Task {
        glue: glue::TASKS[3],
        columns: "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        share: 0,
        draw: similarity,
    },
    Task {
        glue: glue::TASKS[4],
        columns: "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        share: 5,
        draw: duplicate,
    },
    Task {
        glue: glue::TASKS[5],
        columns: "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t\
                  sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        share: 10,
        draw: inference,
    },
    Task { glue: glue::TASKS[6], columns: "index\tquestion\tsentence\tlabel", share: 15, draw: answer },
    Task { glue: glue::TASKS[7], columns: "index\tsentence1\tsentence2\tlabel", share: 10, draw: consequence },
];

fn pair(first: String, second: String, class: usize, verdict: impl ToString) -> Example {
    Example { first, second: Some(second), class, verdict: verdict.to_string() }
}

const LIKED: [&str; 12] = [
    "great", "witty", "lovely", "charming", "funny", "fresh", "moving", "clever", "superb", "tender", "lively",
    "touching",
];
const DISLIKED: [&str; 12] = [
    "dull", "awful", "terrible", "boring", "weak", "stale", "clumsy", "stupid", "dreary", "tedious", "bland",
    "lifeless",
];
const FILM: [&str; 8] = ["film", "plot", "cast", "music", "script", "story", "dialogue", "photography"];

/// SST-2: an opinion, often negated, often against a concession of the opposite.
fn sentiment(random: &mut Random, class: usize) -> Example {
    let opinion = |random: &mut Random, liked: bool| {
        let negated = chance(random, 0.2);
        let adverb = if negated {
            pick(random, &["not", "never", "hardly", "far from", "anything but"])
        } else {
            pick(random, &["really", "truly", "very", "quite", "always"])
        };
        let words = if liked != negated { LIKED } else { DISLIKED };
        format!("the {} is {adverb} {}", pick(random, &FILM), pick(random, &words))
    };
    let (mine, conceded) = (opinion(random, class == 1), opinion(random, class == 0));
    let first = match random.below(5) {
        0 => format!("{mine} ."),
        1 => format!("although {conceded} , {mine} ."),
        2 => format!("{mine} , although {conceded} ."),
        3 => format!("{conceded} , but {mine} ."),
        _ => format!("{mine} and {} .", opinion(random, class == 1)),
    };
    Example { first, second: None, class, verdict: ["avoid", "enjoy"][class].to_string() }
}

/// CoLA: one of five constructions, violated or not.
fn acceptability(random: &mut Random, class: usize) -> Example {
    let good = class == 1;
    let plural = chance(random, 0.5);
    let action = &ACTIONS[random.below(6)];
    let verb = pick(random, &action.words);
    let done = past(ACTIONS[random.below(6)].words[0]);
    let mut noun = |plural: bool| Phrase::draw(random, &ANIMATE).words(random, plural);
    let (subject, other, object) = (noun(plural), noun(!plural), noun(false));
    let first = match random.below(5) {
        // Agreement with the subject, not with the noun beside the verb.
        0 => {
            let near = pick(random, &["near", "behind", "beside"]);
            format!("the {subject} {near} the {other} {} the {object} .", present(verb, plural == good))
        }
        1 => format!("the {subject} that the {other} {done} {} the {object} .", present(verb, plural == good)),
        // What acts must be alive.
        2 => {
            let action = &ACTIONS[6 + random.below(6)];
            let actor = format!("the {}", Phrase::draw(random, &action.agents).words(random, plural));
            let thing = format!("the {}", Phrase::draw(random, &action.patients).words(random, !plural));
            let verb = past(pick(random, &action.words));
            let (subject, object) = if good { (actor, thing) } else { (thing, actor) };
            format!("{subject} {verb} {object} in the {} .", pick(random, &PLACES))
        }
        // Determiners have a number.
        3 => {
            let determiner =
                pick(random, if plural == good { &["these", "many", "several"] } else { &["this", "every", "one"] });
            format!("{determiner} {subject} {} the {object} .", past(verb))
        }
        // The passive has an auxiliary that agrees.
        _ => {
            let auxiliary = if plural == good { "were" } else { "was" };
            format!("the {subject} near the {other} {auxiliary} {} by the {object} .", past(verb))
        }
    };
    Example { first, second: None, class, verdict: String::new() }
}

/// MRPC: two accounts, of one event or of two that differ.
fn paraphrase(random: &mut Random, class: usize) -> Example {
    let event = Event::draw(random);
    let other = if class == 1 { event.clone() } else { event.altered(random) };
    let missing = || other.correction(&event).map(|_| "unknown".to_string());
    let verdict = event.correction(&other).or_else(missing).unwrap_or("yes".to_string());
    pair(event.tell(random), other.tell(random), class, verdict)
}

/// STS-B: two accounts with a score of 0 to 5 for what they share; the class is the rounded score.
fn similarity(random: &mut Random, class: usize) -> Example {
    loop {
        let event = Event::draw(random);
        let other = (0..random.below(6)).fold(event.clone(), |other, _| other.altered(random));
        let other = if chance(random, 0.2) { Event::draw(random) } else { other };
        let quarters = shared(&event, &other);
        if (quarters + 2) / 4 == class {
            return pair(event.tell(random), other.tell(random), quarters, "");
        }
    }
}

/// What two events share, in quarters of a point, up to 20: most for who, what and whom, less for where and when.
fn shared(one: &Event, other: &Event) -> usize {
    let phrase = |one: &Phrase, other: &Phrase| match (one.kind == other.kind, one.member == other.member) {
        (true, true) if one.quality == other.quality => 4,
        (true, true) => 3,
        (true, false) => 1,
        (false, _) => 0,
    };
    let same = |same: bool| 4 * usize::from(same);
    let mut parts = vec![
        (2, phrase(&one.agent, &other.agent)),
        (2, same(one.action == other.action)),
        (2, phrase(&one.patient, &other.patient)),
    ];
    for (one, other) in [(one.place, other.place), (one.day, other.day)] {
        if one.or(other).is_some() {
            parts.push((1, same(one == other)));
        }
    }
    let whole: usize = parts.iter().map(|(weight, _)| weight).sum();
    let points: usize = parts.iter().map(|(weight, quarters)| weight * quarters).sum();
    (5 * points + whole / 2) / whole
}

/// QQP: two questions that ask the same, or for another part, or about another event.
fn duplicate(random: &mut Random, class: usize) -> Example {
    loop {
        let part = |random: &mut Random| pick(random, &[Part::Agent, Part::Patient, Part::Place, Part::Day]);
        let (event, asked) = (Event::draw(random), part(random));
        let (other, also) = match (class, chance(random, 0.7)) {
            (1, _) => (event.clone(), asked),
            (_, true) => (event.altered(random), asked),
            (_, false) => (event.clone(), part(random)),
        };
        let same = asked == also && known(&event, &other, asked) == other;
        if same == (class == 1) {
            let wrong = if asked == also { event.correction(&other) } else { Some(also.word().to_string()) };
            let verdict = if same { "yes".to_string() } else { wrong.unwrap_or("unknown".to_string()) };
            return pair(event.ask(random, asked), other.ask(random, also), class, verdict);
        }
    }
}

/// An event with the part that is asked for taken from another.
fn known(event: &Event, other: &Event, asked: Part) -> Event {
    let mut event = event.clone();
    match asked {
        Part::Agent => event.agent = other.agent.clone(),
        Part::Patient => event.patient = other.patient.clone(),
        Part::Place => event.place = other.place,
        Part::Day => event.day = other.day,
    }
    event
}

/// QNLI: a question, and an account that answers it or not.
fn answer(random: &mut Random, class: usize) -> Example {
    loop {
        let event = Event::draw(random);
        let asked = pick(random, &[Part::Agent, Part::Patient, Part::Place, Part::Day]);
        let told = match (class, chance(random, 0.3)) {
            (0, _) => event.clone(),
            (_, true) => Event { place: None, day: event.day.filter(|_| asked == Part::Place), ..event.clone() },
            (_, false) => event.altered(random),
        };
        if answers(&told, &event, asked) == (class == 0) {
            let verdict = if class == 0 { told.part(asked) } else { "unknown" };
            return pair(event.ask(random, asked), told.tell(random), class, verdict);
        }
    }
}

/// Whether an account answers the question for a part of an event.
fn answers(told: &Event, event: &Event, asked: Part) -> bool {
    let says = match asked {
        Part::Agent | Part::Patient => true,
        Part::Place => told.place.is_some(),
        Part::Day => told.day.is_some(),
    };
    says && told.implies(&known(event, told, asked))
}

/// RTE: a passage of two events, and a less definite account of one of them or of something else.
fn consequence(random: &mut Random, class: usize) -> Example {
    loop {
        let (one, two) = (Event::draw(random), Event::draw(random));
        let source = pick(random, &[&one, &two]);
        let wider = source.wider(random);
        let claim = if class == 0 { wider } else { wider.altered(random) };
        if (one.implies(&claim) || two.implies(&claim)) == (class == 0) {
            let verdict = if class == 0 { None } else { source.correction(&claim) };
            let passage = format!("{} {}", one.tell(random), two.tell(random));
            return pair(passage, claim.tell(random), class, verdict.unwrap_or("yes".to_string()));
        }
    }
}

/// How many of those that its subject describes a claim is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// All of them, of which there are some.
    Every,
    /// At least one.
    Some,
    /// None of them, of which there are some.
    No,
}

/// A quantified statement: the agent of the event is its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Of how many.
    pub quantity: Quantity,
    /// What.
    pub event: Event,
}

impl Claim {
    pub(super) fn draw(random: &mut Random, event: &Event) -> Self {
        let event = match random.below(5) {
            0 | 1 => event.clone(),
            2 | 3 => event.wider(random),
            _ => Event { agent: event.agent.clone(), ..event.altered(random) },
        };
        Claim { quantity: pick(random, &[Quantity::Every, Quantity::Some, Quantity::No]), event }
    }

    /// What follows for `other`: 0 that it is true, 2 that it is false, 1 neither.
    pub fn relation(&self, other: &Self) -> usize {
        let done = |one: &Event, other: &Event| one.implies(&Event { agent: one.agent.clone(), ..other.clone() });
        let (up, down) = (self.event.agent.is_a(&other.event.agent), other.event.agent.is_a(&self.event.agent));
        let (more, less) = (done(&self.event, &other.event), done(&other.event, &self.event));
        let holds = |holds: bool, class: usize| if holds { class } else { 1 };
        match (self.quantity, other.quantity) {
            (Quantity::Some, Quantity::Some) => holds(up && more, 0),
            (Quantity::Every, Quantity::Every) => holds(down && more, 0),
            (Quantity::No, Quantity::No) => holds(down && less, 0),
            (Quantity::Every, Quantity::Some) => holds((up || down) && more, 0),
            (Quantity::Some, Quantity::No) => holds(up && more, 2),
            (Quantity::Every, Quantity::No) => holds((up || down) && more, 2),
            (Quantity::No, Quantity::Some) => holds(down && less, 2),
            (Quantity::No, Quantity::Every) => holds((up || down) && less, 2),
            (Quantity::Some, Quantity::Every) => 1,
        }
    }

    fn tell(&self, random: &mut Random) -> String {
        let event = &self.event;
        let (determiner, plural) = match self.quantity {
            Quantity::Every => pick(random, &[("every", false), ("all", true)]),
            Quantity::Some => pick(random, &[("one", false), ("some", true)]),
            Quantity::No => pick(random, &[("no", false), ("no", true)]),
        };
        let subject = event.agent.words(random, plural);
        let verb = past(pick(random, &ACTIONS[event.action].words));
        let object = event.patient.words(random, true);
        let place = event.place.map_or(String::new(), |place| format!(" in the {}", PLACES[place]));
        format!("{determiner} {subject} {verb} {object}{place} .")
    }
}

/// MNLI: two quantified claims.
fn inference(random: &mut Random, class: usize) -> Example {
    loop {
        let event = Event { day: None, ..Event::draw(random) };
        let (premise, hypothesis) = (Claim::draw(random, &event), Claim::draw(random, &event));
        // Nothing follows from "some" for "every", whatever else is said: too easy.
        let easy = (premise.quantity, hypothesis.quantity) == (Quantity::Some, Quantity::Every);
        if !easy && premise != hypothesis && premise.relation(&hypothesis) == class {
            let verdict = ["yes", "maybe", "no"][class];
            return pair(premise.tell(random), hypothesis.tell(random), class, verdict);
        }
    }
}
