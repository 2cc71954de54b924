"""Every knob, typed, the unit in its name. Read from the environment (prefix ``MILLRACE_``) and ``.env``.

The provider's two, ``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``, are read as every OpenAI client reads them. Only
``main`` and ``cli`` import this; every other room is handed the values it needs.
"""

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_MODEL = "openai:gpt-5-mini"
SIMULATED = "simulated"
DEFAULT_DATABASE = "millrace.db"
MEMORY = ":memory:"
REQUESTS_WITH_KEYS = 20

OF_ONE_WORKER = (
    "max_streams_per_user",
    "requests_per_minute",
    "tokens_per_day",
    "cost_per_day_usd",
    "max_readers_per_user",
    "limits_file",
    "disconnect_grace_s",
)
"""What several workers that share nothing cannot hold to, where it was asked for."""


class Settings(BaseSettings):
    """``millrace settings`` prints these with their values. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix="MILLRACE_",
        env_file=".env",
        extra="ignore",
        env_ignore_empty=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    openai_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("openai_api_key", "OPENAI_API_KEY"),
        description="The provider's key. Without one, and without a base URL, the model is simulated.",
    )
    openai_base_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("openai_base_url", "OPENAI_BASE_URL"),
        description="Where the OpenAI wire is spoken: OpenAI by default; vLLM, Ollama, llama.cpp, a gateway.",
    )
    model: str | None = Field(
        default=None,
        description=f"provider:name, as LangChain's init_chat_model takes it. Default: {DEFAULT_MODEL} with a key "
        f"or a base URL, else '{SIMULATED}'.",
    )
    simulated_tokens_per_second: float = Field(
        default=40, ge=0, le=100_000, description="The simulated model's pace; 0 is as fast as it goes."
    )
    agents: Annotated[list[str], NoDecode] = Field(
        default=[], description="The user's own agents, NAME=MODULE:ATTR, separated by spaces or commas."
    )
    config: Path | None = Field(default=None, description="A langgraph.json whose graphs are served too.")
    docs_dir: Path | None = Field(
        default=None, description="The folder that search_documents searches. Default: the project's own docs."
    )
    weather_url: str | None = Field(
        default=None, description="A server with Open-Meteo's API, for its tool. Default: Open-Meteo's public hosts."
    )
    outbox_dir: Path = Field(
        default=Path("outbox"), description="The Maildir into which the approval agent's send_email writes."
    )
    tools_at_once: int = Field(default=8, ge=1, le=1024, description="How many tools of one run may work at once.")
    tool_timeout_s: float = Field(
        default=60, gt=0, description="How long a tool may take that has no time limit of its own."
    )
    tool_output_chars: int = Field(
        default=40_000, ge=100, description="How much of a tool's output the model is given; readers get more."
    )
    tool_attempts: int = Field(
        default=3, ge=1, le=100, description="How often in a row a model may call tools wrongly before the run fails."
    )
    database_url: str | None = Field(
        default=None,
        description="Where threads, rows of runs and paused runs are kept: sqlite:///FILE, or sqlite:// for this "
        f"process's memory. Default: the file {DEFAULT_DATABASE} in the working directory.",
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="Who may use the server: key:user,key:user:2027-01-31 (the day a key ends), or a file with one a "
        "line. Without keys it serves its own machine only.",
    )
    serve_anyone: bool = Field(
        default=False,
        description="Without keys, serve whoever can reach the port: anybody there may spend the provider's money.",
    )
    trusted_proxies: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="Addresses and networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.",
    )
    max_streams_per_user: int = Field(
        default=3, ge=0, le=10_000, description="How many runs of one user may go on at once; 0 is no limit."
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="How many runs a user may start in any 60 s; 0 is no limit. Default: 20 with keys, else 0.",
    )
    tokens_per_day: int = Field(
        default=0, ge=0, le=10**12, description="How many tokens a user may spend in a UTC day; 0 is no limit."
    )
    cost_per_day_usd: float = Field(
        default=0, ge=0, le=10**7, description="How much a user may spend in a UTC day; 0 is no limit."
    )
    max_readers_per_user: int = Field(
        default=64, ge=0, le=1_000_000, description="How many open streams a user may have; 0 is no limit."
    )
    limits_file: Path | None = Field(default=None, description="A TOML file with limits that differ by user.")
    prices_file: Path | None = Field(
        default=None, description="A TOML file with prices of models that the built-in table lacks or has wrong."
    )
    adaptive_max_tokens: bool = Field(
        default=False, description="Bound the answers of users who stop most of theirs early."
    )
    upstream_concurrency: int = Field(
        default=64, ge=1, le=100_000, description="How many model calls may be under way at once, over all users."
    )
    upstream_queue_timeout_s: float = Field(
        default=30, gt=0, le=86_400, description="How long a model call may wait for its turn."
    )
    upstream_queue_max: int = Field(
        default=1024, ge=1, le=1_000_000, description="How many model calls may wait, over all users."
    )
    upstream_queue_max_per_user: int = Field(
        default=64, ge=1, le=1_000_000, description="How many model calls of one user may wait."
    )
    upstream_tokens_per_minute: int = Field(
        default=0, ge=0, le=10**12, description="The provider's bound of tokens a minute; 0: it has none."
    )
    run_timeout_s: float = Field(default=300, gt=0, description="How long a whole run may take.")
    first_token_timeout_s: float = Field(
        default=60, gt=0, description="How long a provider may be silent before the first chunk of a streamed answer."
    )
    token_timeout_s: float = Field(default=30, gt=0, description="How long it may be silent between two chunks.")
    heartbeat_s: float = Field(
        default=5, gt=0, description="An SSE comment (on WebSocket a ping) after that much silence."
    )
    send_timeout_s: float = Field(default=30, gt=0, description="A reader that takes no byte for that long is dropped.")
    subscriber_max_events: int = Field(
        default=1024, ge=1, description="How many events a reader may lag before it is told of a gap."
    )
    subscriber_max_bytes: int = Field(
        default=1024 * 1024, ge=1024, description="How many bytes a reader may lag before it is told of a gap."
    )
    run_retention_s: float = Field(default=600, ge=1, description="How long a finished run stays readable.")
    run_max_bytes: int = Field(default=8 * 1024 * 1024, ge=64 * 1024, description="How much one run's log holds.")
    disconnect_grace_s: float = Field(
        default=0, ge=0, description="How long a run goes on without a reader, where the run does not say itself."
    )
    pause_timeout_s: float = Field(default=600, gt=0, description="A pause that lasts longer ends as cancelled.")
    drain_grace_s: float = Field(
        default=20, ge=0, description="How long runs may go on after SIGTERM before they are cancelled."
    )
    sync_threads: int = Field(
        default=64, ge=1, le=4096, description="Threads for synchronous nodes and tools, over all runs."
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="How many processes serve the port. They share nothing: what one does not know of is refused.",
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default=[], description="Other origins whose pages may use this server, as https://host, separated by commas."
    )
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024, description="Larger request bodies are refused.")
    strict: bool = Field(
        default=False, description="Check every event's order; an illegal one fails its run. For tests and debugging."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="console, or json: one object a line."
    )
    log_prompts: bool = Field(
        default=False, description="Write what users ask and what is answered into the log and the spans."
    )
    otel: bool = Field(
        default=False,
        description="Send spans of runs and model calls to where OTEL_EXPORTER_OTLP_ENDPOINT says. Needs the extra "
        "millrace[otel].",
    )

    @field_validator("agents", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _sqlite(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("sqlite://"):
            raise ValueError("only sqlite:///FILE and sqlite:// are known")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for one in value:
            try:
                ip_network(one)
            except ValueError as error:
                raise ValueError(f"{one!r} is neither an address nor a network ({error})") from None
        return value

    @model_validator(mode="after")
    def _held_to(self) -> Self:
        """Refuse what was asked for and would not be so."""
        if self.workers > 1:
            asked = [name for name in OF_ONE_WORKER if name in self.model_fields_set and getattr(self, name)]
            if self.database_url is not None and self.database_path() != MEMORY:
                asked.append("database_url")
            if asked:
                names = ", ".join(f"MILLRACE_{name.upper()}" for name in asked)
                raise ValueError(
                    f"{self.workers} workers share nothing, so they cannot hold to {names}; take one worker"
                )
            if self.upstream_concurrency < self.workers:
                raise ValueError("each worker needs a share of MILLRACE_UPSTREAM_CONCURRENCY; take fewer workers")
        return self

    def share(self, bound: int) -> int:
        """A worker's part of what holds for all of them together; of 0, which is no bound, 0."""
        return max(1, bound // self.workers) if bound else 0

    def requests_a_minute(self) -> int:
        """``requests_per_minute``, or its default."""
        if self.requests_per_minute is None:
            return REQUESTS_WITH_KEYS if self.api_keys is not None else 0
        return self.requests_per_minute

    def database_path(self) -> str:
        """The SQLite file, or ``":memory:"``; a file belongs to one process."""
        if self.database_url is None:
            return DEFAULT_DATABASE if self.workers == 1 else MEMORY
        path = self.database_url.removeprefix("sqlite://").removeprefix("/")
        return path or MEMORY

    def chosen_model(self) -> str:
        """``provider:name``, or ``simulated``."""
        if self.model:
            return self.model
        return DEFAULT_MODEL if self.openai_api_key or self.openai_base_url else SIMULATED
