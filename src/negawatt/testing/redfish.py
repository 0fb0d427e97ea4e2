"""FakeBmc: a real local web server that answers as a management controller does, with known joules."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_V1 = "/redfish/v1"


def _to(path: str) -> dict[str, str]:
    """A link."""
    return {"@odata.id": path}


class FakeBmc:
    """A BMC of one machine in one rack, on 127.0.0.1: `with FakeBmc() as bmc: RedfishSensor(environ=bmc.environ)`.

    Args:
        style: "metrics" has EnvironmentMetrics with PowerWatts, "counter" with EnergyJoules too, "power" has the older
            Power resource, "mean" has that with a mean over a minute only, and "none" measures nothing.
        machines: chassis that hold a computer.
        clock: seconds for the joules; a simulator brings its own.
        tls: certificate and key of the server, in one file; None: without encryption.
    """

    user, password = "reader", "secret word"

    def __init__(
        self,
        style: str = "metrics",
        *,
        machines: int = 1,
        clock: Callable[[], float] = time.perf_counter,
        tls: Path | None = None,
    ) -> None:
        self.style = style
        self.machines = machines
        self.power_w = 200.0
        """What it shows; change it with `draw`."""
        self.frozen_j: float | None = None
        """Where its counter stands still; None: it counts [J]."""
        self.delay_s = 0.0
        """How long it takes to answer [s]."""
        self.locked = False
        """Whether it refuses the login."""
        self.asked: list[str] = []
        """Paths that were asked for."""
        self._stopped = False
        self._clock = clock
        self._energy_j, self._since_s = 1000.0, clock()
        self._tls = tls
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name="fake-bmc", daemon=True
        )

    @property
    def environ(self) -> dict[str, str]:
        """What the environment says of it."""
        scheme = "https" if self._tls else "http"
        return {
            "NEGAWATT_REDFISH_URL": f"{scheme}://127.0.0.1:{self._server.server_address[1]}",
            "NEGAWATT_REDFISH_USER": self.user,
            "NEGAWATT_REDFISH_PASSWORD": self.password,
        }

    @property
    def energy_j(self) -> float:
        """Joules that the machine has drawn."""
        return self._energy_j + self.power_w * (self._clock() - self._since_s)

    def draw(self, power_w: float) -> None:
        """Change the power."""
        self._energy_j, self._since_s = self.energy_j, self._clock()
        self.power_w = power_w

    def stop(self) -> None:
        """Switch it off, open connections too."""
        self._stopped = True
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def document(self, path: str) -> dict[str, Any] | None:
        """The resource at a path; None if there is none."""
        rack, machines = f"{_V1}/Chassis/Rack", [f"{_V1}/Chassis/{number + 1}" for number in range(self.machines)]
        resources: dict[str, dict[str, Any] | None] = {
            f"{_V1}/": {"Chassis": _to(f"{_V1}/Chassis")},
            f"{_V1}/Chassis": {"Members": [_to(name) for name in (rack, *machines)]},
            rack: {"ChassisType": "Rack", "Links": {"ComputerSystems": []}, "Power": _to(f"{rack}/Power")},
        }
        for name in machines:
            resources[name] = {
                "ChassisType": "RackMount",
                "Links": {"ComputerSystems": [_to(f"{_V1}/Systems/1")]},
                "EnvironmentMetrics": _to(f"{name}/EnvironmentMetrics"),
                "Power": _to(f"{name}/Power"),
            }
            resources[f"{name}/EnvironmentMetrics"] = self._metrics()
            resources[f"{name}/Power"] = {"PowerControl": [self._control()]}
        return resources.get(path)

    def _metrics(self) -> dict[str, Any] | None:
        if self.style not in ("metrics", "counter"):
            return None
        metrics: dict[str, Any] = {
            "PowerWatts": {"Reading": round(self.power_w)},
            "TemperatureCelsius": {"Reading": 24},
        }
        if self.style == "counter":
            metrics["EnergyJoules"] = {"Reading": round(self.energy_j if self.frozen_j is None else self.frozen_j, 3)}
        return metrics

    def _control(self) -> dict[str, Any]:
        if self.style == "none":
            return {"PowerConsumedWatts": None}
        if self.style == "mean":
            return {"PowerMetrics": {"AverageConsumedWatts": round(self.power_w), "IntervalInMin": 1}}
        return {"PowerConsumedWatts": round(self.power_w)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        bmc = self
        login = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5.0

            def do_GET(self) -> None:
                if bmc._stopped:
                    self.close_connection = True
                    return
                bmc.asked.append(self.path)
                time.sleep(bmc.delay_s)
                document = bmc.document(self.path)
                refused = bmc.locked or (self.path != f"{_V1}/" and self.headers.get("Authorization") != login)
                body = json.dumps(document or {"error": {}}).encode()
                self.send_response(401 if refused else 200 if document is not None else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        return Handler
