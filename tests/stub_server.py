"""A server of the completions protocol in a thread, as honest or as broken as a test wants it."""

import contextlib
import http.server
import json
import threading

import numpy as np

EOS, VOCAB = 2, 50


def fair(body):
    """An answer that depends on the prompt and the seed alone: 1 to max_tokens ids, and any log-probabilities."""
    draw = np.random.default_rng([body["seed"], *body["prompt"]])
    size = int(draw.integers(1, body["max_tokens"] + 3))
    ids = draw.integers(3, VOCAB, size).tolist()
    ids = ids[: body["max_tokens"]] if size > body["max_tokens"] else [*ids[:-1], EOS]
    return ids, (-draw.exponential(size=len(ids))).tolist()


def reply(body, ids, logp, **choice):
    """How vLLM and SGLang put it."""
    told = {"token_logprobs": logp, "tokens": ["x"] * len(ids), "text_offset": [0] * len(ids), "top_logprobs": []}
    made = {"index": 0, "text": "x", "logprobs": told, "token_ids": ids, "prompt_token_ids": body["prompt"]}
    return {"id": "1", "object": "text_completion", "choices": [made | choice]}


class Stub:
    """`behave(body, path, tries)` gives status and content (an object, or bytes) of the reply to the n-th try.

    The first reply waits up to `patience` seconds for a second request.
    """

    def __init__(self, behave=None, patience=0.0):
        self.patience = patience
        self.behave = behave or (lambda body, path, tries: (200, reply(body, *fair(body))))
        self.asked, self.lock, self.flying, self.most = [], threading.Lock(), 0, 0
        self.company = threading.Event()  # set once two requests were under way together

    def answer(self, path, headers, body):
        with self.lock:
            self.asked.append((path, headers, body))
            tries = sum(other == body for _, _, other in self.asked)
            self.flying += 1
            self.most = max(self.most, self.flying)
            if self.flying > 1:
                self.company.set()
        self.company.wait(self.patience)
        try:
            return self.behave(body, path, tries)
        finally:
            with self.lock:
                self.flying -= 1


@contextlib.contextmanager
def serving(stub):
    """Its address while the block runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = stub.answer(self.path, dict(self.headers), body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with contextlib.suppress(OSError):  # whoever asked has gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
