"""Makes the reference digests of the token tests: `python tokens.py MODEL... [--records dolly-ja.jsonl.gz]`.

MODEL is a SentencePiece file. For each one, `fixtures/tokens/<its stem>.json` is written: what Python's sentencepiece makes of
random strings (ids, and the text of the ids) and of the templated records, and what T5Tokenizer makes of the records. No text is in
it, only digests. The same versions and files give the same digests.
"""

import argparse
import gzip
import hashlib
import json
import pathlib
import struct

import sentencepiece
import transformers

HERE = pathlib.Path(__file__).parent
ALPHABETS = json.loads((HERE / "tokens.alphabets.json").read_text(encoding="utf-8"))

STRINGS = 10_000
LONG_EVERY = 2_500  # Of the strings, one in this many is long.
LONG_BYTES = 100_000
MAX_LENGTH = 512  # As in the settings that rows are made with.


class SplitMix64:
    """The generator of random numbers: a counter and a mixing function (Steele, Lea, Flood, 2014)."""

    MASK = (1 << 64) - 1

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, bound: int) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & self.MASK
        mixed = ((self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9) & self.MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & self.MASK
        return (mixed ^ (mixed >> 31)) % bound


def word(draw: SplitMix64, alphabet: list[str]) -> str:
    """Draws an entry: itself, or for `U+first..last` one of these characters."""
    entry = alphabet[draw.below(len(alphabet))]
    if not (entry.startswith("U+") and ".." in entry):
        return entry
    first, last = (int(end, 16) for end in entry[2:].split(".."))
    return chr(first + draw.below(last - first + 1))


def part(draw: SplitMix64) -> str:
    """Draws up to 12 entries of one alphabet, or one entry in sixteen parts a run of up to 200 times the same."""
    alphabet = ALPHABETS[draw.below(len(ALPHABETS))]
    if draw.below(16) == 0:
        return word(draw, alphabet) * (1 + draw.below(200))
    return "".join(word(draw, alphabet) for _ in range(1 + draw.below(12)))


def string(number: int) -> str:
    """Returns a string by its number: up to eight parts, or at least LONG_BYTES of them, of which every other is one run."""
    draw = SplitMix64(number)
    if number % LONG_EVERY:
        return "".join(part(draw) for _ in range(draw.below(9)))
    if number % (2 * LONG_EVERY):
        run = word(draw, ALPHABETS[draw.below(len(ALPHABETS))])
        return run * -(-LONG_BYTES // len(run.encode()))
    parts, length = [], 0
    while length < LONG_BYTES:
        parts.append(part(draw))
        length += len(parts[-1].encode())
    return "".join(parts)


def templated(record: dict[str, str]) -> str:
    """Returns the training text of a record, as crates/tokens/src/prompt.rs writes it."""
    text = "### 指示:\n" + record["instruction"]
    if record["input"]:
        text += "\n\n### 入力:\n" + record["input"]
    return (text + "\n\n### 回答:\n" + record["output"]).replace("\n", "<NL>")


def digests(items: list[tuple[list[int], str]]) -> dict[str, object]:
    """Returns the SHA-256 over the SHA-256 of each item, and three hex digits of each, which tell the first that differs.

    An item is hashed as the number of its ids, the ids (u32, little-endian) and its text.
    """
    hashes = [hashlib.sha256(struct.pack(f"<{1 + len(ids)}I", len(ids), *ids) + text.encode()) for ids, text in items]
    return {
        "count": len(items),
        "ids": sum(len(ids) for ids, _ in items),
        "sha256": hashlib.sha256(b"".join(h.digest() for h in hashes)).hexdigest(),
        "each": "".join(h.hexdigest()[:3] for h in hashes),
    }


def t5(path: pathlib.Path, model: sentencepiece.SentencePieceProcessor) -> transformers.T5Tokenizer:
    """Returns T5's tokenizer as rinna configures it: no extra ids, the model's own names, and `legacy`, which adds no space."""
    names = {model.id_to_piece(id) for id in range(model.get_piece_size()) if model.is_control(id)}
    return transformers.T5Tokenizer(
        str(path),
        unk_token=model.id_to_piece(model.unk_id()),
        pad_token="[PAD]" if "[PAD]" in names else "<pad>",
        extra_ids=0,
        legacy=True,
    )


def reference(path: pathlib.Path, records: list[str]) -> dict[str, object]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    strings = [string(number) for number in range(STRINGS)]
    found = {
        "model": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made_with": f"sentencepiece {sentencepiece.__version__}, transformers {transformers.__version__}",
        "strings": encoded(model, strings),
    }
    if records:
        tokenizer = t5(path, model)
        found["t5_names"] = tokenizer.all_special_tokens
        found["t5_differs"] = differs(tokenizer, model, strings)
        found["records"] = encoded(model, records)
        assert differs(tokenizer, model, records) == 0
        rows = [tokenizer(text, truncation=True, max_length=MAX_LENGTH).input_ids for text in records]
        found["rows"] = digests([(ids, "") for ids in rows])
        del found["rows"]["each"]  # Rows that differ in more than their end are records that differ.
    return found


def encoded(model: sentencepiece.SentencePieceProcessor, texts: list[str]) -> dict[str, object]:
    """Returns the digests of the texts' ids, each with the text that sentencepiece makes of them again."""
    ids = model.encode(texts)
    return digests(list(zip(ids, model.decode(ids))))


def differs(tokenizer: transformers.T5Tokenizer, model: sentencepiece.SentencePieceProcessor, texts: list[str]) -> int:
    """Returns how many texts T5 encodes otherwise than sentencepiece does: those that spell one of its special tokens, and no other."""
    count = 0
    for text in texts:
        differs = tokenizer(text).input_ids != model.encode(text) + [model.eos_id()]
        assert differs == any(name in text for name in tokenizer.all_special_tokens), text
        count += differs
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--records", type=pathlib.Path)
    arguments = parser.parse_args()
    records = []
    if arguments.records:
        with gzip.open(arguments.records, "rt", encoding="utf-8") as lines:
            records = [templated(json.loads(line)) for line in lines]
    for path in arguments.models:
        text = json.dumps(reference(path, records), indent=1)
        (HERE / "fixtures" / "tokens" / f"{path.stem}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
