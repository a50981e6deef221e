"""The demo world is the same on every machine, what is said of it is true, and its files have the published forms."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimo_ds.demo import drawing, entailment, grammar, knowledge, questions
from unimo_ds.demo.grammar import RELATION_WORDS, SIZE_WORDS
from unimo_ds.demo.objects import COLOURS, KINDS
from unimo_ds.demo.scene import Scene, Thing, compose, generator
from unimo_ds.demo.world import WorldConfig, write_world
from unimo_ds.errors import ConfigError
from unimo_ds.rewrites import read_rewrites

PHOTOS = Path(__file__).parents[2] / "photos"
SMALL = WorldConfig(train=40, val=12, alone=8, paragraphs=60)
SCENES = [compose(1, "train", index) for index in range(400)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(SMALL, out)
    return out


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# --- drawing and writing ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_workers_write_the_same_bytes_as_one(world: Path, tmp_path: Path) -> None:
    write_world(SMALL, tmp_path, workers=2)
    assert contents(tmp_path) == contents(world)


def test_another_seed_draws_another_world(world: Path, tmp_path: Path) -> None:
    write_world(WorldConfig(train=2, val=1, alone=1, paragraphs=5, seed=2), tmp_path)
    name = "images/train/train_000000.jpg"
    assert (tmp_path / name).read_bytes() != (world / name).read_bytes()


def test_a_rerun_draws_nothing_and_a_damaged_or_smaller_world_is_drawn_anew(tmp_path: Path) -> None:
    config = WorldConfig(train=4, val=2, alone=2, paragraphs=5)
    manifest = write_world(config, tmp_path)
    whole = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert write_world(config, tmp_path) == manifest
    assert {path: path.stat().st_mtime_ns for path in times} == times

    (tmp_path / "annotations/captions_val.json").write_text("{}")
    (tmp_path / "images/train/train_000001.jpg").unlink()
    write_world(config, tmp_path)
    assert contents(tmp_path) == whole

    write_world(WorldConfig(train=2, val=2, alone=2, paragraphs=5), tmp_path)
    assert len(list((tmp_path / "images/train").iterdir())) == 2


def test_a_negative_count_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="world val is -1"):
        WorldConfig(val=-1)


def test_boxes_are_tight_about_the_pixels_that_a_thing_alone_changes() -> None:
    """Painting the scene without a thing shows which pixels are its own, without trusting the map that `draw` returns."""
    for scene in SCENES[:40]:
        whole, owners = drawing.draw(scene.background, scene.things, generator(1, "train", scene.index, "pixels"))
        for place in range(len(scene.things)):
            others = [thing for other, thing in enumerate(scene.things) if other != place]
            without, _ = drawing.draw(scene.background, others, generator(1, "train", scene.index, "pixels"))
            changed = (np.asarray(whole, np.int16) != np.asarray(without, np.int16)).any(axis=2)
            rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
            x, y, width, height = drawing.visible_box(owners, place)
            seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(np.subtract(seen, (x, y, x + width, y + height))).max() <= 2, (scene.index, place)


def test_scenes_keep_inside_the_picture_and_things_apart() -> None:
    for scene in SCENES:
        assert 2 <= len(scene.things) <= 4
        for place, thing in enumerate(scene.things):
            x, y, width, height = thing.box
            assert x >= 0 and y >= 0 and x + width <= drawing.WIDTH and y + height <= drawing.HEIGHT
            assert max(width, height) >= (28 if thing.size == "small" else 56)
            for other in scene.things[:place]:
                overlap = shared_area(thing, other)
                assert overlap == 0 or thing.host is not None


def shared_area(first: Thing, second: Thing) -> int:
    (ax, ay, aw, ah), (bx, by, bw, bh) = first.box, second.box
    return max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0, min(ay + ah, by + bh) - max(ay, by))


def test_every_kind_colour_background_and_relation_occurs() -> None:
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.kind for thing in things} == {kind.name for kind in KINDS}
    assert {thing.colour for thing in things} == {colour.name for colour in COLOURS}
    assert {scene.background for scene in SCENES} == {background.name for background in drawing.BACKGROUNDS}
    assert {word for scene in SCENES for _, word, _ in grammar.Speaker(scene, np.random.default_rng(0)).edges} == set(
        RELATION_WORDS
    )


# --- what is said is true --------------------------------------------------------------------------------------------
# The sentences are parsed anew here and compared with the geometry; nothing of the grammar's own bookkeeping is used.

SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words}
NOUNS = {kind.plural: kind.name for kind in KINDS} | {kind.name: kind.name for kind in KINDS}
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
RELATIONS = {phrase: word for word, phrases in RELATION_WORDS.items() for phrase in phrases}
BACK_REFERENCES = {
    r"(?:to|on) its left": "left",
    r"(?:to|on) its right": "right",
    r"(?:above|over) it": "above",
    r"(?:below|beneath) it": "below",
    r"on (?:top of )?it": "on",
    r"in(?:side)? it": "inside",
}


def one_of(words: Any) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def phrase(number: str) -> str:
    """A noun phrase: groups determiner, size, colour, noun, each with a name that ends in `number`."""
    return (
        rf"\b(?P<det{number}>the|{one_of(NUMBERS)}) (?:(?P<size{number}>{one_of(SIZES)}) )?"
        rf"(?:(?P<colour{number}>{one_of(colour.name for colour in COLOURS)}) )?(?P<noun{number}>{one_of(NOUNS)})\b"
    )


VERB = "(?: is| can be seen| is shown| is placed)?"
FORWARD = re.compile(rf"{phrase('1')}{VERB} (?P<relation>{one_of(RELATIONS)}) {phrase('2')}", re.IGNORECASE)
PHRASE = re.compile(phrase(""), re.IGNORECASE)


def overlapping(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """All matches, also those that begin inside another."""
    start = 0
    while (match := pattern.search(text, start)) is not None:
        yield match
        start = match.start() + 1


def answering(scene: Scene, match: re.Match[str], number: str) -> list[Thing]:
    """The things of the scene to which a noun phrase applies."""
    size, colour, noun = match[f"size{number}"], match[f"colour{number}"], match[f"noun{number}"]
    return [
        thing
        for thing in scene.things
        if thing.kind == NOUNS[noun.lower()] and colour in (None, thing.colour) and (size is None or SIZES[size] == thing.size)
    ]


def holds(word: str, first: Thing, second: Thing) -> bool:
    """The relation as eyes judge it, from the boxes alone."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = first.box, second.box
    middle, foot = ax + aw / 2, ay + ah
    return {
        "left": ax + aw <= bx,
        "right": ax >= bx + bw,
        "above": foot <= by,
        "below": ay >= by + bh,
        "on": bx <= middle <= bx + bw and by <= foot <= by + 0.6 * bh and ay < by + 0.3 * bh,
        "inside": ax >= bx and ay >= by and ax + aw <= bx + bw and foot <= by + bh,
    }[word]


def check_phrases(scene: Scene, text: str) -> None:
    for match in PHRASE.finditer(text):
        things, determiner = answering(scene, match, ""), match["det"].lower()
        assert things, (text, match[0])
        if determiner == "the":
            assert len(things) == 1, (text, match[0])
        else:
            assert len(things) >= NUMBERS[determiner], (text, match[0])
            plural = NUMBERS[determiner] > 1
            assert match["noun"] in ([kind.plural for kind in KINDS] if plural else [kind.name for kind in KINDS]), text


def check_relations(scene: Scene, text: str) -> int:
    found: list[tuple[re.Match[str], str]] = [
        (match, RELATIONS[match["relation"].lower()]) for match in overlapping(FORWARD, text)
    ]
    for words, word in BACK_REFERENCES.items():
        pattern = re.compile(rf"{phrase('2')} (?:with|that has) {phrase('1')} {words}\b", re.IGNORECASE)
        found += [(match, word) for match in pattern.finditer(text)]
    for match, word in found:
        pairs = [(one, two) for one in answering(scene, match, "1") for two in answering(scene, match, "2") if one is not two]
        assert any(holds(word, one, two) for one, two in pairs), (text, match[0], scene)
    return len(found)


def told(scene: Scene) -> list[str]:
    return grammar.captions(scene, generator(1, "train", scene.index, "captions"))


def test_captions_say_only_what_is_true() -> None:
    relations = 0
    for scene in SCENES:
        for text in told(scene):
            check_phrases(scene, text)
            relations += check_relations(scene, text)
    assert relations > 2 * len(SCENES)


def test_captions_are_good_english() -> None:
    for scene in SCENES:
        captions = told(scene)
        assert len(set(captions)) == 5
        for text in captions:
            assert re.fullmatch(r"[A-Z][a-z]*[a-z ,:-]*\.", text), text
            assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text, re.IGNORECASE), text
            if number := re.match(r"There (is|are) (a|an|two|three|four)\b", text):
                assert (number[1] == "is") == (NUMBERS[number[2]] == 1), text
    lengths = [len(text.split()) for scene in SCENES for text in told(scene)]
    assert 10 <= np.mean(lengths) <= 14.5


def test_most_captions_mention_most_things_and_pick_out_their_picture() -> None:
    mentioned = [len(PHRASE.findall(text)) / len(scene.things) for scene in SCENES for text in told(scene)]
    assert np.mean(mentioned) > 0.75
    counts = Counter(text for scene in SCENES for text in told(scene))
    assert sum(count == 1 for count in counts.values()) > 0.97 * len(counts)


def test_hypotheses_deserve_their_labels() -> None:
    labels = Counter[str]()
    for scene in SCENES:
        for hypothesis in entailment.hypotheses(scene, generator(1, "train", scene.index, "entailment")):
            labels[hypothesis.label] += 1
            assert (
                statement_holds(scene, hypothesis.text)
                == {"entailment": True, "contradiction": False, "neutral": None}[hypothesis.label]
            )
    assert min(labels.values()) > 0.9 * max(labels.values())


def statement_holds(scene: Scene, text: str) -> bool | None:
    """Whether a hypothesis is true of the scene; None where the picture cannot tell."""
    if number := re.fullmatch(rf"There are ({one_of(NUMBERS)}) (\w+)(?: in the picture)?\.", text):
        things = [thing for thing in scene.things if number[2] == "things" or NOUNS[number[2]] == thing.kind]
        return len(things) == NUMBERS[number[1]]
    if colour := re.fullmatch(rf"The (\w+) is ({one_of(colour.name for colour in COLOURS)})\.", text):
        return [thing.colour for thing in scene.things if thing.kind == colour[1]] == [colour[2]]
    if there := re.fullmatch(rf"There is {phrase('')} in the picture\.", text):
        return bool(answering(scene, there, ""))
    if related := FORWARD.fullmatch(text[:-1]):
        [one], [two] = answering(scene, related, "1"), answering(scene, related, "2")
        return holds(RELATIONS[related["relation"].lower()], one, two)
    return None


def test_answers_are_right() -> None:
    kinds = Counter[str]()
    for scene in SCENES:
        asked = questions.questions(scene, generator(1, "train", scene.index, "questions"))
        assert 3 <= len(asked) <= 6 and len({question.text for question in asked}) == len(asked)
        for question in asked:
            kinds[question.kind] += 1
            assert len(question.answers) == 10
            assert Counter(question.answers).most_common(1)[0][0] == question.answer
            assert question.text.lower().startswith(question.kind)
            expected = answer(scene, question.text)
            assert expected in (question.answer, None), (scene, question)
    assert set(kinds) == {"what color is the", "what is", "how many", "is there a", "is the"}


def answer(scene: Scene, text: str) -> str | None:
    """The answer worked out from the scene; None for the kinds of question that other tests cover."""
    if number := re.fullmatch(r"How many (\w+) are there\?", text):
        return str(sum(number[1] == "things" or NOUNS[number[1]] == thing.kind for thing in scene.things))
    if colour := re.fullmatch(r"What color is the (\w+)\?", text):
        [thing] = [thing for thing in scene.things if thing.kind == colour[1]]
        return thing.colour
    if there := re.fullmatch(rf"Is there {phrase('')}\?", text):
        return "yes" if answering(scene, there, "") else "no"
    if size := re.fullmatch(rf"Is {phrase('')} small or large\?", text, re.IGNORECASE):
        [thing] = answering(scene, size, "")
        return thing.size
    if related := re.fullmatch(rf"Is {phrase('1')} (?P<relation>{one_of(RELATIONS)}) {phrase('2')}\?", text):
        [one], [two] = answering(scene, related, "1"), answering(scene, related, "2")
        return "yes" if holds(RELATIONS[related["relation"]], one, two) else "no"
    if what := re.fullmatch(rf"What is (?P<relation>{one_of(RELATIONS)}) {phrase('')}\?", text):
        [target] = answering(scene, what, "")
        [kind] = {
            thing.kind for thing in scene.things if thing is not target and holds(RELATIONS[what["relation"]], thing, target)
        }
        return kind
    return None


# --- what only the texts know ----------------------------------------------------------------------------------------


def test_the_facts_are_never_told_by_captions_questions_or_hypotheses() -> None:
    function_words = set(re.findall(r"\w+", "a an the in on at by of to with for from is it its as up one has over"))
    facts = {word for row in knowledge.fact_table() for word in re.findall(r"\w+", row["value"])}
    said: set[str] = set()
    for scene in SCENES:
        asked = questions.questions(scene, generator(1, "train", scene.index, "questions"))
        guessed = entailment.hypotheses(scene, generator(1, "train", scene.index, "entailment"))
        for text in (*told(scene), *(question.text for question in asked), *(hypothesis.text for hypothesis in guessed)):
            said |= set(re.findall(r"\w+", text.lower()))
    assert said & facts <= function_words | set(NOUNS)


def test_every_kind_has_facts_and_the_corpus_tells_all_of_them() -> None:
    assert set(knowledge.FACTS) == {kind.name for kind in KINDS}
    corpus = knowledge.corpus(1, 1200)
    paragraphs = corpus.strip().split("\n\n")
    sentences = [len(re.findall(r"\.", paragraph)) for paragraph in paragraphs]
    assert len(paragraphs) == 1200 and min(sentences) >= 3 and max(sentences) <= 8
    assert not re.search(r"\b(?:a [aeiou]|an [^aeiou])|[{}]|  ", corpus, re.IGNORECASE)
    lowered = corpus.lower()
    missing = [row for row in knowledge.fact_table() if row["relation"] != "used to" and row["value"] not in lowered]
    assert not missing


# --- the published forms ---------------------------------------------------------------------------------------------


def test_coco_files_have_the_official_keys_and_agree_with_the_pictures(world: Path) -> None:
    for split, count in (("train", 40), ("val", 12), ("alone", 8)):
        data = load(world / f"annotations/instances_{split}.json")
        assert {"info", "licenses", "images", "annotations", "categories", "attributes"} == set(data)
        assert [category["id"] for category in data["categories"]] == list(range(1, 25))
        assert [attribute["id"] for attribute in data["attributes"]] == list(range(1, 9))
        assert len(data["images"]) == count
        for image in data["images"]:
            assert Image.open(world / "images" / image["file_name"]).size == (image["width"], image["height"])
        ids = {image["id"] for image in data["images"]}
        for annotation in data["annotations"]:
            assert {"id", "image_id", "category_id", "attribute_id", "bbox", "area", "segmentation", "iscrowd"} == set(
                annotation
            )
            x, y, width, height = annotation["bbox"]
            assert annotation["image_id"] in ids and 0 < annotation["area"] <= width * height
            assert x >= 0 and y >= 0 and x + width <= drawing.WIDTH and y + height <= drawing.HEIGHT
    captions = load(world / "annotations/captions_train.json")
    assert {"info", "licenses", "images", "annotations"} == set(captions)
    assert Counter(annotation["image_id"] for annotation in captions["annotations"]) == {
        image["id"]: 5 for image in captions["images"]
    }


def test_splits_share_no_picture_name_or_id(world: Path) -> None:
    images = [
        image for split in ("train", "val", "alone") for image in load(world / f"annotations/instances_{split}.json")["images"]
    ]
    assert len({image["id"] for image in images}) == len({image["file_name"] for image in images}) == len(images)
    pictures = [(world / "images" / image["file_name"]).read_bytes() for image in images]
    assert len(set(pictures)) == len(images)
    assert not (world / "annotations/captions_alone.json").exists()


@pytest.mark.parametrize("split", ["train", "val", "val_knowledge"])
def test_vqa_files_have_the_official_keys(world: Path, split: str) -> None:
    asked = load(world / f"vqa/v2_OpenEnded_world_{split}_questions.json")
    answered = load(world / f"vqa/v2_world_{split}_annotations.json")
    assert {"info", "task_type", "data_type", "license", "data_subtype", "questions"} == set(asked)
    assert {"info", "license", "data_subtype", "annotations", "data_type"} == set(answered)
    assert asked["task_type"] == "Open-Ended"
    assert {"image_id", "question", "question_id"} == set(asked["questions"][0])
    keys = {"question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id"}
    for annotation in answered["annotations"]:
        assert set(annotation) == keys and annotation["answer_type"] in ("yes/no", "number", "other")
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
    identities = [[entry["question_id"] for entry in entries] for entries in (asked["questions"], answered["annotations"])]
    assert identities[0] == identities[1] and len(set(identities[0])) == len(identities[0])


def test_snli_ve_lines_have_the_official_keys(world: Path) -> None:
    lines = [json.loads(line) for line in (world / "snli_ve/snli_ve_dev.jsonl").read_text().splitlines()]
    keys = {"annotator_labels", "captionID", "gold_label", "pairID", "sentence1", "sentence2", "Flickr30K_ID"}
    assert all(keys == set(line) for line in lines)
    assert len({line["pairID"] for line in lines}) == len(lines)
    assert all((world / "images/val" / f"{line['Flickr30K_ID']}.jpg").is_file() for line in lines)
    assert {line["gold_label"] for line in lines} == set(entailment.LABELS)


def test_statements_are_of_held_out_pictures(world: Path) -> None:
    for name in ("held_out", "knowledge"):
        rejected: list[str] = []
        statements = list(read_rewrites(world / f"statements/{name}_val.jsonl", rejected.append))
        assert not rejected and len(statements) >= SMALL.val
        assert {statement.image for statement in statements} == {f"val/val_{index:06}.jpg" for index in range(SMALL.val)}


# --- photographs -----------------------------------------------------------------------------------------------------


def test_photographs_are_small_credited_and_captioned() -> None:
    data = load(PHOTOS / "captions.json")
    credits = (PHOTOS / "README.md").read_text(encoding="utf-8")
    names = {image["file_name"] for image in data["images"]}
    assert names == {path.name for path in PHOTOS.glob("*.jpg")} and len(names) >= 8
    counts = Counter(annotation["image_id"] for annotation in data["annotations"])
    licences = {licence["id"] for licence in data["licenses"]}
    for image in data["images"]:
        path = PHOTOS / image["file_name"]
        size = Image.open(path).size
        assert size == (image["width"], image["height"]) and max(size) <= 384
        assert path.stat().st_size < 60 * 1024
        assert counts[image["id"]] >= 3 and image["license"] in licences and f"`{path.name}`" in credits


def test_the_english_excerpt_is_paragraphs() -> None:
    text = (PHOTOS / "english.txt").read_text(encoding="utf-8")
    assert 60_000 <= len(text.encode()) <= 100_000
    paragraphs = text.strip().split("\n\n")
    assert len(paragraphs) > 50 and all("\n" not in paragraph and paragraph.strip() for paragraph in paragraphs)
