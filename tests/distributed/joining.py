"""The batches of several ranks as the one batch that a single rank would have."""

import torch
from torch import Tensor

from unimo_ds.batch import Batch
from unimo_ds.kernels.attention import tile_list

_STREAM_ROWS = ("token_rows_W", "region_rows_L", "language_rows_M", "target_rows_G", "image_rows_I", "text_rows_X")


def join(batches: list[Batch]) -> Batch:
    """Concatenates streams; every index is moved by what comes before."""
    columns: dict[str, list[Tensor]] = {name: [] for name in Batch.__dataclass_fields__}
    kept = max(batch.target_class_ids_GK.shape[1] for batch in batches)
    positions = vectors = pairs = 0
    for batch in batches:
        for name, column in columns.items():
            value = getattr(batch, name)
            if name == "cu_seqlens_S1":
                value = value[:-1] + positions
            elif name in _STREAM_ROWS:
                value = value + positions
            elif name in ("region_sources_L", "target_sources_G"):
                value = value + vectors
            elif name in ("image_pairs_I", "text_pairs_X"):
                value = value + pairs
            elif name.endswith("_GK"):
                value = torch.nn.functional.pad(value, (0, kept - value.shape[1]))
            column.append(value)
        positions, vectors, pairs = (
            positions + batch.positions,
            vectors + len(batch.features_RF),
            pairs + len(batch.pair_groups_P),
        )
    columns["cu_seqlens_S1"].append(torch.tensor([positions], dtype=torch.int32))
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    tiles = tile_list(joined["cu_seqlens_S1"].diff().numpy(), joined["prefix_lengths_S"].numpy())
    return Batch(**joined | {"attention_tiles_N4": torch.from_numpy(tiles)})
