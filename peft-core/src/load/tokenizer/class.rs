//! The tokenizer classes of transformers, and what each of them makes of a vocabulary.
//!
//! A class builds its steps anew from the vocabulary in `tokenizer.json` and from its settings, so that these overrule the steps in
//! that file. [`Class::Plain`] takes the file as it stands.

/// How a tokenizer is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Words and their pieces.
    Bert,
    /// Merges of bytes, between `<s>` and `</s>`.
    Roberta,
    /// Merges of bytes.
    Gpt2,
    /// The likeliest pieces, `</s>` behind them.
    T5,
    /// Merges of characters, bytes for the rest.
    Llama,
    /// As `tokenizer.json` says.
    Plain,
}

/// The names of each class in transformers 5.23, without `Fast` at the end.
pub(super) const NAMES: [(&str, Class); 14] = [
    ("BertTokenizer", Class::Bert),
    ("ConvBertTokenizer", Class::Bert),
    ("LxmertTokenizer", Class::Bert),
    ("MobileBertTokenizer", Class::Bert),
    ("SqueezeBertTokenizer", Class::Bert),
    ("RobertaTokenizer", Class::Roberta),
    ("BartTokenizer", Class::Roberta),
    ("LEDTokenizer", Class::Roberta),
    ("MvpTokenizer", Class::Roberta),
    ("GPT2Tokenizer", Class::Gpt2),
    ("T5Tokenizer", Class::T5),
    ("LlamaTokenizer", Class::Llama),
    ("PreTrainedTokenizer", Class::Plain),
    ("TokenizersBackend", Class::Plain),
];

impl Class {
    /// The kind of the model in its `tokenizer.json`; none, if it may be any.
    pub(super) fn kind(self) -> Option<&'static str> {
        match self {
            Class::Bert => Some("WordPiece"),
            Class::Roberta | Class::Gpt2 | Class::Llama => Some("BPE"),
            Class::T5 => Some("Unigram"),
            Class::Plain => None,
        }
    }

    /// What special tokens are where nothing is said.
    pub(super) fn defaults(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Class::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Class::Roberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Class::Gpt2 => {
                &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")]
            }
            Class::T5 => &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
            Class::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Class::Plain => &[],
        }
    }

    /// Whether the model is given token types unless `model_input_names` says so.
    pub(super) fn has_types(self) -> bool {
        self == Class::Bert
    }

    /// Its name in transformers.
    pub(super) fn name(self) -> &'static str {
        let known = NAMES.iter().rev().find(|(_, class)| *class == self && self == Class::Plain);
        known.or_else(|| NAMES.iter().find(|(_, class)| *class == self)).map_or("", |(name, _)| name)
    }
}
