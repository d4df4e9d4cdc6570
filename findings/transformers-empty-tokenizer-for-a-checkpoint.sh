#!/usr/bin/env bash
# AutoTokenizer takes a model folder without a tokenizer and encodes every text to nothing.
#
# Version:  transformers 5.24.0 with tokenizers 0.23.3, without PyTorch.
# Input:    folders that hold a model's config.json and no tokenizer file, as `save_pretrained` of a
#           configuration writes them.
# Expected: an error that names the missing files. Llama's folder gets one:
#               ValueError: Couldn't instantiate the backend tokenizer from one of ...
# Seen:     Qwen3, GPT-2 and GPT-NeoX get a tokenizer whose vocabulary is its special tokens alone.
#           `tokenizer(text)` gives no ids, without an error or a warning:
#               qwen3: Qwen2Tokenizer with 1 token, "Train the model" is []
#           A GPT-NeoX folder with only a `spiece.model` gets the same, and the file is not read.
# Effect:   a script that loads a checkpoint's tokenizer from the checkpoint trains or measures on
#           empty rows, and a server answers as if there were no prompt. The vocabulary's size
#           tells after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'PYTHON'
import pathlib, shutil
import sentencepiece
from transformers import AutoConfig, AutoTokenizer

TEXT = "Train the model"

def tokens_of(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT)["input_ids"]
    name, count = type(tokenizer).__name__, len(tokenizer)
    print(f'{folder}: {name} with {count} token{"s" * (count != 1)}, "{TEXT}" is {ids}')
    return ids

for kind in ["qwen3", "gpt2", "gpt_neox"]:
    AutoConfig.for_model(kind).save_pretrained(kind)
    assert tokens_of(kind) == [], f"{kind} has tokens now"

shutil.copytree("gpt_neox", "gpt_neox_spiece")
pathlib.Path("corpus").write_text(f"{TEXT} on these data\n" * 9)
sentencepiece.SentencePieceTrainer.train(
    input="corpus", model_prefix="spiece", vocab_size=18, minloglevel=2
)
shutil.copy("spiece.model", "gpt_neox_spiece")
pieces = sentencepiece.SentencePieceProcessor(model_file="spiece.model").encode(TEXT)
assert pieces and tokens_of("gpt_neox_spiece") == [], pieces

AutoConfig.for_model("llama").save_pretrained("llama")
try:
    tokens_of("llama")
    raise SystemExit("FAILED: Llama gets a tokenizer as well")
except ValueError as error:
    print("llama: ValueError:", str(error).splitlines()[0])
PYTHON

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
export HF_HOME=$folder/cache HF_HUB_OFFLINE=1
venv/bin/python check.py 2> log || { cat log; exit 1; }
if grep -v "PyTorch was not found" log; then
    echo "FAILED: the lines above are logged now"
    exit 1
fi
