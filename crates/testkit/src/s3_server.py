"""moto's S3 server, one request after the other: it looks whether a key is there and then writes it, in two steps, so that
between threads of its own a conditional write could be won twice, as it never is on a store that keeps its promise."""

import io
import sys
from threading import Lock

from moto.moto_server.threaded_moto_server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


class OneAtATime:
    def __init__(self, application):
        self.application, self.lock = application, Lock()

    def __call__(self, environ, start_response):
        # All of the request first: one whose sender hangs must not keep the others waiting.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with self.lock:
            return [b"".join(self.application(environ, start_response))]


run_simple("127.0.0.1", int(sys.argv[1]), OneAtATime(DomainDispatcherApplication(create_backend_app)), threaded=True)
