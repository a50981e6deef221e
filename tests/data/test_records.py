"""File formats: a broken record costs itself and is named; a file that is none of the format says so."""

import json
from pathlib import Path

import pytest

from unimo_ds.data.records import Record, read_records
from unimo_ds.errors import DataError


def read(path: Path, content: bytes, file_format: str, pairs: bool = False) -> tuple[list[Record], list[str]]:
    path.write_bytes(content)
    rejected: list[str] = []
    return list(read_records(path, file_format, pairs, rejected.append)), rejected


def test_json_lines_of_pairs_and_of_texts(tmp_path: Path) -> None:
    content = b'{"text": " a cup ", "image": "1.jpg", "more": 3}\n\n  \n{"text": "b", "image": "2.jpg"}'
    found, rejected = read(tmp_path / "a.jsonl", content, "json_lines", pairs=True)
    assert found == [Record("a cup", "1.jpg"), Record("b", "2.jpg")] and rejected == []
    assert read(tmp_path / "a.jsonl", content, "json_lines")[0] == [Record("a cup"), Record("b")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a cu', "Unterminated string"),
        (b"not JSON", "Expecting value"),
        (b"[1, 2]", "expected an object, found list"),
        (b"null", "expected an object, found NoneType"),
        (b'{"image": "1.jpg"}', "'text' is None, expected a text"),
        (b'{"text": "   ", "image": "1.jpg"}', "'text' is '   ', expected a text"),
        (b'{"text": "a", "image": 5}', "'image' is 5, expected a text"),
        (b'{"text": "a", "image": ""}', "'image' is '', expected a text"),
        (b'{"text": "half a \\ud800 pair", "image": "1.jpg"}', "surrogates not allowed"),
        (b'{"text": "a", "image": "\\ud800.jpg"}', "surrogates not allowed"),
        pytest.param(b"[" * 100_000, "maximum recursion depth exceeded", id="deeply nested"),
        pytest.param(b'{"n": ' + b"9" * 5000 + b"}", "Exceeds the limit", id="absurd number"),
        (b'{"text": "caf\xe9", "image": "1.jpg"}', "'utf-8' codec can't decode byte 0xe9 in position 13"),
    ],
)
def test_a_broken_line_17_costs_itself_and_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    lines = [b'{"text": "cup %d", "image": "1.jpg"}' % number for number in range(1, 41)]
    lines[16] = line
    path = tmp_path / "a.jsonl"
    found, rejected = read(path, b"\n".join(lines), "json_lines", pairs=True)
    assert [record.text for record in found] == [f"cup {number}" for number in range(1, 41) if number != 17]
    assert len(rejected) == 1 and rejected[0].startswith(f"{path}:17: ") and reason in rejected[0]


def test_a_broken_line_far_behind_in_a_large_file_has_its_own_number(tmp_path: Path) -> None:
    """Text files are decoded in pieces of 8 KB: a number counted from the start of a piece would mislead."""
    lines = [b'{"text": "%s"}' % (b"word " * 30)] * 1000
    lines[899] = b'{"text": "caf\xe9"}'
    path = tmp_path / "a.jsonl"
    found, rejected = read(path, b"\n".join(lines), "json_lines")
    assert len(found) == 999 and rejected[0].startswith(f"{path}:900: ")


@pytest.mark.parametrize("file_format", ["json_lines", "plain_text"])
def test_windows_files_are_read_like_others(tmp_path: Path, file_format: str) -> None:
    content = {"json_lines": '{"text": "a naïve cup"}\r\n{"text": "b"}\r\n', "plain_text": "a naïve cup\r\n\r\nb\r\n"}[
        file_format
    ]
    found, rejected = read(tmp_path / "a", b"\xef\xbb\xbf" + content.encode(), file_format)
    assert found == [Record("a naïve cup"), Record("b")] and rejected == []


def test_documents_are_separated_by_blank_lines(tmp_path: Path) -> None:
    content = b"\n\none line\n and  another \n\n\n \nsecond document\n\nthird"
    found, _ = read(tmp_path / "a.txt", content, "plain_text")
    assert found == [Record("one line and  another"), Record("second document"), Record("third")]


def test_a_line_of_a_document_that_is_not_utf_8_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    found, rejected = read(path, b"one\ncaf\xe9\ntwo\n\nthree", "plain_text")
    assert found == [Record("one two"), Record("three")]
    assert rejected == [f"{path}:2: is not UTF-8 (byte 3 of the line: invalid continuation byte)"]


@pytest.mark.parametrize("file_format", ["json_lines", "plain_text"])
def test_a_file_in_utf_16_has_no_usable_record(tmp_path: Path, file_format: str) -> None:
    found, rejected = read(tmp_path / "a", '{"text": "a cup"}\n'.encode("utf-16") * 3, file_format)
    assert [record for record in found if "cup" in record.text] == [] and rejected


def coco(annotations: object, images: object = None) -> bytes:
    known = [
        {"id": 1, "file_name": "1.jpg"},
        {"id": "two", "file_name": "2.jpg"},
        {"id": 3, "file_name": None},
        {"id": 4, "file_name": "\udc00"},
    ]
    return json.dumps({"images": known if images is None else images, "annotations": annotations}).encode()


def test_coco_captions(tmp_path: Path) -> None:
    annotations = [{"image_id": 1, "caption": " A cup. ", "id": 5}, {"image_id": "two", "caption": "B"}]
    found, rejected = read(tmp_path / "a.json", coco(annotations), "coco_captions", pairs=True)
    assert found == [Record("A cup.", "1.jpg"), Record("B", "2.jpg")] and rejected == []


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"image_id": 1}, "'caption' is None, expected a text"),
        ({"image_id": 1, "caption": "\n"}, "'caption' is '\\n', expected a text"),
        ({"image_id": 9, "caption": "a"}, "image_id 9 is not among the images of this file"),
        ({"caption": "a"}, "image_id None is not among the images"),
        ({"image_id": [1], "caption": "a"}, "image_id [1] is not among the images"),
        ({"image_id": 3, "caption": "a"}, "image_id 3 is not among the images"),
        ("a caption", "expected an object, found str"),
        (None, "expected an object, found NoneType"),
        ({"image_id": 1, "caption": "half a \ud800 pair"}, "surrogates not allowed"),
        ({"image_id": 4, "caption": "a"}, "surrogates not allowed"),
    ],
)
def test_a_broken_annotation_costs_itself_and_is_named(tmp_path: Path, annotation: object, reason: str) -> None:
    good = {"image_id": 1, "caption": "good"}
    path = tmp_path / "a.json"
    found, rejected = read(path, coco([good, annotation, good]), "coco_captions", pairs=True)
    assert len(found) == 2 and len(rejected) == 1
    assert rejected[0].startswith(f"{path}: annotations[1]: ") and reason in rejected[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (coco([{"image_id": 1, "caption": "a"}])[:-9], r"a\.json:1: is not valid JSON: .*column"),
        (b"{\n\n'x'", r"a\.json:3: is not valid JSON"),
        (b"", r"a\.json:1: is not valid JSON: Expecting value"),
        (b"[]", r"expected an object with the lists images, annotations; images, annotations is missing"),
        (b'{"images": []}', "annotations is missing"),
        (b'{"images": [{"id": 1}], "annotations": []}', "not COCO captions.*file_name"),
        (b'{"images": [], "annotations": 5}', "annotations is missing"),
        (b'{"images": [{"id": [], "file_name": "a"}], "annotations": []}', "not COCO captions"),
        pytest.param(b"[" * 100_000, "is not valid JSON.*recursion", id="deeply nested"),
        pytest.param(b'{"images": ' + b"9" * 5000 + b"}", "is not valid JSON.*Exceeds the limit", id="absurd number"),
        (b'{"images": "caf\xe9"}', r"a\.json: is not UTF-8 \(byte 15: "),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused_as_a_whole(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json", content, "coco_captions", pairs=True)


@pytest.mark.parametrize("file_format", ["json_lines", "plain_text"])
def test_an_empty_file_has_no_records(tmp_path: Path, file_format: str) -> None:
    assert read(tmp_path / "a", b"", file_format) == ([], [])


@pytest.mark.parametrize("file_format", ["json_lines", "plain_text", "coco_captions"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, file_format: str) -> None:
    with pytest.raises(DataError, match=r"nowhere\.x: cannot be read: No such file or directory"):
        list(read_records(tmp_path / "nowhere.x", file_format, True, print))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(read_records(tmp_path, file_format, True, print))


def test_a_coco_file_with_a_byte_order_mark_is_read_like_others(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + coco([{"image_id": 1, "caption": "a cup"}])
    assert read(tmp_path / "a.json", content, "coco_captions", pairs=True) == ([Record("a cup", "1.jpg")], [])
