"""Distributions after transformers' own processors and warpers, greedy sequences of the demo's base, and its log-probabilities.

Writes fixtures/generation.json and fixtures/generation.safetensors.
"""

import json
import pathlib

import sentencepiece
import torch
from common import logits, write_json, write_tensors
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

DEMO = pathlib.Path(__file__).parents[2] / "demo"
NEW_TOKENS = 256
OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0}
INFINITY = float("inf")


class AnswerPenalties(LogitsProcessor):
    """OpenAI's presence and frequency penalties by vLLM's formula; transformers has none."""

    def __init__(self, presence, frequency, prompt):
        self.presence, self.frequency, self.prompt = presence, frequency, prompt

    def __call__(self, input_ids, scores):
        counts = torch.zeros_like(scores)
        answer = input_ids[:, self.prompt :]
        counts.scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        scores = scores - self.frequency * counts
        return scores - self.presence * (counts > 0)


def processors(model, options, prompt, eos=None):
    """The list that `generate` makes of these options, in its order, for a prompt of so many tokens."""
    options = dict(options)
    presence, frequency = options.pop("presence_penalty", 0.0), options.pop("frequency_penalty", 0.0)
    if bias := options.pop("logit_bias", None):
        options["sequence_bias"] = {(token,): value for token, value in bias.items()}
    settings = GenerationConfig(do_sample=True, eos_token_id=eos, pad_token_id=0, **OFF | options)
    model._prepare_special_tokens(settings, kwargs_has_attention_mask=True, device="cpu")
    made = model._get_logits_processor(generation_config=settings, input_ids_seq_length=prompt, device="cpu")
    before = (SequenceBiasLogitsProcessor, RepetitionPenaltyLogitsProcessor)
    place = 1 + max((place for place, one in enumerate(made) if isinstance(one, before)), default=-1)
    made.insert(place, AnswerPenalties(presence, frequency, prompt))
    return made


def probabilities(model, scores, history, options, prompt=None, eos=None):
    """One for each id; -1 where it is not kept."""
    ids = torch.tensor([history], dtype=torch.long)
    prompt = len(history) if prompt is None else prompt
    processed = processors(model, options, prompt, eos)(ids, scores[None].clone())[0]
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

# On the recorded distribution too: with the history's first tokens as the prompt, where any of the two likeliest ends the
# answer.
ANSWERS = {
    "bias": (12, {"logit_bias": {5: 3.5, 280: 1.25, 900: -100.0}}),
    "bias before penalty": (12, {"logit_bias": {280: 9.5, 337: -4.0}, "repetition_penalty": 1.3, "temperature": 0.8}),
    "bias against a ban": (12, {"logit_bias": {790: 100.0, 876: 100.0}, "no_repeat_ngram_size": 1}),
    "too early to end": (10, {"min_new_tokens": 3}),
    "long enough to end": (10, {"min_new_tokens": 2}),
    "too early to end, before top_k": (12, {"min_new_tokens": 1, "top_k": 3}),
    "presence": (4, {"presence_penalty": 1.5}),
    "presence rewarded": (4, {"presence_penalty": -2.0}),
    "frequency": (4, {"frequency_penalty": 0.7}),
    "frequency of no answer": (12, {"frequency_penalty": 2.0, "presence_penalty": 2.0}),
    "penalties before temperature and top_p": (
        4,
        {"presence_penalty": 0.3, "frequency_penalty": 1.1, "repetition_penalty": 1.2, "temperature": 0.6, "top_p": 0.9},
    ),
    "everything": (
        3,
        {
            "logit_bias": {4: 2.0, 790: 1.0},
            "repetition_penalty": 1.1,
            "presence_penalty": -0.4,
            "frequency_penalty": 0.9,
            "no_repeat_ngram_size": 3,
            "min_new_tokens": 20,
            "temperature": 1.3,
            "top_k": 200,
            "top_p": 0.95,
        },
    ),
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


def likely(row, token):
    """A token's log-probability, and the five likeliest tokens with theirs."""
    row = torch.log_softmax(row, -1)
    top = row.topk(5)
    return {
        "id": token,
        "logprob": row[token].item(),
        "top": [list(pair) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)],
    }


def logprobs(model, prompt, answer):
    """Of every token but the first, from the logits of one pass."""
    ids = prompt + answer
    return [likely(row, token) for row, token in zip(logits(model, ids), ids[1:], strict=False)]


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
eos = recorded.topk(2).indices.tolist()
for name, (prompt, options) in ANSWERS.items():
    tensors[f"probabilities.{name}"] = probabilities(model, recorded, history, options, prompt, eos)
write_tensors("generation.safetensors", tensors)
described = [{"name": name, "history": past, "options": options} for name, _, past, options in cases]
sequences = [{"prompt": ids, "ngram": ngram, "answer": greedy(model, ids, ngram)} for ids in starts for ngram in [0, 2]]
described += [
    {"name": name, "history": history, "options": options, "prompt": prompt, "eos": eos}
    for name, (prompt, options) in ANSWERS.items()
]
first = sequences[1]
told = {
    "prompt": first["prompt"],
    "ngram": first["ngram"],
    "tokens": logprobs(model, first["prompt"], first["answer"][:40]),
}
write_json("generation.json", {"cases": described, "greedy": sequences, "logprobs": told})
for options, outcome in refusals(model).items():
    print(options, outcome)
