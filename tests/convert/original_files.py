"""Folders in the layout of the original UNIMO, written from its documentation (unimo-spec, 9.1) with random numbers."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HIDDEN, LAYERS, POSITIONS, FEATURES = 128, 2, 64, 24
TYPES = {"float32": 5, "float64": 6, "float16": 4, "int64": 3}


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def parameter_bytes(numbers: npt.NDArray[Any], packed: bool = False) -> bytes:
    """A LoDTensor stream; dimensions one by one as Paddle writes them, or packed as protobuf also may."""
    dims = [varint(size) for size in numbers.shape]
    described = b"\x08" + varint(TYPES[str(numbers.dtype)])
    if packed:
        described += b"\x12" + varint(len(b"".join(dims))) + b"".join(dims)
    else:
        described += b"".join(b"\x10" + size for size in dims)
    header = struct.pack("<IQI", 0, 0, 0) + struct.pack("<i", len(described)) + described
    return header + numbers.tobytes()


def original_parameters(vocabulary: int, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """A pre-trained model by the original's names, biases and LayerNorms away from 0 and 1, with what the optimiser leaves."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.05, mean: float = 0.0) -> npt.NDArray[np.float32]:
        return (mean + scale * rng.normal(size=shape)).astype(np.float32)

    made = {"word_embedding": normal(vocabulary, HIDDEN), "pos_embedding": normal(POSITIONS, HIDDEN)}

    def fc(name: str, inputs: int, outputs: int) -> None:
        made[f"{name}.w_0"] = normal(inputs, outputs, scale=1.5 / inputs**0.5)
        made[f"{name}.b_0"] = normal(outputs, scale=0.2)

    def norm(name: str) -> None:
        made[f"{name}_scale"] = normal(HIDDEN, scale=0.2, mean=1.0)
        made[f"{name}_bias"] = normal(HIDDEN, scale=0.2)

    norm("pre_encoder_layer_norm")
    norm("v_pre_encoder_layer_norm")
    fc("image_emb", FEATURES, HIDDEN)
    fc("image_loc", 5, HIDDEN)
    for number in range(LAYERS):
        layer = f"encoder_layer_{number}"
        for part in ("query", "key", "value", "output"):
            fc(f"{layer}_multi_head_att_{part}_fc", HIDDEN, HIDDEN)
        norm(f"{layer}_post_att_layer_norm")
        fc(f"{layer}_ffn_fc_0", HIDDEN, 4 * HIDDEN)
        fc(f"{layer}_ffn_fc_1", 4 * HIDDEN, HIDDEN)
        norm(f"{layer}_post_ffn_layer_norm")
    fc("pooled_fc_text", HIDDEN, HIDDEN)
    fc("pooled_fc_image", HIDDEN, HIDDEN)
    fc("mask_lm_trans_fc", HIDDEN, HIDDEN)
    norm("mask_lm_trans_layer_norm")
    made["mask_lm_out_fc.b_0"] = normal(vocabulary, scale=0.2)
    made["word_embedding_moment1_0"] = normal(vocabulary, HIDDEN)
    made["word_embedding_beta1_pow_acc_0"] = normal(1)
    return made


def sentence_head(classes: int) -> dict[str, npt.NDArray[np.float32]]:
    """What GLUE adds."""
    rng = np.random.default_rng(classes)
    return {
        f"cls_out_{classes}_w": rng.normal(size=(HIDDEN, classes)).astype(np.float32),
        f"cls_out_{classes}_b": rng.normal(size=classes).astype(np.float32),
    }


def entailment_head() -> dict[str, npt.NDArray[np.float32]]:
    """What SNLI-VE adds."""
    rng = np.random.default_rng(5)
    return {
        "cls_out_w_0": rng.normal(size=(HIDDEN, 2048)).astype(np.float32) / 10,
        "cls_out_b_0": rng.normal(size=2048).astype(np.float32),
        "cls_out_w_1": rng.normal(size=(2048, 3)).astype(np.float32) / 10,
        "cls_out_b_1": rng.normal(size=3).astype(np.float32),
    }


def matching_head() -> dict[str, npt.NDArray[np.float32]]:
    """What retrieval adds."""
    rng = np.random.default_rng(6)
    return {
        "match_fc.w_0": rng.normal(size=(HIDDEN, 1)).astype(np.float32),
        "match_fc.b_0": rng.normal(size=1).astype(np.float32),
    }


def voices() -> dict[str, npt.NDArray[np.float32]]:
    """What CoQA adds."""
    rng = np.random.default_rng(7)
    sizes = {"role_embedding": 3, "turn_embedding": 16}
    return {name: rng.normal(size=(size, HIDDEN)).astype(np.float32) for name, size in sizes.items()}


def write_folder(folder: Path, parameters: dict[str, npt.NDArray[np.float32]]) -> Path:
    """One file a parameter."""
    folder.mkdir(parents=True)
    for name, numbers in parameters.items():
        (folder / name).write_bytes(parameter_bytes(numbers))
    return folder
