"""The scene graphs of a corpus on disk: parsed once, by any number of processes, then read in any order.

A caption's negatives are captions from anywhere in the corpus, so every process needs every graph, and a million of them do
not fit its memory. Chunks of captions are parsed one by one, each into a file of its own; `join` makes of them

    graphs.jsonl    one graph a line
    offsets.npy     int64 [N + 1], where each line begins; written last, so a folder that has it is whole
    vocabulary.json the corpus's vocabulary, all words
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from unimo_ds.augment.scene_graph import SceneGraph
from unimo_ds.augment.vocabulary import Vocabulary

_GRAPH = TypeAdapter(SceneGraph)
_KEPT_GRAPHS = 20_000  # a few kB each


class ParsedCaptions:
    """The graphs of N captions, memory-mapped.

    Args:
        folder: one that `is_whole`.
    """

    def __init__(self, folder: Path) -> None:
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._bytes = np.memmap(folder / "graphs.jsonl", np.uint8, mode="r")
        self.vocabulary = Vocabulary.load(folder / "vocabulary.json")
        self.graph = lru_cache(_KEPT_GRAPHS)(self._graph)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def _graph(self, number: int) -> SceneGraph:
        """The graph of caption `number`."""
        return _GRAPH.validate_json(self._bytes[self._offsets[number] : self._offsets[number + 1]].tobytes())


def is_whole(folder: Path) -> bool:
    """Whether `join` has ended there."""
    return (folder / "offsets.npy").exists()


def has_chunk(folder: Path, number: int) -> bool:
    """Whether chunk `number` is parsed."""
    return _chunk(folder, number).exists()


def write_chunk(folder: Path, number: int, images: Sequence[Sequence[SceneGraph]]) -> None:
    """Writes a chunk: for each image, the graphs of its captions. A kill at any moment leaves no half chunk."""
    vocabulary = Vocabulary()
    for of_image in images:
        vocabulary.add(of_image)
    vocabulary.save(_vocabulary(folder, number))
    temporary = folder / f".{number:06}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.writelines(_GRAPH.dump_json(graph) + b"\n" for of_image in images for graph in of_image)
    temporary.replace(_chunk(folder, number))


def join(folder: Path, chunks: int) -> None:
    """Makes one whole of `chunks` chunks, and removes their files."""
    vocabulary, ends = Vocabulary(), [np.zeros(1, np.int64)]
    with (folder / "graphs.jsonl").open("wb") as file:
        for number in range(chunks):
            content = _chunk(folder, number).read_bytes()
            ends.append(file.tell() + 1 + np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n")))
            file.write(content)
            vocabulary.merge(Vocabulary.load(_vocabulary(folder, number)))
    vocabulary.save(folder / "vocabulary.json")
    temporary = folder / f".{os.getpid()}.npy"
    np.save(temporary, np.concatenate(ends))
    temporary.replace(folder / "offsets.npy")
    for number in range(chunks):
        _chunk(folder, number).unlink()
        _vocabulary(folder, number).unlink()


def _chunk(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06}.jsonl"


def _vocabulary(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06}.vocabulary.json"
