//! How fast each codec encodes a matrix and decodes it, into new memory and into the same again, as JSON: the seconds of each run but a
//! first one.
//!
//! `scripts/bench/codecs.py` runs it in turn with bitsandbytes.
//!
//!     codec_speed ROWS COLUMNS RUNS

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use peft_quant::{Blockwise, Codebook, Element, FourBit, Grouped, Int8Rows, Map8, Search};
use serde_json::{Map, json};

struct Times {
    runs: usize,
    seconds: Map<String, serde_json::Value>,
}

impl Times {
    /// Runs `f` and once more, and gives what it made.
    fn of<T>(&mut self, name: impl Into<String>, mut f: impl FnMut() -> T) -> T {
        let made = f();
        let mut time = |_| {
            let start = Instant::now();
            drop(black_box(f()));
            start.elapsed().as_secs_f64()
        };
        self.seconds.insert(name.into(), (0..self.runs).map(&mut time).collect::<Vec<f64>>().into());
        made
    }
}

fn main() -> peft_core::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|word| word.parse().expect("a number")).collect();
    let [rows, columns, runs] = numbers[..] else { panic!("codec_speed ROWS COLUMNS RUNS") };
    let dims = [rows, columns];
    // Sums of three uniform numbers are near enough to weights.
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let weights: Vec<f32> = (0..rows * columns).map(|_| uniform() + uniform() + uniform()).collect();
    let halves: Vec<bf16> = weights.iter().map(|w| bf16::from_f32(*w)).collect();
    let (mut out, mut half_out) = (f32::zeros(weights.len()), bf16::zeros(weights.len()));
    let mut times = Times { runs, seconds: Map::new() };

    for (name, book) in [("nf4", Codebook::Nf4), ("fp4", Codebook::Fp4)] {
        let packed = times.of(format!("{name} encode f32"), || FourBit::encode(&weights, &dims, book, 64))?;
        times.of(format!("{name} decode f32"), || packed.decode::<f32>());
        times.of(format!("{name} decode f32 again"), || packed.decode_into(&mut out))?;
        times.of(format!("{name} decode bf16 again"), || packed.decode_into(&mut half_out))?;
        let encode = || FourBit::encode(&halves, &dims, book, 64)?.with_nested_scales();
        let packed = times.of(format!("{name} double encode bf16"), encode)?;
        times.of(format!("{name} double decode bf16"), || packed.decode::<bf16>());
    }
    let encode = |search| Blockwise::encode(&weights, Map8::signed(), 256, search);
    times.of("dynamic nearest encode f32", || encode(Search::Nearest))?;
    let packed = times.of("dynamic encode f32", || encode(Search::Bins))?;
    times.of("dynamic decode f32", || packed.decode::<f32>());
    times.of("dynamic decode f32 again", || packed.decode_into(&mut out))?;
    let packed = times.of("int8 encode f32", || Int8Rows::encode(&weights, dims))?;
    times.of("int8 decode f32", || packed.decode::<f32>());
    times.of("int8 decode f32 again", || packed.decode_rows(0..rows, &mut out))?;
    for bits in [2, 3, 4, 8] {
        let packed =
            times.of(format!("grouped {bits} encode f32"), || Grouped::encode(&weights, dims, bits, 128, false))?;
        times.of(format!("grouped {bits} decode f32 again"), || packed.decode_rows(0..rows, &mut out))?;
    }
    let (kernel, threads, seconds) = (peft_quant::kernel(), rayon::current_num_threads(), times.seconds);
    println!("{}", json!({ "kernel": kernel, "threads": threads, "weights": rows * columns, "seconds": seconds }));
    Ok(())
}
