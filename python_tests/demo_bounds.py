"""What the demo on MovieLens 100K has to reach."""

from __future__ import annotations

__all__ = ["check_demo"]


def check_demo(report):
    """Asserts it of a demo's JSON."""
    rows = {row["name"]: row for row in report["rows"]}
    original, unlearned, retrained, other = (
        rows[name] for name in ("original", "unlearned", "retrained", "retrained, other seed")
    )
    assert (report["n_train"], report["n_fake"]) == (80_000, 1_600)
    assert retrained["test_auc"] >= 0.775
    assert abs(unlearned["test_auc"] - retrained["test_auc"]) <= 0.003
    assert unlearned["distance_forget"] <= 0.45 * original["distance_forget"]
    assert unlearned["distance_test"] <= max(
        0.6 * original["distance_test"], 1.3 * other["distance_test"]
    )
    # On rows of users that were erased any model is right; these ask more.
    assert report["fake_distance"]["unlearned"] <= 0.35 * report["fake_distance"]["original"]
