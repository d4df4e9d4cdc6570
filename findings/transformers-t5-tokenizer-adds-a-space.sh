#!/usr/bin/env bash
# T5Tokenizer puts a space behind each user-defined symbol of a SentencePiece model.
#
# Versions: transformers 5.24.0, without PyTorch, and sentencepiece 0.2.3.
# Input:    a unigram model with the user-defined symbol <NL> for line breaks, a usual choice since
#           the normalisation turns those into spaces, in a folder as `spiece.model`.
# Expected: T5Tokenizer gives the ids that the sentencepiece library gives for the same file.
# Seen:     the word behind the symbol is encoded as if a space were before it, and a space before
#           the symbol is lost. Decoded, the text is not the one that was encoded:
#               train model<NL>loss data
#               sentencepiece: train model<NL>loss data
#               T5Tokenizer:   train model<NL> loss data
#           legacy=False, use_fast=False and add_prefix_space=False change nothing, and no warning
#           is printed.
# Effect:   a model that was pretrained with sentencepiece gets other pieces in training and in
#           serving than it knows, at every line break, and learns to begin its lines with a space.
#           Compare some lines with sentencepiece before training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > check.py <<'PYTHON'
import pathlib, random
import sentencepiece
from transformers import T5Tokenizer

words = "train model loss data step rate adapter token batch layer".split()
random.seed(1)
lines = [[" ".join(random.choices(words, k=3)) for _ in range(3)] for _ in range(2000)]
pathlib.Path("corpus").write_text("\n".join("<NL>".join(line) for line in lines))
pathlib.Path("model").mkdir()
sentencepiece.SentencePieceTrainer.train(
    input="corpus", model_prefix="model/spiece", vocab_size=34, user_defined_symbols=["<NL>"],
    pad_id=3, minloglevel=2, num_threads=1,
)
own = sentencepiece.SentencePieceProcessor(model_file="model/spiece.model")

def encode(text, **options):
    tokenizer = T5Tokenizer.from_pretrained("model", extra_ids=0, **options)
    assert len(tokenizer) == own.vocab_size(), len(tokenizer)
    return tokenizer(text, add_special_tokens=False)["input_ids"]

assert encode("train model") == own.encode("train model"), "texts without symbols differ as well"
for text, seen in [
    ("train model<NL>loss data", "train model<NL> loss data"),
    ("train <NL>loss", "train<NL> loss"),
]:
    ids = encode(text)
    print("text:         ", text)
    print("sentencepiece:", own.decode(own.encode(text)), own.encode(text, out_type=str))
    print("T5Tokenizer:  ", own.decode(ids), own.id_to_piece(ids))
    assert own.decode(own.encode(text)) == text
    assert own.decode(ids) == seen, own.decode(ids)
    for options in [{"legacy": False}, {"use_fast": False}, {"add_prefix_space": False}]:
        assert encode(text, **options) == ids, options
PYTHON

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
HF_HOME=$folder/cache HF_HUB_OFFLINE=1 venv/bin/python check.py
