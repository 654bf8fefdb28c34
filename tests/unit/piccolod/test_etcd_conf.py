from __future__ import annotations

import json
from pathlib import Path

import pytest

from piccolod import etcd_conf
from piccolod.errors import Invalid
from piccolod.etcd_conf import Settings
from piccolod.paths import Paths

PLAIN = Settings("n1", "http://10.0.0.1:2380", "http://10.0.0.1:2379", "piccolo-1")
SECURE = Settings(
    "n2", "https://10.0.0.2:2380", "https://10.0.0.2:2379", "piccolo-1", {"n1": "https://10.0.0.1:2380"}, "existing", 50, 400,
    "/c/ca.pem", "/c/n2.pem", "/c/n2.key",
)  # fmt: skip
PATHS = Paths(state=Path("/s"), run=Path("/r"))


@pytest.mark.parametrize("settings", [PLAIN, SECURE])
def test_what_is_written_is_read_back(settings, tmp_path):
    etcd_conf.write(settings, tmp_path / "etcd.json")
    assert etcd_conf.read(tmp_path / "etcd.json") == settings
    assert [each.name for each in tmp_path.iterdir()] == ["etcd.json"]


def test_no_file_is_no_member(tmp_path):
    assert etcd_conf.read(tmp_path / "etcd.json") is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"token": None}, "token is missing"),
        ({"peer_url": 7}, "peer_url must be str, not int"),
        ({"heartbeat_ms": True}, "heartbeat_ms must be int, not bool"),
        ({"colour": "red"}, "colour is not known"),
        ({"state": "old"}, "state must be new or existing"),
        ({"key": ""}, "ca ca, cert and key go together"),
        ({"client_url": "http://10.0.0.2:2379"}, "client_url must be https"),
        ({"cluster": {"n1": 5}}, "cluster n1 must have a URL"),
        ({"heartbeat_ms": -1}, "heartbeat_ms must be 1 to"),
        ({"heartbeat_ms": 0, "election_ms": 1}, "heartbeat_ms must be 1 to"),
        ({"election_ms": 60_000}, "election_ms must be 5 to"),
        ({"quota_bytes": -1}, "quota_bytes must be more"),
        ({"election_ms": 249}, "election_ms must be at least 5 times heartbeat_ms"),
    ],
)
def test_a_mistake_is_named(change, complaint, tmp_path):
    etcd_conf.write(SECURE, file := tmp_path / "etcd.json")
    document = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
    with pytest.raises(Invalid) as refused:
        etcd_conf.read(file)
    assert complaint in refused.value.detail


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00"])
def test_what_is_no_object_is_refused(text, tmp_path):
    (tmp_path / "etcd.json").write_text(text)
    with pytest.raises(Invalid):
        etcd_conf.read(tmp_path / "etcd.json")


def test_the_command_line_has_the_flags_of_the_design():
    argv = etcd_conf.command("/usr/bin/etcd", SECURE, PATHS)
    assert argv[0] == "/usr/bin/etcd"
    assert {
        "--pre-vote", "--snapshot-count=5000", f"--quota-backend-bytes={256 << 20}", "--heartbeat-interval=50",
        "--election-timeout=400", "--data-dir=/s/etcd", "--initial-cluster-state=existing", "--client-cert-auth",
        "--peer-client-cert-auth", "--trusted-ca-file=/c/ca.pem", "--peer-trusted-ca-file=/c/ca.pem",
        "--initial-cluster=n1=https://10.0.0.1:2380", "--listen-metrics-urls=unix://etcd-health:0",
    } <= set(argv)  # fmt: skip


def test_without_certificates_nothing_is_said_of_tls():
    argv = etcd_conf.command("etcd", PLAIN, PATHS)
    assert not [flag for flag in argv if "ca-file" in flag or "cert" in flag]
    assert "--initial-cluster=n1=http://10.0.0.1:2380" in argv


@pytest.mark.parametrize(("machine", "named"), [("aarch64", "arm64"), ("armv7l", "arm"), ("x86_64", None)])
def test_machines_that_3_4_does_not_support_are_named_to_it(machine, named):
    assert etcd_conf.environment(machine).get("ETCD_UNSUPPORTED_ARCH") == named


@pytest.mark.parametrize(("election_ms", "stall_s"), [(400, 1.2), (500, 1.2), (2500, 5.0)])
def test_a_stall_is_longer_than_an_election(election_ms, stall_s):
    settings = Settings("n", "http://a:1", "http://a:2", "t", election_ms=election_ms)
    assert settings.stall_s == stall_s
