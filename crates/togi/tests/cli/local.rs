//! The commands without services, on the embedded base: their output equals the library's result.

use std::fs;
use std::sync::Arc;

use safetensors::SafeTensors;
use togi_model::{Base, Engine};
use togi_tokens::{Columns, Encoder, Record, Settings};

use super::bench::{Bench, RECIPE, RECORDS};

const DEMO_RECIPE: &str = include_str!("../../../../recipes/demo-cpu.toml");
const DEMO_RECORDS: &str = include_str!("../../../../demo/records.jsonl");

fn ids(line: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(line["ids"].clone()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect()
}

#[test]
fn texts_become_ids_and_ids_texts() {
    let bench = Bench::new();
    let tokenizer = bench.tokenizer();
    let texts = ["山は？", "  two  words ", "一\n二</s>", ""];
    let lines: String = texts
        .iter()
        .map(|text| format!("{}\n", serde_json::json!({ "text": text })))
        .collect();
    let ran = bench.feed("tokenize --base base", &lines).expect(0);
    let found: Vec<Vec<u32>> = ran.json_lines().iter().map(ids).collect();
    let wanted: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text)).collect();
    assert_eq!(found, wanted);

    let back = bench
        .feed("tokenize --base base --decode", &ran.stdout)
        .expect(0);
    let decoded: Vec<serde_json::Value> = back.json_lines();
    for (line, ids) in decoded.iter().zip(&wanted) {
        assert_eq!(line["text"], tokenizer.decode(ids));
    }
    let plain = bench
        .feed(
            "tokenize --tokenizer base/spiece.model --plain --eos",
            "山は？\n\n",
        )
        .expect(0);
    let eos = tokenizer.eos().unwrap();
    let mut first = tokenizer.encode("山は？");
    first.push(eos);
    let found: Vec<Vec<u32>> = plain.json_lines().iter().map(ids).collect();
    assert_eq!(found, [first, vec![eos]]);
}

#[test]
fn templated_records_are_the_rows_of_training() {
    let bench = Bench::new();
    for max_length in [512, 9] {
        let settings = Settings {
            max_length,
            ..Settings::default()
        };
        let mut encoder = Encoder::new(bench.tokenizer(), settings).unwrap();
        let line = format!(
            "tokenize --base base records.jsonl --template --eos --max-length {max_length}"
        );
        let found: Vec<Vec<u32>> = bench
            .run(&line)
            .expect(0)
            .json_lines()
            .iter()
            .map(ids)
            .collect();
        let wanted: Vec<Vec<u32>> = RECORDS
            .lines()
            .map(|line| {
                let record = Record::from_json_slice(line.as_bytes(), &Columns::default()).unwrap();
                encoder.row(&record).unwrap().input_ids
            })
            .collect();
        assert_eq!(found, wanted);
    }
}

#[test]
fn records_in_other_forms_are_tokenized_alike() {
    let bench = Bench::new();
    let record = serde_json::json!({"instruction": "山は,？", "output": "富士\n山"});
    let chat = serde_json::json!([{"conversations": [
        {"from": "human", "value": "山は,？"}, {"from": "gpt", "value": "富士\n山"},
    ]}]);
    bench.write("plain.jsonl", &record.to_string());
    bench.write("chat.json", &chat.to_string());
    bench.write("qa.csv", "問,答\r\n\"山は,？\",\"富士\n山\"\r\n");
    let ids = |file: &str| {
        let line = format!("tokenize --base base --template {file}");
        bench.run(&line).expect(0).stdout
    };
    let wanted = ids("plain.jsonl");
    assert_eq!(wanted.lines().count(), 1);
    assert_eq!(ids("chat.json"), wanted);
    assert_eq!(ids("chat.json --format sharegpt"), wanted);
    assert_eq!(
        ids("qa.csv --column instruction=問 --column output=答"),
        wanted
    );
    let refused = bench
        .run("tokenize --base base --template qa.csv")
        .expect(2);
    assert!(
        refused.stderr.contains("its columns are 問, 答"),
        "{}",
        refused.stderr
    );
    for line in [
        "tokenize --base base plain.jsonl --format csv",
        "train --recipe r --dataset d --format csv",
    ] {
        let refused = bench.run(line).expect(2);
        assert!(refused.stderr.contains("--format"), "{}", refused.stderr);
    }
}

#[test]
fn logits_are_the_networks_for_every_line() {
    let bench = Bench::new();
    let (engine, lora) = (bench.engine(), bench.adapter("adapter"));
    let tokenizer = bench.tokenizer();
    bench.write("texts.jsonl", "\"山は？\"\n\n{\"text\": \"川は？\"}\n");
    bench
        .run("logits --base base --text texts.jsonl --out a.safetensors --adapter adapter")
        .expect(0);
    let bytes = fs::read(bench.path("a.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), 4, "{:?}", file.names());
    let adapter = engine.adapter(&lora).unwrap();
    for (number, text) in [(1, "山は？"), (3, "川は？")] {
        let ids = tokenizer.encode(text);
        let logits = file.tensor(&format!("logits.{number}")).unwrap();
        assert_eq!(logits.shape(), [ids.len(), engine.config().vocab_size]);
        let expected = engine.logits(&ids, Some(&adapter)).unwrap();
        assert_eq!(floats(logits.data()), expected);
        let beside: Vec<u8> = ids
            .iter()
            .flat_map(|&id| i64::from(id).to_le_bytes())
            .collect();
        assert_eq!(
            file.tensor(&format!("ids.{number}")).unwrap().data(),
            beside
        );
    }

    let line = serde_json::json!({ "ids": tokenizer.encode("山は？") }).to_string();
    let ran = bench
        .feed(
            "logits --base base --ids - --out b.safetensors -o json",
            &line,
        )
        .expect(0);
    assert_eq!(ran.json()["lines"], 1);
    let bytes = fs::read(bench.path("b.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let base_alone = engine.logits(&tokenizer.encode("山は？"), None).unwrap();
    assert_eq!(floats(file.tensor("logits.1").unwrap().data()), base_alone);
}

#[test]
fn training_twice_gives_the_same_bytes() {
    let bench = Bench::new();
    let first = bench.train("--out one -o json").expect(0).json();
    let second = bench.train("--out two --log steps.jsonl -o json").expect(0);
    assert_eq!(first["generation"], second.json()["generation"]);
    assert_eq!(bench.tensors("one"), bench.tensors("two"));
    let report = fs::read_to_string(bench.path("one/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["generation"], first["generation"]);
    let (log, other) = (bench.log("one/log.jsonl"), bench.log("steps.jsonl"));
    assert_eq!(log.len(), 6, "5 records, 2 a step, 2 epochs");
    for (line, other) in log.iter().zip(&other) {
        for field in ["step", "loss", "gradientNorm", "learningRate", "epoch"] {
            assert!(!line[field].is_null(), "{field} in {line}");
            assert_eq!(line[field], other[field]);
        }
    }
    assert!(!bench.path("two/log.jsonl").exists());
}

#[test]
fn training_starts_from_an_adapter_and_keeps_the_files_order() {
    let bench = Bench::new();
    let init = bench.adapter("init");
    bench.write(
        "recipe.toml",
        &format!("shuffle = false\nmax_steps = 1\n{RECIPE}"),
    );
    bench.train("--out out --init-adapter init").expect(0);
    let log = bench.log("out/log.jsonl");
    // The first window is the file's first two records, with the initial adapter's values.
    let mut encoder = Encoder::new(bench.tokenizer(), Settings::default()).unwrap();
    let mut batch = togi_model::Batch::new();
    for (slot, line) in RECORDS.lines().take(2).enumerate() {
        let record = Record::from_json_slice(line.as_bytes(), &Columns::default()).unwrap();
        let row = encoder.row(&record).unwrap();
        batch.push(&row.input_ids, &row.labels, slot as u32);
    }
    let loss = bench.engine().evaluate(Some(&init), &batch).unwrap().mean();
    let found = log[0]["loss"].as_f64().unwrap();
    assert!((found - loss).abs() < 1e-6 * loss, "{found} and {loss}");

    bench.write("recipe.toml", &RECIPE.replace("rank = 2", "rank = 3"));
    let other = bench.train("--out out --init-adapter init").expect(5);
    let says = "init_adapter has rank 2, the recipe has 3";
    assert!(other.stderr.contains(says), "{}", other.stderr);
}

/// Compares early steps: while the loss is high, the rounding of an fp8 base's weights has the
/// largest effect.
#[test]
fn losses_over_an_fp8_base_stay_near_those_over_f32() {
    let bench = Bench::new();
    let [f32, fp8] = ["f32", "fp8"].map(|precision| {
        let recipe = DEMO_RECIPE
            .replace(
                "base_precision = \"f32\"",
                &format!("base_precision = {precision:?}"),
            )
            .replace("max_steps = 0", "max_steps = 50");
        bench.write("recipe.toml", &recipe);
        bench.write("records.jsonl", DEMO_RECORDS);
        bench
            .train(&format!("--learn answer --out {precision}"))
            .expect(0);
        let log = bench.log(&format!("{precision}/log.jsonl"));
        let losses = log.iter().map(|line| line["loss"].as_f64().unwrap());
        losses.collect::<Vec<_>>()
    });
    assert_eq!([f32.len(), fp8.len()], [50; 2]);
    assert_ne!(f32, fp8);
    for (step, (f32, fp8)) in f32.iter().zip(&fp8).enumerate() {
        assert!(
            (f32 - fp8).abs() < 0.02,
            "step {}: {f32} and {fp8}",
            step + 1
        );
    }
}

#[test]
fn what_is_learned_and_what_is_left_out_is_said() {
    let bench = Bench::new();
    let all = bench.train("--out all -o json").expect(0).json();
    let answers = bench
        .train("--out answers --learn answer -o json")
        .expect(0)
        .json();
    assert_ne!(all["generation"], answers["generation"]);
    bench.write(
        "records.jsonl",
        &format!("{RECORDS}{{\"instruction\":\"？\"}}\n"),
    );
    let ran = bench.train("--out out").expect(0);
    assert!(ran.stderr.contains("cannot be used: 1"), "{}", ran.stderr);
    let rejects = fs::read_to_string(bench.path("out/rejects.jsonl")).unwrap();
    assert!(rejects.contains("\"line\":6"), "{rejects}");
}

#[test]
fn a_base_is_made_of_a_shape_and_a_seed() {
    let bench = Bench::new();
    let make = |more: &str| bench.run(&format!("make-base --shape base/config.json {more}"));
    let ran = make("--seed 3 --dtype fp16 --buffers-2023 --out made -o json").expect(0);
    let made = Base::load(&bench.path("made")).unwrap();
    assert_eq!(ran.json()["parameters"], made.parameters());
    assert_eq!(made.config(), bench.engine().config());
    make("--seed 3 --dtype fp16 --buffers-2023 --out again").expect(0);
    let again = Base::load(&bench.path("again")).unwrap();
    assert_eq!(made.digest(), again.digest());
    make("--seed 4 --out other").expect(0);
    assert_ne!(
        Base::load(&bench.path("other")).unwrap().digest(),
        made.digest()
    );
    make("--out made").expect(5);
    bench.run("make-base --shape none --out x").expect(3);
}

#[test]
fn a_packed_base_is_what_the_same_base_is_held_as() {
    let bench = Bench::new();
    let ids = "{\"ids\": [5, 9, 30, 7]}\n";
    for precision in ["nf4", "int8"] {
        bench
            .run(&format!(
                "quantize --base base --precision {precision} --out {precision}"
            ))
            .expect(0);
        for (base, out) in [("base", "a"), (precision, "b")] {
            let line = format!("logits --base {base} --precision {precision} --ids - --out {out}");
            bench.feed(&line, ids).expect(0);
        }
        let read = |name: &str| fs::read(bench.path(name)).unwrap();
        assert_eq!(read("a"), read("b"), "{precision}");
        bench
            .feed("logits --base base --ids - --out c", ids)
            .expect(0);
        assert_ne!(read("a"), read("c"), "{precision}");
        let again = bench.feed(&format!("logits --base {precision} --ids - --out c"), ids);
        assert!(again.expect(5).stderr.contains(precision), "held otherwise");
        let recipe = format!("base_precision = '{precision}'\nmax_steps = 2\n{RECIPE}");
        bench.write("recipe.toml", &recipe);
        bench.train(&format!("--out trained-{precision}")).expect(0);
    }
    assert_ne!(bench.tensors("trained-nf4"), bench.tensors("trained-int8"));
    bench
        .run("quantize --base base --precision f32 --out f32")
        .expect(5);
}

#[test]
fn a_merged_base_says_what_base_and_adapter_say() {
    let bench = Bench::new();
    let lora = bench.adapter("adapter");
    bench
        .run("export --merged --base base --adapter adapter --out merged")
        .expect(0);
    let ids = bench.tokenizer().encode("山は？");
    let engine = bench.engine();
    let adapter = engine.adapter(&lora).unwrap();
    let apart = engine.logits(&ids, Some(&adapter)).unwrap();
    let merged = Base::load(&bench.path("merged")).unwrap();
    assert!(merged.tokenizer().is_some());
    let merged = Engine::new(Arc::new(merged)).unwrap();
    let merged = merged.logits(&ids, None).unwrap();
    let largest = apart
        .iter()
        .zip(&merged)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(largest < 1e-4, "{largest}");
    let again = bench
        .run("export --merged --base base --adapter adapter --out merged")
        .expect(5);
    assert!(again.stderr.contains("not empty"), "{}", again.stderr);
}

#[test]
fn an_answer_with_an_adapter_is_another_than_the_bases() {
    let bench = Bench::new();
    bench.adapter("adapter");
    let generate = |more: &str| {
        let line = format!(
            "generate --base base --instruction 山は？ --greedy --max-new-tokens 12 -o json {more}"
        );
        bench.run(&line).expect(0).json_lines()
    };
    let (base, adapted) = (generate(""), generate("--adapter adapter"));
    assert!(base[0]["started"]["generation"].is_null(), "{base:?}");
    let digest = adapted[0]["started"]["generation"].as_str().unwrap();
    assert_eq!(digest.len(), 64);
    assert_ne!(base[1..base.len() - 1], adapted[1..adapted.len() - 1]);
    assert_eq!(generate("")[1], base[1]);
}

#[test]
fn a_training_that_diverged_is_written_and_says_so() {
    let bench = Bench::new();
    bench.write("demo.jsonl", DEMO_RECORDS);
    let train = |rate: &str| {
        let recipe = format!("batch_size = 8\nmax_steps = 4\nlearning_rate = {rate}\n");
        bench.write("rate.toml", &recipe);
        let command = "train --local --base base --recipe rate.toml --records demo.jsonl";
        bench.run(&format!("{command} --out out{rate}")).expect(0)
    };
    let diverged = train("1.0");
    let says = "the training diverged: the loss rose from ";
    assert!(diverged.stderr.contains(says), "{}", diverged.stderr);
    assert!(bench.path("out1.0/adapter_model.safetensors").exists());
    let learned = train("0.001");
    assert!(!learned.stderr.contains("diverged"), "{}", learned.stderr);
}
