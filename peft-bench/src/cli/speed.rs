//! How fast texts are written.

use std::fmt;
use std::time::{Duration, Instant};

use peft_core::generate::{GenerateConfig, Prompt, generate};
use peft_core::{Base, Result, Trained, Tuner};

/// Tokens and how long they took. Prompts take as long as the first token of each text, which comes out of the run over them, is
/// waited for. Beams tell their tokens at the end only, so that all of the time counts for these.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    prompt_tokens: usize,
    prompts: Duration,
    new_tokens: usize,
    /// New tokens without those that came out of prompts.
    further_tokens: usize,
    further: Duration,
}

impl Speed {
    /// Generates, and adds what it took. `follow` is told each token.
    pub fn generate<T: Tuner>(
        &mut self,
        base: &Base,
        trained: &Trained<T>,
        prompts: &[Prompt],
        config: &GenerateConfig,
        mut follow: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<Vec<u32>>> {
        let (start, mut first) = (Instant::now(), None);
        let texts = generate(base, trained, prompts, config, |_, token| {
            first.get_or_insert_with(|| start.elapsed());
            follow(token)
        })?;
        let new = texts.iter().map(Vec::len).sum::<usize>();
        let (waited, without) = match config.num_beams {
            1 => (first.unwrap_or_default(), texts.len()),
            _ => (Duration::ZERO, 0),
        };
        self.prompt_tokens += prompts.iter().map(|prompt| prompt.ids.len()).sum::<usize>();
        self.new_tokens += new;
        self.further_tokens += new - without;
        self.prompts += waited;
        self.further += start.elapsed() - waited;
        Ok(texts)
    }

    /// Seconds in all.
    pub fn seconds(&self) -> f64 {
        (self.prompts + self.further).as_secs_f64()
    }

    /// Tokens of prompts a second.
    pub fn prompt_rate(&self) -> Option<f64> {
        rate(self.prompt_tokens, self.prompts)
    }

    /// New tokens a second, those that came out of prompts left out.
    pub fn rate(&self) -> Option<f64> {
        rate(self.further_tokens, self.further)
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |rate: Option<f64>| rate.map_or(String::new(), |rate| format!(" ({rate:.1} a second)"));
        let Speed { prompt_tokens, new_tokens, .. } = self;
        write!(f, "{prompt_tokens} tokens read{}, ", rate(self.prompt_rate()))?;
        write!(f, "{new_tokens} written{}", rate(self.rate()))
    }
}
