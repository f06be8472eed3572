"""`demo`: what its panel says is what its list says."""

from __future__ import annotations

import re

from tests.fix_program import Run


def test_panel_counts_the_tables_that_the_list_names(run: Run) -> None:
    done = run("demo", "--keys", "20", "--logs", "20")
    assert done.status == 0, done.err
    (listed,) = [line for line in done.err.splitlines() if line.startswith("Not   ")]
    assert "DailyUserSpend (300 rows)" in listed
    (stayed,) = re.findall(r"(\d+) tables stayed behind, because nobody asked for them", done.out)
    assert int(stayed) == listed.count(" row")
    assert "MishikaLLM_CronJob is never copied." in done.out
    assert not re.search(r"\b1 rows", done.out + done.err)
