"""An S3 server for tests (moto, over HTTP on loopback), with a journal so that it can be killed and restarted.

Run as ``python s3_server.py PORT JOURNAL``. Every request that changes something is appended to the journal before it
is answered; a server started on an existing journal replays it first. Multipart uploads (files above 5 MB) are not
journaled. With PORT 0, the server picks a free port. It prints its port once it accepts connections.
"""

import base64
import json
import sys
from io import BytesIO
from pathlib import Path

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

#: The parts of a WSGI environment that are needed to replay a request.
_KEPT = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI", "SERVER_NAME", "SERVER_PORT")


class Journal:
    """A wrapper around a WSGI application that records requests in a journal."""

    def __init__(self, application, path):
        self._application = application
        self._path = Path(path)

    def replay(self):
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                request = json.loads(line)
                environment = request["environ"] | {"wsgi.input": BytesIO(base64.b64decode(request["body"]))}
                list(self._application(_complete(environment), lambda *_: None))

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE") and "upload" not in environ["QUERY_STRING"]:
            body = environ["wsgi.input"].read() if environ.get("wsgi.input_terminated") else _read(environ)
            kept = {k: v for k, v in environ.items() if k in _KEPT or k.startswith(("HTTP_", "CONTENT_"))}
            with self._path.open("a") as file:
                file.write(json.dumps({"environ": kept, "body": base64.b64encode(body).decode()}) + "\n")
            environ["wsgi.input"] = BytesIO(body)
        return self._application(environ, start_response)


def _read(environ):
    return environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _complete(environ):
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "SCRIPT_NAME": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
    } | environ


if __name__ == "__main__":
    port, journal = int(sys.argv[1]), sys.argv[2]
    application = Journal(DomainDispatcherApplication(create_backend_app), journal)
    application.replay()
    server = make_server("127.0.0.1", port, application, threaded=True)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
