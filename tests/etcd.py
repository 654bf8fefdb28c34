"""Real members of etcd for tests: ports of their own, ended and removed whatever happens.

with Cluster(3) as etcd:
    etcd.members[0].kill()
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from piccolod import etcd_conf
from piccolod.etcd_conf import Settings
from piccolod.paths import Paths
from tests.node import free_port, until

ETCDCTL = "etcdctl"


class Authority:
    """A CA and what it signs, as files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        certificate = self._signed(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        self.ca = self._write("ca.pem", certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Certificate and key for both sides of a connection."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._signed(
            subject, key.public_key(), x509.BasicConstraints(ca=False, path_length=None),
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        )  # fmt: skip
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return (
            self._write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{name}.key", private),
        )

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=self._name, subject_name=subject, public_key=key, serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(minutes=5), not_valid_after=now + datetime.timedelta(days=1),
        )  # fmt: skip
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name


class Member:
    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.paths = Paths(state=folder / "state", run=folder / "run")
        for each in (self.paths.state, self.paths.run, self.paths.etcd_data):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log"

    @property
    def endpoint(self) -> str:
        return self.settings.client_url.partition("://")[2]

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                etcd_conf.command(etcd_conf.program(), self.settings, self.paths),
                cwd=self.paths.run, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], **etcd_conf.environment()},
            )  # fmt: skip

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def freeze(self) -> None:
        """Each of its threads has stopped when this returns."""
        self.signal(signal.SIGSTOP)
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task")
        until(lambda: all(_stopped(each) for each in tasks.iterdir()), "it has stopped", 5, 0.002)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def health(self) -> str:
        """`true` also means that it has a leader and commits."""
        done = subprocess.run(
            ["curl", "-s", "-m", "2", "--unix-socket", self.paths.etcd_health, "http://etcd/health"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout

    def ctl(self, *words: str, check: bool = True, stdin: str = "") -> str:
        """etcdctl against this member alone."""
        tls = [f"--cacert={self.settings.ca}", f"--cert={self.settings.cert}", f"--key={self.settings.key}"]
        done = subprocess.run(
            [ETCDCTL, f"--endpoints={self.settings.client_url}", *(tls if self.settings.ca else []), *words],
            env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}, input=stdin, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr + self.log.read_text()[-1500:]
        return done.stdout


class Cluster:
    """`count` members, with `authority` over TLS."""

    def __init__(self, count: int = 3, authority: Authority | None = None, **settings: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="etcd"))
        scheme = "http" if authority is None else "https"
        names = [f"m{index}" for index in range(count)]
        urls = {name: f"{scheme}://127.0.0.1:{free_port()}" for name in names}
        self.members = [
            Member(
                self.folder / name,
                Settings(
                    name, urls[name], f"{scheme}://127.0.0.1:{free_port()}", token=self.folder.name, cluster=urls,
                    **({} if authority is None else _files(authority, name)), **settings,
                ),
            )
            for name in names
        ]  # fmt: skip

    def __enter__(self) -> Cluster:
        try:
            for member in self.members:
                member.start()
            self.wait_up()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def wait_up(self) -> None:
        for member in self.members:
            until(lambda member=member: '"true"' in member.health(),
                  f"{member.settings.name} is up; log: {member.log.read_text()[-800:]}", 15, 0.1)  # fmt: skip

    @staticmethod
    def wait_serving(member: Member) -> None:
        """It answers, whether there is a leader or not."""
        until(lambda: '"health"' in member.health(), f"{member.settings.name} answers", 15, 0.05)

    @staticmethod
    def settings(member: Member, cluster: dict[str, str]) -> Settings:
        return dataclasses.replace(member.settings, cluster=cluster)

    def revive(self) -> None:
        """Every member runs and answers, whatever was done to it."""
        for member in self.members:
            if member.process is None:
                member.start()
            else:
                member.thaw()
        self.wait_up()

    def leader(self) -> Member:
        """The one that leads now."""

        def found() -> Member | None:
            for member in self.members:
                words = member.ctl("endpoint", "status", check=False).split(", ")
                if len(words) > 4 and words[4] == "true":
                    return member
            return None

        return until(found, "a member leads", 10, 0.1)

    def add(self, name: str, **changes: object) -> Member:
        """A member that is not started yet, with the settings of the others."""
        url = f"http://127.0.0.1:{free_port()}"
        settings = dataclasses.replace(
            self.members[0].settings, name=name, peer_url=url, client_url=f"http://127.0.0.1:{free_port()}", **changes
        )
        self.members.append(Member(self.folder / name, settings))
        return self.members[-1]

    def remove(self) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _stopped(task: Path) -> bool:
    return (task / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"


def _files(authority: Authority, name: str) -> dict[str, str]:
    cert, key = authority.sign(name)
    return {"ca": str(authority.ca), "cert": str(cert), "key": str(key)}
