"""Which task a configuration asks for."""

from collections.abc import Sequence
from typing import Any

from unimo_ds.config import EntailmentSection, SentencesSection, VqaSection
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.sentences import Sentences
from unimo_ds.tasks.task import Task
from unimo_ds.tasks.vqa import Vqa, common_answers


def make_task(section: SentencesSection | EntailmentSection | VqaSection, facts: dict[str, Any] | None = None) -> Task[Any]:
    """The task of a run.

    Args:
        section: the run's.
        facts: what the task learned from its training set, out of a checkpoint; None: it looks there.

    Raises:
        DataError: the training set cannot be read.
    """
    match section:
        case SentencesSection():
            return Sentences(section)
        case EntailmentSection():
            return Entailment()
        case VqaSection():
            return Vqa(common_answers(section) if facts is None else facts["answers"])


def files_of(part: Any) -> Sequence[Any]:
    """The files of a set: one or several."""
    return part if isinstance(part, list) else [part]
