"""A minimal receiver with FastAPI: one event, one line of JSON, written before it is answered."""

import json
import time
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

app = FastAPI()
file = Path("events.json").open("ab", buffering=0)  # noqa: SIM115 -- as long as the process


@app.get("/collect")
async def collect(request: Request) -> PlainTextResponse:
    now = time.time()
    event = {
        "time": now,
        "remote_addr": request.client.host if request.client else None,
        "user_agent": request.headers.get("user-agent"),
        "referer": request.headers.get("referer"),
        **request.query_params,
    }
    file.write(json.dumps(event).encode() + b"\n")
    return PlainTextResponse(str(int(now)), headers={"Cache-Control": "no-store"})
