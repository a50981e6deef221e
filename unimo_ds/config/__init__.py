"""Runs as typed, validated data: what stands in a YAML file, and nothing else decides.

`reading.py` knows how a file is read, `pretraining.py` and `finetuning.py` what stands in it.
"""

from unimo_ds.config.finetuning import (
    EntailmentFiles,
    EntailmentSection,
    FinetuneConfig,
    SentenceFiles,
    SentencesSection,
    TaskDataSection,
    VqaFiles,
    VqaSection,
    load_finetune_config,
)
from unimo_ds.config.pretraining import (
    SIZES,
    CandidatesSection,
    ChoicesSection,
    CmclSection,
    CorpusSection,
    DataSection,
    EvaluationSection,
    MaskingSection,
    ModelSection,
    ObjectivesSection,
    OptimisationSection,
    RunConfig,
    TrainingSection,
    load_config,
    parse_config,
)
from unimo_ds.config.reading import Section, dump_config

__all__ = [
    "SIZES",
    "CandidatesSection",
    "ChoicesSection",
    "CmclSection",
    "CorpusSection",
    "DataSection",
    "EntailmentFiles",
    "EntailmentSection",
    "EvaluationSection",
    "FinetuneConfig",
    "MaskingSection",
    "ModelSection",
    "ObjectivesSection",
    "OptimisationSection",
    "RunConfig",
    "Section",
    "SentenceFiles",
    "SentencesSection",
    "TaskDataSection",
    "TrainingSection",
    "VqaFiles",
    "VqaSection",
    "dump_config",
    "load_config",
    "load_finetune_config",
    "parse_config",
]
