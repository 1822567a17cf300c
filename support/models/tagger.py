"""A tagger of sentences: embeddings, an LSTM, a dense layer."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from support.models.seeded import seeded


class Tagger(nn.Module):
    """The network of :func:`tagger`."""

    def __init__(self, classes: int, words: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.output = nn.Linear(hidden, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits (tokens, classes) of words (N, T)."""
        counts = words != 0
        packed = pack_padded_sequence(
            self.embedding(words),
            counts.sum(1).cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.output(states[counts[:, : states.shape[1]]])


@seeded
def tagger(
    shape: Sequence[int] = (113,),
    classes: int = 9,
    words: int = 10_000,
    embedding: int = 50,
    hidden: int = 100,
) -> Tagger:
    """LSTM with a dense layer on each of its states, of experiments E11-E13.

    Inputs of shape (N, T): numbers of words, 0 for the places that fill a sentence up, which stand at its end.
    Outputs of shape (tokens, classes): logits, the sentences one after the other without those places. The
    source states no size; with ours there are 561,709 parameters, half a million of them in
    the embeddings.

    Parameters
    ----------
    shape
        Of one example; used for nothing but a check.
    classes
        Number of tags.
    words
        Size of the vocabulary.
    embedding, hidden
        Widths.

    Raises
    ------
    ValueError
        If the shape is not that of a sentence.
    """
    if len(shape) != 1:
        raise ValueError(f"shape must be (words in a sentence,); got {tuple(shape)}")
    return Tagger(classes, words, embedding, hidden)
