//! A hub in this process, and the command with the variables that name it: bases and data sets from
//! it, with and without it in reach, and adapters that go there.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use togi_testing::hub::COMMIT;
use togi_testing::{LocalHub, poll_until};

use super::world::{Ran, command, togi};

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/base");
const RECIPE: &str = "max_steps = 2\nlearning_rate = 0.01\n[lora]\nrank = 2\n";

/// A hub with a base and a data set, and a folder for the command.
struct Bench {
    hub: Option<LocalHub>,
    endpoint: String,
    folder: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let hub = LocalHub::start().await;
        for entry in fs::read_dir(BASE).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            hub.put("models/me/base", &name, fs::read(entry.path()).unwrap());
        }
        let record =
            |n: usize| format!("{{\"instruction\":\"{n}番の色は？\",\"output\":\"赤\"}}\n");
        let records = |from, to| (from..to).map(record).collect::<String>();
        let card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    \
                    path: first/*.jsonl\n  - split: validation\n    path: train.jsonl\n  - split: \
                    test\n    path: other/*\n---\n# Records\n";
        hub.put("datasets/me/records", "README.md", card);
        hub.put("datasets/me/records", "first/a.jsonl", records(0, 8));
        hub.put("datasets/me/records", "first/b.jsonl", records(8, 16));
        // The card decides, and not the names.
        hub.put("datasets/me/records", "train.jsonl", records(16, 20));
        hub.put("datasets/me/records", "other/test.jsonl", records(20, 30));
        hub.put("datasets/me/records", "validation.jsonl", records(30, 40));
        Self {
            endpoint: hub.endpoint.clone(),
            hub: Some(hub),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn hub(&self) -> &LocalHub {
        self.hub.as_ref().unwrap()
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self) -> Command {
        let mut command = command(self.path());
        command
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HOME", self.path().join("hf"))
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("TRANSFORMERS_OFFLINE")
            .env_remove("HF_TOKEN");
        command
    }

    /// Runs the command with more variables, while the hub's tasks go on.
    fn run(&self, words: &str, variables: &[(&str, &str)]) -> Ran {
        let mut command = self.command();
        command
            .args(words.split(' '))
            .envs(variables.iter().copied())
            .stdin(Stdio::null());
        let ran = tokio::task::block_in_place(|| command.output().unwrap());
        Ran {
            code: ran.status.code().unwrap_or(-1),
            stdout: String::from_utf8(ran.stdout).unwrap(),
            stderr: String::from_utf8(ran.stderr).unwrap(),
        }
    }

    /// Starts the services over the hub's base, and waits until they are ready.
    fn up(&self, variables: &[(&str, &str)]) -> Up {
        let _ = fs::remove_file(self.path().join("up.out"));
        let base = "hub=hf://me/base";
        let log = fs::File::create(self.path().join("up.log")).unwrap();
        let child = self
            .command()
            .args(["up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--base", base, "--serve", "hub", "-o", "json"])
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(fs::File::create(self.path().join("up.out")).unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let up = Up(child);
        tokio::task::block_in_place(|| {
            poll_until("togi up", || {
                let text = fs::read_to_string(self.path().join("up.out")).ok()?;
                serde_json::from_str::<Value>(&text).ok()
            })
        });
        up
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path().join(file)).unwrap()).unwrap()
    }
}

/// A `togi up` that is stopped on drop.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        // Its nats-server must stop too.
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_was_fetched_needs_no_hub_and_another_is_refused_at_once_offline() {
    let mut bench = Bench::start().await;
    let offline = [("HF_HUB_OFFLINE", "1")];
    let refused = bench.run("fetch hf://me/base", &offline).expect(5);
    for part in ["hf://me/base is not in the hub's cache", "HF_HUB_OFFLINE"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    assert_eq!(bench.hub().requests(), [""; 0], "nothing was asked");
    // A commit by its id leaves no branch, and the message says what is there.
    let pinned = format!("fetch hf://me/base@{COMMIT}");
    bench.run(&pinned, &[]).expect(0);
    let refused = bench.run("fetch hf://me/base", &offline).expect(5);
    let says = format!("which has of it {COMMIT} (name the commit behind @)");
    assert!(refused.stderr.contains(&says), "{}", refused.stderr);
    let fetched = bench.run("fetch hf://me/base", &[]).expect(0).stdout;
    // From here on the hub is away.
    bench.hub.take();
    for (words, variables) in [
        ("fetch hf://me/base", &offline[..]),
        (&pinned, &offline),
        (&pinned, &[]),
        ("fetch hf://me/base", &[("TRANSFORMERS_OFFLINE", "yes")]),
    ] {
        let ran = bench.run(words, variables).expect(0);
        assert_eq!(ran.stdout, fetched, "{words}");
        assert_eq!(ran.stderr, "", "{words}");
    }
    let up = "up --listen 127.0.0.1:0 --admin 127.0.0.1:0 --base x=hf://me/other --serve x";
    let ended = bench.run(up, &offline).expect(5);
    let says = "hf://me/other is not in the hub's cache";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
    let spiece = bench.path().join("hf/hub/models--me--base/snapshots");
    fs::remove_file(spiece.join(COMMIT).join("spiece.model")).unwrap();
    let lacking = bench.run(&pinned, &offline).expect(5);
    assert!(
        lacking.stderr.contains("spiece.model missing"),
        "{}",
        lacking.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hubs_records_are_those_of_its_card_and_its_adapter_goes_there_with_the_base() {
    let mut bench = Bench::start().await;
    let up = bench.up(&[]);
    fs::write(bench.path().join("recipe.toml"), RECIPE).unwrap();
    let prepare = "prepare hf://datasets/me/records --name r --base hub -o json";
    drop(bench.hub().requests());
    let dataset = bench.run(prepare, &[]).expect(0).json();
    assert_eq!(
        (&dataset["rows"], &dataset["validationRows"]),
        (&"16".into(), &"4".into())
    );
    let requests = bench.hub().requests().join("\n");
    for (file, is_read) in [
        ("first/a.jsonl", true),
        ("first/b.jsonl", true),
        ("/train.jsonl", true),
        ("other/test.jsonl", false),
        ("validation.jsonl", false),
    ] {
        assert_eq!(requests.contains(file), is_read, "{file} in {requests}");
    }
    let train = "train --recipe recipe.toml --base hub --dataset r --alias mine --watch -o json";
    let watched = bench.run(train, &[]).expect(0).json_lines();
    let generation = watched.last().unwrap()["job"]["result"].clone();

    let pulled = bench.run("adapters pull mine got -o json", &[]).expect(0);
    assert_eq!(pulled.stderr, "");
    assert_eq!(pulled.json()["generation"], generation);
    let config = bench.json("got/adapter_config.json");
    assert_eq!(config["base_model_name_or_path"], "me/base");
    assert_eq!(config["revision"], COMMIT);
    let card = fs::read_to_string(bench.path().join("got/README.md")).unwrap();
    let whole = bench.path().join("got").display().to_string();
    let opening = format!("AutoPeftModelForCausalLM.from_pretrained({whole:?})");
    assert!(card.contains(&opening), "{card}");
    assert!(card.contains("base_model: \"me/base\""), "{card}");
    let tensors = |file: &str| fs::read(bench.path().join(file)).unwrap();
    let generation = generation.as_str().unwrap();
    let stored = format!(".togi/store/adapters/{generation}/adapter_model.safetensors");
    let stored = tensors(&stored);
    assert!(tensors("got/adapter_model.safetensors") == stored);
    // Never over a folder with files, unless it is said.
    let again = bench.run("adapters pull mine got", &[]).expect(5);
    assert!(again.stderr.contains("--replace"), "{}", again.stderr);
    let prefix = &generation[..8];
    bench
        .run(&format!("adapters pull {prefix} got --replace"), &[])
        .expect(0);
    bench.run("adapters pull other new", &[]).expect(3);
    let snapshot = format!("hf/hub/models--me--base/snapshots/{COMMIT}");
    opens_in_peft(&bench, "got", &snapshot);

    is_pushed(&bench, generation, &stored);
    drop(up);
    bench.hub.take();
    reads_the_cache(&bench, prepare, &dataset);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_over_a_folder_names_the_folder_and_is_pushed_only_with_another_name() {
    let bench = Bench::start().await;
    fs::write(bench.path().join("recipe.toml"), RECIPE).unwrap();
    let record = "{\"instruction\":\"色は？\",\"output\":\"赤\"}\n";
    fs::write(bench.path().join("records.jsonl"), record.repeat(4)).unwrap();
    std::os::unix::fs::symlink(BASE, bench.path().join("base")).unwrap();
    let train = "train --local --recipe recipe.toml --base base --records records.jsonl --out out";
    togi(bench.path(), &train.split(' ').collect::<Vec<_>>(), "").expect(0);
    let folder = fs::canonicalize(BASE).unwrap();
    let config = bench.json("out/adapter_config.json");
    assert_eq!(config["base_model_name_or_path"], folder.to_str().unwrap());
    opens_in_peft(&bench, "out", "base");
    let refused = bench.run("adapters push ./out hf://me/mine", &[]).expect(5);
    assert!(
        refused.stderr.contains("--base OWNER/NAME"),
        "{}",
        refused.stderr
    );
    let named = "adapters push ./out hf://me/mine --base hf://me/base@main";
    bench.run(named, &[]).expect(0);
    let there = bench.hub().repository("models/me/mine").unwrap();
    let config: Value = serde_json::from_slice(&there.files["adapter_config.json"]).unwrap();
    assert_eq!(config["base_model_name_or_path"], "me/base");
    assert_eq!(config["revision"], "main");
    assert_eq!(bench.run("adapters push ./out me/mine", &[]).code, 2);
    assert_eq!(
        bench
            .run("adapters push ./out hf://datasets/me/x --base a/b", &[])
            .code,
        2
    );
}

/// Pushes the adapter `mine`, and the folder `got` that was pulled of it.
fn is_pushed(bench: &Bench, generation: &str, stored: &[u8]) {
    bench.hub().require_token("hf_right");
    let push = "adapters push mine hf://me/mine -o json";
    let refused = bench.run(push, &[("HF_TOKEN", "hf_wrong")]).expect(5);
    assert!(refused.stderr.contains("HF_TOKEN"), "{}", refused.stderr);
    assert_eq!(bench.hub().repository("models/me/mine"), None);
    bench.run(push, &[("HF_TOKEN", "hf_right")]).expect(0);
    let there = bench.hub().repository("models/me/mine").unwrap();
    assert!(there.private);
    assert!(there.files["adapter_model.safetensors"] == stored);
    let config: Value = serde_json::from_slice(&there.files["adapter_config.json"]).unwrap();
    assert_eq!(config["base_model_name_or_path"], "me/base");
    let card = String::from_utf8_lossy(&there.files["README.md"]);
    assert!(
        card.contains("AutoPeftModelForCausalLM.from_pretrained(\"me/mine\")"),
        "{card}"
    );
    assert!(
        there.messages[0].contains(generation),
        "{:?}",
        there.messages
    );
    // A folder goes there as well, and a repository is public only if that is said.
    let token = [("HF_TOKEN", "hf_right")];
    bench
        .run("adapters push got hf://me/other --public -m Folder", &token)
        .expect(0);
    let other = bench.hub().repository("models/me/other").unwrap();
    assert_eq!((other.private, &other.messages[0][..]), (false, "Folder"));
    assert!(other.files["adapter_model.safetensors"] == stored);
    assert_eq!(other.files.len(), there.files.len());
}

/// Services that must not ask the hub read the same records from its cache, and no others.
fn reads_the_cache(bench: &Bench, prepare: &str, dataset: &Value) {
    let _up = bench.up(&[("HF_HUB_OFFLINE", "1")]);
    let again = bench.run(&prepare.replace("--name r", "--name s"), &[]);
    assert_eq!(again.expect(0).json()["digest"], dataset["digest"]);
    for (words, says) in [
        (
            "hf://datasets/me/records --split test",
            "other/test.jsonl missing",
        ),
        ("hf://datasets/me/none", "not in the hub's cache"),
    ] {
        let ran = bench
            .run(&format!("prepare {words} --name t --base hub"), &[])
            .expect(5);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
}

/// Opens a folder by PEFT's own loader, which finds the base without a hub; compares the logits.
fn opens_in_peft(bench: &Bench, folder: &str, base: &str) {
    let Some(python) = std::env::var_os("TOGI_PEFT_PYTHON") else {
        eprintln!(
            "SKIPPED PEFT's own loader: TOGI_PEFT_PYTHON names no Python with torch and peft"
        );
        return;
    };
    fs::write(bench.path().join("ids.jsonl"), "[5, 6, 7, 8]\n").unwrap();
    let ours = format!("logits --base {base} --adapter {folder} --ids ids.jsonl --out ours");
    bench.run(&ours, &[]).expect(0);
    let script = "import sys, torch\n\
                  from peft import AutoPeftModelForCausalLM\n\
                  from safetensors.torch import load_file\n\
                  model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).float().eval()\n\
                  with torch.no_grad(): theirs = model(torch.tensor([[5, 6, 7, 8]])).logits[0]\n\
                  difference = (theirs - load_file('ours')['logits.1']).abs().max()\n\
                  assert difference < 1e-4, difference\n";
    let mut command = Command::new(python);
    command
        .args(["-c", script, folder])
        .current_dir(bench.path())
        .env("HF_HOME", bench.path().join("hf"))
        .env("HF_HUB_OFFLINE", "1");
    let ran = command.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
}
