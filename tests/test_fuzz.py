"""A slice of the fuzz harness; the whole is `python -m tests.fuzz --count 20000`."""

from __future__ import annotations

import fuzz


def test_300_damaged_cases_end_in_typed_errors():
    ends, findings = fuzz.run(300, seed=7)
    assert not findings, "\n".join(findings)
    assert {"loader decoded", "server 200", "server 400", "server 415"} <= set(ends)
