"""Delays between starts of workers that die, and what counts as a crash loop."""

from kanalony.collector.respawn import Respawn, RespawnLimits

LIMITS = RespawnLimits(remembered=10, step=0.2, max_delay=0.5, crash_loop=3, many_waiting=16)


def test_the_first_quick_death_delays_nothing_and_each_further_one_more_up_to_a_limit() -> None:
    respawn = Respawn(LIMITS)
    delays = []
    for _ in range(5):
        respawn.record(100.0, was_ready=False, waiting=0)
        delays.append(round(respawn.delay(100.0), 3))
    assert delays == [0, 0.2, 0.4, 0.5, 0.5]
    assert respawn.delay(100.5) <= 0


def test_old_deaths_are_forgotten() -> None:
    respawn = Respawn(LIMITS)
    respawn.record(100.0, was_ready=True, waiting=99)
    respawn.record(105.0, was_ready=True, waiting=99)
    respawn.forget(110.0)
    respawn.record(110.0, was_ready=True, waiting=99)
    assert round(respawn.delay(110.0), 3) == 0.2
    assert not respawn.is_crash_loop(110.0)


def test_a_crash_loop_takes_deaths_of_ready_workers_and_waiting_connections() -> None:
    for ready, waiting, loops in [(True, 16, True), (True, 15, False), (False, 16, False)]:
        respawn = Respawn(LIMITS)
        for _ in range(3):
            assert not respawn.is_crash_loop(100.0)
            respawn.record(100.0, was_ready=ready, waiting=waiting)
        assert respawn.is_crash_loop(109.9) == loops
        assert not respawn.is_crash_loop(110.0)
