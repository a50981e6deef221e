"""Generation by the model: greedy and beams against whole passes and Hugging Face, the same calls whatever a rank holds."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import TINY, VOCABULARY, view_maker
from tests.model.prefixes import PREFIXES, Given, next_logits, pack, some, stirred
from tests.model.test_beams import by_the_original_s_rules
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Sequence
from unimo_ds.model.beams import Decoding, Generated
from unimo_ds.model.generation import generate
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tokenizer import CLS, SEP

FORBIDDEN = [CLS, 1, 3]


def write(unimo: UnimoModel, given: list[Given], decoding: Decoding, end: int = SEP, **other: Any) -> list[Generated]:
    return generate(unimo, pack(given), decoding, CLS, end, FORBIDDEN, **other)


@pytest.mark.parametrize("kind", PREFIXES)
def test_greedy_search_takes_the_best_word_at_each_step(kind: str) -> None:
    given, unimo = some(kind, 3), stirred()
    free = write(unimo, given, Decoding(1, 6, shortest=6))
    ends = {text.ids[2] for text in free}
    for end in {SEP, *ends}:
        expected: list[list[int]] = [[] for _ in given]
        for _ in range(6):
            scores = next_logits(unimo, given, expected)
            scores[:, FORBIDDEN] = -torch.inf
            for words, word in zip(expected, scores.argmax(1).tolist(), strict=True):
                words.append(word)
        found = write(unimo, given, Decoding(1, 6), end)
        assert [text.ids for text in found] == [words[: words.index(end)] if end in words else words for words in expected]


@pytest.mark.parametrize("kind", ["images and texts", "of all kinds"])
@pytest.mark.parametrize("block", [False, True])
def test_beams_follow_the_original_s_rules(kind: str, block: bool) -> None:
    """The whole machine, cache and reordering, against plain lists and whole passes."""
    given, unimo = some(kind, 3), stirred(dtype=torch.float64)
    decoding = Decoding(3, 7, shortest=2, length_penalty=0.6, block_trigrams=block)
    starts = [token % 3 > 0 for token in range(VOCABULARY)]
    end = write(unimo, given, Decoding(3, 7, 7))[0].ids[4]  # one that comes up
    for each, found in zip(given, write(unimo, given, decoding, end, starts_word_V=starts), strict=True):
        scores = lambda text, each=each: next_logits(unimo, [each], [list(text[1:])])[0].tolist()  # noqa: E731
        expected = by_the_original_s_rules(scores, decoding, FORBIDDEN, starts, end)
        assert found.ids == expected.ids
        assert found.score == pytest.approx(expected.score, abs=1e-4)
        assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-4)


def hugging_face(unimo: UnimoModel, given: list[Given], **rules: Any) -> tuple[list[list[int]], list[float] | None]:
    """What transformers' own search finds with our model, by whole passes."""
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Wrapped(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        config_class = PretrainedConfig
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__(PretrainedConfig(vocab_size=VOCABULARY, is_encoder_decoder=False))
            self.unimo = unimo

        def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            return {"input_ids": input_ids}

        def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
            beams = len(input_ids) // len(given)
            each = [sentence for sentence in given for _ in range(beams)]
            logits = next_logits(unimo, each, [words[1:] for words in input_ids.tolist()])
            return CausalLMOutput(logits=logits[:, None])

    found = Wrapped().generate(
        torch.full((len(given), 1), CLS),
        do_sample=False,
        use_cache=False,
        suppress_tokens=FORBIDDEN,
        renormalize_logits=True,  # ours leaves forbidden ids out of the softmax
        pad_token_id=SEP,
        return_dict_in_generate=True,
        output_scores=True,
        **rules,
    )
    scores = found.sequences_scores.tolist() if rules["num_beams"] > 1 else None
    return found.sequences[:, 1:].tolist(), scores


@pytest.mark.parametrize("kind", PREFIXES)
def test_greedy_search_is_hugging_face_s(kind: str) -> None:
    given, unimo = some(kind, 3, seed=1), stirred(1)
    end = write(unimo, given, Decoding(1, 8, 8))[0].ids[3]
    for shortest in (0, 6):
        theirs, _ = hugging_face(unimo, given, num_beams=1, max_new_tokens=8, min_new_tokens=shortest or None, eos_token_id=end)
        ours = write(unimo, given, Decoding(1, 8, shortest), end)
        assert [text.ids for text in ours] == [words[: words.index(end)] if end in words else words for words in theirs]


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("beams", [2, 5])
def test_beam_search_of_a_fixed_length_is_hugging_face_s(beams: int, alpha: float) -> None:
    """There a finished text leaves the beam, and its length penalty is `length^alpha`: both are alike where no text ends."""
    given, unimo = some("of all kinds", 3, seed=2), stirred(2, torch.float64)
    theirs, scores = hugging_face(unimo, given, num_beams=beams, max_new_tokens=6, length_penalty=0.0, eos_token_id=None)
    ours = generate(unimo, pack(given), Decoding(beams, 6, 6, alpha), CLS, CLS, FORBIDDEN)
    assert [text.ids for text in ours] == theirs and scores is not None
    assert [text.log_probability for text in ours] == pytest.approx(scores, abs=1e-4)
    assert [text.score for text in ours] == pytest.approx([score / (11 / 6) ** alpha for score in scores], abs=1e-4)


def passes(unimo: UnimoModel, given: list[Given], decoding: Decoding, end: int = SEP) -> list[str]:
    """The names of all modules, as they were called."""
    called: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, part in unimo.named_modules()
        if not isinstance(part, nn.ModuleList)
    ]
    write(unimo, given, decoding, end)
    for handle in handles:
        handle.remove()
    return called


def test_every_pass_calls_every_module_whatever_there_is_to_generate() -> None:
    unimo, decoding = stirred(), Decoding(2, 3, 3)
    expected = passes(unimo, some("images and texts", 2), decoding)
    assert expected.count("") == 1 + decoding.longest
    for given in (some("images", 3), some("texts", 1), []):
        assert passes(unimo, given, decoding) == expected


def test_generation_stops_when_all_is_finished() -> None:
    given, unimo = some("images", 2), stirred()
    with torch.no_grad():
        unimo.language_head.bias[SEP] = 1000.0  # every text ends at once
    long = Decoding(1, 40)
    assert [text.ids for text in write(unimo, given, long)] == [[], []]
    assert passes(unimo, given, long).count("") < 8
    assert [len(text.ids) for text in write(unimo, given, Decoding(1, 40, shortest=9))] == [9, 9]


def test_nothing_to_generate() -> None:
    assert write(stirred(), [], Decoding(3, 6)) == []


def test_an_empty_prefix_generates_from_the_start_token_alone() -> None:
    unimo, packer = stirred(), Packer(TINY.feature_width, 100)
    packer.add(Sequence())
    packer.add(Sequence(text=view_maker().whole_text(some("texts", 1)[0].source)))  # type: ignore[arg-type]
    free, bound = generate(unimo, packer.build(), Decoding(1, 4, 4), CLS, SEP, FORBIDDEN)
    assert bound.ids == write(unimo, some("texts", 1), Decoding(1, 4, 4))[0].ids
    scores = next_logits(unimo, [Given(None, None)], [free.ids[:3]])[0]
    scores[[*FORBIDDEN, SEP]] = -torch.inf
    assert free.ids[3] == int(scores.argmax())


def test_more_tokens_than_positions_are_refused() -> None:
    unimo = UnimoModel(TINY.model_copy(update={"max_positions": 12}))
    with pytest.raises(ValueError, match="longest 11: the model has positions for 10 tokens of a text"):
        write(unimo, [], Decoding(1, 11))
    assert len(write(unimo.eval(), some("images", 1), Decoding(1, 10, 10))[0].ids) == 10
