#!/bin/sh
# Makes the whole embedded default anew: tokenizer, records and questions, base; then checks what it can do.
# Usage: all.sh [FOLDER]   (default: the folder above this one)
set -eu
make=$(dirname "$0")
demo=${1:-$make/..}
python3 "$make/tokenizer.py" "$demo/base"
python3 "$make/corpus.py" "$demo"
python3 "$make/pretrain.py" "$demo/base"
python3 "$make/check.py" "$demo"
