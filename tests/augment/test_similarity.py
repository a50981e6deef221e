"""Sentence vectors against sentence-transformers' own, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from unimo_ds.augment import similarity
from unimo_ds.augment.similarity import SentenceSimilarity, packaged_model
from unimo_ds.errors import ConfigError

TEXTS = [
    "A red cup on a wooden table.",
    "A red mug on a table of wood.",
    "Two dogs run along the beach.",
    "cup",
    "a very long caption " * 100,
    "",
]


@pytest.fixture(scope="module")
def encoder() -> SentenceSimilarity:
    return SentenceSimilarity(batch=2)


def test_vectors_are_those_of_sentence_transformers(encoder: SentenceSimilarity) -> None:
    from sentence_transformers import SentenceTransformer

    theirs_ND = SentenceTransformer(str(packaged_model())).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs_ND, atol=1e-5)


def test_vectors_are_of_unit_length_and_near_where_the_meaning_is(encoder: SentenceSimilarity) -> None:
    vectors_ND = encoder.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    cosines = vectors_ND[0] @ vectors_ND.T
    assert cosines[1] > 0.8 and cosines[2] < 0.3
    assert encoder.encode([]).shape == (0, encoder.width)


def test_a_missing_or_other_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder; name the local folder of a sentence-transformers"):
        SentenceSimilarity(tmp_path / "nowhere")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(ConfigError, match=r"config\.json: this model does not pool by the mean"):
        SentenceSimilarity(tmp_path)
    monkeypatch.setattr(similarity, "_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        SentenceSimilarity()
