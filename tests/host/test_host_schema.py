"""Early validation: each error names file, key path, what is wrong and the nearest valid name."""
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf
from portrait_diffusion import host, schema
from portrait_diffusion._standalone import registry
from portrait_diffusion.errors import UsageError


class Head:
    @dataclass
    class Config:
        channels: int = 32
        rate: float = 0.1
        lambda_id: Any = 1.0
        name: str | None = None
        steps: list[int] = field(default_factory=list)

        def __post_init__(self):
            if self.channels < 1:
                raise ValueError("channels must be at least 1.")


class Root:
    @dataclass
    class Config:
        geometry_type: str = "t-head"
        geometry: dict = field(default_factory=dict)
        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)
        loss: dict = field(default_factory=dict)


class Unchecked:
    pass


@dataclass
class Camera:
    fovy_deg: float = 13.374
    size: int = 128


@dataclass
class Plain:
    image: str  # required
    camera: Camera = field(default_factory=Camera)
    second: Camera | None = None
    flag: bool = False


@pytest.fixture(autouse=True)
def names():
    before = dict(registry.modules())
    registry.modules().update({"t-head": Head, "t-system": Root, "t-unchecked": Unchecked})
    yield
    registry.modules().clear()
    registry.modules().update(before)


def write(tmp_path, text):
    path = tmp_path / "portrait.yaml"
    path.write_text(text)
    return path


def check(tmp_path, text, overrides=(), of=host.ExperimentConfig):
    return schema.validate(write(tmp_path, text), of, overrides)


GOOD = """
name: portrait
tag: "${rmspace:${data.prompt},_}"
data_type: t-unchecked
data: {prompt: a face, anything: 1}
system_type: t-system
system:
  geometry_type: t-head
  geometry: {channels: 16, lambda_id: [0, 1.0, 0.5, 100], rate: 1}
  loss: {lambda_rgb: 1.0}
trainer: {max_steps: 10}
"""


def test_a_good_configuration_is_merged_and_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = check(tmp_path, GOOD, ["trainer.max_steps=20", "system.geometry.steps=[1,2]"])
    assert check(tmp_path, GOOD, ["system.geometry.rate=[0, 1.0, 0.5, 100]"])  # a schedule
    assert config.tag == "a_face" and config.trainer.max_steps == 20 and list(config.system.geometry.steps) == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["portrait.yaml"]  # no trial folder appears
    same = schema.validate(OmegaConf.to_container(OmegaConf.create(GOOD)), host.ExperimentConfig)
    assert same.tag == "a_face"


@pytest.mark.parametrize(
    "change, key, message",
    [
        ("system.geometry.chanels=3", "system.geometry.chanels", "nearest valid name is 'channels'"),
        ("system.geometri.channels=3", "system.geometri", "nearest valid name is 'geometry'"),
        ("trainr.max_steps=3", "trainr", "nearest valid name is 'trainer'"),
        ("system.geometry.zzz=3", "system.geometry.zzz", "valid here: channels, lambda_id, name, rate, steps"),
        ("system.geometry.channels=many", "system.geometry.channels", "must be of type int, got 'many' (str)"),
        ("system.geometry.channels=1.5", "system.geometry.channels", "must be of type int, got 1.5 (float)"),
        ("system.geometry.rate=null", "system.geometry.rate", "must be of type float, got None (NoneType)"),
        ("system.geometry.steps=[a]", "system.geometry.steps", "must be of type list[int], got ['a'] (list)"),
        ("system.geometry.rate={a: 1}", "system.geometry.rate", "must be of type float, got {'a': 1} (dict)"),
        ("system.geometry=5", "system.geometry", "must be of type dict, got 5 (int)"),
        ("seed=abc", "seed", "must be of type int"),
        ("system.geometry_type=t-haed", "system.geometry_type", "'t-haed'; the nearest valid name is 't-head'"),
        ("system_type=t-system:t-nobody", "system_type", "no class is registered"),
        ("system.geometry.name='???'", "system.geometry.name", "is required ('???')"),
        ("data.new='???'", "data.new", "set it in the file or with data.new=VALUE"),
        ("system.geometry.rate=[1, 2]", "system.geometry.rate", "must be of type float, got [1, 2] (list)"),
        ("data.list=[1,'???']", "data.list[1]", "required"),
        ("system.guidance.scale=3", "system.guidance", "'system.guidance_type' is empty"),
        ("system.guidance_type=t-haed", "system.guidance_type", "'t-haed'; the nearest valid name is 't-head'"),
        ("system.guidance_type=zzz", "system.guidance_type", "valid here: portrait-diffusion-"),
        ("system.geometry_type=''", "system.geometry_type", "is empty; the default is 't-head'"),
        ("system.geometry_type=t-head:t-head", "system.geometry_type", "'t-head:t-head' makes no class: duplicate"),
        ("system.geometry_type=5", "system.geometry_type", "no class is registered as '5'"),
        ("system.geometry.channels=0", "system.geometry", "channels must be at least 1."),
        ("data.other='${data.promt}'", "data.other", "promt"),
        ("data.prompt='${oc.env:HOME}'", "data.prompt", "no plain reference or known function"),
        ("data.prompt='${${data.anything}:HOME}'", "data.prompt", "no plain reference or known function"),
        ("data.prompt='${ad:1,2}'", "data.prompt", "nearest valid name is 'add'"),
    ],
)
def test_errors_name_file_key_and_remedy(tmp_path, change, key, message):
    with pytest.raises(UsageError) as caught:
        check(tmp_path, GOOD, [change])
    text = str(caught.value)
    assert text.startswith(f"The given key=value (on top of {tmp_path / 'portrait.yaml'}): ")
    assert f"'{key}'" in text and message in text, text
    assert text.endswith(".") and "\n" not in text and caught.value.exit_code == 2


def test_mixins_are_found_and_a_default_type_counts(tmp_path):
    assert check(tmp_path, GOOD, ["system.geometry_type=t-head:t-unchecked"])
    with pytest.raises(UsageError, match="'system.geometry.chanels'.*'channels'"):
        check(tmp_path, "system_type: t-system\nsystem: {geometry: {chanels: 1}}\ntag: x\n")


def test_registered_names_are_checked_without_a_section_of_keys(tmp_path):
    text = "tag: x\nsystem_type: t-system\nsystem: {%s}\n"
    assert check(tmp_path, text % "geometry_type: t-unchecked, guidance_type: t-head")
    assert check(tmp_path, text % "guidance_type: ''")  # empty by default: there is none
    for given, key in [("geometry_type: t-haed", "geometry_type"), ("guidance_type: t-haed", "guidance_type")]:
        with pytest.raises(UsageError) as caught:
            check(tmp_path, text % given)
        expected = f"portrait.yaml: key 'system.{key}': no class is registered as 't-haed'; the nearest valid name is"
        assert expected in str(caught.value) and "'t-head'" in str(caught.value)
    with pytest.raises(UsageError, match="portrait.yaml: key 'system_type': no class is registered as 't-sistem'"):
        check(tmp_path, "tag: x\nsystem_type: t-sistem\n")


def test_only_sections_of_keys_make_a_registered_name_of_their_partner(tmp_path):
    @dataclass
    class Mode:
        prior_type: str = "bundled"
        prior: Camera = field(default_factory=Camera)
        scale_type: str = "linear"
        scale: float = 1.0
        extra_type: str = ""
        extra: dict | None = None

    assert check(tmp_path, "prior_type: any\nscale_type: log\nscale: 2\n", of=Mode)
    with pytest.raises(UsageError, match="'extra_type'"):
        check(tmp_path, "extra_type: t-nobody\n", of=Mode)
    assert check(tmp_path, "extra_type: t-head\nextra: null\n", of=Mode).extra is None


def test_plain_nested_dataclasses(tmp_path):
    config = check(tmp_path, "image: me.png\ncamera: {size: 64}\nsecond: {fovy_deg: 20}\n", of=Plain)
    assert config.camera.size == 64
    assert check(tmp_path, "image: me.png\nsecond: null\n", of=Plain).second is None
    for text, message in [
        ("image: a\ncamera: {sise: 64}", "unknown key 'camera.sise'; the nearest valid name is 'size'"),
        ("image: a\nsecond: {fovy: 64}", "unknown key 'second.fovy'; the nearest valid name is 'fovy_deg'"),
        ("image: a\ncamera: 5", "key 'camera' must be a section with keys, got 5 (int)"),
        ("camera: {size: 64}", "key 'image' is required but missing"),
        ("image: ???", "key 'image' is required ('???')"),
        ("image: a\nflag: perhaps", "key 'flag' must be of type bool, got 'perhaps' (str)"),
    ]:
        with pytest.raises(UsageError) as caught:
            check(tmp_path, text, of=Plain)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: [1, 2\nb: 3", "line 2: no valid YAML"),
        (b"a: 1\na: 2\n", "duplicate key"),
        (b"- 1\n- 2\n", "top level must be a mapping"),
        (b"just text", "top level must be a mapping"),
        (b"a: !!python/object/apply:os.system ['echo']", "line 1: the tag .* isn't allowed"),
        (b"a: !import os", "isn't allowed"),
        (b"a: \xff\xfe", "UTF-8"),
        (b"a: " + b"[" * 60 + b"]" * 60, "nested deeper than 50"),
        (b"a: " + b"[" * 1500 + b"]" * 1500, "nested deeper than 50"),
        (b"# " + b"x" * 1_000_000, "at most 1000000 bytes"),
        (
            b"l0: &l0 [a]\n" + b"".join(b"l%d: &l%d [%s]\n" % (i, i, b",".join([b"*l%d" % (i - 1)] * 9))
                                         for i in range(1, 9)),
            "more than 100000 values",
        ),
    ],
)  # fmt: skip
def test_hostile_files(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        schema.read_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UsageError, match="can't be read"):
            schema.read_yaml(path)


def test_overrides():
    parsed = schema.parse_overrides(["a.b=1", "a.c=[1, 2.5]", "d=one = two", "a.b=2", "e={x: 1}", "f=null"])
    assert OmegaConf.to_container(parsed) == {
        "a": {"b": 2, "c": [1, 2.5]}, "d": "one = two", "e": {"x": 1}, "f": None,
    }  # fmt: skip
    assert len(schema.parse_overrides([])) == 0


@pytest.mark.parametrize(
    "entry, message",
    [
        ("seed", "has no '='; write it as key.path=value"),
        ("=3", "malformed key ''"),
        ("a..b=3", "malformed key 'a..b'"),
        ("a b=3", "malformed key"),
        ("--seed=3", "write it plainly: seed=3"),
        ("+seed=3", "write it plainly: seed=3"),
        ("~seed", "write it plainly: seed"),
        ("k={a:1}", "space after each colon"),
        ("k=[1", "no valid YAML"),
        ("k=!!python/name:os.system", "isn't allowed"),
    ],
)
def test_override_errors(entry, message):
    with pytest.raises(UsageError) as caught:
        schema.parse_overrides(["name=ok", entry])
    assert message in str(caught.value) and f"Override '{entry}'" in str(caught.value)


def test_overrides_that_do_not_fit_the_file(tmp_path):
    with pytest.raises(UsageError, match="portrait.yaml"):
        check(tmp_path, "tag: x\ndata: [1, 2]\n", ["data.a=1"])


def test_cyclic_references(tmp_path):
    with pytest.raises(UsageError, match="portrait.yaml: key 'data.a': a reference .* can't be resolved"):
        check(tmp_path, "tag: x\ndata: {a: '${data.b}', b: '${data.a}'}\n")


def test_our_registered_classes_can_be_checked(tmp_path):
    text = "tag: x\nsystem_type: t-system\nsystem:\n  geometry_type: portrait-diffusion-triplane\n  geometry: {%s}\n"
    assert check(tmp_path, text % "channels: 8, resolution: 64")
    with pytest.raises(UsageError, match="'system.geometry.resolutoin'; the nearest valid name is 'resolution'"):
        check(tmp_path, text % "resolutoin: 64")
    with pytest.raises(UsageError, match="section 'system.geometry': .*levels"):
        check(tmp_path, text % "resolution: 66, levels: 3")


def test_the_list_of_functions_equals_the_own_hosts():
    from portrait_diffusion._standalone.config import RESOLVER_NAMES
    from portrait_diffusion.references import FUNCTIONS

    assert FUNCTIONS == RESOLVER_NAMES
