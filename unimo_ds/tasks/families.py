"""Which task a configuration asks for."""

from collections.abc import Sequence
from typing import Any

from unimo_ds.config import (
    CaptioningSection,
    DialogueSection,
    EntailmentSection,
    RetrievalSection,
    SentencesSection,
    TaskSection,
    VqaSection,
    WritingSection,
)
from unimo_ds.tasks.dialogue import Dialogue
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.retrieval import Retrieval
from unimo_ds.tasks.sentences import Sentences
from unimo_ds.tasks.task import Task
from unimo_ds.tasks.vqa import Vqa, common_answers
from unimo_ds.tasks.writing import Captioning, TextWriting
from unimo_ds.tokenizer import Tokenizer


def make_task(section: TaskSection, tokenizer: Tokenizer, facts: dict[str, Any] | None = None) -> Task[Any]:
    """The task of a run.

    Args:
        section: the run's.
        tokenizer: the run's.
        facts: `Task.facts` of a checkpoint; None: the task learns them from its training set.

    Raises:
        DataError: the training set cannot be read.
    """
    match section:
        case SentencesSection():
            return Sentences(section)
        case EntailmentSection():
            return Entailment(tokenizer, section.adversarial, section.labels)
        case VqaSection():
            return Vqa(common_answers(section) if facts is None else facts["answers"])
        case RetrievalSection():
            return Retrieval(section, tokenizer)
        case CaptioningSection():
            return Captioning(section, tokenizer)
        case WritingSection():
            return TextWriting(section, tokenizer)
        case DialogueSection():
            return Dialogue(section, tokenizer)


def files_of(part: Any) -> Sequence[Any]:
    """The files of a set: one or several."""
    return part if isinstance(part, list) else [part]
