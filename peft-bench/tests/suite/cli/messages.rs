//! What stands in a file's or directory's place, called by its name.

use super::*;

/// What a checkout without Git LFS has in place of a large file.
const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef0123456789abcdef\nsize 91912\n";

#[test]
fn a_pointer_of_git_lfs_is_called_one_wherever_a_file_is_read() {
    let folder = Folder::new();
    let (model, data) = (spelling_model(&folder, "roberta-classify"), folder.data());
    let adapter = folder.path("adapter");
    let lora = ["train", "--model", &model, "--method", "lora", "--steps", "1", "--data", &data, "--output", &adapter];
    assert!(peft(&lora).status.success());
    let text = ["predict", "--model", &model, "--text", "x"];
    let tuned = [&text[..], &["--adapter", &adapter]].concat();
    let file = ["predict", "--model", &model, "--file", &data];
    let eval = ["eval", "--model", &model, "--data", &data];
    for (path, args) in [
        (Path::new(&model).join("config.json"), &text[..]),
        (Path::new(&model).join("model.safetensors"), &text),
        (Path::new(&model).join("tokenizer.json"), &text),
        (Path::new(&adapter).join("adapter_config.json"), &tuned),
        (Path::new(&adapter).join("adapter_model.safetensors"), &tuned),
        (data.clone().into(), &file),
        (data.clone().into(), &eval),
    ] {
        let good = fs::read(&path).unwrap();
        fs::write(&path, POINTER).unwrap();
        names(&fail(args), &[&path.file_name().unwrap().to_string_lossy(), "pointer of Git LFS", "git lfs pull"]);
        fs::write(&path, good).unwrap();
    }
    assert!(peft(&tuned).status.success());
}

#[test]
fn an_adapter_in_a_models_place_and_a_model_in_an_adapters_are_told_apart() {
    let (lora, model) = (golden("peft-reparam", "lora-llama"), model("llama"));
    let (adapter, gguf) = (lora.join("adapter").display().to_string(), lora.join("adapter.gguf").display().to_string());
    for command in ["generate --prompt x", "predict --text x", "params --method lora", "merge --adapter x --output y"] {
        let args: Vec<&str> = command.split(' ').collect();
        let with = |model: &str| fail(&[&args[..], &["--model", model]].concat());
        names(&with(&adapter), &["--model", "an adapter", "--adapter"]);
        names(&with(&gguf), &["adapter.gguf", "general.type", "an adapter"]);
    }
    let merge = |adapter: &str| fail(&["merge", "--model", &model, "--adapter", adapter, "--output", "y"]);
    names(&merge(&gguf), &["adapter.gguf", "GGUF", "adapter", "peft convert --to hf"]);
    names(&merge(&model), &["llama", "a model's directory", "adapter_config.json"]);
    let other = golden("peft-core", "gguf/llama.gguf").display().to_string();
    names(&merge(&other), &["llama.gguf", "a model in GGUF", "an adapter's directory"]);
}

#[test]
fn an_option_that_is_given_twice_is_refused() {
    let (folder, model) = (Folder::new(), model("roberta-classify"));
    let (data, output) = (folder.data(), folder.path("out"));
    let args = ["train", "--model", &model, "--data", &data, "--steps", "1", "--output", &output];
    names(&fail(&[&args[..], &["--method", "lora", "--seed", "1", "--seed", "2"]].concat()), &["--seed", "multiple"]);
    folder.holds(&["data.jsonl"]);
}
