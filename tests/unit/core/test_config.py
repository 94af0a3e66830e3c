"""Configs: accepted and refused data, error messages, overrides, YAML."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from blip3o.core.config import component, evolve, from_dict, override, read_yaml, save_yaml, to_dict
from blip3o.core.errors import UsageError
from blip3o.core.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
    kind: str = "circle"
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError(f"radius must not be negative, got {self.radius}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    kind: str = "square"
    side: int = 1
    tiles: int = 1

    def __post_init__(self) -> None:
        if self.side % self.tiles:
            raise ValueError("tiles must divide side")


class _Shapes:
    """A stand-in for a module: pytest gives this file a name that cannot be imported."""

    Circle, Square = Circle, Square
    SHAPES = Registry(
        "shape",
        {"circle": "config_test_shapes:Circle", "square": "config_test_shapes:Square"},
        package="blip3o",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.1, 0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A config with a `kind` that is no component."""

    kind: str = "plain"
    size: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    name: str = "x"
    is_on: bool = False
    limit: int | None = None
    mode: Literal["fast", "slow"] = "fast"
    either: int | str = 1
    inner: Inner = dataclasses.field(default_factory=Inner)
    items: tuple[Inner, ...] = ()
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    shape: Any = component("config_test_shapes:SHAPES", default=Circle())
    shapes: tuple[Any, ...] = component("config_test_shapes:SHAPES", default=())
    no_shape: Any | None = component("config_test_shapes:SHAPES", default=None)
    choice: Choice = dataclasses.field(default_factory=Choice)


@pytest.fixture(autouse=True)
def _shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "config_test_shapes", _Shapes)


FULL = Outer(
    steps=3,
    limit=7,
    mode="slow",
    either="two",
    inner=Inner(rate=1e-8, sizes=(), pair=(1.0, 2.0)),
    items=(Inner(), Inner(sizes=(9,))),
    factors={"dit": 0.5},
    shape=Square(side=4, tiles=2),
    shapes=(Circle(radius=2.0), Square()),
)


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        from_dict(Outer, {"steps": 1, **data})
    return str(caught.value)


def test_plain_data_round_trips() -> None:
    assert from_dict(Outer, to_dict(FULL)) == FULL
    assert isinstance(to_dict(FULL)["items"], list)


def test_yaml_round_trips(tmp_path: Path) -> None:
    save_yaml(FULL, tmp_path / "run.yaml")
    assert from_dict(Outer, read_yaml(tmp_path / "run.yaml")) == FULL


def test_an_unknown_key_names_its_path_and_the_nearest_names() -> None:
    message = refused({"inner": {"rat": 1.0}})
    assert message.startswith("unknown config key 'inner.rat'; did you mean inner.rate or ")
    assert "did you mean steps" in refused({"step": 1})
    assert "items.1.rte" in refused({"items": [{}, {"rte": 1}]})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UsageError, match=r"config key steps is required"):
        from_dict(Outer, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": "many"}, "steps must be int, got 'many'"),
        ({"steps": True}, "steps must be int, got True"),
        ({"steps": 1.5}, "steps must be int, got 1.5"),
        ({"steps": float("inf")}, "steps must be int, got inf"),
        ({"steps": None}, "steps must be int, got None"),
        ({"name": 5}, "name must be str, got 5"),
        ({"is_on": 1}, "is_on must be bool, got 1"),
        ({"mode": "medium"}, "mode must be one of ['fast', 'slow'], got 'medium'"),
        ({"either": 1.5}, "either does not accept 1.5"),
        ({"inner": 3}, "inner must be a mapping, got 3"),
        ({"inner": {"rate": True}}, "inner.rate must be float, got True"),
        ({"inner": {"rate": "fast"}}, "inner.rate must be float, got 'fast'"),
        ({"inner": {"sizes": 3}}, "inner.sizes must be a list, got 3"),
        ({"inner": {"sizes": "12"}}, "inner.sizes must be a list, got '12'"),
        ({"inner": {"sizes": [1, "b"]}}, "inner.sizes.1 must be int, got 'b'"),
        ({"inner": {"pair": [1.0]}}, "inner.pair must have 2 values, got 1"),
        ({"factors": [1]}, "factors must be a mapping, got [1]"),
        ({"factors": {"a": "b"}}, "factors.a must be float, got 'b'"),
        ({"shape": "circle"}, "shape must be a mapping with a 'kind' from ['circle', 'square']"),
        ({"shape": {}}, "shape must be a mapping with a 'kind' from ['circle', 'square']"),
        ({"shape": {"kind": ["circle"]}}, "shape.kind must be one of ['circle', 'square']"),
        ({"shape": {"kind": "cirle"}}, "unknown shape 'cirle'; did you mean circle"),
        ({"shape": {"kind": "circle", "side": 1}}, "unknown config key 'shape.side'"),
        ({"shape": {"kind": "circle", "radius": -1}}, "shape: radius must not be negative"),
        ({"shape": {"kind": "square", "tiles": 0}}, "shape: "),
        ({"shapes": [{"kind": "circle"}, {"kind": "x"}]}, "unknown shape 'x'"),
    ],
)
def test_data_of_the_wrong_form_are_refused_in_one_line(data: dict[str, Any], message: str) -> None:
    assert message in refused(data)
    assert "\n" not in refused(data)


def test_data_other_than_a_mapping_are_refused() -> None:
    with pytest.raises(UsageError, match="Outer must be a mapping, got None"):
        from_dict(Outer, None)


def test_numbers_take_the_type_of_their_field() -> None:
    config = from_dict(Outer, {"steps": 2.0, "inner": {"rate": 1, "sizes": (3, 4)}})
    assert (config.steps, type(config.steps)) == (2, int)
    assert (config.inner.rate, type(config.inner.rate)) == (1.0, float)
    assert config.inner.sizes == (3, 4)


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("steps=50", "steps", 50),
        (" steps =50", "steps", 50),
        ("name=a=b", "name", "a=b"),
        ("name='5'", "name", "5"),
        ("is_on=true", "is_on", True),
        ("limit=null", "limit", None),
        ("mode=fast", "mode", "fast"),
        ("inner.rate=1e-4", "inner.rate", 1e-4),
        ("inner.rate=2", "inner.rate", 2.0),
        ("inner.sizes=[7, 8, 9]", "inner.sizes", (7, 8, 9)),
        ("inner.pair.1=3", "inner.pair", (1.0, 3.0)),
        ("items.1.rate=9", "items.1.rate", 9.0),
        ("factors={lm: 2}", "factors", {"lm": 2.0}),
        ("factors.dit=3", "factors", {"dit": 3.0}),
        ("shape.side=6", "shape.side", 6),
        ("shape={kind: circle, radius: 5}", "shape", Circle(radius=5.0)),
        ("shapes.0.radius=4", "shapes.0.radius", 4.0),
    ],
)
def test_overrides_reach_every_kind_of_field(assignment: str, path: str, value: Any) -> None:
    changed: Any = override(FULL, [assignment])
    for key in path.split("."):
        changed = changed[int(key)] if key.isdecimal() else getattr(changed, key)
    assert changed == value
    assert type(changed) is type(value)
    assert FULL.steps == 3


def test_overrides_apply_in_order() -> None:
    assert override(FULL, ["steps=1", "steps=2"]).steps == 2


@pytest.mark.parametrize(
    ("assignments", "path", "value"),
    [
        (["shape.kind=circle"], "shape", Circle()),
        (["shape.kind=circle", "shape.radius=3"], "shape", Circle(radius=3.0)),
        (["shape.kind= circle ", "shape={kind: square}"], "shape", Square()),
        (["shape={kind: square, side: 6}", "shape.kind=circle"], "shape", Circle()),
        (["shape.side=6", "shape.kind=square"], "shape", Square(side=6, tiles=2)),
        (["shapes.0.kind=square", "shapes.0.side=2"], "shapes", (Square(side=2), Square())),
        (["shapes=[{kind: circle}]", "shapes.0.kind=square"], "shapes", (Square(),)),
        (["no_shape.kind=square", "no_shape.side=2"], "no_shape", Square(side=2)),
        (["choice.size=4", "choice.kind=other"], "choice", Choice(kind="other", size=4)),
    ],
)
def test_another_kind_of_component_starts_from_its_own_defaults(
    assignments: list[str], path: str, value: Any
) -> None:
    assert getattr(override(FULL, assignments), path) == value


def test_a_kind_that_drops_an_earlier_assignment_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        override(FULL, ["steps=1", "shape.side=6", "shape.kind=circle"])
    assert str(caught.value) == ("shape.kind=circle drops shape.side: put shape.kind before it")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "is not of the form path.to.field=value"),
        ("step=1", "unknown config key 'step'; did you mean steps"),
        ("inner.rte=1", "did you mean inner.rate"),
        ("iner.rate=1", "unknown config key 'iner'; did you mean inner"),
        ("items.2.rate=1", "config key items.2 must be an index from 0 to 1"),
        ("items.-1.rate=1", "config key items.-1 must be an index from 0 to 1"),
        ("items.x=1", "config key items.x must be an index from 0 to 1"),
        ("inner.sizes.0=1", "config key inner.sizes.0 must be left out: the list is empty"),
        ("steps.more=1", "config key steps.more does not exist: its parent is the value 3"),
        ("limit.more=1", "config key limit.more does not exist"),
        ("steps=", "steps must be int, got None"),
        ("steps=[1", "the value is not YAML"),
        ("shape.kind=cirle", "unknown shape 'cirle'; did you mean circle"),
        ("no_shape.radius=1", "config key no_shape.radius does not exist"),
        ("=3", "unknown config key ''"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(FULL, [assignment])
    assert message in str(caught.value)


def test_evolve_takes_configs_and_plain_data() -> None:
    changed = evolve(FULL, {"inner": Inner(rate=2.0), "items.0.sizes": [5]})
    assert changed.inner == Inner(rate=2.0)
    assert changed.items[0].sizes == (5,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a mapping, got None"),
        (b"steps: 1\nstep: 2", "did you mean steps"),
        (b"1: 2\nsteps: 1", "unknown config key '1'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        from_dict(Outer, read_yaml(file))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"steps: [1", b"\xff\xfe\x00\xff", b"!!python/object:os.system {}"]
)
def test_files_other_than_yaml_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="is not a YAML file") as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot read"):
        read_yaml(tmp_path)
