//! The codecs of peft-quant on a matrix of 2048 x 2048, in bytes of its f32 a second. `scripts/bench/codecs.py` has them beside
//! bitsandbytes.

#![expect(missing_docs, reason = "criterion_group! makes an undocumented function")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use peft_core::random::Random;
use peft_quant::{Blockwise, Codebook, FourBit, Grouped, Int8Rows, Map8, Search};

const DIMS: [usize; 2] = [2048, 2048];

fn codecs(criterion: &mut Criterion) {
    let mut random = Random::new(0, "codecs");
    let weights: Vec<f32> = (0..DIMS[0] * DIMS[1]).map(|_| random.normal() as f32).collect();
    let mut out = vec![0f32; weights.len()];
    let mut group = criterion.benchmark_group(format!("codecs/{}", peft_quant::kernel()));
    group.throughput(Throughput::Bytes(4 * weights.len() as u64)).sample_size(20);

    for book in [Codebook::Nf4, Codebook::Fp4] {
        let encode = || FourBit::encode(&weights, &DIMS, book, 64).expect("weights");
        group.bench_function(format!("{} encode", book.name()), |b| b.iter(|| black_box(encode())));
        let packed = encode();
        let decode = |packed: &FourBit, out: &mut [f32]| packed.decode_into(out).expect("its length");
        group.bench_function(format!("{} decode", book.name()), |b| b.iter(|| decode(&packed, &mut out)));
        let packed = packed.with_nested_scales().expect("plain scales");
        group.bench_function(format!("{} double decode", book.name()), |b| b.iter(|| decode(&packed, &mut out)));
    }
    for search in [Search::Nearest, Search::Bins] {
        let encode = || Blockwise::encode(&weights, Map8::signed(), 256, search).expect("numbers");
        group.bench_function(format!("dynamic encode {search:?}"), |b| b.iter(|| black_box(encode())));
    }
    let encode = || Int8Rows::encode(&weights, DIMS).expect("weights");
    group.bench_function("int8 encode", |b| b.iter(|| black_box(encode())));
    let packed = encode();
    group.bench_function("int8 decode", |b| b.iter(|| packed.decode_rows(0..DIMS[0], &mut out).expect("its length")));
    for bits in [2, 3, 4, 8] {
        let encode = || Grouped::encode(&weights, DIMS, bits, 128, false).expect("weights");
        group.bench_function(format!("grouped {bits} encode"), |b| b.iter(|| black_box(encode())));
        let packed = encode();
        let decode = |out: &mut [f32]| packed.decode_rows(0..DIMS[0], out).expect("its length");
        group.bench_function(format!("grouped {bits} decode"), |b| b.iter(|| decode(&mut out)));
    }
    group.finish();
}

criterion_group!(benches, codecs);
criterion_main!(benches);
