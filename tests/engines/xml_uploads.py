"""Stands before a fake-gcs-server, which knows uploads by Google's JSON API alone, and takes those of the XML
API: `python xml_uploads.py PORT SERVER_PORT`.

PUT /BUCKET/OBJECT becomes an upload of the JSON API, its header x-goog-if-generation-match the parameter
ifGenerationMatch, which Google's documentation calls the same; whether a condition holds is the server's to
say. All else is passed on as it is, but that the list of a bucket that is not there is 404, as at Google, and
not 500.
"""

import http.client
import json
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers with what the server behind says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    behind: int

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def do_PUT(self) -> None:
        """An upload."""
        bucket, _, name = urllib.parse.unquote(self.path[1:]).partition("/")
        query = {"uploadType": "media", "name": name}
        if "x-goog-if-generation-match" in self.headers:
            query["ifGenerationMatch"] = self.headers["x-goog-if-generation-match"]
        found = self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode(query)}")
        if found is None:
            return
        status, _, body = found
        headers = {}
        if status == 200:
            said = json.loads(body)
            headers = {"ETag": f'"{said["etag"]}"', "x-goog-generation": str(said["generation"])}
        self._answer(status, headers, b"" if status == 200 else body)

    def _pass_on(self) -> None:
        found = self._ask(self.command, self.path)
        if found is not None:
            missing = found[0] == 500 and b"no bucket named" in found[2]
            self._answer(404 if missing else found[0], *found[1:])

    do_GET = do_HEAD = do_POST = do_DELETE = _pass_on

    def _ask(self, method: str, path: str) -> tuple[int, dict[str, str], bytes] | None:
        size = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(size)
        if len(data) < size:  # the writer died
            self.close_connection = True
            return None
        server = http.client.HTTPConnection("127.0.0.1", self.behind)
        kept = {
            n: v for n, v in self.headers.items() if n.lower() not in ("host", "content-length", "connection")
        }
        server.request(method, path, data, kept)
        answer = server.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding") and (
                self.command == "HEAD" or name.lower() != "content-length"
            ):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Takes many connections at once."""

    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    Handler.behind = int(sys.argv[2])
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
