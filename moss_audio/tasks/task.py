"""A task as a value: its name, its options, and the function behind it, which is imported when it is first called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from moss_audio.tasks.options import NoOptions, read_options, schema_of

if TYPE_CHECKING:
    from moss_audio.inference.engine import AudioSource, MossAudio
    from moss_audio.inference.sampling import SamplingParams
    from moss_audio.tasks.result import Result

R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class Task(Generic[R]):
    """Something a model can be asked to do: `events(model, "street.wav", gap=1.0)`.

    `home` is where its function is, as `module:function` in this package; it takes a `Listener`, samples and `options`.
    """

    name: str
    summary: str
    home: str
    options: type[Any] = NoOptions

    def __call__(
        self,
        model: MossAudio,
        audio: AudioSource,
        *,
        params: SamplingParams | None = None,
        cancelled: Callable[[], bool] | None = None,
        **options: Any,
    ) -> R:
        """Run the task on one recording.

        `params` is how the model chooses words, greedy by default; `cancelled` is asked before every token, and ends
        the task with what it has. Raises `PromptError` for an option that is not valid and `AudioError` for a
        recording that cannot be used.
        """
        from moss_audio.audio import load_audio
        from moss_audio.inference.sampling import SamplingParams
        from moss_audio.tasks.listener import Listener

        chosen = read_options(self.options, options)
        samples = audio if hasattr(audio, "dtype") else load_audio(audio)  # type: ignore[arg-type]
        listener = Listener(model, params or SamplingParams(), cancelled or (lambda: False))
        module, _, function = self.home.partition(":")
        run: Callable[..., R] = getattr(import_module(f"moss_audio.tasks.{module}"), function)
        return run(listener, samples, chosen)

    def schema(self) -> Mapping[str, Any]:
        """The JSON Schema of the options, for a server's body or an agent's tool."""
        return schema_of(self.options)
