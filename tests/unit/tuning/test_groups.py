"""Placement groups are given back when their controllers are dead, and not before."""

import time

import pytest
import ray
from ray.util import placement_group_table
from ray.util.placement_group import placement_group

from cellray.tuning.groups import CONTROLLER, GROUP, GroupKeeper, GroupTeller


class Controller:
    """What Train's controller does: it makes a group, and a callback tells of it."""

    def hold(self):
        self.group = placement_group([{"CPU": 0.1}])
        ray.get(self.group.ready())
        told = []

        class State:
            placement_group_handle = self

        GroupTeller(type("", (), {"put": staticmethod(told.append)})).after_worker_group_start(
            type("", (), {"get_worker_group_state": staticmethod(State)})
        )
        return told[0]

    @property
    def placement_group(self):
        return self.group


def state(told):
    return placement_group_table()[told[GROUP]]["state"]


def look(keeper):
    keeper._looked = 0.0
    keeper.on_step_end(0, [])


@pytest.mark.usefixtures("ray_local")
def test_a_group_is_given_back_when_its_controller_is_dead():
    controllers = [ray.remote(num_cpus=0)(Controller).remote() for _ in range(2)]
    first, second = told = ray.get([one.hold.remote() for one in controllers])
    keeper = GroupKeeper()
    for one in told:
        assert {*one} == {GROUP, CONTROLLER}
        keeper.on_trial_result(0, [], None, one)
    keeper.on_trial_result(0, [], None, {"tenth": 1})
    look(keeper)
    assert [state(one) for one in told] == ["CREATED"] * 2
    ray.kill(controllers[0])
    until = time.monotonic() + 30
    while state(first) != "REMOVED":
        assert time.monotonic() < until
        look(keeper)
        time.sleep(0.1)
    assert state(second) == "CREATED"
    assert keeper._held == {second[GROUP]: second[CONTROLLER]}
    ray.kill(controllers[1])
    while state(second) != "REMOVED":
        assert time.monotonic() < until
        look(keeper)
        time.sleep(0.1)
