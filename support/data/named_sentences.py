"""Generated sentences with names, for smoke runs of the tagging experiment."""

import random
from pathlib import Path

from torch.utils.data import TensorDataset

from support.data.conll2003 import Sentence, encoded

PATTERNS = (
    "PER travelled from LOC to LOC on Monday .",
    "the ORG said on Friday that PER had left .",
    "PER , who plays for ORG , was born in LOC .",
    "shares of ORG fell in LOC .",
    "the MISC team met PER in LOC .",
    "PER won the MISC Cup for ORG .",
    "a MISC spokesman in LOC spoke of the weather .",
    "nobody knows what will happen next week .",
    "it rained , and the match was put off .",
)
SYLLABLES = ("ba", "den", "fo", "gar", "hel", "ki", "lo", "mar", "ne", "os", "ri", "ta")
ENDINGS = {
    "PER": ("son", "ez"),
    "LOC": ("ville", "ia"),
    "ORG": ("corp", "bank"),
    "MISC": ("ese", "ish"),
}
"""How the last word of a name of each type ends."""
PARTS = (800, 200)
"""Sentences to learn from and to judge on."""


def named_sentences(
    root: str | Path | None = None, *, size: int = 400
) -> tuple[TensorDataset, TensorDataset]:
    """Return 800 and 200 generated sentences with made-up names, in the form of :func:`conll2003`.

    A name has one or two words of random syllables; the last one ends as its type asks for.

    Parameters
    ----------
    root
        Not used; here so that all data sets are called alike.
    size
        Size of the vocabulary.
    """
    drawn = random.Random(0)
    return encoded(*([_sentence(drawn) for _ in range(part)] for part in PARTS), size=size)


def _sentence(drawn: random.Random) -> Sentence:
    sentence: Sentence = []
    for word in drawn.choice(PATTERNS).split():
        if word not in ENDINGS:
            sentence.append((word, "O"))
            continue
        for place in "BI"[: drawn.randint(1, 2)]:
            name = "".join(drawn.choices(SYLLABLES, k=2))
            sentence.append((name.capitalize(), f"{place}-{word}"))
        last, tag = sentence[-1]
        sentence[-1] = (last + drawn.choice(ENDINGS[word]), tag)
    return sentence
