#!/usr/bin/env bash
# A GPT-NeoX configuration that transformers 5 saved means other rotary embeddings in transformers 4.
#
# Versions: transformers 5.24.0 and 4.57.6, without PyTorch.
# Input:    `GPTNeoXConfig(rotary_pct=1.0, rotary_emb_base=20000)`, as japanese-gpt-neox-3.6b rotates
#           whole heads, saved by `save_pretrained` of transformers 5.
# Expected: transformers 4 reads the same values, or warns.
# Seen:     the file has `rope_parameters` and neither `rotary_pct` nor `rotary_emb_base`. Version 4
#           takes its defaults for these: a quarter of each head, and base 10000. It keeps
#           `rope_parameters` as an attribute that nothing reads, and prints nothing.
# Effect:   the model loads with all its weights and answers with broken text. A conversion under
#           version 4, which CTranslate2 4.8 needs, keeps the wrong values. Write both spellings
#           into config.json: each version reads its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > save.py <<'PYTHON'
from transformers import GPTNeoXConfig

GPTNeoXConfig(rotary_pct=1.0, rotary_emb_base=20000).save_pretrained("saved")
PYTHON
cat > again.py <<'PYTHON'
from transformers import AutoConfig

rope = AutoConfig.from_pretrained("saved").rope_parameters
print("transformers 5:", rope)
assert rope["partial_rotary_factor"] == 1.0 and rope["rope_theta"] == 20000
PYTHON
cat > load.py <<'PYTHON'
import json, sys
from transformers import AutoConfig

def read():
    config = AutoConfig.from_pretrained("saved")
    return config.rotary_pct, config.rotary_emb_base

print("transformers 4:", read())
assert read() == (0.25, 10000), "read as it was saved"
with open("saved/config.json") as file:
    fields = json.load(file)
with open("saved/config.json", "w") as file:
    json.dump(fields | {"rotary_pct": 1.0, "rotary_emb_base": 20000}, file)
print("with both spellings:", read())
assert read() == (1.0, 20000)
PYTHON

export HF_HOME=$folder/cache HF_HUB_OFFLINE=1
for version in 5.24.0 4.57.6; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/pip" install --quiet --disable-pip-version-check \
        "transformers==$version" numpy==2.4.6
done
venv-5.24.0/bin/python save.py
venv-5.24.0/bin/python again.py
venv-4.57.6/bin/python load.py 2> log || { cat log; exit 1; }
if grep -v "PyTorch was not found\|None of PyTorch" log; then
    echo "FAILED: the lines above are logged now"
    exit 1
fi
venv-5.24.0/bin/python again.py
