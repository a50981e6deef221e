"""A fine-tuning run as typed, validated data; settings of the paper's tasks: unimo-spec, 7, and `recipes/`."""

from collections.abc import Iterable
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from unimo_ds.config.pretraining import OptimisationSection, TrainingSection
from unimo_ds.config.reading import Beta, PositiveInt, Rate, Section, Weight, read_config

T = TypeVar("T")
SetName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


def _braces_fit(template: T) -> T:
    """An image's key with braces for the image, {} or {:012}; a path without any passes as well."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(str(template)) if name is not None]
    except ValueError as error:
        raise ValueError(f"{str(template)!r}: {error}; braces stand for the image: {{}} or {{:012}}") from error
    if any(names):
        raise ValueError(f"{str(template)!r}: braces stand for the image, and nothing may be named in them: {{}} or {{:012}}")
    return template


ImageKey = Annotated[str, AfterValidator(_braces_fit)]
AtLeastOne = Field(min_length=1)


class SentenceFiles(Section):
    """A set of sentences, or of pairs of sentences."""

    path: Path  # tab-separated, as GLUE has it or as the original release (docs/tasks.md)


class EntailmentFiles(Section):
    """A set of SNLI-VE."""

    path: Path  # JSON Lines with Flickr30K_ID, sentence2 and gold_label, or the original release's ids (docs/tasks.md)
    regions: Path  # the regions store of the images
    images: ImageKey = "{}.jpg"  # an image's key there, with its Flickr30K_ID for {}


class VqaFiles(Section):
    """A set of VQA v2."""

    questions: Path  # v2_OpenEnded_*_questions.json
    annotations: Path | None = None  # v2_*_annotations.json; sets to be predicted only have none
    regions: Path  # the regions store of the images
    # An image's key there: with its image_id for the braces, or as a COCO file says that lists images with id and file_name.
    images: Annotated[str | Path, AfterValidator(_braces_fit)] = "COCO_val2014_{:012}.jpg"


class CaptionFiles(Section):
    """A set of captioned images."""

    path: Path  # COCO captions, Karpathy's split of them, or the original release's ids (docs/tasks.md)
    splits: list[str] = Field(
        default_factory=list
    )  # of Karpathy's file: [train, restval] for COCO's training set, [val], [test]
    regions: Path  # the regions store of the images
    images: ImageKey = "{}"  # an image's key there, with its file name for {}


class TextFiles(Section):
    """A set of texts with what is to be written of them."""

    path: Path  # JSON Lines; SQuAD's JSON; the original release's ids (docs/tasks.md); or the sources, a line each
    targets: Path | None = None  # the targets, a line each, where `path` holds the sources only
    source: str = "source"  # key of the source in JSON Lines: `article` of CNN/DailyMail, say
    target: str = "target"  # key of the target: `highlights` of CNN/DailyMail


class DialogueFiles(Section):
    """A set of dialogues about stories."""

    path: Path  # CoQA's JSON, or the original release's ids (docs/tasks.md)


class DecodingSection(Section):
    """How texts are searched for (unimo-spec, 7.2)."""

    beams: PositiveInt = 5
    longest: PositiveInt  # tokens, the end token among them
    shortest: Annotated[int, Field(ge=0)] = 0  # tokens before the end token
    length_penalty: Annotated[float, Field(ge=0)] = 0.6
    block_trigrams: bool = False

    @model_validator(mode="after")
    def _lengths_fit(self) -> "DecodingSection":
        if self.shortest > self.longest:
            raise ValueError(f"shortest {self.shortest} is more than longest {self.longest}")
        if self.block_trigrams and self.beams < 2:
            raise ValueError("block_trigrams wants 2 beams or more: a hypothesis proposes as many words as there are beams")
        return self


class AdversarialSection(Section):
    """Adversarial training as the release has it, after VILLA (unimo-spec, 7.4; docs/tasks.md)."""

    rounds: PositiveInt = 4  # passes of a step, after each of which the perturbations move
    initial_magnitude: Weight = 0.4  # perturbations start at random, with about this norm over the square root of 3
    learning_rate: Weight  # how far a perturbation moves after a round
    # What has a larger norm makes a perturbation shorter, by this over that norm; 0: nothing does. In the release it is the
    # gradient of the perturbation that has it, where VILLA says the perturbation itself.
    largest_norm: Weight = 0.0
    projection: Literal["gradient", "perturbation"] = "gradient"
    divergence_weight: Weight = 1.0  # of the divergences between perturbed and pure outputs


class SentencesSection(Section):
    """One or two sentences to a class or a number: SST-2, CoLA, MNLI, STS-B (unimo-spec, 7.1)."""

    family: Literal["sentences"]
    labels: list[str] = Field(default_factory=list)  # the classes as they stand in the files; none: a number
    metric: Literal["accuracy", "matthews", "correlation"]  # correlation: the mean of Pearson's and Spearman's
    train: SentenceFiles
    dev: Annotated[dict[SetName, SentenceFiles], AtLeastOne]  # the first one chooses the best checkpoint
    test: dict[SetName, SentenceFiles] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _metric_fits_labels(self) -> "SentencesSection":
        if (self.metric == "correlation") == bool(self.labels):
            raise ValueError(
                f"metric {self.metric!r} with labels {self.labels}: correlation is of numbers, the others of classes"
            )
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels {self.labels}: give two or more, all different")
        if self.metric == "matthews" and len(self.labels) != 2:
            raise ValueError(f"metric 'matthews' with labels {self.labels}: it is of two classes")
        return self


class EntailmentSection(Section):
    """An image and a sentence to one of three classes: SNLI-VE (unimo-spec, 7.4)."""

    family: Literal["entailment"]
    # In the order of the head's scores, which matters for a head that was converted (docs/weights.md).
    labels: tuple[str, ...] = ("entailment", "neutral", "contradiction")
    train: EntailmentFiles
    dev: Annotated[dict[SetName, EntailmentFiles], AtLeastOne]
    test: dict[SetName, EntailmentFiles] = Field(default_factory=dict)
    adversarial: AdversarialSection | None = None

    @model_validator(mode="after")
    def _labels_are_the_three(self) -> "EntailmentSection":
        if sorted(self.labels) != ["contradiction", "entailment", "neutral"]:
            raise ValueError(f"labels {list(self.labels)}: give entailment, neutral and contradiction, in whatever order")
        return self


class VqaSection(Section):
    """An image and a question to one of the commonest answers: VQA v2 (unimo-spec, 7.6)."""

    family: Literal["vqa"]
    # Answers that were given at least so often become classes: 3,129 with train and val of VQA v2.
    answer_count: PositiveInt = 9
    train: Annotated[list[VqaFiles], AtLeastOne]
    dev: Annotated[dict[SetName, VqaFiles], AtLeastOne]
    test: dict[SetName, VqaFiles] = Field(default_factory=dict)


class TagsSection(Section):
    """Names of detected objects beside the image (`tasks.object_tags`)."""

    threshold: Rate  # of a region's class probability
    most_tokens: PositiveInt = 100


class CaptioningSection(Section):
    """A caption of an image: COCO (unimo-spec, 7.5)."""

    family: Literal["captioning"]
    object_tags: TagsSection | None = None
    train: CaptionFiles
    dev: Annotated[dict[SetName, CaptionFiles], AtLeastOne]
    test: dict[SetName, CaptionFiles] = Field(default_factory=dict)
    max_target_tokens: Annotated[int, Field(ge=3)] = 50  # with [CLS] and [SEP]
    label_smoothing: Rate = 0.1
    decoding: DecodingSection = DecodingSection(longest=50, shortest=5)
    adversarial: AdversarialSection | None = None


def usual_decoding(positions: int) -> DecodingSection:
    """How a model that was fine-tuned for no generation searches: as for COCO's captions, within its positions."""
    coco = CaptioningSection.model_fields["decoding"].default
    lengths = {key: min(getattr(coco, key), positions) for key in ("longest", "shortest")}
    return DecodingSection(**{**coco.model_dump(), **lengths})


class RetrievalSection(Section):
    """Captions find their images, and images their captions: Flickr30k (unimo-spec, 7.3)."""

    family: Literal["retrieval"]
    train: CaptionFiles
    dev: Annotated[dict[SetName, CaptionFiles], AtLeastOne]
    test: dict[SetName, CaptionFiles] = Field(default_factory=dict)
    negatives: PositiveInt = 10  # other images, and captions of other images, that a pair is taught with
    margin: Rate = 0.2  # of the circle loss
    scale: Annotated[float, Field(gt=0)] = 1.0  # its gamma
    # How many captions are scored for each image, and images for each caption: the closest by their vectors, each encoded
    # alone. None: all of them.
    candidates: PositiveInt | None = None


class WritingSection(Section):
    """A text of a text: CNN/DailyMail, Gigaword, questions of SQuAD (unimo-spec, 7.2)."""

    family: Literal["writing"]
    metric: Literal["rouge", "bleu"]
    train: TextFiles
    dev: Annotated[dict[SetName, TextFiles], AtLeastOne]
    test: dict[SetName, TextFiles] = Field(default_factory=dict)
    max_target_tokens: Annotated[int, Field(ge=3)] = 128  # with [CLS] and [SEP]
    label_smoothing: Rate = 0.1
    decoding: DecodingSection


class DialogueSection(Section):
    """The next answer in a dialogue about a story: CoQA (unimo-spec, 7.2)."""

    family: Literal["dialogue"]
    train: DialogueFiles
    dev: Annotated[dict[SetName, DialogueFiles], AtLeastOne]
    test: dict[SetName, DialogueFiles] = Field(default_factory=dict)
    max_target_tokens: Annotated[int, Field(ge=3)] = 32  # with [CLS] and [SEP]
    label_smoothing: Rate = 0.1
    decoding: DecodingSection = DecodingSection(beams=3, longest=30, length_penalty=0.0)


TaskSection = Annotated[
    SentencesSection | EntailmentSection | VqaSection | RetrievalSection | CaptioningSection | WritingSection | DialogueSection,
    Field(discriminator="family"),
]


class TaskDataSection(Section):
    """How much of an example is read, and how much a micro-batch holds."""

    max_text_tokens: Annotated[int, Field(ge=8)] = 512  # with [CLS] and [SEP]
    max_regions: PositiveInt = 100
    positions_per_micro_batch: PositiveInt = 8192  # budget of a rank's packed stream: the knob for memory
    workers: Annotated[int, Field(ge=0)] = 1
    prefetch_steps: PositiveInt = 2


class FinetuneTrainingSection(OptimisationSection):
    """Optimisation of a run whose length is given in epochs (unimo-spec, 7.0)."""

    epochs: Annotated[float, Field(gt=0)]
    batch_size: PositiveInt  # examples of a step, over all ranks and micro-batches
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    warmup_share: Rate = 0.06  # of all steps
    # After each of these epochs the learning rate falls to a tenth; none: it falls linearly to 0.
    tenth_after: list[PositiveInt] = Field(default_factory=list)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    checkpoints_per_epoch: PositiveInt = 1  # evaluations as well

    @model_validator(mode="after")
    def _rate_falls_within_the_run(self) -> "FinetuneTrainingSection":
        if sorted(set(self.tenth_after)) != self.tenth_after or any(epoch >= self.epochs for epoch in self.tenth_after):
            raise ValueError(f"tenth_after {self.tenth_after}: give rising epochs before the last of {self.epochs:g}")
        return self

    def for_examples(self, count: int) -> TrainingSection:
        """The section in steps, for a training set of `count` examples."""
        batch_size = min(self.batch_size, count)
        steps = max(1, int(self.epochs * count / batch_size))
        own = {"epochs", "batch_size", "warmup_share", "tenth_after", "checkpoints_per_epoch"}
        return TrainingSection(
            **self.model_dump(exclude=own),
            steps=steps,
            warmup_steps=int(self.warmup_share * steps),
            tenth_after=[max(1, epoch * count // batch_size) for epoch in self.tenth_after],
            checkpoint_every=max(1, count // batch_size // self.checkpoints_per_epoch),
        )


class FinetuneConfig(Section):
    """The whole run."""

    folder: Path  # receipt, logs, checkpoints and predictions; started again, the run goes on from there
    seed: Annotated[int, Field(ge=0)] = 1
    # A checkpoint, of pre-training or of another task, or a run folder: its best checkpoint, or the newest. Weights, shape and
    # tokenizer are the start.
    init: Path
    random_weights: bool = False  # take only shape and tokenizer of `init`: what its weights are worth
    task: TaskSection
    data: TaskDataSection = TaskDataSection()
    training: FinetuneTrainingSection


def load_finetune_config(path: Path, overrides: Iterable[str] = ()) -> FinetuneConfig:
    """Reads a fine-tuning run (`read_config`)."""
    return read_config(FinetuneConfig, path, overrides)
