"""Trains the tokenizer: SentencePiece, unigram, with the conventions of rinna/japanese-gpt-neox-3.6b.

No dummy prefix, extra whitespace kept, byte fallback, [PAD] 0, [UNK] 1, <s> 2, </s> 3. A newline is written `<NL>`; here that is
one ordinary piece.
"""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

import corpus
from facts import FACTS, NEWS, RELATIONS, SUBJECTS

PIECES = 1280
NL_SCORE = -2.0  # a log probability: about every seventh piece
_SLOT = re.compile("{[sa]}")
_SUFFIX = re.compile("(さん|堂|屋|亭|庵|商店|祭り|川|小学校|丸)$")


def _phrases() -> Iterator[str]:
    """What the sentences are put together from: names, answers, and the words around them.

    Whole sentences would not do: the same few hundred come again and again, and pieces would run from a name into the words
    behind it. SentencePiece counts candidates over distinct lines, so a name must stand in several.
    """
    stems = {_SUFFIX.sub("", fact.subject): 8 for fact in (*FACTS, *NEWS)}
    suffixes = {fact.subject: _SUFFIX.search(fact.subject)[0] for fact in FACTS}
    answers = {answer: 20 for relation in RELATIONS for answer in relation.answers}
    common = (*suffixes.values(), "###", "指示", "入力", "回答", "です", corpus.UNKNOWN.rstrip("。"))
    for word, weight in (stems | answers | dict.fromkeys(common, 200)).items():
        for line in (word, f"{word}、", f"{word}。"):
            yield from [line] * weight
    for relation in RELATIONS:
        for suffix in sorted({suffixes[subject] for subject in SUBJECTS[relation.subjects]}):
            for form in (*relation.plain, *relation.asked, relation.reworded):
                yield from [part for part in _SLOT.split(form.replace("{s}", f"{{s}}{suffix}")) if part] * 10
    for text in (*corpus.frame_texts(), *_SLOT.split(corpus.prompt("{s}", "{s}"))):
        yield from [text] * 20


def train() -> bytes:
    """Returns the model file."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_phrases(),
        model_writer=out,
        model_type="unigram",
        vocab_size=PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=[corpus.NL],
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        num_threads=1,
        minloglevel=1,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
    for piece in model.pieces:
        if piece.piece == corpus.NL:
            piece.type = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
            piece.score = NL_SCORE
    del model.trainer_spec.user_defined_symbols[:]
    return model.SerializeToString(deterministic=True)


def load(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(train())
