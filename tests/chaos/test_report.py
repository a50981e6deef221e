"""The table, and what makes a campaign fail."""

import random
import xml.etree.ElementTree as ElementTree

from unimo_ds.chaos.campaign import Outcome, Row, _kinds
from unimo_ds.chaos.faults import Kind
from unimo_ds.chaos.report import draw, summary, table

CURVE = {step: {"loss": 9.0 - step} for step in range(1, 5)}


def outcome(row: Row, problems: list[str]) -> Outcome:
    return Outcome([row], 4, CURVE, CURVE, 0.0, problems, 61.0)


def test_one_problem_makes_a_campaign_fail() -> None:
    right, wrong = Row(1, "TERM"), Row(1, "TERM", problems=["it ended without saving"])
    assert outcome(right, []).right
    assert not outcome(wrong, []).right and not outcome(right, ["step 3 is not logged"]).right
    assert "WRONG: step 3 is not logged" in summary(outcome(right, ["step 3 is not logged"]))
    assert table([wrong]).endswith("| it ended without saving |") and table([right]).endswith("| right |")


def test_the_curve_has_a_mark_for_each_fault() -> None:
    drawing = ElementTree.fromstring(draw(outcome(Row(1, Kind.CUT.value, step=3), [])))
    assert [title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")] == [f"1: {Kind.CUT.value} at step 3"]


def test_every_kind_has_its_turn_before_one_comes_again() -> None:
    kinds = _kinds(25, random.Random(3))
    assert len(kinds) == 25 and set(kinds[:10]) == set(kinds[10:20]) == set(Kind) and kinds[:10] != kinds[10:20]
