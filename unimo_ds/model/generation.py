"""Text from images, from texts, or from both: greedy and beam search over a prefix that is encoded once.

The prefix is a packed batch like any other; its pass keeps every layer's keys and values (`cache.Cache`). A step is a packed
batch of one new row a hypothesis, and attends to them. Both are whole passes through `UnimoModel`, so that all ranks call the
same modules in the same order, whatever they hold; and all ranks make the same number of them.

Shape suffixes: see `unimo_ds.batch`; N hypotheses of all sentences, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.batch import FIRST_POSITION, Batch
from unimo_ds.model.beams import Beams, Decoding, Generated
from unimo_ds.model.cache import Cache
from unimo_ds.model.unimo import UnimoModel

_STEPS_BETWEEN_QUESTIONS = 4  # to the other ranks, whether all sentences are finished


@torch.no_grad()
def generate(
    unimo: UnimoModel,
    prefix: Batch,
    decoding: Decoding,
    start: int,
    end: int,
    forbidden: Sequence[int] = (),
    starts_word_V: Sequence[bool] | None = None,
) -> list[Generated]:
    """The text of each sequence of `prefix`, in their order. Every rank must call it, with the same rules.

    Args:
        unimo: the model, in evaluation mode.
        prefix: one sequence a sentence, with all that its text may see: regions, words, or both; no sequence on a rank that has
            nothing to generate. On the model's device.
        decoding: the rules of the search.
        start: id that stands before every text, at the first text position.
        end: id that ends a text.
        forbidden: ids that are never generated.
        starts_word_V: for each id whether it begins a word (a leading space); needed to block trigrams.

    Raises:
        ValueError: the model has not so many positions, or trigrams are to be blocked without `starts_word_V`.
    """
    most = unimo.embedding.text.position.num_embeddings - FIRST_POSITION
    if decoding.longest > most:
        raise ValueError(f"longest {decoding.longest}: the model has positions for {most} tokens of a text")
    beams = Beams(prefix.sequences, decoding, start, end, forbidden, starts_word_V, prefix.token_ids_W.device)
    cache = Cache(prefix, rows=decoding.rows)
    unimo(prefix, attend=cache.encode)
    nothing = prefix.emptied()
    for step in range(decoding.longest):
        cache.follow(beams.parents_SB)
        rows = _new_rows(nothing, beams.last_N, FIRST_POSITION + step)
        beams.advance(unimo(rows, want_logits=True, attend=cache.extend).language_logits_MV)
        if (step + 1) % _STEPS_BETWEEN_QUESTIONS == 0 and not distributed.sum_over_ranks(beams.unfinished()):
            break
    return beams.best()


def _new_rows(nothing: Batch, tokens_N: Tensor, position: int) -> Batch:
    """The stream of a step: each hypothesis's last token, which predicts the next one; in a dialogue, said by voice 0, 0."""
    rows_N = torch.arange(len(tokens_N), device=tokens_N.device)
    return replace(
        nothing,
        token_ids_W=tokens_N,
        token_positions_W=torch.full_like(tokens_N, position),
        token_rows_W=rows_N,
        token_voices_W2=tokens_N.new_zeros(len(tokens_N), 2),
        language_rows_M=rows_N,
    )
