"""Object tags: the names of what the detector saw in an image, as words beside it (unimo-spec, 7.5; 11, number 4).

The release reads its tags from files of ids that were not published. Known are their thresholds, 0.35 for the base model and
0.2 for the large one, and that there are 100 tokens at most. Not known are their order, whether a class is named once, their
positions, and whether special tokens stand around them. Ours: the class of each region that is sure enough, each name once, the
surest first; their tokens alone, as the layout `[IMG] v.. objects [CLS] caption [SEP]` has it, at the text positions from the
first on, as every other part of a sequence has them.
"""

from collections.abc import Sequence

import numpy as np

from unimo_ds.batch import FIRST_POSITION
from unimo_ds.config import TagsSection
from unimo_ds.data.sequences import IGNORED, Ints, PackedText
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.regions import BACKGROUND, Regions, best_objects


def expect_names(store: RegionStore) -> None:
    """Raises DataError where a store does not say what its classes are called."""
    if not store.class_names:
        raise DataError(
            f"{store.folder}: has no names of classes, and task.object_tags shows them as words; write names.json there, "
            '{"classes": [a name for each class of the detector, without the background]}, or leave task.object_tags out'
        )


def object_tags(store: RegionStore, key: str, section: TagsSection) -> tuple[str, ...]:
    """The tags of an image as one text; none where nothing is sure enough.

    Raises:
        ValueError: a class has no name.
        DamagedRecordError: the record of the image is cut.
    """
    try:
        return tags_of(store.get(key, check=False), store.class_names, section)  # the vectors, nearly all of it, are not read
    except ValueError as error:
        raise ValueError(f"{store.folder}: image {key!r}: {error}") from error


def tags_of(regions: Regions, class_names: Sequence[str], section: TagsSection) -> tuple[str, ...]:
    """The tags of regions, as `object_tags` gives them.

    Raises:
        ValueError: a class has no name, or there are no classes.
    """
    if regions.class_ids_RK.shape[1] == 0:
        raise ValueError("its regions have no classes, which task.object_tags names")
    ids_R, probabilities_R = best_objects(regions)
    order_R = np.argsort(-probabilities_R, kind="stable")
    sure = [int(ids_R[place]) for place in order_R if probabilities_R[place] > section.threshold]
    classes = [number for number in dict.fromkeys(sure) if number != BACKGROUND]
    if nameless := [number for number in classes if number > len(class_names)]:
        raise ValueError(f"has a region of class {nameless[0]}, and {len(class_names)} classes have names")
    return (" ".join(class_names[number - 1] for number in classes),) if classes else ()


def packed_tags(tokens: Ints, most: int) -> PackedText:
    """The tokens of tags as they stand before a caption, `most` at most."""
    ids = tokens[:most]
    return PackedText(ids, np.arange(len(ids)) + FIRST_POSITION, np.full(len(ids), IGNORED), len(ids))
