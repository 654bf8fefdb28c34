from __future__ import annotations

import pytest

from piccolod.errors import StoreRestored
from services.consensus.etcd.header import Header, Lineage


def header(cluster_id: int = 7, revision: int = 10) -> Header:
    return Header(cluster_id, 1, revision, 2)


def test_the_highest_revision_is_kept():
    lineage = Lineage()
    for revision in (10, 30, 20):
        lineage.check(header(revision=revision), None)
    assert (lineage.cluster_id, lineage.revision) == (7, 30)


def test_another_cluster_id_is_another_etcd():
    with pytest.raises(StoreRestored, match="cluster id is 8, this node knows 7"):
        Lineage(7, 10).check(header(8, 100), None)


def test_an_answer_below_what_was_seen_before_it_was_sent_is_a_backup():
    lineage = Lineage(7, 30)
    with pytest.raises(StoreRestored, match="revision 29 and had shown 30"):
        lineage.check(header(revision=29), lineage.mark())


def test_answers_that_overtake_each_other_prove_nothing():
    lineage = Lineage(7, 30)
    first = lineage.mark()
    lineage.check(header(revision=40), lineage.mark())
    lineage.check(header(revision=31), first)
    assert lineage.revision == 40


def test_what_no_quorum_has_confirmed_may_be_older():
    Lineage(7, 30).check(header(revision=5), None)


def test_an_empty_header_teaches_nothing():
    lineage = Lineage(7, 30)
    lineage.check(header(0, 0), None)
    assert (lineage.cluster_id, lineage.revision) == (7, 30)
    with pytest.raises(StoreRestored):
        lineage.check(header(0, 0), lineage.mark())


def test_a_restored_etcd_is_never_believed_again_also_when_it_has_grown():
    lineage = Lineage(7, 30)
    for revision in (29, 31, 100):
        with pytest.raises(StoreRestored):
            lineage.check(header(revision=revision), 30)
    assert lineage.revision == 30
