"""The tools for agents, through the official client: in this process with a made-up model, and as a command."""

from __future__ import annotations

import asyncio
import sys

import pytest
from conftest import ROOT
from mcp import Client, StdioServerParameters
from servers import model, wav

from moss_audio.server.agents import build
from moss_audio.tasks import TASKS


def called(folder, *calls):
    async def run():
        async with Client(build(model("[0.4]dog barking[1.2]"), [folder])) as client:
            tools = (await client.list_tools()).tools
            return tools, [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(run())


def test_every_task_is_a_tool(tmp_path):
    (tmp_path / "street.wav").write_bytes(wav())
    tools, results = called(tmp_path, ("events", {"audio": "street.wav", "gap": 0.1}))
    assert {tool.name for tool in tools} == set(TASKS)
    assert all({"audio"} <= set(tool.input_schema["required"]) and tool.description for tool in tools)
    (result,) = results
    assert not result.is_error and "dog barking" in result.content[0].text
    assert result.structured_content["events"][0]["label"] == "dog barking"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("events", {}, "audio is None"),
        ("events", {"audio": "no.wav"}, "No such file"),
        ("events", {"audio": "/etc/passwd"}, "outside the folders"),
        ("events", {"audio": "link.wav"}, "outside the folders"),
        ("events", {"audio": "text.wav"}, "not audio"),
        ("ask", {"audio": "text.wav"}, "question is missing"),
        ("sing", {"audio": "text.wav"}, "no tool 'sing'"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, name, arguments, message):
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "link.wav").symlink_to("/etc/passwd")
    _, (result,) = called(tmp_path, (name, arguments))
    assert result.is_error and message in result.content[0].text


def test_the_command_transcribes_for_an_agent():
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "moss_audio.cli", "mcp", "--folder", str(ROOT / "examples")]
    )

    async def run():
        async with Client(command) as client:
            return await client.call_tool("transcribe", {"audio": "speech_woman.ogg"})

    result = asyncio.run(run())
    assert not result.is_error and result.structured_content["text"]
