"""BMC: a machine's management controller, asked over Redfish; where on it the power is, and what it says there.

The resources and their fields are those of DMTF's schemas (redfish.dmtf.org/schemas): EnvironmentMetrics, and the older
Power that it replaces.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import math
import netrc
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from negawatt.core.errors import NeedsPrivilegeError, SensorError, UsageError

URL, USER, PASSWORD, INSECURE = (f"NEGAWATT_REDFISH_{name}" for name in ("URL", "USER", "PASSWORD", "INSECURE"))
TIMEOUT_S = 5.0
"""A BMC that takes longer for one answer is of no use for measuring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcAddress:
    """Where a BMC is, and who asks.

    Attributes:
        host: name or address.
        port: TCP port.
        path: resource that was named, or "".
        user: "" asks without a name.
        password: of that user.
        tls: whether the connection is encrypted; without it only for this machine's own loopback.
        verify: whether the certificate is checked.
    """

    host: str
    port: int
    path: str
    user: str
    password: str = field(repr=False)
    tls: bool
    verify: bool

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> BmcAddress | None:
        """The address that the environment names, or None. Raises UsageError if it makes no sense."""
        url = environ.get(URL, "")
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query:
            raise UsageError(
                f"{URL}={url!r}",
                "the BMC is asked over HTTPS, and names and passwords do not belong into an address",
                f"type `export {URL}=https://bmc.example`, and {USER} and {PASSWORD} beside it",
            )
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise UsageError(
                f"{URL}={url!r} is not encrypted",
                "the BMC's password would cross the network in the clear",
                f"type `export {URL}=https://{parts.netloc}`",
            )
        user, password = _login(environ, parts.hostname)
        path = parts.path.rstrip("/")
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if parts.scheme == "https" else 80),
            path="" if path in ("", "/redfish", "/redfish/v1") else path,
            user=user,
            password=password,
            tls=parts.scheme == "https",
            verify=environ.get(INSECURE) != "1",
        )


def _login(environ: Mapping[str, str], host: str) -> tuple[str, str]:
    """User and password, from the environment or ~/.netrc."""
    if environ.get(USER):
        return environ[USER], environ.get(PASSWORD, "")
    file = Path(environ.get("NETRC") or "~/.netrc")
    try:
        found = netrc.netrc(file.expanduser()).authenticators(host)
    except FileNotFoundError:
        return "", ""
    except (OSError, RuntimeError, netrc.NetrcParseError) as error:  # RuntimeError: a user without a home
        raise UsageError(
            f"{file} cannot be read ({error})",
            "it may hold the BMC's password",
            f"repair it, or type `export {USER}=... {PASSWORD}=...`",
        ) from error
    return (found[0], found[2] or "") if found else ("", "")


class Bmc:
    """A connection that is kept open between questions. Not for two threads at once.

    Args:
        address: where it is.
        timeout_s: longest time for one answer [s].
    """

    def __init__(self, address: BmcAddress, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> dict[str, Any]:
        """A resource by its path.

        Raises:
            NeedsPrivilegeError: if the BMC refuses this user.
            SensorError: if it cannot be reached, has no such resource or answers with something else than JSON.
        """
        address = self._address
        where = f"https://{address.host}:{address.port}{path}"
        try:
            status, body = self._ask(path)
            if status in (401, 403):
                raise NeedsPrivilegeError(
                    f"{where} refuses user {address.user!r} (HTTP {status})",
                    "power is read with a login of the BMC, and read-only is enough",
                    f"type `export {USER}=... {PASSWORD}=...`, or add the host to ~/.netrc",
                )
            if status != 200:
                raise SensorError(
                    f"{where} answers HTTP {status}",
                    "power cannot be read there",
                    f"check {URL}: the BMC's own address finds the resource by itself",
                )
            document = json.loads(body)
        except ssl.SSLCertVerificationError as error:
            raise SensorError(
                f"the certificate of {address.host} is not trusted ({error.verify_message})",
                "somebody in between could read the password",
                f"type `export SSL_CERT_FILE=<its certificate>`, or, in a network you trust, `export {INSECURE}=1`",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise SensorError(
                f"{where} cannot be reached ({error or type(error).__name__})",
                "the machine's power is read from there",
                f"check {URL} with `curl -k {where}`",
            ) from error
        except ValueError as error:
            raise SensorError(
                f"{where} does not answer in JSON ({error})",
                "that is no Redfish service",
                f"check {URL} with `curl -k {where}`",
            ) from error
        if not isinstance(document, dict):
            raise SensorError(f"{where} answers {document!r:.60}", "a Redfish resource is an object", f"check {URL}")
        return document

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _ask(self, path: str) -> tuple[int, bytes]:
        """Status and body. A connection that the BMC closed meanwhile is opened once more."""
        kept = self._connection is not None
        try:
            return self._ask_once(path)
        except (http.client.RemoteDisconnected, ConnectionError):
            self.close()
            if not kept:
                raise
            return self._ask_once(path)
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def _ask_once(self, path: str) -> tuple[int, bytes]:
        address = self._address
        headers = {"Accept": "application/json", "OData-Version": "4.0"}
        if address.user:
            login = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
            headers["Authorization"] = f"Basic {login}"
        connection = self._connection or self._connect()
        self._connection = connection
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def _connect(self) -> http.client.HTTPConnection:
        address = self._address
        if not address.tls:
            return http.client.HTTPConnection(address.host, address.port, timeout=self._timeout_s)
        context = ssl.create_default_context()
        if not address.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(address.host, address.port, timeout=self._timeout_s, context=context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a BMC said.

    Attributes:
        power_w: power [W].
        energy_j: energy counter; None: it has none [J].
        mean_s: the power is the mean over this time [s].
    """

    power_w: float | None
    energy_j: float | None
    mean_s: float = 0.0


def power_resource(bmc: Bmc, address: BmcAddress) -> str:
    """Path of the resource that gives the machine's power. Raises NegawattError if there is none, or several."""
    if address.path:
        document = bmc.get(address.path)
        found = [address.path] if _gives(document) else _of_chassis(bmc, document)
    else:
        collection = _link(bmc.get("/redfish/v1/"), "Chassis")
        members = bmc.get(collection).get("Members", []) if collection else []
        chassis = [bmc.get(member["@odata.id"]) for member in members if "@odata.id" in member]
        # Racks, drive cages and riser cards are chassis too; the one that is meant holds a computer.
        holding = [document for document in chassis if (document.get("Links") or {}).get("ComputerSystems")]
        found = [path for document in holding or chassis for path in _of_chassis(bmc, document)]
    if not found:
        raise SensorError(
            f"the BMC at {address.host} gives no power",
            "not every BMC measures it, and some do only with a licence",
            f"look for PowerWatts or PowerConsumedWatts with `curl -k https://{address.host}/redfish/v1/Chassis`",
        )
    if len(found) > 1:
        raise UsageError(
            f"the BMC at {address.host} gives the power of {len(found)} machines: {', '.join(found)}",
            "the wrong one would give somebody else's joules",
            f"name yours: `export NEGAWATT_REDFISH_URL=https://{address.host}{found[0]}`",
        )
    return found[0]


def _of_chassis(bmc: Bmc, chassis: Mapping[str, Any]) -> list[str]:
    """Path of the better one of a chassis's resources that give power, or nothing."""
    for name in ("EnvironmentMetrics", "Power"):
        path = _link(chassis, name)
        with contextlib.suppress(SensorError):  # some BMCs name resources that they do not have
            if path and _gives(bmc.get(path)):
                return [path]
    return []


def _link(document: Mapping[str, Any], name: str) -> str | None:
    link = document.get(name)
    return str(link["@odata.id"]) if isinstance(link, dict) and "@odata.id" in link else None


def _gives(document: Mapping[str, Any]) -> bool:
    try:
        answer(document, "")
    except SensorError:
        return False
    return True


def answer(document: Mapping[str, Any], path: str) -> Answer:
    """Power and energy of an EnvironmentMetrics or Power resource. Raises SensorError if it has neither."""
    control = (document.get("PowerControl") or [{}])[0] or {}
    metrics = control.get("PowerMetrics") or {}
    power_w = _positive(document.get("PowerWatts")) or _positive(control.get("PowerConsumedWatts"))
    energy_j, mean_s = _positive(document.get("EnergyJoules")), 0.0
    if power_w is None and energy_j is None:
        power_w = _positive(metrics.get("AverageConsumedWatts"))
        mean_s = 60 * (_positive(metrics.get("IntervalInMin")) or 0.0)
        if power_w is None or not mean_s:
            raise SensorError(
                f"{path} of the BMC gives neither power nor energy",
                "a machine that is on draws power, so nothing or 0 W is no measurement",
                "see whether the BMC's own web page shows its power; some need a moment after a restart",
            )
    return Answer(power_w=power_w, energy_j=energy_j, mean_s=mean_s)


def _positive(value: object) -> float | None:
    """A number above 0, also of a sensor excerpt; else None."""
    if isinstance(value, dict):
        value = value.get("Reading")
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return float(value) if good else None  # type: ignore[arg-type]
