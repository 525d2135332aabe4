//! The mean of f32 as torch computes it on a CPU, to the bit: double quantization's offset is one.
//!
//! torch adds eight numbers at a time, in four rows by turns, and cascades: whenever a row has taken up so many, its sum goes to the row's
//! next level. Machines with AVX-512 do no other. From 32,768 numbers on it first cuts them for its threads; this is one thread.

/// Levels of the cascade.
const LEVELS: usize = 4;
/// Rows by turns.
const ROWS: usize = 4;

/// The mean of at least one number.
pub(crate) fn mean(x: &[f32]) -> f32 {
    let (lanes, rest) = x.as_chunks::<8>();
    let sum = if lanes.is_empty() {
        cascade(x.as_chunks::<1>().0)[0]
    } else {
        cascade(lanes).iter().fold(rest.iter().fold(0., |sum, x| sum + x), |sum, x| sum + x)
    };
    sum / x.len() as f32
}

/// The sum in each lane.
fn cascade<const LANES: usize>(x: &[[f32; LANES]]) -> [f32; LANES] {
    let (turns, rest) = x.as_chunks::<ROWS>();
    let power = 4.max(turns.len().max(1).next_power_of_two().ilog2() as usize / LEVELS);
    let mut sums = [[[0.; LANES]; ROWS]; LEVELS];
    for (i, turn) in (1..).zip(turns) {
        turn.iter().zip(&mut sums[0]).for_each(|(x, sum)| add(sum, x));
        // Level j is passed on when it has taken up 2^power times what the level below it has.
        let mut level = 1;
        while level < LEVELS && i % (1usize << (level * power)) == 0 {
            let below = std::mem::replace(&mut sums[level - 1], [[0.; LANES]; ROWS]);
            below.iter().zip(&mut sums[level]).for_each(|(x, sum)| add(sum, x));
            level += 1;
        }
    }
    let [mut rows, above @ ..] = sums;
    for level in &above {
        level.iter().zip(&mut rows).for_each(|(x, sum)| add(sum, x));
    }
    let [mut sum, others @ ..] = rows;
    rest.iter().chain(&others).for_each(|x| add(&mut sum, x));
    sum
}

fn add<const LANES: usize>(sum: &mut [f32; LANES], x: &[f32; LANES]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
}
