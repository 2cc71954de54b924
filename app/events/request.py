"""What a run is asked to do, whatever protocol asked. Validated once, when it is made."""

from typing import Annotated, Any, Literal

import msgspec

MAX_THREAD_ID = 255
"""Characters."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
OnDisconnect = Literal["cancel", "continue"]


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /agents/{agent}/runs``.

    ``input`` is a text, ``{"messages": […]}``, or an object of the agent's input schema. Times are in seconds.
    A null ``on_disconnect`` means: cancel when the start itself streams, continue when it does not. ``timeout_s`` is
    for the whole run; the other two are for the provider's silence, before its first token and between two.
    """

    input: Any = None
    thread_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_THREAD_ID)] | None = None
    resume: Any = None
    on_disconnect: OnDisconnect | None = None
    disconnect_grace_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None
    pause_after: Literal["paragraph"] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    timeout_s: Seconds | None = None
    first_token_timeout_s: Seconds | None = None
    token_timeout_s: Seconds | None = None
    multitask_strategy: Literal["reject", "enqueue", "interrupt"] = "reject"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
