"""A few requests made up from the OpenAPI document; many are `python -m tests.openapi --examples 50`."""

from __future__ import annotations

import openapi


def test_no_operation_answers_what_the_document_does_not_say():
    statuses, failures = openapi.run(2)
    assert not failures, "\n\n".join(failures)
    assert statuses.total() >= 90 and statuses[200] >= 20
