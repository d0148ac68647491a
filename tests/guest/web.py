"""A small HTTP server for tests: GET gives the file of that name in the current directory, PUT answers with the MD5 sum of what it got.
usage: web.py ADDRESS PORT      PORT 0: some free port; prints the port when it listens
       web.py free              prints a free port of 127.0.0.1"""
import hashlib
import http.server
import socket
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_PUT(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.md5()
        while left > 0:
            part = self.rfile.read(min(left, 1 << 16))
            if not part:
                return
            digest.update(part)
            left -= len(part)
        answer = digest.hexdigest().encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


if sys.argv[1] == "free":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        print(probe.getsockname()[1])
else:
    server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
