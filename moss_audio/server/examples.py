"""Examples in the OpenAPI document: a request of every route, and what the embedded model answered to it.

They are in `examples.json`, by method and path; `docs/make_openapi.py` writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).with_name("examples.json")

FILE = "T2dnUwACAAAAAAAA..."
"""Stands for a whole file in base64."""


def add_examples(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with its examples, put into the bodies of requests and of answers of status 200."""
    for name, example in json.loads(EXAMPLES.read_text(encoding="utf-8")).items():
        method, path = name.split(" ", 1)
        operation = document["paths"][path][method.lower()]
        operation["responses"]["200"]["content"]["application/json"]["example"] = example["response"]
        for body in operation.get("requestBody", {"content": {}})["content"].values():
            body["example"] = example["request"]
    return document
