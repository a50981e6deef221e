"""A dry run of the benchmark of neighbour search."""

import pytest

from unimo_ds.bench import neighbours


def test_every_search_is_measured_and_faiss_finds_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_measure", neighbours._search)  # in this process: four others would take long to start
    rows = neighbours.measure_search(size=200)
    assert [row["search"] for row in rows] == ["images, exact", "images, FAISS", "sentences, BM25", "images and sentences"]
    assert all(float(str(row["seconds"])) > 0 and float(str(row["peak_mb"])) > 100 for row in rows)
    assert float(str(rows[1]["recall"])) > 0.9
    assert neighbours.table(rows).count("\n") == 1 + len(rows)
