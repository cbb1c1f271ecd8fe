"""References of configurations that come from strangers: nothing of the environment, nothing that grows without end."""
import pytest
from omegaconf import OmegaConf
from portrait_diffusion.errors import UsageError
from portrait_diffusion.host import prepare_resolvers
from portrait_diffusion.references import MAX_EXPANDED, check_growth, references
from portrait_diffusion.settings import load_pipeline_config


@pytest.mark.parametrize(
    "description",
    [
        "${oc.env:SECRET}",
        "${rmspace:${oc.env:SECRET},_}",
        "${basename:${oc.env:SECRET}}",
        "${rmspace:'$ {oc.env:SECRET}',''}",
        "${rmspace:'$ { oc.env:SECRET}',''}",
        "${tag}{oc.env:SECRET}",
        "${add:${mul:1,${oc.decode:2}},3}",
        "x${oc.env:SECRET,none}y",
        "${${tag}}",
    ],
)
def test_nothing_but_plain_references_and_known_functions(monkeypatch, description):
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(UsageError) as refused:
        load_pipeline_config({"tag": "$", "description": description})
    assert "description" in str(refused.value) and "hunter2" not in str(refused.value)


def test_references_and_functions_still_work():
    content = {"name": "mine", "seed": 3, "tag": "${name} of ${rmspace:'a b',_}", "preview_every": "${add:${seed},1}",
               "system": {"geometry": {"radius": 1.0}, "renderer": {"radius": "${..geometry.radius}"}}}  # fmt: skip
    config, plain = load_pipeline_config(content)
    assert config.tag == "mine of a_b" and config.preview_every == 4 and config.system.renderer["radius"] == 1.0


def test_inner_references_are_found_too():
    assert [found[1:] for found in references("${add:${a.b},${mul:2,${.c}}}")] == [
        ("add", ""), ("", "a.b"), ("mul", ""), ("", ".c"),
    ]  # fmt: skip
    assert [found[1:] for found in references("$x ${a b}")] == [("", "")]


@pytest.mark.parametrize("way", ["{0}{0}", "${{add:{0},{0}}}"])
def test_references_to_references_do_not_multiply(way):
    """33 lines of 40 characters would be 2^33 times the first one."""
    content = {"tag": "xxxx"}
    for k in range(40):
        content[f"a{k}"] = way.format("${" + ("tag" if k == 0 else f"a{k - 1}") + "}")
    content["description"] = "${a39}"
    with pytest.raises(UsageError):
        load_pipeline_config(content)


def test_sections_count_as_often_as_they_are_named():
    content = {"a0": {"k": ["x" * 100] * 10}}
    for k in range(1, 30):
        content[f"a{k}"] = dict.fromkeys(("left", "right"), "${a" + str(k - 1) + "}")
    with pytest.raises(UsageError, match="written out"):
        check_growth(content, "a file")
    small = {"a": {"b": "${.c}", "c": "${a.d[1]}", "d": [1, "${a}"], "loop": "${a.loop}", "gone": "${nowhere.at.all}"}}
    check_growth(small, "a file")
    check_growth({"long": "x" * (MAX_EXPANDED // 2)}, "a file")


@pytest.mark.parametrize(
    "text",
    ["${mul:abc,1000000000}", "${mul:[1],1000000000}", "${rmspace:'" + " " * 200 + "'," + "x" * 200 + "}",
     "${mul:" + "9" * 200 + "," + "9" * 200 + "}"],
)  # fmt: skip
def test_functions_give_no_more_than_they_may(text):
    prepare_resolvers()
    with pytest.raises(UsageError, match="key 'description'"):
        load_pipeline_config({"description": text})


def test_numbers_are_multiplied_as_before():
    prepare_resolvers()
    config = OmegaConf.create({"a": "${mul:3,0.5}", "b": "${add:2,${mul:2,5}}", "c": "${sub:1,2}"})
    assert (config.a, config.b, config.c) == (1.5, 12, -1)
