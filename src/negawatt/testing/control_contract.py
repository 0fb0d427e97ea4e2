"""ControlContract: what every control of the hardware keeps. Inherit it, override `make` and `reopen`, run pytest."""

from __future__ import annotations

from negawatt.hardware.control import Control, Knob, Value

_UNITS = {Knob.POWER_LIMIT: "W", Knob.CLOCK_LIMIT: "MHz", Knob.MEMORY_CLOCK_LIMIT: "MHz", Knob.PROFILE: ""}


class ControlContract:
    """What every control keeps. Override `make` and `reopen`, over simulated hardware: it is set in these tests."""

    remembers = True
    """Whether another process can read what was set. NVML does not tell a clock lock: None there."""

    def make(self) -> Control:
        """A control, as found."""
        raise NotImplementedError

    def reopen(self, address: str) -> Control:
        """The control of an address, as another process opens it."""
        raise NotImplementedError

    def test_info_says_what_it_is(self) -> None:
        """Address, scope and unit are named, and the range holds the value as found."""
        control = self.make()
        assert isinstance(control, Control), "a control has info, read(), write(value) and command(value)"
        info = control.info
        assert all((info.address, info.scope)), "address and scope are named"
        assert info.unit == _UNITS[info.knob], f"a {info.knob} is in {_UNITS[info.knob]!r}, got {info.unit!r}"
        assert info.lowest < info.highest, f"an empty range: {info.lowest} to {info.highest}"
        assert info.step >= 0, "the step is not negative"
        assert list(info.values) == sorted(set(info.values)), f"values rise, got {info.values}"
        assert all(info.lowest <= value <= info.highest for value in info.values), "values lie in the range"
        found = control.read()
        assert found is None or info.lowest <= found <= info.highest, f"{found} as found is outside the range"

    def test_what_is_written_is_read_back(self) -> None:
        """Values of the whole range are taken, within the step, and the one as found can be given back."""
        control = self.make()
        found = control.read()
        for value in self._values(control):
            control.write(value)
            self._same(control, value)
        control.write(found)
        self._same(control, found)

    def test_another_process_opens_it_by_its_address(self) -> None:
        """The address leads to the same thing, and what was set is seen there."""
        control = self.make()
        value, found = self._values(control)[0], control.read()
        control.write(value)
        other = self.reopen(control.info.address)
        assert other.info == control.info, "opened by its address, it is something else"
        if self.remembers:
            self._same(other, value)
        other.write(found)
        self._same(other, found)

    def test_reading_changes_nothing(self) -> None:
        """Two readings agree."""
        control = self.make()
        assert control.read() == control.read(), "reading it changed it"

    def test_the_command_names_the_value(self) -> None:
        """The command is one line, and differs for different values."""
        control = self.make()
        commands = [control.command(value) for value in self._values(control)]
        assert all(command and "\n" not in command for command in commands), f"one line each, got {commands}"
        assert len(set(commands)) == len(commands), f"two values, one command: {commands}"

    def _values(self, control: Control) -> tuple[float, float]:
        """Two values: one inside the range, and its lower end."""
        info = control.info
        return (
            info.values[len(info.values) // 2] if info.values else round((info.lowest + info.highest) / 2)
        ), info.lowest

    def _same(self, control: Control, value: Value) -> None:
        read = control.read()
        same = read == value if read is None or value is None else abs(read - value) <= control.info.step
        assert same, f"{control.info.address}: {value} was written and {read} is read back"
