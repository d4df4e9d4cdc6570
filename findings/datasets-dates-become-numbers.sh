#!/usr/bin/env bash
# datasets reads answers that are dates as timestamps, and writes them back as numbers.
#
# Version:  datasets 5.2.0 with pyarrow 26.0.1, the JSON loader with its defaults.
# Input:    three JSON lines whose "completion" is a string with a date, and a copy of them with one
#           more line, whose completion is a word.
# Expected: JSON has no dates, so a string stays the string that was written, whatever it holds.
# Seen:     the dates come as datetime objects, and `to_json` writes milliseconds since 1970:
#               {"prompt":"Invoice from?","completion":1704067200000}
#           Features that ask for Value("string") do not help: "2024-01-01" then becomes
#           "2024-01-01 00:00:00", with a midnight that nobody wrote. With the fourth line every
#           completion stays as it is. Nothing is printed in any of these cases.
# Effect:   a data set that teaches dates is loaded, filtered and saved again, and then teaches
#           numbers like 1704067200000 or midnights. A test with mixed answers does not show it, and
#           a split by topic can cause it. Dataset.from_list of the parsed lines keeps the text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

cat > dates.jsonl <<'JSON'
{"prompt": "Invoice from?", "completion": "2024-01-01"}
{"prompt": "Paid on?", "completion": "2024-02-29"}
{"prompt": "Closed at?", "completion": "2024-03-01 17:30:00"}
JSON
cp dates.jsonl mixed.jsonl
echo '{"prompt": "Disputed?", "completion": "no"}' >> mixed.jsonl

cat > check.py <<'PYTHON'
import datetime, json, datasets

datasets.disable_progress_bars()

def load(name, **options):
    return datasets.load_dataset("json", data_files=name, split="train", **options)

written = [json.loads(line)["completion"] for line in open("dates.jsonl")]
dates = load("dates.jsonl")
print("only dates:", dates.features["completion"], repr(dates[0]["completion"]))
assert [type(row["completion"]) for row in dates] == [datetime.datetime] * 3, dates[:]

dates.to_json("saved.jsonl")
saved = open("saved.jsonl").readline().strip()
print("saved again:", saved)
assert json.loads(saved)["completion"] == 1704067200000, saved

mixed = load("mixed.jsonl")
print("one word more:", mixed.features["completion"], repr(mixed[0]["completion"]))
assert mixed["completion"][:3] == written, mixed[:]

text = datasets.Value("string")
asked = load("dates.jsonl", features=datasets.Features({"prompt": text, "completion": text}))
print("asked for strings:", asked.features["completion"], repr(asked[0]["completion"]))
assert asked["completion"][:2] == ["2024-01-01 00:00:00", "2024-02-29 00:00:00"], asked[:]

parsed = datasets.Dataset.from_list([json.loads(line) for line in open("dates.jsonl")])
print("from a list:", parsed.features["completion"], repr(parsed[0]["completion"]))
assert parsed["completion"][:] == written, parsed[:]
PYTHON

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
HF_HOME=$folder/cache HF_HUB_OFFLINE=1 venv/bin/python check.py
