"""The command line: `unimo-ds COMMAND`. Each command parses its words and makes one call."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from unimo_ds.errors import ConfigError, UnimoError
from unimo_ds.processes import without_local_rank

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Overrides = Annotated[list[str] | None, typer.Argument(help="key.path=value, as many as you like")]


@app.command()
def pretrain(config: Annotated[Path, typer.Argument(help="the run, as YAML")], overrides: Overrides = None) -> None:
    """Pre-train in this process; for several ranks start `deepspeed --module unimo_ds.pretrain` or srun with the same words."""
    from unimo_ds import distributed
    from unimo_ds.pretrain import main as run

    distributed.leave(run([str(config), *(overrides or [])]))


@app.command()
def finetune(config: Annotated[Path, typer.Argument(help="the run, as YAML")], overrides: Overrides = None) -> None:
    """Fine-tune in this process; for several ranks start `deepspeed --module unimo_ds.finetune` or srun with the same words."""
    from unimo_ds import distributed
    from unimo_ds.finetune import main as run

    distributed.leave(run([str(config), *(overrides or [])]))


predict_app = typer.Typer(no_args_is_help=True, help="What a trained model says of its run's sets, or of photographs.")
app.add_typer(predict_app, name="predict")
Photographs = Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="files of pictures")]
Photograph = Annotated[Path, typer.Argument(metavar="PHOTO", help="file of a picture")]
Model = Annotated[Path, typer.Option("--model", help="a run folder, whose best checkpoint is taken, or a checkpoint")]
Detector = Annotated[
    str | None, typer.Option("--detector", help="file of the detector that the model was trained with, if it is not packaged")
]
Drawings = Annotated[Path, typer.Option("--out", help="folder for the photographs with boxes and answers")]


@predict_app.command("caption")
def predict_caption(
    photographs: Photographs, model: Model, detector: Detector = None, out: Drawings = Path("predictions")
) -> None:
    """Captions of photographs, by a model of captioning or of pre-training."""
    from unimo_ds.prediction import caption_photographs

    typer.echo(caption_photographs(photographs, model, out, detector).text)


@predict_app.command("vqa")
def predict_vqa(
    photograph: Photograph,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...")],
    model: Model,
    detector: Detector = None,
    out: Drawings = Path("predictions"),
) -> None:
    """The likeliest answers to questions about a photograph, by a model of VQA."""
    from unimo_ds.prediction import answer_questions

    typer.echo(answer_questions(photograph, questions, model, out, detector).text)


@predict_app.command("entail")
def predict_entail(
    photograph: Photograph,
    sentences: Annotated[list[str], typer.Argument(metavar="SENTENCE...")],
    model: Model,
    detector: Detector = None,
    out: Drawings = Path("predictions"),
) -> None:
    """Whether a photograph entails sentences, contradicts them, or neither, by a model of SNLI-VE."""
    from unimo_ds.prediction import judge_sentences

    typer.echo(judge_sentences(photograph, sentences, model, out, detector).text)


@predict_app.command("retrieve")
def predict_retrieve(
    photographs: Photographs,
    model: Model,
    text: Annotated[list[str], typer.Option(help="what is looked for; may be repeated")],
    detector: Detector = None,
    out: Drawings = Path("predictions"),
) -> None:
    """Which photographs fit a text best, and which texts a photograph, by a model of retrieval or of pre-training."""
    from unimo_ds.prediction import match_photographs

    typer.echo(match_photographs(photographs, text, model, out, detector).text)


@predict_app.command("sets")
def predict_sets(
    run: Annotated[Path, typer.Argument(help="a fine-tuning run, whose best checkpoint is taken, or a checkpoint")],
    out: Annotated[Path, typer.Option(help="folder for one file a set")],
    overrides: Overrides = None,
) -> None:
    """Predictions for the dev and test sets of a fine-tuning run, in the form of the task's public evaluation."""
    from unimo_ds import distributed
    from unimo_ds.finetune import predict_sets as predict

    for file in predict(run, out, overrides or []):
        if distributed.rank() == 0:
            typer.echo(file)


@app.command()
def supervise(
    run: Annotated[Path, typer.Argument(help="the run's folder")],
    command: Annotated[list[str], typer.Argument(help="after --: the launcher with its words")],
    max_restarts: Annotated[int, typer.Option(help="how often it is started again, at most", min=0)] = 3,
) -> None:
    """Start a launcher, and start it again when it has failed: unimo-ds supervise runs/base -- deepspeed --module ..."""
    from unimo_ds.supervision import supervise as run_supervised

    sys.exit(run_supervised(run, command, max_restarts))


@app.command()
def prepare(config: Annotated[Path, typer.Argument(help="the run, as YAML")], overrides: Overrides = None) -> None:
    """Tokenise a run's corpora ahead of the run; done before, it is reused."""
    from unimo_ds.config import load_config
    from unimo_ds.data.corpus import prepare_corpora

    run = load_config(config, overrides or [])
    held_out = [section for section in (run.evaluation.pairs, run.evaluation.texts) if section] if run.evaluation else []
    for corpus in prepare_corpora(run.data, [*run.data.corpora, *held_out]):
        manifest = corpus.manifest
        typer.echo(
            f"{corpus.name}: {manifest['samples']:,} samples, {manifest['tokens']:,} tokens, {manifest['images']:,} images"
        )
        if corpus.rewrites is not None:
            counts = ", ".join(f"{count:,} {name}" for name, count in corpus.rewrites.manifest["rewrites"].items())
            typer.echo(f"  rewrites: {counts}; {corpus.rewrites.manifest['samples_without']:,} samples without any")
        if corpus.neighbours is not None:
            found = corpus.neighbours.manifest
            typer.echo(f"  neighbours: {found['images']:,} images and {found['texts']:,} sentences to draw from")


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="a pre-training run, as YAML")],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="nodes")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a node")] = 8,
    gpu: Annotated[str, typer.Option(help="v100-32, a100-40, a100-80, h100, h200 or b200")] = "h100",
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """What a run will need: memory of a GPU by part, messages, time, disk; other ZeRO stages; up to 4,096 GPUs on paper."""
    import json

    from unimo_ds.config import load_config
    from unimo_ds.planning.gpus import find_gpu
    from unimo_ds.planning.plan import Cluster, make_plan
    from unimo_ds.planning.report import as_text, as_values

    made = make_plan(load_config(config, overrides or []), Cluster(find_gpu(gpu), nodes, gpus))
    typer.echo(json.dumps(as_values(made), indent=1) if as_json else as_text(made))


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="the run, as YAML; without: the installation alone")] = None,
    overrides: Overrides = None,
) -> None:
    """Look, before a run starts, at what would stop it, on every rank. Ends with 1 if something must be mended."""
    from unimo_ds import distributed
    from unimo_ds.doctor import main as run

    distributed.leave(run([str(config), *(overrides or [])] if config else []))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder or a checkpoint")],
    overrides: Overrides = None,
    images: Annotated[Path | None, typer.Option(help="folder below which the picture files are; keys are their paths")] = None,
) -> None:
    """What a checkpoint is worth on its held-out pairs; or a fine-tuned one on its dev sets, with a page of its answers."""
    from unimo_ds.evaluate import evaluate_checkpoint
    from unimo_ds.finetune import evaluate_finetuned
    from unimo_ds.opening import is_finetuned

    if is_finetuned(run):
        evaluate_finetuned(run, overrides or [], images)
    elif images is not None:
        raise ConfigError(
            f"--images {images}: is for the report of a fine-tuned run, and {run} is of pre-training; leave it out"
        )
    else:
        evaluate_checkpoint(run, overrides or [])


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a checkpoint, or a run folder: its best one, or the newest")],
    out: Annotated[Path, typer.Option(help="the new folder")],
    form: Annotated[str, typer.Option("--format", help="huggingface: what AutoModel opens with trust_remote_code=True")],
) -> None:
    """Write a checkpoint in the form of another library, with code, tokenizer, processor and a model card."""
    from unimo_ds.export import export_huggingface

    if form != "huggingface":
        raise ConfigError(f"--format {form}: only `huggingface` is allowed")
    typer.echo(f"{out}: written, from {export_huggingface(run, out)}")


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    step: Annotated[int, typer.Option(help="which step, counted from 1 as in the log")],
    samples: Annotated[int, typer.Option(help="samples shown at most, pairs first", min=1)] = 24,
    images: Annotated[Path | None, typer.Option(help="folder below which the picture files are; keys are their paths")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="scores the candidates; else the newest up to the step")] = None,
    ranks: Annotated[int | None, typer.Option(help="share the step over so many ranks; else as in training", min=1)] = None,
) -> None:
    """What was in a step of a run: samples, masked words and regions, candidates and their similarities; with a page."""
    import shutil

    from unimo_ds.explain.command import explain_step

    width = shutil.get_terminal_size((100, 24)).columns
    typer.echo(explain_step(run, step, samples, images, checkpoint, ranks, width).text)


@app.command()
def train_tokenizer(
    texts: Annotated[list[Path], typer.Argument(help="plain-text or COCO captions files")],
    out: Annotated[Path, typer.Option(help="folder for vocab.json and merges.txt")],
    size: Annotated[int, typer.Option(help="vocabulary size at most")] = 8000,
) -> None:
    """Train a small byte-level BPE of RoBERTa's form on your own text."""
    from unimo_ds.data.records import read_records
    from unimo_ds.tokenizer import train_tokenizer as train

    def lines() -> Iterator[str]:
        for path in texts:
            file_format = {".json": "coco_captions", ".jsonl": "json_lines"}.get(path.suffix, "plain_text")
            yield from (record.text for record in read_records(path, file_format, False, typer.echo))

    train(lines(), size, out)
    typer.echo(f"{out}: written")


@app.command()
def ablate(
    plan: Annotated[Path, typer.Argument(help="the table of runs, as YAML (recipes/ablations.yaml)")],
    parallel: Annotated[
        int | None, typer.Option(min=1, help="runs at the same time, one thread each (default: one a core)")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="a variant by name; may be repeated (default: all)")] = None,
) -> None:
    """Run a table of ablations, each row one change over several seeds; what is finished is reused."""
    from unimo_ds.ablation import run_ablations

    run_ablations(plan, parallel, only)


regions_app = typer.Typer(no_args_is_help=True, help="Look at, check and merge stores of regions.")
app.add_typer(regions_app, name="regions")
Store = Annotated[Path, typer.Argument(help="a regions store, as tools/extract_features.py writes it")]
Processes = Annotated[int, typer.Option(min=1, help="shards that are read at the same time")]


@regions_app.command("info")
def regions_info(
    store: Store,
    sample: Annotated[int, typer.Option(min=0, help="records looked into at most; 0: all")] = 20_000,
    processes: Processes = 1,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """What is in a store, finished or not: detector, records, bytes, regions an image, sizes, classes, failures."""
    import json

    from unimo_ds.region_tools.info import describe_store

    info = describe_store(store, sample, processes)
    typer.echo(json.dumps(info.content, ensure_ascii=False, indent=1) if as_json else info.text)


@regions_app.command("verify")
def regions_verify(
    store: Store,
    processes: Processes = 1,
    most: Annotated[int, typer.Option(min=1, help="faults named one by one")] = 50,
) -> None:
    """Read every record: checksums, keys, geometry, probabilities, counts. Ends with 1 where anything is damaged."""
    from unimo_ds.region_tools.verify import verify_store

    found = verify_store(store, processes)
    typer.echo(found.text(most))
    if not found.sound:
        raise typer.Exit(1)


@regions_app.command("show")
def regions_show(
    store: Store,
    key: Annotated[str | None, typer.Argument(help="the image; without: a gallery of random ones")] = None,
    images: Annotated[Path | None, typer.Option(help="folder below which the picture files are; keys are their paths")] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.png or FILE.html")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="regions an image (default: 12 in a picture, else all)")] = None,
    count: Annotated[int, typer.Option(min=1, help="images of a gallery")] = 9,
    seed: Annotated[int, typer.Option(help="which random images")] = 0,
) -> None:
    """Draw an image's regions with classes and attributes, as a picture or as a page to look around in."""
    from unimo_ds.region_tools.show import show_regions

    typer.echo(show_regions(store, key, images, out, most, count, seed).text)


@regions_app.command("merge")
def regions_merge(
    out: Annotated[Path, typer.Argument(help="the store to write: a new folder, or one that this command began")],
    stores: Annotated[list[Path], typer.Argument(help="stores of one detector")],
    shards: Annotated[int, typer.Option(min=1, help="shards of the new store")] = 1,
    prefer: Annotated[str | None, typer.Option(help="first: of different regions of one key, take the first")] = None,
) -> None:
    """Join shards, and stores of one detector, into one store; start the same command again after a kill."""
    from unimo_ds.errors import ConfigError
    from unimo_ds.region_tools.merge import merge_stores

    if prefer not in (None, "first"):
        raise ConfigError(f"--prefer {prefer}: only `first` is allowed")
    typer.echo(merge_stores(out, stores, shards, prefer == "first").text(out))


@regions_app.command("compare")
def regions_compare(
    store: Store,
    golden: Annotated[Path, typer.Argument(help="the reference: a store, or published features in any layout")],
    layout: Annotated[str | None, typer.Option(help="of the reference; else told from its content")] = None,
    wanted: Annotated[
        Path | None, typer.Option(help="file of the reference's keys to compare, one a line (default: all)")
    ] = None,
) -> None:
    """Compare a store with reference features and say what differs. Ends with 1 where they are not the same."""
    from unimo_ds.golden import verify

    keys = wanted.read_text(encoding="utf-8").split("\n") if wanted else None
    report = verify(store, golden, layout, {key for key in keys if key} if keys is not None else None)
    typer.echo(report.text)
    if not report.same:
        raise typer.Exit(1)


@app.command()
def kernels(
    compile_: Annotated[
        bool, typer.Option("--compile", help="compile every shipped kernel anew, with no GPU, and compare with the golden file")
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="as --compile, and keep the numbers as the golden file")] = False,
    architecture: Annotated[list[int] | None, typer.Option(help="80, 90 or 100; may be repeated (default: all)")] = None,
    processes: Annotated[int, typer.Option(min=1, help="kernels compiled at the same time")] = 2,
    counts: Annotated[
        bool, typer.Option("--counts", help="bytes and operations of each kernel beside the floor of two GPUs")
    ] = False,
) -> None:
    """Which kernels run on this machine, and why; what they compile to. --compile ends with 1 where a kernel got worse."""
    from unimo_ds.kernels.overview import check_compiled, overview

    if counts and (compile_ or update or architecture):
        raise ConfigError("--counts is of no architecture and compiles nothing: give it alone")
    if counts:
        from unimo_ds.kernels.counts import table

        typer.echo(table())
    elif compile_ or update:
        report = check_compiled(architecture, processes, update)
        typer.echo(report.text)
        if report.problems:
            raise typer.Exit(1)
    else:
        typer.echo(overview(architecture))


@app.command()
def demo() -> None:
    """The whole life on a laptop: world, regions, two ZeRO-3 ranks, evaluation, photographs, report."""
    from unimo_ds.demo.life import run_demo

    run_demo()


@app.command()
def demo_tasks() -> None:
    """After `demo`: its model fine-tuned on the world's tasks, beside a model of random weights."""
    from unimo_ds.demo.tasks import run_task_demo

    run_task_demo()


def main() -> None:
    """Entry point; an error that is the user's to mend is one line, not a traceback, on the first of several ranks."""
    sys.argv[1:] = without_local_rank(sys.argv[1:])
    try:
        app()
    except UnimoError as error:
        from unimo_ds import distributed

        if distributed.environment().rank == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
