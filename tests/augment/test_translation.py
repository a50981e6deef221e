"""Back-translation: a program that misbehaves, what is not installed, and a real pass through two tiny MarianMT models."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel

from unimo_ds.augment import translation
from unimo_ds.augment.translation import ApertiumTranslator, MarianTranslator
from unimo_ds.errors import ConfigError

_PROGRAM = """#!{python}
import sys
if sys.argv[1] == "-l":
    print("  eng-cat\\n  cat-eng\\n  eng-spa")
    sys.exit()
text = sys.stdin.read()
with open({log!r}, "a") as log:
    log.write(f"{{sys.argv[2]}} {{len(text.split())}}\\n")
if sys.argv[2] == "eng-cat":
    text = text.replace("cup", "got")
else:
    text = text.replace("got", "mug").replace(" red", " *red").replace("A ", "the  ")
    text = text.replace("loses a line\\n\\n", "loses a line ")
sys.stdout.write(text)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for apertium, whose calls are noted in the file that is returned."""
    log = tmp_path / "calls"
    path = tmp_path / "apertium"
    path.write_text(_PROGRAM.format(python=sys.executable, log=str(log)))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    return log


def test_lines_are_translated_together_and_tidied(program: Path) -> None:
    translated = ApertiumTranslator(["cat"]).back_translate(["A red cup .", "a cup\nand a cup", "#1 *red* cup", "a cup-up"])
    assert translated == [["The red mug."], ["a mug and a mug"], ["#1 *red* mug"], []]
    assert [line.split()[0] for line in program.read_text().splitlines()] == ["eng-cat", "cat-eng"]


@pytest.mark.parametrize(
    ("text", "returned", "mended"),
    [
        ("A cup on a bed.", "A mug in a bed.", "A mug on a bed."),
        ("A green cup is on its box.", "An unripe cup is in his box.", "A green cup is on its box."),
        ("There is a big dog.", "There are some great dogs.", "There is a great dog."),
        ("A huge cup higher than a box.", "An enormous cup higher that a box.", "An enormous cup higher than a box."),
        ("a cup .", " a  *mug .", "a mug."),
    ],
)
def test_words_that_apertium_confuses_are_the_captions_again(text: str, returned: str, mended: str) -> None:
    assert translation._mend(returned, text) == mended


def test_lines_that_the_program_joins_stay_with_their_captions(program: Path) -> None:
    texts = [f"cup {number}" for number in range(5)] + ["loses a line", "cup 6", "cup 7"]
    assert ApertiumTranslator(["cat"]).back_translate(texts) == [[text.replace("cup", "mug")] for text in texts]


def test_what_is_not_installed_is_named(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no language pair 'spa-eng', only eng-cat, .*apt-get install .*apertium-eng-spa"):
        ApertiumTranslator()
    monkeypatch.setenv("PATH", str(program.parent / "nowhere"))
    with pytest.raises(ConfigError, match="`apertium` is not installed: `apt-get install apertium apertium-eng-cat"):
        ApertiumTranslator()


def test_a_program_that_fails_says_why(program: Path) -> None:
    translator = ApertiumTranslator(["cat"])
    (program.parent / "apertium").write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    with pytest.raises(ConfigError, match="`apertium -u eng-cat` failed with code 3: no memory"):
        translator.back_translate(["a cup"])


@pytest.mark.skipif(shutil.which("apertium") is None, reason="apertium is not installed")
def test_the_real_program_gives_a_variant_for_each_pivot() -> None:
    texts = ["A red cup on a wooden table.", "two dogs [on a beach] & a ^cat$", "A man", "A big", "house."]
    translated = ApertiumTranslator(["cat", "spa"]).back_translate(texts)
    assert [len(variants) for variants in translated] == [2] * 5
    assert all("red" in variant and "table" in variant for variant in translated[0])
    assert translated[1][0].startswith("two dogs [") and "dog" not in " ".join(translated[0] + translated[2])
    assert ApertiumTranslator(["cat"]).back_translate([]) == []


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MarianMT model of random weights with a vocabulary of its own, as a folder of files."""
    folder = tmp_path_factory.mktemp("marian")
    captions = folder / "captions.txt"
    captions.write_text(
        "".join(f"a {c} {o} on a {d}\n" for c in ("red", "blue") for o in ("cup", "ball") for d in ("box", "bed"))
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(captions), model_prefix=str(folder / "source"), vocab_size=40, hard_vocab_limit=False, minloglevel=2
    )
    (folder / "source.model").rename(folder / "source.spm")
    shutil.copy(folder / "source.spm", folder / "target.spm")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    words = ["</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "en"}))
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=len(words),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=len(words) - 1,
        decoder_start_token_id=len(words) - 1,
        eos_token_id=0,
        forced_eos_token_id=0,
        init_std=1.0,
    )
    MarianMTModel(config).save_pretrained(folder)
    return folder


def test_marian_gives_variants_that_do_not_depend_on_the_batch(marian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "_MOST_TOKENS", 16)  # random weights never come to an end
    texts = ["a red cup on a box", "a ball", "a blue ball on a bed on a red box"]
    together = MarianTranslator(marian, marian, variants=3, batch=3).back_translate(texts)
    assert [len(variants) for variants in together] == [3, 3, 3]
    assert any(len(set(variants)) > 1 for variants in together)
    assert MarianTranslator(marian, marian, variants=3, batch=1).back_translate(texts) == together
    assert MarianTranslator(marian, marian).back_translate([]) == []


def test_a_folder_without_a_marian_model_is_named(marian: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such folder; name the local folder of a MarianMT model"):
        MarianTranslator(marian, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r": not a MarianMT model .*source\.spm"):
        MarianTranslator(marian, tmp_path)
