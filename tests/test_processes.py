"""Training beside itself: the process that makes batches, and several processes that train as one."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moss_audio.model.audio_lm import AudioLM  # noqa: E402
from moss_audio.training.feed import Background  # noqa: E402
from moss_audio.training.loop import Plan, fit, load_weights  # noqa: E402
from moss_audio.training.processes import Processes, processes  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PLAN = Plan(steps=6, warmup=1, lr={"": 0.05}, dev_every=3, log_every=2)


class Line(torch.nn.Module):
    """`used` is fitted by every batch, `odd` only by those whose first number is above a half, `never` by none."""

    def __init__(self) -> None:
        super().__init__()
        self.used = torch.nn.Parameter(torch.tensor([0.5, -0.5, 0.1]))
        self.odd = torch.nn.Parameter(torch.ones(2))
        self.never = torch.nn.Parameter(torch.ones(1))

    def loss(self, rng: np.random.Generator) -> torch.Tensor:
        x = torch.from_numpy(rng.random((5, 3)).astype(np.float32))
        loss = ((x * self.used).sum(1) - x[:, 0]).square().mean()
        return loss + (self.odd * x[0, :2]).square().sum() if x[0, 0] > 0.5 else loss


class Counting:
    def next(self, rng: np.random.Generator) -> tuple[int, float]:
        return os.getpid(), float(rng.random())


class Broken:
    def next(self, rng: np.random.Generator) -> int:
        raise ValueError("no clips")


def test_batches_come_from_another_process_that_ends_with_the_run():
    with Background(Counting(), seed=1) as feed:
        (pid, one), (_, two) = feed.next(np.random.default_rng(0)), feed.next(np.random.default_rng(0))
        assert pid != os.getpid() and one != two
        with Background(Counting(), seed=1) as again:
            assert again.next(np.random.default_rng(0))[1] == one
    with pytest.raises(ProcessLookupError):  # a zombie would still take signal 0
        os.kill(pid, 0)
    assert not multiprocessing.active_children()
    feed.close()


def test_a_feed_that_was_never_used_closes():
    Background(Counting(), seed=1).close()


def test_a_feed_that_breaks_says_so(capfd):
    with Background(Broken(), seed=1) as feed, pytest.raises(RuntimeError, match="batches ended"):
        feed.next(np.random.default_rng(0))
    assert "no clips" in capfd.readouterr().err


def test_batches_end_when_their_run_is_killed():
    code = (
        "import sys, time; sys.path.insert(0, 'tests'); import numpy as np; from test_processes import *;"
        "print(Background(Counting(), 1, ahead=1).next(np.random.default_rng(0))[0], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
        run.wait()
        deadline = time.monotonic() + 30
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_process_needs_no_launcher(monkeypatch):
    processes.cache_clear()
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert processes() == Processes(rank=0, count=1, device="cpu")
    assert Processes().average([torch.nn.Parameter(torch.ones(1))], torch.tensor(2.0), 3) == (2.0, 3)


def test_several_processes_need_accelerate(monkeypatch):
    processes.cache_clear()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RuntimeError, match=r"moss-audio\[train\]"):
        processes()


def test_a_recipe_that_trains_nothing_says_so(tmp_path):
    plan = Plan(steps=1, warmup=1, lr={"nonsense": 1.0}, dev_every=1)
    with pytest.raises(ValueError, match="nonsense"):
        fit(Line(), plan, lambda rng: (torch.zeros(()), 1), dict, tmp_path / "run.safetensors")


def train_line(folder: Path) -> None:
    """What each of the launched processes does."""
    model, measured = Line(), folder / f"dev{processes().rank}"

    def dev() -> dict[str, int]:
        measured.write_text("measured")
        return {"measured": 1}

    fit(model, PLAN, lambda rng: (model.loss(rng), 5), dev, folder / "run.safetensors")
    np.save(folder / f"used{processes().rank}.npy", model.used.detach().numpy())


def launch(folder: Path, job: str, **environment: str) -> None:
    """Run the function `job` of this file in two processes, as `accelerate launch` would."""
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import sys; sys.path.insert(0, 'tests'); from test_processes import *; {job}(Path(sys.argv[1]))"
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launched |= {"OMP_NUM_THREADS": "1"} | environment
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, folder], cwd=ROOT, text=True,
            env=os.environ | launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [run.communicate(timeout=400)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said


def losses(state: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in state.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.slow  # two more interpreters with torch: 4 s alone, a minute where every core is taken
def test_two_processes_train_as_one_that_sees_both_batches(tmp_path):
    launch(tmp_path, "train_line")
    model, alone = Line(), tmp_path / "alone.safetensors"
    other = np.random.default_rng([PLAN.seed, 0, 1])
    fit(model, PLAN, lambda rng: ((model.loss(rng) + model.loss(other)) / 2, 10), lambda: {"measured": 1}, alone)
    together = Line()
    load_weights(tmp_path / "run.safetensors", together)
    for (name, one), two in zip(model.named_parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    np.testing.assert_array_equal(np.load(tmp_path / "used0.npy"), np.load(tmp_path / "used1.npy"))
    assert torch.equal(together.never, torch.ones(1)) and not torch.equal(together.odd, torch.ones(2))

    logs = [
        [json.loads(line) for line in state.with_suffix(".jsonl").read_text().splitlines()]
        for state in (alone, tmp_path / "run.safetensors")
    ]
    assert [(line["step"], line.get("measured")) for line in logs[1]] == [(2, None), (3, 1), (4, None), (6, 1)]
    np.testing.assert_allclose(*([line["loss"] for line in log] for log in logs), atol=2e-4)
    assert (tmp_path / "dev0").exists() and not (tmp_path / "dev1").exists()


def tiny() -> torch.nn.Module:
    """The network of the fixture."""
    return AudioLM.load(ROOT / "tests/data/moss-tiny").train()


def next_token_loss(model: torch.nn.Module, rng: np.random.Generator) -> torch.Tensor:
    ids = torch.from_numpy(rng.integers(0, 200, (2, 12)))
    logits = model.decode(ids)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def batch_of(model: torch.nn.Module, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
    return next_token_loss(model, rng), 2


TINY_PLAN = Plan(steps=4, warmup=1, lr={"language_model": 0.01}, dev_every=2, log_every=1)


def train_tiny(folder: Path) -> None:
    """Two steps, and two more in a model that was sharded anew: weights, moments and losses go on."""
    torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: False  # bfloat16 rounds sums of two halves in its own way
    for steps in (2, 4):
        model, run = tiny(), processes()
        assert run.sharded
        run.shard(model.language_model.layers)
        held = sum(p.to_local().numel() for p in model.language_model.layers.parameters())
        assert held < 0.6 * sum(p.numel() for p in model.language_model.layers.parameters())
        fit(
            model,
            replace(TINY_PLAN, steps=steps),
            partial(batch_of, model),
            lambda: {"dev": next_token_loss(model, np.random.default_rng(9)).item()},  # noqa: B023
            folder / "run.safetensors",
            resume=True,
        )
    run.unshard(model.language_model.layers)
    np.save(folder / f"down{run.rank}.npy", model.language_model.layers[-1].mlp.down_proj.weight.detach().numpy())


@pytest.mark.slow
def test_layers_sharded_over_two_processes_train_as_whole_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    launch(tmp_path, "train_tiny", ACCELERATE_USE_FSDP="true")
    model, alone = tiny(), tmp_path / "alone.safetensors"
    for steps in (2, 4):
        other = np.random.default_rng([TINY_PLAN.seed, steps - 2, 1])
        both = lambda rng: ((next_token_loss(model, rng) + next_token_loss(model, other)) / 2, 4)  # noqa: B023, E731
        fit(model, replace(TINY_PLAN, steps=steps), both, lambda: {"dev": 0}, alone, resume=True)
    np.testing.assert_allclose(losses(tmp_path / "run.safetensors"), losses(alone), atol=2e-4)
    together = tiny()
    load_weights(tmp_path / "run.safetensors", together)
    for (name, one), two in zip(model.named_parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name, atol=1e-4, rtol=1e-4)
    last = together.language_model.layers[-1].mlp.down_proj.weight.detach().numpy()
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"down{rank}.npy"), last)
