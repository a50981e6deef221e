"""A whole pre-training run as typed, validated data.

Every default that the paper or the original release states is marked with its place in the specification; every default
that is our choice says so. `load_config` is the only way in; `dump_config` writes a file that it reads back.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unimo_ds.config.reading import (
    Beta,
    Count,
    DropRate,
    PositiveInt,
    Rate,
    Section,
    Weight,
    read_config,
    validate_config,
)

# base and large: spec 2.2. The small sizes start near one over the root of their width: with 0.02 the attention of a narrow
# model is so weak at first that [CLS] and [IMG] are alike for all inputs, and CMCL needs hundreds of steps to start.
SIZES: dict[str, dict[str, float]] = {
    "tiny": {"hidden_size": 128, "layers": 3, "heads": 4, "initializer_range": 0.08},
    "small": {"hidden_size": 256, "layers": 4, "heads": 4, "initializer_range": 0.06},
    "base": {"hidden_size": 768, "layers": 12, "heads": 12, "initializer_range": 0.02},
    "large": {"hidden_size": 1024, "layers": 24, "heads": 16, "initializer_range": 0.02},
}


class ModelSection(Section):
    """Shape of the Transformer. `size` fills whatever of its numbers is not given."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    hidden_size: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    dropout: DropRate = 0.1
    attention_dropout: DropRate = 0.1
    layer_norm: Literal["torch", "apex"] = "torch"  # apex: NVIDIA's fused one, where it is installed (docs/kernels.md)
    max_positions: PositiveInt = 514
    # The three below are taken from the tokenizer and the regions store; given here, they are checked against them.
    vocabulary_size: PositiveInt = 50265
    feature_width: PositiveInt = 2048
    region_classes: PositiveInt = 1601

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {**SIZES.get(str(given.get("size", "base")), {}), **given}
        return given

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelSection":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class CorpusSection(Section):
    """One corpus of the mixture."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    kind: Literal["pairs", "texts", "images"]
    format: Literal["coco_captions", "json_lines", "plain_text", "regions"]
    path: Path | None = None  # the captions or texts; images alone need none
    regions: Path | None = None  # the regions store; texts need none
    rewrites: Path | None = None  # of pairs: what tools/rewrite_captions.py wrote
    neighbours: Path | None = None  # of pairs: what tools/find_neighbours.py wrote
    per_step: Count = 0  # samples of a step that come from here, over all ranks

    @model_validator(mode="after")
    def _paths_fit_kind(self) -> "CorpusSection":
        allowed = {
            "pairs": ("coco_captions", "json_lines"),
            "texts": ("plain_text", "json_lines"),
            "images": ("regions",),
        }[self.kind]
        if self.format not in allowed:
            raise ValueError(f"format {self.format!r} does not fit kind {self.kind!r}; allowed: {', '.join(allowed)}")
        if self.kind != "images" and self.path is None:
            raise ValueError(f"kind {self.kind!r} needs a path")
        if self.kind != "texts" and self.regions is None:
            raise ValueError(f"kind {self.kind!r} needs regions: the folder of its regions store")
        for key in ("rewrites", "neighbours"):
            if self.kind != "pairs" and getattr(self, key) is not None:
                raise ValueError(f"kind {self.kind!r} has no {key}: only pairs have them")
        return self


class DataSection(Section):
    """What is read, and how much of it makes a step."""

    corpora: Annotated[list[CorpusSection], Field(min_length=1)]
    tokenizer: Path  # a folder with vocab.json and merges.txt of RoBERTa's form
    prepared: Path = Path("data/prepared")  # tokenised corpora are kept here and reused
    max_text_tokens: Annotated[int, Field(ge=8)] = 512  # with [CLS] and [SEP]; spec 1.5
    max_regions: PositiveInt = 100  # spec 1.5
    positions_per_micro_batch: PositiveInt = 8192  # budget of a rank's packed stream: the knob for memory
    workers: Count = 1  # loader processes a rank
    prefetch_steps: PositiveInt = 2

    @model_validator(mode="after")
    def _names_differ(self) -> "DataSection":
        names = [corpus.name for corpus in self.corpora]
        if len(set(names)) != len(names):
            raise ValueError(f"corpora must have different names, got {names}")
        return self


class MaskingSection(Section):
    """How inputs are masked (spec 4.2, 4.3)."""

    token_rate: Rate = 0.15
    span_geometric: Annotated[float, Field(gt=0, le=1)] = 0.2
    span_longest: PositiveInt = 10  # in words; SpanBERT's clip, UNIMO does not say
    fragment_rate: Rate = 0.25
    fragment_shortest: PositiveInt = 4
    fragment_longest: PositiveInt = 32
    region_rate: Rate = 0.15
    region_overlap: Rate = 0.4  # 0.4 base, 0.3 large (spec 11.1)

    @model_validator(mode="after")
    def _fragments_have_a_length(self) -> "MaskingSection":
        if self.fragment_longest < self.fragment_shortest:
            raise ValueError(
                f"fragment_longest {self.fragment_longest} is less than fragment_shortest {self.fragment_shortest}"
            )
        return self


class CmclSection(Section):
    """Cross-modal contrastive learning (spec 4.1, 11.5 to 11.8)."""

    weight: Weight = 1.0  # 0 switches the objective off
    in_batch: Weight = 1.0  # weight of the similarity matrix of the global batch, which the paper has not
    # `each` positive has a logarithm of its own, retrieved ones against those of other pairs; `summed`: all of a pair in one,
    # as Equation 1 is printed. Summed, the easiest positive satisfies the whole, and the pair hardly learns (docs/cmcl.md).
    positives: Literal["each", "summed"] = "each"
    temperature: Annotated[float, Field(ge=0.001, le=0.5)] = 0.07  # where the learned temperature starts
    # How ranks join the matrix: `gather` is faster, `ring` holds the vectors of two ranks only; the numbers are the same.
    # `auto` gathers until that would take more than 1 GiB on each rank (unimo_ds/kernels/contrastive_over_ranks.py).
    across_ranks: Literal["auto", "gather", "ring"] = "auto"

    @property
    def matrix(self) -> bool:
        """Whether images and captions encoded alone meet in the similarity matrix."""
        return self.weight > 0 and self.in_batch > 0

    @property
    def retrieved_apart(self) -> bool:
        """Whether retrieved images and texts are compared with those of other pairs, and not with the pair's hard negatives."""
        return self.matrix and self.positives == "each"


class CandidatesSection(Section):
    """How many candidates a pair gets in each step, at most; 0 leaves a kind out (spec 11.7; the numbers are our choice).

    A jointly encoded candidate costs the image's length and its caption's in the stream, a retrieved one its own length.
    """

    positives: Count = 1  # rewritten captions that are true of the image
    step_negatives: Count = 1  # captions of other images of the step
    sentence_negatives: Count = 1  # captions of other images that read alike
    phrase_negatives: Count = 1  # a phrase of the caption replaced
    word_negatives: Count = 1  # a word of the caption replaced
    images: Count = 1  # retrieved images, encoded alone
    texts: Count = 1  # retrieved texts, encoded alone


class ObjectivesSection(Section):
    """Weight of each objective in the loss; 0 switches it off."""

    mlm: Weight = 1.0
    seq2seq: Weight = 1.0
    mrfr: Weight = 1.0
    mrc: Weight = 1.0
    cmcl: CmclSection = CmclSection()
    matching: Weight = 0.0  # true or false of the image, as UNITER and others have it; the paper has CMCL in its place
    candidates: CandidatesSection = CandidatesSection()
    masking: MaskingSection = MaskingSection()

    @property
    def regions(self) -> bool:
        """Whether any objective masks regions."""
        return self.mrfr > 0 or self.mrc > 0

    @property
    def joint(self) -> bool:
        """Whether any objective compares whole captions with the image they are encoded with."""
        return self.cmcl.weight > 0 or self.matching > 0


class GuardsSection(Section):
    """Steps that are left out. One whose loss or gradient is not finite always is (docs/failures.md)."""

    left_out_in_a_row: PositiveInt = 5  # so many end the run
    # A loss that stands out upwards: `skip` leaves the step out; `roll_back` goes back to the last checkpoint and leaves out
    # every step since then as well.
    spike: Literal["none", "skip", "roll_back"] = "none"
    spike_deviations: Annotated[float, Field(gt=0)] = 6.0  # above the median of the window
    spike_window: Annotated[int, Field(ge=4)] = 200  # accepted steps before; as long as there are fewer, nothing stands out


class TimeoutsSection(Section):
    """Seconds that each phase of a run may take before the rank that the others wait for is named and the run ends.

    A rank whose process is stopped or gone is named after the shortest of them, whatever the phase.
    """

    start_up: PositiveInt = 120  # until all ranks have met
    prepare: PositiveInt = 3600  # tokenising, opening, building the engine; `unimo-ds prepare` does the first ahead
    first_step: PositiveInt = 600  # with loaders that start, and kernels that compile
    step: PositiveInt = 45  # or ten times the longest step so far, if that is longer
    save: PositiveInt = 1800
    evaluation: PositiveInt = 3600

    @property
    def shortest(self) -> int:
        """After which a rank that gives no sign of life counts as lost."""
        return min(int(seconds) for seconds in self.model_dump().values())

    @property
    def longest(self) -> int:
        """After which a collective gives up by itself: no phase lasts that long."""
        return max(int(seconds) for seconds in self.model_dump().values()) + 60


class OptimisationSection(Section):
    """Optimisation, checkpoints and logging, but for how long."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-5  # spec 6
    weight_decay: Weight = 0.01  # ours (spec 11.25)
    optimizer: Literal["adamw", "apex_lamb"] = "adamw"  # apex_lamb: NVIDIA's FusedLAMB, without ZeRO (docs/kernels.md)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    gradient_clipping: Weight = 1.0  # global norm; 0: none
    precision: Literal["fp32", "bf16"] = "bf16"
    activation_checkpointing: bool = False
    deepspeed: Path = Path("ds_configs/zero3.json")
    offload_folder: Path | None = None  # for a file that offloads to NVMe: of this run alone, on a fast disk of each node
    keep_checkpoints: PositiveInt = 3
    log_every: PositiveInt = 10
    log_samples: bool = False  # write the sample ids of every step to samples-rank*.jsonl
    guards: GuardsSection = GuardsSection()
    timeouts: TimeoutsSection = TimeoutsSection()
    stop_after_minutes: Annotated[float, Field(gt=0)] | None = None  # save and end early, to be resumed


class TrainingSection(OptimisationSection):
    """Optimisation of a run whose length is given in steps."""

    steps: PositiveInt
    warmup_steps: Count = 0
    tenth_after: list[PositiveInt] = Field(default_factory=list)  # steps after which the learning rate falls to a tenth
    checkpoint_every: PositiveInt = 1000


class ChoicesSection(Section):
    """A held-out test by choice: of a true caption and false ones, which fits the image best?"""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    path: Path  # rewritten captions (unimo_ds.rewrites): the true one is `text`, the false ones are its `negatives`
    regions: Path  # the regions store of their images
    captions: PositiveInt = 400  # at most; spread over the file
    negatives: PositiveInt = 20  # of a caption, at most; spread over the levels as the file has them


class EvaluationSection(Section):
    """Held-out pairs on which retrieval, masked words and captions are measured."""

    pairs: CorpusSection
    every: Count = 0  # steps between evaluations; 0: only at the end
    candidates: PositiveInt = 200  # images among which each caption must find its own
    captions: Count = 8  # generated captions shown
    caption_tokens: PositiveInt = 24
    choices: list[ChoicesSection] = Field(default_factory=list)
    texts: CorpusSection | None = None  # held-out texts, whose masked words are to be named

    @model_validator(mode="after")
    def _parts_fit(self) -> "EvaluationSection":
        if self.pairs.kind != "pairs" or (self.texts is not None and self.texts.kind != "texts"):
            raise ValueError("evaluation.pairs must be of kind pairs, and evaluation.texts of kind texts")
        names = [choice.name for choice in self.choices]
        if len(set(names)) != len(names):
            raise ValueError(f"choices must have different names, got {names}")
        return self


class RunConfig(Section):
    """The whole run."""

    folder: Path  # receipt, logs and checkpoints; started again, the run goes on from there
    seed: Count = 1
    init: Path | None = None  # a checkpoint folder whose weights are the start
    model: ModelSection = ModelSection()
    data: DataSection
    objectives: ObjectivesSection = ObjectivesSection()
    training: TrainingSection
    evaluation: EvaluationSection | None = None

    @model_validator(mode="after")
    def _steps_have_samples(self) -> "RunConfig":
        if not any(corpus.per_step for corpus in self.data.corpora):
            raise ValueError("data.corpora: per_step is 0 in every corpus; at least one must give samples to a step")
        return self

    @model_validator(mode="after")
    def _choices_have_a_score(self) -> "RunConfig":
        if self.evaluation is not None and self.evaluation.choices and not self.objectives.joint:
            raise ValueError(
                "evaluation.choices: nothing scores an image with a caption, because objectives.cmcl.weight and "
                "objectives.matching are both 0; give one of them a weight, or leave the choices out"
            )
        return self

    @model_validator(mode="after")
    def _texts_fit_positions(self) -> "RunConfig":
        longest = self.model.max_positions - 2  # positions start at 2
        given = {"data.max_text_tokens": self.data.max_text_tokens}
        if self.evaluation is not None:
            given["evaluation.caption_tokens"] = self.evaluation.caption_tokens
        for key, value in given.items():
            if value > longest:
                raise ValueError(f"{key} = {value}: model.max_positions = {self.model.max_positions} allows {longest}")
        return self


def load_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a pre-training run (`read_config`)."""
    return read_config(RunConfig, path, overrides)


def parse_config(content: dict[str, Any], source: str) -> RunConfig:
    """Validates a pre-training run; `source` names it in errors (`validate_config`)."""
    return validate_config(RunConfig, content, source)
