"""Relation words, a closed list: which expressions say one relation, which relations exclude each other."""

from unimo_ds.augment.word_lists import words

MEANINGS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "on the left of", "left of", "at the left of", "on the left side of", "to the left side of"),
    "right": (
        "to the right of",
        "on the right of",
        "right of",
        "at the right of",
        "on the right side of",
        "to the right side of",
    ),
    "above": ("above", "over", "higher than"),
    "below": ("below", "beneath", "under", "underneath", "lower than"),
    "on": ("on", "on top of", "atop", "upon"),
    "in": ("in", "inside", "inside of", "within"),
    "outside": ("outside", "outside of"),
    "front": ("in front of",),
    "behind": ("behind", "in back of"),
    "beside": ("beside", "next to", "alongside", "at the side of", "by the side of"),
    "near": ("near", "close to", "by", "near to"),
    "far": ("far from", "away from"),
    "with": ("with", "along with", "together with"),
    "without": ("without",),
    "against": ("against",),
    "between": ("between", "in between"),
    "among": ("among", "amongst"),
    "around": ("around",),
    "middle": ("in the middle of", "in the center of", "in the centre of"),
    "top": ("at the top of", "on the top of"),
    "bottom": ("at the bottom of", "at the foot of"),
    "edge": ("at the edge of", "on the edge of", "on the side of"),
    "end": ("at the end of",),
    "back": ("on the back of", "at the back of", "in the back of"),
    "full": ("full of", "filled with"),
    "covered": ("covered with", "covered in", "covered by"),
    "into": ("into",),
    "onto": ("onto",),
    "across": ("across",),
    "along": ("along",),
    "through": ("through",),
    "toward": ("toward", "towards"),
    "past": ("past",),
    "off": ("off", "off of"),
    "at": ("at",),
    "of": ("of",),
    "from": ("from",),
    "to": ("to",),
    "for": ("for",),
}
"""Expressions by the relation that they name; the first is the plainest."""

EXPRESSIONS: dict[str, str] = {text: meaning for meaning, expressions in MEANINGS.items() for text in expressions}
"""The relation that each expression names."""

MIRRORED = {"left": "right", "right": "left", "above": "below", "below": "above", "front": "behind", "behind": "front"}
"""What the second thing is to the first when the first is this to the second."""

EXCLUDES: dict[str, tuple[str, ...]] = {
    "left": ("right", "on", "in"),
    "right": ("left", "on", "in"),
    "above": ("below", "in"),
    "below": ("above", "on", "in"),
    "on": ("below",),
    "in": ("outside", "below", "above", "left", "right"),
    "outside": ("in",),
    "front": ("behind",),
    "behind": ("front",),
    "beside": ("on", "in", "above", "below"),
    "with": ("without",),
    "near": ("far",),
}
"""The relations that cannot hold of the same two things in the same direction, in the loosest sense of the words.

A cup on a table may well be left of the table's middle, and what is above a shelf may stand on it: such pairs are left out.
"""

PLACES = words("left right above below on in outside front behind beside near against at top bottom edge middle")
"""The relations that say where a thing is: a phrase of one can stand for a phrase of another."""
