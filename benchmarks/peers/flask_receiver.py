"""A minimal receiver with Flask: one event, one line of JSON, written before it is answered."""

import json
import time
from pathlib import Path

from flask import Flask, Response, request

app = Flask(__name__)
file = Path("events.json").open("ab", buffering=0)  # noqa: SIM115 -- as long as the process


@app.get("/collect")
def collect() -> Response:
    now = time.time()
    event = {
        "time": now,
        "remote_addr": request.remote_addr,
        "user_agent": request.headers.get("User-Agent"),
        "referer": request.headers.get("Referer"),
        **request.args.to_dict(),
    }
    file.write(json.dumps(event).encode() + b"\n")
    return Response(str(int(now)), mimetype="text/plain", headers={"Cache-Control": "no-store"})
