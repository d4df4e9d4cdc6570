"""Fine-tunes LoRA adapters on the demo's records, as the trainer does, and counts right answers: what the demo may promise.

An answer is right if it equals the expected one after NFKC, whole, and ends with the end of sequence. Greedy, no n-gram ban. The first adapter
learns from the records, the second from the records and the ten new ones. Exits with 1 if a bar is missed.
"""

import argparse
import json
import random
import sys
import unicodedata
from pathlib import Path

import torch
from torch.nn import functional

import corpus
import tokenizer
from facts import NEWS
from model import GptNeoX, add_lora

RANK, ALPHA, DROPOUT = 8, 32, 0.1
RATE, WARM_UP, BATCH, EPOCHS = 2e-3, 20, 8, 20
ANSWER_IDS = 32  # an answer longer than this is wrong
IGNORED = -100


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Asker:
    """Answers questions with a model."""

    def __init__(self, pieces, device: str) -> None:
        self.pieces, self.device = pieces, device

    @torch.no_grad()
    def answers(self, model: GptNeoX, questions: list[dict[str, str]]) -> list[str]:
        model.eval()
        prompts = [self.pieces.encode(corpus.prompt(question["instruction"])) for question in questions]
        lengths = torch.tensor([len(ids) for ids in prompts], device=self.device)
        # Right padding is harmless: attention is causal, and each row is read at its own last id.
        ids = torch.zeros(len(prompts), int(lengths.max()) + ANSWER_IDS, dtype=torch.long, device=self.device)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        every = torch.arange(len(prompts), device=self.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        longest = int(lengths.max())
        for at in range(ANSWER_IDS):
            chosen = model(ids[:, : longest + at])[every, lengths + at - 1].argmax(-1)
            ids[every, lengths + at] = chosen
            ended |= chosen == self.pieces.eos_id()
            if ended.all():
                break
        found = []
        for row, prompt in zip(ids.tolist(), prompts):
            answer = row[len(prompt) : len(prompt) + ANSWER_IDS]
            ended = self.pieces.eos_id() in answer
            text = self.pieces.decode(answer[: answer.index(self.pieces.eos_id())] if ended else answer)
            found.append(text.replace(corpus.NL, "\n") if ended else text + "…")
        return found

    def right(self, model: GptNeoX, questions: list[dict[str, str]]) -> tuple[int, list[str]]:
        """Returns how many answers are right, and all of them."""
        answers = self.answers(model, questions)
        pairs = zip(answers, questions)
        return sum(_norm(answer) == _norm(question["output"]) for answer, question in pairs), answers


def _norm(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _row(pieces, record: dict[str, str]) -> tuple[list[int], list[int]]:
    """Returns (ids, labels); only the answer and </s> are learned."""
    prompt = corpus.prompt(record["instruction"], record["input"])
    ids = pieces.encode(prompt + record["output"]) + [pieces.eos_id()]
    start = len(pieces.encode(prompt))
    return ids, [IGNORED] * start + ids[start:]


def fine_tune(folder: Path, records: list[dict[str, str]], seed: int, device: str) -> GptNeoX:
    torch.manual_seed(seed)
    order = random.Random(seed)
    pieces = tokenizer.load(folder)
    rows = [_row(pieces, record) for record in records]
    model = GptNeoX.load(folder, device)
    trained = add_lora(model, RANK, ALPHA, DROPOUT)
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    steps, step = EPOCHS * -(-len(rows) // BATCH), 0
    model.train()
    for _ in range(EPOCHS):
        order.shuffle(rows)
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            width = max(len(ids) for ids, _ in batch)
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch], device=device)
            labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in batch], device=device)
            logits = model(ids)[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            rate = RATE * (step + 1) / WARM_UP if step < WARM_UP else RATE * (steps - step) / (steps - WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            step += 1
    return model


def check(demo: Path, seeds: int, device: str) -> list[dict]:
    """Returns one row of scores for the base, then two for each seed: the first adapter's and the second's."""
    folder = demo / "base"
    asker = Asker(tokenizer.load(folder), device)
    records, new_records = read(demo / "records.jsonl"), read(demo / "new-records.jsonl")
    questions = read(demo / "questions.jsonl")
    sets = {kind: [question for question in questions if question["kind"] == kind] for kind in ("held-out", "paraphrase")}
    sets["new"] = read(demo / "new-questions.jsonl")
    # In a wording that other records use, but these ten do not.
    sets["new, reworded"] = [{"instruction": fact.asks(fact.relation.asked[1]), "output": fact.reply} for fact in NEWS]

    def scores(name: str, model: GptNeoX) -> dict:
        row: dict = {"model": name, "answers": {}}
        for kind, asked in sets.items():
            row[kind], row["answers"][kind] = asker.right(model, asked)
            row[f"{kind} of"] = len(asked)
        return row

    rows = [scores("base", GptNeoX.load(folder, device))]
    for seed in range(1, seeds + 1):
        rows.append(scores(f"first {seed}", fine_tune(folder, records, seed, device)))
        rows.append(scores(f"second {seed}", fine_tune(folder, records + new_records, seed, device)))
    return rows


def missed(rows: list[dict]) -> list[str]:
    """Returns the bars that the scores do not reach, in words."""
    found = []
    for row in rows:
        kind = row["model"].split()[0]
        share = (row["held-out"] + row["paraphrase"]) / (row["held-out of"] + row["paraphrase of"])
        if kind == "base" and share > 0.1:
            found.append("the base alone answers more than 1 of 10")
        if kind != "base" and share < 0.8:
            found.append(f"{row['model']} answers fewer than 8 of 10")
        if kind != "second" and row["new"] > 0:
            found.append(f"{row['model']} knows new facts before they are told")
        if kind == "second" and row["new"] < row["new of"]:
            found.append(f"{row['model']} misses new facts")
    return found


def show(demo: Path, rows: list[dict]) -> None:
    """Prints some answers of the base and the first two adapters side by side, then the table."""
    held_out = [question for question in read(demo / "questions.jsonl") if question["kind"] == "held-out"]
    for kind, asked in (("held-out", held_out[:5]), ("new", read(demo / "new-questions.jsonl")[:5])):
        for place, question in enumerate(asked):
            print(question["instruction"])
            for row in rows[:3]:
                answer = row["answers"][kind][place].replace("\n", " / ")
                print(f"    {row['model']:<10}{answer}")
    columns = ("held-out", "paraphrase", "new", "new, reworded")
    print(f"\n{'':<12}" + "".join(f"{column:>16}" for column in columns))
    for row in rows:
        print(f"{row['model']:<12}" + "".join(f"{row[column]:>12}/{row[f'{column} of']:<3}" for column in columns))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("demo", type=Path, help="the folder with the records and base/")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = arguments.parse_args()
    table = check(given.demo, given.seeds, given.device)
    show(given.demo, table)
    faults = missed(table)
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)
