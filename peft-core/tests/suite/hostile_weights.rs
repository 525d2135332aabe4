//! Weight files that are damaged or made to do harm: each must end in an error that names the file and the key.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Bytes, DType, TensorData};
use peft_core::load::{Checkpoint, read_json, write_file, write_safetensors};
use tempfile::TempDir;

use crate::common::{assert_error, written};

/// A file of the given header and bytes of data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Opening the file fails and the message has all these parts.
#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    let (_dir, path) = written("bad.safetensors", bytes);
    assert_error(Checkpoint::open_file(&path), &[&["bad.safetensors"], parts].concat());
}

fn one(name: &str, dtype: &str, shape: &str, range: [usize; 2], data: usize) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range:?}}}}}"#);
    safetensors(&header, &vec![0; data])
}

#[test]
fn what_is_written_reads_back_and_has_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = |values: &[f32], shape: &[usize]| TensorData::new(values.to_vec(), shape.to_vec());
    let tensors = BTreeMap::from([
        ("b.weight".to_string(), tensor(&[1., 2., 3., 4., 5., 6.], &[2, 3])),
        ("a.bias".to_string(), tensor(&[-1., 0.5], &[2])),
    ]);
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, &tensors).unwrap();
    let first = fs::read(&path).unwrap();
    write_safetensors(&path, &tensors).unwrap();
    assert_eq!(first, fs::read(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a scratch file was left");

    let checkpoint = Checkpoint::open_model(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a.bias", "b.weight"]);
    assert_eq!(checkpoint.shape("b.weight"), Some(&[2, 3][..]));
    assert_eq!(checkpoint.path_of("a.bias"), path);
    for (name, data) in &tensors {
        assert_eq!(&checkpoint.read_f32(name, data.shape()).unwrap(), data);
    }
}

#[test]
fn every_number_type_is_read() {
    let header = concat!(
        r#"{"half":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"brain":{"dtype":"BF16","shape":[1],"#,
        r#""data_offsets":[2,4]},"double":{"dtype":"F64","shape":[],"data_offsets":[4,12]},"#,
        r#""int":{"dtype":"I32","shape":[1,1],"data_offsets":[12,16]}}"#
    );
    let data = [&[0x00, 0x3e, 0xc0, 0x3f][..], &1.5f64.to_le_bytes(), &(-7i32).to_le_bytes()].concat();
    let (_dir, path) = written("mixed.safetensors", safetensors(header, &data));
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    for (name, shape) in [("half", &[1][..]), ("brain", &[1]), ("double", &[])] {
        assert_eq!(checkpoint.read_f32(name, shape).unwrap().try_to_vec::<f32>().unwrap(), [1.5], "{name}");
    }
    assert_eq!(checkpoint.read_i64("int").unwrap(), (vec![1, 1], vec![-7]));
    assert_error(checkpoint.read_i64("half"), &["mixed.safetensors: half: found type F16", "I64 or I32"]);
    assert_error(checkpoint.read_f32("int", &[1, 1]), &["mixed.safetensors: int: found type I32", "BF16"]);
    assert_error(checkpoint.read_f32("half", &[2]), &["mixed.safetensors: half: found shape [1], expected shape [2]"]);
    assert_error(checkpoint.read_f32("none", &[2]), &["mixed.safetensors: none: found no tensor", "shape [2]"]);
}

#[test]
fn weights_that_are_not_finite() {
    for value in [f32::NAN, f32::INFINITY] {
        let data = [1f32.to_le_bytes(), value.to_le_bytes()].concat();
        let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let (_dir, path) = written("nan.safetensors", safetensors(header, &data));
        let result = Checkpoint::open_file(&path).unwrap().read_f32("w", &[2]);
        assert_error(result, &["nan.safetensors: w: found", "at element 1, expected finite"]);
    }
}

#[test]
fn headers_that_lie() {
    refused(b"", &["file size: found 0 bytes"]);
    refused(b"{}", &["file size: found 2 bytes"]);
    refused(&u64::MAX.to_le_bytes(), &["header length: found 18446744073709551615", "at most 0"]);
    refused(&safetensors("{", b""), &["header: found EOF"]);
    refused(&safetensors("\"text\"", b""), &["header", "one entry for each tensor"]);
    refused(&one("w", "F99", "[1]", [0, 4], 4), &["w: found unknown variant `F99`"]);
    refused(&one("w", "F32", "[-1]", [0, 4], 4), &["w: found", "-1"]);
    refused(&one("w", "F32", "[2]", [0, 4], 4), &["w: found 4 bytes for F32 of shape [2], expected 8 bytes"]);
    refused(&one("w", "F32", "[4611686018427387904,8]", [0, 4], 4), &["w: found", "fits memory"]);
    refused(&one("w", "F32", "[2]", [0, 8], 4), &["w: found data_offsets [0, 8]", "within the 4 bytes"]);
    refused(&one("w", "F32", "[1]", [4, 0], 4), &["w: found data_offsets [4, 0]"]);
    refused(&one("w", "F32", "[1]", [0, 4], 5), &["file size", "where the last tensor ends"]);
    refused(&one("w", "F32", "[1]", [4, 8], 8), &["w: found data_offsets that overlap or leave a hole"]);
    refused(&one(&"n".repeat(2000), "F32", "[1]", [0, 4], 4), &["nnn...: found a name of 2000 bytes"]);
    let two = |a: &str, b: &str, second: [usize; 2], data| {
        let info = |range| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{range:?}}}"#);
        safetensors(&format!(r#"{{"{a}":{},"{b}":{}}}"#, info([0, 4]), info(second)), &vec![0; data])
    };
    refused(&two("a", "b", [0, 4], 4), &["found data_offsets that overlap"]);
    refused(&two("a", "b", [8, 12], 12), &["b: found data_offsets that overlap or leave a hole"]);
    refused(&two("twice", "twice", [0, 4], 4), &["header", r#"the name "twice" twice"#]);
}

#[test]
fn no_cut_and_no_flipped_bit_panics() {
    for (name, good) in
        [("w.safetensors", one("w", "F32", "[2]", [0, 8], 8)), ("w.bin", torch()), ("w.bpk", record("w", &[0; 8]))]
    {
        let read = |bytes: &[u8]| {
            let (_dir, path) = written(name, bytes);
            Checkpoint::open_file(&path)?.read_f32("w", &[2])
        };
        assert!(read(&good).is_ok());
        for cut in 0..good.len() {
            assert_error(read(&good[..cut]), &[name]);
        }
        for bit in 0..8 * good.len() {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // Some flips only change a value or a name.
            if let Err(error) = read(&bytes) {
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }
}

/// A record of burn with two numbers.
fn record(name: &str, bytes: &[u8; 8]) -> Vec<u8> {
    record_of(&[(name, bytes)])
}

fn record_of(tensors: &[(&str, &[u8; 8])]) -> Vec<u8> {
    let tensor = |(name, bytes): &(&str, &[u8; 8])| {
        burn_pack::Tensor::new(name.to_string(), DType::F32, [2], None, Bytes::from_bytes_vec(bytes.to_vec()))
    };
    burn_pack::Writer::new(tensors.iter().map(tensor).collect()).into_bytes().unwrap().to_vec()
}

/// Bytes that were inserted would move all tensors behind them: wherever they are, the file is refused.
#[test]
fn inserted_bytes_are_refused() {
    let numbers = |a: f32, b: f32| -> [u8; 8] { [a.to_le_bytes(), b.to_le_bytes()].concat().try_into().unwrap() };
    let good = record_of(&[("v", &numbers(1.0, 2.0)), ("w", &numbers(3.0, 4.0))]);
    let path = |bytes: &[u8]| written("w.bpk", bytes);
    let (_dir, file) = path(&good);
    assert_eq!(Checkpoint::open_file(&file).unwrap().read_f32("w", &[2]).unwrap().as_bytes(), numbers(3.0, 4.0));
    for place in 0..=good.len() {
        for inserted in [&[0u8][..], &[7], &[0; 4], &[0; 256], &[1; 256]] {
            let (_dir, file) = path(&[&good[..place], inserted, &good[place..]].concat());
            assert_error(Checkpoint::open_file(&file), &["w.bpk"]);
            // Zeros can pass for those between tensors.
            if inserted.iter().all(|byte| *byte == 0) {
                continue;
            }
            // The same with the size that it had.
            let (_dir, file) = path(&[&good[..place], inserted, &good[place..]].concat()[..good.len()]);
            if let Ok(record) = Checkpoint::open_file(&file) {
                // What stands behind the last byte that is moved is the last tensor's own.
                assert!(place >= good.len() - 8 && record.read_f32("v", &[2]).is_ok(), "{place} {inserted:?}");
            }
        }
    }
}

/// Whatever happens to a file while it is open, its tensors are those that it had, or an error.
#[test]
fn a_file_that_changes_while_it_is_open_is_an_error() {
    let gguf = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/blocks.gguf")).unwrap();
    for (name, tensor, good) in [
        ("w.safetensors", "w", one("w", "F32", "[2]", [0, 8], 8)),
        ("w.bpk", "w", record("w", &[0; 8])),
        ("w.gguf", "F32", gguf),
    ] {
        let (_dir, path) = written(name, &good);
        let open = || Checkpoint::open_file(&path).unwrap();
        let read = |file: &Checkpoint| file.bytes(tensor);
        let before = read(&open()).unwrap();
        let file = open();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(good.len() as u64 / 2).unwrap();
        assert_error(read(&file), &[name, "changed while it was read"]);
        fs::write(&path, &good).unwrap();
        let file = open();
        fs::write(&path, vec![1; good.len()]).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_error(read(&file), &[name, "changed while it was read"]);
        fs::write(&path, &good).unwrap();
        let file = open();
        write_file(&path, b"another").unwrap();
        assert_eq!(read(&file).unwrap(), before, "a file that takes its place is none of its own");
    }
}

/// The state dict {"w": tensor([1., 2.])} as torch before 1.6 wrote it.
fn torch() -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    [
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}",
        &text("little_endian")[..],
        b"\x88s.\x80\x02}",
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x02NtQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.\x80\x02]",
        &text("0"),
        b"a.",
        &2u64.to_le_bytes(),
        &1f32.to_le_bytes(),
        &2f32.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn pickles_are_not_executed() {
    let marker = tempfile::tempdir().unwrap().path().join("marker");
    let call = format!("cos\nsystem\n(Vtouch {}\ntR.", marker.display());
    let (dir, path) = written("pytorch_model.bin", call.as_bytes());
    assert_error(Checkpoint::open_model(dir.path()), &["pytorch_model.bin: pickle: found"]);
    assert!(!marker.exists());
    fs::write(&path, torch()).unwrap();
    let checkpoint = Checkpoint::open_model(dir.path()).unwrap();
    assert_eq!(checkpoint.read_f32("w", &[2]).unwrap().try_to_vec::<f32>().unwrap(), [1., 2.]);
}

/// A model folder with a shard `one.safetensors` that holds `w`, and an index.
fn sharded(weight_map: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one.safetensors"), one("w", "F32", "[1]", [0, 4], 4)).unwrap();
    let index = format!(r#"{{"metadata":{{"total_size":4}},"weight_map":{{{weight_map}}}}}"#);
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    dir
}

#[track_caller]
fn index_refused(dir: &Path, parts: &[&str]) {
    assert_error(Checkpoint::open_model(dir), &[&["model.safetensors.index.json"], parts].concat());
}

#[test]
fn shard_indexes() {
    let good = sharded(r#""w":"one.safetensors""#);
    assert_eq!(Checkpoint::open_model(good.path()).unwrap().shape("w"), Some(&[1][..]));
    for outside in
        ["../one.safetensors", "/one.safetensors", "a/one.safetensors", "..", ".", "", r"..\\one", r"C:\\one"]
    {
        let dir = sharded(&format!(r#""w":"{outside}""#));
        index_refused(dir.path(), &["weight_map.w", "the plain name of a file beside the index"]);
    }
    let missing = sharded(r#""w":"one.safetensors","v":"two.safetensors""#);
    index_refused(missing.path(), &["weight_map.v", "two.safetensors", "missing"]);
    let absent = sharded(r#""w":"one.safetensors","v":"one.safetensors""#);
    let absent = Checkpoint::open_model(absent.path()).unwrap();
    assert!(absent.absent().eq(["v"]) && absent.shape("v").is_none());
    let told = &["model.safetensors.index.json", "v: found no such tensor there", "one.safetensors"];
    assert_error(absent.read_f32("v", &[1]), told);
    let twice = sharded(r#""w":"one.safetensors","w":"one.safetensors""#);
    index_refused(twice.path(), &["line 1", r#"the name "w" twice"#]);

    let both = sharded(r#""w":"one.safetensors","v":"two.safetensors""#);
    fs::copy(both.path().join("one.safetensors"), both.path().join("two.safetensors")).unwrap();
    assert_error(
        Checkpoint::open_model(both.path()),
        &["two.safetensors: w: found a second tensor", "one.safetensors"],
    );

    let empty = tempfile::tempdir().unwrap();
    assert_error(Checkpoint::open_model(empty.path()), &["weights: found none", "pytorch_model.bin"]);
}

#[cfg(unix)]
#[test]
fn links_that_leave_the_folder() {
    use std::os::unix::fs::symlink;
    let elsewhere = sharded(r#""w":"one.safetensors""#);
    let dir = sharded(r#""w":"link.safetensors""#);
    let link = dir.path().join("link.safetensors");
    symlink(elsewhere.path().join("one.safetensors"), &link).unwrap();
    index_refused(dir.path(), &["weight_map.w", "link.safetensors", "a link that leaves it"]);
    fs::remove_file(&link).unwrap();
    symlink("one.safetensors", &link).unwrap();
    assert!(Checkpoint::open_model(dir.path()).is_ok());

    // The hub's cache is laid out this way.
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache.path().join("snapshots/main");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(cache.path().join("blobs")).unwrap();
    fs::copy(dir.path().join("one.safetensors"), cache.path().join("blobs/hash")).unwrap();
    fs::copy(dir.path().join("model.safetensors.index.json"), snapshot.join("model.safetensors.index.json")).unwrap();
    symlink("../../blobs/hash", snapshot.join("link.safetensors")).unwrap();
    assert!(Checkpoint::open_model(&snapshot).is_ok());
}

#[test]
fn files_of_another_kind() {
    let dir = tempfile::tempdir().unwrap();
    assert_error(Checkpoint::open_file(dir.path()), &["file type: found a directory"]);
    assert_error(Checkpoint::open_file(&dir.path().join("none")), &["cannot read", "none"]);
    let (_dir, path) = written("config.json", b"{\n  \"a\": 1,\n}");
    assert_error(read_json(&path), &["config.json: line 3 column 1"]);
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    assert_error(write_file(&taken, b"text"), &["taken: file type", "a directory"]);
    assert_error(write_file(&dir.path().join("none/file"), b"text"), &["cannot write", "none/file"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a scratch file was left");
}
