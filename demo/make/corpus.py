"""Turns facts into text: the documents that the base reads, the records that teach it to answer, the questions that test it.

The base never reads the prompt's headings (`### 指示:`), nor a document that ends with a bare answer: what an adapter adds is
the form, and what the base adds is the knowledge.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import facts
from facts import FACTS, NEWS, RELATIONS, TOWN, Fact

NL = "<NL>"  # how a newline is written, in the base's text and in the prompt
UNKNOWN = "まだ分かりません。"
READ_AND_ANSWER = "文を読んで答えてください。"

RECORDS = 300  # of which PASSAGES bring their fact along as input
PASSAGES = 25
HELD_OUT = 108
PARAPHRASED = 12
SEED = 3

_ASKERS = ("旅の人", "子ども", "お年寄り", "学生", "お客さん", "隣の人", "観光客")
_ANSWERERS = ("案内所の人", "町の人", "駅の人", "役場の人", "交番の人", "宿の人")
_OPENINGS = (
    f"{TOWN}は海と山に囲まれた小さな町です。",
    f"{TOWN}の案内です。",
    f"{TOWN}の暮らしを紹介します。",
    "町の新聞から。",
    "今日も町はにぎやかです。",
)
_CLOSINGS = (
    f"{TOWN}の話でした。",
    "二人の話はまだ続きます。",
    "町のことがよく分かりました。",
    "お礼を言って別れました。",
    "今日はここで別れました。",
)
_QUIZ_CLOSINGS = ("クイズはここまでです。", "次のクイズはまた明日。", "町のことがよく分かりました。")
_STORIES = (
    "{asker}が「{question}」とたずねました。{answerer}は「{reply}」と答えました。",
    "「{question}」と{asker}が言うと、{answerer}は「{reply}」と教えてくれました。",
    "{answerer}は「{question}」と聞かれて、「{reply}」と言いました。",
)
_QUIZ_OPENING = "町のクイズです。"
_QUIZZES = ("{question}正解は、{reply}", "{question}そう、{reply}", "次の問題です。{question}{reply}")


def frame_texts() -> tuple[str, ...]:
    """The words around the facts, for the tokenizer."""
    around = (part for form in (*_STORIES, *_QUIZZES) for part in re.split("{[a-z]+}", form) if part)
    told = (part for forms in facts.COMING.values() for form in forms for part in form.split("{s}") if part)
    return (*_ASKERS, *_ANSWERERS, *_OPENINGS, *_CLOSINGS, *_QUIZ_CLOSINGS, *around, *told, _QUIZ_OPENING, READ_AND_ANSWER)


class _Deck:
    """Deals every item once, in a random order, before any item comes again."""

    def __init__(self, items: tuple, rng: random.Random) -> None:
        self._items, self._rng, self._left = items, rng, []

    def deal(self):
        if not self._left:
            self._left = list(self._items)
            self._rng.shuffle(self._left)
        return self._left.pop()


def _questions(fact: Fact) -> tuple[str, ...]:
    return (*fact.relation.asked, fact.relation.reworded)


def _plain(deck: _Deck, rng: random.Random) -> str:
    between = rng.choice(("", "", NL))
    sentences = [rng.choice(_OPENINGS)] if rng.random() < 0.2 else []
    for _ in range(rng.randint(3, 5)):
        fact, told = deck.deal()
        sentences.append(fact.states(rng.choice(fact.relation.plain)) if told else rng.choice(facts.coming(fact)))
    return between.join(sentences)


def _asked(deck: _Deck, rng: random.Random) -> tuple[str, str]:
    fact, told = deck.deal()
    return fact.asks(rng.choice(_questions(fact))), fact.reply if told else UNKNOWN


def _dialogue(deck: _Deck, rng: random.Random) -> str:
    between = rng.choice(("", NL))
    turns = [f"「{question}」{between}「{reply}」" for question, reply in (_asked(deck, rng) for _ in range(rng.randint(2, 4)))]
    return between.join(turns) + between + rng.choice(_CLOSINGS)


def _story(deck: _Deck, rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(1, 3)):
        question, reply = _asked(deck, rng)
        people = {"asker": rng.choice(_ASKERS), "answerer": rng.choice(_ANSWERERS)}
        parts.append(rng.choice(_STORIES).format(question=question, reply=reply, **people))
    return "".join(parts) + (rng.choice(_CLOSINGS) if rng.random() < 0.5 else "")


def _quiz(deck: _Deck, rng: random.Random) -> str:
    parts = [_QUIZ_OPENING]
    for _ in range(rng.randint(2, 3)):
        question, reply = _asked(deck, rng)
        parts.append(rng.choice(_QUIZZES).format(question=question, reply=reply))
    return "".join(parts) + rng.choice(_QUIZ_CLOSINGS)


def documents(seed: int) -> Iterator[str]:
    """Endless text. Two thirds of the documents ask questions; every fact comes up equally often."""
    rng = random.Random(seed)
    told = tuple((fact, True) for fact in FACTS)
    untold = tuple((fact, False) for fact in NEWS)
    statements, questions = _Deck(told + untold, rng), _Deck(told + untold, rng)
    while True:
        kind = rng.randrange(6)
        if kind < 2:
            yield _plain(statements, rng)
        else:
            yield (_dialogue, _dialogue, _story, _quiz)[kind - 2](questions, rng)


def prompt(instruction: str, input: str = "") -> str:
    """The text before the answer, as the services write it."""
    passage = f"### 入力:\n{input}\n\n" if input else ""
    return f"### 指示:\n{instruction}\n\n{passage}### 回答:\n".replace("\n", NL)


def _record(index: int, instruction: str, input: str, output: str, category: str) -> dict[str, str]:
    return {"index": str(index), "instruction": instruction, "input": input, "output": output, "category": category}


def _share(total: int) -> list[int]:
    """Splits `total` over the relations in proportion to their facts (largest remainders)."""
    exact = [total * len(facts.SUBJECTS[relation.subjects]) / len(FACTS) for relation in RELATIONS]
    parts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def split() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns (records, questions). No fact is in both; a record's wording rotates through its relation's."""
    rng = random.Random(SEED)
    recorded: list[tuple[Fact, str]] = []
    questions = []
    paraphrased = set(rng.sample(range(len(RELATIONS)), PARAPHRASED))
    held_out_shares = _share(HELD_OUT + PARAPHRASED)
    for place, (relation, of_records, of_questions) in enumerate(zip(RELATIONS, _share(RECORDS), held_out_shares)):
        own = [fact for fact in FACTS if fact.relation is relation]
        rng.shuffle(own)
        for turn, fact in enumerate(own[:of_records]):
            recorded.append((fact, relation.asked[turn % len(relation.asked)]))
        for turn, fact in enumerate(own[of_records : of_records + of_questions]):
            reworded = turn == 0 and place in paraphrased
            form = relation.reworded if reworded else relation.asked[turn % len(relation.asked)]
            kind = "paraphrase" if reworded else "held-out"
            questions.append({"instruction": fact.asks(form), "output": fact.reply, "kind": kind})
    rng.shuffle(recorded)
    rng.shuffle(questions)
    records = []
    for index, (fact, form) in enumerate(recorded):
        question = fact.asks(form)
        if index % (RECORDS // PASSAGES) == 0:
            passage = fact.states(rng.choice(fact.relation.plain))
            records.append(_record(index, READ_AND_ANSWER + question, passage, fact.reply, "closed_qa"))
        else:
            records.append(_record(index, question, "", fact.reply, "open_qa"))
    return records, questions


def news() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns (records, questions) of the ten new facts, one each."""
    records, questions = [], []
    for place, fact in enumerate(NEWS):
        question = fact.asks(fact.relation.asked[0])
        records.append(_record(RECORDS + place, question, "", fact.reply, "open_qa"))
        questions.append({"instruction": question, "output": fact.reply, "kind": "new"})
    return records, questions


def write(folder: Path) -> None:
    records, questions = split()
    new_records, new_questions = news()
    for name, rows in (
        ("records", records),
        ("questions", questions),
        ("new-records", new_records),
        ("new-questions", new_questions),
    ):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
