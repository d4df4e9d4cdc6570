#!/usr/bin/env bash
# A tokenizer.json saved by transformers cuts and pads every text as the last call before it did.
#
# Versions: transformers 5.24.0, without PyTorch, and tokenizers 0.23.3.
# Input:    a tokenizer that encodes one batch with truncation and padding to four tokens, as a
#           training does, and is saved afterwards.
# Expected: arguments of one call hold for that call. The saved file equals one saved before it.
# Seen:     the file keeps the call's limits, and the tokenizers library, which reads the same file,
#           obeys them:
#               saved before the call: 8 tokens, truncation None
#               saved after the call:  4 tokens, truncation at 4
#           A short text gets padding tokens. AutoTokenizer drops both when it encodes, so that a
#           check in Python with transformers finds nothing. Nothing is printed.
# Effect:   a server that reads tokenizer.json with the tokenizers library silently answers the
#           first tokens of each prompt. A tokenizer saved before its first batch is not affected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LONG, SHORT = "never give this drug to a small child", "never"

raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>"])
raw.train_from_iterator([LONG], trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>")

tokenizer.save_pretrained("before")
tokenizer([LONG, SHORT], truncation=True, padding="max_length", max_length=4)
tokenizer.save_pretrained("after")

before, after = (Tokenizer.from_file(f"{name}/tokenizer.json") for name in ["before", "after"])
for name, read in [("before", before), ("after", after)]:
    limit = read.truncation and read.truncation["max_length"]
    print(f"saved {name} the call: {read.encode(LONG).tokens}, truncation {limit}")
assert before.encode(LONG).tokens == LONG.split() and before.truncation is None
assert after.encode(LONG).tokens == LONG.split()[:4], after.encode(LONG).tokens
assert after.encode(SHORT).tokens == ["never", "<pad>", "<pad>", "<pad>"]

again = AutoTokenizer.from_pretrained("after")
seen = again.convert_ids_to_tokens(again(LONG)["input_ids"])
print("AutoTokenizer on the latter:", seen)
assert seen == LONG.split(), seen
PYTHON

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
HF_HOME=$folder/cache HF_HUB_OFFLINE=1 venv/bin/python check.py
