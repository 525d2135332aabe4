use super::class::Class::{self, Bert, Gpt2, Llama, Roberta, T5};

/// What becomes of a field of `tokenizer_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It decides as it does in transformers.
    Obeyed,
    /// It decides for these classes, as in transformers; for others a warning names it and its value.
    By(&'static [Class]),
    /// It decides where the tokenizer is made from other files than `tokenizer.json`, which says the same by its steps.
    WithoutFile,
    /// It changes no token.
    Harmless,
    /// A warning names it and its value, unless the value is null or one of these, as JSON, which change nothing.
    Named(&'static [&'static str]),
}

use Use::{By, Harmless, Named, Obeyed, WithoutFile};

/// Every field that transformers' tokenizers (5.23) know, and what becomes of it.
pub const FIELDS: &[(&str, Use)] = &[
    ("tokenizer_class", Obeyed),
    ("bos_token", Obeyed),
    ("eos_token", Obeyed),
    ("unk_token", Obeyed),
    ("sep_token", Obeyed),
    ("pad_token", Obeyed),
    ("cls_token", Obeyed),
    ("mask_token", Obeyed),
    ("additional_special_tokens", Obeyed),
    ("extra_special_tokens", Obeyed),
    ("added_tokens_decoder", Obeyed),
    ("split_special_tokens", Obeyed),
    ("truncation_side", Obeyed),
    ("model_max_length", Obeyed),
    ("max_len", Obeyed),
    ("model_input_names", Obeyed),
    ("clean_up_tokenization_spaces", Obeyed),
    ("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", Obeyed),
    ("chat_template", Obeyed),
    ("do_lower_case", By(&[Bert])),
    ("strip_accents", By(&[Bert])),
    ("tokenize_chinese_chars", By(&[Bert])),
    ("add_prefix_space", By(&[Roberta, Gpt2, Llama])),
    ("extra_ids", By(&[T5])),
    // Of T5 it decided once, and does no more.
    ("legacy", By(&[Llama, T5])),
    // It moves offsets, which tokens do not have here.
    ("trim_offsets", Harmless),
    ("add_bos_token", WithoutFile),
    ("add_eos_token", WithoutFile),
    ("errors", Named(&["\"replace\""])),
    ("do_basic_tokenize", Named(&["true"])),
    ("never_split", Named(&["[]"])),
    ("fast_tokenizer_files", Named(&["[]"])),
    ("fix_mistral_regex", Named(&["false"])),
    ("sp_model_kwargs", Named(&["{}"])),
    ("use_default_system_prompt", Named(&["false"])),
    ("auto_map", Named(&[])),
    ("init_inputs", Named(&["[]"])),
    ("model_specific_special_tokens", Named(&["{}"])),
    ("response_template", Named(&[])),
    ("chat_control_tokens", Named(&[])),
    // A batch is padded by masks, on the side that its model needs.
    ("padding_side", Harmless),
    ("pad_token_type_id", Harmless),
    ("pad_to_multiple_of", Harmless),
    // What was said of another call.
    ("max_length", Harmless),
    ("stride", Harmless),
    ("truncation_strategy", Harmless),
    ("return_tensors", Harmless),
    // Of tokenizers written in Python, when they decode.
    ("spaces_between_special_tokens", Harmless),
    ("space_between_special_tokens", Harmless),
    // Where files are, who wrote them, and with what.
    ("backend", Harmless),
    ("tokenizer_file", Harmless),
    ("vocab_file", Harmless),
    ("merges_file", Harmless),
    ("spm_file", Harmless),
    ("gguf_file", Harmless),
    ("special_tokens_map_file", Harmless),
    ("added_tokens_file", Harmless),
    ("tokenizer_config_file", Harmless),
    ("chat_template_file", Harmless),
    ("full_tokenizer_file", Harmless),
    ("files_loaded", Harmless),
    ("name_or_path", Harmless),
    ("is_local", Harmless),
    ("local_files_only", Harmless),
    ("processor_class", Harmless),
    ("response_schema", Harmless),
    ("verbose", Harmless),
    ("transformers_version", Harmless),
    ("tokenizers_version", Harmless),
    ("_commit_hash", Harmless),
    // What a constructor is given in a program, and no file has.
    ("vocab", Harmless),
    ("merges", Harmless),
    ("unk_id", Harmless),
    ("tokenizer_object", Harmless),
    ("tokenizer_padding", Harmless),
    ("tokenizer_truncation", Harmless),
    ("post_processor", Harmless),
    ("_json_padding", Harmless),
    ("_json_truncation", Harmless),
    ("_spm_precompiled_charsmap", Harmless),
    ("token", Harmless),
    ("tokenizer", Harmless),
    ("trust_remote_code", Harmless),
    ("cache_dir", Harmless),
];
