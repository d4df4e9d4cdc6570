#!/usr/bin/env bash
# OpenAI's clients start a fine-tuning job up to three times when the answer is lost.
#
# Versions: openai 3.57.0 (PyPI) and openai 7.59.0 (npm), each with its defaults.
# Input:    one call of fine_tuning.jobs.create at a server on the loopback that starts the job and
#           then loses its connection before it answers, as a proxy that restarts does.
# Expected: one request, or repeated ones that carry the same idempotency key, because each starts
#           paid work.
# Seen:     three POSTs from both clients, numbered by `x-stainless-retry-count` 0, 1, 2 and
#           otherwise alike. No header names the call, so a server cannot tell a repeat from a
#           second job. The caller gets one APIConnectionError and none of the three job ids.
# Effect:   a server with this interface has to find repeats by their content, or its users pay
#           for one training three times.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

cat > server.py <<'PYTHON'
"""Starts a job for each POST, then drops the connection. Prints one line of JSON a job."""
import http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        job = {"path": self.path, "body": json.loads(body), "headers": headers}
        print(json.dumps(job), flush=True)
        self.close_connection = True

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON

cat > client.py <<'PYTHON'
import sys, openai

client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="key")
try:
    client.fine_tuning.jobs.create(model="base", training_file="file-1")
except openai.APIConnectionError as error:
    print("python:", type(error).__name__)
PYTHON

cat > client.mjs <<'JAVASCRIPT'
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `http://127.0.0.1:${process.argv[2]}/v1`, apiKey: "key" });
try {
  await client.fineTuning.jobs.create({ model: "base", training_file: "file-1" });
} catch (error) {
  console.log("javascript:", error.constructor.name);
}
JAVASCRIPT

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openai==3.57.0
npm install --silent --no-audit --no-fund openai@7.59.0

cat > check.py <<'PYTHON'
import json, sys

jobs = [json.loads(line) for line in open(sys.argv[1]).readlines()[1:]]
assert [job["path"] for job in jobs] == ["/v1/fine_tuning/jobs"] * 3, jobs
assert all(job["body"] == jobs[0]["body"] for job in jobs), jobs
counts = [job["headers"].pop("x-stainless-retry-count") for job in jobs]
assert counts == ["0", "1", "2"], counts
assert all(job["headers"] == jobs[0]["headers"] for job in jobs), jobs
names = set(jobs[0]["headers"])
assert not [name for name in names if "idempot" in name or "request-id" in name], names
print("three jobs from one call, and no header that tells them from three calls")
PYTHON

for client in python javascript; do
    python3 server.py > "$client.jobs" &
    server=$!
    until [ -s "$client.jobs" ]; do sleep 0.1; done
    port=$(head -n 1 "$client.jobs")
    case $client in
        python) venv/bin/python client.py "$port" ;;
        javascript) node client.mjs "$port" ;;
    esac
    kill "$server"
    python3 check.py "$client.jobs"
done
