"""What play shows of itself: counts within units, over all ranks, and a time left that is true."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fixtures.ranks import on_ranks

from spin_composer.play.progress import Counts, Meter, Progress, Totals, seconds_left
from spin_composer.play.sharing import SharedWork


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def counts_of(meter: Meter) -> Counts:
    meter.pop_changes()
    return meter.counts


def play_unit(meter: Meter, clock: FakeClock, prompts: int, answer: float, score: float, look):
    """Answer and score one unit; ``look`` is called at each second of it."""

    def wait(seconds: float) -> None:
        end = clock.now + seconds
        while clock.now < end - 1e-9:
            clock.now = min(end, clock.now + 1.0)
            look()

    with meter.answering():
        for number in range(prompts):
            wait(answer)
            meter.record_answered(number + 1, 10 * (number + 1))
    with meter.scoring():
        for _ in range(prompts):
            wait(score)
            meter.record_scored(1)


def test_the_time_left_is_true_in_long_units_and_never_far_below():
    # Four units of 8 prompts: 10 s to answer a prompt, 3 s to score a pair.
    clock = FakeClock()
    totals = Totals(units=4, prompts=32, pairs=32)
    progress = Progress(0, totals, clock, io.StringIO())
    end = clock.now + 32 * 13
    found: list[tuple[int, float, float]] = []
    done = 0

    def look() -> None:
        left = seconds_left(totals, counts_of(progress.meter), done, clock.now - progress.started)
        if left is not None:
            found.append((done, left, end - clock.now))

    for done in range(4):  # noqa: B007  (looked at above)
        play_unit(progress.meter, clock, 8, 10.0, 3.0, look)
    assert clock.now == end
    for unit, left, truth in found:
        if unit == 0:  # nothing is known of scoring yet, which is said
            assert left > 0.6 * truth
        else:  # the prompt under way is counted whole until it is answered
            assert 0.9 * truth < left < 1.1 * truth + 10


def test_while_nothing_is_finished_the_time_left_grows():
    clock = FakeClock()
    progress = Progress(0, Totals(units=1, prompts=32, pairs=32), clock, io.StringIO())
    lefts = []
    with progress.meter.answering():
        clock.now += 5
        assert seconds_left(progress.totals, counts_of(progress.meter), 0, 5.0) is None
        progress.meter.record_answered(16, 100)
        for second in range(60):
            clock.now += 1
            elapsed = 6.0 + second
            lefts.append(seconds_left(progress.totals, counts_of(progress.meter), 0, elapsed))
    assert lefts == sorted(lefts)
    assert lefts[0] == pytest.approx(6.0, rel=1e-3)
    assert lefts[-1] == pytest.approx(65.0, rel=1e-3)


def test_a_batch_whose_first_response_has_ended_does_not_multiply_the_time_left():
    # 16 of 48 prompts are answered at once, in 80 tokens at most; one response had 25.
    clock = FakeClock()
    totals = Totals(units=3, prompts=48, pairs=48, max_new_tokens=80)
    progress = Progress(0, totals, clock, io.StringIO())
    with progress.meter.answering():
        clock.now += 10
        progress.meter.record_answered(1, 400)
    counts = counts_of(progress.meter)
    assert seconds_left(totals, counts, 0, 10.0) == pytest.approx((48 * 80 - 400) / 40)
    assert progress.text(counts, 0).endswith("01:26 left, and scoring")
    # Where responses are short, the prompts that are answered tell more.
    short = Counts(answered=24, tokens=240, answering_ms=6000)
    assert seconds_left(totals, short, 0, 6.0) == pytest.approx(6.0)


def test_units_that_were_there_neither_count_nor_speed_anything_up():
    clock = FakeClock()
    totals = Totals(units=1, prompts=8, pairs=8, existing_units=99)
    progress = Progress(3, totals, clock, io.StringIO())
    with progress.meter.answering():
        clock.now += 40
        progress.meter.record_answered(4, 80)
    text = progress.text(counts_of(progress.meter), 0)
    assert text == (
        "4 of 8 prompts answered (80 tokens, 2/s), 0 of 8 pairs scored, 99 units existed, "
        "00:40 left, and scoring"
    )
    # A replayed play only scores; a unit that another process made meanwhile is spared.
    progress = Progress(3, Totals(units=3, prompts=0, pairs=30), clock, io.StringIO())
    with progress.meter.scoring():
        clock.now += 20
        progress.meter.record_scored(10)
    progress.meter.skip(0, 10)
    text = progress.text(counts_of(progress.meter), 2)
    assert text == "10 of 20 pairs scored, 00:20 left"


def test_ranks_at_work_divide_the_time_and_no_more_than_have_a_unit():
    counts = Counts(answered=16, scored=16, answering_ms=160_000, scoring_ms=40_000)
    # Two ranks in 100 s; half is left, in eight units and in one.
    many, one = Totals(16, 32, 32), Totals(9, 32, 32)
    assert seconds_left(many, counts, 8, 100.0) == pytest.approx(100.0)
    assert seconds_left(one, counts, 8, 100.0) == pytest.approx(200.0)
    # Ranks that wait for one another half of the time.
    assert seconds_left(many, counts, 8, 200.0) == pytest.approx(200.0)


def test_a_log_gets_a_line_now_and_then_and_at_the_end_and_no_carriage_returns():
    clock, log = FakeClock(), io.StringIO()
    with Progress(0, Totals(units=1, prompts=600, pairs=600), clock, log) as progress:
        play_unit(
            progress.meter, clock, 600, 0.5, 0.1,
            lambda: progress.show(counts_of(progress.meter), 0),
        )  # fmt: skip
        progress.show(counts_of(progress.meter), 1)
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue()
    assert len(lines) == 7  # after 10 s, five minutes, and the last
    assert lines[0].startswith("iteration 0: play: 19 of 600 prompts answered (190 tokens, 19/s)")
    assert lines[-1] == (
        "iteration 0: play: 600 of 600 prompts answered (6000 tokens, 17/s), 600 of 600 pairs "
        "scored, done in 06:00"
    )


def test_a_terminal_gets_a_bar_that_moves_within_a_unit():
    clock, terminal = FakeClock(), Terminal()
    with Progress(0, Totals(units=1, prompts=4, pairs=4), clock, terminal) as progress:
        play_unit(
            progress.meter, clock, 4, 1.0, 1.0,
            lambda: progress.show(counts_of(progress.meter), 0),
        )  # fmt: skip
    shown = terminal.getvalue()
    for part in ("1 of 4 prompts answered", "3 of 4 pairs scored", " 25%", " 75%"):
        assert part in shown, shown


def test_a_play_that_fails_claims_no_end():
    log = io.StringIO()
    with pytest.raises(RuntimeError), Progress(0, Totals(1, 4, 4), FakeClock(), log):
        raise RuntimeError
    assert log.getvalue() == ""


def count_on_rank(folder: str, rank: int) -> object:
    log = io.StringIO()
    totals = Totals(units=4, prompts=20, pairs=18)
    with Progress(0, totals, stream=log) as progress, SharedWork(4, progress=progress) as work:
        for number, _ in enumerate(work.claims()):
            if number == 0:  # each has one before any goes on
                work.barrier()
            with progress.meter.answering():
                progress.meter.record_answered(5, 50 + rank)
            with progress.meter.scoring():
                progress.meter.record_scored(4)
            work.done()
        work.wait()
        work.barrier()
    (Path(folder) / f"{rank}").write_text(log.getvalue())
    return progress.meter.counts.answered


def test_counts_are_those_of_all_ranks(tmp_path):
    import functools

    found = on_ranks(functools.partial(count_on_rank, str(tmp_path)))
    assert sum(found.values()) == 20
    assert 0 not in found.values()
    assert (tmp_path / "1").read_text() == ""
    line = (tmp_path / "0").read_text()
    assert line.count("\n") == 1
    tokens = 10 * 20 + found[1] // 5
    assert line.startswith(f"iteration 0: play: 20 of 20 prompts answered ({tokens} tokens, ")
    assert ", 16 of 18 pairs scored, done in " in line


def test_a_unit_that_is_answered_while_another_is_scored_counts_in_both_times():
    clock = FakeClock()
    meter = Meter(clock)
    with meter.answering():
        clock.now += 2
        with meter.scoring():
            clock.now += 3
        clock.now += 4
    assert (counts_of(meter).answering_ms, counts_of(meter).scoring_ms) == (9000, 3000)
