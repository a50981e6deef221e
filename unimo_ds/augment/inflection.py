"""English word forms where a corpus does not show them: `a` or `an`, and plurals."""

import re

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "leaf": "leaves",
    "knife": "knives",
    "loaf": "loaves",
    "shelf": "shelves",
    "wolf": "wolves",
    "calf": "calves",
    "scarf": "scarves",
    "ox": "oxen",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "aircraft": "aircraft",
    "potato": "potatoes",
    "tomato": "tomatoes",
}
_SOUNDS_LIKE_A_CONSONANT = re.compile(r"(?:uni(?!n)|us[eu]|ut[ei]|eu|ewe|one\b|once\b|ur[aeio]|uk)", re.IGNORECASE)
_SILENT_H = re.compile(r"(?:hour|honest|honou?r|heir)", re.IGNORECASE)


def article(word: str) -> str:
    """`a` or `an`, by the sound that the next word begins with (of written rules the usual ones)."""
    vowel = word[:1].lower() in set("aeiou8") and not _SOUNDS_LIKE_A_CONSONANT.match(word)
    return "an" if vowel or _SILENT_H.match(word) else "a"


def plural(noun: str) -> str:
    """The plural of a noun, or of a compound by its last word."""
    *before, last = noun.split(" ")
    return " ".join([*before, _IRREGULAR.get(last) or _regular(last)])


def _regular(noun: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"
