"""Inputs in which the features of one image, that a single step sees, are infinite or huge; and what a run says of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.life import small_run
from unimo_ds.config import load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.data.order import Mixture, order
from unimo_ds.data.store import RegionStore, RegionStoreWriter, finish_store

STEPS = 24
INFINITE, HUGE = 7, 14  # the steps, counted from 1, that see the bad picture


def seen_once(folder: Path, step: int) -> str:
    """An image of a step that no other step sees."""
    config = load_config(small_run.write_config(folder, "looked_at"))
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    mixture = Mixture(tuple(corpus.section.per_step for corpus in corpora), tuple(map(len, corpora)))
    steps = [
        [corpora[draw.corpus].image_key(draw.index) for draw in order(config.seed, mixture, number) if draw.corpus != 1]
        for number in range(STEPS)
    ]
    return next(key for key in steps[step - 1] if sum(keys.count(key) for keys in steps) == 1)


def spoil(folder: Path, step: int, value: float) -> list[str]:
    """Makes a store in which one image, of `step` alone, has features of `value`; the overrides that name it."""
    spoiled, victim = folder / f"spoiled-{step}", seen_once(folder, step)
    if not spoiled.exists():
        store = RegionStore(folder / "regions")
        with RegionStoreWriter(spoiled, small_run.DETECTOR) as writer:
            for number in range(400):
                regions = store.get(key := f"{number:04}.jpg")
                features_RF = np.full_like(regions.features_RF, value)
                writer.write(key, replace(regions, features_RF=features_RF) if key == victim else regions)
        finish_store(spoiled)
    return [f"data.corpora.{name}.regions={spoiled}" for name in ("pairs", "images")]


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in small_run.metrics(run)]
