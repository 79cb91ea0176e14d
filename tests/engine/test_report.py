"""What a plan says about itself."""

from gossamer.engine.report import PlanReport


def report(runs: str, **milliseconds: float) -> PlanReport:
    return PlanReport(runs=runs, milliseconds=milliseconds, breaks=["a: no kernel", "alone", "b: no kernel"])


def test_places_with_one_reason_share_a_line():
    lines = str(report("plan", plan=1.0)).splitlines()
    assert [line for line in lines if line.startswith("break")] == ["break: a, b: no kernel (2 times)", "break: alone"]


def test_many_places_are_counted():
    text = str(PlanReport(breaks=[f"block.{i}: no kernel" for i in range(9)]))
    assert "break: block.0, block.1, block.2 ...: no kernel (9 times)" in text


def test_the_gain_is_said_where_the_plan_runs():
    assert "2.00 times as fast as the fastest peer" in str(report("plan", plan=1.0, torch=2.0, onnxruntime=3.0))
    assert "times as fast" not in str(report("torch", plan=2.0, torch=1.0))
