"""A small OpenAI-compatible server around a model, and ways in which such servers misbehave.

``python -m tests.evaluate.api_server FOLDER`` serves a checkpoint by hand. Chat messages are put to
the model as they are, so that its rows can be compared with those of the same model run here.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from forge.runtime.any_model import LoadedModel, load_any

Reply = tuple[int, bytes]
Json = dict[str, object]


@dataclass
class Served:
    """What a server does.

    Attributes:
        loaded: The model.
        disturb: Looks at the number of a request and its path, and may answer in its place.
        requests: All paths that were asked.
        keys: Authorization headers that came.
    """

    loaded: LoadedModel | None
    disturb: Callable[[int, str], Reply | None] = lambda number, path: None
    requests: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: Json) -> Json:
        """Answer a well-formed request."""
        if path.endswith("/chat/completions"):
            (message,) = body["messages"]  # type: ignore[misc]
            return self._chat(str(message["content"]), body)
        prompts = body["prompt"]
        texts = prompts if isinstance(prompts, list) else [prompts]
        choices = [{"index": n, **self._completion(text, body)} for n, text in enumerate(texts)]
        # Servers may answer in any order.
        return {"object": "text_completion", "choices": choices[::-1]}

    def _completion(self, text: str, body: Json) -> Json:
        if not body.get("echo"):
            written, _ = self._write(text, int(body["max_tokens"]))  # type: ignore[call-overload]
            return {"text": written, "finish_reason": "length"}
        assert self.loaded is not None
        encoded = self.loaded.tokenizer(text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        log_TV = self._log_probabilities(ids)
        likeliest = int(log_TV[-1].argmax())
        decode = self.loaded.tokenizer.decode
        token_logprobs: list[float | None] = [None]
        top: list[dict[str, float] | None] = [None]
        for place in range(1, len(ids) + 1):
            token = ids[place] if place < len(ids) else likeliest
            token_logprobs.append(float(log_TV[place - 1, token]))
            values, tokens = log_TV[place - 1].topk(int(body["logprobs"]))  # type: ignore[call-overload]
            top.append({decode([int(t)]): float(v) for v, t in zip(values, tokens, strict=True)})
        return {
            "text": text + decode([likeliest]),
            "logprobs": {
                "tokens": [*(decode([token]) for token in ids), decode([likeliest])],
                "token_logprobs": token_logprobs,
                "top_logprobs": top,
                "text_offset": [*(start for start, _ in offsets), len(text)],
            },
        }

    def _chat(self, text: str, body: Json) -> Json:
        assert self.loaded is not None
        limit = int(body["max_tokens"])  # type: ignore[call-overload]
        written, count = self._write(text, limit)
        choice: Json = {"index": 0, "message": {"role": "assistant", "content": written}}
        if body.get("logprobs"):
            log_V = self._log_probabilities(self.loaded.tokenizer(text)["input_ids"])[-1]
            values, tokens = log_V.topk(int(body["top_logprobs"]))  # type: ignore[call-overload]
            listed = [
                {"token": self.loaded.tokenizer.decode([int(t)]), "logprob": float(v)}
                for v, t in zip(values, tokens, strict=True)
            ]
            choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
        return {"choices": [choice], "usage": {"completion_tokens": count}}

    def _write(self, text: str, limit: int) -> tuple[str, int]:
        assert self.loaded is not None
        ids = list(self.loaded.tokenizer(text)["input_ids"])
        start = len(ids)
        for _ in range(limit):
            ids.append(int(self._log_probabilities(ids)[-1].argmax()))
            if ids[-1] == self.loaded.tokenizer.eos_token_id:
                ids.pop()
                break
        return self.loaded.tokenizer.decode(ids[start:]), len(ids) - start

    @torch.no_grad()
    def _log_probabilities(self, ids: list[int]) -> torch.Tensor:
        assert self.loaded is not None
        with self.lock:
            logits = self.loaded.model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits.float().log_softmax(-1)


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with served.lock:
                served.requests.append(self.path)
                served.keys.append(self.headers.get("Authorization"))
                number = len(served.requests)
            reply = served.disturb(number, self.path)
            if reply is None:
                reply = 200, json.dumps(served.answer(self.path, json.loads(data))).encode()
            status, content = reply
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", "0")
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), BrokenPipeError | ConnectionResetError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def serving(served: Served, *, port: int = 0) -> Iterator[str]:
    """Serve on 127.0.0.1, and yield the URL where paths begin."""
    server = _Server(("127.0.0.1", port), _handler(served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with serving(Served(load_any(sys.argv[1])), port=int((*sys.argv, "8011")[2])) as address:
        print(f"serving {sys.argv[1]} at {address}; Ctrl-C ends it", flush=True)
        threading.Event().wait()
