"""A stand-in on loopback for the service that the client talks to: plays an agent from a script, keeps all requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

OURS = "toolu_kit_"  # tool calls of the script, so that they are known among others


@dataclass(frozen=True)
class Call:
    """A tool call of the scripted agent.

    Args:
        tool: its name, such as "Bash".
        arguments: of the tool.
    """

    tool: str
    arguments: dict[str, Any]


def bash(command: str) -> Call:
    """Run a shell command."""
    return Call("Bash", {"command": command, "description": "a step of the script"})


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@dataclass
class Stub:
    """Serves while it is entered.

    Args:
        script: what the agent says and does, one after the other: a text ends its turn, a call goes on.
    """

    script: Sequence[str | Call] = ()
    requests: list[dict[str, Any]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        """Where the client finds it."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def conversations(self) -> list[dict[str, Any]]:
        """The requests of the agent itself: side requests, for a title or a warm-up, have no tools."""
        return [request for request in self.requests if request.get("tools")]

    @property
    def prompt(self) -> str:
        """All text of the first request of the agent that came from the user: the expanded command."""
        return "\n".join(self.user_texts(self.conversations[0]))

    @property
    def system(self) -> str:
        """The system prompt of the first request, as one text."""
        system = self.conversations[0].get("system", "")
        return system if isinstance(system, str) else "\n".join(block["text"] for block in system)

    @staticmethod
    def user_texts(request: dict[str, Any]) -> list[str]:
        """Every text of the user's messages in a request."""
        messages = [message for message in request["messages"] if message["role"] != "assistant"]
        return [block["text"] for message in messages for block in _blocks(message) if block["type"] == "text"]

    @property
    def results(self) -> list[str]:
        """What the client really answered to each call of the script, in order."""
        return [text for _, text in self._results()]

    @property
    def failed(self) -> list[bool]:
        """Whether it was an error, for each call of the script."""
        return [is_error for is_error, _ in self._results()]

    def _results(self) -> Iterator[tuple[bool, str]]:
        longest = max(self.conversations, key=lambda request: len(request["messages"]))
        for message in longest["messages"]:
            for block in _blocks(message):
                if block["type"] == "tool_result" and block["tool_use_id"].startswith(OURS):
                    content = block.get("content", "")
                    text = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)
                    yield bool(block.get("is_error")), text

    def reply(self, request: dict[str, Any]) -> str | Call:
        """The next step of the script: as many as the conversation already holds have been played."""
        if not request.get("tools"):
            return "OK"
        played = sum(message["role"] == "assistant" for message in request["messages"])
        return self.script[played] if played < len(self.script) else "OK"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._send(200, "text/plain", b"")

            def do_GET(self) -> None:
                stub.unexpected.append(f"GET {self.path}")
                self._send(404, "text/plain", b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                path = self.path.partition("?")[0]
                if path != "/v1/messages":
                    if path != "/v1/messages/count_tokens":
                        stub.unexpected.append(f"POST {self.path}")
                    self._send(404, "text/plain", b"")
                    return
                request = json.loads(body)
                stub.requests.append(request)
                reply = stub.reply(request)
                if request.get("stream"):
                    self._send(200, "text/event-stream", b"".join(_events(request, reply)))
                else:
                    self._send(200, "application/json", json.dumps(_message(request, reply)).encode())

            def _send(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


def _block(request: dict[str, Any], reply: str | Call) -> dict[str, Any]:
    if isinstance(reply, str):
        return {"type": "text", "text": reply}
    return {"type": "tool_use", "id": f"{OURS}{len(request['messages'])}", "name": reply.tool, "input": reply.arguments}


def _message(request: dict[str, Any], reply: str | Call) -> dict[str, Any]:
    return {
        "id": f"msg_{len(request['messages'])}",
        "type": "message",
        "role": "assistant",
        "model": request["model"],
        "content": [_block(request, reply)],
        "stop_reason": "end_turn" if isinstance(reply, str) else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def _events(request: dict[str, Any], reply: str | Call) -> Iterator[bytes]:
    """The message as the service streams it."""
    message = _message(request, reply)
    block, stop = message["content"][0], message["stop_reason"]
    if isinstance(reply, str):
        empty, delta = block | {"text": ""}, {"type": "text_delta", "text": reply}
    else:
        empty, delta = block | {"input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(reply.arguments)}
    for event in (
        {"type": "message_start", "message": message | {"content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
