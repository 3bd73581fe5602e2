"""Random sessions with every fault that play sequences must cope with."""

import random
from urllib.parse import urlencode

from tests.aggregate.lakes import SECOND, Sent

HOUR = 3600 * SECOND


def random_sessions(seed: int, count: int, hour: int) -> list[Sent]:
    """Returns the requests of `count` sessions, in order of receipt.

    They have losses, repeats, restarts, leaps and pauses; events overtake each other; some events have no number or no
    `playTimeSum`. Half of the sessions start within a minute of `hour` (µs), the others in the two hours after it.
    """
    rng = random.Random(seed)
    requests = [
        request
        for number in range(count)
        for request in random_session(
            rng, f"s{number}", hour + rng.choice([rng.randrange(-60 * SECOND, 60 * SECOND), rng.randrange(2 * HOUR)])
        )
    ]
    return sorted(requests, key=lambda request: request.at)


def random_session(rng: random.Random, name: str, start: int) -> list[Sent]:
    """Returns the requests of one session that starts at `start` (µs), in the order in which they are sent."""
    has_sums = rng.choice([0.0, 0.5, 1.0])
    passed, number = 0.0, 0  # seconds since the start, eventIndex
    requests: list[Sent] = []
    for _ in range(rng.randrange(1, 60)):
        passed += rng.choice([0, 0, 0.3, 1, 10, 10, 10, 10, 10, 30, 595, 601])
        step = rng.choices([1, 2, 5, 1000, 1001], [80, 10, 5, 0.2, 1])[0]
        number = 1 if rng.random() < 0.03 else number + step
        for _ in range(rng.choice([1, 1, 1, 1, 1, 2])):
            late = rng.choice([0, 0, 0, 0, 0, 0.4, 1, 9, 24, 25, 26])
            values = {
                "eventType": rng.choice([3, 4, 99, 99, 99, 99]),
                "partnerId": 5,
                "entryId": "0_a",
                "sessionId": name,
                "eventIndex": "" if rng.random() < 0.02 else number,
                "playTimeSum": round(passed + rng.choice([0, 0, 0, 3]), 3) if rng.random() < has_sums else "",
                "n": len(requests),  # so that none is a duplicate
            }
            requests.append(Sent(start + round((passed + late) * SECOND), urlencode(values).encode()))
    return requests
