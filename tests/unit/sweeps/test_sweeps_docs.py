"""The YAML that docs/studies.md shows is a study."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from sweeps.config import parse_study

PAGE = Path(__file__).parents[3] / "docs" / "studies.md"


def test_the_snippets_make_a_study_together():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)]
    assert len(blocks) == 6
    tree = {key: value for block in blocks for key, value in block.items()}
    study = parse_study(tree, "docs")
    assert set(study.space) == {"adversarial.weight", "discriminator.levels", "discriminator.filters"}
    assert study.objective.title == "J" and len(study.objective.terms) == 2
    assert [constraint.name for constraint in study.constraints] == ["not weak", "no drift", "fidelity"]
    assert study.stop_when[0].times == 3 and study.pruner.kind == "median"
    assert study.start[0] == {}
