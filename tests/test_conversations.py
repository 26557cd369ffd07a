"""Conversations on disk: what is written is read, in shards, from any place on; what is wrong is named."""

import json

import numpy as np
import pytest
from toys import tiny_config, tiny_processor, write_tones

from moss_audio.data.conversations import Conversation, Place, Turn, files_of, places, read, write
from moss_audio.errors import PromptError
from moss_audio.messages import AudioPart, TextPart


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(7):
        write_tones(tmp_path / f"clips/{i}.wav", 200 + 50 * i, seconds=0.5)
    conversations = [
        Conversation.about(f"clips/{i}.wav", ("What is heard?", f"Tone {i}."), ("Sure?", "Yes."), truth={"hertz": i})
        for i in range(7)
    ]
    assert write(tmp_path / "talk.jsonl", conversations[:4]) == 4
    write(tmp_path / "talk.jsonl", conversations[4:])
    return tmp_path


def answers(found):
    return [conversation.turns[2].content for conversation, _ in found]


def test_the_form_is_that_of_released_fine_tuning_code(folder):
    first = json.loads((folder / "talk.jsonl").read_text().splitlines()[0])
    assert first["conversation"][:3] == [
        {"role": "user", "message_type": "audio", "content": "clips/0.wav"},
        {"role": "user", "message_type": "text", "content": "What is heard?"},
        {"role": "assistant", "message_type": "text", "content": "Tone 0."},
    ]
    assert first["truth"] == {"hertz": 0}


def test_messages(folder):
    conversation, _ = next(read(folder / "talk.jsonl"))
    messages = conversation.messages()
    assert [message.role for message in messages] == ["user", "assistant", "user", "assistant"]
    assert isinstance(messages[0].parts[0], AudioPart) and len(messages[0].parts[0].samples) == 8000
    assert messages[0].parts[1:] == (TextPart("What is heard?"),)


def test_shards_are_the_whole_and_any_place_is_a_beginning(folder):
    whole = answers(read(folder / "talk.jsonl"))
    shards = [answers(read(folder / "talk.jsonl", shard=i, n_shards=3)) for i in range(3)]
    assert sorted(answer for shard in shards for answer in shard) == sorted(whole) == [f"Tone {i}." for i in range(7)]
    for i in range(3):
        found = list(read(folder / "talk.jsonl", shard=i, n_shards=3))
        rest = read(folder / "talk.jsonl", found[0][1], i, 3)
        assert answers(found[:1]) + answers(rest) == shards[i]
    with pytest.raises(PromptError, match="shard 3 of 3; valid: 0 to 2"):
        next(read(folder / "talk.jsonl", shard=3, n_shards=3))


def test_a_folder_is_its_files_and_lines_are_found_at_random(folder, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    lines = (folder / "talk.jsonl").read_text().splitlines(keepends=True)
    (parts / "b.jsonl").write_text("".join(lines[3:]))
    (parts / "a.jsonl").write_text("\n" + "".join(lines[:3]).rstrip("\n"))
    assert [file.name for file in files_of(parts)] == ["a.jsonl", "b.jsonl"]
    assert answers(read(parts)) == [f"Tone {i}." for i in range(7)]
    drawn = [next(read(parts, Place(*at))) for at in places(parts).tolist()]
    assert answers(drawn) == [f"Tone {i}." for i in range(7)]
    assert places(parts)[0].tolist() == [0, 1, 1]
    with pytest.raises(PromptError, match="no conversations there"):
        files_of(tmp_path / "none")


USER, ANSWER = {"role": "user", "message_type": "text", "content": "?"}, {"role": "assistant", "message_type": "text"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "talk.jsonl:2: not JSON"),
        ('{"messages": []}', "talk.jsonl:2: a line is an object with a list `conversation`"),
        (json.dumps({"conversation": [USER], "lang": "en"}), "talk.jsonl:2: key 'lang'; valid: conversation, truth"),
        (json.dumps({"conversation": [USER, ANSWER]}), r"talk.jsonl:2: conversation\[1\]: key 'content' is missing"),
        (json.dumps({"conversation": [USER | {"n": 1}]}), r"2: conversation\[0\]: key 'n' is unknown"),
        (json.dumps({"conversation": [USER | {"role": "bot"}]}), "role 'bot'; valid: system, user, assistant"),
        (json.dumps({"conversation": [USER | {"message_type": "video"}]}), "message_type 'video' of user"),
        (json.dumps({"conversation": [USER, ANSWER | {"message_type": "audio", "content": "a"}]}), "'audio' of assist"),
        (json.dumps({"conversation": [USER | {"content": ""}]}), "content ''; valid"),
        (json.dumps({"conversation": [USER]}), r"the roles are \['user'\]; valid: at most one system,"),
        (json.dumps({"conversation": [USER], "truth": 1}), "`truth` is not an object"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_key(tmp_path, line, message):
    good = json.dumps({"conversation": [USER, ANSWER | {"content": ""}], "task_type": "understanding"})
    (tmp_path / "talk.jsonl").write_text(f"{good}\n{line}\n")
    found = read(tmp_path / "talk.jsonl")
    assert next(found)[0].turns[1].content == ""
    with pytest.raises(PromptError, match=message):
        next(found)


def test_training_reads_them(folder, byte_tokenizer):
    torch = pytest.importorskip("torch")
    from moss_audio.model.audio_lm import AudioLM
    from moss_audio.training.align import Reader
    from moss_audio.training.conversations import Conversations, turns_of
    from moss_audio.training.examples import Feed

    chat = Conversation((Turn("user", "text", "Hello"), Turn("assistant", "text", "Hi.")))
    write(folder / "chat.jsonl", [chat])
    sources = [Conversations({"conversations": f"{n}.jsonl", "weight": 1}, folder, 80) for n in ("talk", "chat")]
    rng = np.random.default_rng(0)
    batch = Feed(sources, 400, [], 0.0).next(rng)
    examples = [sources[0].draw(rng, [], 0.0), sources[1].draw(rng, [], 0.0), *batch]
    assert examples[0].mel.shape == (80, 50) and examples[0].more == [("Sure?", "Yes.")]
    assert examples[1].mel is None and examples[1].more == [("Hello", "Hi.")]
    torch.manual_seed(0)
    reader = Reader(AudioLM(tiny_config()), tiny_processor(byte_tokenizer))
    assert torch.isfinite(reader.loss(examples[:2], rng, 0.0))
    two = Conversation((Turn("user", "audio", "a"), Turn("user", "audio", "b"), Turn("assistant", "text", "c")))
    with pytest.raises(PromptError, match="line 3: training reads conversations with at most one clip"):
        turns_of(two, "line 3")
