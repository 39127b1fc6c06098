"""Functions that pause: what they hand out, how they end, and that none is left behind."""

import functools
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mobile_export.quantize.paused import Paused, pause


def counting(start, stops=3):
    def count():
        for at in range(stops):
            pause(torch.tensor(start + at))
        return torch.tensor(-start)

    return count


def test_it_stops_at_every_pause_and_gives_what_is_handed_out_there():
    done = []

    def function():
        done.append("first")
        pause(torch.tensor(1))
        done.append("second")
        return torch.tensor(2)

    paused = Paused(function)
    assert not done
    assert paused.resume().item() == 1
    assert done == ["first"]
    assert paused.resume().item() == 2
    assert done == ["first", "second"]
    paused.abandon()


def test_many_go_on_side_by_side_each_by_itself():
    many = [Paused(counting(10 * at)) for at in range(1, 40)]
    with ThreadPoolExecutor(2) as pool:
        rounds = [[x.item() for x in pool.map(Paused.resume, many)] for _ in range(4)]
    assert rounds == [[10 * at + past for at in range(1, 40)] for past in range(3)] + [[-10 * at for at in range(1, 40)]]
    for one in many:
        one.abandon()


def test_an_error_is_raised_where_it_was_resumed():
    def function():
        pause(torch.tensor(1))
        raise ValueError("of its own")

    paused = Paused(function)
    paused.resume()
    with pytest.raises(ValueError, match="of its own"):
        paused.resume()
    paused.abandon()


def test_what_is_abandoned_on_its_way_ends_without_going_on_and_leaves_no_thread():
    before, went_on = threading.active_count(), []

    def function():
        try:
            pause(torch.tensor(1))
            went_on.append(1)
        finally:
            went_on.append("ended")
        return torch.tensor(2)

    some = [Paused(function) for _ in range(5)]
    for one in some[:3]:  # the last two are never begun
        one.resume()
    for one in some:
        one.abandon()
    assert went_on == ["ended"] * 3
    assert threading.active_count() == before


def test_operators_run_on_one_thread_while_it_is_on_its_way():
    paused = Paused(lambda: torch.tensor(torch.get_num_threads()))
    assert paused.resume().item() == 1
    paused.abandon()


def test_what_it_held_is_freed_when_it_is_abandoned_and_not_when_garbage_is_collected():
    given, returned = torch.zeros(3), []

    def function(x):
        pause(x + 1)
        returned.append(weakref.ref(made := x + 2))
        return made

    paused = Paused(functools.partial(function, given))
    held = weakref.ref(given)
    gc.disable()
    try:
        paused.resume()
        paused.resume()
        paused.abandon()
        del given
        assert held() is None
        assert returned[0]() is None
    finally:
        gc.enable()
