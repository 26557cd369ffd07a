"""Requests made up from the OpenAPI document, valid and not: no 500, and answers as the document says.

    python -m tests.openapi --examples 50
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from servers import app, live

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance, content_type_conformance]


def run(n_examples: int, seed: int | None = None) -> list[str]:
    """Ask every operation `n_examples` times; returns what was wrong, one line a failing operation."""
    served, failures = app("Hi."), list[str]()
    with live(served) as url:
        document = schemathesis.openapi.from_dict(served.openapi())
        for result in document.get_all_operations():
            operation = result.ok()
            if operation.path == "/metrics":
                continue

            def ask(case: Case) -> None:
                case.validate_response(case.call(base_url=url), checks=CHECKS)

            test = settings(
                max_examples=n_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.generate], derandomize=seed is None,
            )(given(case=operation.as_strategy())(ask))  # fmt: skip
            try:
                test()
            except Exception as error:
                failures.append(f"{operation.method.upper()} {operation.path}: {str(error)[:600]}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50, help="requests of each operation")
    failures = run(parser.parse_args().examples, seed=0)
    print("\n\n".join(failures) or "no operation failed")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
