//! Chat templates against transformers, and conversations to learn.

use std::fs;

use peft_core::load::Tokenizer;
use peft_core::testing::golden;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder whose tokens are letters, with a template.
fn folder(template: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let letters: serde_json::Map<String, Value> =
        (' '..='~').chain(['\n']).enumerate().map(|(id, letter)| (letter.to_string(), json!(id + 3))).collect();
    let mut vocab = letters;
    for (id, token) in ["<s>", "</s>", "<unk>"].into_iter().enumerate() {
        vocab.insert(token.into(), json!(id));
    }
    let special = |id: usize, text: &str| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")], "decoder": {"type": "Fuse"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
    let config = json!({"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "chat_template": template});
    fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

fn tokenizer(template: &str) -> Tokenizer {
    Tokenizer::from_dir(folder(template).path(), 1000).unwrap()
}

#[test]
fn templates_write_what_they_write_in_transformers() {
    let golden: Value = serde_json::from_slice(&fs::read(golden::model_dir("chat_templates.json")).unwrap()).unwrap();
    let mut wrong = vec![];
    for (name, template) in golden["templates"].as_object().unwrap() {
        let tokenizer = tokenizer(template.as_str().unwrap());
        for case in golden["cases"].as_array().unwrap().iter().filter(|case| case["template"] == *name) {
            let messages = golden["chats"][case["chat"].as_str().unwrap()].as_array().unwrap();
            let answer = case["answer"] == true;
            let found = tokenizer.chat_text(messages, answer);
            let at = format!("{name}, {}, {answer}", case["chat"]);
            match (found, case["text"].as_str()) {
                (Ok(found), Some(wanted)) if found == wanted => {}
                (Ok(found), wanted) => wrong.push(format!("{at}:\n{found:?}\n{wanted:?}")),
                (Err(error), None) if error.to_string().contains(case["error"].as_str().unwrap()) => {}
                (Err(error), _) => wrong.push(format!("{at}: {error}")),
            }
            if let Some(turns) = case["turns"].as_array() {
                let found = tokenizer.conversation(messages).unwrap();
                let found: Vec<&str> = found.turns.iter().map(|turn| &found.text[turn.clone()]).collect();
                assert_eq!(json!(found), json!(turns), "{at}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Jinja reads all ends of lines alike, in whichever file a template stands.
#[test]
fn ends_of_lines_are_read_alike() {
    let golden: Value = serde_json::from_slice(&fs::read(golden::model_dir("chat_templates.json")).unwrap()).unwrap();
    for (name, template) in golden["templates"].as_object().unwrap() {
        let template = template.as_str().unwrap();
        for ends in ["\r\n", "\r"] {
            let turned = template.replace('\n', ends);
            let dir = folder(CHATML);
            fs::write(dir.path().join("chat_template.jinja"), &turned).unwrap();
            for messages in golden["chats"].as_object().unwrap().values().map(|chat| chat.as_array().unwrap()) {
                let Ok(expected) = tokenizer(template).chat_text(messages, true) else { continue };
                for tokenizer in [tokenizer(&turned), Tokenizer::from_dir(dir.path(), 1000).unwrap()] {
                    assert_eq!(tokenizer.chat_text(messages, true).unwrap(), expected, "{name}, {ends:?}");
                }
            }
        }
    }
}

const CHATML: &str = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '|' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}";

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn the_turns_of_the_assistant_are_learnt() {
    let tokenizer = tokenizer(CHATML);
    let messages =
        [message("user", "ab"), message("assistant", "cd"), message("user", "e"), message("assistant", "fg")];
    let conversation = tokenizer.conversation(&messages).unwrap();
    let turns: Vec<&str> = conversation.turns.iter().map(|turn| &conversation.text[turn.clone()]).collect();
    assert_eq!(turns, ["cd|", "fg|"]);
    let (ids, counts) = tokenizer.turns(&messages, 1000).unwrap();
    let learnt: Vec<u32> = ids.iter().zip(&counts).filter(|(_, counts)| **counts).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&learnt).unwrap(), "cd|fg|");
    assert_eq!(tokenizer.decode(&ids).unwrap(), conversation.text);
    assert_eq!(tokenizer.turns(&messages, 5).unwrap(), (ids[..5].to_vec(), counts[..5].to_vec()));
}

#[test]
fn templates_that_cannot_be_obeyed_are_refused() {
    let fails = |template: &str, messages: &[Value], words: &[&str]| {
        let error = tokenizer(template).conversation(messages).expect_err("an error").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let messages = [message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", "d")];
    fails("{% for %}", &messages, &["tokenizer_config.json: chat_template"]);
    fails("{{ raise_exception('no such role') }}", &messages, &["chat_template", "no such role"]);
    fails(
        "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        &messages,
        &["message 2", "{% generation %}"],
    );
    // It ends, and asks for no gigabytes.
    fails(
        "{% for i in range(90000) %}{% for j in range(90000) %}{{ i }}{% endfor %}{% endfor %}",
        &messages,
        &["fuel"],
    );
    fails(
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        &messages,
        &["fuel"],
    );
    fails(CHATML, &[json!({"content": "a"})], &["messages", "role"]);
    fails(CHATML, &[message("user", "\u{fdd0}")], &["U+FDD0"]);
    let dir = folder(CHATML);
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "TokenizersBackend"}"#).unwrap();
    let error = Tokenizer::from_dir(dir.path(), 1000).unwrap().chat(&messages).unwrap_err().to_string();
    assert!(error.contains("chat_template: found none") && error.contains("chat_template.jinja"), "{error}");
    fs::write(dir.path().join("chat_template.jinja"), "\u{feff}{{ messages[0].content }}\n").unwrap();
    assert_eq!(Tokenizer::from_dir(dir.path(), 1000).unwrap().chat_text(&messages, true).unwrap(), "a");
    let named = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]);
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let config =
        |templates: &Value| json!({"tokenizer_class": "TokenizersBackend", "chat_template": templates}).to_string();
    fs::write(dir.path().join("tokenizer_config.json"), config(&named)).unwrap();
    assert_eq!(Tokenizer::from_dir(dir.path(), 1000).unwrap().chat_text(&messages, true).unwrap(), "yes");
    fs::write(dir.path().join("tokenizer_config.json"), config(&json!([named[0]]))).unwrap();
    let error = Tokenizer::from_dir(dir.path(), 1000).err().unwrap().to_string();
    assert!(error.contains("templates named tool_use"), "{error}");
}
