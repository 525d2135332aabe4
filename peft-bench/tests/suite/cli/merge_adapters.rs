//! One adapter of several: `peft merge-adapters`.

use peft_core::testing::tolerances::{MERGED, Tolerance};

use super::*;

/// Adapters of one method, trained on the same data from different seeds.
fn trained(folder: &Folder, method: &[&str], names: &[&str]) -> Vec<String> {
    let (model, data) = (model("bert-classify"), folder.data());
    let train = |(i, name): (usize, &&str)| {
        let (output, seed) = (folder.path(name), (i + 1).to_string());
        let start = ["train", "--model", &model, "--data", &data, "--steps", "3", "--lr", "3e-2", "--seed", &seed];
        succeed(&[&start[..], &["--output", &output, "--method"], method].concat());
        output
    };
    names.iter().enumerate().map(train).collect()
}

/// The difference that the command tells.
fn told(line: &str) -> f32 {
    let (_, difference) = line.trim().rsplit_once(' ').unwrap();
    difference.parse().unwrap_or_else(|_| panic!("{line}"))
}

fn logits(folder: &Folder, adapter: &str) -> Vec<f32> {
    let output = folder.path("logits");
    let (model, data) = (model("bert-classify"), folder.path("data.jsonl"));
    succeed(&["forward", "--model", &model, "--adapter", adapter, "--input", &data, "--output", &output]);
    let file = Checkpoint::open_file(Path::new(&output)).unwrap();
    let one = |i: usize| file.read_f32(&format!("logits.{i}"), &[2]).unwrap().iter().collect::<Vec<f32>>();
    (0..20).flat_map(one).collect()
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn loras_become_one_and_the_difference_is_told() {
    let folder = Folder::new();
    let all = trained(&folder, &["lora"], &["a", "b"]);
    let output = folder.path("out");
    let merged = |extra: &[&str]| {
        succeed(
            &[&["merge-adapters", &all[0], &all[1], "--output", &output, "--overwrite", "--head", &all[0]], extra]
                .concat(),
        )
    };
    let Tolerance(exact) = MERGED;
    let [cat, svd, linear] = [
        &["--method", "cat", "--weights=0.5,-0.5"][..],
        &["--method", "svd", "--svd-rank", "16"],
        &["--method", "linear"],
    ]
    .map(|extra| told(&merged(extra)));
    assert!(cat < exact && svd < exact && linear > 1e-3, "{cat} {svd} {linear}");
    // One of weight 1 is itself; its own model is found by its name.
    succeed(&["merge-adapters", "--method", "linear", &all[0], "--output", &folder.path("same")]);
    assert!(farthest(&logits(&folder, &folder.path("same")), &logits(&folder, &all[0])) < exact);
    // What is taken away again leaves the base with the head.
    merged(&["--method", "cat", "--weights=1,0"]);
    assert!(farthest(&logits(&folder, &output), &logits(&folder, &all[0])) < exact);
    for method in ["mean", "ties", "dare_linear", "dare_ties", "magnitude_prune", "ties_svd", "dare_linear_svd"] {
        let density: &[&str] = if method == "mean" { &[] } else { &["--density", "0.5"] };
        assert!(told(&merged(&[&["--method", method], density].concat())) > 0.0, "{method}");
        logits(&folder, &output);
    }
}

#[test]
fn other_kinds_become_one_tensor_by_tensor() {
    let folder = Folder::new();
    let all = trained(&folder, &["adapter", "--set", "bottleneck=4"], &["a", "b"]);
    let output = folder.path("out");
    let told =
        succeed(&["merge-adapters", "--method", "mean", &all[0], &all[1], "--head", "mean", "--output", &output]);
    names(&told, &["mean of 2", "adapter has no weight-space form"]);
    let read = |dir: &str| Checkpoint::open_file(&Path::new(dir).join("adapter_model.safetensors")).unwrap();
    let (mean, a, b) = (read(&output), read(&all[0]), read(&all[1]));
    for name in mean.names() {
        let of =
            |file: &Checkpoint| file.read_f32(name, file.shape(name).unwrap()).unwrap().iter().collect::<Vec<f64>>();
        let expected = of(&a).into_iter().zip(of(&b)).map(|(a, b)| ((a + b) / 2.0) as f32);
        let found: Vec<f32> = of(&mean).into_iter().map(|x| x as f32).collect();
        assert_eq!(found, expected.collect::<Vec<_>>(), "{name}");
    }
    // Trained biases of the model: twice what was changed.
    let biases = trained(&folder, &["bitfit"], &["c"]);
    let two = folder.path("two");
    let line = succeed(&["merge-adapters", "--method", "linear", "--weights", "2", &biases[0], "--output", &two]);
    assert!(super::merge_adapters::told(&line) < MERGED.0, "{line}");
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let folder = Folder::new();
    let all = trained(&folder, &["lora"], &["a", "b"]);
    let other = trained(&folder, &["lora", "--set", "target_modules=key"], &["sites"]);
    let narrow = trained(&folder, &["lora", "--set", "r=4"], &["narrow"]);
    let kind = trained(&folder, &["ia3"], &["kind"]);
    let base = folder.copy(Path::new(&all[0]));
    edit(base.join("labels.json"), &|labels| labels["fingerprint"] = json!("0123456789abcdef"));
    let base = base.to_string_lossy().into_owned();
    let (a, b, output, model) = (all[0].as_str(), all[1].as_str(), folder.path("out"), model("bert-classify"));
    let before = fs::read_dir(folder.0.path()).unwrap().count();
    for (args, words) in [
        (&["linear", a, b][..], &["b: head: other numbers in", "the same numbers, as in", "/a"][..]),
        (&["linear", a, &other[0], "--head", a], &["sites: target_modules", "key", "query", "as in", "/a"]),
        (&["linear", a, &narrow[0], "--head", a], &["narrow: r at encoder.0.query: 4", "8, as in", "cat or svd"]),
        (&["linear", a, &kind[0], "--head", a], &["kind: method: ia3", "lora, as in"]),
        (&["mean", a, &narrow[0], "--head", a], &["narrow: r: 4", "8, as in", "/a"]),
        (&["svd", &kind[0]], &["--method: svd of ia3", "mean, linear"]),
        (
            &["linear", a, &base, "--head", a],
            &["copy/labels.json", "fingerprint: found 0123456789abcdef", "of the model"],
        ),
        (&["linear", a, b, "--head", &kind[0]], &["--head", "kind", "mean, or one of the adapters"]),
        (&["linear", a, b, "--weights", "1"], &["weights: 1", "one for each adapter, 2"]),
        (&["mean", a, b, "--weights=1,-1"], &["--weights: 0", "a sum other than 0"]),
        (&["ties", a, b], &["--density: nothing", "above 0, at most 1"]),
        (&["ties", a, b, "--density", "1.5"], &["density: 1.5", "above 0, at most 1"]),
        (&["linear", a, b, "--density", "0.5"], &["--density: 0.5 with linear", "no other prunes"]),
        (&["ties", a, b, "--density", "0.5", "--svd-rank", "3"], &["--svd-rank", "ends in svd"]),
        (&["linear", a, &model], &["bert-classify", "a model's directory"]),
        (&["linear", a, "--output", a, "--overwrite"], &["--output", "/a"]),
    ] {
        let output: &[&str] = if args.contains(&"--output") { &[] } else { &["--output", &output] };
        names(&fail(&[&["merge-adapters", "--model", &model, "--method"], args, output].concat()), words);
    }
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), before);
}
