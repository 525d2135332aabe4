//! Requests that are refused.

use super::*;

#[test]
fn impossible_requests_are_refused_and_leave_nothing() {
    let folder = Folder::new();
    let (model, data, output) = (model("roberta-classify"), folder.data(), folder.path("out"));
    for (extra, words) in [
        ("--method lora --set r=0", &["r at roberta.encoder.layer.0", "0", "1 to 65536"][..]),
        ("--method lora --set rank=4", &["--set rank", "lora_alpha"]),
        ("--method lora --set r=many", &["--set r", "many"]),
        ("--method lora --set target_modules=q_proj", &["q_proj", "matches nothing", "attention.self.query"]),
        ("--method lora --set target_modules=query,w2", &["w2", "matches nothing"]),
        ("--method lara", &["lara", "one of", "lora"]),
        ("--method prompt --set num_virtual_tokens=0", &["num_virtual_tokens", "0"]),
        ("--method prompt --set num_virtual_tokens=40", &["num_virtual_tokens", "40"]),
        ("--method lora --lr=-1", &["learning_rate", "-1"]),
        ("--method lora --lr 1e30", &["learning_rate", "below 1000000"]),
        ("--method lora --batch-size 0", &["batch_size", "0"]),
        ("--method lora --threads 100000", &["threads", "1024"]),
        ("--method lora --lr 0", &["learning_rate", "0", "above 0"]),
        ("--method lora --set rank_pattern={\"query\":2,\"query\":3}", &["rank_pattern", "twice"]),
        ("--method lora --device gpu", &["gpu", "flex"]),
        ("--method lora --warmup=-3", &["--warmup", "-3"]),
        ("--method lora --set r=4 --set r=2", &["--set r", "twice"]),
        ("--method lora --lr nan", &["learning_rate", "NaN", "below 1000000"]),
        ("--method lora --batch-size 99999999999999999", &["batch_size", "1000000000"]),
        ("--method lora --set target_modules=all-quadratic", &["all-quadratic", "matches nothing"]),
        ("--method lora --data missing.jsonl", &["missing.jsonl", "No such file"]),
        ("--method lora --task imdb", &["imdb", "sst2"]),
        ("--method lora --warmup 1.5", &["--warmup", "1.5"]),
        ("--method lora --save-every 0", &["save_steps", "0"]),
        ("--method lora --task-temperature 0", &["task_temperature", "0", "above 0"]),
        ("--method lora --task-temperature inf", &["task_temperature", "inf", "finite"]),
        ("--method hyperformer --task-temperature 10", &["task_temperature", "one task", "task_id"]),
        ("--method hyperformer --task-temperature 10 --no-shuffle", &["--task-temperature", "--no-shuffle"]),
        ("--model nowhere --method lora", &["--model", "nowhere", "hub"]),
    ] {
        let mut args = vec!["train", "--steps", "2", "--output", &output];
        for (option, value) in [("--model", &model), ("--data", &data)] {
            if !extra.contains(option) {
                args.extend([option, value]);
            }
        }
        args.extend(extra.split(' '));
        names(&fail(&args), words);
        folder.holds(&["data.jsonl"]);
    }
}

/// What would count twice, or is for another table.
#[test]
fn tables_are_asked_for_once() {
    let folder = Folder::new();
    let output = folder.path("out");
    for (extra, words) in [
        ("--seeds 0,0", &["--seeds", "0 twice"][..]),
        ("--rows lora,LoRA", &["--rows", "LoRA twice"]),
        ("--tasks rte,rte", &["--tasks", "rte twice"]),
        ("--limit 4", &["--limit", "4", "Tables IV to VI"]),
        ("--rows LoRA --learning-rate FT=1", &["--learning-rate", "FT"]),
        ("--threads 0", &["--threads", "0"]),
    ] {
        let args: Vec<&str> = ["reproduce", "--output", &output].into_iter().chain(extra.split(' ')).collect();
        names(&fail(&args), words);
    }
    folder.holds(&[]);
}

#[test]
fn virtual_tokens_leave_less_room_for_the_data() {
    let folder = Folder::new();
    let (model, adapter) = (model("roberta-classify"), folder.path("prompt"));
    let line = |tokens: usize| format!("{}\n", json!({"input_ids": vec![5; tokens], "label": tokens % 2}));
    let (short, long) =
        (folder.write("short.jsonl", &(line(3) + &line(34))), folder.write("long.jsonl", &(line(3) + &line(35))));
    let start = ["train", "--model", &model, "--method", "prompt", "--set", "num_virtual_tokens=4", "--steps", "1"];
    let train = |data: &str| peft(&[&start[..], &["--data", data, "--output", &adapter]].concat());
    assert!(train(&short).status.success());
    fs::remove_dir_all(&adapter).unwrap();
    let error = String::from_utf8(train(&long).stderr).unwrap();
    names(&error, &["long.jsonl: line 2: found 35 input_ids, expected at most 34"]);
    train(&short);
    let output = folder.path("logits");
    let forward = ["forward", "--model", &model, "--adapter", &adapter, "--input", &long, "--output", &output];
    names(&fail(&forward), &["long.jsonl: line 2: found 35 input_ids, expected at most 34"]);
    let eval = ["eval", "--model", &model, "--adapter", &adapter, "--data", &long];
    names(&fail(&eval), &["long.jsonl: line 2: found 35 input_ids, expected at most 34"]);
}

#[test]
fn outputs_that_cannot_be_written_are_named_before_the_work() {
    let folder = Folder::new();
    let (model, data) = (model("roberta-classify"), folder.data());
    let start = ["train", "--model", &model, "--method", "lora", "--data", &data, "--steps", "2"];
    let train = |output: &str| fail(&[&start[..], &["--output", output]].concat());
    names(&train(&folder.path("data.jsonl")), &["--output", "another file than the input"]);
    let other = folder.write("other", "");
    names(&train(&other), &["other", "new or empty"]);
    fs::remove_file(other).unwrap();
    names(&train(&folder.path("data.jsonl/out")), &["data.jsonl/out"]);
    names(&train("/proc/nowhere/out"), &["cannot create /proc/nowhere/out"]);
    names(&train("."), &["output", "the name of a directory"]);
    names(&fail(&[&start[..], &["--lr=-1", "--output", &folder.path("new/folder/out")]].concat()), &["learning_rate"]);
    fs::create_dir(folder.path("full")).unwrap();
    fs::write(folder.path("full/file"), "").unwrap();
    names(&train(&folder.path("full")), &["full", "new or empty"]);
    let forward = ["forward", "--model", &model, "--input", &data, "--output"];
    names(&fail(&[&forward[..], &["/dev/null"]].concat()), &["/dev/null", "special file"]);
    names(&fail(&[&forward[..], &[&data]].concat()), &["--output", "data.jsonl", "another file"]);
    names(&fail(&[&start[..], &["--output", &folder.path("o"), "--log", &data]].concat()), &["--log", "another file"]);
    let notes = folder.write("notes.txt", "not to be lost");
    names(&fail(&[&start[..], &["--output", &folder.path("o"), "--log", &notes]].concat()), &["notes.txt", "no log"]);
    assert_eq!(fs::read_to_string(notes).unwrap(), "not to be lost");
    for log in ["o/log.jsonl", "o.checkpoints/log.jsonl"] {
        let error = fail(&[&start[..], &["--output", &folder.path("o"), "--log", &folder.path(log)]].concat());
        names(&error, &["--log", "that directory comes and goes"]);
    }
    for option in [&["--metric", "accuracy"][..], &["--eval-every", "1"], &["--keep-best"]] {
        let error = fail(&[&start[..], &["--output", &folder.path("o")], option].concat());
        names(&error, &[option[0], "no data to evaluate on"]);
    }
    let forward = ["forward", "--model", &model, "--input", &data, "--output", "/proc/nowhere"];
    names(&fail(&forward), &["cannot write /proc/nowhere"]);
    // A disk that is full.
    let output = folder.path("out");
    names(
        &fail(&[&start[..], &["--output", &output, "--log", "/dev/full"]].concat()),
        &["cannot write /dev/full", "No space"],
    );
    folder.holds(&["data.jsonl", "full", "notes.txt"]);
}
