"""Objectives, constraints and stop rules, against values worked out by hand or by scipy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import theilslopes

from sweeps.objective import (
    Constraint,
    MissingMetricError,
    NoValueError,
    ObjectiveConfig,
    StopRule,
    Term,
    adversarial_start,
    constraint_values,
    objective_points,
    objective_value,
    read_rows,
    reduce_curve,
    stop_reason,
    tail,
    used_metrics,
)
from vsr_dist.core.errors import BadConfigError, UserError

LEVELS = [0.95, 0.9, 0.7, 0.65, 0.6, 0.62, 0.5, 0.7]


def rows():
    """Validations at 0 to 1000 by 100: warm-up up to 200, then eight evaluations of the discriminator."""
    found = []
    for place in range(11):
        step = 100 * place
        row = {"val/psnr_y": 20.0 + place, "val_bicubic/psnr_y": 25.0, "val/tof": 2.0, "val_bicubic/tof": 4.0}
        if place >= 3:
            row["drift/normalized_loss"] = LEVELS[place - 3]
        found.append((step, row))
    return found


def value(*terms, direction="minimize"):
    return objective_value(ObjectiveConfig(direction=direction, terms=terms), rows())


def test_the_metrics_file_is_read_by_step_without_its_unfinished_end(tmp_path):
    lines = [
        {"step": 0, "time_s": 1.0, "val/psnr_y": 20.0},
        {"step": 5, "time_s": 2.0, "loss_g/total": 1},
        {"step": 5, "time_s": 2.5, "val/psnr_y": 21.0, "drift/auc": 0.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 10, "val/psn')
    expected = [(0, {"val/psnr_y": 20.0}), (5, {"loss_g/total": 1.0, "val/psnr_y": 21.0, "drift/auc": 0.5})]
    assert read_rows(tmp_path) == expected
    assert adversarial_start(expected) == 5
    assert read_rows(tmp_path / "none") == []
    assert adversarial_start([(0, {"val/psnr_y": 1.0})]) is None


def test_a_metric_is_short_for_one_term():
    assert objective_value(ObjectiveConfig("val/psnr_y"), rows()) == 30.0
    assert ObjectiveConfig() == ObjectiveConfig("val/psnr_y", "maximize")
    assert ObjectiveConfig("val/psnr_y").all_terms == (Term("val/psnr_y"),)


def test_the_tail_is_the_last_quarter_after_the_warmup():
    # Eight adversarial evaluations, so the tail is the last two: 0.5 and 0.7.
    assert value(Term("drift/normalized_loss", reduce="tail_median")) == pytest.approx(0.6)
    assert value(Term("val/tof", weight=3.0)) == 6.0
    points = [(step, float(step)) for step in range(0, 1100, 100)]
    assert [step for step, _ in tail(points, 300)] == [900, 1000]
    assert [step for step, _ in tail(points, 200)] == [800, 900, 1000]  # Nine points: rounded up.
    assert [step for step, _ in tail(points, None)] == [800, 900, 1000]  # Without a discriminator: all but step 0.
    assert value(Term("val/psnr_y", weight=-1.0, reduce="tail_median")) == -29.5


def test_ratio_hinge_and_weight():
    assert value(Term("val/tof", relative_to="val_bicubic/tof")) == 0.5
    assert value(Term("val/tof", relative_to="val_bicubic/tof", above=0.2, weight=10.0)) == pytest.approx(3.0)
    assert value(Term("val/tof", above=2.5)) == 0.0
    assert value(Term("val/psnr_y", below=32.0)) == 2.0
    assert value(Term("val/psnr_y", below=29.0)) == 0.0
    both = value(Term("val/tof"), Term("val/psnr_y", weight=-0.1))
    assert both == pytest.approx(2.0 - 3.0)
    zero = [(1, {"val/tof": 1.0, "val_bicubic/tof": 0.0})]
    ratio = ObjectiveConfig(direction="minimize", terms=(Term("val/tof", relative_to="val_bicubic/tof"),))
    with pytest.raises(NoValueError, match="the divisor is 0 at step 1"):
        objective_value(ratio, zero)


def test_a_signed_metric_is_a_sum_of_its_two_sides():
    terms = (Term("val/high_frequency_gap", above=0.0), Term("val/high_frequency_gap", below=0.0))
    config = ObjectiveConfig(direction="minimize", terms=terms)
    assert [objective_value(config, [(1, {"val/high_frequency_gap": gap})]) for gap in (-0.5, 0.25)] == [0.5, 0.25]


def test_best_goes_where_the_objective_wants_to_go():
    up = ObjectiveConfig(direction="maximize", terms=(Term("drift/slope", reduce="best"),))
    down = ObjectiveConfig(direction="minimize", terms=(Term("drift/slope", reduce="best"),))
    negative = ObjectiveConfig(direction="minimize", terms=(Term("drift/slope", reduce="best", weight=-2.0),))
    missing = ObjectiveConfig(direction="minimize", terms=(Term("drift/slope", reduce="best", below=5.0),))
    curve = [(step, {"drift/slope": level}) for step, level in ((10, 3.0), (20, 1.0), (30, 2.0))]
    values = [objective_value(config, curve) for config in (up, down, negative, missing)]
    assert values == [3.0, 1.0, -6.0, 2.0]


def test_a_metric_that_is_missing_is_answered_with_the_nearest_name():
    with pytest.raises(MissingMetricError, match=r"no metric val/psnr_x \(did you mean 'val/psnr_y'\?\)") as caught:
        objective_value(ObjectiveConfig("val/psnr_x"), rows())
    assert isinstance(caught.value, UserError)
    apart = [(1, {"val/tof": 1.0}), (2, {"val_bicubic/tof": 1.0})]
    with pytest.raises(MissingMetricError, match="at no step both"):
        objective_value(
            ObjectiveConfig(direction="minimize", terms=(Term("val/tof", relative_to="val_bicubic/tof"),)), apart
        )
    with pytest.raises(NoValueError, match="expected a finite number"):
        objective_value(ObjectiveConfig("val/psnr_y"), [(1, {"val/psnr_y": float("nan")})])


def test_intermediate_values_are_what_the_objective_would_have_been():
    terms = (Term("val/tof"), Term("drift/normalized_loss", reduce="tail_median"))
    points = objective_points(ObjectiveConfig(direction="minimize", terms=terms), rows())
    assert [step for step, _ in points] == [300, 400, 500, 600, 700, 800, 900, 1000]
    assert points[0][1] == pytest.approx(2.95)
    assert points[4][1] == pytest.approx(2.0 + np.median([0.65, 0.6]))  # Five evaluations, so the tail is two.
    simple = objective_points(ObjectiveConfig("val/psnr_y"), rows())
    assert simple == [(100 * place, 20.0 + place) for place in range(1, 11)]  # Not at 0: nothing was trained there.
    assert objective_points(ObjectiveConfig("val/psnr_y"), []) == []


def test_constraints_are_feasible_at_zero_and_below():
    known = constraint_values(
        [
            Constraint("weak", "drift/normalized_loss", "tail_median", at_most=0.75),
            Constraint("strong", "drift/normalized_loss", "tail_median", at_least=0.75),
            Constraint("psnr", "val/psnr_y", relative_to="val_bicubic/psnr_y", at_least=4.5),
            Constraint("low", "drift/normalized_loss", "tail_min", at_least=0.35),
            Constraint("high", "drift/normalized_loss", "tail_max", at_most=0.75),
        ],
        rows(),
    )
    assert known == pytest.approx({"weak": -0.15, "strong": 0.15, "psnr": -0.5, "low": -0.15, "high": -0.05})
    logits = Constraint("apart", "d/real", relative_to="d/fake", at_least=0.5)
    assert logits.measure([(10, {"d/real": 1.0, "d/fake": 0.25})]) == 0.75
    constraint = Constraint("psnr", "val/psnr_y", at_least=4.5)
    for measured in (3.0, 6.0):
        assert constraint.measured(constraint.excess(measured)) == measured


def test_slopes_are_those_of_scipy_over_the_later_half():
    # Evaluations from step 300 to 1000, so the later half begins at 650.
    late = theilslopes(LEVELS[4:], np.array([700, 800, 900, 1000]) / 1000, alpha=0.95)
    names = {"tail_slope": late.slope, "tail_slope_low": late.low_slope, "tail_slope_high": late.high_slope}
    for reduce, expected in names.items():
        found = constraint_values([Constraint("c", "drift/normalized_loss", reduce, at_most=0.1)], rows())["c"]
        assert found == pytest.approx(expected - 0.1)
        rise = Constraint("c", "drift/normalized_loss", reduce.replace("slope", "rise"), at_most=0.1)
        assert rise.measure(rows()) == pytest.approx(expected * 0.7)  # 700 adversarial steps
    with pytest.raises(NoValueError, match="expected at least 3 evaluations in the later half"):
        reduce_curve([(300, 0.9), (400, 0.8)], "tail_slope", 300)


def test_a_constraint_that_cannot_be_told_names_itself_or_is_left_out():
    constraints = [Constraint("alive", "drift/dead_fraction", at_most=0.05), Constraint("tof", "val/tof", at_most=3.0)]
    with pytest.raises(MissingMetricError, match="constraint alive: the run has no metric drift/dead_fraction"):
        constraint_values(constraints, rows())
    assert constraint_values(constraints, rows(), partial=True) == {"tof": -1.0}


def test_a_stop_rule_needs_evaluations_in_succession():
    rule = StopRule("drift/normalized_loss", above=0.63, times=2)
    reason = stop_reason([rule], rows())
    assert reason == "drift/normalized_loss 0.9, above 0.63 at 2 consecutive evaluations, step 400"
    assert stop_reason([StopRule("drift/normalized_loss", above=0.63, times=5)], rows()) is None
    assert stop_reason([StopRule("drift/normalized_loss", above=0.63, times=2, after_step=400)], rows()).endswith("600")
    assert stop_reason([StopRule("drift/normalized_loss", above=0.63, times=2, after_step=600)], rows()) is None
    low = StopRule("val/psnr_y", below=20.5, times=1)
    assert stop_reason([rule, low], rows()) == reason
    assert stop_reason([low], rows()) is None  # Only step 0 is so low, and it does not count.
    assert stop_reason([StopRule("drift/dead_fraction", above=0.5)], rows()) is None


@pytest.mark.parametrize(
    "metric", ["loss_g/total", "loss_d/total", "drift/gradient_ratio", "drift/verdict_code", "d/real"]
)
def test_what_contains_the_tuned_weights_is_no_objective(metric):
    for make in (lambda: Term(metric), lambda: ObjectiveConfig(metric), lambda: Term("val/tof", relative_to=metric)):
        with pytest.raises(BadConfigError, match="contains the loss weights that a study tunes"):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ObjectiveConfig("val/psnr_y", terms=(Term("val/tof"),)), "give metric or terms"),
        (lambda: ObjectiveConfig("val/psnr_y", "minimize"), "improves if you maximize it"),
        (lambda: ObjectiveConfig(terms=(Term("val/tof"),)), "improves if you minimize it"),
        (lambda: ObjectiveConfig(direction="minimize", terms=(Term("val/psnr_y"),)), "the sign of its weight"),
        (lambda: ObjectiveConfig(terms=(Term("val/psnr_y", below=30.0),)), "improves if you minimize it"),
        (lambda: Term("val/tof", weight=0.0), "weight 0"),
        (lambda: Term("val/tof", above=1.0, below=2.0), "a term of its own"),
        (lambda: ObjectiveConfig("drift/ks", "minimize"), "improves if you maximize it"),
        (lambda: ObjectiveConfig("perf/data_wait_ms"), "improves if you minimize it"),
        (lambda: ObjectiveConfig("val_bicubic/tof"), "improves if you minimize it"),
        (lambda: ObjectiveConfig("val/high_frequency_gap"), "is best at 0; give one term with above: 0"),
        (lambda: ObjectiveConfig(terms=(Term("val/high_frequency_gap", above=0.0),)), "improves if you minimize it"),
        (lambda: ObjectiveConfig(terms=(Term("val/high_frequency_gap", below=0.0),)), "improves if you minimize it"),
        (lambda: Term("learning_rate/generator"), "does not measure a trial"),
        (lambda: Constraint("c", "val/tof"), "give at_most or at_least"),
        (lambda: Constraint("c", "val/tof", at_most=1.0, at_least=0.0), "not both"),
        (lambda: Constraint("c", "loss_d/total", at_most=1.0), "constraint c: loss_d/total does not measure"),
        (lambda: StopRule("val/tof"), "give above or below"),
        (lambda: StopRule("val/tof", above=1.0, times=0), "times of at least 1"),
    ],
)
def test_slips_are_refused(make, message):
    with pytest.raises(BadConfigError, match=message):
        make()


def test_formulas_for_people_and_the_metrics_in_use():
    terms = (
        Term("val/tof", relative_to="val_bicubic/tof"),
        Term("val/psnr_y", weight=-0.5, reduce="tail_median"),
        Term("drift/dead_fraction", above=0.05),
    )
    objective = ObjectiveConfig(direction="minimize", terms=terms)
    assert objective.describe() == (
        "val/tof / val_bicubic/tof - 0.5 * tail_median(val/psnr_y) + max(drift/dead_fraction - 0.05, 0)"
    )
    assert (objective.title, ObjectiveConfig().title) == ("objective", "val/psnr_y")
    constraint = Constraint("steady", "drift/normalized_loss", "tail_slope_high", at_most=0.1)
    assert constraint.describe() == "tail_slope_high(drift/normalized_loss) <= 0.1"
    used = used_metrics([objective], [constraint], [StopRule("drift/auc", below=0.4)])
    assert used["val_bicubic/tof"] == "objective objective"
    assert used["drift/normalized_loss"] == "constraint steady"
    assert used["drift/auc"] == "stop_when"
    assert len(used) == 6
