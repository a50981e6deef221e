r"""Converts published weights to a checkpoint of unimo_ds, without Paddle, and checks a conversion.

    python tools/convert_weights.py unimo unimo_base_en --tokenizer model_files/dict --out data/weights/unimo-base
    python tools/convert_weights.py unimo unimo_mnli_base_en --tokenizer model_files/dict --out data/weights/unimo-mnli \
        --recipe recipes/tasks/mnli.yaml
    python tools/convert_weights.py roberta roberta-base --out data/weights/roberta-base
    python tools/convert_weights.py huggingface exported/base --out data/weights/base         # what `unimo-ds export` wrote
    python tools/convert_weights.py check --unimo unimo_base_en --tokenizer model_files/dict --roberta roberta-base

A recipe starts from the folder with `init`. docs/weights.md says what is mapped to what. `check` ends with 1 where something
differs.
"""

import argparse
import sys
from pathlib import Path

from unimo_ds.config import ModelSection
from unimo_ds.conversion import convert_roberta, convert_unimo, import_huggingface
from unimo_ds.errors import UnimoError
from unimo_ds.weights_check import check_roberta, check_unimo

_TOKENIZER = "folder with RoBERTa's vocab.json and merges.txt, or the original's model_files/dict"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    unimo = commands.add_parser("unimo", help="the original's folder, base or large, pre-trained or fine-tuned")
    unimo.add_argument("folder", type=Path, help="one file a parameter")
    unimo.add_argument("--tokenizer", type=Path, required=True, help=_TOKENIZER)
    unimo.add_argument("--out", type=Path, required=True, help="the new checkpoint")
    unimo.add_argument("--recipe", type=Path, help="of the fine-tuned model's task, to keep its head; or of pre-training")
    roberta = commands.add_parser("roberta", help="a local RoBERTa of Hugging Face: the start of pre-training")
    roberta.add_argument(
        "folder", type=Path, help="config.json, safetensors or bin, vocab.json and merges.txt or tokenizer.json"
    )
    roberta.add_argument("--out", type=Path, required=True, help="the new checkpoint")
    default = ModelSection()
    roberta.add_argument("--feature-width", type=int, default=default.feature_width, help="of regions (default: %(default)s)")
    roberta.add_argument(
        "--region-classes", type=int, default=default.region_classes, help="with background (default: %(default)s)"
    )
    huggingface = commands.add_parser("huggingface", help="what `unimo-ds export` wrote: the way back")
    huggingface.add_argument("folder", type=Path, help="with model.safetensors, config.json and unimo_ds_state.json")
    huggingface.add_argument("--out", type=Path, required=True, help="the new checkpoint")
    check = commands.add_parser("check", help="compare converted weights with where they come from")
    check.add_argument("--unimo", type=Path, help="the original's folder")
    check.add_argument("--tokenizer", type=Path, help=f"of --unimo: {_TOKENIZER}")
    check.add_argument("--roberta", type=Path, help="a local RoBERTa of Hugging Face")
    chosen = parser.parse_args()
    if chosen.command == "check" and (chosen.unimo is None) != (chosen.tokenizer is None):
        parser.error("--unimo and --tokenizer go together")
    if chosen.command == "check" and chosen.unimo is None and chosen.roberta is None:
        parser.error("check wants --unimo with --tokenizer, or --roberta, or all of them")
    return chosen


def check(chosen: argparse.Namespace) -> bool:
    """Prints what was compared; whether all was the same."""
    checks = []
    if chosen.unimo is not None:
        checks.append(check_unimo(chosen.unimo, chosen.tokenizer))
    if chosen.roberta is not None:
        checks.append(check_roberta(chosen.roberta))
    print("\n\n".join(each.text for each in checks))
    return all(each.same for each in checks)


def main() -> None:
    chosen = parse_arguments()
    try:
        if chosen.command == "unimo":
            print(convert_unimo(chosen.folder, chosen.tokenizer, chosen.out, chosen.recipe).text)
        elif chosen.command == "roberta":
            print(convert_roberta(chosen.folder, chosen.out, chosen.feature_width, chosen.region_classes).text)
        elif chosen.command == "huggingface":
            print(import_huggingface(chosen.folder, chosen.out).text)
        elif not check(chosen):
            sys.exit(1)
    except UnimoError as error:
        sys.exit(f"convert_weights: {error}")


if __name__ == "__main__":
    main()
