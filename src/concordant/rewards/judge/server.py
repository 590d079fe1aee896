"""Talking to a server of the OpenAI protocol: one question, one reply, and which errors may pass."""

import asyncio
import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from concordant.core.errors import RewardError
from concordant.rewards.judge.reply import Abstained
from concordant.scoring.reward import TransientError

MAX_BYTES = 1 << 20
"""Longest answer of a server that is read."""
_PASSING = (408, 409, 425, 429)
_CLIENTS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], Any]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a judge's model is served, and how it is asked. Holds no secret: the key stays in the environment."""

    model: str
    """Name of the model, as the server knows it."""
    base_url: str = "http://localhost:8000/v1"
    """Address of the server. Anything but a local one receives the prompts and completions."""
    api_key_env: str = ""
    """NAME of the environment variable that holds the key; empty for servers that need none."""
    seconds: float = 30.0
    """Longest wait for one reply."""
    max_tokens: int = 512
    """Longest reply; one that is cut off is an abstention."""
    seed: int = 0
    """Sent with temperature 0; equal questions then get equal replies where the server honours it."""
    json_mode: bool = False
    """Whether to ask the server for JSON (`response_format`); not every server knows that."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            bare = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"  # without what may be secret in it
            raise RewardError(f"base_url must be an address such as http://localhost:8000/v1, got {bare!r}")
        if parts.username or parts.password or parts.query:
            raise RewardError(
                "base_url must not carry user, password or query; api_key_env names the key's variable"
            )
        if not self.seconds > 0 or self.max_tokens < 1:
            raise RewardError(
                f"seconds and max_tokens must be positive, got {self.seconds} and {self.max_tokens}"
            )

    @property
    def __concordant_reward__(self) -> dict[str, Any]:
        """Options for the engine: its clock runs a little longer than ours, and the cache knows model and prompt."""
        return {"timeout": self.seconds + 5.0, "version": self.version}

    @property
    def version(self) -> str:
        """What a verdict depends on besides the texts."""
        return self.model

    async def ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text of the reply.

        Raises:
            TransientError: the server was busy, broken, slow or not reached; another attempt may succeed.
            Abstained: it answered, but with no complete reply.
            RewardError: it refused, or cannot be asked like this.
        """
        openai = _library()
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._body(messages)
        except TimeoutError:
            raise TransientError(f"the judge's server did not reply within {self.seconds:g} s") from None
        except openai.APIStatusError as error:  # its message may repeat parts of the key
            if error.status_code in _PASSING or error.status_code >= 500:
                raise TransientError(f"the judge's server answered HTTP {error.status_code}") from None
            raise RewardError(f"the judge's server answered HTTP {error.status_code}") from None
        except openai.APIConnectionError as error:
            raise TransientError(f"no connection to the judge's server: {type(error).__name__}") from None
        except OSError as error:
            raise TransientError(f"the connection broke: {type(error).__name__}") from None
        return _content(body)

    async def _body(self, messages: Sequence[Mapping[str, str]]) -> bytes:
        """Ask, and read the answer up to a limit."""
        create = _client(self.base_url, self.api_key_env).chat.completions.with_streaming_response.create
        extra = {"response_format": {"type": "json_object"}} if self.json_mode else {}
        options = {"max_tokens": self.max_tokens, "temperature": 0.0, "seed": self.seed, **extra}
        body = bytearray()
        options |= {"model": self.model, "messages": list(messages), "timeout": self.seconds}
        async with create(**options) as response:
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Abstained("the server's answer is larger than 1 MiB")
        return bytes(body)


def _content(body: bytes) -> str:
    """The text of the first choice."""
    try:
        choice = json.loads(body)["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Abstained("the server's answer is no chat completion") from None
    if finish not in ("stop", None):
        raise Abstained(f"the reply is incomplete: finish_reason {str(finish)[:20]!r}")
    if not isinstance(content, str) or not content.strip():
        raise Abstained("the reply is empty")
    return content


def _client(base_url: str, api_key_env: str) -> Any:
    """The client of this event loop; connections are kept between questions."""
    clients = _CLIENTS.setdefault(asyncio.get_running_loop(), {})
    if (base_url, api_key_env) not in clients:
        clients[base_url, api_key_env] = _connect(base_url, api_key_env)
    return clients[base_url, api_key_env]


def _connect(base_url: str, api_key_env: str) -> Any:
    openai = _library()
    key = (
        os.environ.get(api_key_env) if api_key_env else "none"
    )  # without one the client takes OPENAI_API_KEY
    if not key:
        raise RewardError(f"the environment variable {api_key_env}, named in api_key_env, is not set")
    # A redirect would take prompts and key elsewhere, and a proxy has no business with a server on this machine.
    http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not _is_local(base_url))
    client = openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=http)
    client.organization = client.project = None  # it found these in the environment; not for every server
    return client


def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _library() -> Any:
    try:
        import openai
    except ImportError:
        raise RewardError("an LLM judge needs the openai client: pip install 'concordant[judge]'") from None
    return openai
