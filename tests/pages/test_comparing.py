"""The page about comparing says what was simulated and run, and that reaches what is promised."""

from __future__ import annotations

from benchmarks import false_claims as script


def test_the_page_is_made_of_what_was_found():
    text = script.PAGE.read_text(encoding="utf-8")
    assert text == script.page(text, script.results()), "false_claims.py --page"
    assert script.PICTURE.exists()


def test_adam_against_adam():
    for runs in script.results()["real"].values():
        assert len(runs) >= 200
        assert 0.02 <= script.share_different(runs) <= 0.07
        assert script.share_apart(runs) > 0.3


def test_what_is_claimed_on_the_page():
    found = script.results()["simulated"]
    assert found["draws"] >= 4000
    for world, each in found["coverage"].items():
        assert min(each[str(studies)] for studies in (6, 10, 20)) > 0.945, world
        assert 0.93 <= each["5"] <= 0.975, world
    for studies in ("5", "10"):
        assert all(0.03 <= found["false claims"][studies][of] <= 0.07 for of in ("steps", "final"))
    for of in found["power"].values():
        for each in of.values():
            assert each["library"] > 0.9 * each["paired"]


def test_a_table_between_its_marks_leaves_the_words():
    text = f"before\n{script.BEGIN}\nstale words\n{script.END}\nafter\n"
    again = script.page(text, script.results())
    assert again.startswith("before\n")
    assert again.endswith("\nafter\n")
    assert "stale words" not in again
