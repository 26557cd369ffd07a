"""What clients send and get, as OpenAI publishes it; what is added to it is said at the field.

Knows shapes and ranges. How much of each a server allows is in `settings`, and checked in `intake`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Finish = Literal["stop", "length"]


class Request(BaseModel):
    """Fields that are not listed are ignored, as OpenAI's clients send more every year; numbers are finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Body(Request):
    """A whole JSON body. JSON can spell lone surrogates, which are no text: nothing behind this has to expect them."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        unread = [value]
        while unread:
            one = unread.pop()
            if isinstance(one, dict):
                unread += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                unread += one
            elif isinstance(one, str) and not one.isascii():
                one.encode()  # UnicodeEncodeError is a ValueError, and as such an invalid value
        return value


class Reply(BaseModel):
    """What the server sends."""

    model_config = ConfigDict(extra="forbid")


# --- chat -------------------------------------------------------------------------------------------------------------


class TextContent(Request):
    type: Literal["text"]
    text: str


class InputAudio(Request):
    data: str = Field(description="the file in base64, or a data: URL")
    format: str | None = Field(None, max_length=16, description="ignored: the bytes themselves say what they are")


class InputAudioContent(Request):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(Request):
    url: str = Field(description="data:audio/...;base64,... or, where the server allows it, https://...")


class AudioUrlContent(Request):
    type: Literal["audio_url"]
    audio_url: AudioUrl


Content = Annotated[TextContent | InputAudioContent | AudioUrlContent, Field(discriminator="type")]


class ChatMessage(Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content]


class JsonSchema(Request):
    name: str = Field("answer", max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Request):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is needed with type json_schema, and only there")
        return self


class StreamOptions(Request):
    include_usage: bool = False


class ChatRequest(Body):
    """`top_k` and `repetition_penalty` are additions, as vLLM has them."""

    model: str | None = Field(None, max_length=256, description="the server's model where left out")
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(None, max_length=0, description="not supported: leave it out")
    functions: list[Any] | None = Field(None, max_length=0, description="not supported: leave it out")
    logprobs: Literal[False] | None = Field(None, description="not supported: leave it out")
    modalities: list[Literal["text"]] | None = Field(None, description="answers are text")
    presence_penalty: Literal[0] | None = Field(None, description="not supported; see repetition_penalty")
    frequency_penalty: Literal[0] | None = Field(None, description="not supported; see repetition_penalty")


class PromptDetails(Reply):
    audio_tokens: int = 0
    cached_tokens: int = 0


class ChatUsage(Reply):
    """`audio_seconds` is an addition: what was heard."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    audio_seconds: float


class AssistantMessage(Reply):
    """`reasoning_content` is what a thinking model wrote before its answer, as vLLM and DeepSeek name it."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None = None
    refusal: None = None


class Choice(Reply):
    index: int
    message: AssistantMessage
    finish_reason: Finish
    logprobs: None = None


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class Delta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(Reply):
    index: int
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: None = None


class ChatChunk(Reply):
    """One `data:` line of a streamed answer; the last one before `[DONE]` has the usage where it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None


# --- transcripts ------------------------------------------------------------------------------------------------------

TranscriptFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]


class InputDetails(Reply):
    audio_tokens: int
    text_tokens: int


class TokenUsage(Reply):
    type: Literal["tokens"] = "tokens"
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: InputDetails


class DurationUsage(Reply):
    type: Literal["duration"] = "duration"
    seconds: float


class Transcription(Reply):
    """`finish_reason` is an addition: `length` where the text was cut."""

    text: str
    usage: TokenUsage
    finish_reason: Finish


class TranscriptWord(Reply):
    word: str
    start: float
    end: float


class TranscriptSegment(Reply):
    """Of OpenAI's numbers about Whisper's windows only `avg_logprob` has a counterpart here; the others are 0."""

    id: int
    start: float
    end: float
    text: str
    seek: int = 0
    tokens: list[int] = []
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0


class VerboseTranscription(Reply):
    """`finish_reason` is an addition: `length` where the text was cut."""

    task: Literal["transcribe"] = "transcribe"
    language: str
    duration: float
    text: str
    segments: list[TranscriptSegment] | None = None
    words: list[TranscriptWord] | None = None
    finish_reason: Finish
    usage: DurationUsage


class TranscriptDelta(Reply):
    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TranscriptSegmentDone(Reply):
    """Sent for every sentence as it is known; `words` is an addition."""

    type: Literal["transcript.text.segment"] = "transcript.text.segment"
    id: str
    start: float
    end: float
    text: str
    speaker: str = ""
    words: list[TranscriptWord] = []


class TranscriptProgress(Reply):
    """An addition: how much of the recording has been read."""

    type: Literal["transcript.progress"] = "transcript.progress"
    seconds: float
    duration: float


class TranscriptDone(Reply):
    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TokenUsage
    finish_reason: Finish


# --- models and errors ------------------------------------------------------------------------------------------------


class ModelCard(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "moss-audio"


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(Reply):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Reply):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "error": {
                    "message": "temperature: Input should be less than or equal to 5",
                    "type": "invalid_request_error",
                    "param": "temperature",
                    "code": "invalid_value",
                }
            }
        },
    )

    error: ErrorDetail


class Health(Reply):
    status: Literal["ok", "starting", "stopping"]
