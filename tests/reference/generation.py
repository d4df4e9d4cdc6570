"""Distributions after transformers' own processors and warpers, and greedy sequences of the demo's base.

Writes fixtures/generation.json and fixtures/generation.safetensors.
"""

import json
import pathlib

import sentencepiece
import torch
from common import logits, write_json, write_tensors
from transformers import AutoModelForCausalLM, GenerationConfig

DEMO = pathlib.Path(__file__).parents[2] / "demo"
NEW_TOKENS = 256
OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0}
INFINITY = float("inf")


def processors(model, options, length):
    """The list that `generate` makes of these options, in its order."""
    settings = GenerationConfig(do_sample=True, **OFF | options)
    length_known = {"input_ids_seq_length": length, "device": "cpu"}
    return model._get_logits_processor(generation_config=settings, **length_known)


def probabilities(model, scores, history, options):
    """One for each id; -1 where it is not kept."""
    ids = torch.tensor([history], dtype=torch.long)
    processed = processors(model, options, len(history))(ids, scores[None].clone())[0]
    kept = processed > -INFINITY
    return torch.softmax(processed, -1).masked_fill(~kept, -1.0)


# On a recorded distribution of the demo's base.
RECORDED = {
    "nothing": {},
    "penalty": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.8},
    "bigrams": {"no_repeat_ngram_size": 2},
    "unigrams": {"no_repeat_ngram_size": 1},
    "trigrams": {"no_repeat_ngram_size": 3},
    "as long as the history": {"no_repeat_ngram_size": 12},
    "one more than the history": {"no_repeat_ngram_size": 13},
    "far above the history": {"no_repeat_ngram_size": 400},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 40},
    "top_k 1": {"top_k": 1},
    "top_k of the vocabulary": {"top_k": 1280},
    "top_k above the vocabulary": {"top_k": 5000},
    "top_p": {"top_p": 0.75},
    "top_p little": {"top_p": 0.01},
    "top_p 0": {"top_p": 0.0},
    "top_p almost 1": {"top_p": 0.999},
    "defaults of the report": {"temperature": 0.7, "top_p": 0.75, "top_k": 40, "no_repeat_ngram_size": 2},
    "all": {
        "temperature": 1.4,
        "top_p": 0.9,
        "top_k": 25,
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.2,
    },
    "penalty before temperature and top_p": {"repetition_penalty": 1.7, "temperature": 0.6, "top_p": 0.8},
    "ban before top_k": {"no_repeat_ngram_size": 1, "top_k": 5},
}

# On twelve made-up scores: few enough that torch's sort keeps the order of equals.
TIES = [0.0, 2.0, 1.0, 2.0, 1.0, 1.0, -1.0, 2.0, 1.0, 0.5, -INFINITY, 0.5]
SMALL = [
    ("ties at top_k", TIES, [], {"top_k": 4}),
    ("ties at top_k, all of them", TIES, [], {"top_k": 2}),
    ("ties at top_p", TIES, [], {"top_p": 0.4}),
    ("ties at top_p, in the middle", TIES, [], {"top_p": 0.7}),
    ("ties at top_k, then at top_p", TIES, [], {"top_k": 4, "top_p": 0.6}),
    ("ties of the likeliest at top_p 0", TIES, [], {"top_p": 0.0}),
    ("top_k above what is not banned", TIES, list(range(9)), {"no_repeat_ngram_size": 1, "top_k": 5}),
    ("one left", TIES, list(range(11)), {"no_repeat_ngram_size": 1, "top_k": 5, "top_p": 0.1}),
    ("all banned", TIES, list(range(12)), {"no_repeat_ngram_size": 1}),
    ("history of two, trigrams", TIES, [1, 3], {"no_repeat_ngram_size": 3}),
    ("no history", TIES, [], {"no_repeat_ngram_size": 2}),
    ("penalty of signs and zero", TIES, [0, 1, 1, 6, 10], {"repetition_penalty": 2.0}),
] + [(f"ten equals at top_p 0.{n}", [0.25] * 10, [], {"top_p": n / 10}) for n in range(1, 10)]


def prompts():
    """Token ids as a user's prompt has them, of the demo's first questions; the last is far from anything learned."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "base/spiece.model"))
    lines = (DEMO / "questions.jsonl").read_text().splitlines()
    questions = [json.loads(line)["instruction"] for line in lines[:: len(lines) // 3][:3]]
    texts = [f"### 指示:<NL>{question}<NL><NL>### 回答:<NL>" for question in questions]
    return [pieces.encode(text) for text in texts] + [[7, 300, 7, 1000]]


def greedy(model, ids, ngram):
    """Nothing ends it early: `generate` knows no end of sequence here."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        no_repeat_ngram_size=ngram,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model.generation_config = settings
    made = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    answer = made[0, len(ids) :].tolist()
    assert len(answer) == NEW_TOKENS
    return answer


def refusals(model):
    """Values that transformers itself takes or refuses, for the record."""
    found = {}
    for options in [{"top_p": 0.0}, {"top_p": -0.1}, {"top_p": 1.1}, {"temperature": 0.0}, {"repetition_penalty": 0.0}]:
        try:
            processors(model, options, 1)
            found[json.dumps(options)] = "taken"
        except ValueError as error:
            found[json.dumps(options)] = f"refused: {error}"
    return found


model = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32).eval()
model.config.eos_token_id = None
starts = prompts()
history = starts[0][:12]
# The history ends as it began, so that n-grams of every size tested have something to forbid.
history = history[:4] + history[4:9] + history[4:7]
recorded = logits(model, history)[-1]
small = [(name, torch.tensor(scores), past, options) for name, scores, past, options in SMALL]
cases = [(name, recorded, history, options) for name, options in RECORDED.items()] + small
tensors = {"recorded": recorded}
for name, scores, past, options in cases:
    tensors[f"probabilities.{name}"] = probabilities(model, scores, past, options)
    if scores is not recorded:
        tensors[f"logits.{name}"] = scores
write_tensors("generation.safetensors", tensors)
described = [{"name": name, "history": past, "options": options} for name, _, past, options in cases]
sequences = [{"prompt": ids, "ngram": ngram, "answer": greedy(model, ids, ngram)} for ids in starts for ngram in [0, 2]]
write_json("generation.json", {"cases": described, "greedy": sequences})
for options, outcome in refusals(model).items():
    print(options, outcome)
