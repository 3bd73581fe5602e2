"""Simulated viewers: sessions of the events that a real player sends, the same for the same seed.

Event types and parameters are those of the Event Tracking API; each event is one query string.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlencode

# Event types of the API.
IMPRESSION, PLAY_REQUESTED, PLAY, RESUME = 1, 2, 3, 4
QUARTILES = {0.25: 11, 0.5: 12, 0.75: 13, 0.9: 15, 1.0: 14}
PAUSE, SEEK, BUFFER_START, BUFFER_END, ERROR, VIEW = 33, 35, 45, 46, 98, 99

VIEW_SECONDS = 10
START = 1_767_225_600  # 2026-01-01T00:00:00Z, when simulated time begins
# Sessions that begin in each hour of the day, relative to each other: quiet nights, busy evenings.
HOURS = (6, 4, 3, 2, 2, 3, 5, 9, 12, 13, 13, 14, 16, 15, 14, 15, 17, 20, 25, 30, 32, 28, 20, 11)

PARTNERS = ((585231, 60), (1851201, 25), (2222401, 12), (27017, 3))
_WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
USER_AGENTS = (
    (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_WEBKIT} Chrome/126.0.0.0 Safari/537.36", 40),
    (f"Mozilla/5.0 (Linux; Android 14; Pixel 8) {_WEBKIT} Chrome/126.0.0.0 Mobile Safari/537.36", 25),
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
        "Mobile/15E148 Safari/604.1",
        18,
    ),
    ("Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0", 9),
    (f"Mozilla/5.0 (SMART-TV; Linux; Tizen 6.5) {_WEBKIT} SamsungBrowser/4.0 TV Safari/537.36", 6),
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", 2),
)
REFERRERS = (
    ("http://abc.go.com/shows/the-bachelorette/video/most-recent/VDKA0_lawz79v7", 35),
    ("https://news.example.org/élections/2026?utm_source=a&b=c", 25),
    ("https://video.example.com/watch?v=1", 25),
    ("null", 10),
    ("", 5),
)
EXAMPLE_NETWORK = "203.0.113"  # RFC 5737
ENTRIES_PER_PARTNER = 2000
ENTRY_SKEW = 1.1  # exponent of the Zipf law of popularity


@dataclass(frozen=True)
class SimulatedEvent:
    """One request to send.

    Attributes:
        time: Simulated time of sending, in seconds since 1970.
        key: Unique key: `sessionId eventIndex`.
        query: Query string.
        user_agent: User-Agent header.
        referer: Referer header.
        address: Address of the client.
    """

    time: float
    key: str
    query: str
    user_agent: str
    referer: str
    address: str


def _pick(rng: random.Random, weighted: "tuple[tuple[str, int], ...]") -> str:
    return rng.choices([value for value, _ in weighted], [weight for _, weight in weighted])[0]


class _Session:
    """A viewer watches one video: the events in order."""

    def __init__(self, rng: random.Random, start: float) -> None:
        self._rng = rng
        self._now = start
        partner = rng.choices([partner for partner, _ in PARTNERS], [weight for _, weight in PARTNERS])[0]
        rank = min(int(rng.paretovariate(ENTRY_SKEW)), ENTRIES_PER_PARTNER)
        self._duration = 30 + (rank * 7919 % 40) * 30  # seconds, 30 s to 20 min; depends on the video alone
        self._id = "-".join(f"{rng.getrandbits(bits):0{bits // 4}X}" for bits in (32, 16, 16, 16, 48))
        self._index = 0
        self._user_agent = _pick(rng, USER_AGENTS)
        self._referrer = _pick(rng, REFERRERS)
        live = rank % 50 == 0
        self._common = {
            "partnerId": str(partner),
            "entryId": f"0_{(rank * 2654435761 + partner) % 2**32:08x}",
            "flavourId": f"1_{rank % 7}",
            "uiConfId": str(23521211 + partner % 5),
            "clientVer": "3.0:v3.9.2",
            "clientTag": "kdp:v3.9.2",
            "playbackType": "live" if live else "vod",
            "deliveryType": rng.choice(("hls", "dash", "http")),
            "referrer": quote(self._referrer, safe=""),  # percent-encoded twice in the end, as players do
        }
        if rng.random() < 0.3:
            self._common |= {
                "customVar1": rng.choice(("Finnance", "Sports")),
                "playbackContext": str(rng.randrange(90)),
            }
        if rng.random() < 0.2:
            self._common["userId"] = f"user{rng.randrange(5000)}"
        self._started: int | None = None

    def _event(self, kind: int, position: float, **more: object) -> SimulatedEvent:
        self._index += 1
        values: dict[str, object] = {
            "eventType": kind,
            **self._common,
            "sessionId": self._id,
            "eventIndex": self._index,
            "position": f"{position:.1f}",
            **more,
        }
        if self._started is not None:
            values["sessionStartTime"] = self._started
        else:
            self._started = int(self._now)  # the response to the first event becomes sessionStartTime
        key = f"{self._id} {self._index}"
        # Derived from the session id, not random: the other values of a seed stay the same.
        address = f"{EXAMPLE_NETWORK}.{int(self._id[-2:], 16)}"
        return SimulatedEvent(self._now, key, urlencode(values), self._user_agent, self._referrer, address)

    def _quality(self) -> dict[str, object]:
        bitrate = self._rng.choice((400, 800, 1500, 3000, 6000))
        return {"actualBitrate": bitrate, "preferredBitrate": 6000, "bufferTime": f"{self._rng.expovariate(2):.3f}"}

    def __iter__(self) -> Iterator[SimulatedEvent]:
        rng = self._rng
        yield self._event(IMPRESSION, 0)
        self._now += rng.uniform(0.2, 8)
        if rng.random() < 0.35:
            return  # looked at the page, never pressed play
        yield self._event(PLAY_REQUESTED, 0)
        self._now += rng.uniform(0.1, 3)
        if rng.random() < 0.02:
            yield self._event(ERROR, 0, errorCode=rng.choice((1001, 3016, 6007)))
            return
        yield self._event(PLAY, 0, joinTime=f"{rng.lognormvariate(0, 0.6):.3f}", **self._quality())
        yield self._event(VIEW, 0, playTimeSum=0, **self._quality())
        leaves_at = self._duration if rng.random() < 0.4 else rng.uniform(0, self._duration)
        quartiles = dict(QUARTILES)
        position = played = 0.0
        while position < leaves_at:
            self._now += VIEW_SECONDS
            played += VIEW_SECONDS
            position = min(position + VIEW_SECONDS, self._duration)
            yield self._event(VIEW, position, playTimeSum=f"{played:.1f}", **self._quality())
            for share in [share for share in quartiles if position >= share * self._duration]:
                yield self._event(quartiles.pop(share), position)
            chance = rng.random()
            if chance < 0.02:
                yield self._event(PAUSE, position)
                self._now += rng.uniform(1, 25)
                yield self._event(RESUME, position, **self._quality())
            elif chance < 0.035:
                target = rng.uniform(0, self._duration)
                yield self._event(SEEK, position, targetPosition=f"{target:.1f}")
                position = target
            elif chance < 0.05:
                yield self._event(BUFFER_START, position)
                self._now += rng.expovariate(1)
                yield self._event(BUFFER_END, position)
            elif chance < 0.052:
                yield self._event(ERROR, position, errorCode=4012, errorPosition=f"{position:.1f}")
                return


def simulate(viewers: int, seed: str) -> Iterator[SimulatedEvent]:
    """Generates events without end, in order of simulated time. Each viewer watches one video after another.

    The events are the same for the same arguments, on every machine and Python.

    Args:
        viewers: Number of viewers at the same time.
        seed: Seed of the random numbers.
    """
    rng = random.Random(seed)
    # A heap of (time, tie-breaker, rest of the session, next event).
    due: list[tuple[float, int, Iterator[SimulatedEvent], SimulatedEvent]] = []

    def begin(now: float, number: int) -> None:
        busy = HOURS[int(now // 3600) % 24] / max(HOURS)
        session = iter(_Session(rng, now + rng.expovariate(busy / 60)))
        event = next(session)
        heapq.heappush(due, (event.time, number, session, event))

    for number in range(viewers):
        begin(START, number)
    while True:
        now, number, session, event = due[0]
        yield event
        following = next(session, None)
        if following:
            heapq.heapreplace(due, (following.time, number, session, following))
        else:
            heapq.heappop(due)
            begin(now, number)
