"""Files of published regions, written as their own programs write them, by code that shares nothing with the readers.

Shape suffixes: R regions, F feature width, N classes with background first, A attributes with "none" first.
"""

import base64
import csv
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FEATURES = 8


@dataclass(frozen=True)
class Detected:
    """What a detector found in one image."""

    width: int
    height: int
    boxes_R4: Array
    features_RF: Array
    classes_RN: Array
    attributes_RA: Array

    def __len__(self) -> int:
        return len(self.boxes_R4)


Images = dict[str, Detected]


def detected(seed: int, count: int = 5, width: int = 640, height: int = 427, features: int = FEATURES) -> Detected:
    """Boxes as Caffe's detector leaves them: clipped to the last pixel of the resized image, then scaled back."""
    rng = np.random.default_rng(seed)
    corners_R22 = np.sort(rng.random((count, 2, 2)), axis=1)
    corners_R22[0] = (0, 0), (1, 1)
    scale = 600 / min(width, height)
    last = np.array([round(width * scale) - 1, round(height * scale) - 1])
    boxes_R4 = (corners_R22 * last).astype(np.float32).reshape(count, 4) / np.float32(scale)
    features_RF = np.maximum(rng.normal(size=(count, features)), 0).astype(np.float32) * 3
    return Detected(width, height, boxes_R4, features_RF, _softmax(rng, count, 1601), _softmax(rng, count, 401))


def _softmax(rng: np.random.Generator, count: int, columns: int) -> Array:
    weights = np.exp(rng.normal(size=(count, columns)) * 3)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def b64(array: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def best(probabilities: Array) -> tuple[Array, Array]:
    """LXMERT's choice: the best column but the first, counted without it."""
    return np.argmax(probabilities[:, 1:], axis=1), np.max(probabilities[:, 1:], axis=1)


def _table(path: Path, names: list[str], rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=names)
        for row in rows:
            writer.writerow(row)


def write_bottom_up(path: Path, images: Images) -> None:
    names = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    _table(
        path,
        names,
        (
            {
                "image_id": key,
                "image_h": image.height,
                "image_w": image.width,
                "num_boxes": len(image),
                "boxes": b64(image.boxes_R4),
                "features": b64(image.features_RF),
            }
            for key, image in images.items()
        ),
    )


def write_bottom_up_of_python_3(path: Path, images: Images) -> None:
    """The same program run by Python 3 writes its bytes as `b'...'`."""
    names = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    _table(
        path,
        names,
        (
            dict(
                zip(
                    names,
                    [
                        key,
                        image.width,
                        image.height,
                        len(image),
                        base64.b64encode(image.boxes_R4),
                        base64.b64encode(image.features_RF),
                    ],
                    strict=True,
                )
            )
            for key, image in images.items()
        ),
    )


LXMERT = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features"]


def _lxmert_row(key: str, image: Detected) -> dict[str, Any]:
    objects, objects_conf = best(image.classes_RN)
    attributes, attributes_conf = best(image.attributes_RA)
    return {
        "img_id": key,
        "img_h": image.height,
        "img_w": image.width,
        "objects_id": b64(objects),
        "objects_conf": b64(objects_conf),
        "attrs_id": b64(attributes),
        "attrs_conf": b64(attributes_conf),
        "num_boxes": len(image),
        "boxes": b64(image.boxes_R4),
        "features": b64(image.features_RF),
    }


def write_lxmert(path: Path, images: Images) -> None:
    _table(path, LXMERT, (_lxmert_row(key, image) for key, image in images.items()))


def write_volta(path: Path, images: Images) -> None:
    rows = (
        {
            **_lxmert_row(key, image),
            "cls_prob": b64(image.classes_RN),
            "attrs": b64(image.attributes_RA),
            "classes": b64(image.classes_RN),
        }
        for key, image in images.items()
    )
    _table(path, [*LXMERT, "cls_prob", "attrs", "classes"], rows)


def _unimo(path: Path, images: Images, width_first: bool) -> None:
    with path.open("w") as file:
        for key, image in images.items():
            size = (image.width, image.height) if width_first else (image.height, image.width)
            arrays = b64(image.boxes_R4), b64(image.features_RF), b64(image.classes_RN)
            file.write("\t".join(map(str, [key, *size, len(image), *arrays])) + "\n")


def write_unimo(path: Path, images: Images) -> None:
    _unimo(path, images, width_first=True)


def write_unimo_height_first(path: Path, images: Images) -> None:
    _unimo(path, images, width_first=False)


def write_unimo_captions(path: Path, images: Images) -> None:
    """Two captions an image, so that every image comes twice."""
    with path.open("w") as file:
        for caption in range(2):
            for key, image in images.items():
                text = ["0 713 2", "0 0 0", "2 3 4", "-1 0 -1", "", ""]
                arrays = b64(image.boxes_R4), b64(image.classes_RN), b64(image.attributes_RA), b64(image.features_RF)
                fields = [f"coco2014_{key}", f"{key}_{caption}", *text, image.height, image.width, len(image), *arrays, 0]
                file.write(";".join(map(str, fields)) + "\n")


def write_unimo_entailment(path: Path, images: Images) -> None:
    with path.open("w") as file:
        for number, (key, image) in enumerate([*images.items(), *images.items()]):
            text = ["0 713 2", "0 0 0", "2 3 4", ""]
            fields = [key, number, 1, *text, image.width, image.height, len(image), b64(image.boxes_R4), b64(image.features_RF)]
            file.write(";".join(map(str, [*fields, "", ""])) + "\n")


def _uniter(image: Detected) -> dict[str, Array]:
    """float16 arrays, as UNITER's extractor keeps them."""
    x1, y1, x2, y2 = (image.boxes_R4[:, column, None] for column in range(4))
    w, h = (x2 - x1) / image.width, (y2 - y1) / image.height
    left, top = x1 / image.width, y1 / image.height
    norm_bb = np.concatenate([left, top, left + w, top + h, w, h], axis=1)
    return {
        "norm_bb": norm_bb.astype(np.float16),
        "features": image.features_RF.astype(np.float16),
        "conf": best(image.classes_RN)[1][:, None].astype(np.float16),
        "soft_labels": image.classes_RN.astype(np.float16),
    }


def _lmdb(path: Path, values: Iterable[tuple[str, bytes]]) -> None:
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as transaction:
        for key, value in values:
            transaction.put(key.encode(), value)


def write_uniter(path: Path, images: Images) -> None:
    def packed(image: Detected) -> bytes:
        value: bytes = msgpack.dumps(_uniter(image), default=msgpack_numpy.encode, use_bin_type=True)
        return value

    values = [(f"{key}.npz", packed(image)) for key, image in images.items()]
    _lmdb(path, [*values, ("__keys__", json.dumps([key for key, _ in values]).encode())])


def write_uniter_compressed(path: Path, images: Images) -> None:
    values = []
    for key, image in images.items():
        with io.BytesIO() as stream:
            np.savez_compressed(stream, **_uniter(image), allow_pickle_was_saved_too=np.array(True))
            values.append((f"{key}.npz", stream.getvalue()))
    _lmdb(path, [*values, ("__keys__", json.dumps([key for key, _ in values]).encode())])


def write_vilbert(path: Path, images: Images) -> None:
    values = [
        (
            key,
            pickle.dumps(
                {
                    "image_id": key,
                    "image_h": image.height,
                    "image_w": image.width,
                    "num_boxes": len(image),
                    "boxes": base64.b64encode(image.boxes_R4),
                    "features": base64.b64encode(image.features_RF),
                },
            ),
        )
        for key, image in images.items()
    ]
    _lmdb(path, [*values, ("keys", pickle.dumps([key.encode() for key in images]))])


def write_volta_lmdb(path: Path, images: Images) -> None:
    """The rows of VOLTA's table as csv reads them: all of it text."""
    values = []
    for key, image in images.items():
        row = {**_lxmert_row(key, image), "cls_prob": b64(image.classes_RN), "attrs": b64(image.attributes_RA)}
        values.append((key, pickle.dumps({name: str(value) for name, value in row.items()})))
    _lmdb(path, [*values, ("keys", pickle.dumps([key.encode() for key in images]))])


def write_mmf_frcnn(path: Path, images: Images) -> None:
    """MMF's other extractor: the best class's probability alone, and the number of boxes that was asked for."""
    path.mkdir()
    for key, image in images.items():
        ids, scores = best(image.classes_RN)
        info = {**_mmf_info(image), "num_boxes": 100, "objects": ids, "cls_prob": scores}
        np.save(path / f"{key}.npy", image.features_RF)
        np.save(path / f"{key}_info.npy", info)  # type: ignore[arg-type]


def write_mmf_lmdb(path: Path, images: Images) -> None:
    items = {key: {"feature_path": key, "features": image.features_RF, **_mmf_info(image)} for key, image in images.items()}
    values = [(key, pickle.dumps(item)) for key, item in items.items()]
    _lmdb(path, [*values, ("keys", pickle.dumps([key.encode() for key in images]))])


def _mmf_info(image: Detected) -> dict[str, Any]:
    return {
        "bbox": image.boxes_R4,
        "num_boxes": len(image),
        "objects": best(image.classes_RN)[0],
        "cls_prob": image.classes_RN[:, 1:],
        "image_width": image.width,
        "image_height": image.height,
    }


def write_mmf_npy(path: Path, images: Images) -> None:
    path.mkdir()
    for key, image in images.items():
        np.save(path / f"{key}.npy", image.features_RF)
        np.save(path / f"{key}_info.npy", _mmf_info(image))  # type: ignore[arg-type]


def write_vilbert_npy(path: Path, images: Images) -> None:
    path.mkdir()
    for key, one in images.items():
        np.save(path / f"{key}.npy", {"image_id": key, "features": one.features_RF, **_mmf_info(one)})  # type: ignore[arg-type]


def write_milvlg(path: Path, images: Images) -> None:
    path.mkdir()
    for key, image in images.items():
        objects, objects_conf = best(image.classes_RN)
        attributes, attributes_conf = best(image.attributes_RA)
        info = {
            "image_id": key,
            "image_h": image.height,
            "image_w": image.width,
            "num_boxes": len(image),
            "objects_id": objects,
            "objects_conf": objects_conf,
            "attrs_id": attributes,
            "attrs_conf": attributes_conf,
        }
        np.savez_compressed(
            path / key,
            x=image.features_RF,
            bbox=image.boxes_R4,
            num_bbox=len(image),
            image_h=image.height,
            image_w=image.width,
            info=info,  # type: ignore[arg-type]
        )


def write_mcan(path: Path, images: Images) -> None:
    """Features with the regions last, no classes."""
    path.mkdir()
    for key, one in images.items():
        size = {"image_h": one.height, "image_w": one.width}
        np.savez(path / key, x=one.features_RF.T, bbox=one.boxes_R4, num_bbox=len(one), **size)


def write_uniter_npz(path: Path, images: Images) -> None:
    path.mkdir()
    for key, image in images.items():
        np.savez_compressed(path / key, **_uniter(image))


def write_vl_bert(path: Path, images: Images) -> None:
    path.mkdir()
    for key, image in images.items():
        (path / f"{key}.json").write_text(json.dumps(_vl_bert(image)))


def write_vl_bert_zip(path: Path, images: Images) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for key, image in images.items():
            archive.writestr(f"{key}.json", json.dumps(_vl_bert(image)))


def _vl_bert(image: Detected) -> dict[str, Any]:
    def encoded(array: Array) -> str:
        return base64.encodebytes(array.tobytes()).decode()

    return {
        "image_w": image.width,
        "image_h": image.height,
        "num_boxes": len(image),
        "boxes": encoded(image.boxes_R4),
        "features": encoded(image.features_RF),
        "classes": encoded(image.classes_RN),
    }


def _spatial(image: Detected) -> Array:
    x1, y1, x2, y2 = (image.boxes_R4[:, column, None] for column in range(4))
    w, h = (x2 - x1) / np.float32(image.width), (y2 - y1) / np.float32(image.height)
    left, top = x1 / np.float32(image.width), y1 / np.float32(image.height)
    return np.concatenate([left, top, left + w, top + h, w, h], axis=1)


def write_hu(path: Path, images: Images) -> None:
    """The first VQA converter: every image has the same number of boxes."""
    with h5py.File(path, "w") as file:
        for name, part in (
            ("image_features", lambda image: image.features_RF),
            ("image_bb", lambda image: image.boxes_R4),
            ("spatial_features", _spatial),
        ):
            file.create_dataset(name, data=np.stack([part(image) for image in images.values()]).astype("f"))
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps({int(key): row for row, key in enumerate(images)}))


def write_ban(path: Path, images: Images) -> None:
    ends = np.cumsum([len(image) for image in images.values()])
    with h5py.File(path, "w") as file:
        file.create_dataset("image_features", data=np.concatenate([image.features_RF for image in images.values()]))
        file.create_dataset("image_bb", data=np.concatenate([image.boxes_R4 for image in images.values()]))
        file.create_dataset("spatial_features", data=np.concatenate([_spatial(image) for image in images.values()]).astype("f"))
        starts = ends - [len(image) for image in images.values()]
        file.create_dataset("pos_boxes", data=np.stack([starts, ends], axis=1).astype("i4"))
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps({int(key): row for row, key in enumerate(images)}))


def write_nocaps(path: Path, images: Images) -> None:
    count = (len(images),)
    flat = h5py.special_dtype(vlen=np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("image_id", count, np.int64)
        for name, kind in (("height", np.float32), ("width", np.float32), ("num_boxes", np.int64)):
            file.create_dataset(name, count, kind)
        for name in ("boxes", "features", "scores"):
            file.create_dataset(name, count, flat)
        for row, (key, image) in enumerate(images.items()):
            file["image_id"][row] = int(key)
            file["height"][row], file["width"][row], file["num_boxes"][row] = image.height, image.width, len(image)
            file["boxes"][row], file["features"][row] = image.boxes_R4.reshape(-1), image.features_RF.reshape(-1)
            file["scores"][row] = best(image.classes_RN)[1]


def write_groups(path: Path, images: Images) -> None:
    with h5py.File(path, "w") as file:
        for key, image in images.items():
            group = file.create_group(key)
            objects, objects_conf = best(image.classes_RN)
            attributes, attributes_conf = best(image.attributes_RA)
            group["features"], group["boxes"] = image.features_RF, image.boxes_R4
            group["obj_id"], group["obj_conf"] = objects, objects_conf
            group["attr_id"], group["attr_conf"] = attributes, attributes_conf
            group["img_w"], group["img_h"] = image.width, image.height


def write_captioning(path: Path, images: Images) -> None:
    with h5py.File(path, "w") as file:
        for key, image in images.items():
            file.create_dataset(f"{key}_features", data=image.features_RF)
            file.create_dataset(f"{key}_boxes", data=image.boxes_R4)
            file.create_dataset(f"{key}_size", data=np.array([image.height, image.width]))
            file.create_dataset(f"{key}_cls_prob", data=image.classes_RN)


def _objects(image: Detected, features: bool) -> list[dict[str, Any]]:
    ids, scores = best(image.classes_RN)
    attributes, attribute_scores = best(image.attributes_RA)
    return [
        {
            "rect": image.boxes_R4[row].tolist(),
            "bbox_id": row,
            "class": f"class {ids[row]}",
            "conf": float(scores[row]),
            "attributes": [f"attribute {attributes[row]}"],
            "attr_scores": [float(attribute_scores[row])],
            **({"feature": b64(image.features_RF[row])} if features else {}),
        }
        for row in range(len(image))
    ]


def write_vinvl(path: Path, images: Images) -> None:
    path.mkdir()
    with (path / "features.tsv").open("w") as features, (path / "predictions.tsv").open("w") as predictions:
        for key, image in images.items():
            with_places = np.concatenate([image.features_RF, _spatial(image)], axis=1)
            features.write(f"{key}\t{len(image)}\t{b64(with_places.astype(np.float32))}\n")
            description = {"image_h": image.height, "image_w": image.width, "objects": _objects(image, features=False)}
            predictions.write(f"{key}\t{json.dumps(description)}\n")


def write_vinvl_features(path: Path, images: Images) -> None:
    with path.open("w") as file:
        for key, image in images.items():
            with_places = np.concatenate([image.features_RF, _spatial(image)], axis=1)
            file.write(f"{key}\t{len(image)}\t{b64(with_places.astype(np.float32))}\n")


def write_vinvl_predictions(path: Path, images: Images) -> None:
    with path.open("w") as file:
        for key, image in images.items():
            file.write(f"{key}\t{json.dumps({'objects': _objects(image, features=True), 'relations': None})}\n")


@dataclass(frozen=True)
class Published:
    """How a layout is written, and what it can hold.

    Attributes:
        suffix: of the file; "" for a folder.
        size: whether the image's size can be told from it.
        relative: whether boxes are relative to the image, float16 if `half`.
        classes: "all", "best", "none", or "named".
        attributes: whether the best one is there.
    """

    write: Callable[[Path, Images], None]
    layout: str
    suffix: str
    size: bool = True
    relative: bool = False
    half: bool = False
    classes: str = "none"
    attributes: bool = False


PUBLISHED = {
    "bottom-up": Published(write_bottom_up, "bottom_up_tsv", ".tsv"),
    "bottom-up, Python 3": Published(write_bottom_up_of_python_3, "bottom_up_tsv", ".tsv"),
    "LXMERT": Published(write_lxmert, "lxmert_tsv", ".tsv", classes="best", attributes=True),
    "VOLTA": Published(write_volta, "lxmert_tsv", ".tsv", classes="all", attributes=True),
    "UNIMO": Published(write_unimo, "unimo_tsv", "", classes="all"),
    "UNIMO, height first": Published(write_unimo_height_first, "unimo_tsv_hw", "", classes="all"),
    "UNIMO captions": Published(write_unimo_captions, "unimo_captions", "", classes="all", attributes=True),
    "UNIMO entailment": Published(write_unimo_entailment, "unimo_entailment", ""),
    "UNITER": Published(write_uniter, "uniter_lmdb", "", size=False, relative=True, half=True, classes="all"),
    "UNITER, compressed": Published(
        write_uniter_compressed, "uniter_lmdb", "", size=False, relative=True, half=True, classes="all"
    ),
    "UNITER npz": Published(write_uniter_npz, "npz", "", size=False, relative=True, half=True, classes="all"),
    "ViLBERT": Published(write_vilbert, "vilbert_lmdb", ""),
    "MMF LMDB": Published(write_mmf_lmdb, "vilbert_lmdb", "", classes="foreground"),
    "VOLTA LMDB": Published(write_volta_lmdb, "vilbert_lmdb", "", classes="all", attributes=True),
    "MMF npy, Faster R-CNN": Published(write_mmf_frcnn, "npy", "", classes="best"),
    "MMF npy": Published(write_mmf_npy, "npy", "", classes="foreground"),
    "ViLBERT npy": Published(write_vilbert_npy, "npy", "", classes="foreground"),
    "MILVLG": Published(write_milvlg, "npz", "", classes="best", attributes=True),
    "MCAN": Published(write_mcan, "npz", ""),
    "VL-BERT": Published(write_vl_bert, "vl_bert_json", "", classes="all"),
    "VL-BERT zip": Published(write_vl_bert_zip, "vl_bert_json", ".zip", classes="all"),
    "Hu": Published(write_hu, "bottom_up_hdf5", ".hdf5"),
    "BAN": Published(write_ban, "bottom_up_hdf5", ".hdf5"),
    "nocaps": Published(write_nocaps, "nocaps_hdf5", ".h5"),
    "VOLTA HDF5": Published(write_groups, "group_hdf5", ".h5", classes="best", attributes=True),
    "captioning": Published(write_captioning, "captioning_hdf5", ".hdf5", classes="all"),
    "VinVL": Published(write_vinvl, "vinvl_tsv", "", classes="named", attributes=True),
    "VinVL features": Published(write_vinvl_features, "vinvl_tsv", ".tsv", size=False, relative=True),
    "VinVL predictions": Published(
        write_vinvl_predictions, "vinvl_predictions", ".tsv", size=False, classes="named", attributes=True
    ),
}
