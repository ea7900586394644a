"""Published scores stand once in code; README, headers of configs/ and the recipe agree."""

import re

import pytest

from benchmarks.published import PUBLISHED
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE = ROOT.parent / "shared" / "recipe.md"


def rows_of(text: str) -> dict[str, list[str]]:
    """Configuration -> the four scores, of the README's table."""
    rows = re.findall(r"(?m)^\|[^|]+\| `(\w+)\.yaml` \|(.+)\|$", text)
    return {name: [cell.strip() for cell in cells.split("|")][:4] for name, cells in rows}


def test_the_readme_has_these_scores_and_no_others():
    expected = {name: [*row.scores.values()] for name, row in PUBLISHED.items()}
    assert rows_of(README) == expected
    assert "| config | mAP@10 | R@1 | R@5 | R@10 |" in README


def test_negative_control_a_changed_score_is_seen():
    changed = rows_of(README.replace("31.041", "31.014"))
    assert changed["tap"] != [*PUBLISHED["tap"].scores.values()]


@pytest.mark.parametrize("name", PUBLISHED)
def test_headers_of_configurations_give_the_published_scores(name: str):
    header = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8").replace("\n# ", " ")
    scores = PUBLISHED[name].scores
    assert ", ".join(f"{metric} {score}" for metric, score in scores.items()) in header
    assert "Measured here:" in header


@pytest.mark.skipif(not RECIPE.is_file(), reason="the recipe is not here")
def test_the_recipe_has_the_same_scores():
    table = [line.split("|")[-5:-1] for line in RECIPE.read_text("utf-8").splitlines()]
    found = [[cell.strip() for cell in row] for row in table if len(row) == 4]
    assert all([*row.scores.values()] in found for row in PUBLISHED.values())
