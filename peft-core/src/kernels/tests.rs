use rayon::ThreadPoolBuilder;

use super::*;
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
