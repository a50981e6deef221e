"""Captions to their rewrites, by any number of processes that need not know each other.

First all captions are parsed into scene graphs, chunk by chunk: a process takes what no other has taken. Then each process
rewrites every n-th chunk into a shard of its own. A chunk is worked on alike whoever does it, so the number of processes
changes in which file a caption is, never its rewrites. A process that died is simply started again and goes on with the
chunk it was at. As with `unimo_ds.extraction`, a Slurm array, `srun` and local processes do equally well.

    rewriting.json                      the settings; another run of the folder must have the same
    parsed/                             the scene graphs (`augment.parsed_captions`), until all shards are done
    rewrites-00002-of-00008.jsonl       a finished shard (`unimo_ds.rewrites`); with `.partial` behind it an unfinished one
    report-00002-of-00008.json          what was done and left out in it, so far
    vocabulary.json                     objects, attributes and relations of the corpus with their counts

Memory of a process: the libraries (630 MB), some 220 bytes a caption for the texts, the TF-IDF vectors of all captions
(`augment.lexical`), and what one chunk needs: 1.0 GB for a million captions of eleven words, and the sentence model.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from unimo_ds import distributed
from unimo_ds.augment import parsed_captions
from unimo_ds.augment.caption_rewriter import CaptionRewriter, Captions, Tally
from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.parsed_captions import ParsedCaptions
from unimo_ds.augment.rewrite import NegativeRewriter
from unimo_ds.augment.scene_graph import CaptionParser
from unimo_ds.augment.sentence import Paraphraser
from unimo_ds.augment.similarity import SentenceSimilarity, packaged_model
from unimo_ds.augment.translation import ApertiumTranslator, MarianTranslator, Translator
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.records import read_records
from unimo_ds.errors import ConfigError, DataError, UnimoError
from unimo_ds.files import replace_text
from unimo_ds.progress import Progress
from unimo_ds.rewrites import LEVELS, RewrittenCaption, dump_caption

_VERSION = 1  # of the rules: other rules, other rewrites
_FORMATS = {".json": "coco_captions", ".jsonl": "json_lines"}
_LONGEST = 2000  # characters of a caption; a longer one is a page that was taken for a caption

_OURS = (".rewriting", "parsed", "rewrites-", "report-", "shard-", "finish.lock", "vocabulary.json")  # what a run writes

TranslatorName = Literal["apertium", "marian", "none"]


@dataclass(frozen=True)
class RewritePlan:
    """Which captions to rewrite, how, to where.

    Attributes:
        captions: COCO captions (`.json`) or JSON Lines with `text` and `image` (`.jsonl`).
        out: folder of the shards; unfinished ones are continued.
        translator: who makes the positives; `none`: there are no positives.
        marian: with `marian`, the folders of the models there and back.
        sentence_model: folder of the sentence-transformers model that filters positives; None: the packaged one.
        positives, negatives: most of them a caption; `augment.caption_rewriter` says how the levels share the negatives.
        minimum_similarity: least cosine of the sentence vectors of a caption and its positive.
        seed: of the choice of negatives, together with the pair's digest.
        chunk: captions that are worked on together (and a few more, because an image's captions stay together).
        shards, shard: number of processes in all and the number of this one; None: from the launcher's environment.
        processes: local processes to start, each with one thread and a shard of its own.
    """

    captions: Path
    out: Path
    translator: TranslatorName = "apertium"
    marian: tuple[Path, Path] | None = None
    sentence_model: Path | None = None
    positives: int = 3
    negatives: int = 100
    minimum_similarity: float = 0.8
    seed: int = 1
    chunk: int = 1000
    shards: int | None = None
    shard: int | None = None
    processes: int = 1


@dataclass(frozen=True)
class RewriteResult:
    """What this call did.

    Attributes:
        captions: usable captions of the file.
        rejected: records of the file that can not be used; they were reported.
        written: captions that this call rewrote; 0: there was nothing left to do.
        tally: of the shards of this call, with what earlier calls wrote of them.
        finished: whether all shards are whole, not only this call's.
    """

    captions: int
    rejected: int
    written: int
    tally: Tally
    finished: bool

    def table(self) -> str:
        """The counts, for people."""
        tally, captions = self.tally, max(self.tally.captions, 1)
        lines = [f"{'captions':<50} {tally.captions:>10,}"]
        lines += [f"  {name:<48} {count:>10,}" for name, count in sorted(tally.without.items())]
        for name in ("positives", *LEVELS):
            label = name if name == "positives" else f"negatives, {name}"
            lines.append(f"{label:<50} {tally.rewrites[name]:>10,} {tally.rewrites[name] / captions:>8.2f} a caption")
        lines += ["left out:"] * bool(tally.rejects)
        lines += [f"  {name:<48} {count:>10,}" for name, count in tally.rejects.most_common()]
        lines += [
            f"{f'rate, {stage}':<50} {tally.captions / seconds:>10,.0f} captions/s a process"
            for stage, seconds in tally.seconds.items()
            if seconds
        ]
        return "\n".join(lines)


def rewrite_captions(plan: RewritePlan) -> RewriteResult:
    """Rewrites this process's share of the captions, on `plan.processes` local processes.

    Raises:
        DataError: the captions can not be read, or not one can be used.
        ConfigError: a wrong setting; a program, package or model that is missing; the folder holds a run of other captions
            or settings.
    """
    shards, own = distributed.own_shards(plan.shards, plan.shard, plan.processes)
    settings = _settings(plan, shards)
    captions, rejected = _read(plan.captions)
    _expect_settings(plan.out, settings | {"captions": len(captions.texts)})
    if len(own) == 1:
        written = [_run(plan, captions, own[0], shards, True)]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(own), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(_run, plan, captions, shard, shards, shard == own[0]) for shard in own]
            written = [future.result() for future in futures]
    finished = _finish(plan.out, shards)
    tally = Tally()
    for shard in own:
        tally += _Shard(plan.out, shard, shards).tally
    return RewriteResult(len(captions.texts), rejected, sum(written), tally, finished)


def _settings(plan: RewritePlan, shards: int) -> dict[str, Any]:
    """All that rewrites depend on. Looks for what the run needs, so that it fails now if it must."""
    for name, least in (("positives", 0), ("negatives", 0), ("seed", 0), ("chunk", 1)):
        if getattr(plan, name) < least:
            raise ConfigError(f"--{name} {getattr(plan, name)}: must be {least} or more")
    if not -1 <= plan.minimum_similarity <= 1:
        raise ConfigError(f"--minimum-similarity {plan.minimum_similarity}: a cosine is between -1 and 1")
    try:
        with plan.captions.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{plan.captions}: cannot be read: {error.strerror}") from error
    translator = _translator(plan)
    if translator is not None:
        SentenceSimilarity(plan.sentence_model)
    return {
        "version": _VERSION,
        "captions_sha256": digest.hexdigest(),
        "translator": translator.name if translator else "none",
        "sentence_model": str(plan.sentence_model or packaged_model().parent.name) if translator else "none",
        "wordnet": Lexicon.find().has_wordnet,
        **{name: getattr(plan, name) for name in ("positives", "negatives", "minimum_similarity", "seed", "chunk")},
        "shards": shards,
    }


def _translator(plan: RewritePlan) -> Translator | None:
    if plan.translator == "none" or not plan.positives:
        return None
    try:
        if plan.translator == "apertium":
            return ApertiumTranslator()
        if plan.marian is None:
            raise ConfigError("--translator marian wants --marian THERE BACK, the folders of two MarianMT models")
        return MarianTranslator(*plan.marian)
    except ConfigError as error:
        raise ConfigError(f"{error}\nOr go on without positives: --translator none") from error


def _read(path: Path) -> tuple[Captions, int]:
    """The captions of the file, each pair once, and the number of records that can not be used, which are reported."""
    file_format = _FORMATS.get(path.suffix)
    if file_format is None:
        raise ConfigError(f"{path}: expected COCO captions (.json) or JSON Lines (.jsonl) by the name's ending")
    rejects, by_image = Rejects(), defaultdict[str, dict[str, None]](dict)
    for record in read_records(path, file_format, True, rejects):
        image = str(record.image)
        if len(record.text) > _LONGEST:
            rejects(f"{path}: a caption of {image} has {len(record.text):,} characters, {_LONGEST:,} at most")
        elif record.text in by_image[image]:
            rejects(f"{path}: {record.text!r} is there twice for {image}")
        else:
            by_image[image][record.text] = None
    captions = Captions.of({image: list(texts) for image, texts in by_image.items() if texts})
    rejects.report(str(path), len(captions.texts))
    if not captions.texts:
        raise DataError(f"{path}: holds no caption that can be used")
    return captions, rejects.count


def _expect_settings(out: Path, settings: dict[str, Any]) -> None:
    """Notes the settings in a new folder; in an old one, they must be the same.

    Raises:
        ConfigError: names what differs.
    """
    record = out / "rewriting.json"
    try:
        if not record.exists():
            if out.is_dir() and any(not path.name.startswith(_OURS) for path in out.iterdir()):
                raise ConfigError(f"--out {out}: is there already and holds no rewrites; choose a new folder")
            out.mkdir(parents=True, exist_ok=True)
            replace_text(record, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}. Choose another folder.") from error
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = [
            f"{key} was {before.get(key)!r}, is now {value!r}" for key, value in settings.items() if before.get(key) != value
        ]
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{record}: is damaged ({error}). Choose another --out, or remove this folder.") from error
    if changed:
        raise ConfigError(
            f"{record}: this folder was begun with other settings or captions: {'; '.join(changed)}. "
            "Go on with the same ones, choose another --out, or remove this folder."
        )


def _run(plan: RewritePlan, captions: Captions, number: int, shards: int, show: bool) -> int:
    """Writes one shard; returns how many captions this call wrote."""
    lock = plan.out / f"shard-{number:05}.lock"
    with _lock(lock, wait=False) as mine:
        if mine:
            return _write_shard(plan, captions, number, shards, show)
    # Local processes outlive a call that is killed, until their shards are done.
    print(f"{plan.out}: another process is at shard {number} of {shards}; waiting for it", file=sys.stderr)
    with _lock(lock, wait=True):
        return _write_shard(plan, captions, number, shards, show)


def _write_shard(plan: RewritePlan, captions: Captions, number: int, shards: int, show: bool) -> int:
    shard = _Shard(plan.out, number, shards)
    if shard.finished:
        return 0
    chunks = captions.chunks(plan.chunk)
    parsed = _parse_all(plan.out / "parsed", captions, chunks, number * len(chunks) // shards, show)
    rewriter = _rewriter(plan, captions, parsed)
    left = chunks[number::shards][shard.chunks :]
    with Progress("rewriting", sum(len(captions.of_images(chunk)) for chunk in left), "captions", show) as progress:
        for chunk in left:
            rewritten, tally = rewriter.rewrite(chunk)
            shard.append(rewritten, tally)
            progress.advance(tally.captions)
    shard.finish()
    return progress.done


def _parse_all(folder: Path, captions: Captions, chunks: Sequence[range], first: int, show: bool) -> ParsedCaptions:
    """Parses what is not parsed yet, chunk `first` first, together with whoever else is at it; returns when all is."""
    folder.mkdir(exist_ok=True)
    parser = cache(CaptionParser.load)  # loaded when there is something to parse

    def parse(number: int, wait: bool) -> bool:
        """Sees that a chunk is parsed; False where another process is at it and we do not wait."""
        with _lock(folder / f"chunk-{number:06}.lock", wait) as locked:
            if not locked:
                return False
            if not parsed_captions.has_chunk(folder, number) and not parsed_captions.is_whole(folder):
                images = chunks[number]
                graphs = parser().parse([captions.texts[caption] for caption in captions.of_images(images)])
                of_images = [[next(graphs) for _ in captions.of_image(image)] for image in images]
                parsed_captions.write_chunk(folder, number, of_images)
            progress.advance(len(captions.of_images(chunks[number])))
            return True

    if not parsed_captions.is_whole(folder):
        with Progress("parsing", len(captions.texts), "captions", show) as progress:
            # Each process begins elsewhere, and comes back to what another was at: if that one died, its lock is free.
            order = [*range(first, len(chunks)), *range(first)]
            for number in [number for number in order if not parse(number, wait=False)]:
                parse(number, wait=True)
        with _lock(folder / "join.lock", wait=True):
            if not parsed_captions.is_whole(folder):
                parsed_captions.join(folder, len(chunks))
    return ParsedCaptions(folder)


@contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Holds a lock between processes, which ends with its process; False: another has it and we do not wait."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _rewriter(plan: RewritePlan, captions: Captions, parsed: ParsedCaptions) -> CaptionRewriter:
    lexicon, translator = Lexicon.find(), _translator(plan)
    paraphraser = negatives = None
    if translator is not None:
        similarity = SentenceSimilarity(plan.sentence_model)
        paraphraser = Paraphraser(
            translator, CaptionParser.load(), similarity, lexicon, plan.minimum_similarity, plan.positives
        )
    try:
        negatives = NegativeRewriter(parsed.vocabulary.freeze(), lexicon)
    except UnimoError as error:  # the captions' records are kept, and get negatives of sentence level
        print(f"no negatives of phrase and word level: {error}", file=sys.stderr)
    return CaptionRewriter(captions, parsed, paraphraser, negatives, lexicon, plan.negatives, plan.seed)


class _Shard:
    """One file of the result. Whole chunks are added to it; what a kill leaves behind them is cut off by the next start."""

    def __init__(self, out: Path, number: int, shards: int) -> None:
        name = f"{number:05}-of-{shards:05}"
        self._whole, self._report = out / f"rewrites-{name}.jsonl", out / f"report-{name}.json"
        self._partial = out / f"rewrites-{name}.jsonl.partial"
        self.chunks, self._bytes, self.tally = 0, 0, Tally()
        if self._report.exists():
            try:
                content = json.loads(self._report.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{self._report}: is damaged ({error}). Remove it: its shard is then written anew.") from error
            if self.finished or (self._partial.exists() and self._partial.stat().st_size >= content["bytes"]):
                self.chunks, self._bytes, self.tally = content["chunks"], content["bytes"], Tally.from_json(content["tally"])

    @property
    def finished(self) -> bool:
        """Whether the shard is whole."""
        return self._whole.exists()

    def append(self, captions: Sequence[RewrittenCaption], tally: Tally) -> None:
        """Adds a chunk; when this returns it is on the disk."""
        with self._partial.open("r+b" if self.chunks else "wb") as file:
            file.truncate(self._bytes)
            file.seek(self._bytes)
            file.writelines(dump_caption(caption).encode() for caption in captions)
            self._bytes = file.tell()
            file.flush()
            os.fsync(file.fileno())
        self.chunks += 1
        self.tally += tally
        self._write_report()

    def finish(self) -> None:
        """Gives the file its name; a shard without a chunk is an empty file."""
        if not self.chunks:
            self._partial.touch()
            self._write_report()
        self._partial.replace(self._whole)

    def _write_report(self) -> None:
        content = {"chunks": self.chunks, "bytes": self._bytes, "tally": vars(self.tally)}
        replace_text(self._report, json.dumps(content, indent=1) + "\n")


def _finish(out: Path, shards: int) -> bool:
    """If all shards are whole, removes what only their making needed."""
    with _lock(out / "finish.lock", wait=True):
        if not all(_Shard(out, shard, shards).finished for shard in range(shards)):
            return False
        if (out / "parsed").exists():
            if (out / "parsed" / "vocabulary.json").exists():  # else a kill came between this line and the next
                (out / "parsed" / "vocabulary.json").replace(out / "vocabulary.json")
            shutil.rmtree(out / "parsed")
    return True
