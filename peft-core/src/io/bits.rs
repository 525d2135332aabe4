//! Masks in files: a bit for each number, eight in a byte, the first in the lowest bit.

use burn::tensor::TensorData;

use crate::load::Checkpoint;
use crate::{Error, Result};

/// The bits of a mask's numbers, 1 for all but 0.
pub(super) fn pack(mask: &TensorData) -> TensorData {
    let bits: Vec<bool> = mask.iter::<f32>().map(|value| value != 0.0).collect();
    let byte = |bits: &[bool]| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | u8::from(*bit) << i);
    let bytes: Vec<u8> = bits.chunks(8).map(byte).collect();
    let length = bytes.len();
    TensorData::new(bytes, [length])
}

/// The mask of this shape whose bits a file holds.
pub(super) fn read(file: &Checkpoint, name: &str, dims: &[usize]) -> Result<TensorData> {
    let count: usize = dims.iter().product();
    let wrong = |found: String| {
        let expected = format!("{} bytes (U8), a bit for each of {count} numbers and none behind", count.div_ceil(8));
        Error::file(file.path_of(name), name, found, expected)
    };
    let Some(entry) = file.entry(name) else { return Err(wrong("no tensor of this name".into())) };
    if entry.dtype != "U8" || entry.shape != [count.div_ceil(8)] {
        return Err(wrong(format!("{} of shape {:?}", entry.dtype, entry.shape)));
    }
    let bytes = file.bytes(name)?;
    let bit = |i: usize| bytes[i / 8] >> (i % 8) & 1;
    if (count..8 * bytes.len()).any(|i| bit(i) == 1) {
        return Err(wrong("bits behind the last".into()));
    }
    Ok(TensorData::new((0..count).map(|i| f32::from(bit(i))).collect(), dims.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::load::write_safetensors;

    fn written(name: &str, data: TensorData) -> (tempfile::TempDir, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        write_safetensors(&path, &BTreeMap::from([(name.to_string(), data)])).unwrap();
        let file = Checkpoint::open_file(&path).unwrap();
        (folder, file)
    }

    proptest! {
        #[test]
        fn a_mask_is_read_as_it_was_written(rows in 1..9usize, columns in 1..13usize, seed: u64) {
            let values: Vec<f32> = (0..rows * columns).map(|i| ((seed >> (i % 61)) & 1) as f32).collect();
            let mask = TensorData::new(values, [rows, columns]);
            let packed = pack(&mask);
            prop_assert_eq!(packed.as_bytes().len(), (rows * columns).div_ceil(8));
            let (_folder, file) = written("m", packed);
            prop_assert_eq!(read(&file, "m", &[rows, columns]).unwrap(), mask);
        }
    }

    #[test]
    fn what_is_no_mask_is_refused_by_name() {
        let of_bytes = |bytes: Vec<u8>| TensorData::new(bytes.clone(), [bytes.len()]);
        for (data, word) in [
            (of_bytes(vec![0b111]), "bits behind"),
            (of_bytes(vec![1, 0]), "U8 of shape [2]"),
            (TensorData::new(vec![1.0f32], [1]), "F32"),
        ] {
            let (_folder, file) = written("m", data);
            let message = read(&file, "m", &[1, 2]).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("m.safetensors"), "{message}");
            assert!(read(&file, "other", &[1, 2]).unwrap_err().to_string().contains("no tensor"));
        }
    }
}
