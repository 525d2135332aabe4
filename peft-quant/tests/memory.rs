//! What products with a packed matrix take in memory: panels in the cache, and never the matrix.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::tensor::Tensor;
use peft_core::Weight;
use peft_core::random::Random;
use peft_quant::{Matrix, Scheme};
use safetensors::Dtype;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `f` gives, what it leaves allocated, and the most that was allocated beside what was before.
fn measured<T>(f: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = f();
    (result, NOW.load(Relaxed).saturating_sub(before), PEAK.load(Relaxed) - before)
}

const MB: usize = 1 << 20;

#[test]
fn forward_and_backward_hold_panels_and_never_the_matrix() {
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    let (dims, rows) = ([4096, 4096], 8);
    let device = peft_core::device("flex").unwrap();
    let mut random = Random::new(1, "w");
    let values: Vec<f32> = (0..dims[0] * dims[1]).map(|_| random.normal() as f32 / 64.).collect();
    let (packed, bytes, _) = measured(|| {
        let scheme: Scheme = "nf4-double".parse().unwrap();
        Weight::Packed(Matrix::packed(scheme.pack(&values, dims, Dtype::F32).unwrap(), &device).unwrap())
    });
    drop(values);
    // 4.127 bits a weight.
    assert!((8..9).contains(&(bytes / MB)), "{bytes}");
    let x = Tensor::<3>::ones([1, rows, dims[1]], &device.autodiff()).require_grad();
    let run = |w: &Weight| {
        let (y, kept, forward) = measured(|| w.linear(x.clone(), None));
        let (_, _, backward) = measured(|| y.sum().backward());
        [kept, forward, backward]
    };
    let [kept, forward, backward] = run(&packed);
    // The output and what the graph notes of it.
    assert!(kept < MB, "{kept}");
    // What each thread works in, which it keeps: some rows, a tile, a panel. No more than two threads.
    assert!(forward < 2 * MB && backward < 2 * MB, "{forward} {backward}");
    // The decoded matrix, 64 MB, is noticed.
    let (_, _, decoding) = measured(|| packed.dense());
    assert!(decoding >= 64 * MB, "{decoding}");
}
