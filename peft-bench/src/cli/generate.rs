//! `peft generate`

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use peft_core::generate::{EarlyStopping, GenerateConfig, Prompt};
use peft_core::load::Tokenizer;
use peft_core::train::Tuned;
use peft_core::{Bare, Base, Error, Method, Result, Trained, Tuner, io::Pretrained};
use serde_json::json;

use super::options::{ModelArgs, lines, max_length, own_head, print, print_part, prompt_room, tell};
use super::speed::Speed;
use crate::registry::{WithMethod, by_peft_type};

/// Let a model that predicts words (T5, LLaMA) write: on from a prompt, or in answer to it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  peft generate --model DIR --adapter out/lora --prompt 'translate English to Romanian: A house.' --num-beams 4\n  \
    peft generate --model smollm2.gguf --prompt 'Once upon a time' --sample --temperature 0.8 --top-p 0.95\n  \
    peft generate --model DIR --file prompts.txt\n\n\
    A prompt's text is written as it comes; those of a file as JSON objects {\"prompt\", \"text\"}, one a line.\n\
    Standard error tells how many tokens a second were read and written."
)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter directory
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A prompt
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    prompt: Option<String>,
    /// A file of prompts, one a line
    #[arg(long)]
    file: Option<PathBuf>,
    /// The task of the prompts, counted from 0, for an adapter of several
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    task_index: usize,
    /// The most tokens of a text
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// Texts that are followed at a time; 1 is greedy
    #[arg(long, default_value_t = 1)]
    num_beams: usize,
    /// A beam's score is its log-probability over its length to this power
    #[arg(long, default_value_t = 1.0, allow_hyphen_values = true, requires = "num_beams")]
    length_penalty: f64,
    /// When a search by beams ends: with as many finished texts as beams, when no better one is likely, or possible
    #[arg(long, default_value = "no", requires = "num_beams", value_parser =
        PossibleValuesParser::new(["yes", "no", "never"]).try_map(|name| serde_json::from_value::<EarlyStopping>(name.into())))]
    early_stopping: EarlyStopping,
    /// Draw tokens instead of taking the most probable
    #[arg(long, conflicts_with = "num_beams")]
    sample: bool,
    /// Logits are divided by this before drawing
    #[arg(long, default_value_t = 1.0, requires = "sample")]
    temperature: f64,
    /// Draw from so many of the most probable tokens only; 0 for all
    #[arg(long, default_value_t = 0, requires = "sample")]
    top_k: usize,
    /// Draw from the most probable tokens only that together have this probability
    #[arg(long, default_value_t = 1.0, requires = "sample")]
    top_p: f64,
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

impl WithMethod for (&Generate, &Pretrained, &Path) {
    type Output = ();
    fn call<M: Method>(self) -> Result<()> {
        let (args, model, adapter) = self;
        let tuned = Tuned::<M>::load(adapter, model)?;
        args.write(model, &tuned.base, &tuned.trained)
    }
}

impl Generate {
    pub(super) fn run(self) -> Result<()> {
        if self.model.model.starts_with("shape:") {
            let expected = "a model with a tokenizer: a shape with random weights has none";
            return Err(Error::config("--model", &self.model.model, expected));
        }
        let model = self.model.open()?;
        match &self.adapter {
            Some(dir) => by_peft_type(dir, (&self, &model, dir.as_path())),
            None => self.write(&model, &model.base, &Trained::new(Bare {}, own_head(&model)?)?),
        }
    }

    fn config(&self) -> GenerateConfig {
        GenerateConfig {
            max_new_tokens: self.max_new_tokens,
            eos_token_id: None,
            num_beams: self.num_beams,
            length_penalty: self.length_penalty,
            early_stopping: self.early_stopping,
            do_sample: self.sample,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            first: 0,
            use_cache: !self.no_cache,
        }
    }

    fn write<T: Tuner>(&self, model: &Pretrained, base: &Base, trained: &Trained<T>) -> Result<()> {
        let (tokenizer, config) = (model.tokenizer()?, self.config());
        let texts = match (&self.prompt, &self.file) {
            (Some(prompt), _) => vec![prompt.clone()],
            (None, Some(path)) => lines(path)?,
            (None, None) => vec![],
        };
        let room = max_length(base.shape(), self.adapter.as_deref())?;
        let longest = prompt_room(base.shape(), room, self.max_new_tokens);
        let encode = |text: &String| {
            let ids = tokenizer.encode(text, None, usize::MAX)?.ids;
            if ids.len() <= longest {
                return Ok(Prompt { ids, task: self.task_index });
            }
            let found = format!("{} tokens, and {} new ones", ids.len(), self.max_new_tokens);
            Err(Error::config("prompt, --max-new-tokens", found, format!("at most {} in all", room + 1)))
        };
        let prompts = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let mut speed = Speed::default();
        if self.prompt.is_some() {
            let mut stream = Stream { tokenizer: &tokenizer, ids: vec![], shown: 0 };
            speed.generate(base, trained, &prompts, &config, |id| stream.push(id))?;
            stream.end()?;
            print("")?;
            tell(&speed);
            return Ok(());
        }
        let size = self.batch_size as usize;
        for (i, (texts, prompts)) in texts.chunks(size).zip(prompts.chunks(size)).enumerate() {
            let config = GenerateConfig { first: i * size, ..config.clone() };
            let found = speed.generate(base, trained, prompts, &config, |_| Ok(()))?;
            for (prompt, ids) in texts.iter().zip(found) {
                print(json!({"prompt": prompt, "text": tokenizer.decode(&ids)?}))?;
            }
        }
        tell(&speed);
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
