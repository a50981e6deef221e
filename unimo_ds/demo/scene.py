"""A scene as data: which things stand where, and what relations hold between them.

Scene i of a split depends on (seed, split, i) alone, so scenes can be made in any order and by any number of processes.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from unimo_ds.demo.drawing import BACKGROUNDS, HEIGHT, WIDTH, sprite_aspect
from unimo_ds.demo.objects import COLOURS, KIND_BY_NAME, KINDS, SIZES, Surface

SPLITS: tuple[str, ...] = ("train", "val", "alone")
"""Their order is part of every scene's seed and of the image ids."""

Relation = Literal["left", "right", "above", "below", "on", "inside"]
Box = tuple[int, int, int, int]

_GAP = 5
"""Pixels kept free between things that do not hold each other."""
_EDGE = 3
"""Pixels kept free at the picture's edge."""
_TRIES = 80
_PURPOSES = ("scene", "pixels", "captions", "questions", "entailment", "statements", "knowledge")


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene; `box` is x, y, width, height in pixels, `host` the place of what holds it in the scene's list."""

    kind: str
    colour: str
    size: str
    box: Box
    mirrored: bool = False
    shade: float = 1.0
    host: int | None = None
    held: Literal["on", "inside"] | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture shows; a host precedes its guest in `things`."""

    seed: int
    split: str
    index: int
    background: str
    things: tuple[Thing, ...]


def generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that a new caption template never moves a thing in a picture."""
    return np.random.default_rng(np.random.SeedSequence((seed, SPLITS.index(split), index, _PURPOSES.index(purpose))))


def compose(seed: int, split: str, index: int) -> Scene:
    """Invents scene `index` of `split`: two to four things, in a third of the scenes one on or inside another."""
    rng = generator(seed, split, index, "scene")
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    while True:  # a crowded start may leave no room for the last thing; a fresh one nearly always does
        things = _try_compose(rng, background.horizon)
        if things is not None:
            return Scene(seed, split, index, background.name, things)


def relation(things: tuple[Thing, ...], first: int, second: int) -> Relation | None:
    """How `first` lies to `second`, or None where no single word says it clearly (a slanted or overlapping position)."""
    if things[first].host == second:
        return things[first].held
    if things[second].host == first:
        return None  # "a table below a cup" is true, yet nobody says so
    ax, ay, aw, ah = things[first].box
    bx, by, bw, bh = things[second].box
    dx, dy = (ax + aw / 2) - (bx + bw / 2), (ay + ah / 2) - (by + bh / 2)
    if (ax + aw <= bx or bx + bw <= ax) and abs(dx) > 1.3 * abs(dy):
        return "left" if dx < 0 else "right"
    if (ay + ah <= by or by + bh <= ay) and abs(dy) > 1.3 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def _try_compose(rng: np.random.Generator, horizon: float | None) -> tuple[Thing, ...] | None:
    count = int(rng.choice((2, 3, 4), p=(0.3, 0.42, 0.28)))
    things: list[Thing] = []
    if rng.random() < 0.36:
        things += _place_pair(rng, horizon)
    while len(things) < count:
        twin = things[-1] if things and rng.random() < 0.14 else None
        thing = _place_alone(rng, horizon, things, twin)
        if thing is None:
            return None
        things.append(thing)
    return tuple(things)


def _invent(rng: np.random.Generator, kinds: list[str], size: str) -> Thing:
    """A thing at the origin, its shape a little stretched and its paint a little lighter or darker than its fellows'."""
    kind, colour = str(rng.choice(kinds)), COLOURS[int(rng.integers(len(COLOURS)))].name
    side = float(rng.uniform(*SIZES[size]))
    ratio = sprite_aspect(kind) * float(rng.uniform(0.92, 1.08))
    # A long thin thing would be too tall for its surroundings if only its area counted.
    ratio_root = min(max(ratio, 0.5), 2.0) ** 0.5
    width, height = max(8, round(side * ratio_root)), max(8, round(side / ratio_root))
    return Thing(kind, colour, size, (0, 0, width, height), bool(rng.integers(2)), float(rng.uniform(0.9, 1.1)))


def _move(thing: Thing, x: int, y: int) -> Thing:
    return replace(thing, box=(x, y, thing.box[2], thing.box[3]))


def _place_alone(rng: np.random.Generator, horizon: float | None, others: list[Thing], twin: Thing | None) -> Thing | None:
    """A new thing clear of the others, or None where no free place was found; a twin is of its model's kind."""
    present = {other.kind for other in others}
    kinds = [twin.kind] if twin else [kind.name for kind in KINDS if kind.name not in present]
    thing = _invent(rng, kinds, str(rng.choice(("small", "large"))))
    if twin and rng.random() < 0.6:
        thing = replace(twin, mirrored=thing.mirrored, host=None, held=None)
    for _ in range(_TRIES):
        x, y = _spot(rng, thing, thing.box[3], horizon)
        placed = _move(thing, x, y)
        if all(_apart(placed.box, other.box) for other in others):
            return placed
    return None


def _place_pair(rng: np.random.Generator, horizon: float | None) -> list[Thing]:
    """A large thing with a small one on or inside it; the first things of a scene, so the host has place 0."""
    hosts = [(kind.name, surface) for kind in KINDS for surface in kind.surfaces]
    host_kind, surface = hosts[int(rng.integers(len(hosts)))]
    host = _invent(rng, [host_kind], "large")
    guest = _invent(rng, [kind.name for kind in KINDS if kind.portable and kind.name != host_kind], "small")
    top = max(0, guest.box[3] - round(surface.foot * host.box[3]))
    x, y = _spot(rng, host, host.box[3] + top, horizon)
    host = _move(host, x, y + top)
    return [host, _seat(rng, host, guest, surface)]


def _seat(rng: np.random.Generator, host: Thing, guest: Thing, surface: Surface) -> Thing:
    x, y, width, height = host.box
    left, right = x + surface.left * width, x + surface.right * width - guest.box[2]
    if host.mirrored:
        left, right = x + (1 - surface.right) * width, x + (1 - surface.left) * width - guest.box[2]
    # A guest wider than its seat hangs over both sides alike.
    guest_x = float(rng.uniform(left, right)) if right > left else (left + right) / 2
    inside_picture = min(max(round(guest_x), 0), WIDTH - guest.box[2])
    guest = _move(guest, inside_picture, round(y + surface.foot * height) - guest.box[3])
    return replace(guest, host=0, held=surface.relation)


def _spot(rng: np.random.Generator, thing: Thing, height: int, horizon: float | None) -> tuple[int, int]:
    """A random top left corner; what can not float keeps its foot on the ground where the background has one."""
    lowest = HEIGHT - _EDGE - height
    highest = _EDGE
    if horizon is not None and not KIND_BY_NAME[thing.kind].airy:
        highest = max(highest, round(horizon * HEIGHT) + 8 - height)
    x = int(rng.integers(_EDGE, WIDTH - _EDGE - thing.box[2] + 1))
    return x, int(rng.integers(min(highest, lowest), lowest + 1))


def _apart(first: Box, second: Box) -> bool:
    ax, ay, aw, ah = first
    bx, by, bw, bh = second
    return ax + aw + _GAP <= bx or bx + bw + _GAP <= ax or ay + ah + _GAP <= by or by + bh + _GAP <= ay
