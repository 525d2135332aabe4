//! A small English with meanings: things and their kinds, events, and the sentences that tell and ask of them.

use std::ops::Range;

use peft_core::random::Random;

/// Kinds of things and their members. Plurals are regular and no word starts with a vowel, so that "a" always fits.
pub static KINDS: [(&str, [&str; 4]); 8] = [
    ("worker", ["doctor", "teacher", "farmer", "baker"]),
    ("relative", ["cousin", "brother", "sister", "nephew"]),
    ("bird", ["robin", "sparrow", "hawk", "crow"]),
    ("beast", ["horse", "goat", "lion", "tiger"]),
    ("fruit", ["pear", "plum", "lemon", "melon"]),
    ("vehicle", ["car", "truck", "van", "tram"]),
    ("tool", ["hammer", "saw", "drill", "spade"]),
    ("toy", ["ball", "doll", "kite", "puppet"]),
];
/// The kinds that act.
pub const ANIMATE: Range<usize> = 0..4;
const PEOPLE: Range<usize> = 0..2;

/// An action: two words that mean the same, who does it, and to what.
pub struct Action {
    /// Synonyms, regular verbs.
    pub words: [&'static str; 2],
    /// The kinds that do it.
    pub agents: Range<usize>,
    /// The kinds it is done to.
    pub patients: Range<usize>,
}

const fn action(first: &'static str, second: &'static str, agents: Range<usize>, patients: Range<usize>) -> Action {
    Action { words: [first, second], agents, patients }
}

/// All actions. Those with the same agents and patients stand together.
pub static ACTIONS: [Action; 12] = [
    action("chase", "pursue", ANIMATE, ANIMATE),
    action("follow", "trail", ANIMATE, ANIMATE),
    action("help", "support", ANIMATE, ANIMATE),
    action("greet", "welcome", ANIMATE, ANIMATE),
    action("scare", "frighten", ANIMATE, ANIMATE),
    action("attack", "assault", ANIMATE, ANIMATE),
    action("devour", "consume", ANIMATE, 4..5),
    action("taste", "sample", ANIMATE, 4..5),
    action("repair", "mend", PEOPLE, 5..8),
    action("move", "shift", PEOPLE, 5..8),
    action("collect", "gather", PEOPLE, 5..8),
    action("paint", "colour", PEOPLE, 5..8),
];

/// Qualities, two words each; the quality beside one (0 and 1, 2 and 3, ..) is its opposite.
pub static QUALITIES: [[&str; 2]; 8] = [
    ["big", "large"],
    ["small", "little"],
    ["quick", "fast"],
    ["slow", "sluggish"],
    ["pretty", "handsome"],
    ["ugly", "hideous"],
    ["clean", "spotless"],
    ["dirty", "filthy"],
];
/// Where something happens.
pub static PLACES: [&str; 8] = ["park", "garden", "forest", "market", "kitchen", "barn", "school", "street"];
/// When something happens.
pub static DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// One of some items.
pub fn pick<T: Copy>(random: &mut Random, items: &[T]) -> T {
    items[random.below(items.len())]
}

/// A number of a range.
pub fn within(random: &mut Random, range: &Range<usize>) -> usize {
    range.start + random.below(range.len())
}

/// Whether something of this probability happens.
pub fn chance(random: &mut Random, probability: f64) -> bool {
    random.unit() < probability
}

/// The past form (and participle) of a verb.
pub fn past(verb: &str) -> String {
    format!("{verb}{}", if verb.ends_with('e') { "d" } else { "ed" })
}

/// The present form of a verb that agrees with a subject.
pub fn present(verb: &str, plural: bool) -> String {
    format!("{verb}{}", if plural { "" } else { "s" })
}

/// A description of a thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrase {
    /// Its kind.
    pub kind: usize,
    /// Which member of the kind, or any.
    pub member: Option<usize>,
    /// Its quality, if one is said.
    pub quality: Option<usize>,
}

impl Phrase {
    /// A member of one of some kinds, sometimes with a quality.
    pub fn draw(random: &mut Random, kinds: &Range<usize>) -> Self {
        let quality = chance(random, 0.2).then(|| random.below(QUALITIES.len()));
        Phrase { kind: within(random, kinds), member: Some(random.below(4)), quality }
    }

    /// Whether all that this describes is described by `other` too.
    pub fn is_a(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (other.member.is_none() || other.member == self.member)
            && (other.quality.is_none() || other.quality == self.quality)
    }

    /// A description that fits all that this fits, and usually more.
    pub fn wider(&self, random: &mut Random) -> Self {
        let member = self.member.filter(|_| chance(random, 0.5));
        Phrase { member, quality: self.quality.filter(|_| chance(random, 0.5)), ..self.clone() }
    }

    /// The words after the article.
    pub fn words(&self, random: &mut Random, plural: bool) -> String {
        let (kind, members) = &KINDS[self.kind];
        let noun = self.member.map_or(*kind, |member| members[member]);
        let quality = self.quality.map_or(String::new(), |quality| format!("{} ", pick(random, &QUALITIES[quality])));
        format!("{quality}{noun}{}", if plural { "s" } else { "" })
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who did it.
    pub agent: Phrase,
    /// What was done, of [`ACTIONS`].
    pub action: usize,
    /// To whom or what.
    pub patient: Phrase,
    /// Where, of [`PLACES`].
    pub place: Option<usize>,
    /// When, of [`DAYS`].
    pub day: Option<usize>,
}

/// A part of an event that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Who did it.
    Agent,
    /// To whom it was done.
    Patient,
    /// Where it happened.
    Place,
    /// When it happened.
    Day,
}

impl Part {
    /// The word that asks for it.
    pub fn word(self) -> &'static str {
        match self {
            Part::Agent => "who",
            Part::Patient => "whom",
            Part::Place => "where",
            Part::Day => "when",
        }
    }
}

impl Event {
    /// An event that makes sense.
    pub fn draw(random: &mut Random) -> Self {
        let action = random.below(ACTIONS.len());
        let agent = Phrase::draw(random, &ACTIONS[action].agents);
        let patient = loop {
            let patient = Phrase::draw(random, &ACTIONS[action].patients);
            if (patient.kind, patient.member) != (agent.kind, agent.member) {
                break patient;
            }
        };
        let place = chance(random, 0.35).then(|| random.below(PLACES.len()));
        Event { agent, action, patient, place, day: chance(random, 0.35).then(|| random.below(DAYS.len())) }
    }

    /// The event with agent and patient in each other's place, if both can act.
    pub fn reversed(&self) -> Option<Self> {
        let acts = ANIMATE.contains(&self.patient.kind);
        acts.then(|| Event { agent: self.patient.clone(), patient: self.agent.clone(), ..self.clone() })
    }

    /// Another event: one part of this one changed, often more, a quarter of the time who did it to whom.
    pub fn altered(&self, random: &mut Random) -> Self {
        let mut other = self.clone();
        while other == *self || chance(random, 0.5) {
            let fresh = Event::draw(random);
            let opposite = |phrase: &mut Phrase| phrase.quality = phrase.quality.map(|quality| quality ^ 1);
            match random.below(8) {
                0 | 1 => other = other.reversed().unwrap_or(other),
                2 if ACTIONS[fresh.action].patients == ACTIONS[self.action].patients => other.action = fresh.action,
                3 => other.agent.member = fresh.agent.member,
                4 => other.patient.member = fresh.agent.member,
                5 => [&mut other.agent, &mut other.patient].into_iter().for_each(opposite),
                6 => other.place = self.place.map(|_| random.below(PLACES.len())),
                _ => other.day = self.day.map(|_| random.below(DAYS.len())),
            }
        }
        other
    }

    /// The word that names a part of the event.
    pub fn part(&self, part: Part) -> &'static str {
        let noun = |phrase: &Phrase| phrase.member.map_or(KINDS[phrase.kind].0, |member| KINDS[phrase.kind].1[member]);
        let word = match part {
            Part::Agent => Some(noun(&self.agent)),
            Part::Patient => Some(noun(&self.patient)),
            Part::Place => self.place.map(|place| PLACES[place]),
            Part::Day => self.day.map(|day| DAYS[day]),
        };
        word.unwrap_or("unknown")
    }

    /// Whether this event having happened implies that `other` did.
    pub fn implies(&self, other: &Self) -> bool {
        let part = |mine: Option<usize>, theirs: Option<usize>| theirs.is_none() || theirs == mine;
        self.agent.is_a(&other.agent)
            && self.action == other.action
            && self.patient.is_a(&other.patient)
            && part(self.place, other.place)
            && part(self.day, other.day)
    }

    /// The word of this event that corrects a false account of it: for the first part that does not follow from this.
    pub fn correction(&self, account: &Self) -> Option<String> {
        let named = |mine: &Phrase, theirs: &Phrase| match mine.quality {
            _ if mine.is_a(theirs) => None,
            Some(quality) if Some(quality) != theirs.quality && theirs.quality.is_some() => Some(QUALITIES[quality][0]),
            _ => mine.member.map(|member| KINDS[mine.kind].1[member]),
        };
        let part = |mine: Option<usize>, theirs: Option<usize>, words: &[&'static str]| match (mine, theirs) {
            (Some(mine), Some(theirs)) if mine != theirs => Some(words[mine]),
            (None, Some(_)) => Some("unknown"),
            _ => None,
        };
        let word = named(&self.agent, &account.agent)
            .or((self.action != account.action).then_some(ACTIONS[self.action].words[0]))
            .or(named(&self.patient, &account.patient))
            .or(part(self.place, account.place, &PLACES))
            .or(part(self.day, account.day, &DAYS))?;
        Some(word.to_string())
    }

    /// A less definite account of the same event.
    pub fn wider(&self, random: &mut Random) -> Self {
        Event {
            agent: self.agent.wider(random),
            action: self.action,
            patient: self.patient.wider(random),
            place: self.place.filter(|_| chance(random, 0.5)),
            day: self.day.filter(|_| chance(random, 0.5)),
        }
    }

    /// The event in one of its many wordings: synonyms, active or passive, time and place before or after.
    pub fn tell(&self, random: &mut Random) -> String {
        let agent = format!("the {}", self.agent.words(random, false));
        let patient = format!("the {}", self.patient.words(random, false));
        format!("{} .", self.clause(random, &agent, &patient))
    }

    /// A question for one part of the event, in one of its wordings.
    pub fn ask(&self, random: &mut Random, part: Part) -> String {
        let words = |phrase: &Phrase, random: &mut Random| format!("the {}", phrase.words(random, false));
        let agent = words(&self.agent, random);
        let patient = words(&self.patient, random);
        let verb = pick(random, &ACTIONS[self.action].words);
        let asked = match part {
            Part::Agent => return format!("{} ?", self.clause(random, "who", &patient)),
            Part::Patient if ANIMATE.contains(&self.patient.kind) => "who",
            Part::Patient => "what",
            Part::Place => pick(random, &["where", "in which place"]),
            Part::Day => pick(random, &["when", "on which day"]),
        };
        let rest = Event { place: self.place.filter(|_| part != Part::Place), ..self.clone() };
        let rest = Event { day: self.day.filter(|_| part != Part::Day), ..rest }.adjuncts(random).concat();
        match (part, chance(random, 0.5)) {
            (Part::Patient, true) => format!("{asked} did {agent} {verb}{rest} ?"),
            (Part::Patient, false) => format!("{asked} was {} by {agent}{rest} ?", past(verb)),
            (_, true) => format!("{asked} did {agent} {verb} {patient}{rest} ?"),
            (_, false) => format!("{asked} was {patient} {} by {agent}{rest} ?", past(verb)),
        }
    }

    fn clause(&self, random: &mut Random, agent: &str, patient: &str) -> String {
        let verb = past(pick(random, &ACTIONS[self.action].words));
        let core = match (chance(random, 0.5), agent) {
            (true, "who") => format!("by whom was {patient} {verb}"),
            (true, agent) => format!("{patient} was {verb} by {agent}"),
            (false, agent) => format!("{agent} {verb} {patient}"),
        };
        let mut adjuncts = self.adjuncts(random);
        let front = if agent != "who" && chance(random, 0.3) { adjuncts.pop() } else { None };
        match front {
            Some(front) => format!("{} , {core}{}", front.trim_start(), adjuncts.concat()),
            None => format!("{core}{}", adjuncts.concat()),
        }
    }

    /// Place and day in either order, each with a blank before it.
    pub fn adjuncts(&self, random: &mut Random) -> Vec<String> {
        let place = self.place.map(|place| format!(" in the {}", PLACES[place]));
        let day = self.day.map(|day| format!(" on {}", DAYS[day]));
        let pair = if chance(random, 0.5) { [place, day] } else { [day, place] };
        pair.into_iter().flatten().collect()
    }
}
