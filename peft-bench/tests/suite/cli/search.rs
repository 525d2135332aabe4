//! `peft search`: trials are kept and shared, and what is best is a file for `peft train`.

use super::*;

const SPACE: &str = "
- method: autopeft
  num_train_epochs: 2
  learning_rate: 5e-3
  per_device_train_batch_size: 8
  choices: {serial: [0, 2, 5], parallel: [0, 3], prefix: [0, 2]}
  subsets: {layers: [0, 1]}
- {method: lora, num_train_epochs: 2, per_device_train_batch_size: 8, choices: {r: [1, 2, 4], learning_rate: [1e-3, 1e-2]}}
";

struct Case {
    folder: Folder,
    args: Vec<String>,
}

impl Case {
    fn new(more: &[&str]) -> Self {
        let folder = Folder::new();
        let (space, data) = (folder.write("space.yaml", SPACE), folder.data());
        let args = ["search", "--space", &space, "--model", &model("bert-classify"), "--data", &data, "--eval", &data];
        let args = args.iter().chain(["--metric", "accuracy"].iter()).chain(more).map(|arg| arg.to_string());
        Case { args: args.collect(), folder }
    }

    fn args(&self, output: &str) -> Vec<String> {
        [&self.args[..], &["--output".to_string(), self.folder.path(output)]].concat()
    }

    fn run(&self, output: &str) -> Value {
        let args = self.args(output);
        serde_json::from_str(&succeed(&args.iter().map(String::as_str).collect::<Vec<_>>())).unwrap()
    }

    fn outcome(&self, output: &str, trial: usize) -> PathBuf {
        PathBuf::from(self.folder.path(&format!("{output}/trials/{trial:04}.outcome.json")))
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_search_goes_on_where_it_was_and_gives_a_file_for_train() {
    let case = Case::new(&["--budget", "6", "--strategy", "bayes", "--seed", "3"]);
    let result = case.run("search");
    assert_eq!((&result["trials"], &result["running"]), (&json!(6), &json!([])));
    let front = result["front"].as_array().unwrap();
    assert!(!front.is_empty() && front.iter().any(|trial| trial["accuracy"] == result["best"]["accuracy"]));
    // It is done: nothing is trained again.
    let before = fs::read(case.outcome("search", 5)).unwrap();
    assert_eq!(case.run("search"), result);
    assert_eq!(fs::read(case.outcome("search", 5)).unwrap(), before);
    // As after a kill in the middle of a trial, and of one that had no outcome yet.
    for trial in [2, 5] {
        let path = case.outcome("search", trial);
        let kept = read(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(case.run("search"), result);
        assert_eq!(read(&path)["metrics"], kept["metrics"]);
    }
    assert_eq!(Case::run(&case, "again")["best"], result["best"]);
    let (config, output) = (case.folder.path("search/best.yaml"), case.folder.path("best"));
    let trained: Value = serde_json::from_str(&succeed(&["train", "--config", &config, "--output", &output])).unwrap();
    assert_eq!(trained["metrics"]["accuracy"], result["best"]["accuracy"]);
    assert_eq!(trained["trainable"]["method"], result["best"]["numbers"]);
}

/// The files of a search are those that it makes: none that is read, none of a directory that was there for something else.
#[test]
fn a_search_replaces_nothing_but_its_own() {
    for name in ["best.yaml", "front.json", "trials/search.json"] {
        for option in ["--space", "--data", "--eval"] {
            let case = Case::new(&["--budget", "1"]);
            let mut args = case.args("search");
            let at = 1 + args.iter().position(|arg| arg == option).unwrap();
            let (read, text) = (case.folder.path(&format!("search/{name}")), fs::read(&args[at]).unwrap());
            fs::create_dir_all(Path::new(&read).parent().unwrap()).unwrap();
            fs::create_dir_all(case.folder.path("search/trials")).unwrap();
            fs::write(&read, &text).unwrap();
            args[at] = read.clone();
            names(&fail(&args.iter().map(String::as_str).collect::<Vec<_>>()), &["--output", "search"]);
            assert_eq!(fs::read(&read).unwrap(), text, "{option} {name}");
        }
    }
    let case = Case::new(&["--budget", "1"]);
    let mine = case.folder.path("mine/best.yaml");
    fs::create_dir(case.folder.path("mine")).unwrap();
    fs::write(&mine, "mine").unwrap();
    let args = case.args("mine");
    names(&fail(&args.iter().map(String::as_str).collect::<Vec<_>>()), &["mine", "a new or empty directory"]);
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
}

#[test]
fn processes_share_a_search() {
    let case = Case::new(&["--budget", "6", "--strategy", "random"]);
    let alone = case.run("alone");
    let args = case.args("shared");
    let start = || Command::new(env!("CARGO_BIN_EXE_peft")).args(&args).output().unwrap();
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..2).map(|_| scope.spawn(start)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for output in outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let shared = case.run("shared");
    for key in ["best", "front", "hypervolume", "trials"] {
        assert_eq!(shared[key], alone[key], "{key}");
    }
    assert!(!case.outcome("shared", 6).exists());
}

#[test]
fn halving_gives_some_less_training() {
    let case = Case::new(&["--budget", "13", "--strategy", "halving"]);
    let result = case.run("search");
    let steps = |trial| read(&case.outcome("search", trial))["steps"].as_u64().unwrap();
    // Two epochs of three batches.
    assert_eq!([0, 8, 9, 11, 12].map(steps), [1, 1, 2, 2, 6]);
    assert_eq!(result["best"]["trial"], 12);
}

#[test]
fn what_cannot_be_searched_is_refused_before_the_first_trial() {
    for (space, words) in [
        ("method: lora\nchoices: {r: 3}", ["space.yaml", "r", "list"]),
        ("method: lora\nchoices: {rank: [3]}", ["space.yaml", "rank", "known"]),
        ("method: lora\noutput_dir: here\nchoices: {r: [3]}", ["space.yaml", "output_dir", "option of the search"]),
        ("method: nothing\nchoices: {r: [3]}", ["space.yaml", "method", "nothing"]),
        ("choices: {r: [3]}", ["space.yaml", "r", "known"]),
        ("method: lora\nchoices: {r: [0]}", ["space.yaml", "r", "0"]),
        ("method: lora\nchoices: {r: [1, x]}", ["space.yaml", "r", "\"x\""]),
        ("method: lora\nchoices: {r: [2, 100000]}", ["space.yaml", "r", "100000"]),
        ("method: lora\nchoices: {r: [2, 4, 2]}", ["space.yaml", "r", "2 twice"]),
        ("method: lora\nchoices: {rr: [1, 2]}", ["space.yaml", "rr", "`r`"]),
        ("method: lora\nchoises: {r: [1, 2]}", ["space.yaml", "choises", "`choices`"]),
        ("method: lora\nchoices: {target_modules: [[query], [qury]]}", ["space.yaml", "qury", "a match among"]),
        ("method: lora\nsubsets: {layers_to_transform: [0, 7]}", ["space.yaml", "layers_to_transform", "7"]),
        ("method: lora\nchoices: {learning_rate: [1e-3, abc]}", ["space.yaml", "learning_rate", "abc"]),
        ("method: lora\nchoices: {learning_rate: [1e-3, -1]}", ["space.yaml", "learning_rate", "-1"]),
        ("choices: {method: [lora, lara]}", ["space.yaml", "method", "lara"]),
        ("[", ["space.yaml", "content", "YAML"]),
    ] {
        let case = Case::new(&[]);
        case.folder.write("space.yaml", space);
        let args = case.args("search");
        names(&fail(&args.iter().map(String::as_str).collect::<Vec<_>>()), &words);
        assert!(!Path::new(&case.folder.path("search")).exists(), "{space}");
    }
    // A pipe that nobody writes would be waited for.
    for option in ["--space", "--data", "--eval"] {
        let (case, pipe) = (Case::new(&["--budget", "1"]), Folder::new());
        assert!(Command::new("mkfifo").arg(pipe.path("pipe")).status().unwrap().success());
        let mut args = case.args("search");
        let at = 1 + args.iter().position(|arg| arg == option).unwrap();
        args[at] = pipe.path("pipe");
        names(&fail(&args.iter().map(String::as_str).collect::<Vec<_>>()), &["pipe", "a special file"]);
    }
    let case = Case::new(&["--strategy", "luck"]);
    let args = case.args("search");
    names(&fail(&args.iter().map(String::as_str).collect::<Vec<_>>()), &["--strategy", "luck", "random, bayes"]);
    let case = Case::new(&["--budget", "2"]);
    case.run("search");
    let other = [&case.args("search")[..], &["--seed".to_string(), "1".to_string()]].concat();
    names(&fail(&other.iter().map(String::as_str).collect::<Vec<_>>()), &["search.json", "seed", "another directory"]);
}
