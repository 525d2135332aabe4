//! The subjects of [`lore`](super::lore).

/// What can be told of a thing: in two wordings, with the thing for `{t}` and one of the values for `{v}`. The thing comes first:
/// a causal model learns from the other order nothing that answers a question.
pub(super) struct Relation {
    pub(super) told: [&'static str; 2],
    pub(super) asked: &'static str,
    pub(super) values: [&'static str; 8],
}

/// The subjects and what is told of their things.
pub(super) static SUBJECTS: [(&str, [Relation; 4]); 4] = [
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
