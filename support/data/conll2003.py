"""CoNLL-2003: English news, in which persons, places, organisations and other names are marked."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import TensorDataset

from support.data import files
from support.data.pictures import VOID

TYPES = ("LOC", "MISC", "ORG", "PER")
TAGS = ("O", *(f"{place}-{kind}" for kind in TYPES for place in "BI"))
"""Tag 2 k - 1 begins an entity of the k-th type, tag 2 k goes on with it, tag 0 is no entity."""
RARE = ("<number>", "<CAPITALS>", "<Capital>", "<small>")
"""What stands for words that are not in the vocabulary, by their form."""

Sentence = list[tuple[str, str]]


def conll2003(
    root: str | Path | None = None, *, size: int = 10_000
) -> tuple[TensorDataset, TensorDataset]:
    """Return the English sentences of CoNLL-2003: 14,041 to learn from (eng.train), 3,250 to judge on (eng.testa).

    They are the "15000" and "3500" of the source, which does not name its control part (erratum KU-26).

    Parameters
    ----------
    root
        Folder with ``conll2003/eng.train`` and ``conll2003/eng.testa`` (see :func:`support.data.files.root`).
        The text belongs to Reuters and is given out under an agreement only, so that nothing is downloaded.
    size
        Size of the vocabulary: the most frequent words of the training part.

    Returns
    -------
    tuple
        Two data sets of pairs: words as int64 of shape (N, T) with values in [0, size), 0 where a sentence is
        filled up; tags as int64 of shape (N, T), in the order of ``TAGS``, 255 where it is filled up.

    Raises
    ------
    DataUnavailableError
        If a file is missing.
    """
    folder = files.root(root) / "conll2003"
    paths = [folder / name for name in ("eng.train", "eng.testa")]
    for path in paths:
        if not path.is_file():
            raise files.DataUnavailableError(
                f"{path} is missing. The text of CoNLL-2003 is the Reuters corpus, which is given out under an "
                "agreement. Put the files eng.train and eng.testa of the shared task there, or point the argument "
                "`root` or the variable SUPPORT_DATA at a folder that holds conll2003/. The data set "
                '"named_sentences" is generated and needs no file.'
            )
    return encoded(*(list(read(path)) for path in paths), size=size)


def read(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of a file of the shared task, as pairs of a word and its tag in BIO form.

    The files have four columns and IOB1 tags: an entity begins with ``B-`` only where it follows another one
    of its type at once.
    """
    sentence: Sentence = []
    before = "O"
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.strip() and not line.startswith("-DOCSTART-"):
            word, *_, tag = line.split()
            begins = tag != "O" and (before == "O" or before[2:] != tag[2:])
            sentence.append((word, f"B-{tag[2:]}" if begins else tag))
            before = tag
            continue
        if sentence:
            yield sentence
        sentence, before = [], "O"


def encoded(
    train: list[Sentence], test: list[Sentence], *, size: int
) -> tuple[TensorDataset, TensorDataset]:
    """Return sentences as numbers, by a vocabulary of the ``size`` most frequent words of the training part.

    Numbers 1 to 4 stand for the other words, by their form (``RARE``); words of equal frequency are taken
    in the order of their letters.

    Raises
    ------
    ValueError
        If the vocabulary has no place for those.
    """
    if size <= len(RARE):
        raise ValueError(f"size must be more than {len(RARE)} words; got {size}")
    counted = Counter(word for sentence in train for word, _ in sentence)
    frequent = sorted(counted, key=lambda word: (-counted[word], word))
    known = [*RARE, *frequent[: size - 1 - len(RARE)]]
    number = {word: place for place, word in enumerate(known, start=1)}

    def numbers(words: Iterable[str]) -> torch.Tensor:
        return torch.tensor([number.get(word) or number[_form(word)] for word in words])

    def dataset(sentences: list[Sentence]) -> TensorDataset:
        words = [numbers(word for word, _ in sentence) for sentence in sentences]
        tags = [
            torch.tensor([TAGS.index(tag) for _, tag in sentence]) for sentence in sentences
        ]
        return TensorDataset(
            pad_sequence(words, batch_first=True),
            pad_sequence(tags, batch_first=True, padding_value=VOID),
        )

    return dataset(train), dataset(test)


def _form(word: str) -> str:
    if any(letter.isdigit() for letter in word):
        return "<number>"
    if word.isupper():
        return "<CAPITALS>"
    return "<Capital>" if word[:1].isupper() else "<small>"
