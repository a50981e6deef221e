"""`unimo-ds regions info`: what is in a store, finished or not."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unimo_ds.data.store import decode_regions
from unimo_ds.errors import DamagedRecordError
from unimo_ds.progress import Progress
from unimo_ds.region_tools.shards import Advance, ShardFailure, StoreFolder, open_folder, open_shard, read_shards
from unimo_ds.regions import BACKGROUND
from unimo_ds.vision.drawing import name_of

_BARS = 12  # lines of the histogram, at most
_BAR_WIDTH = 40
_SHOWN_CLASSES = 12
_SHOWN_REASONS = 5
_SHOWN_SHARDS = 16
_SHOWN_VALUE = 100  # letters of one value of the identity


@dataclass(frozen=True)
class StoreInfo:
    """What is in a store.

    Attributes:
        content: all of it, as JSON has it.
        text: the same for a reader.
    """

    content: dict[str, Any]
    text: str


@dataclass(frozen=True)
class _ShardContent:
    """One shard: exact counts of records and bytes, and what the records that were looked into hold."""

    records: int
    record_bytes: int
    file_bytes: int
    looked_at: int
    damaged: int
    counts_I: npt.NDArray[np.int64]
    sizes: Counter[tuple[int, int]]
    widths: Counter[int]
    kept: Counter[int]
    classes: Counter[int]
    looked_bytes: int


def describe_store(folder: Path, sample: int = 20_000, processes: int = 1, show_progress: bool = True) -> StoreInfo:
    """Describes a store.

    Args:
        sample: records that are looked into at most, spread evenly over the shards; 0: all. Records and bytes are exact.
        processes: shards that are read at the same time.

    Raises:
        StoreError: there is no store.
    """
    store = open_folder(folder)
    share = -(-sample // max(len(store.shards), 1))
    common = share if sample else None
    contents: dict[str, _ShardContent | ShardFailure] = {}
    with Progress(
        "looking into", min(sample, store.records) if sample and store.records else None, "images", show_progress
    ) as bar:
        for shard, found in read_shards(_look_into, store.shards, common, processes, bar):
            contents[shard.name] = found
    content = _content(store, contents)
    return StoreInfo(content, _text(content))


def _look_into(shard: Path, share: int | None, advance: Advance) -> _ShardContent:
    """Counts a shard's records, and reads `share` of them (all if None) spread evenly. Records are not checked here."""
    counts: list[int] = []
    sizes: Counter[tuple[int, int]] = Counter()
    widths: Counter[int] = Counter()
    kept: Counter[int] = Counter()
    classes: Counter[int] = Counter()
    records = size = looked_bytes = damaged = 0
    with open_shard(shard) as transaction:
        entries = transaction.stat()["entries"]
        every = max(1, -(-entries // share)) if share else 1
        for records, (_, value) in enumerate(transaction.cursor().iternext(), 1):
            size += len(value)
            if (records - 1) % every:
                continue
            try:
                regions = decode_regions(value, check=False)
            except DamagedRecordError:
                damaged += 1
                continue
            counts.append(len(regions))
            sizes[regions.width, regions.height] += 1
            widths[regions.features_RF.shape[1]] += 1
            kept[regions.class_ids_RK.shape[1]] += 1
            looked_bytes += len(value)
            classes.update(_best_classes(regions.class_ids_RK))
            advance(1)
    file_bytes = sum(path.stat().st_size for path in shard.iterdir())
    counts_I = np.array(counts, np.int64)
    return _ShardContent(records, size, file_bytes, len(counts), damaged, counts_I, sizes, widths, kept, classes, looked_bytes)


def _best_classes(ids_RK: npt.NDArray[np.uint16]) -> list[int]:
    """The most probable class of each region that is not the background; none where only the background was kept."""
    if not ids_RK.size:
        return []
    object_RK = ids_RK != BACKGROUND
    best_R = np.take_along_axis(ids_RK, object_RK.argmax(axis=1)[:, None], axis=1)[:, 0]
    return [int(number) for number in best_R[object_RK.any(axis=1)]]


def _content(store: StoreFolder, contents: dict[str, _ShardContent | ShardFailure]) -> dict[str, Any]:
    read = [found for found in contents.values() if isinstance(found, _ShardContent)]
    counts_I = np.sort(np.concatenate([np.zeros(0, np.int64), *(found.counts_I for found in read)]))
    sizes = sum((found.sizes for found in read), Counter[tuple[int, int]]())
    classes = sum((found.classes for found in read), Counter[int]())
    regions, looked_bytes = int(counts_I.sum()), sum(found.looked_bytes for found in read)
    return {
        "folder": str(store.folder),
        "finished": store.manifest is not None,
        "promised": store.manifest["records"] if store.manifest else None,
        "detector": store.detector,
        "records": sum(found.records for found in read),
        "record_bytes": sum(found.record_bytes for found in read),
        "file_bytes": sum(found.file_bytes for found in read),
        "looked_at": len(counts_I),
        "damaged": sum(found.damaged for found in read),
        "shards": [_shard(shard.name, contents[shard.name]) for shard in store.shards],
        "regions": regions,
        "regions_per_image": _spread(counts_I),
        "histogram": _histogram(counts_I),
        "bytes_per_region": looked_bytes / regions if regions else None,
        "image_sizes": _sizes(sizes),
        "feature_widths": _counted(sum((found.widths for found in read), Counter[int]())),
        "kept_classes": _counted(sum((found.kept for found in read), Counter[int]())),
        "class_names": len(store.class_names),
        "attribute_names": len(store.attribute_names),
        "classes": [
            {"id": number, "name": name_of(number, store.class_names, "class"), "regions": count}
            for number, count in classes.most_common()
        ],
        "failures": _failures(store.folder),
    }


def _shard(name: str, found: _ShardContent | ShardFailure) -> dict[str, Any]:
    if isinstance(found, ShardFailure):
        return {"shard": name, "problem": found.reason}
    return {"shard": name, "records": found.records, "record_bytes": found.record_bytes, "file_bytes": found.file_bytes}


def _spread(values: npt.NDArray[np.int64]) -> dict[str, float] | None:
    """Of sorted numbers."""
    if not len(values):
        return None
    return {"min": int(values[0]), "median": float(np.median(values)), "max": int(values[-1]), "mean": float(values.mean())}


def _histogram(values: npt.NDArray[np.int64]) -> list[dict[str, int]]:
    """Numbers from..to (both included) and how many there are."""
    if not len(values):
        return []
    first, last = int(values[0]), int(values[-1])
    step = -(-(last - first + 1) // _BARS)
    starts = range(first, last + 1, step)
    return [
        {"from": start, "to": min(start + step - 1, last), "images": int(((values >= start) & (values < start + step)).sum())}
        for start in starts
    ]


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, Any] | None:
    if not sizes:
        return None
    (width, height), images = sizes.most_common(1)[0]
    return {
        "different": len(sizes),
        "width": {"min": min(w for w, _ in sizes), "max": max(w for w, _ in sizes)},
        "height": {"min": min(h for _, h in sizes), "max": max(h for _, h in sizes)},
        "most_frequent": {"width": width, "height": height, "images": images},
    }


def _counted(counts: Counter[int]) -> dict[str, int]:
    return {str(number): count for number, count in counts.most_common()}


def _failures(folder: Path) -> dict[str, Any]:
    """What the reports of failures (`failures-*.jsonl`) hold, by reason without its particulars."""
    kinds: Counter[str] = Counter()
    files = sorted(folder.glob("failures-*.jsonl"))
    for path in files:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                reason = str(json.loads(line)["reason"])
            except (ValueError, KeyError, TypeError):
                reason = "line that cannot be read"
            kinds[reason.split(":")[0].strip()] += 1
    return {"files": [path.name for path in files], "images": sum(kinds.values()), "reasons": dict(kinds.most_common())}


def format_bytes(count: float) -> str:
    """`1536` -> `1.5 kB`, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _text(content: dict[str, Any]) -> str:
    lines = [f"{content['folder']}: {_state(content)}"]
    lines += ["", "detector", *_identity_lines(content["detector"])]
    stored = f"{format_bytes(content['record_bytes'])} of records in {format_bytes(content['file_bytes'])} of files"
    lines += ["", f"records: {content['records']:,}, {stored}", *_shard_lines(content["shards"])]
    if content["looked_at"]:
        lines += ["", *_record_lines(content)]
    if content["damaged"]:
        lines += ["", f"{content['damaged']:,} of the records looked into cannot be read: `unimo-ds regions verify` names them"]
    failures = content["failures"]
    if failures["files"]:
        lines += ["", f"images that failed: {failures['images']:,} ({', '.join(failures['files'][:_SHOWN_REASONS])})"]
        lines += [f"  {count:>9,}  {reason}" for reason, count in list(failures["reasons"].items())[:_SHOWN_REASONS]]
    return "\n".join(lines)


def _state(content: dict[str, Any]) -> str:
    if not content["finished"]:
        return "a regions store in the making (no manifest.json: not finished)"
    if content["promised"] != content["records"]:
        return f"a regions store whose manifest promises {content['promised']:,} records; `unimo-ds regions verify` says more"
    return "a finished regions store"


def _identity_lines(detector: dict[str, Any]) -> list[str]:
    if not detector:
        return ["  not known yet: it is written down with the first shard's summary"]
    width = max(len(key) for key in detector)
    texts = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in detector.items()}
    short = {key: value if len(value) <= _SHOWN_VALUE else value[: _SHOWN_VALUE - 1] + "…" for key, value in texts.items()}
    return [f"  {key:<{width}}  {value}" for key, value in short.items()]


def _shard_lines(shards: list[dict[str, Any]]) -> list[str]:
    broken = [f"  {shard['shard']}  cannot be read: {shard['problem']}" for shard in shards if "problem" in shard]
    whole = [shard for shard in shards if "problem" not in shard]
    if len(whole) > _SHOWN_SHARDS:
        counts = sorted(shard["records"] for shard in whole)
        files = sorted(shard["file_bytes"] for shard in whole)
        spread = f"{counts[0]:,} to {counts[-1]:,} records, {format_bytes(files[0])} to {format_bytes(files[-1])} each"
        return [f"  {len(whole)} shards of {spread}", *broken]
    lines = [f"  {shard['shard']}  {shard['records']:>10,} records  {format_bytes(shard['file_bytes']):>10}" for shard in whole]
    return lines + broken


def _record_lines(content: dict[str, Any]) -> list[str]:
    """What the records hold."""
    looked = content["looked_at"]
    lines = (
        [] if looked == content["records"] else [f"of {looked:,} records spread evenly over the store (--sample 0: of all):"]
    )
    spread = content["regions_per_image"]
    numbers = f"{spread['min']} least, {spread['median']:g} median, {spread['mean']:.1f} mean, {spread['max']} most"
    lines.append(f"regions an image: {numbers}")
    tallest = max(bar["images"] for bar in content["histogram"])
    width = max(len(_range(bar)) for bar in content["histogram"])
    for bar in content["histogram"]:
        length = round(_BAR_WIDTH * bar["images"] / tallest)
        lines.append(f"  {_range(bar):>{width}} {'█' * length or '·'} {bar['images']:,}")
    if content["bytes_per_region"] is not None:
        lines.append(f"bytes a region: {content['bytes_per_region']:,.0f}")
    sizes = content["image_sizes"]
    frequent = sizes["most_frequent"]
    lines.append(
        f"image sizes: {sizes['width']['min']} to {sizes['width']['max']} wide, {sizes['height']['min']} to "
        f"{sizes['height']['max']} high; most often {frequent['width']}x{frequent['height']} "
        f"({frequent['images'] / looked:.0%})"
    )
    lines.append(f"feature width: {', '.join(content['feature_widths'])}; kept classes: {', '.join(content['kept_classes'])}")
    names = "names.json" if content["class_names"] else "no names.json: numbers stand for names"
    if content["classes"]:
        lines.append(f"most frequent classes ({len(content['classes']):,} in all; {names})")
        width = max(len(entry["name"]) for entry in content["classes"][:_SHOWN_CLASSES])
        for entry in content["classes"][:_SHOWN_CLASSES]:
            share = entry["regions"] / content["regions"]
            lines.append(f"  {entry['name']:<{width}}  {entry['regions']:>10,}  {share:6.1%}")
    else:
        lines.append("no classes are stored")
    return lines


def _range(bar: dict[str, int]) -> str:
    return str(bar["from"]) if bar["from"] == bar["to"] else f"{bar['from']}-{bar['to']}"
