"""An evaluation as training makes it; captions are what whole passes over all words so far would say."""

import json
from pathlib import Path

import numpy as np
import torch

from tests.life.small_run import write_config, write_inputs
from unimo_ds.batch import FIRST_POSITION, Target
from unimo_ds.config import load_config
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import FIRST_WORD, PackedText, Sequence
from unimo_ds.evaluate import HeldOut, evaluate_model, open_held_out
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tokenizer import CLS, SEP, Tokenizer


@torch.no_grad()
def caption(unimo: UnimoModel, pairs: HeldOut, image: int, longest: int) -> str:
    """The likeliest next word, again and again, each by a pass over everything."""
    words: list[int] = []
    while len(words) < longest and SEP not in words:
        packer = Packer(24, 100)
        number, shown = packer.add_image(pairs.regions(image))
        ids = np.array([CLS, *words])
        text = PackedText(ids, np.arange(len(ids)) + FIRST_POSITION, np.full(len(ids), 4), 0)
        packer.add(Sequence(image=number, regions=shown, text=text, causal=True, target=Target.SEQ2SEQ))
        logits = unimo(packer.build(), want_logits=True).language_logits_MV
        assert logits is not None
        scores = logits[-1]
        scores[[*(id for id in range(FIRST_WORD) if id != SEP), pairs.tokenizer.mask]] = -torch.inf
        words.append(int(scores.argmax()))
    return pairs.tokenizer.decode([word for word in words if word != SEP])


def test_captions_are_greedy(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    held_out = {"name": "held_out", "kind": "pairs", "format": "coco_captions", "path": str(tmp_path / "captions.json")}
    section = {"pairs": {**held_out, "regions": str(tmp_path / "regions")}, "captions": 5, "caption_tokens": 7}
    shape = {"size": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "feature_width": 24, "region_classes": 20}
    shape |= {"vocabulary_size": tokenizer.size}
    config = load_config(write_config(tmp_path, "run"), [f"evaluation={json.dumps(section)}", f"model={json.dumps(shape)}"])
    pairs = open_held_out(config, tokenizer, show=False)
    assert pairs is not None
    torch.manual_seed(0)
    unimo = UnimoModel(config.model)
    with torch.no_grad():
        for parameter in unimo.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    evaluation = evaluate_model(unimo, pairs, feature_width=24)
    assert unimo.training and 0 <= evaluation.numbers["eval/mlm_accuracy"] <= 1
    unimo.eval()
    assert [example.image for example in evaluation.captions] == pairs.images[:5]
    generated = [example.generated for example in evaluation.captions]
    assert generated == [caption(unimo, pairs, image, longest=7) for image in range(5)]
    assert len(set(generated)) > 1
