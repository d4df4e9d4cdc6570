#!/usr/bin/env bash
# The timeout of OpenAI's JavaScript client does not hold for a stream that has begun.
#
# Versions: openai 7.59.0 (npm) and openai 3.57.0 (PyPI), both with a timeout of two seconds.
# Input:    a streamed chat completion from a server on the loopback that sends one token, is silent
#           for ten seconds and then loses the connection, as one with a hanging GPU does.
# Expected: after two seconds the call fails with the client's timeout error, an OpenAIError.
# Seen:     in Python openai.APITimeoutError after two seconds. In JavaScript nothing for the whole
#           ten seconds, until the server's end of the connection: then "TypeError: terminated",
#           which is no OpenAIError.
# Effect:   a service in Node that sets `timeout` to bound its answers keeps its users waiting, and
#           a `catch` that asks for OpenAI.APIError misses the error.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

cat > server.py <<'PYTHON'
"""Answers each request with one token of a stream, ten seconds of silence and a lost connection."""
import http.server, json, time

CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNK["choices"] = [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        event = f"data: {json.dumps(CHUNK)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.flush()
        time.sleep(10)
        self.close_connection = True

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON

cat > client.py <<'PYTHON'
import sys, time, openai

client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="key", timeout=2)
message = {"role": "user", "content": "Hi"}
begun = None
try:
    for chunk in client.chat.completions.create(model="m", messages=[message], stream=True):
        begun = time.monotonic()
    sys.exit("FAILED: the stream ended without an error")
except openai.OpenAIError as error:
    waited = time.monotonic() - begun
    print(f"python:     {type(error).__name__} {waited:.0f} s after the token")
    assert isinstance(error, openai.APITimeoutError) and waited < 6, (error, waited)
PYTHON

cat > client.mjs <<'JAVASCRIPT'
import assert from "node:assert";
import OpenAI from "openai";

const baseURL = `http://127.0.0.1:${process.argv[2]}/v1`;
const client = new OpenAI({ baseURL, apiKey: "key", timeout: 2000 });
const messages = [{ role: "user", content: "Hi" }];
let begun, error;
try {
  const stream = await client.chat.completions.create({ model: "m", messages, stream: true });
  for await (const _ of stream) begun = Date.now();
} catch (caught) {
  error = caught;
}
const waited = Math.round((Date.now() - begun) / 1000);
console.log(`javascript: ${error} ${waited} s after the token`);
assert(!(error instanceof OpenAI.OpenAIError) && waited >= 8, "FAILED: the timeout held");
JAVASCRIPT

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openai==3.57.0
npm install --silent --no-audit --no-fund openai@7.59.0
python3 server.py > port &
server=$!
until [ -s port ]; do sleep 0.1; done
venv/bin/python client.py "$(cat port)"
node client.mjs "$(cat port)"
