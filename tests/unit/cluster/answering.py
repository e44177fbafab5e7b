"""A small server that stands in for a cluster's dashboard."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType

from tests.listening import listening


@contextmanager
def answering(status, body, then=None, by_path=MappingProxyType({})):
    """A server that gives one answer to all, or another after the first, or to a path its own."""
    answers = iter([(status, body)] if then else [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path in by_path:
                code, text = 200, by_path[self.path]
            else:
                code, text = next(answers, then or (status, body))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            """Say nothing."""

    with listening(Handler) as url:
        yield url
