"""Two ranks with different numbers of sentences generate what one process does, and training goes on after it."""

import json
from pathlib import Path

import pytest

from tests.distributed.generation_worker import SENTENCES, sharpened, written
from tests.life.small_run import run_ranks

pytestmark = pytest.mark.life


@pytest.mark.parametrize("stage", [0, 3])
def test_ranks_with_and_without_sentences_generate_what_one_process_does(tmp_path: Path, stage: int) -> None:
    out = tmp_path / "result.json"
    run_ranks("tests.distributed.generation_worker", 2, str(stage), str(out))
    result = json.loads(out.read_text())
    unimo = sharpened().unimo.eval()
    lengths = set()
    for case, ranks in SENTENCES.items():
        for given, found in zip(ranks, result[case], strict=True):
            for name, texts in written(unimo, given).items():
                assert [text["ids"] for text in found[name]] == [text.ids for text in texts], (case, name)
                assert [text["score"] for text in found[name]] == pytest.approx([text.score for text in texts], abs=1e-4)
                lengths |= {len(text.ids) for text in texts}
    assert len(lengths) > 2, "texts must end at different steps"
    assert result["norms"][:3] == result["norms"][3:], "generation between its steps changes nothing for training"
