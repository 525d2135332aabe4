//! Chat templates: Jinja, with what transformers adds to it.

use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error as Fault, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value};

use super::folder::Folder;
use crate::files::read_text;
use crate::{Error, Result};

/// The largest template that is read, in bytes.
const MAX_TEMPLATE: u64 = 1 << 20;
/// The most steps that a template takes, of which every few bytes that it makes are one too.
const MAX_STEPS: u64 = 4_000_000;
/// What stands around a turn while the text is made, in which it is never left: no text has these two characters.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
/// The names under which a message's reasoning is passed; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// How a model writes a conversation.
#[derive(Clone, Debug)]
pub(super) struct Template {
    path: PathBuf,
    source: String,
    /// Special tokens by their roles, which a template may name.
    tokens: Map<String, Value>,
}

/// A conversation as a text, and where in it the turns of the assistant stand, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The text.
    pub text: String,
    /// What the assistant writes, the end of each turn included.
    pub turns: Vec<Range<usize>>,
}

impl Template {
    /// The template of a folder: that of `chat_template.jinja` or of `additional_chat_templates`, else of `tokenizer_config.json`. Of
    /// several it is the one that is called default.
    pub fn of(folder: &Folder) -> Result<Option<Self>> {
        let tokens =
            folder.specials().iter().map(|(role, token)| (role.clone(), token.content.clone().into())).collect();
        let template = |path, source| Some(Template::new(path, source, tokens));
        let file = folder.dir.join("chat_template.jinja");
        if file.exists() {
            let source = read_text(&file, MAX_TEMPLATE)?;
            return Ok(template(file, source));
        }
        let path = folder.config_path();
        let default = |name: Option<&Value>| name.and_then(Value::as_str) == Some("default");
        let source = match folder.config.get("chat_template").filter(|template| !template.is_null()) {
            None => return Ok(None),
            Some(Value::String(source)) => source.clone(),
            Some(Value::Array(all)) => match all.iter().find(|one| default(one.get("name"))) {
                Some(one) => one["template"].as_str().unwrap_or_default().to_string(),
                None => {
                    let names: Vec<&str> = all.iter().filter_map(|one| one["name"].as_str()).collect();
                    let found = format!("templates named {}", names.join(", "));
                    return Err(Error::file(&path, "chat_template", found, "one that is named default"));
                }
            },
            Some(other) => return Err(Error::file(&path, "chat_template", other, "a template")),
        };
        Ok(template(path, source))
    }

    /// A template alone. Jinja reads all ends of lines alike.
    pub fn new(path: PathBuf, source: String, tokens: Map<String, Value>) -> Self {
        Template { path, source: source.replace("\r\n", "\n").replace('\r', "\n"), tokens }
    }

    /// The text of messages, with the beginning of an answer behind them if `answer` says so.
    pub fn render(&self, messages: &[Value], answer: bool) -> Result<String> {
        Ok(self.run(messages, answer)?.replace(MARKS, ""))
    }

    /// The text of messages, and the turns of the assistant in it: what a template marks by `{% generation %}`, else what it writes of
    /// each behind the messages before.
    pub fn turns(&self, messages: &[Value]) -> Result<Conversation> {
        let marked = self.run(messages, false)?;
        if self.marks() {
            let (mut text, mut turns, mut start) = (String::with_capacity(marked.len()), vec![], 0);
            for c in marked.chars() {
                match c {
                    _ if c == MARKS[0] => start = text.len(),
                    _ if c == MARKS[1] => turns.push(start..text.len()),
                    _ => text.push(c),
                }
            }
            return Ok(Conversation { text, turns });
        }
        let mut turns = vec![];
        for (i, _) in messages.iter().enumerate().filter(|(_, message)| message["role"] == "assistant") {
            let (before, through) = (self.run(&messages[..i], true)?, self.run(&messages[..=i], false)?);
            if !marked.starts_with(&through) || !through.starts_with(&before) {
                let found = format!("a template that writes message {} otherwise when others follow", i + 1);
                let expected = "one that marks the assistant's turns by {% generation %}, or that writes each behind the ones before";
                return Err(Error::file(&self.path, "chat_template", found, expected));
            }
            turns.push(before.len()..through.len());
        }
        Ok(Conversation { text: marked, turns })
    }

    fn marks(&self) -> bool {
        self.source.contains("endgeneration")
    }

    fn run(&self, messages: &[Value], answer: bool) -> Result<String> {
        let mut context = self.tokens.clone();
        let messages = messages.iter().map(|message| plain(message, &self.path)).collect::<Result<Vec<Value>>>()?;
        context.insert("messages".into(), messages.into());
        context.insert("add_generation_prompt".into(), answer.into());
        context.extend(["tools", "documents"].map(|key| (key.to_string(), Value::Null)));
        let expected = "a Jinja template that takes these messages";
        let source = generation(&self.source);
        let context = minijinja::Value::from(Serde(&context));
        environment().render_str(&source, context).map_err(|fault| {
            let mut found = fault.to_string();
            let mut cause = std::error::Error::source(&fault);
            while let Some(fault) = cause {
                let _ = write!(found, ": {fault}");
                cause = fault.source();
            }
            Error::file(&self.path, "chat_template", found, expected)
        })
    }
}

/// A message as templates see it: without keys of no value, its reasoning under all its names.
fn plain(message: &Value, path: &std::path::Path) -> Result<Value> {
    let wrong = |found: &str| {
        Error::file(path, "messages", found, "objects with a role and a content, without U+FDD0 and U+FDD1")
    };
    let Value::Object(message) = message else { return Err(wrong(&message.to_string())) };
    let mut message: Map<String, Value> =
        message.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect();
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(wrong(&Value::Object(message).to_string()));
    }
    if Value::Object(message.clone()).to_string().contains(MARKS) {
        return Err(wrong("one of these characters"));
    }
    if let Some(reasoning) = REASONING.iter().find_map(|key| message.get(*key)).cloned() {
        let mut aliased = Map::from_iter([("thinking".to_string(), reasoning.clone())]);
        aliased.extend(message);
        aliased.insert(REASONING[0].into(), reasoning);
        message = aliased;
    }
    Ok(Value::Object(message))
}

/// The tag of transformers as a filter, which Jinja has.
fn generation(source: &str) -> String {
    let mut rest = source;
    let mut whole = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|end| start + end + 2) else { break };
        let tag = &rest[start..end];
        let name = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        whole.push_str(&rest[..start]);
        whole.push_str(&match name {
            "generation" => tag.replace("generation", "filter assistant_turn"),
            "endgeneration" => tag.replace("endgeneration", "endfilter"),
            _ => tag.to_string(),
        });
        rest = &rest[end..];
    }
    whole + rest
}

fn environment() -> Environment<'static> {
    let mut jinja = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    jinja.set_syntax(syntax.expect("the delimiters are Jinja's own"));
    jinja.set_auto_escape_callback(|_| AutoEscape::None);
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.set_fuel(Some(MAX_STEPS));
    jinja.set_formatter(|out, state, value| match python(value) {
        Some(word) => out.write_str(word).map_err(Fault::from),
        None => minijinja::escape_formatter(out, state, value),
    });
    jinja.add_filter("assistant_turn", |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
    jinja.add_filter("tojson", tojson);
    jinja.add_function("raise_exception", |message: String| -> Result<String, Fault> {
        Err(Fault::new(ErrorKind::InvalidOperation, message))
    });
    jinja.add_function("strftime_now", |format: String| -> Result<String, Fault> {
        let mut text = String::new();
        let written = write!(text, "{}", chrono::Local::now().format(&format));
        written
            .map(|()| text)
            .map_err(|_| Fault::new(ErrorKind::InvalidOperation, format!("no format of a date: {format}")))
    });
    jinja
}

/// What Python writes of values that have a name in it.
fn python(value: &minijinja::Value) -> Option<&'static str> {
    match value.kind() {
        ValueKind::None => Some("None"),
        ValueKind::Bool => Some(if value.is_true() { "True" } else { "False" }),
        _ => None,
    }
}

/// Python's `json.dumps` without escapes for what is no ASCII.
fn tojson(value: &minijinja::Value, options: Kwargs) -> Result<String, Fault> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    if ascii == Some(true) {
        return Err(Fault::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii is not there"));
    }
    let fault = |error: serde_json::Error| Fault::new(ErrorKind::BadSerialization, error.to_string());
    let mut value = serde_json::to_value(value).map_err(fault)?;
    if sorted == Some(true) {
        value.sort_all_objects();
    }
    let separators = match (separators, indent) {
        (Some(given), _) if given.len() == 2 => [given[0].clone(), given[1].clone()],
        (None, Some(_)) => [",".into(), ": ".into()],
        _ => [", ".into(), ": ".into()],
    };
    let mut out = vec![];
    let style = Style { indent, depth: 0, filled: false, separators };
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style)).map_err(fault)?;
    String::from_utf8(out).map_err(|error| Fault::new(ErrorKind::BadSerialization, error.to_string()))
}

/// How Python sets JSON.
struct Style {
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost array or object has something in it.
    filled: bool,
    separators: [String; 2],
}

impl Style {
    fn open<W: std::io::Write + ?Sized>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn item<W: std::io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            out.write_all(self.separators[0].as_bytes())?;
        }
        self.line(out)
    }

    fn close<W: std::io::Write + ?Sized>(&mut self, out: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        out.write_all(bracket)
    }

    fn line<W: std::io::Write + ?Sized>(&self, out: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{}", " ".repeat(indent * self.depth)),
            None => Ok(()),
        }
    }
}

impl serde_json::ser::Formatter for Style {
    fn begin_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"[")
    }
    fn end_array<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.close(out, b"]")
    }
    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        self.item(out, first)
    }
    fn end_array_value<W: std::io::Write + ?Sized>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }
    fn begin_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.open(out, b"{")
    }
    fn end_object<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        self.close(out, b"}")
    }
    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        self.item(out, first)
    }
    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.separators[1].as_bytes())
    }
    fn end_object_value<W: std::io::Write + ?Sized>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.filled = true;
        Ok(())
    }
}
