//! Golden files, and errors that say what they should.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::collections::BTreeSet;
use std::path::Path;

use half::{bf16, f16};
use peft_quant::Element;
use safetensors::{Dtype, SafeTensors};

/// The bytes of a golden file.
pub fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A file of cases, each of some tensors `CASE.PART`.
pub struct Cases<'a>(pub SafeTensors<'a>);

impl<'a> Cases<'a> {
    pub fn open(bytes: &'a [u8]) -> Self {
        Cases(SafeTensors::deserialize(bytes).unwrap())
    }

    /// The cases that have this part and begin so.
    pub fn with(&self, start: &str, part: &str) -> BTreeSet<String> {
        let names = self.0.names().into_iter().filter_map(|name| name.strip_suffix(part)?.strip_suffix('.'));
        names.filter(|name| name.starts_with(start)).map(str::to_owned).collect()
    }

    pub fn bytes(&self, case: &str, part: &str) -> &'a [u8] {
        self.0.tensor(&format!("{case}.{part}")).unwrap().data()
    }

    pub fn f32(&self, case: &str, part: &str) -> Vec<f32> {
        numbers(self.bytes(case, part), f32::from_le_bytes)
    }

    pub fn dtype(&self, case: &str, part: &str) -> Dtype {
        self.0.tensor(&format!("{case}.{part}")).unwrap().dtype()
    }

    pub fn shape(&self, case: &str, part: &str) -> Vec<usize> {
        self.0.tensor(&format!("{case}.{part}")).unwrap().shape().to_vec()
    }
}

pub fn numbers<T, const N: usize>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|bytes| read(bytes.try_into().unwrap())).collect()
}

/// Number types as files hold them.
pub trait Stored: Element + std::fmt::Debug {
    fn read(bytes: &[u8]) -> Vec<Self>;
    fn bits(self) -> u32;
}

impl Stored for f32 {
    fn read(bytes: &[u8]) -> Vec<Self> {
        numbers(bytes, f32::from_le_bytes)
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Stored for f16 {
    fn read(bytes: &[u8]) -> Vec<Self> {
        numbers(bytes, f16::from_le_bytes)
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Stored for bf16 {
    fn read(bytes: &[u8]) -> Vec<Self> {
        numbers(bytes, bf16::from_le_bytes)
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

pub fn bits<E: Stored>(values: &[E]) -> Vec<u32> {
    values.iter().map(|value| value.bits()).collect()
}

/// It fails, and the message has all these parts.
#[track_caller]
pub fn assert_error<T>(result: peft_core::Result<T>, parts: &[&str]) {
    let message = result.err().expect("it is refused").to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} has no {part:?}");
    }
}
