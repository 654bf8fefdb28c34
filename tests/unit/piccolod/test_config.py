"""The admin's file: defaults, every mistake at once, and what a module is handed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from piccolod import config
from piccolod.__main__ import _greeting
from piccolod.errors import Invalid

PEM = 'ca="/ca.pem"\ncert="/a.pem"\nkey="/a.key"'


def problems(text: str) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        config.parse(text)
    return {problem.path: problem.message for problem in caught.value.errors}


def test_an_empty_file_is_valid() -> None:
    parsed = config.parse("")
    assert parsed.api.listen == ["127.0.0.1:8080"]
    assert parsed.node.name


def test_every_mistake_is_reported_with_the_nearest_right_name() -> None:
    found = problems('[nod]\nx=1\n[api]\nlisten=3\ntsl="a"\n[apps]\nstrict="yes"\n')
    assert found == {
        "nod": "unknown key, did you mean `node`?",
        "api.listen": "must be a list of strings, not int",
        "api.tsl": "unknown key, did you mean `tls`?",
        "apps.strict": "must be true or false, not str",
    }


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('[node]\nname="Not a name"', "node.name"),
        ('[node]\naddress="example"', "node.address"),
        (f'[node]\nrun_dir="/{"x" * 100}"', "node.run_dir"),
        ('[api]\nlisten=["localhost:80"]', "api.listen"),
        ('[api]\nlisten=["0.0.0.0:8080"]', "api.listen"),
        ('[api]\nlisten=["127.0.0.1:0"]', "api.listen"),
        ('[api]\ntls="on"', "api.tls"),
        ('[api]\ncert="a"', "api.cert"),
        ('[api]\ntrusted_proxies=["everyone"]', "api.trusted_proxies"),
        ('[apps]\npublic_ports="80-90"', "apps.public_ports"),
        ('[apps]\npublic_ports="45000-35000"', "apps.public_ports"),
        ('[security]\nsetup_from="anywhere"', "security.setup_from"),
        ('[etcd]\nmode="managed"', "etcd.mode"),
        ('[etcd]\nendpoints=["https://10.0.0.1:2379"]', "etcd.endpoints"),
        ('[etcd]\nca="/ca.pem"', "etcd.ca"),
        ('[etcd]\nmode="external"', "etcd.endpoints"),
        ('[etcd]\nmode="external"\nendpoints=["http://10.0.0.1:2379"]', "etcd.endpoints"),
        ('[etcd]\nmode="external"\nendpoints=["http://127.0.0.1:2379"]\ncert="/a.pem"', "etcd.cert"),
        ('[etcd]\nmode="external"\nendpoints=["http://127.0.0.1:2379", "http://127.0.0.1:2379"]', "etcd.endpoints"),
        (f'[etcd]\nmode="external"\nendpoints=["https://10.0.0.1"]\n{PEM}', "etcd.endpoints"),
        (f'[etcd]\nmode="external"\nendpoints=["https://10.0.0.1:2379/v3"]\n{PEM}', "etcd.endpoints"),
        (f'[etcd]\nmode="external"\nendpoints=["https://10.0.0.1:70000"]\n{PEM}', "etcd.endpoints"),
        (f'[etcd]\nmode="external"\nendpoints=["https://a:1", "http://127.0.0.1:1"]\n{PEM}', "etcd.endpoints"),
        ('[etcd]\nmode="external"\nendpoints=["https://a:1"]\nca="/a"\ncert="/b"\nkey="c"', "etcd.key"),
        ("[telemetry]\njournal_days=0", "telemetry.journal_days"),
        ("[modules.rooter]\nenabled=true", "modules.rooter"),
        ("[modules.router]\nheartbeat_ms=1", "modules.router.heartbeat_ms"),
        ('[modules.router]\nmemory_max="much"', "modules.router.memory_max"),
        ('[modules.router]\nlog_level="loud"', "modules.router.log_level"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(text: str, path: str) -> None:
    assert list(problems(text)) == [path]


def test_all_addresses_may_be_served_with_a_certificate_or_when_tls_is_off() -> None:
    assert config.parse('[api]\nlisten=["0.0.0.0:8080"]\ntls="off"').api.tls == "off"
    assert config.parse('[api]\nlisten=["0.0.0.0:8080"]\ncert="a"\nkey="b"').api.cert == "a"


def test_an_external_etcd_is_named_by_url_in_the_clear_on_loopback_alone() -> None:
    urls = ["https://etcd-1.lan:2379", "https://10.0.0.2:2379", "https://[fd00::2]:2379"]
    etcd = config.parse(f'[etcd]\nmode="external"\nendpoints={json.dumps(urls)}\n{PEM}').etcd
    assert etcd.is_external and etcd.endpoints == urls
    for local in ("http://127.0.0.1:2379", "http://[::1]:2379"):
        assert config.parse(f'[etcd]\nmode="external"\nendpoints=["{local}"]').etcd.endpoints == [local]
    assert not config.parse("").etcd.is_external


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="is not TOML"):
        config.parse("[node")
    with pytest.raises(Invalid, match="cannot read the configuration"):
        config.load(tmp_path / "absent.toml")


def test_relative_folders_become_absolute() -> None:
    parsed = config.parse('[node]\nstate_dir="s"\nrun_dir="r"\n')
    assert parsed.paths.state == Path("s").absolute()


def test_a_module_is_handed_the_same_configuration() -> None:
    parsed = config.parse("[modules.api]\nheartbeat_ms=500\n")
    assert config.from_mapping(json.loads(json.dumps(dataclasses.asdict(parsed)))) == parsed


def test_a_worker_has_the_settings_of_its_family() -> None:
    parsed = config.parse("[modules.router]\nheartbeat_ms=500\n")
    assert parsed.module("router.1").heartbeat_ms == 500
    assert parsed.module("api").heartbeat_ms == 0


def test_the_documented_configuration_is_the_default() -> None:
    page = (Path(__file__).parents[3] / "docs/configuration.md").read_text()
    text = page.split("```toml\n")[1].split("```")[0]
    documented, default = config.parse(text), config.parse("")
    assert dataclasses.replace(documented, modules={}) == default
    for section in dataclasses.fields(config.Config):
        for key in dataclasses.fields(type(getattr(default, section.name))) if section.name != "modules" else ():
            assert f"\n{key.name} = " in text.split(f"[{section.name}]")[1].split("\n[")[0], f"{section.name}.{key.name}"


def test_folders_are_named_without_links_as_the_kernel_and_podman_name_them(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    parsed = config.parse(f'[node]\nstate_dir = "{tmp_path}/link/state"\nrun_dir = "{tmp_path}/link/run"')
    assert parsed.paths.state == tmp_path / "real/state"
    assert parsed.paths.run == tmp_path / "real/run"


def test_the_greeting_names_each_address_as_it_is_served(tmp_path: Path) -> None:
    keys = {"listen": ["127.0.0.1:8080", "[::1]:8080", "0.0.0.0:8443"], "cert": "/c", "key": "/k"}
    node = {"state_dir": str(tmp_path / "s"), "run_dir": str(tmp_path / "r")}
    for tls, scheme in (("auto", "https"), ("off", "http")):
        said = _greeting(config.from_mapping({"node": node, "api": {**keys, "tls": tls}}))
        assert f"API http://127.0.0.1:8080, http://[::1]:8080, {scheme}://0.0.0.0:8443," in said
