"""Captions by beam search against BLIP's text decoder of the same size: processor time of one thread.

Both write texts of one fixed length, so that both make the same number of steps for the same number of hypotheses. Neither's
vision is counted: BLIP's decoder is given the states of its image encoder, as many as an image has regions here, [IMG] with
them; ours starts at region features, so the pass through all layers that encodes them is in its time. All weights are random.
Rounds alternate between the two; the ratio is the median over rounds.
"""

import statistics
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from unimo_ds.batch import Batch
from unimo_ds.bench.contenders import shape
from unimo_ds.bench.threads import DTYPES, one_thread, processor_seconds
from unimo_ds.bench.workload import FEATURE_WIDTH, VOCABULARY, random_regions
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.model.beams import Decoding
from unimo_ds.model.generation import generate
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.progress import track
from unimo_ds.tokenizer import CLS, SEP

IMAGES, REGIONS, BEAMS, TOKENS = 8, 36, 5, 20

Write = Callable[[], list[list[int]]]


def measure_generation(
    sizes: Sequence[str], precisions: Sequence[str], rounds: int = 3, images: int = IMAGES, tokens: int = TOKENS
) -> list[dict[str, object]]:
    """A row for every size and precision: tokens that each writes a second, and the ratio.

    Args:
        sizes: of the decoder: layers, width and heads of our model of that name, for both.
        precisions: fp32 or bf16, of the weights.
        rounds: timings of each, after a warm-up.
        images: captions written at once.
        tokens: of each caption.
    """
    cases = list(product(sizes, precisions))
    with one_thread():
        return [_row(*case, rounds, images, tokens) for case in track(cases, "generation", len(cases), "cases")]


def _row(size: str, precision: str, rounds: int, images: int, tokens: int) -> dict[str, object]:
    torch.manual_seed(0)
    writers = [make(size, DTYPES[precision], images, tokens) for make in (ours, blip)]
    times = [[processor_seconds(write) for write in writers] for _ in range(rounds + 1)][1:]
    speeds = (images * tokens / statistics.median(column) for column in zip(*times, strict=True))
    row = {"size": size, "precision": precision} | dict(zip(("ours_per_second", "blip_per_second"), speeds, strict=True))
    return row | {"times_faster": statistics.median(there / here for here, there in times)}


def ours(size: str, dtype: torch.dtype, images: int, tokens: int) -> Write:
    """Our model, from region features to captions of `tokens` ids."""
    unimo, prefix = UnimoModel(shape(size)).to(dtype).eval(), _images(images)
    decoding = Decoding(BEAMS, longest=tokens, shortest=tokens)
    return lambda: [text.ids for text in generate(unimo, prefix, decoding, CLS, SEP)]


def _images(count: int) -> Batch:
    rng, packer = np.random.default_rng(0), Packer(FEATURE_WIDTH, REGIONS)
    for _ in range(count):
        image, shown = packer.add_image(random_regions(rng, REGIONS))
        packer.add(View(image=image, regions=shown))
    return packer.build()


def blip(size: str, dtype: torch.dtype, images: int, tokens: int) -> Write:
    """The text decoder of Hugging Face's BLIP, called as `BlipForConditionalGeneration.generate` calls it."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    model = shape(size)
    vision = {
        "hidden_size": model.hidden_size,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
    }
    config = BlipConfig(text_config=_text_decoder(size), vision_config=vision)
    decoder: Any = BlipForConditionalGeneration(config).to(dtype).eval().text_decoder
    states = torch.randn(images, 1 + REGIONS, model.hidden_size).to(dtype)
    inputs = {"input_ids": torch.full((images, 1), CLS), "encoder_hidden_states": states}
    inputs["encoder_attention_mask"] = torch.ones(states.shape[:-1], dtype=torch.long)
    rules = {"num_beams": BEAMS, "do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": SEP}

    def write() -> list[list[int]]:
        with torch.no_grad():
            ids: list[list[int]] = decoder.generate(**inputs, **rules, pad_token_id=1)[:, 1:].tolist()
        return ids

    return write


def _text_decoder(size: str) -> dict[str, Any]:
    model = shape(size)
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": model.hidden_size,
        "encoder_hidden_size": model.hidden_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.hidden_size,
        "bos_token_id": CLS,
        "sep_token_id": SEP,
        "eos_token_id": SEP,
        "pad_token_id": 1,
    }


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    head = "| size | precision | ours tokens/s | BLIP's decoder tokens/s | times faster |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {row['size']} | {row['precision']} | {row['ours_per_second']:.0f} | {row['blip_per_second']:.0f} "
        f"| {row['times_faster']:.2f} |"
        for row in rows
    )
