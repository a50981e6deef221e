"""Region features as others publish them: one reader a layout, image by image, and writers for other tools.

    for key, regions in open_layout(Path("trainval_36.tsv")):    # the layout is told from the content where that is possible
        ...

`docs/region_files.md` has the columns, the conventions and what each layout lacks.
"""

from unimo_ds.region_layouts.opening import LAYOUTS, open_layout
from unimo_ds.region_layouts.published import Damage, PublishedRegions
from unimo_ds.region_layouts.rows import ReadOptions

__all__ = ["LAYOUTS", "Damage", "PublishedRegions", "ReadOptions", "open_layout"]
