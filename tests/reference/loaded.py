"""What transformers, and CTranslate2 where it is installed, make of folders that Togi wrote.

    loaded.py tokenizer FOLDER [--records dolly-ja.jsonl.gz]   FOLDER has spiece.model and the tokenizer's files
    loaded.py model FOLDER OURS                                OURS is JSON: ids, logits, prompt, greedy

The Auto classes open the folder as it stands. Texts are the random strings of tokens.py, and every field of the records. Ids may
differ from sentencepiece's only where two ways to cut a text have the same score, or one that sums in 32 bits do not tell apart.
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import tokens


def tokenizer(arguments):
    import sentencepiece

    folder = arguments.folder
    own = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert len(loaded) == own.get_piece_size(), len(loaded)
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    texts = {"strings": [tokens.string(number) for number in range(tokens.STRINGS)]}
    if arguments.records:
        with gzip.open(arguments.records, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        texts["fields"] = [record[field] for record in records for field in ("instruction", "input", "output")]
    counts = {name: compare(loaded, own, texts) for name, texts in texts.items()}
    print(json.dumps({"transformers": transformers.__version__, "class": type(loaded).__name__, "ties": counts}))


def compare(loaded, own, texts):
    """Returns how many texts have other ids, all of them ties."""
    ids = own.encode(texts)
    bare = loaded(texts, add_special_tokens=False)["input_ids"]
    end = [own.eos_id()] if own.eos_id() >= 0 else []
    some = 1000
    assert loaded(texts[:some])["input_ids"] == [ids + end for ids in bare[:some]]
    assert all(loaded.encode(text, add_special_tokens=False) == ids for text, ids in zip(texts[:some], bare))
    ties = 0
    for text, expected, found in zip(texts, ids, bare):
        if expected == found:
            continue
        ours, theirs = (sum(map(own.get_score, ids)) for ids in (expected, found))
        same = "".join(own.id_to_piece(expected)) == "".join(own.id_to_piece(found))
        assert same and ours <= theirs <= ours + 1e-6 * abs(ours), (text, own.id_to_piece(expected), own.id_to_piece(found))
        ties += 1
    answers = [[id for id in ids if id != own.unk_id()] for ids in ids]
    assert loaded.batch_decode(answers, skip_special_tokens=True) == own.decode(answers)
    ended = [ids + end for ids in answers[:some]]
    assert loaded.batch_decode(ended, skip_special_tokens=True) == own.decode(answers[:some])
    return ties


def model(arguments):
    import torch

    ours = json.loads(arguments.ours.read_text())
    loaded, information = AutoModelForCausalLM.from_pretrained(arguments.folder, output_loading_info=True)
    left = {name: sorted(found) for name, found in information.items() if found}
    assert not left, left
    assert loaded.dtype == torch.float32, loaded.dtype
    with torch.no_grad():
        logits = loaded.eval()(torch.tensor([ours["ids"]])).logits[0]
    difference = (logits - torch.tensor(ours["logits"]).reshape(logits.shape)).abs().max().item()
    assert difference <= 1e-4, difference
    prompt = torch.tensor([ours["prompt"]])
    count = len(ours["greedy"])
    found = loaded.generate(prompt, do_sample=False, no_repeat_ngram_size=0, max_new_tokens=count, eos_token_id=-1)
    assert found[0, len(ours["prompt"]) :].tolist() == ours["greedy"], found
    said = {"transformers": transformers.__version__, "logits": difference, "greedy": count}
    try:
        import ctranslate2
    except ImportError:
        pass
    else:
        said["ctranslate2"] = ctranslate2.__version__
        converted(arguments.folder, ours)
    print(json.dumps(said))


def converted(folder, ours):
    """Converts the folder with CTranslate2's own command, and compares greedy ids."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as out:
        command = pathlib.Path(sys.executable).with_name("ct2-transformers-converter")
        line = [command, "--model", folder, "--output_dir", f"{out}/model"]
        subprocess.run(line, check=True, capture_output=True)
        generator = ctranslate2.Generator(f"{out}/model", compute_type="float32")
        names = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ours["prompt"])
        results = generator.generate_batch(
            [names], beam_size=1, max_length=len(ours["greedy"]), include_prompt_in_result=False, end_token=[]
        )
        assert results[0].sequences_ids[0] == ours["greedy"], results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("tokenizer")
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("--records", type=pathlib.Path)
    command.set_defaults(run=tokenizer)
    command = commands.add_parser("model")
    command.add_argument("folder", type=pathlib.Path)
    command.add_argument("ours", type=pathlib.Path)
    command.set_defaults(run=model)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
