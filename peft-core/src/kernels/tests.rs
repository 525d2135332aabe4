use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPoolBuilder;

use super::*;
use crate::codes::{Form, Order, Rounding};
use crate::random::Random;
use crate::testing::tolerances::{BF16_PRODUCT, SAME_FUNCTION};

/// Rows, depth and outputs: below and above what a tile, a panel, a piece of the depth and the threads' parts have.
const SIZES: [[usize; 3]; 9] = [
    [1, 7, 5],
    [1, 300, 1100],
    [4, 4200, 20],
    [5, 64, 64],
    [6, 33, 65],
    [7, 256, 130],
    [13, 257, 63],
    [20, 600, 70],
    [513, 20, 66],
];

fn draw(name: &str, count: usize, std: f64) -> Vec<f32> {
    let mut random = Random::new(3, name);
    (0..count).map(|_| (std * random.normal()) as f32).collect()
}

fn computed(
    kernel: Kernel,
    compute: Compute,
    [rows, depth, outputs]: [usize; 3],
    turned: bool,
) -> (Vec<f32>, Vec<f64>) {
    let (x, w) = (draw("x", rows * depth, 1.), draw("w", depth * outputs, 1. / (depth as f64).sqrt()));
    let columns = if turned { depth } else { outputs };
    let mut y = draw("y", rows * outputs, 1.);
    let mut exact: Vec<f64> = y.iter().map(|y| f64::from(*y)).collect();
    for (x, y) in x.chunks(depth).zip(exact.chunks_mut(outputs)) {
        for (output, y) in y.iter_mut().enumerate() {
            let weight = |k| if turned { w[output * depth + k] } else { w[k * outputs + output] };
            *y += x.iter().enumerate().map(|(k, x)| f64::from(*x) * f64::from(weight(k))).sum::<f64>();
        }
    }
    product(kernel, compute, &x, &Dense { numbers: &w, columns }, turned, &mut y);
    (y, exact)
}

#[test]
fn products_are_exact_but_for_rounding_by_every_kernel() {
    for kernel in Kernel::all() {
        for compute in [Compute::F32, Compute::Bf16] {
            for (sizes, turned) in SIZES.iter().flat_map(|sizes| [(*sizes, false), (*sizes, true)]) {
                let (y, exact) = computed(kernel, compute, sizes, turned);
                let most = if compute == Compute::F32 { SAME_FUNCTION.0 } else { BF16_PRODUCT.0 };
                for (y, exact) in y.iter().zip(&exact) {
                    let off = (f64::from(*y) - exact).abs();
                    assert!(off < f64::from(most), "{kernel:?} {compute} {sizes:?} {turned}: {y} for {exact}");
                }
                // What is rounded is seen: a kernel that did not would be the slower one under the name of the faster.
                let off =
                    y.iter().zip(&exact).any(|(y, exact)| (f64::from(*y) - exact).abs() > f64::from(SAME_FUNCTION.0));
                assert_eq!(off, compute == Compute::Bf16 && sizes[0] > 5, "{kernel:?} {compute} {sizes:?} {turned}");
            }
        }
    }
}

/// Products with a matrix as it lies, on any number of threads.
#[test]
fn turned_products_are_exact_but_for_rounding_by_every_kernel() {
    for kernel in Kernel::all() {
        for [rows, depth, outputs] in [[1, 1, 1], [64, 256, 48], [65, 257, 49], [130, 600, 100], [33, 20, 7]] {
            let (x, w) = (draw("x", rows * depth, 1.), draw("w", depth * outputs, 1. / (depth as f64).sqrt()));
            let on = |threads| {
                let mut y = vec![f32::NAN; rows * outputs];
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| product_turned(kernel, &x, &Dense { numbers: &w, columns: depth }, &mut y));
                y
            };
            let found = on(1);
            for (x, y) in x.chunks(depth).zip(found.chunks(outputs)) {
                for (w, y) in w.chunks(depth).zip(y) {
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let off = (f64::from(*y) - exact).abs();
                    assert!(off < f64::from(SAME_FUNCTION.0), "{kernel:?} {rows} {depth} {outputs}: {y} for {exact}");
                }
            }
            assert!(on(3) == found, "{kernel:?} {rows} {depth} {outputs}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for sizes in [[1, 300, 1100], [20, 600, 200], [515, 31, 1290]] {
        for (compute, turned) in [(Compute::F32, false), (Compute::F32, true), (Compute::Bf16, true)] {
            let at = |threads| {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| computed(Kernel::best(), compute, sizes, turned).0)
            };
            let one = at(1);
            assert!([2, 3, 5].iter().all(|threads| at(*threads) == one), "{sizes:?} {compute} {turned}");
        }
    }
}

#[test]
fn numbers_that_are_none_stay_so() {
    for kernel in Kernel::all() {
        for compute in [Compute::F32, Compute::Bf16] {
            let mut w = vec![1.; 10 * 70];
            w[3 * 70 + 66] = f32::NAN;
            let mut y = vec![0.; 7 * 70];
            product(kernel, compute, &[1.; 7 * 10], &Dense { numbers: &w, columns: 70 }, false, &mut y);
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i % 70 == 66)), "{kernel:?} {compute}");
        }
    }
}

/// Random codes; their weights one by one.
struct Coded {
    form: Form,
    inputs: usize,
    block: usize,
    before: usize,
    bytes: Vec<u8>,
    scales: Vec<[f32; 2]>,
    decoded: AtomicUsize,
}

static VALUES: [f32; 16] = [-1., -0.7, 0.3, -0.4, 0.25, 0.1, -0.05, 0., 0.08, -0.16, 0.6, 0.34, 0.44, -0.55, 0.75, 0.9];

impl Coded {
    fn new(form: Form, [outputs, inputs]: [usize; 2], block: usize, before: usize) -> Self {
        let mut random = Random::new(5, "codes");
        let blocks = outputs * inputs / block;
        let (size, size_of_value) = if let Form::Eight = form { (block, 1. / 128.) } else { (block / 2, 1.) };
        let bytes = (0..blocks * (before + size)).map(|_| random.below(256) as u8).collect();
        let by = size_of_value / (inputs as f64).sqrt();
        let scales = (0..blocks).map(|_| [random.normal() * by, random.normal() * by].map(|x| x as f32)).collect();
        Coded { form, inputs, block, before, bytes, scales, decoded: AtomicUsize::new(0) }
    }

    fn stride(&self) -> usize {
        self.bytes.len() / self.scales.len()
    }

    fn weight(&self, output: usize, input: usize) -> f32 {
        let (block, within) = ((output * self.inputs + input) / self.block, input % self.block);
        let bytes = &self.bytes[block * self.stride() + self.before..];
        let [scale, minimum] = self.scales[block];
        let Form::Four { values, order, rounding } = self.form else {
            return f32::from(bytes[within].cast_signed()) * scale + minimum;
        };
        let (bytes, i) = (&bytes[within / 32 * 16..], within % 32);
        let (byte, upper) = match order {
            Order::Halves => (i % 16, i >= 16),
            Order::LowerFirst => (i / 2, i % 2 == 1),
            Order::UpperFirst => (i / 2, i % 2 == 0),
        };
        let code = if upper { bytes[byte] >> 4 } else { bytes[byte] & 15 };
        let weight = values[code as usize] * scale + minimum;
        match rounding {
            Rounding::F32 => weight,
            Rounding::F16 => half::f16::from_f32(weight).to_f32(),
            Rounding::Bf16 => half::bf16::from_f32(weight).to_f32(),
        }
    }
}

impl Tiles for Coded {
    fn dims(&self) -> [usize; 2] {
        [self.scales.len() * self.block / self.inputs, self.inputs]
    }

    fn tile(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        self.decoded.fetch_add(1, Ordering::Relaxed);
        let weights = rows.flat_map(|row| columns.clone().map(move |column| self.weight(row, column)));
        out.iter_mut().zip(weights).for_each(|(out, weight)| *out = weight);
    }

    fn codes(&self, rows: Range<usize>, scales: &mut Vec<[f32; 2]>) -> Option<Codes<'_>> {
        let blocks = self.inputs / self.block;
        let blocks = rows.start * blocks..rows.end * blocks;
        scales.clear();
        scales.extend_from_slice(&self.scales[blocks.clone()]);
        let bytes = &self.bytes[blocks.start * self.stride()..blocks.end * self.stride()];
        Some(Codes { form: self.form, bytes, block: self.block, stride: self.stride(), before: self.before })
    }
}

fn forms() -> Vec<Form> {
    let mut forms = vec![Form::Eight];
    for order in [Order::Halves, Order::LowerFirst, Order::UpperFirst] {
        let rounded = [Rounding::F32, Rounding::F16, Rounding::Bf16];
        forms.extend(rounded.map(|rounding| Form::Four { values: &VALUES, order, rounding }));
    }
    forms
}

#[test]
fn codes_are_multiplied_as_the_weights_that_they_stand_for_by_every_kernel() {
    for (kernel, form) in
        Kernel::all().into_iter().flat_map(|kernel| forms().into_iter().map(move |form| (kernel, form)))
    {
        for (dims, block, before) in [([5, 32], 32, 0), ([70, 96], 32, 4), ([131, 576], 64, 0), ([3, 8704], 1088, 2)] {
            let w = Coded::new(form, dims, block, before);
            let weights = (0..dims[0]).flat_map(|output| (0..dims[1]).map(move |input| [output, input]));
            let weights: Vec<f32> = weights.map(|[output, input]| w.weight(output, input)).collect();
            for rows in [1, 2, 3, 4, 5, 6] {
                let x = draw("x", rows * dims[1], 1.);
                let mut y = draw("y", rows * dims[0], 1.);
                let exact = y.iter().enumerate().map(|(i, y)| {
                    let (row, output) = (i / dims[0], i % dims[0]);
                    let (x, w) = (&x[row * dims[1]..][..dims[1]], &weights[output * dims[1]..]);
                    f64::from(*y) + x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
                });
                let exact: Vec<f64> = exact.collect();
                product(kernel, Compute::F32, &x, &w, true, &mut y);
                for (y, exact) in y.iter().zip(&exact) {
                    let off = (f64::from(*y) - exact).abs();
                    assert!(off < f64::from(SAME_FUNCTION.0), "{kernel:?} {form:?} {dims:?} {rows}: {y} for {exact}");
                }
                let decoded = w.decoded.load(Ordering::Relaxed) > 0;
                assert_eq!(decoded, rows > 5, "{kernel:?} {form:?} {dims:?} {rows}");
            }
        }
    }
}

#[test]
fn bits_of_products_with_codes_do_not_depend_on_the_number_of_threads() {
    for form in forms() {
        let w = Coded::new(form, [1100, 288], 96, 2);
        let x = draw("x", 3 * 288, 1.);
        let at = |threads| {
            let (pool, mut y) = (ThreadPoolBuilder::new().num_threads(threads).build().unwrap(), vec![0.; 3 * 1100]);
            pool.install(|| product(Kernel::best(), Compute::F32, &x, &w, true, &mut y));
            y
        };
        let one = at(1);
        assert!([2, 3, 5].iter().all(|threads| at(*threads) == one), "{form:?}");
    }
}
