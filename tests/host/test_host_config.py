"""Schedules, resolvers, structured configuration, trial folder: golden values of the host's contract."""
import math
import os
import re
from dataclasses import dataclass, field

import omegaconf
import pytest
import yaml
from omegaconf import OmegaConf
from portrait_diffusion import host
from portrait_diffusion._standalone import config as own_config

GOLDEN = [
    ([0, 0.98, 0.5, 200], {0: 0.98, 50: 0.86, 100: 0.74, 200: 0.5, 999: 0.5}),
    ([0.98, 0.5, 200], {0: 0.98, 50: 0.86, 200: 0.5}),
    ([100, 0.0, 10.0, 500], {0: 0.0, 100: 0.0, 300: 5.0, 500: 10.0, 600: 10.0}),
    ([0, 1.0, 0.5, 100, 0.1, 300], {0: 1.0, 50: 0.75, 99: 0.505, 100: 0.5, 200: 0.3, 300: 0.1, 1000: 0.1}),
    ([0, 1.0, 0.5, 100, 0.1, 300, 0.7, 400], {200: 0.3, 300: 0.1, 350: 0.4, 400: 0.7, 500: 0.7}),
]


@pytest.mark.parametrize("schedule, values", GOLDEN)
def test_schedule_golden_values_by_step(schedule, values):
    node = OmegaConf.create({"v": schedule}).v
    for step, expected in values.items():
        assert host.C(node, 7, step) == pytest.approx(expected, abs=1e-12)


def test_schedule_with_a_float_end_counts_epochs():
    node = OmegaConf.create([0, 0.0, 1.0, 2.0])
    assert [host.C(node, epoch, 10**6) for epoch in range(4)] == [0.0, 0.5, 1.0, 1.0]


def test_schedule_exponential_is_linear_in_the_logarithm():
    node = OmegaConf.create([0, 1.0, 100.0, 10])
    assert host.C(node, 0, 5, interpolation="exp") == pytest.approx(10.0, abs=1e-12)
    logs = [math.log(host.C(node, 0, s, interpolation="exp")) for s in range(11)]
    assert logs == pytest.approx([math.log(100.0) * s / 10 for s in range(11)], abs=1e-12)
    with pytest.raises(ValueError, match="cubic"):
        host.C(node, 0, 5, interpolation="cubic")


@pytest.mark.parametrize("number", [3, 0.25, -1.5])
def test_schedule_of_a_number_is_the_number(number):
    assert host.C(number, 5, 5) == number and host.C_max(number) == number


@pytest.mark.parametrize("value", [[0, 1.0, 0.5, 100], (0, 1.0, 0.5, 100), None, "0.5"])
def test_schedule_takes_no_plain_python_containers(value):
    with pytest.raises(ValueError):
        host.C(value, 0, 0)


@pytest.mark.parametrize("length", [2, 5, 7])
def test_schedule_of_impossible_length(length):
    with pytest.raises(AssertionError):
        host.C(OmegaConf.create([1] * length), 0, 0)


def test_schedule_without_duration():
    with pytest.raises(ZeroDivisionError):
        host.C(OmegaConf.create([100, 1.0, 0.5, 100]), 0, 100)


@pytest.mark.skipif(not hasattr(omegaconf, "TupleConfig"), reason="this omegaconf has only one kind of list")
def test_schedule_in_the_tuple_kind_of_list_is_a_type_error():
    node = OmegaConf.create({"v": (0, 1.0, 0.5, 100)}).v
    assert type(node).__name__ == "TupleConfig"
    with pytest.raises(TypeError):
        host.C(node, 0, 0)


def test_schedule_in_a_mapping_is_a_type_error():
    with pytest.raises(TypeError):
        host.C(OmegaConf.create({"start": 0}), 0, 0)


def test_largest_value_of_a_schedule():
    assert host.C_max(OmegaConf.create([0, 1, 0.5, 100, 2, 300])) == 2
    assert host.C_max(OmegaConf.create([0.1, 0.9, 100])) == 0.9
    for schedule, _ in GOLDEN:
        node = OmegaConf.create(schedule)
        assert host.C_max(node) == pytest.approx(max(host.C(node, 0, s) for s in range(600)), abs=1e-12)


@pytest.mark.parametrize(
    "expression, expected",
    [
        ("${add:2,3}", 5),
        ("${sub:2,3}", -1),
        ("${mul:2,3.5}", 7.0),
        ("${div:1,4}", 0.25),
        ("${idiv:7,2}", 3),
        ("${calc_exp_lr_decay_rate:0.01,2}", 0.1),
        ("${basename:a/b/me.png}", "me.png"),
        ("${rmspace:${text},_}", "a_photo_of_me"),
        ("${tuple2:3}", [3.0, 3.0]),
        ("${gt0:${zero}}", False),
        ("${gt0:1}", True),
        ("${not:${gt0:1}}", False),
        ("${cmaxgt0:${schedule}}", True),
        ("${cmaxgt0:${zero}}", False),
        ("${cmaxgt0orcmaxgt0:${zero},${schedule}}", True),
        ("${cmaxgt0orcmaxgt0:${zero},${zero}}", False),
    ],
)
def test_resolvers(expression, expected):
    host.prepare_resolvers()
    host.prepare_resolvers()  # a second time does no harm
    values = {"text": "a photo of me", "zero": 0, "schedule": [0, 0.0, 1.0, 100], "v": expression}
    result = OmegaConf.to_container(OmegaConf.create(values), resolve=True)["v"]
    assert (list(result) if isinstance(expected, list) else result) == (
        pytest.approx(expected) if isinstance(expected, float) else expected
    )


def test_there_are_thirteen_resolvers_and_an_existing_one_is_left_alone():
    assert len(own_config.RESOLVER_NAMES) == 13
    host.prepare_resolvers()
    before = OmegaConf.create({"v": "${add:1,1}"}).v
    host.prepare_resolvers()
    assert OmegaConf.create({"v": "${add:1,1}"}).v == before == 2


@dataclass
class _Section:
    size: int = 4
    rate: float = 0.5
    note: str | None = None
    steps: list[int] = field(default_factory=list)


def test_structured_sections_check_names_and_types():
    parsed = host.parse_structured(_Section, OmegaConf.create({"size": 8, "steps": [1, 2]}))
    assert parsed.size == 8 and list(parsed.steps) == [1, 2] and parsed.note is None
    with pytest.raises(TypeError, match="sise"):
        host.parse_structured(_Section, {"sise": 8})
    with pytest.raises(TypeError):
        host.parse_structured(_Section, None)
    for wrong in ({"size": 1.5}, {"rate": None}, {"steps": ["x"]}):
        with pytest.raises(omegaconf.ValidationError):
            host.parse_structured(_Section, wrong)


def test_plain_containers():
    node = OmegaConf.create({"a": 1, "b": ["${a}"]})
    assert host.config_to_primitive(node) == {"a": 1, "b": [1]}
    assert host.config_to_primitive(node, resolve=False) == {"a": 1, "b": ["${a}"]}
    with pytest.raises(ValueError):
        host.config_to_primitive([1])


def test_later_sources_win(tmp_path):
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(f"name: one\ntag: t\nseed: 1\nexp_root_dir: {tmp_path}\ndata: {{a: 1, b: 1}}\n")
    second.write_text("seed: 2\ndata: {b: 2, c: '${data.b}'}\n")
    parsed = host.load_config(str(first), str(second), cli_args=["seed=3", "data.d=[1,2]"], n_gpus=1, description="x")
    assert (parsed.name, parsed.seed, parsed.description) == ("one", 3, "x")
    assert host.config_to_primitive(parsed.data) == {"a": 1, "b": 2, "c": 2, "d": [1, 2]}
    assert host.load_config(str(first), cli_args=["seed=3"], seed=4).seed == 4


def test_trial_folder(tmp_path):
    yaml_text = f"name: portrait\ntag: me\nexp_root_dir: {tmp_path}/out\n"
    parsed = host.load_config(yaml_text, from_string=True)
    assert re.fullmatch(r"me@\d{8}-\d{6}", parsed.trial_name)
    assert parsed.trial_dir == os.path.join(str(tmp_path), "out", "portrait", parsed.trial_name)
    assert os.path.isdir(parsed.trial_dir) and parsed.exp_dir == os.path.dirname(parsed.trial_dir)

    path = tmp_path / "parsed.yaml"
    host.dump_config(str(path), parsed)
    again = host.load_config(str(path))
    assert again.trial_dir == parsed.trial_dir  # the timestamp is in the parsed configuration
    assert yaml.safe_load(path.read_text())["tag"] == "me"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("parsed")] == ["parsed.yaml"]


def test_trial_folder_without_timestamp_or_on_several_devices(tmp_path, caplog):
    base = f"tag: me\nexp_root_dir: {tmp_path}\n"
    assert host.load_config(base + "use_timestamp: false\n", from_string=True).trial_name == "me"
    assert host.load_config(base, from_string=True, n_gpus=2).trial_name == "me"
    assert "timestamp is dropped" in caplog.text
    with pytest.raises(ValueError, match="tag"):
        host.load_config(f"exp_root_dir: {tmp_path}\nuse_timestamp: false\n", from_string=True)


def test_unknown_top_level_key_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="sead"):
        host.load_config(f"tag: t\nexp_root_dir: {tmp_path}\nsead: 1\n", from_string=True)
