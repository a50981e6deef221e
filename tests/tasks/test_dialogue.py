"""CoQA: layout, roles and turns of a dialogue, its loss, and what is generated, against the specification (unimo-spec, 7.2)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import TINY, VOCABULARY, WordsTokenizer
from tests.tasks.test_losses import check_generated_words, stirred
from unimo_ds.batch import Batch
from unimo_ds.config import DialogueFiles, DialogueSection, TaskDataSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import ConfigError
from unimo_ds.model.beams import Decoding
from unimo_ds.model.generation import generate
from unimo_ds.tasks.dialogue import Dialogue, dialogue
from unimo_ds.tasks.examples import ExampleSet, TaskSteps
from unimo_ds.tasks.task import Example, Tokens
from unimo_ds.tokenizer import CLS, SEP, Tokenizer, train_tokenizer

FORBIDDEN = [CLS, 1, 3, VOCABULARY - 1]


def task(tokenizer: Any = None, **changes: Any) -> Dialogue:
    files = {"path": "none"}
    section = {"family": "dialogue", "train": files, "dev": {"dev": files}, **changes}
    return Dialogue(DialogueSection.model_validate(section), tokenizer or WordsTokenizer())


def some_words(rng: np.random.Generator, *counts: int) -> list[Any]:
    return [rng.integers(4, VOCABULARY - 1, count) for count in counts]


@pytest.mark.parametrize("count", [1, 2, 3, 15])
def test_layout(count: int) -> None:
    """Roles start at n % 2 and alternate, turns count down to 1, positions begin anew at 3; the story has role 2 and turn 0."""
    story, *utterances = (list(range(10 * k, 10 * k + 2 + k % 5)) for k in range(1, count + 2))
    text = dialogue(np.array(story), [np.array(each) for each in utterances], 5)
    rows = [(CLS, 2, count % 2, count)]
    rows += [(token, 3 + n, 2, 0) for n, token in enumerate([*story[:3], SEP])]
    role = count % 2
    for number, utterance in enumerate(utterances, 1):
        rows += [(token, 3 + n, role, count - number + 1) for n, token in enumerate([*utterance[:3], SEP])]
        role = 1 - role
    assert text.voices is not None
    assert list(zip(text.ids.tolist(), text.positions.tolist(), *text.voices.T.tolist(), strict=True)) == rows
    assert text.source_length == len(rows)


def packed(texts: list[list[Any]], targets: list[Any] | None) -> Batch:
    packer, coqa = Packer(TINY.feature_width, 100), task()
    for number, some in enumerate(texts):
        coqa.add(packer, Example(str(number), ()), Tokens(some, None if targets is None else targets[number], 64), number)
    return packer.build()


def test_the_answer_has_role_0_and_turn_0_and_its_own_positions() -> None:
    rng = np.random.default_rng(0)
    batch = packed([some_words(rng, 4, 3, 2, 5)], some_words(rng, 3))
    assert batch.token_positions_W[-5:].tolist() == [2, 3, 4, 5, 6]
    assert batch.token_voices_W2[-5:].tolist() == [[0, 0]] * 5
    assert batch.token_voices_W2[0].tolist() == [1, 3]
    assert batch.prefix_lengths_S.tolist() == [1 + 5 + 4 + 3 + 6]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients(smoothing: float) -> None:
    rng, coqa = np.random.default_rng(0), task(label_smoothing=smoothing)
    texts = [some_words(rng, 6, *rng.integers(1, 5, 2 * turn + 1)) for turn in range(4)]
    batch = coqa.teach(packed(texts, some_words(rng, 2, 5, 1, 3)), [])
    check_generated_words(coqa, batch, smoothing)
    _, weights = stirred(coqa)
    assert {name for name in weights if "voice" in name} == {f"embedding.text.voice.{part}.weight" for part in ("role", "turn")}
    for row in batch.batch.token_voices_W2.unique(dim=0).tolist():
        assert row[1] == 0 or row[0] == row[1] % 2


def test_generation_with_a_cache_is_that_of_whole_passes() -> None:
    """And roles and turns matter: a model that does not add them writes something else."""
    rng, coqa = np.random.default_rng(1), task()
    model, _ = stirred(coqa)
    unimo, longest = model.unimo.eval(), 6
    with torch.no_grad():
        for parameter in unimo.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    texts = [some_words(rng, 5, *rng.integers(1, 5, 2 * turn + 1)) for turn in range(3)]
    written: list[list[int]] = [[] for _ in texts]
    for _ in range(longest):
        batch = packed(texts, [np.array([*words, 4]) for words in written])  # row n of a target predicts its word n
        rows = torch.as_tensor([int(end) - 3 for end in batch.cu_seqlens_S1[1:]])
        with torch.no_grad():
            logits = unimo(batch, want_logits=True).language_logits_MV
        assert logits is not None
        scores = logits[[batch.language_rows_M.tolist().index(row) for row in rows.tolist()]]
        scores[:, [*FORBIDDEN, SEP]] = -torch.inf
        for words, word in zip(written, scores.argmax(1).tolist(), strict=True):
            words.append(word)
    search = (Decoding(1, longest, longest), CLS, SEP, FORBIDDEN)
    assert [found.ids for found in generate(unimo, packed(texts, None), *search)] == written
    unimo.embedding.text.voice = None
    assert [found.ids for found in generate(unimo, packed(texts, None), *search)] != written


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["A cup is red."], 270, folder)
    return Tokenizer(folder)


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"turn_id": number, "input_text": text} for number, text in enumerate(texts, 1)]


def read(path: Path, data: list[Any], teach: bool) -> tuple[list[Example], Rejects]:
    path.write_text(json.dumps({"version": "1.0", "data": data}, indent=1))
    rejects = Rejects()
    return list(task().read(DialogueFiles(path=path), rejects, teach)), rejects


def test_coqa_is_read_with_the_first_answers_before_a_question(tmp_path: Path) -> None:
    story = {"id": "s1", "story": "A cat sat.", "questions": turns("Who?", "Where?"), "answers": turns("a cat", "here")}
    more = {"additional_answers": {"0": turns("the cat", "there"), "1": turns("cat", "here")}}
    taught, rejects = read(tmp_path / "train.json", [story], teach=True)
    assert taught == [
        Example("s1#1", ("A cat sat.", "Who?"), target="a cat"),
        Example("s1#2", ("A cat sat.", "Who?", "a cat", "Where?"), target="here"),
    ]
    evaluated, _ = read(tmp_path / "dev.json", [{**story, **more}], teach=False)
    assert [each.label for each in evaluated] == [["a cat", "the cat", "cat"], ["here", "there", "here"]]
    assert rejects.count == 0
    holes = {"additional_answers": {"0": turns("the cat"), "1": [{}, {}]}}
    evaluated_with_holes, rejects = read(tmp_path / "holes.json", [{**story, **holes}], teach=False)
    assert [each.label for each in evaluated_with_holes] == [["a cat", "the cat"], ["here"]]
    assert rejects.count == 3 and "data[0].additional_answers.0: turn 2" in "".join(rejects.reasons)
    assert json.loads(task().predictions(["A cat", "x"], evaluated)) == [
        {"id": "s1", "turn_id": 1, "answer": "A cat"},
        {"id": "s1", "turn_id": 2, "answer": "x"},
    ]
    # By the official rule: the mean over the references without one each; "here" is right whoever is left out.
    assert task().score(["a dog", "here"], evaluated) == {"exact_match": 0.5, "f1": 0.5}
    judged = task().judge(["the cat sat", "here"], evaluated)
    assert [each.worth for each in judged] == pytest.approx([2 / 3, 1.0]) and judged[0].truth == "a cat\nthe cat\ncat"


def test_the_last_15_utterances_are_kept(tmp_path: Path) -> None:
    questions, answers = ([f"{kind}{number}" for number in range(10)] for kind in "qa")
    content = {"id": "s", "story": "S.", "questions": turns(*questions), "answers": turns(*answers)}
    taught, _ = read(tmp_path / "train.json", [content], teach=True)
    assert [len(each.texts) for each in taught] == [2, 4, 6, 8, 10, 12, 14, 16, 16, 16]
    assert taught[-1].texts[:3] == ("S.", "q2", "a2") and taught[-1].texts[-1] == "q9"


def test_a_broken_turn_costs_itself_and_those_after_it(tmp_path: Path) -> None:
    good = {"id": "s", "story": "S.", "questions": turns("q", "r", "s"), "answers": turns("a", "b", "c")}
    shifted = turns("a", "b", "c")
    shifted[1]["turn_id"] = 3
    data = [
        {**good, "answers": turns("a", " ", "c")},
        {**good, "answers": shifted},
        {**good, "answers": turns("a")},
        {**good, "story": ""},
        7,
    ]
    taught, rejects = read(tmp_path / "train.json", data, teach=True)
    assert [each.name for each in taught] == ["s#1"] * 3 and rejects.count == 5
    wrong = ("turn 2", "turn_id is 3, expected 2", "turn 2", "'story' is ''", "expected an object")
    for number, (reason, words) in enumerate(zip(rejects.reasons, wrong, strict=True)):
        assert f"train.json: data[{number}]: " in reason and words in reason


def test_a_dialogue_over_the_budget_is_named_before_training(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = {"id": "s", "story": "A cup is red." * 20, "questions": turns("Who?"), "answers": turns("a cat")}
    (tmp_path / "train.json").write_text(json.dumps({"data": [content]}))
    coqa, files = task(tokenizer), DialogueFiles(path=tmp_path / "train.json")
    examples = ExampleSet.read("train", coqa, [files], tokenizer, TaskDataSection(max_text_tokens=40), teach=True, show=False)
    own = [(0, 0)]
    batch = examples.pack([(0, own)], 4, [])
    assert examples.positions(own) == 1 + 39 + len(tokenizer.encode(["Who?"])[0]) + 1 + 32 >= batch.batch.positions
    TaskSteps(examples, 1, examples.positions(own), 0, 4)
    with pytest.raises(ConfigError, match=r"positions_per_micro_batch = 50: example 's#1' of train alone needs \d+ positions"):
        TaskSteps(examples, 1, 50, 0, 4)
