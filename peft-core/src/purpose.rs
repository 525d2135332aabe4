//! What a model is used for, and what transformers and PEFT call it.

use crate::Architecture;

/// What a model is used for. Each has a head of its own, see [`Head`](crate::Head).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A class or a value for a text.
    Texts,
    /// A class for each token.
    Tokens,
    /// The part of a text that answers a question.
    Answers,
    /// A word for each token: the next one, or that behind a mask.
    Words,
    /// The states themselves.
    States,
}

/// One use of one or more families.
struct Use {
    purpose: Purpose,
    families: &'static [&'static str],
    /// PEFT's `task_type`.
    task: &'static str,
    /// How transformers' classes end; the first is the one that is written.
    classes: &'static [&'static str],
}

/// All that is computed here. A family's classes and task types that do not stand here (multiple choice, T5 with a head for classes, LLaMA
/// and T5 for answers)
/// are refused by name, see [`Purpose::of_class`]. BERT and RoBERTa predict a word from both sides also where they are loaded
/// as causal models, as long as `is_decoder` is off.
const USES: [Use; 7] = [
    Use {
        purpose: Purpose::Texts,
        families: &["Bert", "Roberta", "Llama"],
        task: "SEQ_CLS",
        classes: &["ForSequenceClassification"],
    },
    Use {
        purpose: Purpose::Tokens,
        families: &["Bert", "Roberta", "Llama"],
        task: "TOKEN_CLS",
        classes: &["ForTokenClassification"],
    },
    Use {
        purpose: Purpose::Answers,
        families: &["Bert", "Roberta"],
        task: "QUESTION_ANS",
        classes: &["ForQuestionAnswering"],
    },
    Use {
        purpose: Purpose::Words,
        families: &["Bert", "Roberta"],
        task: "CAUSAL_LM",
        classes: &["ForMaskedLM", "ForPreTraining", "LMHeadModel", "ForCausalLM"],
    },
    Use { purpose: Purpose::Words, families: &["Llama"], task: "CAUSAL_LM", classes: &["ForCausalLM"] },
    Use {
        purpose: Purpose::Words,
        families: &["T5"],
        task: "SEQ_2_SEQ_LM",
        classes: &["ForConditionalGeneration", "WithLMHeadModel"],
    },
    Use {
        purpose: Purpose::States,
        families: &["Bert", "Roberta", "T5", "Llama"],
        task: "FEATURE_EXTRACTION",
        classes: &["Model"],
    },
];

/// What a class of transformers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassUse {
    /// This.
    Known(Purpose),
    /// Something that is not computed here for this family.
    Refused,
    /// No class of transformers for a task; a wrapper of someone's own.
    Unknown,
}

impl Purpose {
    /// All of them, in the order in which a checkpoint without `architectures` is asked for their heads.
    pub const ALL: [Purpose; 5] = [Purpose::Texts, Purpose::Words, Purpose::Tokens, Purpose::Answers, Purpose::States];

    /// That of a `task_type` of PEFT, if it is computed here for this family.
    pub fn of_task(task: &str, architecture: Architecture) -> Option<Self> {
        uses(architecture).find(|it| it.task == task).map(|it| it.purpose)
    }

    /// That of a class of transformers, by the end of its name.
    pub fn of_class(class: &str, architecture: Architecture) -> ClassUse {
        let ends = |it: &&Use| it.classes.iter().any(|end| class.ends_with(end));
        match uses(architecture).find(ends) {
            // T5's encoder alone.
            Some(_) if class.ends_with("EncoderModel") => ClassUse::Refused,
            Some(it) => ClassUse::Known(it.purpose),
            None if class.contains("For") => ClassUse::Refused,
            None => ClassUse::Unknown,
        }
    }

    /// What PEFT calls it, if the family has it.
    pub fn task(self, architecture: Architecture) -> Option<&'static str> {
        uses(architecture).find(|it| it.purpose == self).map(|it| it.task)
    }

    /// The class of transformers, if the family has one.
    pub fn class(self, architecture: Architecture) -> Option<String> {
        let end = uses(architecture).find(|it| it.purpose == self)?.classes[0];
        Some(format!("{}{end}", architecture.family().name))
    }

    /// The task types of a family.
    pub fn tasks(architecture: Architecture) -> String {
        uses(architecture).map(|it| it.task).collect::<Vec<_>>().join(", ")
    }

    /// The classes of a family.
    pub fn classes(architecture: Architecture) -> String {
        let class = |end: &&str| format!("{}{end}", architecture.family().name);
        uses(architecture).flat_map(|it| it.classes.iter().map(class)).collect::<Vec<_>>().join(", ")
    }
}

fn uses(architecture: Architecture) -> impl Iterator<Item = &'static Use> {
    USES.iter().filter(move |it| it.families.contains(&architecture.family().name))
}

#[cfg(test)]
mod tests {
    use super::ClassUse::{Known, Refused, Unknown};
    use super::Purpose::{self, Answers, States, Texts, Tokens, Words};
    use crate::Shape;

    #[test]
    fn task_types_and_classes_as_a_table() {
        let families =
            ["bert-tiny", "roberta-tiny", "t5-tiny", "llama-tiny"].map(|name| Shape::named(name).unwrap().architecture);
        for (task, expected) in [
            ("SEQ_CLS", [Some(Texts), Some(Texts), None, Some(Texts)]),
            ("TOKEN_CLS", [Some(Tokens), Some(Tokens), None, Some(Tokens)]),
            ("CAUSAL_LM", [Some(Words), Some(Words), None, Some(Words)]),
            ("SEQ_2_SEQ_LM", [None, None, Some(Words), None]),
            ("FEATURE_EXTRACTION", [Some(States); 4]),
            ("QUESTION_ANS", [Some(Answers), Some(Answers), None, None]),
            ("MULTIPLE_CHOICE", [None; 4]),
        ] {
            assert_eq!(families.map(|family| Purpose::of_task(task, family)), expected, "{task}");
        }
        for (end, expected) in [
            ("ForSequenceClassification", [Known(Texts), Known(Texts), Refused, Known(Texts)]),
            ("ForTokenClassification", [Known(Tokens), Known(Tokens), Refused, Known(Tokens)]),
            ("ForMaskedLM", [Known(Words), Known(Words), Refused, Refused]),
            ("ForPreTraining", [Known(Words), Known(Words), Refused, Refused]),
            ("ForCausalLM", [Known(Words), Known(Words), Refused, Known(Words)]),
            ("LMHeadModel", [Known(Words), Known(Words), Known(States), Known(States)]),
            ("WithLMHeadModel", [Known(Words), Known(Words), Known(Words), Known(States)]),
            ("ForConditionalGeneration", [Refused, Refused, Known(Words), Refused]),
            ("ForMultipleChoice", [Refused; 4]),
            ("ForQuestionAnswering", [Known(Answers), Known(Answers), Refused, Refused]),
            ("ForNextSentencePrediction", [Refused; 4]),
            ("EncoderModel", [Refused; 4]),
            ("Model", [Known(States); 4]),
            ("Wrapper", [Unknown; 4]),
        ] {
            let of = |family: crate::Architecture| Purpose::of_class(&format!("{}{end}", family.family().name), family);
            assert_eq!(families.map(of), expected, "{end}");
        }
        for family in families {
            for purpose in Purpose::ALL {
                let Some(class) = purpose.class(family) else { continue };
                assert_eq!(Purpose::of_class(&class, family), Known(purpose));
                assert_eq!(Purpose::of_task(purpose.task(family).unwrap(), family), Some(purpose));
            }
        }
    }
}
