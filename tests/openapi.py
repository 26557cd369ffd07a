"""Requests made up from the OpenAPI document, valid and not: no 500, and answers as the document says.

    python -m tests.openapi --examples 50
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.serialization import Binary
from servers import app, live, wav

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance, content_type_conformance]


def run(n_examples: int) -> tuple[Counter[int], list[str]]:
    """Ask every operation `n_examples` times with valid values, and as often with others.

    Returns the statuses, and what was wrong, one text an operation.
    """
    served, clip = app("Hi."), wav(0.3)
    statuses, failures = Counter[int](), list[str]()
    with live(served) as url:
        document = schemathesis.openapi.from_dict(served.openapi())
        for result in document.get_all_operations():
            operation = result.ok()
            if operation.path == "/metrics":
                continue

            def ask(case: Case) -> None:
                if case.media_type == "multipart/form-data" and valid(case):
                    case.body |= {"file": Binary(clip), "model": "mini"}  # any others hide what the rest would do
                response = case.call(base_url=url)
                statuses[response.status_code] += 1
                case.validate_response(response, checks=CHECKS)

            test = settings(
                max_examples=n_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )  # fmt: skip
            for mode in GenerationMode:
                try:
                    test(given(case=operation.as_strategy(mode))(ask))()
                except Unsatisfiable:  # a route without parameters has nothing that could be wrong
                    assert mode is GenerationMode.NEGATIVE
                except (Exception, FailureGroup) as error:
                    name = f"{operation.method.upper()} {operation.path}, {mode.value}"
                    failures.append(f"{name}: {str(error)[:300]}")
    return statuses, failures


def valid(case: Case) -> bool:
    return case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50, help="valid requests of each operation, and others")
    statuses, failures = run(parser.parse_args().examples)
    print("requests by status:", *(f"{status}:{n}" for status, n in sorted(statuses.items())))
    print("\n\n".join(failures) or "no operation failed")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
