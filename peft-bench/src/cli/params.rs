//! `peft params`

use clap::Args;
use peft_core::io::Pretrained;
use peft_core::{AnyMethod, Base, Error, Result, Shape};
use serde_json::json;

use super::methods::configured;
use super::options::{check_model, print};
use crate::reproduce::text::grouped;

/// Count trainable and total parameters, and say where they sit; allocates nothing of the model
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  peft params --model shape:roberta-large --method lora\n  \
    peft params --model shape:roberta-base --method adapter --set bottleneck=64 --json\n  \
    peft params --model DIR --method prefix --labels 3")]
pub struct Params {
    /// A model directory, or shape:NAME
    #[arg(long)]
    model: String,
    /// The method (see `peft methods`)
    #[arg(long)]
    method: String,
    /// A setting of the method, KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Outputs of the task head; 0 for none
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    labels: u32,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Tensors of one kind: name with `*` for the layer, shape, how many.
type Group = (String, Vec<usize>, usize);

impl Params {
    /// Elements, whether they come on top of the model's, and where they sit.
    fn count(&self, method: &AnyMethod, shape: Shape) -> Result<(usize, bool, Vec<Group>)> {
        let count = method.checked_count(&shape)?;
        let device = peft_core::device(peft_core::available().first().unwrap_or(&"none"))?;
        let base = Base::hollow(shape, &device);
        // One that starts from other adapters has the form in which it is loaded.
        let tuner = method.init(&base, 0).or_else(|error| method.for_loading(&base).map_err(|_| error))?;
        let mut groups: Vec<Group> = Vec::new();
        let trained = peft_core::view::trained(&tuner);
        for (name, dims) in peft_core::view::shapes(&tuner).into_iter().filter(|(name, _)| trained.contains_key(name)) {
            let words = name.split('.').map(|w| if w.parse::<usize>().is_ok() { "*" } else { w });
            let name = words.collect::<Vec<_>>().join(".");
            match groups.iter_mut().find(|(n, d, _)| *n == name && *d == dims) {
                Some((_, _, times)) => *times += 1,
                None => groups.push((name, dims, 1)),
            }
        }
        let found: usize = groups.iter().map(|(_, dims, n)| n * dims.iter().product::<usize>()).sum();
        if found == count {
            Ok((count, method.adds(), groups))
        } else {
            let detail = format!("{found} elements, the closed form says {count}");
            Err(Error::Check { what: "the closed form of the count", detail })
        }
    }

    pub(super) fn run(self) -> Result<()> {
        check_model(&self.model)?;
        let shape = Pretrained::shape(&self.model)?;
        let method = configured(&self.method, &self.set, &shape)?;
        let head = if self.labels == 0 { 0 } else { method.head_count(&shape, self.labels as usize) };
        let base = shape.count();
        let (count, adds, groups) = self.count(&method, shape)?;
        let (trainable, total) = (count + head, base + head + if adds { count } else { 0 });
        let percent = 100.0 * trainable as f64 / total as f64;
        if self.json {
            let tensors: Vec<_> =
                groups.iter().map(|(name, dims, n)| json!({"name": name, "shape": dims, "times": n})).collect();
            let counts = json!({"method": count, "head": head, "trainable": trainable, "base": base, "total": total,
                "percent": percent, "tensors": tensors});
            print(counts)?;
            return Ok(());
        }
        for (name, dims, times) in &groups {
            let elements = times * dims.iter().product::<usize>();
            print(format_args!("{:46} {:>16} x {times:<4} {:>13}", name, format!("{dims:?}"), grouped(elements)))?;
        }
        for (name, n) in [("method", count), ("head", head), ("trainable", trainable), ("base", base), ("total", total)]
        {
            print(format_args!("{name:68} {:>13}", grouped(n)))?;
        }
        print(format_args!("{:68} {percent:>12.4}%", "trainable share"))?;
        Ok(())
    }
}
