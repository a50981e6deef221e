"""Whether an English sentence is true of a scene of the demo world: the judge of captions, rewrites and statements.

A sentence is true if its noun phrases can be given to things of the scene so that all that it claims holds at once, with
different things for different indefinite phrases. Relations are taken in their loosest sense: how the middles of two things
compare, and what holds what. So a hard negative counts as false only if nobody could defend it, and a positive counts as true
if a generous reader would let it pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from unimo_ds.demo.claim_lexicon import Side
from unimo_ds.demo.claims import Bond, Claims, Mention, read
from unimo_ds.demo.scene import Scene, Thing

Assignment = tuple[frozenset[int], ...]
"""For each mention the places of its things in the scene."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a sentence.

    Attributes:
        true: None where the sentence cannot be read.
        reason: why, in words.
        unread: the words that were not understood.
    """

    true: bool | None
    reason: str
    unread: tuple[str, ...] = ()


def judge(sentence: str, scene: Scene) -> Verdict:
    """Decides whether `sentence` is true of `scene`; see the module for what that means."""
    claims = read(sentence)
    if claims.unread:
        return Verdict(None, f"cannot be read: {', '.join(claims.unread)}", claims.unread)
    if not (claims.mentions or claims.places or claims.total):
        return Verdict(None, "claims nothing that a picture shows")
    false = _false_alone(claims, scene)
    if false is not None:
        return Verdict(False, false)
    found = next(_assignments(claims, scene), None)
    if found is None:
        return Verdict(False, _why_not_together(claims, scene))
    shown = [
        f"{mention.text}: {', '.join(_describe(scene.things[place]) for place in sorted(places))}"
        for mention, places in zip(claims.mentions, found, strict=True)
        if places
    ]
    return Verdict(True, "; ".join(shown) or f"the setting is {scene.background}")


# --- one claim at a time ---------------------------------------------------------------------------------------------


def _false_alone(claims: Claims, scene: Scene) -> str | None:
    """A claim that is false whatever the others say."""
    for text, backgrounds in claims.places:
        if scene.background not in backgrounds:
            return f"{text}: the setting is {scene.background}"
    if claims.total not in (None, len(scene.things)):
        return f"{claims.total} things: there are {len(scene.things)}"
    for mention in claims.mentions:
        count = len(_candidates(mention, scene))
        if mention.count == 0 and count:
            return f"{mention.text}: there is one"
        if count < mention.count:
            return f"{mention.text}: there {'is none' if not count else f'are only {count}' if count > 1 else 'is only one'}"
    return None


def _candidates(mention: Mention, scene: Scene) -> list[int]:
    return [place for place, thing in enumerate(scene.things) if _fits(mention, thing)]


def _fits(mention: Mention, thing: Thing) -> bool:
    looks = {thing.colour, thing.size}
    return thing.kind in mention.kinds and all(looks & quality.of_things for quality in mention.qualities)


def lies(scene: Scene, first: int, side: Side, second: int) -> bool:
    """Whether thing `first` lies on that side of thing `second` in the loosest sense."""
    one, other = scene.things[first], scene.things[second]
    held = one.held if one.host == second else None
    holds = other.held if other.host == first else None
    if first == second:
        return False
    if side in ("on", "inside"):
        return held == side
    if side == "near":
        return True
    if side == "against":
        return held is not None or holds is not None
    if "inside" in (held, holds):  # what is in a box is neither beside nor above nor below it
        return side == "front" and held is not None
    (x, y), (other_x, other_y) = _middle(one), _middle(other)
    in_line = _overlap_sideways(one, other)
    sides: dict[Side, bool] = {
        "left": x < other_x,
        "right": x > other_x,
        "above": y < other_y,
        "below": y > other_y,
        # Nearer things stand lower in a picture.
        "front": held is not None or (in_line and _foot(one) >= _foot(other)),
        "behind": holds is not None or (in_line and _foot(one) <= _foot(other)),
    }
    return sides[side]


def _middle(thing: Thing) -> tuple[float, float]:
    x, y, width, height = thing.box
    return x + width / 2, y + height / 2


def _foot(thing: Thing) -> int:
    return thing.box[1] + thing.box[3]


def _overlap_sideways(one: Thing, other: Thing) -> bool:
    return one.box[0] < other.box[0] + other.box[2] and other.box[0] < one.box[0] + one.box[2]


# --- all claims at once ----------------------------------------------------------------------------------------------


def _assignments(claims: Claims, scene: Scene, bonds: tuple[Bond, ...] | None = None) -> Iterator[Assignment]:
    """Every way to give things to the mentions that fulfils `bonds` (default: all that are claimed)."""
    for assignment in _extend((), frozenset(), claims.mentions, scene):
        if all(_bound(bond, assignment, scene) for bond in (claims.bonds if bonds is None else bonds)):
            yield assignment


def _extend(done: Assignment, taken: frozenset[int], mentions: tuple[Mention, ...], scene: Scene) -> Iterator[Assignment]:
    if len(done) == len(mentions):
        yield done
        return
    mention = mentions[len(done)]
    for places in combinations(_candidates(mention, scene), mention.count):
        chosen = frozenset(places)
        if mention.known or not chosen & taken:
            yield from _extend((*done, chosen), taken if mention.known else taken | chosen, mentions, scene)


def _bound(bond: Bond, assignment: Assignment, scene: Scene) -> bool:
    return any(
        all(lies(scene, one, bond.side, other) for one in assignment[first] for other in assignment[second])
        for first in bond.firsts
        for second in bond.seconds
    )


def _why_not_together(claims: Claims, scene: Scene) -> str:
    """The first relation that holds for no things of the right looks, else that the claims do not fit together."""
    if next(_assignments(claims, scene, ()), None) is None:
        return "not so many different things"
    for bond in claims.bonds:
        if next(_assignments(claims, scene, (bond,)), None) is None:
            first, second = claims.mentions[bond.firsts[0]].text, claims.mentions[bond.seconds[0]].text
            return f"{first} {bond.side} {second}: not so"
    return "each claim holds of something, not all of the same things"


def _describe(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.kind} at {thing.box[0]},{thing.box[1]}"
