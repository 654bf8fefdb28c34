from __future__ import annotations

from services.consensus.etcd.endpoints import Endpoints

THREE = Endpoints(("local", "b", "c"))


def test_the_local_one_is_asked_first():
    assert THREE.choose(0.0) == "local"


def test_one_that_failed_is_left_for_the_next():
    assert THREE.failed("local", 10.0).choose(10.0) == "b"


def test_the_one_that_works_is_kept_also_when_the_local_one_is_free_again():
    endpoints = THREE.failed("local", 10.0).worked("b")
    assert endpoints.choose(100.0) == "b"


def test_when_it_fails_the_local_one_is_first_again():
    endpoints = THREE.failed("local", 10.0).worked("b").failed("b", 100.0)
    assert endpoints.choose(100.0) == "local"


def test_when_all_have_failed_it_is_the_one_whose_penalty_ends_first():
    endpoints = THREE.failed("local", 1.0).failed("b", 1.1).failed("c", 1.2)
    assert endpoints.choose(1.3) == "local"
    assert endpoints.failed("local", 1.55).choose(1.56) == "b"


def test_a_penalty_grows_with_each_failure_in_a_row_up_to_a_limit():
    endpoints, now, penalties = Endpoints(("a",)), 0.0, []
    for _ in range(8):
        endpoints = endpoints.failed("a", now)
        penalties.append(endpoints.penalties["a"].until - now)
        now = endpoints.penalties["a"].until
    assert penalties == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert not endpoints.worked("a").penalties


def test_many_calls_that_fail_together_are_one_failure():
    endpoints = THREE
    for _ in range(16):
        endpoints = endpoints.failed("local", 10.0)
    assert endpoints.penalties["local"].failures == 1


def test_new_members_keep_what_is_known_of_the_old_ones():
    endpoints = THREE.failed("local", 1.0).worked("b")
    assert endpoints.renewed(("local", "b", "d")).choose(1.1) == "b"
    assert endpoints.renewed(("local", "d")).choose(1.1) == "d"
