//! `peft generate`

use std::io::{read_to_string, stdin};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use peft_core::files::read_jsonl;
use peft_core::generate::{EarlyStopping, FolderSettings, GenerateConfig, Prompt};
use peft_core::load::Tokenizer;
use peft_core::{Bare, Base, Error, Result, Trained, Tuner, io::Pretrained};
use serde_json::{Value, json};

use super::options::{ModelArgs, TaskArg, lines, print, print_part, prompt_room, tell};
use super::speed::Speed;
use crate::registry::load;

/// Settings that matter only to drawing.
const DRAWING: [&str; 7] = ["temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"];

/// Let a model that predicts words (T5, LLaMA) write: on from a prompt, or in answer to it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  peft generate --model DIR --adapter out/lora --prompt 'translate English to Romanian: A house.' --num-beams 4\n  \
    peft generate --model smollm2.gguf --prompt 'Once upon a time' --sample --temperature 0.8 --top-p 0.95\n  \
    peft generate --model DIR --file prompts.txt\n  \
    peft generate --model DIR --chat --prompt 'What is burn?'\n\n\
    A prompt's text is written as it comes; those of a file as JSON objects {\"prompt\", \"text\"}, one a line.\n\
    What the model's generation_config.json says holds unless an option says otherwise; it is told on standard error.\n\
    Standard error tells how many tokens a second were read and written."
)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter directory, or several at once, the first outermost
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// A prompt; - reads it from standard input
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    prompt: Option<String>,
    /// A file of prompts, one a line
    #[arg(long)]
    file: Option<PathBuf>,
    /// Take prompts as messages of a user, written as the model's chat template says; a .jsonl file holds conversations as {"messages": [{"role", "content"}, ..]}
    #[arg(long)]
    chat: bool,
    /// A message of the system before each prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    #[command(flatten)]
    for_task: TaskArg,
    /// The most tokens of a text [default: the model's, else 128]
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Texts that are followed at a time; 1 is greedy [default: the model's, else 1]
    #[arg(long)]
    num_beams: Option<usize>,
    /// A beam's score is its log-probability over its length to this power [default: the model's, else 1]
    #[arg(long, allow_hyphen_values = true)]
    length_penalty: Option<f64>,
    /// When a search by beams ends: with as many finished texts as beams, when no better one is likely, or possible [default: the model's, else no]
    #[arg(long, value_parser =
        PossibleValuesParser::new(["yes", "no", "never"]).try_map(|name| serde_json::from_value::<EarlyStopping>(name.into())))]
    early_stopping: Option<EarlyStopping>,
    /// Draw tokens instead of taking the most probable [default: the model's, else --greedy]
    #[arg(long, conflicts_with_all = ["num_beams", "greedy"])]
    sample: bool,
    /// Take the most probable token, whatever the model's settings say of drawing
    #[arg(long)]
    greedy: bool,
    /// Logits are divided by this before drawing [default: the model's, else 1]
    #[arg(long)]
    temperature: Option<f64>,
    /// Draw from so many of the most probable tokens only; 0 for all [default: the model's, else 0]
    #[arg(long)]
    top_k: Option<usize>,
    /// Draw from the most probable tokens only that together have this probability [default: the model's, else 1]
    #[arg(long)]
    top_p: Option<f64>,
    /// What divides the logits of tokens that stand in prompt or text [default: the model's, else 1]
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// So many tokens in a row never occur twice [default: the model's, else 0 for no such rule]
    #[arg(long)]
    no_repeat_ngram_size: Option<usize>,
    /// Pass over what the model's generation_config.json says, but for the tokens that end a text
    #[arg(long)]
    no_model_settings: bool,
    /// Decides what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Compute everything again for each token
    #[arg(long)]
    no_cache: bool,
    /// Prompts of a file that are run at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch_size: u32,
}

/// What a model is asked to go on from.
enum Asked {
    Text(String),
    Chat(Vec<Value>),
}

impl Generate {
    pub(super) fn run(self) -> Result<()> {
        if self.model.model.starts_with("shape:") {
            let expected = "a model with a tokenizer: a shape with random weights has none";
            return Err(Error::config("--model", &self.model.model, expected));
        }
        let model = self.model.open()?;
        match &self.adapter[..] {
            [_, ..] => {
                let tuned = load(&self.adapter, &model)?;
                let room = tuned.config.room(tuned.base.shape());
                let task = self.for_task.among(&tuned)?.unwrap_or(0);
                self.write(&model, (&tuned.base, &tuned.trained), room, task)
            }
            [] => {
                let room = model.base.shape().max_length();
                self.write(&model, (&model.base, &Trained::new(Bare {}, model.own_head()?)?), room, 0)
            }
        }
    }

    /// The model's settings, in place of which those of the command line stand; those of the model that are used are told.
    fn config(&self, model: &Pretrained) -> Result<GenerateConfig> {
        let FolderSettings { config: told, path, used } = FolderSettings::of(model)?;
        let mut config = match self.no_model_settings {
            true => GenerateConfig { eos_token_id: told.eos_token_id.clone(), ..Default::default() },
            false => told,
        };
        let mut own = vec!["eos_token_id"];
        fn put<T: Copy>(own: &mut Vec<&'static str>, key: &'static str, place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
                own.push(key);
            }
        }
        put(&mut own, "max_new_tokens", &mut config.max_new_tokens, self.max_new_tokens);
        put(&mut own, "max_length", &mut config.max_length, self.max_new_tokens.map(|_| None));
        put(&mut own, "num_beams", &mut config.num_beams, self.num_beams.or(self.sample.then_some(1)));
        put(&mut own, "length_penalty", &mut config.length_penalty, self.length_penalty);
        put(&mut own, "early_stopping", &mut config.early_stopping, self.early_stopping);
        let drawn = self.sample.then_some(true);
        let taken = (self.greedy || self.num_beams.is_some_and(|beams| beams > 1)).then_some(false);
        put(&mut own, "do_sample", &mut config.do_sample, drawn.or(taken));
        put(&mut own, "temperature", &mut config.temperature, self.temperature);
        put(&mut own, "top_k", &mut config.top_k, self.top_k);
        put(&mut own, "top_p", &mut config.top_p, self.top_p);
        put(&mut own, "repetition_penalty", &mut config.repetition_penalty, self.repetition_penalty);
        put(&mut own, "no_repeat_ngram_size", &mut config.no_repeat_ngram_size, self.no_repeat_ngram_size);
        put(&mut own, "use_cache", &mut config.use_cache, self.no_cache.then_some(false));
        let drawing = ["temperature", "top_k", "top_p"];
        if let Some(key) = drawing.into_iter().find(|key| own.contains(key) && !config.do_sample) {
            let option = format!("--{}", key.replace('_', "-"));
            return Err(Error::config(option, "given without drawing", "--sample beside it"));
        }
        let searching = ["length_penalty", "early_stopping"];
        if let Some(key) = searching.into_iter().find(|key| own.contains(key) && config.num_beams == 1) {
            let option = format!("--{}", key.replace('_', "-"));
            return Err(Error::config(option, "given without beams", "--num-beams beside it"));
        }
        config.seed = self.seed;
        let idle = |key: &str| {
            !config.do_sample && DRAWING.contains(&key) || config.num_beams == 1 && searching.contains(&key)
        };
        let taken: Vec<String> = used
            .iter()
            .filter(|(key, _)| !self.no_model_settings && !own.contains(&key.as_str()) && !idle(key))
            .map(|(key, value)| format!("{key} {value}"))
            .collect();
        if let Some(path) = path.filter(|_| !taken.is_empty()) {
            tell(format_args!("settings of {}: {}", path.display(), taken.join(", ")));
        }
        Ok(config)
    }

    /// What is asked of the model.
    fn asked(&self) -> Result<Vec<Asked>> {
        let chat = |text: String| {
            let message = |role: &str, content: &str| json!({"role": role, "content": content});
            let system = self.system.iter().map(|system| message("system", system));
            Asked::Chat(system.chain([message("user", &text)]).collect())
        };
        let conversation =
            |path: &Path, (line, value): (usize, Value)| match value.get("messages").and_then(Value::as_array) {
                Some(messages) if !messages.is_empty() => Ok(Asked::Chat(messages.clone())),
                _ => {
                    let expected = "an array of messages, objects with a role and a content";
                    Err(Error::file(path, format!("line {line}, messages"), value, expected))
                }
            };
        let prompt = match self.prompt.as_deref() {
            Some("-") => {
                let piped = read_to_string(stdin()).map_err(Error::io("read", "standard input"))?;
                // The end of the last line is the shell's.
                Some(piped.strip_suffix('\n').unwrap_or(&piped).to_string())
            }
            prompt => prompt.map(str::to_string),
        };
        match (prompt, &self.file, self.chat) {
            (Some(prompt), _, false) => Ok(vec![Asked::Text(prompt)]),
            (Some(prompt), _, true) => Ok(vec![chat(prompt)]),
            (None, Some(path), true) if path.extension().is_some_and(|extension| extension == "jsonl") => {
                read_jsonl(path)?.into_iter().map(|line| conversation(path, line)).collect()
            }
            (None, Some(path), chats) => {
                Ok(lines(path)?.into_iter().map(|text| if chats { chat(text) } else { Asked::Text(text) }).collect())
            }
            (None, None, _) => Ok(vec![]),
        }
    }

    /// Writes with `room` for so many tokens, for a task.
    fn write<T: Tuner>(
        &self,
        model: &Pretrained,
        (base, trained): (&Base, &Trained<T>),
        room: usize,
        task: usize,
    ) -> Result<()> {
        let (tokenizer, config) = (model.tokenizer()?, self.config(model)?);
        let asked = self.asked()?;
        let new = match config.max_length {
            // The limit is then of both together.
            Some(_) => 1,
            None => config.max_new_tokens,
        };
        let longest = prompt_room(base.shape(), room, new);
        let encode = |asked: &Asked| {
            let ids = match asked {
                Asked::Text(text) => tokenizer.encode(text, None, usize::MAX)?.ids,
                Asked::Chat(messages) => tokenizer.chat(messages)?,
            };
            if ids.len() <= longest {
                return Ok(Prompt { ids, task });
            }
            let found = format!("{} tokens, and {new} new ones", ids.len());
            Err(Error::config("prompt, --max-new-tokens", found, format!("at most {} in all", room + 1)))
        };
        let prompts = asked.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let mut speed = Speed::default();
        if self.prompt.is_some() {
            let mut stream = Stream { tokenizer: &tokenizer, ids: vec![], shown: 0 };
            speed.generate(base, trained, &prompts, &config, |id| stream.push(id))?;
            stream.end()?;
            print("")?;
            tell(speed);
            return Ok(());
        }
        let size = self.batch_size as usize;
        for (i, (asked, prompts)) in asked.chunks(size).zip(prompts.chunks(size)).enumerate() {
            let config = GenerateConfig { first: i * size, ..config.clone() };
            let found = speed.generate(base, trained, prompts, &config, |_| Ok(()))?;
            for (asked, ids) in asked.iter().zip(found) {
                let text = tokenizer.decode(&ids)?;
                print(match asked {
                    Asked::Text(prompt) => json!({"prompt": prompt, "text": text}),
                    Asked::Chat(messages) => json!({"messages": messages, "text": text}),
                })?;
            }
        }
        tell(speed);
        Ok(())
    }
}

/// A text on its way to the terminal.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Bytes that are written.
    shown: usize,
}

impl Stream<'_> {
    fn push(&mut self, id: u32) -> Result<()> {
        self.ids.push(id);
        // Bytes are a text only when all of a row of them are there.
        if self.tokenizer.is_byte(id) {
            return Ok(());
        }
        let text = self.tokenizer.decode(&self.ids)?;
        // A character may take several tokens; until it is whole there is a replacement at the end.
        if text.ends_with('\u{fffd}') { Ok(()) } else { self.show(&text) }
    }

    /// What is left when no token comes any more.
    fn end(&mut self) -> Result<()> {
        let text = self.tokenizer.decode(&self.ids)?;
        self.show(&text)
    }

    fn show(&mut self, text: &str) -> Result<()> {
        let Some(new) = text.get(self.shown..) else { return Ok(()) };
        self.shown = text.len();
        print_part(new)
    }
}
