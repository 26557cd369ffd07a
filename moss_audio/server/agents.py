"""Tools for agents over the Model Context Protocol: each typed task is one, so that a language model gains ears.

Recordings are files of the folders that the user names; nothing else on the machine is read. Needs the extra `mcp`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

import moss_audio
from moss_audio.errors import MossAudioError, PromptError
from moss_audio.tasks import TASKS, Task
from moss_audio.tasks.result import Result

if TYPE_CHECKING:
    from moss_audio.inference.engine import MossAudio

AUDIO: Mapping[str, str] = {"type": "string", "description": "path of an audio or video file"}

INSTRUCTIONS = "Listen to recordings: each tool takes the path of one and answers as text and as JSON."


def tool(task: Task[Any]) -> types.Tool:
    """The tool of a task: its options, and the recording."""
    schema = dict(task.schema())
    properties = {"audio": AUDIO} | schema["properties"]
    schema |= {"properties": properties, "required": ["audio", *schema["required"]]}
    return types.Tool(name=task.name, description=f"From a recording: {task.summary}.", input_schema=schema)


def build(model: MossAudio, folders: Sequence[Path]) -> Server[Any]:
    """A server of `model` whose tools may read what is in `folders`."""
    roots, turn = [folder.resolve() for folder in folders], asyncio.Lock()

    async def list_tools(context: object, params: object) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool(task) for task in TASKS.values()])

    async def call_tool(context: object, params: types.CallToolRequestParams) -> types.CallToolResult:
        options = dict(params.arguments or {})
        try:
            if params.name not in TASKS:
                raise PromptError(f"no tool {params.name!r}; valid: {', '.join(TASKS)}")
            path = find(options.pop("audio", None), roots)
            async with turn:
                result = await _run(model, TASKS[params.name], path, options)
        except (MossAudioError, OSError) as error:
            return types.CallToolResult(content=[types.TextContent(text=str(error))], is_error=True)
        document = json.loads(json.dumps(result.to_dict()))  # plain JSON: tuples become lists
        return types.CallToolResult(content=[types.TextContent(text=result.to_text())], structured_content=document)

    return Server(
        "moss-audio", version=moss_audio.__version__, instructions=INSTRUCTIONS, on_list_tools=list_tools,
        on_call_tool=call_tool,
    )  # fmt: skip


def find(name: object, roots: Sequence[Path]) -> Path:
    """The file of a name, relative to the first folder. Raises `PromptError` for one that is not in any folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise PromptError(f"audio is {name!r}; valid: the path of an audio or video file")
    path = (roots[0] / name).resolve()
    if not any(path.is_relative_to(root) for root in roots):
        raise PromptError(f"{name} is outside the folders that may be read: {', '.join(map(str, roots))}")
    return path


def serve(model: MossAudio, folders: Sequence[Path]) -> None:
    """Talk to one agent over standard input and output until it leaves."""

    async def run() -> None:
        server = build(model, folders)
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    asyncio.run(run())


async def _run(model: MossAudio, task: Task[Any], path: Path, options: dict[str, Any]) -> Result:
    """The result of a task, in a thread; an agent that no longer wants it ends it before its next token."""
    gone = threading.Event()
    try:
        return await asyncio.to_thread(lambda: task(model, str(path), cancelled=gone.is_set, **options))
    finally:
        gone.set()
